import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.engines import protocol
from vnsmail.engines.protocol import OwnerFacts, OwnerReport, QueueEntry
from vnsmail.model import Envelope, Owner

FACTS = OwnerFacts("a.example", "a.example", "/x", ("10.0.0.1",), ("a.example",), ())
REPORT = OwnerReport("a.example", ("10.0.0.1:25",), 1, 2, 3, 4.5, "")
ENVELOPE = Envelope("1", Owner("a.example"), "", ("bob@b.example",), 1.5)

MAIL = protocol.LocalMail("a.example", "ann@a.example", ("bob@b.example",), 1000)
REQUESTS = [
    protocol.Configure(1, "worker-0", "{}", ("10.0.0.53",)),
    protocol.UseBroker(2),
    protocol.Assign(3, FACTS),
    protocol.Release(4, "a.example"),
    protocol.Inject(5, MAIL),
    protocol.GiveBack(5, MAIL, "no such user"),
    protocol.Report(6),
    protocol.ListQueue(7, "a.example", 10),
    protocol.Stop(8),
]
ANSWERS = [
    protocol.Done(1),
    protocol.Failed(2, "why", 2),
    protocol.Injected(3, "id"),
    protocol.Reported(4, (REPORT,)),
    protocol.QueueListed(
        5, (QueueEntry(ENVELOPE, 9, (("bob@b.example", 1, 2.5, "later"),)),)
    ),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: type(r).__name__)
def test_requests_arrive_as_they_were_sent(request_):
    """Each request reads back as itself, and is no answer."""
    payload = protocol.encode(request_)

    assert request_ == protocol.decode_request(payload)
    with pytest.raises(msgspec.MsgspecError):
        protocol.decode_answer(payload)


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda a: type(a).__name__)
def test_answers_arrive_as_they_were_sent(answer):
    """Each answer reads back as itself, and is no request."""
    payload = protocol.encode(answer)

    assert answer == protocol.decode_answer(payload)
    with pytest.raises(msgspec.MsgspecError):
        protocol.decode_request(payload)


def test_unknown_field():
    """The two ends cannot drift apart unnoticed."""
    payload = msgspec.msgpack.encode({"type": "Stop", "id": 1, "gently": True})

    with pytest.raises(msgspec.ValidationError, match="gently"):
        protocol.decode_request(payload)


@given(st.binary())
def test_nonsense(payload):
    """Bytes that are no message are one kind of error."""
    for decode in (protocol.decode_request, protocol.decode_answer):
        with pytest.raises(msgspec.MsgspecError):
            decode(payload)
