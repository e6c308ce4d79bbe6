"""The client's side where the server takes BDAT (RFC 3030)."""

import pytest

from tests.smtp.test_client_session import ANNA, BOB, CARL, NO_USER, OK, PLAIN, ready
from vnsmail.smtp.client_session import AT_ONCE, BodyWanted, TransactionFinished
from vnsmail.smtp.errors import SmtpProtocolError
from vnsmail.smtp.replies import Reply

CHUNKING = b"250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n"
MAIL = b"MAIL FROM:<me@alpha.example>\r\n"
TO_ANNA, TO_BOB = b"RCPT TO:<anna@x.example>\r\n", b"RCPT TO:<bob@x.example>\r\n"
LARGE = AT_ONCE + 1


def sent(*recipients, body=b".hi\r\n"):
    """Return a client that has sent a short message, and what it said."""
    client = ready(CHUNKING)
    client.begins(*recipients)
    assert client.tells() == [BodyWanted()]
    client.session.send_body(body)
    client.session.finish_body()
    return client, client.says()


def large(*recipients):
    """Return a client that has said the envelope of a large message."""
    client = ready(CHUNKING)
    client.begins(*recipients, body_size=LARGE)
    assert client.tells() == []
    assert client.says() == MAIL + b"".join(
        b"RCPT TO:<%b>\r\n" % to.encode() for to in recipients
    )
    return client


def in_chunks():
    client = large(ANNA)
    client.hears(b"250 ok\r\n250 ok\r\n")
    assert client.tells() == [BodyWanted()]
    return client


def test_a_short_message_goes_in_one_piece():
    """Nothing is waited for, and no dot is doubled."""
    client, said = sent(ANNA, BOB)

    assert said == MAIL + TO_ANNA + TO_BOB + b"BDAT 5 LAST\r\n.hi\r\n"
    client.hears(b"250 ok\r\n250 ok\r\n550 5.1.1 no such user\r\n")
    assert client.tells() == []
    client.hears(b"250 2.0.0 ok\r\n")
    assert [TransactionFinished({ANNA: OK, BOB: NO_USER})] == client.tells()
    client.begins(CARL)
    client.session.finish_body()
    assert client.says().endswith(b"BDAT 0 LAST\r\n")


def test_the_last_line_is_ended():
    _, said = sent(ANNA, body=b"hi")

    assert said.endswith(b"BDAT 4 LAST\r\nhi\r\n")


@pytest.mark.parametrize("body", [b"a\nb", b"a\rb", b"a\r"])
def test_bare_newlines_are_not_sent(body):
    """They are no better in chunks: what passes them on may use DATA."""
    with pytest.raises(SmtpProtocolError):
        sent(ANNA, body=body)


def test_nobody_gets_a_short_message():
    """Each has his own refusal; RSET ends what MAIL began, and the session goes on."""
    client, _ = sent(ANNA, BOB)
    client.hears(b"250 ok\r\n550 5.1.1 no such user\r\n452 full\r\n503 nobody\r\n")

    full = Reply(452, ("full",))
    assert [TransactionFinished({ANNA: NO_USER, BOB: full})] == client.tells()
    assert client.says() == b"RSET\r\n"
    client.begins(CARL)
    client.hears(b"250 reset\r\n")
    assert client.tells() == [BodyWanted()]


def test_sender_refused():
    """MAIL's refusal is everybody's, whatever is said of what came with it."""
    client, _ = sent(ANNA)
    client.hears(b"550 5.7.1 not you\r\n503 mail first\r\n503 mail first\r\n")

    refusal = Reply(550, ("not you",), "5.7.1")
    assert [TransactionFinished({ANNA: refusal})] == client.tells()


def test_a_message_refused():
    client, _ = sent(ANNA)
    client.hears(b"250 ok\r\n250 ok\r\n554 5.7.1 spam\r\n")

    spam = Reply(554, ("spam",), "5.7.1")
    assert [TransactionFinished({ANNA: spam})] == client.tells()
    assert client.says() == b"RSET\r\n"


def test_a_large_message_waits_for_somebody():
    """Its chunks do not wait for each other, and the last one says so."""
    client = in_chunks()
    client.session.send_body(b"one\r\n")
    assert client.says() == b""
    client.session.send_body(b"two\r\n")
    assert client.says() == b"BDAT 5\r\none\r\n"
    client.session.finish_body()
    assert client.says() == b"BDAT 5 LAST\r\ntwo\r\n"
    client.hears(b"250 5 octets\r\n250 2.0.0 ok\r\n")

    assert [TransactionFinished({ANNA: OK})] == client.tells()
    assert client.says() == b""


def test_nobody_gets_a_large_message():
    client = large(ANNA, BOB)
    client.hears(b"250 ok\r\n550 5.1.1 no such user\r\n550 5.1.1 no such user\r\n")

    assert [TransactionFinished({ANNA: NO_USER, BOB: NO_USER})] == client.tells()
    assert client.says() == b"RSET\r\n"


def test_a_large_message_of_a_refused_sender():
    client = large(ANNA)
    client.hears(b"550 5.1.1 no such user\r\n503 mail first\r\n")

    assert [TransactionFinished({ANNA: NO_USER})] == client.tells()
    assert client.says() == b""


def test_a_chunk_refused():
    """No more are sent, those on their way are counted off, and the session goes on."""
    client = in_chunks()
    for _ in range(3):
        client.session.send_body(b"text\r\n")
    client.says()
    client.hears(b"552 5.2.2 full\r\n")
    assert client.tells() == []
    client.session.send_body(b"text\r\n")
    client.session.finish_body()
    assert client.says() == b""
    client.hears(b"503 what?\r\n")

    full = Reply(552, ("full",), "5.2.2")
    assert [TransactionFinished({ANNA: full})] == client.tells()
    assert client.says() == b"RSET\r\n"
    assert not client.over


def test_a_chunk_refused_when_the_last_is_on_its_way():
    client = in_chunks()
    client.session.send_body(b"one\r\n")
    client.session.send_body(b"two\r\n")
    client.session.finish_body()
    client.says()
    client.hears(b"452 4.3.1 full\r\n503 what?\r\n")

    full = Reply(452, ("full",), "4.3.1")
    assert [TransactionFinished({ANNA: full})] == client.tells()
    assert client.says() == b"RSET\r\n"


@pytest.mark.parametrize(
    ("heard", "answered"),
    [(b"", False), (b"421 idle\r\n", False), (b"250 ok\r\n", True)],
)
def test_who_hung_up_before_is_told_from_who_may_have_it(heard, answered):
    """A message that went to a connection which was over already may be sent again."""
    client, _ = sent(ANNA)
    client.hears(heard)
    client.loses()
    [event] = client.tells()

    assert event.answered is answered
    assert event.recipients[ANNA].code == 421
    assert ("may have been" in event.recipients[ANNA].text) is answered


def test_step_by_step_there_are_no_chunks():
    """Without PIPELINING each would wait for its reply: DATA is no slower."""
    client = ready(PLAIN.replace(b"250 mx", b"250-mx\r\n250 CHUNKING"))
    client.begins(ANNA)

    for said, heard in ((MAIL, b"250 ok\r\n"), (TO_ANNA, b"250 ok\r\n")):
        assert client.says() == said
        client.hears(heard)
    assert client.says() == b"DATA\r\n"
