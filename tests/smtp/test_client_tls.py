"""STARTTLS in the client's session: what is discarded, and what ends it (RFC 3207)."""

import pytest

from vnsmail.smtp.client_session import (
    ClientSession,
    Disconnected,
    NoTls,
    Ready,
    StartTls,
    Transaction,
    Wish,
)

EHLO = b"EHLO alpha.example\r\n"
HELLO = b"250-mx\r\n250-SIZE 1000\r\n250 STARTTLS\r\n"


def greeted(wish=Wish.OFFERED, hello=HELLO):
    session = ClientSession("alpha.example", wish)
    session.receive_data(b"220 mx\r\n")
    assert session.data_to_send() == EHLO
    session.receive_data(hello)
    return session


def test_begins_anew_within_tls():
    """What was offered in plain is forgotten (section 4.2)."""
    session = greeted()
    assert session.data_to_send() == b"STARTTLS\r\n"
    session.receive_data(b"220 go\r\n")
    assert session.next_event() == StartTls()
    assert session.data_to_send() == b""
    session.tls_established()
    assert session.data_to_send() == EHLO
    session.receive_data(b"250 mx\r\n")

    assert session.next_event() == Ready({})


@pytest.mark.parametrize(
    "injected", [b"250 mx\r\n", b"250-mx\r\n250 AUTH\r\n", b"220 go\r\n500 x\r\n"]
)
@pytest.mark.parametrize("apart", [False, True])
def test_injected_reply(injected, apart):
    """A reply in plain behind STARTTLS never counts as said within TLS."""
    session = greeted()
    session.data_to_send()
    pieces = [b"220 go\r\n", injected] if apart else [b"220 go\r\n" + injected]
    for piece in pieces:
        session.receive_data(piece)

    event = session.next_event()
    assert isinstance(event, NoTls)
    assert session.next_event() is None
    assert session.closing


def test_injected_beginning_of_a_line():
    """Half a reply is forgotten, and does not stand before what is said within TLS."""
    session = greeted()
    session.data_to_send()
    session.receive_data(b"220 go\r\n250-SMTPUTF8\r\n250 EV")
    session.next_event()
    session.tls_established()
    session.data_to_send()
    session.receive_data(b"250 mx\r\n")

    assert session.next_event() == Ready({})


@pytest.mark.parametrize("hello", [b"250 mx\r\n", b"500 what?\r\n"])
def test_not_offered(hello):
    session = greeted(Wish.ALWAYS, hello)
    if hello.startswith(b"5"):
        session.data_to_send()
        session.receive_data(b"250 mx\r\n")

    assert session.next_event() == NoTls("it does not offer STARTTLS")
    session.begin(Transaction("", ("a@b.example",), 1, False, False))
    assert b"MAIL" not in session.data_to_send()


def test_refused():
    session = greeted()
    session.data_to_send()
    session.receive_data(b"454 4.7.0 not now\r\n")

    assert session.next_event() == NoTls("it refuses STARTTLS: 454 not now")


def test_nobody_shakes_hands_twice():
    session = greeted(Wish.NEVER)
    with pytest.raises(RuntimeError):
        session.tls_established()
    assert isinstance(session.next_event(), Ready)
    session.receive_eof()
    assert isinstance(session.next_event(), Disconnected)
