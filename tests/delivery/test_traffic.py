import asyncio
import math
from typing import Any

from tests.delivery.helpers import ALPHA, NOW, envelope
from vnsmail.delivery.lanes import Flight, Record
from vnsmail.delivery.settlement import fresh
from vnsmail.delivery.shares import LEAST_MESSAGES, MOST_MESSAGES, Shares
from vnsmail.delivery.traffic import Traffic
from vnsmail.queue.body import Body
from vnsmail.queue.envelope import Due, Walk


class Disk:
    """A queue in which something comes while it is asked."""

    def __init__(self):
        self.meanwhile: Any = lambda: None
        self.due: list[Any] = []
        self.more: frozenset[str] = frozenset()

    async def walk(self, *_):
        self.meanwhile()
        found = [Due("b.example", message) for message in self.due]
        return Walk(found, math.inf, self.more, None, 1)

    async def due_in(self, *_):
        self.meanwhile()
        return self.due, math.inf


class NoHolds:
    def __init__(self):
        self.held: dict[Any, str] = {}


async def taken_up(prepare):
    """Return how often each message was taken up."""
    disk, flown = Disk(), []

    async def fly(flight: Flight) -> None:
        flown.append(flight.id)
        await asyncio.Event().wait()

    async def settle(_: Record) -> None:
        raise AssertionError

    traffic = Traffic(
        facts=ALPHA,
        queue=disk,  # type: ignore[arg-type]
        sources=NoHolds(),  # type: ignore[arg-type]
        shares=Shares(),
        clock=lambda: NOW,
        window=lambda _: 10,
        fly=fly,
        settle_failures=settle,
    )
    async with asyncio.TaskGroup() as tasks:
        traffic.begin(tasks)
        await prepare(traffic, disk)
        await asyncio.sleep(0)
        for task in list(traffic.flying):
            task.cancel()
    return flown


async def test_handed_over_while_the_queue_is_walked_through():
    """What comes both ways at once is delivered once."""
    sent = envelope("bob@b.example")

    async def prepare(traffic, disk):
        disk.due = [fresh(sent, 1)]
        disk.meanwhile = lambda: traffic.hand_over(sent, Body(b"x"))
        await traffic.take_up()

    assert [sent.id] == await taken_up(prepare)


async def test_handed_over_while_a_lane_is_fed():
    """So it is where the lane is known, and asks for its own."""
    first, second = envelope("bob@b.example"), envelope("bob@b.example")

    async def prepare(traffic, disk):
        disk.due, disk.more = [fresh(first, 1)], frozenset({"b.example"})
        await traffic.take_up()
        disk.due = [fresh(second, 1)]
        disk.meanwhile = lambda: traffic.hand_over(second, Body(b"x"))
        traffic.begin_again()
        disk.more = frozenset()
        await traffic.take_up()

    assert [first.id, second.id] == await taken_up(prepare)


def test_shares():
    """One alone has as much as is good for it, and of many each has enough."""
    shares = Shares(messages=8000)
    shares.busy("a.example")
    assert MOST_MESSAGES == shares.messages
    for number in range(100):
        shares.busy(f"{number}.example")
    assert 8000 // 101 == shares.messages
    for number in range(10_000):
        shares.busy(f"{number}.example")
    assert LEAST_MESSAGES == shares.messages
    for number in range(10_000):
        shares.idle(f"{number}.example")
    assert MOST_MESSAGES == shares.messages
