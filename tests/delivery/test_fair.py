"""A host with a backlog has its share of a worker, and no more; order, not time, is judged."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.delivery.helpers import NOW, envelope, facts
from vnsmail.delivery.lanes import Flight, Record
from vnsmail.delivery.shares import Shares
from vnsmail.delivery.traffic import LANE_READY, Traffic
from vnsmail.queue.body import Body
from vnsmail.queue.queue import Queue
from vnsmail.queue.store import Accept, QueueStore

BACKLOG = 20_000
WINDOW = 10
"""Messages under way to one destination at once."""

BODY = b"Subject: x\r\n\r\n"


class NoHolds:
    held: dict[object, str] = {}  # noqa: RUF012  nobody changes it


class Host:
    """The mail of one host that is under way; what goes to a slow place never lands."""

    def __init__(self, name, folder, executor, shares):
        self.name = name
        self._folder, self._executor, self._shares = folder, executor, shares
        self.flown: list[str] = []
        self.stuck = 0

    async def open(self, tasks):
        self.queue = await Queue.open(self._folder, self._executor)
        self.traffic = Traffic(
            facts=facts("10.0.0.1", name=self.name),
            queue=self.queue,
            sources=NoHolds(),  # type: ignore[arg-type]
            shares=self._shares,
            clock=lambda: NOW + 60,
            window=lambda _: WINDOW,
            fly=self._fly,
            settle_failures=self._settle,
        )
        self.traffic.begin(tasks)
        return self

    async def _fly(self, flight: Flight) -> None:
        if flight.lane.name.startswith("slow"):
            self.stuck += 1
            await asyncio.Event().wait()
        self.flown.append(flight.id)
        self.traffic.landed(flight)

    async def _settle(self, _: Record) -> None:
        raise AssertionError

    async def close(self):
        for task in list(self.traffic.flying):
            task.cancel()
        await self.queue.close()


@pytest.fixture
def backlog(tmp_path):
    """A queue with 20,000 messages to one slow place, and behind them 30 to others."""
    folder = tmp_path / "busy"
    store = QueueStore(folder)
    slow = [envelope("u@slow.example") for _ in range(BACKLOG)]
    others = [envelope(f"u@other{n % 3}.example") for n in range(30)]
    queued = [Accept(each, Body(BODY)) for each in slow + others]
    for start in range(0, len(queued), 5000):
        store.commit(queued[start : start + 5000])
    store.close()
    return folder, [each.id for each in others]


async def test_a_backlog_delays_no_neighbour_and_no_other_destination(
    backlog, tmp_path
):
    """What the slow place holds up is ten messages under way and a hundred in memory."""
    folder, others = backlog
    shares = Shares()
    with ThreadPoolExecutor(1) as executor:
        async with asyncio.TaskGroup() as tasks:
            busy = await Host("busy.example", folder, executor, shares).open(tasks)
            quiet = await Host("quiet.example", tmp_path / "q", executor, shares).open(
                tasks
            )
            await busy.traffic.take_up()
            mail = [envelope(f"u@other{number}.example") for number in range(30)]
            for each in mail:
                quiet.traffic.hand_over(each, Body(BODY))
            await asyncio.sleep(0)  # one turn of the loop, whatever the neighbour has
            assert [each.id for each in mail] == quiet.flown

            for _ in range(10):
                await busy.traffic.take_up()
                await asyncio.sleep(0)
            assert sorted(others) == sorted(busy.flown)
            assert 0 < busy.stuck <= WINDOW
            assert busy.traffic.count <= WINDOW + LANE_READY + 1
            await quiet.close()
            await busy.close()


async def test_slow_places_of_one_host_leave_the_neighbour_its_part(tmp_path):
    """Mail to hundreds of slow places fills the host's own share, and not another's."""
    folder = tmp_path / "busy"
    store = QueueStore(folder)
    many = [envelope(f"u@slow{n % 400}.example") for n in range(4000)]
    store.commit([Accept(each, Body(BODY)) for each in many])
    store.close()
    shares = Shares(messages=1000)
    with ThreadPoolExecutor(1) as executor:
        async with asyncio.TaskGroup() as tasks:
            busy = await Host("busy.example", folder, executor, shares).open(tasks)
            quiet = await Host("quiet.example", tmp_path / "q", executor, shares).open(
                tasks
            )
            for _ in range(5):
                await busy.traffic.take_up()
            mail = [envelope(f"u@other{n % 5}.example") for n in range(40)]
            for each in mail:
                quiet.traffic.hand_over(each, Body(BODY))
            for _ in range(5):
                await asyncio.sleep(0)
            assert busy.traffic.count <= 1000
            assert {each.id for each in mail} == set(quiet.flown)
            await quiet.close()
            await busy.close()
