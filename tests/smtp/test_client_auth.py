"""AUTH in the client's session: what is said, when, and what ends it (RFC 4954)."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.sasl.client import Login
from vnsmail.smtp.client_session import (
    ClientSession,
    NotSignedIn,
    Ready,
    StartTls,
    Transaction,
    Wish,
)

LOGIN = Login("ann", "correct horse")
PLAIN = base64.b64encode(b"\0ann\0correct horse")
MESSAGE = Transaction("a@x.example", ("b@y.example",), 3, False, False)


def within_tls(hello, *, plain=True, login=LOGIN):
    session = ClientSession("alpha.example", Wish.ALWAYS, sign_in=login, plain=plain)
    session.receive_data(b"220 mx\r\n")
    session.data_to_send()
    session.receive_data(b"250-mx\r\n250-AUTH PLAIN LOGIN\r\n250 STARTTLS\r\n")
    assert session.data_to_send() == b"STARTTLS\r\n"
    session.receive_data(b"220 go\r\n")
    assert session.next_event() == StartTls()
    session.tls_established()
    session.data_to_send()
    session.receive_data(hello)
    return session


def told(session):
    return [*iter(session.next_event, None)]


def test_plain():
    session = within_tls(b"250-mx\r\n250 AUTH PLAIN LOGIN\r\n")
    assert session.data_to_send() == b"AUTH PLAIN " + PLAIN + b"\r\n"
    session.receive_data(b"235 2.7.0 welcome\r\n")
    assert told(session) == [Ready({"AUTH": "PLAIN LOGIN"})]
    session.begin(MESSAGE)
    assert session.data_to_send().startswith(b"MAIL FROM:<a@x.example>")


def test_login():
    session = within_tls(b"250-mx\r\n250 AUTH LOGIN\r\n")
    assert session.data_to_send() == b"AUTH LOGIN\r\n"
    session.receive_data(b"334 VXNlcm5hbWU6\r\n")
    assert session.data_to_send() == base64.b64encode(b"ann") + b"\r\n"
    session.receive_data(b"334 UGFzc3dvcmQ6\r\n")
    assert session.data_to_send() == base64.b64encode(b"correct horse") + b"\r\n"
    session.receive_data(b"235 ok\r\n")
    assert isinstance(told(session)[0], Ready)


def test_a_long_password_does_not_stand_on_the_line():
    """RFC 4954 section 4: what makes the line too long comes after a 334."""
    session = within_tls(
        b"250-mx\r\n250 AUTH PLAIN\r\n", login=Login("ann", "x" * 1000)
    )
    assert session.data_to_send() == b"AUTH PLAIN\r\n"
    session.receive_data(b"334 \r\n")
    said = base64.b64decode(session.data_to_send().strip())
    assert said == b"\0ann\0" + b"x" * 1000
    session.receive_data(b"235 ok\r\n")
    assert isinstance(told(session)[0], Ready)


@pytest.mark.parametrize("reply", ["535 5.7.8 wrong", "454 4.7.0 later", "530 no"])
def test_refused(reply):
    session = within_tls(b"250-mx\r\n250 AUTH PLAIN\r\n")
    session.data_to_send()
    session.receive_data(f"{reply}\r\n".encode())
    (event,) = told(session)
    assert isinstance(event, NotSignedIn)
    assert event.reply.code == int(reply[:3])
    session.quit()
    assert session.data_to_send() == b"QUIT\r\n"


def test_not_in_plain():
    """Not even if it is offered, and nobody wished for TLS."""
    session = ClientSession("alpha.example", sign_in=LOGIN, plain=True)
    session.receive_data(b"220 mx\r\n")
    session.data_to_send()
    session.receive_data(b"250-mx\r\n250 AUTH PLAIN\r\n")
    assert isinstance(told(session)[0], NotSignedIn)
    assert session.data_to_send() == b""


def test_only_what_was_offered_within_tls_counts():
    session = within_tls(b"250 mx\r\n")
    assert isinstance(told(session)[0], NotSignedIn)
    assert session.data_to_send() == b""


def test_no_password_for_a_server_that_has_proven_nothing():
    session = within_tls(b"250-mx\r\n250 AUTH PLAIN LOGIN\r\n", plain=False)
    (event,) = told(session)
    assert "only SCRAM" in event.reply.text
    assert session.data_to_send() == b""


def test_a_success_without_a_proof_is_none():
    """SCRAM: 235 at once, from somebody who does not know the password."""
    session = within_tls(b"250-mx\r\n250 AUTH SCRAM-SHA-256\r\n")
    assert session.data_to_send().startswith(b"AUTH SCRAM-SHA-256 biws")
    session.receive_data(b"235 welcome\r\n")
    (event,) = told(session)
    assert "not proven" in event.reply.text


def test_nonsense_is_called_off():
    session = within_tls(b"250-mx\r\n250 AUTH SCRAM-SHA-256\r\n")
    session.data_to_send()
    session.receive_data(b"334 !!!\r\n")
    assert session.data_to_send() == b"*\r\n"
    session.receive_data(b"501 called off\r\n")
    assert isinstance(told(session)[0], NotSignedIn)


def test_tls_from_the_beginning():
    """RFC 8314: the handshake is the first, then the greeting, then EHLO."""
    session = ClientSession(
        "alpha.example", Wish.ALWAYS, implicit=True, sign_in=LOGIN, plain=True
    )
    assert told(session) == [StartTls()]
    assert session.data_to_send() == b""
    session.tls_established()
    assert session.data_to_send() == b""
    session.receive_data(b"220 mx\r\n")
    assert session.data_to_send() == b"EHLO alpha.example\r\n"
    session.receive_data(b"250-mx\r\n250 AUTH PLAIN\r\n")
    assert session.data_to_send() == b"AUTH PLAIN " + PLAIN + b"\r\n"
    session.receive_data(b"235 ok\r\n")
    assert isinstance(told(session)[0], Ready)


@given(st.lists(st.sampled_from(["334 ", "334 cj1h", "235 ok", "535 no"]), max_size=6))
def test_never_ready_without_a_proof(replies):
    session = within_tls(b"250-mx\r\n250 AUTH SCRAM-SHA-256\r\n")
    for reply in replies:
        session.data_to_send()
        session.receive_data(f"{reply}\r\n".encode())
    assert not any(isinstance(event, Ready) for event in told(session))
