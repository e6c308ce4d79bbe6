"""REQUIRETLS on both sides of a session, and TLS-Required (RFC 8689)."""

import pytest

from tests.smtp.helpers import Driver
from vnsmail.message.headers import tls_wish
from vnsmail.model import TlsWish
from vnsmail.smtp.client_session import (
    ClientSession,
    Ready,
    StartTls,
    Transaction,
    Wish,
)
from vnsmail.smtp.server_session import MailRequested

SAID = b"MAIL FROM:<a@x.example> REQUIRETLS\r\n"


def test_offered_within_tls_only():
    for secure in (False, True):
        said = Driver(secure=secure).feed(b"EHLO x.example\r\n")
        assert (b"REQUIRETLS" in said) is secure


def test_taken_within_tls_only():
    asked = []

    def answer(question):
        asked.append(question)

    plain = Driver(answers=answer)
    plain.feed(b"EHLO x.example\r\n")
    assert b"530 5.7.10" in plain.feed(SAID)
    secure = Driver(answers=answer, secure=True)
    secure.feed(b"EHLO x.example\r\n")
    assert secure.feed(SAID).startswith(b"250")
    assert [q.require_tls for q in asked if isinstance(q, MailRequested)] == [True]
    assert secure.feed(b"RSET\r\n", SAID[:-2] + b"=yes\r\n").endswith(
        b"REQUIRETLS has no value\r\n"
    )


def within_tls(extensions):
    session = ClientSession("alpha.example", Wish.ALWAYS)
    session.receive_data(b"220 mx\r\n")
    session.data_to_send()
    session.receive_data(b"250-mx\r\n250-REQUIRETLS\r\n250 STARTTLS\r\n")
    session.data_to_send()
    session.receive_data(b"220 go\r\n")
    assert session.next_event() == StartTls()
    session.tls_established()
    session.data_to_send()
    session.receive_data(b"250-mx\r\n" + extensions)
    assert isinstance(session.next_event(), Ready)
    return session


def message(sender="a@x.example"):
    return Transaction(sender, ("b@y.example",), 3, False, False, require_tls=True)


def test_asks_the_next_for_the_same():
    session = within_tls(b"250 REQUIRETLS\r\n")
    session.begin(message())
    assert session.data_to_send() == SAID


def test_not_to_a_server_that_has_it_not():
    """What it offered in plain counts for nothing."""
    session = within_tls(b"250 PIPELINING\r\n")
    session.begin(message())
    assert session.data_to_send() == b""
    assert session.next_event().recipients["b@y.example"].enhanced == "5.7.30"


def test_a_notice_goes_to_who_has_it_not():
    session = within_tls(b"250 SIZE\r\n")
    session.begin(message(sender=""))
    assert session.data_to_send() == b"MAIL FROM:<> SIZE=3\r\n"


def test_never_in_plain():
    session = ClientSession("alpha.example")
    session.receive_data(b"220 mx\r\n")
    session.data_to_send()
    session.receive_data(b"250-mx\r\n250 REQUIRETLS\r\n")
    with pytest.raises(RuntimeError):
        session.begin(message())


@pytest.mark.parametrize(
    ("front", "wish"),
    [
        (b"Subject: x\r\nTLS-Required: No\r\n\r\nx", TlsWish.OPTIONAL),
        (b"tls-required:\r\n no\r\n\r\n", TlsWish.OPTIONAL),
        (b"TLS-Required: No\r\nTLS-Required: No\r\n\r\n", TlsWish.USUAL),
        (b"TLS-Required: Nothing\r\n\r\n", TlsWish.USUAL),
        (b"Subject: x\r\n\r\nTLS-Required: No\r\n", TlsWish.USUAL),
        (b"\r\nTLS-Required: No\r\n", TlsWish.USUAL),
        (b"", TlsWish.USUAL),
    ],
)
def test_field(front, wish):
    assert tls_wish(front) is wish
