import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.events import record
from vnsmail.model import Contact, Envelope, Outcome, Owner, Verdict

REFERENCE = Path(__file__).parents[2] / "docs/reference/events.md"
ENVELOPE = Envelope(
    id="0000001abcdefgh12345",
    owner=Owner("alpha.example"),
    sender="ann@alpha.example",
    recipients=("bob@b.example",),
    received_at=1000.0,
)
CONTACT = Contact(
    source="10.77.0.11",
    source_port=40001,
    helo="alpha.example",
    remote="mx.b.example",
    remote_address="10.77.0.99",
    remote_port=25,
    tls="TLSv1.3 TLS_AES_256_GCM_SHA384",
    connect=0.001,
    hello=0.002,
    data=0.003,
    total=0.004,
)
TAKEN = Outcome(Verdict.DELIVERED, 250, "2.0.0", "taken", contact=CONTACT)
TRIED = record.Tried(ENVELOPE, 812, "bob@b.example", 3)
EVENTS: Any = msgspec.inspect.type_info(record.Event)
KINDS = EVENTS.types


def test_a_delivery_has_all_that_was_seen_of_the_connection():
    """Socket, HELO, remote, TLS, reply, times and the queue's facts, on one line."""
    event = record.outcome(record.Delivered, TRIED, TAKEN, 1001.5)
    (text,) = record.line(event).splitlines()

    assert json.loads(text) == {
        "event": "delivered",
        "time": "1970-01-01T00:16:41.500000Z",
        "host": "alpha.example",
        "id": "0000001abcdefgh12345",
        "sender": "ann@alpha.example",
        "recipient": "bob@b.example",
        "size": 812,
        "reply": "250 2.0.0 taken",
        "attempt": 3,
        "queue_seconds": 1.5,
        "source": "10.77.0.11",
        "source_port": 40001,
        "helo": "alpha.example",
        "remote": "mx.b.example",
        "remote_address": "10.77.0.99",
        "remote_port": 25,
        "tls": "TLSv1.3 TLS_AES_256_GCM_SHA384",
        "connect_seconds": 0.001,
        "hello_seconds": 0.002,
        "data_seconds": 0.003,
        "total_seconds": 0.004,
    }


def test_what_has_nothing_to_say_is_left_out():
    """Without a connection there are no facts of one."""
    came_to = Outcome(Verdict.DEFERRED, 451, "4.4.3", "no answer of DNS")
    event = record.deferral(TRIED, came_to, 1001.5, 1301.0)
    said = json.loads(record.line(event))

    assert "source" not in said
    assert "tls" not in said
    assert "1970-01-01T00:21:41Z" == said["next_attempt"]


@given(st.text(st.characters(codec=None, exclude_categories=())))
def test_any_reply_is_one_line(text):
    """Whatever a remote says, a line is a line, and can be read again."""
    came_to = Outcome(Verdict.FAILED, 550, "5.1.1", text)
    line = record.line(record.outcome(record.Bounced, TRIED, came_to, 1001.0))

    assert 1 == line.count(b"\n")
    assert getattr(record.parse(line), "reply", "").startswith("550 5.1.1 ")


@given(st.binary())
def test_what_is_no_event(data):
    """Half a line, or anything else, is a ValueError and nothing worse."""
    try:
        record.parse(data)
    except ValueError:
        return


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.tag)
def test_the_reference_names_each_field(kind):
    """docs/reference/events.md has each event with its fields, and no others."""
    text = REFERENCE.read_text()
    section = re.search(
        rf"^## {kind.tag}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    common = re.search(
        r"^## Every event\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL
    )
    attempt = re.search(r"^## Attempts\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    assert section
    assert common
    assert attempt
    told = set(re.findall(r"^\| `(\w+)`", section[1] + common[1], re.MULTILINE))
    if "Attempts" in section[1]:
        told |= set(re.findall(r"^\| `(\w+)`", attempt[1], re.MULTILINE))

    assert told == {"event", *(field.encode_name for field in kind.fields)}


def test_time_is_utc():
    """Whatever the machine's zone."""
    assert datetime(1970, 1, 1, tzinfo=UTC) == record.at(0)
