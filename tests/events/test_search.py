"""Finding a message in the log: in order, over rotation, without reading the rest."""

import gzip
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vnsmail.events import record, search
from vnsmail.model import Envelope, Outcome, Owner, Verdict
from vnsmail.queue.envelope import arrival, new_id

BOB = "bob@b.example"
GONE = Outcome(Verdict.DELIVERED, 250, "2.0.0", "taken")
LATER = Outcome(Verdict.DEFERRED, 451, "4.7.1", "later")


def accepted(at, about=""):
    return record.Accepted(
        time=record.at(at),
        host="alpha.example",
        id=new_id(at, bytes(6)) if not about else new_id(at, b"notice"),
        via="notice" if about else "mx",
        sender="ann@alpha.example",
        recipients=(BOB,),
        recipient_count=1,
        size=10,
        about=about,
    )


def tried(first, came_to, now):
    envelope = Envelope(
        first.id, Owner("alpha.example"), "", (BOB,), first.time.timestamp()
    )
    one = record.Tried(envelope, 10, BOB, 1)
    if came_to is LATER:
        return record.deferral(one, came_to, now, now + 300)
    return record.outcome(record.Delivered, one, came_to, now)


def write(path, *events, at=None):
    data = b"".join(map(record.line, events))
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    os.utime(path, (at or events[-1].time.timestamp(),) * 2)


@given(st.floats(min_value=0, max_value=1e10))
def test_an_id_says_when_it_arrived(now):
    """To the microsecond."""
    assert abs(arrival(new_id(now, bytes(6))) - now) <= 1e-5


@pytest.mark.parametrize(
    ("oldest", "old"),
    [("e.jsonl.2.gz", "e.jsonl.1"), ("e.jsonl-20261127", "e.jsonl-20261128.gz")],
)
def test_over_rotation(tmp_path, oldest, old):
    """From the file it was accepted in to the one it ended in, notice included."""
    path = tmp_path / "e.jsonl"
    first = accepted(1000.0)
    other = accepted(999.0)
    write(tmp_path / oldest, other, first, tried(first, LATER, 1001.0))
    write(tmp_path / old, tried(first, LATER, 1301.0), tried(other, GONE, 1302.0))
    write(path, tried(first, GONE, 1901.0), accepted(1901.5, about=first.id))
    write(tmp_path / "e.jsonl.unlike", accepted(10.0))
    life = search.trace(path, first.id, arrival(first.id))

    assert ["Accepted", "Deferred", "Deferred", "Delivered", "Accepted"] == [
        type(event).__name__ for event in life.events
    ]


def test_what_is_older_is_not_read(tmp_path, monkeypatch):
    """In a large file hardly anything before the message is looked at."""
    path = tmp_path / "e.jsonl"
    many = [accepted(float(second)) for second in range(1000, 21_000)]
    write(path, *many, tried(many[-10], GONE, 21_000.0))
    begun = []
    beginning = search._beginning

    def watched(*arguments):
        begun.append(beginning(*arguments))
        return begun[-1]

    monkeypatch.setattr(search, "_beginning", watched)
    life = search.trace(path, many[-10].id, arrival(many[-10].id))

    assert 2 == len(life.events)
    assert path.stat().st_size - begun[0] < 3 * search.NEAR


@settings(deadline=None)
@given(st.integers(0, 1999), st.integers(0, 60))
def test_any_message_is_found(tmp_path_factory, number, broken):
    """Wherever it stands, with lines between that are none."""
    path = tmp_path_factory.mktemp("log") / "e.jsonl"
    events = [accepted(1000.0 + second) for second in range(2000)]
    lines = list(map(record.line, events))
    for place in range(0, 2000, broken + 1):
        lines.insert(place, b'{"half of a li\n')
    path.write_bytes(b"".join(lines))
    life = search.trace(path, events[number].id, arrival(events[number].id))

    assert [events[number]] == life.events


def test_nobody_knows_it(tmp_path):
    """No log, an empty one, one without the message."""
    path = tmp_path / "e.jsonl"
    one = accepted(1000.0)
    assert [] == search.trace(path, one.id, 1000.0).events
    path.touch()
    assert [] == search.trace(path, one.id, 1000.0).events
    write(path, accepted(1001.0))
    assert [] == search.trace(path, one.id, 1000.0).events
