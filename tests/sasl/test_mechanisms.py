import base64
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scramp import ScramClient, ScramMechanism

from vnsmail.sasl import passwords
from vnsmail.sasl.mechanisms import (
    MECHANISMS,
    Ask,
    Check,
    Failed,
    Malformed,
    Plain,
    Proven,
    Scram,
    begin,
)
from vnsmail.sasl.passwords import ScramKeys, nobodys_keys

SECRET = b"s" * 32
PASSWORD = "pencil"  # noqa: S105  that of the RFC


def keys(password=PASSWORD, salt=b"0123456789abcdef"):
    made = ScramMechanism("SCRAM-SHA-256").make_auth_info(
        password, iteration_count=4096, salt=salt
    )
    return ScramKeys(*made)


ANNS = keys()


def keys_of(name):
    return ANNS if name == "ann" else nobodys_keys(SECRET, name)


class TestPlain:
    """RFC 4616."""

    @pytest.mark.parametrize(
        "response",
        [b"\0ann\0pencil", b"ann\0ann\0pencil", "\0a\u00adnn\0pencil".encode()],
    )
    def test_who_and_what(self, response):
        """Nobody else's identity is asked for; names are prepared."""
        assert Check("ann", "pencil") == Plain().respond(response)

    def test_without_initial_response(self):
        """The client is asked for it."""
        exchange = Plain()

        assert Ask(b"") == exchange.respond(None)
        assert Check("ann", "pencil") == exchange.respond(b"\0ann\0pencil")

    def test_as_somebody_else(self):
        """An authorization identity that is another is not granted."""
        assert Failed("ann") == Plain().respond(b"bob\0ann\0pencil")

    @pytest.mark.parametrize(
        "response",
        [
            b"",
            b"ann",
            b"ann\0pencil",
            b"\0ann\0",
            b"\0\0pencil",
            b"\0ann\0pen\0cil",
            b"\0ann\0pencil\xff",
            b"\0a\x07n\0pencil",
            b"\0ann\0" + b"x" * 5000,
        ],
    )
    def test_malformed(self, response):
        """Anything else is none of this mechanism."""
        assert Malformed() == Plain().respond(response)


class TestLogin:
    """What old clients speak."""

    @pytest.mark.parametrize("initial", [True, False])
    def test_one_after_the_other(self, initial):
        """Name, then password; the name may come at once."""
        exchange = begin("LOGIN", keys_of)
        assert exchange is not None
        if not initial:
            assert Ask(b"Username:") == exchange.respond(None)

        assert Ask(b"Password:") == exchange.respond(b"ann")
        assert Check("ann", "pencil") == exchange.respond(b"pencil")

    @pytest.mark.parametrize("name", [b"", b"a\0b", b"\xff"])
    def test_malformed(self, name):
        """A name is text."""
        exchange = begin("LOGIN", keys_of)
        assert exchange is not None
        exchange.respond(None)

        assert Malformed() == exchange.respond(name)


@dataclass
class Dialogue:
    """What an exchange came to, and what the server said."""

    step: object
    said: list[bytes]


def scram(name, password, server=None):
    """Sign in with a client of SCRAM, up to the server's last word."""
    client = ScramClient(["SCRAM-SHA-256"], name, password)
    server = server or Scram(keys_of)
    said = []
    step = server.respond(client.get_client_first().encode())
    if isinstance(step, Ask):
        said.append(step.data)
        client.set_server_first(step.data.decode())
        step = server.respond(client.get_client_final().encode())
    if isinstance(step, Ask):
        said.append(step.data)
        client.set_server_final(step.data.decode())
        step = server.respond(b"")
    return Dialogue(step, said)


class TestScram:
    """RFC 5802 and 7677."""

    def test_the_exchange_of_the_rfc(self):
        """The example of RFC 7677 section 3, octet for octet."""
        salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
        nonce = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
        server = Scram(lambda _: keys(salt=salt), nonce)
        first = server.respond(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO")
        final = server.respond(
            b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
            b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        )

        assert first == Ask(
            b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
            b"s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        )
        assert final == Ask(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")
        assert Proven("user") == server.respond(b"")

    def test_right(self):
        """Both sides are satisfied."""
        assert Proven("ann") == scram("ann", PASSWORD).step

    def test_wrong(self):
        """A wrong password proves nothing."""
        assert Failed("ann") == scram("ann", "pencils").step

    def test_keys_as_they_are_kept(self):
        """What was derived of a password is what a client's proof fits."""
        found = passwords.read_keys(passwords.derive("a long one").scram)
        assert found is not None

        assert Proven("x") == scram("x", "a long one", Scram(lambda _: found)).step

    def test_nobody_looks_like_somebody(self):
        """The same steps, the same form, the same salt each time."""
        nobody, again, wrong = (
            scram("eve", "guess"),
            scram("eve", "guess"),
            scram("ann", "guess"),
        )
        assert (Failed("eve"), Failed("ann")) == (nobody.step, wrong.step)
        assert len(nobody.said) == len(wrong.said) == 1
        salts = [each.said[0].split(b",")[1] for each in (nobody, again, wrong)]

        assert salts[0] == salts[1]
        assert len(salts[0]) == len(salts[2])

    @pytest.mark.parametrize(
        "first",
        [
            b"",
            b"n,,",
            b"n,,n=ann",
            b"n,a=bob,n=ann,r=x",
            b"p=tls-unique,,n=ann,r=x",
            b"n,,m=x,n=ann,r=x",
            b"n,,n=a=n,r=x",
            b"n,,n=ann,r=\xff",
            b"x,,n=ann,r=x",
        ],
    )
    def test_malformed(self, first):
        """Identities of others, bindings, and what must not be there are refused."""
        assert Malformed() == Scram(keys_of).respond(first)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b"c=biws", b"c=eSws"),  # another flag than before
            (b"r=", b"r=x"),
            (b",p=", b",q="),
            (b",p=", b",p=AA"),
        ],
    )
    def test_changed_on_the_way(self, old, new):
        """The last message is bound to those before it."""
        client = ScramClient(["SCRAM-SHA-256"], "ann", PASSWORD)
        server = Scram(keys_of)
        step = server.respond(client.get_client_first().encode())
        assert isinstance(step, Ask)
        client.set_server_first(step.data.decode())
        final = client.get_client_final().encode().replace(old, new)

        assert Failed("ann") == server.respond(final)

    def test_last_word(self):
        """The client answers the server's proof with nothing."""
        client = ScramClient(["SCRAM-SHA-256"], "ann", PASSWORD)
        server = Scram(keys_of)
        step = server.respond(client.get_client_first().encode())
        assert isinstance(step, Ask)
        client.set_server_first(step.data.decode())
        server.respond(client.get_client_final().encode())

        assert Malformed() == server.respond(b"more")


@pytest.mark.parametrize("mechanism", MECHANISMS)
@given(responses=st.lists(st.none() | st.binary(max_size=40), min_size=1, max_size=4))
@example(responses=[b"n,,n=\xc2\x85,r=x"])
@example(responses=["n,,n=\u0627a,r=x".encode()])
def test_anything_is_answered(mechanism, responses):
    """Whatever a client says, it gets a step, and nobody is proven."""
    exchange = begin(mechanism, keys_of)
    assert exchange is not None
    for response in responses:
        step = exchange.respond(response)
        assert not isinstance(step, Proven)
        if not isinstance(step, Ask):
            return


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
)
def test_plain_is_read_as_it_was_written(name, password):
    """Name and password come out as they went in, prepared, or not at all."""
    step = Plain().respond(f"\0{name}\0{password}".encode())

    assert isinstance(step, Malformed) or (
        isinstance(step, Check) and password == step.password
    )


def test_no_such_mechanism():
    """Nothing begins."""
    assert begin("CRAM-MD5", keys_of) is None
