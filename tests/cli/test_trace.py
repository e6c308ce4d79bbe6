"""The life of a message, as a person reads it."""

from dataclasses import replace

from tests.events.test_search import BOB, GONE, accepted, tried, write
from vnsmail.model import Contact

CONTACT = Contact(
    source="10.77.0.11",
    source_port=40001,
    helo="alpha.example",
    remote="mx.b.example",
    remote_address="10.77.0.99",
    remote_port=25,
    tls="TLSv1.3 X",
    connect=0.001,
    total=0.004,
)


def log_of(root):
    folder = root / "log"
    folder.mkdir()
    first = accepted(1_700_000_000.0)
    came_to = replace(GONE, contact=CONTACT)
    write(folder / "events.jsonl", first, tried(first, came_to, 1_700_000_001.0))
    return first


def test_a_life(vnsmail, root):
    """Who brought it; over which sockets it went, what was answered, how long it took."""
    first = log_of(root)
    done = vnsmail("trace", first.id)
    accepted_line, delivered_line = done.out.splitlines()

    assert 0 == done.code
    assert (
        f"alpha.example, mx; <ann@alpha.example> to {BOB}; 10 octets" in accepted_line
    )
    assert "[10.77.0.11]:40001 → mx.b.example [10.77.0.99]:25" in delivered_line
    assert "TLSv1.3 X; 250 2.0.0 taken; connect 1.0 ms, total 4.0 ms" in delivered_line
    assert "not running" in done.err


def test_json(vnsmail, root):
    """The events as they stand in the log."""
    first = log_of(root)
    found = vnsmail("trace", first.id, "--json").json

    assert ["accepted", "delivered"] == [each["event"] for each in found["events"]]
    assert found["queued"] is None


def test_unknown(vnsmail, root):
    """An id that is none, and one that nobody knows."""
    none, unknown = vnsmail("trace", "x"), vnsmail("trace", "1" * 20)

    assert (2, 2) == (none.code, unknown.code)
    assert "events.jsonl has it" in unknown.err
