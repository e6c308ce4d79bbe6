import asyncio
import ipaddress
from concurrent.futures import Future
from dataclasses import replace

import pytest
from scramp import ScramClient, ScramMechanism

from vnsmail.inbound import sign_in, tenant
from vnsmail.inbound.accept import (
    NO_SUCH_USER,
    RELAYING_DENIED,
    AcceptPolicy,
    Aliased,
    Taken,
)
from vnsmail.inbound.accounts import Account, Accounts
from vnsmail.inbound.guesses import AT_USER, FROM_NETWORK
from vnsmail.inbound.policy import (
    Challenge,
    Client,
    Examined,
    Later,
    Relayed,
    Role,
    SignedIn,
)
from vnsmail.inbound.tenant import Allowance, Memory, TenantPolicy
from vnsmail.inbound.verifier import WAITING_OF_OWNER, Busy, Verifier
from vnsmail.model import Envelope, Owner
from vnsmail.queue.body import Body
from vnsmail.sasl.passwords import ScramKeys, write_keys
from vnsmail.smtp.address import parse_mailbox

HOME = ipaddress.ip_address("192.0.2.7")
ANN, BOB, EVE = "ann@alpha.example", "bob@alpha.example", "eve@alpha.example"
LOCAL = AcceptPolicy.of(
    ["alpha.example", "alpha.test"],
    ["ann", "bob", "eve", "nopass"],
    aliases={
        "sales": ("ann",),
        "team": ("ann", "bob"),
        "out": ("x@y.example",),
        "copied": ("ann", "x@y.example"),
        "twice": ("ann", "ann+x"),
    },
)


def keys(password):
    made = ScramMechanism("SCRAM-SHA-256").make_auth_info(
        password, iteration_count=4096, salt=b"0123456789abcdef"
    )
    return write_keys(ScramKeys(*made))


ACCOUNTS = (
    Account("ann", "hash of pencil", keys("pencil"), senders=("Press@x.example",)),
    Account("bob", "hash of eraser", keys("eraser"), quota=10),
    Account("eve", "hash of pencil", keys("pencil"), suspended=True),
)


class AtOnce:
    """An executor that does it now."""

    def submit(self, function, *arguments):
        future: Future[object] = Future()
        future.set_result(function(*arguments))
        return future

    def shutdown(self, **_):
        pass


class Checked:
    """A verifier of cheap hashes, that counts what it computes."""

    def __init__(self):
        self.count = 0
        self.verifier = Verifier(AtOnce(), check=self.check, clock=lambda: 0.0)  # type: ignore[arg-type]

    def check(self, password_hash, password):
        self.count += 1
        return password_hash == f"hash of {password}"


@pytest.fixture
def checked():
    return Checked()


@pytest.fixture
def policy(checked):
    return TenantPolicy(
        "alpha.example",
        LOCAL,
        Accounts(LOCAL, ACCOUNTS, b"s" * 32),
        Memory(),
        checked.verifier,
        clock=lambda: 0.0,
    )


def submitting(user="", address=HOME):
    return Client(address, Role.SUBMISSION, user=user)


def plain(name, password, acts_as=""):
    return f"{acts_as}\0{name}\0{password}".encode()


async def signed_in(policy, name, password, client=None):
    exchange = policy.sign_in(client or submitting(), "PLAIN")
    return await exchange.respond(plain(name, password))


# Signing in --------------------------------------------------------------------------


class TestSigningIn:
    """AUTH."""

    @pytest.mark.parametrize(
        "name", ["ann", "ANN", "ann@alpha.example", "Ann@Alpha.Test"]
    )
    async def test_as_oneself(self, policy, name):
        """By the name alone, or at any domain of the host."""
        assert SignedIn(ANN) == await signed_in(policy, name, "pencil")

    @pytest.mark.parametrize(
        ("name", "password"),
        [
            ("ann", "eraser"),
            ("ann", "hash of pencil"),
            ("nobody", "pencil"),
            ("ann@beta.example", "pencil"),
            ("ann+x", "pencil"),
            ("sales", "pencil"),
            ("nopass", "pencil"),
            ("postmaster", "pencil"),
            ("ann@", "pencil"),
            ("ann@@alpha.example", "pencil"),
        ],
    )
    async def test_wrong(self, policy, checked, name, password):
        """Names of other hosts, aliases, whoever has no password: all are alike."""
        step = await signed_in(policy, name, password)

        assert Later(sign_in.WRONG, 1.0) == step
        assert 1 == checked.count

    async def test_suspended(self, policy):
        """It is told to who knows the password, and to nobody else."""
        assert sign_in.SUSPENDED == await signed_in(policy, "eve", "pencil")
        assert Later(sign_in.WRONG, 1.0) == await signed_in(policy, "eve", "x")

    async def test_for_another(self, policy, checked):
        """Nobody acts for somebody else."""
        exchange = policy.sign_in(submitting(), "PLAIN")
        step = await exchange.respond(plain("ann", "pencil", "bob"))

        assert (Later(sign_in.WRONG, 1.0), 0) == (step, checked.count)

    async def test_login(self, policy):
        """LOGIN asks for one after the other."""
        exchange = policy.sign_in(submitting(), "LOGIN")
        assert Challenge(b"Username:") == await exchange.respond(None)
        assert Challenge(b"Password:") == await exchange.respond(b"ann")

        assert SignedIn(ANN) == await exchange.respond(b"pencil")

    @pytest.mark.parametrize(
        ("name", "password", "expected"),
        [
            ("ann@alpha.test", "pencil", SignedIn(ANN)),
            ("ann", "eraser", Later(sign_in.WRONG, 1.0)),
            ("nobody", "pencil", Later(sign_in.WRONG, 1.0)),
            ("ann@beta.example", "pencil", Later(sign_in.WRONG, 1.0)),
            ("eve", "pencil", sign_in.SUSPENDED),
        ],
    )
    async def test_scram(self, policy, checked, name, password, expected):
        """SCRAM comes to the same, and no hash is computed."""
        exchange = policy.sign_in(submitting(), "SCRAM-SHA-256")
        client = ScramClient(["SCRAM-SHA-256"], name, password)
        step = await exchange.respond(client.get_client_first().encode())
        client.set_server_first(step.data.decode())
        step = await exchange.respond(client.get_client_final().encode())
        if isinstance(step, Challenge):
            client.set_server_final(step.data.decode())
            step = await exchange.respond(b"")

        assert (expected, 0) == (step, checked.count)

    async def test_nonsense(self, policy):
        """What is no response of the mechanism is a matter of syntax."""
        exchange = policy.sign_in(submitting(), "PLAIN")

        assert sign_in.MALFORMED == await exchange.respond(b"ann")
        assert 504 == policy.sign_in(submitting(), "CRAM-MD5").code

    async def test_remembered(self, policy, checked):
        """A password that was right is not computed again, until it is another."""
        for _ in range(3):
            assert SignedIn(ANN) == await signed_in(policy, "ann", "pencil")
        assert 1 == checked.count
        changed = replace(ACCOUNTS[0], password="hash of ruler")  # noqa: S106
        policy = replace(policy, accounts=Accounts(LOCAL, [changed]))

        assert Later(sign_in.WRONG, 1.0) == await signed_in(policy, "ann", "pencil")

    async def test_nobody_to_sign_in(self, policy):
        """Where nobody has a password, nothing is announced."""
        assert ("SCRAM-SHA-256", "PLAIN", "LOGIN") == policy.mechanisms
        without = replace(policy, accounts=Accounts(LOCAL, [Account("ann")]))

        assert () == without.mechanisms

    async def test_changed_meanwhile(self, policy, checked):
        """Who is suspended while the password is checked does not get in."""
        accounts = policy.accounts
        gone = Accounts(LOCAL, [Account("ann", "other")])
        asked = iter([accounts] * 3 + [gone] * 9)
        exchange = replace(policy, current=lambda: next(asked)).sign_in(
            submitting(), "PLAIN"
        )

        assert Later(sign_in.WRONG, 1.0) == await exchange.respond(
            plain("ann", "pencil")
        )

    async def test_guessing(self, policy, checked):
        """After some failures from one place nothing is computed any more there."""
        for _ in range(FROM_NETWORK):
            await signed_in(policy, "ann", "guess")
        computed = checked.count

        step = await signed_in(policy, "ann", "pencil")
        assert (454, "4.7.0") == (step.code, step.enhanced)
        assert computed == checked.count
        elsewhere = submitting(address=ipaddress.ip_address("192.0.2.8"))
        assert SignedIn(ANN) == await signed_in(policy, "ann", "pencil", elsewhere)
        assert FROM_NETWORK == policy.memory.guesses.total

    async def test_a_user_who_is_guessed_at(self, policy):
        """From home she signs in all the same; a name nobody has is refused alike."""
        await signed_in(policy, "ann", "pencil")
        for number in range(AT_USER):
            place = submitting(address=ipaddress.ip_address(f"10.0.0.{number}"))
            for name in ("ann", "nobody"):
                await signed_in(policy, name, "guess", place)
        stranger = submitting(address=ipaddress.ip_address("10.0.1.1"))
        codes = [
            (await signed_in(policy, name, "guess", stranger)).code
            for name in ("ann", "nobody")
        ]

        assert [454, 454] == codes
        assert SignedIn(ANN) == await signed_in(policy, "ann", "pencil")


class TestVerifier:
    """Checking beside the loop."""

    async def test_too_many(self):
        """One owner fills its own places, and not those of others."""
        waiting: list[Future[bool]] = []

        class Slow:
            def submit(self, *_):
                waiting.append(Future())
                return waiting[-1]

        verifier = Verifier(Slow())  # type: ignore[arg-type]
        async with asyncio.TaskGroup() as tasks:
            for _ in range(WAITING_OF_OWNER):
                tasks.create_task(verifier.verify("alpha.example", "h", "p"))
            await asyncio.sleep(0)
            with pytest.raises(Busy):
                await verifier.verify("alpha.example", "h", "p")
            tasks.create_task(verifier.verify("beta.example", "h", "p"))
            await asyncio.sleep(0)
            assert WAITING_OF_OWNER + 1 == len(waiting)
            for each in waiting:
                each.set_result(False)

    async def test_busy(self, policy):
        """Whoever comes on top is told to come back, and it is no failure of theirs."""

        class Full:
            async def verify(self, *_):
                raise Busy

        step = await signed_in(replace(policy, verifier=Full()), "ann", "pencil")

        assert sign_in.BUSY == step
        assert 0 == policy.memory.guesses.total


# Senders -------------------------------------------------------------------------------


def may_send(policy, sender, user=ANN):
    mailbox = parse_mailbox(sender) if sender else None
    return policy.may_send(submitting(user), mailbox, None)


@pytest.mark.parametrize(
    "sender",
    [
        "ann@alpha.example",
        "Ann@Alpha.Test",
        "ann+news@alpha.test",
        "sales@alpha.example",
        "sales+x@alpha.test",
        "twice@alpha.test",
        "press@x.example",
        "",
    ],
)
def test_own_senders(policy, sender):
    """Own addresses, aliases for nobody else, and what was allowed."""
    assert may_send(policy, sender) is None


@pytest.mark.parametrize(
    "sender",
    [
        "bob@alpha.example",
        "ann@beta.example",
        "team@alpha.example",
        "out@alpha.example",
        "copied@alpha.example",
        "nobody@alpha.example",
        "postmaster@alpha.example",
        "press@y.example",
    ],
)
def test_senders_of_others(policy, sender):
    """Anybody else's is refused for good."""
    assert tenant.NOT_YOURS == may_send(policy, sender)


@pytest.mark.parametrize(
    ("user", "reply"),
    [
        ("", tenant.NOT_SIGNED_IN),
        (EVE, tenant.NO_MORE_YOURS),
        ("gone@alpha.example", tenant.NO_MORE_YOURS),
        ("nopass@alpha.example", tenant.NO_MORE_YOURS),
    ],
)
async def test_who_may_not_any_more(policy, user, reply):
    """Suspended, removed or without a password while the session goes on: refused."""
    client = submitting(user)
    bob = parse_mailbox("bob@x.example")
    envelope = Envelope("1", Owner("alpha.example"), "", ("bob@x.example",), 0.0)

    assert reply == policy.may_send(client, parse_mailbox(ANN), None)
    assert reply == policy.may_receive(client, None, bob)
    assert reply == await policy.examine(client, envelope, Body(b"\r\n"), b"\r\n")


def test_how_much(policy):
    """Messages of a user, and of all from one address, are limited by the hour."""
    policy = replace(policy, allowance=Allowance(3, 100, 4))
    answers = [may_send(policy, ANN) for _ in range(4)]
    assert [None, None, None, tenant.TOO_MUCH] == answers
    answers = [may_send(policy, BOB, BOB) for _ in range(2)]

    assert [None, tenant.TOO_MUCH] == answers


# Recipients ----------------------------------------------------------------------------


def may_receive(policy, recipient, client):
    return policy.may_receive(client, None, parse_mailbox(recipient))


@pytest.mark.parametrize(
    ("recipient", "expected"),
    [
        ("x@y.example", Relayed("x@y.example")),
        ("Bob@alpha.test", Taken("bob", "bob@alpha.test")),
        ("sales@alpha.example", Aliased((ANN,), ("ann",))),
        ("nobody@alpha.example", NO_SUCH_USER),
    ],
)
def test_recipients_of_users(policy, recipient, expected):
    """Who signed in writes to anybody; who is not here is told at once."""
    assert expected == may_receive(policy, recipient, submitting(ANN))


def test_how_many_recipients(policy):
    """They are limited by the hour, too."""
    policy = replace(policy, allowance=Allowance(9, 2, 9))
    found = [may_receive(policy, BOB, submitting(ANN)) for _ in range(3)]

    assert tenant.TOO_MUCH == found[2]
    assert tenant.TOO_MUCH not in found[:2]


def test_strangers(policy):
    """Mail from others is for users and aliases here."""
    client = Client(HOME)

    assert policy.may_send(client, parse_mailbox("ann@alpha.example"), None) is None
    assert Taken("ann", ANN) == may_receive(policy, ANN, client)
    assert Later(NO_SUCH_USER, 0.0) == may_receive(policy, "no@alpha.test", client)
    assert Later(RELAYING_DENIED, 0.0) == may_receive(policy, "x@y.example", client)


def test_looking_for_users(policy):
    """Each miss of a session waits longer; then the session ends; users are found."""
    client = Client(HOME)
    answers = [
        may_receive(policy, f"u{n}@alpha.example", client)
        for n in range(tenant.MISSES_OF_SESSION)
    ]

    assert [0.0, 0.0, 1.0, 2.0] == [each.seconds for each in answers[:4]]
    assert [550] * 9 + [421] == [each.reply.code for each in answers]
    assert Taken("ann", ANN) == may_receive(policy, ANN, client)


def test_looking_for_users_again_and_again(policy):
    """A network that did so in many sessions gets no more than one miss in each."""
    for _ in range(tenant.MISSES_OF_NETWORK):
        may_receive(policy, "no@alpha.example", Client(HOME))
    again = may_receive(policy, "no@alpha.example", Client(HOME))
    other = may_receive(
        policy, "no@alpha.example", Client(ipaddress.ip_address("192.0.2.8"))
    )

    assert 421 == again.reply.code
    assert again.seconds > 3
    assert Later(NO_SUCH_USER, 0.0) == other
    assert Taken("ann", ANN) == may_receive(policy, ANN, Client(HOME))


def test_full_mailboxes(policy):
    """What has no room is refused for the time being; an alias, if all of it has none."""
    full = {"bob"}
    policy = replace(policy, is_full=full.__contains__)
    client = Client(HOME)

    assert tenant.FULL == may_receive(policy, BOB, client)
    assert (452, "4.2.2") == (tenant.FULL.code, tenant.FULL.enhanced)
    assert isinstance(may_receive(policy, "team@alpha.example", client), Aliased)
    full.add("ann")
    assert tenant.FULL == may_receive(policy, "team@alpha.example", client)
    assert isinstance(may_receive(policy, "out@alpha.example", client), Aliased)


# Messages ------------------------------------------------------------------------------


async def examine(policy, fields, client, sender=ANN):
    message = fields.encode() + b"\r\n\r\nhello\r\n"
    envelope = Envelope("1", Owner("alpha.example"), sender, ("bob@x.example",), 0.0)
    return await policy.examine(client, envelope, Body(message), message)


async def test_whose_message(policy):
    """From is the user's own, or the message is refused."""
    own = await examine(policy, "From: Ann <sales@alpha.test>", submitting(ANN))
    other = await examine(policy, f"From: {BOB}", submitting(ANN))

    assert isinstance(own, Examined)
    assert (550, "5.7.1") == (other.code, other.enhanced)


async def test_whose_message_of_strangers(policy):
    """On the MX anybody writes as anybody, as far as users go."""
    assert isinstance(await examine(policy, f"From: {BOB}", Client(HOME)), Examined)
