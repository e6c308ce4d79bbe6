"""Messages that leave together leave as they would one by one."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.queue.helpers import DEFERRED, DELIVERED, FAILED, NOW, envelope, ids, spooled
from vnsmail.errors import NotFound
from vnsmail.queue.body import Body
from vnsmail.queue.store import Accept, QueueStore, Settle


@pytest.fixture
def store(tmp_path):
    store = QueueStore(tmp_path / "host")
    yield store
    store.close()


def settle(message, outcome, recipients=None, **facts):
    recipients = recipients or message.recipients
    at = dict.fromkeys(recipients, NOW + 60) if outcome is DEFERRED else {}
    return Settle(message.id, dict.fromkeys(recipients, outcome), at, **facts)


def accepted(store, *messages):
    assert not any(store.commit([Accept(each, Body(b"text")) for each in messages]))
    return messages


def test_what_is_over_leaves_and_what_is_not_stays(store):
    whole, part, late = accepted(
        store, envelope(), envelope("a@x.example", "b@y.example"), envelope()
    )
    notice = replace(envelope(), sender="")

    errors = store.commit(
        [
            settle(whole, DELIVERED),
            settle(
                part, FAILED, ("a@x.example",), accept=(Accept(notice, Body(b"n")),)
            ),
            settle(late, DEFERRED),
        ]
    )

    assert [None] * 3 == errors
    assert sorted([part.id, late.id, notice.id]) == ids(store)
    assert ("b@y.example",) == store.load(part.id)[0].envelope.recipients
    assert 1 == store.load(late.id)[0].recipients[0].attempts


def test_files_of_bodies_go_along(store, tmp_path):
    messages = [envelope() for _ in range(3)]
    folder = tmp_path / "host"
    store.commit([Accept(each, spooled(folder, b"large")) for each in messages])

    store.commit([settle(each, DELIVERED) for each in messages[:2]])

    assert [messages[2].id] == [path.name for path in (folder / "body").iterdir()]


def test_one_that_is_gone_already_keeps_no_other(store):
    here, gone, also = accepted(store, envelope(), envelope(), envelope())
    store.commit([settle(gone, DELIVERED)])

    errors = store.commit([settle(each, DELIVERED) for each in (here, gone, also)])

    assert [None, NotFound, None] == [e and type(e) for e in errors]
    assert [] == ids(store)


_OUTCOMES = st.sampled_from([DELIVERED, FAILED, DEFERRED])


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=6),
    st.lists(
        st.tuples(st.integers(0, 5), st.dictionaries(st.integers(0, 3), _OUTCOMES)),
        min_size=1,
        max_size=8,
    ),
    st.booleans(),
)
def test_a_batch_comes_to_the_same_as_its_changes(tmp_path_factory, sizes, said, tried):
    """Also with recipients nobody knows, and messages that are settled twice."""
    folder = tmp_path_factory.mktemp("queues")
    messages = [
        envelope(*(f"u{n}@b{n}.example" for n in range(size))) for size in sizes
    ]
    changes = [
        Settle(
            message.id,
            {f"u{n}@b{n}.example": outcome for n, outcome in outcomes.items()},
            {f"u{n}@b{n}.example": NOW + 60 for n in outcomes},
        )
        for number, outcomes in said
        for message in [messages[number % len(messages)]]
    ]
    stores = [QueueStore(folder / name) for name in ("together", "singly")]
    for store in stores:
        accepted(store, *messages)
        if tried:
            store.commit([settle(messages[0], DEFERRED)])
        store.counts()
    together = stores[0].commit(changes)
    singly = [stores[1].commit([change])[0] for change in changes]

    assert [type(e) for e in singly] == [type(e) for e in together]
    assert stores[1].page(100) == stores[0].page(100)
    assert stores[1].counts() == stores[0].counts()
    counted = stores[0].counts()
    for store in stores:
        store.close()
    again = QueueStore(folder / "together")
    assert counted == again.counts()
    again.close()
