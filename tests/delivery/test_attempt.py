import asyncio
import ipaddress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.delivery.helpers import ALPHA, DUAL, Table, envelope, facts, server_failure
from vnsmail.delivery import attempt as module
from vnsmail.delivery import outcomes as say
from vnsmail.delivery.attempt import Attempts
from vnsmail.delivery.connection import ConnectionFailed, Result
from vnsmail.delivery.facts import AgentFacts
from vnsmail.delivery.security import Security, TlsRules
from vnsmail.errors import (
    BrokerGone,
    BrokerRefused,
    NotFound,
    QueueUnavailable,
    SourceUnavailable,
)
from vnsmail.model import Contact, Outcome, Verdict
from vnsmail.queue.body import Body
from vnsmail.settings import DeliverySettings, checked
from vnsmail.smtp.errors import SmtpProtocolError
from vnsmail.smtp.replies import Reply

BOB, EVE = "bob@b.example", "eve@b.example"
TAKEN = Reply(250, ("ok",), "2.0.0")
NEVER = Reply(550, ("no such user",), "5.1.1")
LATER = Reply(451, ("greylisted",), "4.2.1")
BROKEN = Reply(421, ("connection lost",), "4.4.2")
DNS = Table(
    {"b.example": [(10, "one.example"), (20, "two.example")]},
    {"one.example": ["10.0.1.1"], "two.example": ["10.0.2.1"]},
)
ONE, TWO = "one.example [10.0.1.1]", "two.example [10.0.2.1]"
SOURCE = "10.0.0.1"

CONTACT = Contact("127.0.0.1", 40000, "alpha.example", "mx.b.example", "10.0.0.2", 25)


def down(hop, verdict=Verdict.DEFERRED):
    code, enhanced = (421, "4.4.1") if verdict is Verdict.DEFERRED else (554, "5.0.0")
    return ConnectionFailed(Outcome(verdict, code, enhanced, "down", hop))


@dataclass
class Said:
    """What a hop makes of a transaction: a reply for all, or one for each."""

    replies: Reply | dict[str, Reply]
    body_sent: bool = True


@dataclass
class FakeConnection:
    hop: str
    script: "Script"
    source: str = SOURCE
    transactions: int = 0

    async def send(self, transaction: Any, body: Body) -> Result:
        self.transactions += 1
        said = self.script.next(self.hop)
        self.script.sent.append((self.hop, transaction, body))
        if isinstance(said, Exception):
            raise said
        replies = said.replies
        if isinstance(replies, Reply):
            replies = dict.fromkeys(transaction.recipients, replies)
        replies = {to: replies[to] for to in transaction.recipients}
        return Result(replies, said.body_sent, CONTACT)


@dataclass
class Script:
    """A pool that gives connections, and what happens on them, by hop."""

    steps: dict[str, list[Any]]
    idle: dict[str, FakeConnection] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    sent: list[tuple[str, Any, Body]] = field(default_factory=list)
    out: int = 0

    def next(self, hop):
        return self.steps[hop].pop(0)

    async def take(self, hop, allowed, *, fresh=False):
        name = str(hop)
        self.taken.append(name + (" fresh" if fresh else ""))
        if name in self.idle and not fresh:
            connection = self.idle.pop(name)
        else:
            step = self.steps[name][0]
            if isinstance(step, ConnectionFailed | SourceUnavailable | BrokerGone):
                raise self.next(name)
            if isinstance(step, BrokerRefused):
                raise self.next(name)
            connection = FakeConnection(hop, self)
            connection.hop = name
        self.out += 1
        return connection

    def release(self, _):
        self.out -= 1


async def load():
    return Body(b"body")


def made(pool: Any, resolver: Table = DNS, who: AgentFacts = ALPHA) -> Attempts:
    return Attempts(who, pool, resolver, DeliverySettings(), lambda _: None)


async def attempt(pool, *recipients, who=ALPHA, resolver=DNS, load=load):
    attempts = made(pool, resolver, who)
    recipients = recipients or (BOB,)
    message = envelope(*recipients)
    found = await attempts.attempt("b.example", message, recipients, load)
    assert set(recipients) == set(found)
    assert 0 == pool.out
    return found


async def test_the_first_hop_takes_it():
    """What the first hop says is what counts, with where it was said."""
    pool = Script({ONE: [Said({BOB: TAKEN, EVE: NEVER})]})
    found = await attempt(pool, BOB, EVE)

    assert {
        BOB: Outcome(Verdict.DELIVERED, 250, "2.0.0", "ok", ONE, SOURCE),
        EVE: Outcome(Verdict.FAILED, 550, "5.1.1", "no such user", ONE, SOURCE),
    } == found
    assert [ONE] == pool.taken


async def test_the_transaction():
    """The hop gets what the envelope says, and only the recipients of this attempt."""
    pool = Script({ONE: [Said(TAKEN)]})
    attempts = made(pool)
    message = envelope(BOB, EVE, "x@c.example", eight_bit=True, smtputf8=True)
    await attempts.attempt("b.example", message, (EVE,), load)

    (_, transaction, body) = pool.sent[0]
    assert ("ann@alpha.example", (EVE,), 4, True, True) == (
        transaction.sender,
        transaction.recipients,
        transaction.body_size,
        transaction.eight_bit,
        transaction.smtputf8,
    )
    assert b"body" == body.head


async def test_a_refusal_is_not_carried_to_the_next_hop():
    """A hop that answers speaks for the domain: its 4yz and 5yz count."""
    pool = Script({ONE: [Said({BOB: LATER, EVE: NEVER})], TWO: []})
    found = await attempt(pool, BOB, EVE)

    assert {BOB: 451, EVE: 550} == {to: o.reply_code for to, o in found.items()}
    assert [ONE] == pool.taken


async def test_the_next_hop_if_one_is_down():
    """Hops are tried in order."""
    pool = Script({ONE: [down(ONE)], TWO: [Said(TAKEN)]})
    found = await attempt(pool)

    assert (Verdict.DELIVERED, TWO) == (found[BOB].verdict, found[BOB].remote)
    assert [ONE, TWO] == pool.taken


async def test_all_down():
    """If none can be reached, what the last said is what is told."""
    pool = Script({ONE: [down(ONE)], TWO: [down(TWO)]})
    found = await attempt(pool)

    assert down(TWO).outcome == found[BOB]


async def test_refused_by_one_and_the_other_down():
    """Only if every hop refuses us for good, it is for good."""
    refusal = down(ONE, Verdict.FAILED)
    pool = Script({ONE: [refusal], TWO: [down(TWO)]})
    assert Verdict.DEFERRED is (await attempt(pool))[BOB].verdict

    pool = Script({ONE: [refusal], TWO: [down(TWO, Verdict.FAILED)]})
    assert Verdict.FAILED is (await attempt(pool))[BOB].verdict


async def test_broken_before_the_body():
    """Nothing can have been delivered, so the next hop is asked."""
    pool = Script({ONE: [Said(BROKEN, body_sent=False)], TWO: [Said(TAKEN)]})
    found = await attempt(pool)

    assert TWO == found[BOB].remote
    assert [ONE, TWO] == pool.taken


async def test_broken_after_the_body():
    """It may have been delivered: another hop would make a second copy."""
    pool = Script({ONE: [Said(BROKEN, body_sent=True)], TWO: [Said(TAKEN)]})
    found = await attempt(pool)

    assert (Verdict.DEFERRED, "4.4.2", ONE) == (
        found[BOB].verdict,
        found[BOB].enhanced,
        found[BOB].remote,
    )
    assert [ONE] == pool.taken


async def test_only_the_unanswered_go_on():
    """What a hop said of a recipient before it broke counts."""
    pool = Script(
        {
            ONE: [Said({BOB: BROKEN, EVE: NEVER}, body_sent=False)],
            TWO: [Said({BOB: TAKEN})],
        }
    )
    found = await attempt(pool, BOB, EVE)

    assert {BOB: TWO, EVE: ONE} == {to: each.remote for to, each in found.items()}
    assert (BOB,) == pool.sent[1][1].recipients


async def test_broken_everywhere():
    """The last words are told."""
    pool = Script(
        {ONE: [Said(BROKEN, body_sent=False)], TWO: [Said(BROKEN, body_sent=False)]}
    )
    found = await attempt(pool)

    assert (Verdict.DEFERRED, 421, TWO) == (
        found[BOB].verdict,
        found[BOB].reply_code,
        found[BOB].remote,
    )


async def test_a_used_connection_that_is_dead():
    """It says nothing of the hop, which is asked once more over a new one."""
    pool = Script({ONE: [Said(BROKEN, body_sent=False), Said(TAKEN)]})
    pool.idle[ONE] = FakeConnection(ONE, pool, transactions=3)
    found = await attempt(pool)

    assert Verdict.DELIVERED is found[BOB].verdict
    assert [ONE, f"{ONE} fresh"] == pool.taken


async def test_a_used_connection_that_breaks_after_the_body():
    """Not even the same hop is asked again at once."""
    pool = Script({ONE: [Said(BROKEN, body_sent=True)]})
    pool.idle[ONE] = FakeConnection(ONE, pool, transactions=3)
    found = await attempt(pool)

    assert Verdict.DEFERRED is found[BOB].verdict
    assert [ONE] == pool.taken


async def test_dead_and_nothing_fresh():
    """If the new connection cannot be made, the next hop is asked."""
    pool = Script({ONE: [Said(BROKEN, body_sent=False), down(ONE)], TWO: [Said(TAKEN)]})
    pool.idle[ONE] = FakeConnection(ONE, pool, transactions=3)
    found = await attempt(pool)

    assert TWO == found[BOB].remote


NO_SOURCE = [
    SourceUnavailable("alpha.example", "10.0.0.1", 99),
    BrokerGone(),
    BrokerRefused("not_owned", "worker-0 does not own alpha.example"),
]


@pytest.mark.parametrize("error", NO_SOURCE)
async def test_without_a_source_nothing_else_is_tried(error):
    """No other hop, no other family: the message waits with a reason."""
    table = Table({}, {"b.example": ["fd00:1::1", "10.0.1.1"]})
    six = "b.example [fd00:1::1]"
    pool = Script({six: [error]})
    found = await attempt(pool, BOB, EVE, who=DUAL, resolver=table)

    assert [six] == pool.taken
    assert {BOB: say.no_source(error), EVE: say.no_source(error)} == found
    assert all(each.not_an_attempt for each in found.values())
    assert all(str(error) == each.text for each in found.values())


async def test_without_a_source_after_a_hop_answered():
    """What was said before stands."""
    pool = Script(
        {
            ONE: [Said({BOB: BROKEN, EVE: NEVER}, body_sent=False)],
            TWO: [NO_SOURCE[0]],
        }
    )
    found = await attempt(pool, BOB, EVE)

    assert (Verdict.FAILED, ONE) == (found[EVE].verdict, found[EVE].remote)
    assert found[BOB].not_an_attempt


async def test_a_body_that_cannot_be_read():
    """Trouble with the queue is deferred, and no other hop is bothered."""
    error = QueueUnavailable("/q", "input/output error")
    pool = Script({ONE: [error], TWO: []})

    assert {BOB: say.trouble_here(error)} == await attempt(pool)


async def test_a_body_that_cannot_be_sent():
    """A body that SMTP cannot carry fails for good."""
    pool = Script({ONE: [SmtpProtocolError("a bare LF")], TWO: []})
    found = await attempt(pool)

    assert (Verdict.FAILED, "5.6.0", "a bare LF") == (
        found[BOB].verdict,
        found[BOB].enhanced,
        found[BOB].text,
    )


async def test_a_message_withdrawn_meanwhile():
    """Whoever loads it says so, and the connection is given back."""
    pool = Script({ONE: [Said(TAKEN)]})

    async def gone():
        raise NotFound("message", "1", "it was withdrawn")

    attempts = made(pool)
    with pytest.raises(NotFound):
        await attempts.attempt("b.example", envelope(BOB), (BOB,), gone)
    assert 0 == pool.out


async def test_no_route():
    """What DNS could not say is the outcome for all."""
    error = server_failure("b.example")
    found = await attempt(Script({}), BOB, EVE, resolver=Table({"b.example": error}))

    assert say.for_all([BOB, EVE], say.unresolved(error)) == found


async def test_a_route_is_kept_for_a_moment():
    """A burst of mail to one domain is one look at its hops."""
    table = Table({}, {"b.example": ["10.0.1.1"], "c.example": ["10.0.1.1"]})
    hop = "b.example [10.0.1.1]"
    attempts = made(Script({hop: [Said(TAKEN)] * 9}), table)

    async def one(domain="b.example"):
        await attempts.attempt(domain, envelope(BOB), (BOB,), load)

    await one()
    await one()
    assert 1 == len(table.asked)
    attempts.update(facts("10.0.0.7"))
    await one()
    assert 2 == len(table.asked)


async def test_a_kept_route_gets_old(monkeypatch):
    """After a moment DNS is asked again, and not many routes are kept."""
    table = Table({}, {f"{x}.example": ["10.0.1.1"] for x in "bcd"})
    steps: dict[str, list[Any]] = {
        f"{x}.example [10.0.1.1]": [Said(TAKEN)] * 9 for x in "bcd"
    }
    attempts = made(Script(steps), table)
    loop = asyncio.get_running_loop()
    real, ahead = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: real() + ahead)
    monkeypatch.setattr(module, "MANY_ROUTES", 2)

    for domain in ("b.example", "b.example", "c.example", "d.example"):
        await attempts.attempt(domain, envelope(BOB), (BOB,), load)
    assert 3 == len(table.asked)
    assert 1 == len(attempts._routes)
    ahead = module.ROUTE_LIFETIME + 1
    await attempts.attempt("d.example", envelope(BOB), (BOB,), load)
    assert 4 == len(table.asked)


_REPLIES = st.sampled_from([TAKEN, NEVER, LATER, BROKEN])
_STEPS = st.one_of(
    st.builds(
        Said, st.fixed_dictionaries({BOB: _REPLIES, EVE: _REPLIES}), st.booleans()
    ),
    st.sampled_from(
        [*NO_SOURCE, down(ONE), down(ONE, Verdict.FAILED), QueueUnavailable("/q", "no")]
    ),
    st.just(SmtpProtocolError("a bare LF")),
)


@settings(max_examples=60)
@given(st.lists(_STEPS, min_size=2, max_size=2), _STEPS, st.booleans())
async def test_whatever_hops_do(steps, again, used):
    """One outcome for each; nothing delivered is sent twice, nor after a lost end."""
    table = Table({}, {"b.example": ["10.0.1.1", "10.0.1.2"]})
    hops = [f"b.example [{ipaddress.ip_address('10.0.1.1') + n}]" for n in range(2)]
    script = {hop: [step] for hop, step in zip(hops, steps, strict=True)}
    script[hops[0]].append(again)
    pool = Script(script)
    if used:
        pool.idle[hops[0]] = FakeConnection(hops[0], pool, transactions=1)
        if isinstance(steps[0], ConnectionFailed | BrokerGone):
            return  # an idle connection does not fail to connect
        if isinstance(steps[0], SourceUnavailable | BrokerRefused):
            return
    found = await attempt(pool, BOB, EVE, resolver=table)

    for to, outcome in found.items():
        asked = [t for _, t, _ in pool.sent if to in t.recipients]
        assert len(asked) <= 3
        if outcome.verdict is Verdict.DELIVERED:
            assert outcome.reply_code == 250
    if any(isinstance(step, tuple(map(type, NO_SOURCE))) for step in steps[:1]):
        assert [hops[0]] == pool.taken
        assert all(outcome.not_an_attempt for outcome in found.values())


@pytest.mark.parametrize("level", ["encrypt", "verify", "secure", "none", "may"])
async def test_an_engine_knows_no_policy(level):
    """What the settings want protected waits; a server with rules of its own has none of it."""
    wanted = {"tls": {"destination": {"b.example": level}}}
    rules = TlsRules(checked(DeliverySettings, wanted), ALPHA.owner)
    who = replace(ALPHA, engine="postfix")
    pool: Any = Script({"postfix [10.0.0.1]": [Said(TAKEN)]})
    attempts = Attempts(
        who, pool, DNS, rules.settings, lambda _: None, security=Security(rules)
    )
    found = await attempts.attempt("b.example", envelope(BOB), (BOB,), load)

    if level in {"none", "may"}:
        assert Verdict.DELIVERED is found[BOB].verdict
    else:
        assert (Verdict.DEFERRED, "4.7.5") == (found[BOB].verdict, found[BOB].enhanced)
        assert f"TLS policy {level} for b.example" in found[BOB].text
        assert [] == pool.taken
