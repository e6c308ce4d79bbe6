"""Batches of any size: what was added is what comes back, whatever the other rows are."""

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.queue.helpers import envelope
from vnsmail.errors import QueueUnavailable
from vnsmail.model import DsnRequest, Notify
from vnsmail.queue.arrival import TOGETHER
from vnsmail.queue.body import Body
from vnsmail.queue.store import Accept, QueueStore
from vnsmail.queue.tables import SCHEMA, Tables


@pytest.fixture
def store(tmp_path):
    store = QueueStore(tmp_path / "host")
    yield store
    store.close()


def several(count, recipients=1):
    return [
        Accept(
            envelope(*(f"u{n}@b{i % 3}.example" for n in range(recipients))),
            Body(b"body %d" % i),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("count", "recipients"),
    [(1, 1), (3, 2), (TOGETHER, 1), (TOGETHER + 1, 1), (2, TOGETHER + 5), (128, 3)],
)
def test_each_message_has_its_own_body_and_recipients(store, count, recipients):
    """However rows fall into statements."""
    batch = several(count, recipients)
    assert [None] * count == store.commit(batch)

    for accept in batch:
        message, body = store.load(accept.envelope.id)
        assert accept.envelope == message.envelope
        assert accept.body.head == body.head
    counts = store.counts()
    assert (count, count * recipients) == (counts.messages, counts.recipients)


def test_one_that_cannot_be_added_keeps_no_other_out(store):
    """An id that is there already, in the middle of a batch."""
    (first,) = several(1)
    store.commit([first])
    batch = several(5)
    batch.insert(2, Accept(first.envelope, Body(b"another")))

    errors = store.commit(batch)

    assert [2] == [i for i, error in enumerate(errors) if error is not None]
    assert isinstance(errors[2], QueueUnavailable)
    assert 6 == store.counts().messages
    assert first.body.head == store.load(first.envelope.id)[1].head


def test_numbers_go_on_after_one_that_was_rolled_back(store):
    """And in a file that is opened again."""
    (first,) = several(1)
    store.commit([first])
    store.commit([Accept(first.envelope, Body(b"x"))])
    store.rest()
    (second,) = several(1)

    assert [None] == store.commit([second])
    assert second.body.head == store.load(second.envelope.id)[1].head


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
                st.sampled_from([(), (Notify.NEVER,), (Notify.SUCCESS, Notify.DELAY)]),
            ),
            min_size=1,
            max_size=9,
        ),
        min_size=1,
        max_size=20,
    )
)
def test_any_recipients(batch):
    """A recipient given twice is kept once; what was asked for it stays with it."""
    connection = apsw.Connection(":memory:")
    connection.execute(SCHEMA)
    tables = Tables(connection)
    arriving = []
    for given_ in batch:
        recipients = tuple(f"{local}@b.example" for local, _ in given_)
        asked = {
            r: DsnRequest(r, n) for r, (_, n) in zip(recipients, given_, strict=True)
        }
        requests = tuple(each for each in asked.values() if each.notify)
        arriving.append((envelope(*recipients, requests=requests), Body(b"x")))

    tables.insert(arriving, tables.arrivals(arriving))

    for message, _ in arriving:
        found = tables.load(message.id)[0].envelope
        assert tuple(dict.fromkeys(message.recipients)) == found.recipients
        wanted = {r.recipient: r.notify for r in message.requests}
        assert wanted == {r.recipient: r.notify for r in found.requests}
