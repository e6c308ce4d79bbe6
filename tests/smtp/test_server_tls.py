"""STARTTLS in the session: what is forgotten, and what is never taken for said within."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.smtp.helpers import CONFIG, GREETING, Driver, cut
from vnsmail.model import Role
from vnsmail.smtp.replies import Reply
from vnsmail.smtp.server_replies import ServerConfig, ehlo_reply
from vnsmail.smtp.server_session import (
    AuthRequested,
    ServerSession,
    SessionEnded,
    TlsRequested,
)

WITH_TLS = ServerConfig("mx.alpha.example", 1000, starttls=True)
HELO = b"HELO b.example\r\n"
ASKED = HELO + b"STARTTLS\r\n"
INJECTED = b"554 5.5.1 nothing may follow STARTTLS but TLS\r\n"


def driver(config=WITH_TLS, **changes):
    found = Driver(config, **changes)
    assert found.sent() == GREETING
    return found


def test_begins_anew():
    """After the handshake the client says hello again (RFC 3207 section 4.2)."""
    held = driver()
    assert held.feed(ASKED).endswith(b"220 2.0.0 begin TLS\r\n")
    assert held.session.starting_tls
    held.session.tls_started()

    assert (held.session.helo_name, held.session.secure) == ("", True)
    assert held.feed(b"MAIL FROM:<>\r\n") == b"503 5.5.1 say EHLO first\r\n"
    assert b"STARTTLS" not in held.feed(b"EHLO b.example\r\n")
    assert held.feed(b"STARTTLS\r\n") == b"503 5.5.1 this is TLS already\r\n"
    assert held.feed(b"MAIL FROM:<>\r\n") == b"250 2.1.0 sender ok\r\n"


@pytest.mark.parametrize(
    "more",
    [
        b"NOOP\r\n",
        b"\x16\x03\x01",
        b"R",
        b"\r\n",
        b"EHLO evil.example\r\nMAIL FROM:<>\r\n",
    ],
)
def test_injected_behind_starttls(more):
    """What came with the command was said in the clear (CVE-2011-0411)."""
    held = driver()

    assert held.feed(ASKED + more).endswith(INJECTED)
    assert held.session.closing
    assert held.told[-2:] == ["starttls", "broken off"]
    with pytest.raises(RuntimeError):
        held.session.tls_started()


@given(st.binary(min_size=1, max_size=60), st.lists(st.integers(0, 100)))
def test_nothing_injected_is_heard(more, places):
    """However it is cut, nothing behind STARTTLS is a command, and the session is over."""
    held = Driver(WITH_TLS)
    held.feed(*cut(ASKED + more, places))

    assert held.session.closing
    assert held.told == ["connected", "starttls", "broken off"]


def test_not_in_a_transaction_and_not_before_hello():
    held = driver()

    assert held.feed(b"STARTTLS\r\n") == b"503 5.5.1 say EHLO first\r\n"
    held.feed(HELO + b"MAIL FROM:<>\r\n")
    assert held.feed(b"STARTTLS\r\n") == b"503 5.5.1 a transaction is under way\r\n"
    assert (
        held.feed(b"STARTTLS now\r\n") == b"501 5.5.4 the command has no argument\r\n"
    )


def test_refused():
    """A server that cannot now says so, and the session goes on in the clear."""
    later = Reply(454, ("not now",), "4.7.0")
    held = driver(answers=lambda q: later if isinstance(q, TlsRequested) else None)

    assert held.feed(ASKED + b"NOOP\r\n").endswith(
        b"454 4.7.0 not now\r\n250 2.0.0 ok\r\n"
    )


@pytest.mark.parametrize("say", [b"", b"EHLO x\r\n"])
def test_gone_in_the_handshake(say):
    held = driver()
    held.feed(ASKED)
    if say:
        held.session.receive_data(say)
    else:
        held.session.receive_eof()

    assert held.session.next_event() == SessionEnded(clean=False)
    assert held.session.data_to_send() == b""


def test_handshake_that_nobody_asked_for():
    with pytest.raises(RuntimeError):
        ServerSession(CONFIG).tls_started()


SUBMISSION = ServerConfig(
    "mx", 1000, role=Role.SUBMISSION, starttls=True, mechanisms=("PLAIN",)
)


@pytest.mark.parametrize(
    ("config", "secure", "offered"),
    [
        (CONFIG, False, set()),
        (WITH_TLS, False, {b"STARTTLS"}),
        (WITH_TLS, True, set()),
        (SUBMISSION, False, {b"STARTTLS"}),
        (SUBMISSION, True, {b"AUTH PLAIN"}),
        (ServerConfig("mx", 1000, mechanisms=("PLAIN",)), True, set()),
    ],
)
def test_what_is_offered(config, secure, offered):
    """TLS once, where there is a certificate; AUTH within TLS, on submission."""
    lines = {line[4:] for line in ehlo_reply(config, secure=secure).splitlines()[1:]}

    assert offered == {x for x in lines if x.startswith((b"STARTTLS", b"AUTH"))}


def test_responses_do_not_show():
    """Whoever logs or prints an event does not print a password."""
    assert "secret" not in repr(AuthRequested("PLAIN", b"secret"))


def test_challenge_when_nobody_signs_in():
    session = ServerSession(CONFIG)
    session.next_event()
    with pytest.raises(RuntimeError):
        session.challenge(b"")
