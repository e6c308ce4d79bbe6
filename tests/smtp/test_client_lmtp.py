"""The client's side of LMTP (RFC 2033)."""

import pytest

from tests.smtp.test_client_session import ANNA, BOB, CARL, NO_USER, OK, message
from vnsmail.smtp.client_session import (
    BodyWanted,
    ClientSession,
    Refused,
    TransactionFinished,
)
from vnsmail.smtp.replies import Reply

FULL = Reply(452, ("full",), "4.2.2")
LOST = "connection lost before the reply; the message may have been delivered"


class Client:
    def __init__(self, hello=b"250-store\r\n250-CHUNKING\r\n250 PIPELINING\r\n"):
        self.session = ClientSession("alpha.example", lmtp=True)
        self.hears(b"220 store\r\n")
        assert self.says() == b"LHLO alpha.example\r\n"
        self.hears(hello)

    def hears(self, data):
        self.session.receive_data(data)

    def says(self):
        return self.session.data_to_send()

    def tells(self):
        return list(iter(self.session.next_event, None))

    def sends(self, replies, *recipients):
        """Send a message to recipients, of whom the store says this."""
        self.tells()
        self.session.begin(message(*recipients))
        assert self.says().endswith(b"DATA\r\n")
        self.hears(b"250 ok\r\n" + replies + b"354 go\r\n")
        if self.tells() == [BodyWanted()]:
            self.session.finish_body()
        assert self.says() == b".\r\n"


def test_each_recipient_has_a_reply():
    """The store answers for those it accepted, in the order of RCPT."""
    client = Client()
    client.sends(b"250 ok\r\n550 5.1.1 no such user\r\n250 ok\r\n", ANNA, BOB, CARL)
    client.hears(b"250 2.0.0 ok\r\n")
    assert client.tells() == []
    client.hears(b"452 4.2.2 full\r\n")

    assert [TransactionFinished({ANNA: OK, BOB: NO_USER, CARL: FULL})] == client.tells()
    client.session.begin(message(ANNA))
    assert client.says().startswith(b"MAIL")


def test_the_store_dies_between_two_replies():
    """What was said counts; of the other nobody can know."""
    client = Client()
    client.sends(b"250 ok\r\n250 ok\r\n", ANNA, BOB)
    client.hears(b"250 2.0.0 ok\r\n")
    client.session.receive_eof()

    lost = Reply(421, (LOST,), "4.4.2")
    assert [TransactionFinished({ANNA: OK, BOB: lost})] == client.tells()


def test_a_body_wanted_for_nobody():
    """Nobody answers for nobody: the dot has no reply."""
    client = Client()
    client.sends(b"550 5.1.1 no such user\r\n", ANNA)
    client.session.begin(message(BOB))

    assert client.says().startswith(b"MAIL")


@pytest.mark.parametrize("code", [500, 450])
def test_what_knows_no_lhlo_is_no_store(code):
    """HELO would be another protocol, with other replies."""
    client = Client(b"%d what?\r\n" % code)
    [event] = client.tells()

    assert isinstance(event, Refused)
    assert client.says() == b""
