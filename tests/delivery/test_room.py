import asyncio

import pytest

from vnsmail.delivery.room import Room


async def acquire(room):
    """Return a task that waits for room, after it began to."""
    task = asyncio.ensure_future(room.acquire())
    await asyncio.sleep(0)
    return task


async def test_in_the_order_of_asking():
    """Whoever waits longest is next, and nobody overtakes."""
    room = Room(1)
    await room.acquire()
    first, second = await acquire(room), await acquire(room)
    assert room.locked()
    room.release()
    assert room.locked()
    await first

    assert (False, 1) == (second.done(), room.taken)
    room.release()
    await second
    room.release()
    assert (0, False) == (room.taken, room.locked())


async def test_more_and_less():
    """More room is given at once; with less, nobody comes until enough have gone."""
    room = Room(1)
    await room.acquire()
    waiting = await acquire(room)
    room.most = 3
    await waiting
    await room.acquire()
    room.most = 1
    late = await acquire(room)
    room.release()
    room.release()
    await asyncio.sleep(0)

    assert (1, False) == (room.taken, late.done())
    room.release()
    await late


@pytest.mark.parametrize("had_room", [False, True])
async def test_cancelled(had_room):
    """Whoever gives up takes nothing along."""
    room = Room(1)
    await room.acquire()
    waiting = await acquire(room)
    if had_room:
        room.release()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    if not had_room:
        room.release()

    assert 0 == room.taken
    await room.acquire()
