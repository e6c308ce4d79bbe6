"""Which messages a search finds, and that it goes through all of them in pages."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from vnsmail.delivery import outcomes as say
from vnsmail.model import Envelope, Owner
from vnsmail.queue.body import Body
from vnsmail.queue.envelope import new_id
from vnsmail.queue.queue import Queue
from vnsmail.queue.selection import HELD_UNTIL, Selection

NOW = 1_000_000.0
LATER = say.deferred(451, "4.7.1", "later")


@pytest.fixture
async def queue(tmp_path):
    with ThreadPoolExecutor(1) as executor:
        queue = await Queue.open(tmp_path / "alpha.example", executor)
        yield queue
        await queue.close()


async def add(queue, number, *recipients, sender="ann@alpha.example"):
    envelope = Envelope(
        id=new_id(NOW + number, bytes(6)),
        owner=Owner("alpha.example"),
        sender=sender,
        recipients=recipients or ("bob@b.example",),
        received_at=NOW + number,
    )
    await queue.accept(envelope, Body(b"Subject: hi\r\n\r\nhello\r\n"))
    return envelope.id


async def everything(queue, wanted, limit=100, scan=20_000, now=NOW + 100):
    """Return the ids found, page by page."""
    found, place, pages = [], "", 0
    while True:
        page, place = await queue.find(wanted, place, limit, now=now, scan=scan)
        found += [message.envelope.id for message in page]
        pages += 1
        assert pages < 1000
        if not place:
            return found


@pytest.mark.parametrize(
    ("limit", "scan"), [(100, 20_000), (1, 20_000), (2, 3), (1, 1)]
)
async def test_filters(queue, limit, scan):
    """Each filter finds its messages and no others, whatever the size of pages."""
    bob = await add(queue, 0)
    eve = await add(queue, 1, "Eve@C.example")
    notice = await add(queue, 2, "bob@b.example", sender="")
    both = await add(queue, 3, "eve@c.example", "bob@b.example")
    await queue.settle(both, {"bob@b.example": LATER}, {"bob@b.example": NOW + 500})
    await queue.alter(lambda tables: tables.hold(eve, "looked at"))

    async def found(**wanted):
        return set(await everything(queue, Selection(**wanted), limit, scan))

    assert {bob, eve, notice, both} == await found()
    assert {bob, notice, both} == await found(domain="b.example")
    assert {eve, both} == await found(recipient="eve@c.example")
    assert {eve, both} == await found(recipient="eve@c.example", domain="c.example")
    assert {notice} == await found(sender="")
    assert {bob, eve, both} == await found(sender="Ann@alpha.example")
    assert {bob, eve} == await found(before=new_id(NOW + 1.5, bytes(6)))
    assert {both} == await found(status="deferred")
    assert {eve} == await found(status="held")
    assert {bob, notice, both} == await found(status="due")
    assert {bob, both} == await found(ids=(bob, both, "0" * 20))
    assert {both} == await found(ids=(bob, both), domain="c.example")
    assert set() == await found(domain="d.example")


async def test_a_page_is_in_order_of_arrival(queue):
    """The oldest first."""
    ids = [await add(queue, number) for number in range(7)]

    assert ids == await everything(queue, Selection(), 3)


async def test_held_is_not_due(queue):
    """What is held is not found by those who deliver, until it is released."""
    message = await add(queue, 0)
    await queue.alter(lambda tables: tables.hold(message, "looked at"))
    found, _ = await queue.due_in("b.example", NOW + 10, 10, frozenset())
    held = (await queue.load(message))[0]
    await queue.alter(lambda tables: tables.release(message, NOW + 11))
    again, _ = await queue.due_in("b.example", NOW + 11, 10, frozenset())

    assert [] == found
    assert ("looked at", HELD_UNTIL) == (held.held, held.recipients[0].next_attempt_at)
    assert [message] == [each.envelope.id for each in again]
    assert "" == again[0].held


async def test_an_attempt_under_way_does_not_release(queue):
    """What was held meanwhile stays held, whatever the attempt came to."""
    message = await add(queue, 0)
    await queue.alter(lambda tables: tables.hold(message, "looked at"))
    await queue.settle(message, {"bob@b.example": LATER}, {"bob@b.example": NOW + 5})
    found, _ = await queue.due_in("b.example", NOW + 10, 10, frozenset())

    assert [] == found


async def test_holds_of_places(queue, tmp_path):
    """They are kept; a destination that is held is not due, and all are with ``*``."""
    bob, eve = await add(queue, 0), await add(queue, 1, "eve@c.example")
    await queue.alter(lambda tables: tables.hold_place("b.example", "busy", NOW))
    one = await everything(queue, Selection(status="held"))
    due = await everything(queue, Selection(status="due"))
    await queue.alter(lambda tables: tables.hold_place("*", "moving", NOW))
    every = await everything(queue, Selection(status="held"))
    holds = await queue.holds()
    await queue.alter(lambda tables: tables.release_place("*"))

    assert ([bob], [eve]) == (one, due)
    assert [bob, eve] == every
    assert {"b.example": "busy", "*": "moving"} == holds
    assert {"b.example": "busy"} == await queue.holds()


async def test_counts_are_kept_up_to_date(queue):
    """Counted once, and right after each kind of change."""
    await queue.counts()
    first = await add(queue, 0, "bob@b.example", "eve@b.example")
    await add(queue, 1)
    await queue.settle(
        first,
        {"bob@b.example": LATER, "eve@b.example": say.delivered("taken")},
        {"bob@b.example": NOW + 5},
    )
    one = await queue.counts()
    await queue.settle(first, {"bob@b.example": LATER}, {"bob@b.example": NOW + 9})
    two = await queue.counts()
    await queue.settle(first, {"bob@b.example": say.delivered("taken")}, {})
    three = await queue.counts()
    queue._store._tables.unsure()

    assert (2, 2, 1) == (one.messages, one.recipients, one.deferred)
    assert (2, 2, 1) == (two.messages, two.recipients, two.deferred)
    assert (1, 1, 0) == (three.messages, three.recipients, three.deferred)
    assert three == await queue.counts()
