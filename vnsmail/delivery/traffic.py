"""An owner's mail on its way: what of it is in memory, and what is taken up next.

Each destination has a lane (lanes.py). A lane that runs low is fed from disk; a walk
through the queue finds the destinations that have nothing in memory. So what waits for
one destination, on disk or in memory, delays no other.

Rules of this file: no message is delivered here; ``fly`` does that, in a task for each
flight. What is in a lane is not taken from disk again.
"""

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import TypeAlias

from vnsmail.delivery.facts import AgentFacts
from vnsmail.delivery.lanes import Flight, Lane, Lanes, Record
from vnsmail.delivery.pace import FIRST_WINDOW, Pace
from vnsmail.delivery.settlement import fresh
from vnsmail.delivery.shares import Shares
from vnsmail.delivery.sources import Sources
from vnsmail.errors import QueueUnavailable
from vnsmail.model import Envelope
from vnsmail.queue.body import Body
from vnsmail.queue.envelope import START, Due, Place, QueuedMessage, destination
from vnsmail.queue.queue import Queue
from vnsmail.queue.selection import ALL

LANE_READY = 100
"""Messages of one destination that wait in memory; further ones wait on disk."""

LEAST_READY = 10
"""The same where many destinations want their part."""

LOCAL_WINDOW = 20
"""Messages put into mailboxes here at once."""

HELD_BACK = 4
"""One part in so many of an owner's share is kept for destinations that have nothing
in memory yet."""

PLACE_COST = 50e-6
"""Seconds of rest after a walk, for each place it saw: a queue with a hundred thousand
destinations is not walked through for each that falls due."""

Doing: TypeAlias = Coroutine[None, None, None]


class Traffic:
    """The mail of one owner that is in memory.

    Args:
        facts: who sends; to be changed by assignment.
        queue: the owner's.
        sources: whether there is an address to send from.
        shares: how much may be in memory.
        clock: seconds since the epoch.
        window: how many messages to a destination may be under way at once.
        fly: delivers a flight, and calls ``landed`` in the end.
        settle_failures: settles failures of a message that nobody attempts any more.
    """

    def __init__(
        self,
        *,
        facts: AgentFacts,
        queue: Queue,
        sources: Sources,
        shares: Shares,
        clock: Callable[[], float],
        window: Callable[[str], int],
        fly: Callable[[Flight], Doing],
        settle_failures: Callable[[Record], Doing],
    ) -> None:
        self.facts = facts
        self.lanes = Lanes()
        self.count = 0
        """Flights, ready or under way."""
        self.flying: set[asyncio.Task[None]] = set()
        self.something_landed = asyncio.Event()
        self.look = asyncio.Event()
        """There is a reason to call ``take_up``."""
        self._queue = queue
        self._sources = sources
        self._shares = shares
        self._clock = clock
        self._window = window
        self._fly = fly
        self._settle_failures = settle_failures
        self._tasks: asyncio.TaskGroup | None = None
        self._stopping = False
        self._records: dict[str, Record] = {}
        self.holds: Mapping[str, str] = {}
        """Destinations that an operator holds, or ``*``, with the reason."""
        self._held = 0
        self._hungry: dict[str, None] = {}
        """Lanes that want more from disk, those that have waited longest first."""
        self._place: Place = START
        self._walk_at = -math.inf
        self._found_next = math.inf
        self._walk_not_before = 0.0
        self._full = False
        """Something is on disk for which there was no room."""

    # From the beginning to the end -----------------------------------------------------

    def begin(self, tasks: asyncio.TaskGroup) -> None:
        """Take mail up, in tasks of this group."""
        self._tasks = tasks
        self.begin_again()

    def stop(self) -> None:
        """Take up no more; what has not set out is left to the queue."""
        self._stopping = True
        self.look.set()
        self._unload_all()

    def end(self) -> None:
        """Start no more tasks."""
        self._tasks = None
        self._unload_all()
        self._shares.idle(self.facts.owner)

    @property
    def stopping(self) -> bool:
        return self._stopping

    def _unload_all(self) -> None:
        for lane in list(self.lanes):
            self.unload(lane)

    # What comes in -------------------------------------------------------------------

    def hand_over(self, envelope: Envelope, body: Body) -> None:
        """Take up a message that the queue has just accepted, without reading it.

        If there is too much to do, the queue keeps it until its turn comes.
        """
        if self._tasks is None or self._stopping or envelope.id in self._records:
            return
        now = self._clock()
        message = fresh(envelope, body.size)
        for name in dict.fromkeys(map(destination, envelope.recipients)):
            lane = self._lane(name)
            if self.count >= 2 * self._shares.messages:
                lane.more = self._full = True
            elif lane.wanted(now, LANE_READY) <= 0 or self.is_held(lane):
                lane.more = True
            else:
                self._board(lane, message, body)

    async def take_up(self) -> float:
        """Take up what is due, as far as there is room; return when to look again."""
        now = self._clock()
        for lane in self.lanes.reopened(now):
            self._hungry[lane.name] = None
        await self._feed(now)
        await self._walk(now)
        walk = self._walk_at if self._place == START else now
        walk = max(walk, now + self._walk_not_before - _loop_time())
        return min(math.inf if self._full else walk, self.lanes.next_reopening)

    def _room(self, *, new: bool = False) -> int:
        """Return how many more flights there may be; more for new destinations."""
        limit = self._shares.messages if new else self._room_for_known()
        return max(limit - self.count, 0)

    def _room_for_known(self) -> int:
        return self._shares.messages * (HELD_BACK - 1) // HELD_BACK

    def _cap(self) -> int:
        """Return how many messages a lane may have ready."""
        part = self._room_for_known() // (len(self.lanes) + 1)
        return max(min(LANE_READY, part), LEAST_READY)

    async def _feed(self, now: float) -> None:
        """Give lanes that run low more from disk."""
        hungry, self._hungry = list(self._hungry), {}
        for name in hungry:
            lane = self.lanes.find(name)
            if lane is None or self.is_held(lane):
                continue
            wanted = min(lane.wanted(now, self._cap()), self._room())
            if wanted <= 0:
                if lane.more and not self._room():
                    self._hungry[name] = None
                    self._full = True
                continue
            lane.more = False  # unless somebody finds more meanwhile
            lane.feeding = True
            try:
                found, next_due = await self._queue.due_in(name, now, wanted, lane.ids)
            except QueueUnavailable:
                lane.more = True
                raise
            finally:
                lane.feeding = False
            lane.more = lane.more or len(found) >= wanted
            for message in found:
                # It may have been handed over since the question was asked.
                if message.envelope.id not in lane.ids:
                    self._board(lane, message, None)
            self.advance(lane)
            self.due_again(next_due)
            self.lanes.tidy(lane)

    async def _walk(self, now: float) -> None:
        """Find destinations with mail that is due and nothing in memory."""
        idle = self._walk_at > now and self._place == START
        if idle or _loop_time() < self._walk_not_before:
            return
        while not self._stopping:
            if not self._room(new=True):
                self._make_room()
            room = self._room(new=True)
            if not room:
                self._full = True
                return
            if self._place == START:
                self._walk_at = self._found_next = math.inf
            found = await self._queue.walk(
                now,
                self._place,
                self._wanted_at(now, min(self._cap(), room)),
                {lane.name: frozenset(lane.ids) for lane in self.lanes if lane.ids},
                (min(room, 200), 2000),
            )
            self._take(found.due)
            for name in found.more:
                self._lane(name).more = True
            self._found_next = min(self._found_next, found.next_due)
            self._walk_not_before = _loop_time() + PLACE_COST * found.visited
            self._place = found.went_on_at or START
            if found.went_on_at is None:
                self._walk_at = min(self._walk_at, self._found_next)
                return

    def _wanted_at(self, now: float, cap: int) -> Callable[[str], int]:
        """Return how many messages each destination may have; safe in a thread."""
        known = {
            lane.name: 0 if self.is_held(lane) else lane.wanted(now, cap)
            for lane in self.lanes
        }
        local, held = self.facts.domains, self.all_held()
        holds = dict(self.holds)

        def wanted(name: str) -> int:
            if ALL in holds or name in holds:
                return 0
            default = cap if not held or not name or name in local else 0
            return known.get(name, default)

        return wanted

    def _take(self, due: list[Due]) -> None:
        for each in due:
            lane = self._lane(each.destination)
            # It may have been handed over, or the lane closed, since the question.
            if each.message.envelope.id in lane.ids or self._stopping:
                continue
            if lane.closed(self._clock()):
                lane.more = True
            else:
                self._board(lane, each.message, None)

    def due_again(self, at: float) -> None:
        """Something on disk is due then."""
        if at < self._walk_at:
            self._walk_at = at
            self.look.set()

    def begin_again(self) -> None:
        """What was being looked for is still to be found."""
        self._walk_at, self._place = -math.inf, START
        self._hungry |= {lane.name: None for lane in self.lanes if lane.more}

    # Lanes ---------------------------------------------------------------------------

    def is_local(self, name: str) -> bool:
        return not name or name in self.facts.domains

    def _lane(self, name: str) -> Lane:
        lane = self.lanes.find(name)
        if lane is not None:
            return lane
        local = self.is_local(name)
        pace = Pace(LOCAL_WINDOW, LOCAL_WINDOW) if local else Pace(self._window(name))
        return self.lanes.add(Lane(name, local, pace))

    def all_held(self) -> bool:
        return self.facts.families <= self._sources.held.keys()

    def is_held(self, lane: Lane) -> bool:
        held = lane.held or bool(self.hold_of(lane.name))
        return held or (not lane.local and self.all_held())

    def hold_of(self, name: str) -> str:
        """Return why an operator holds a destination; empty: nobody does."""
        return self.holds.get(ALL) or self.holds.get(name) or ""

    def hold(self, holds: Mapping[str, str]) -> None:
        """Hold these destinations and no others; what is under way is finished."""
        before, self.holds = self.holds, holds
        for lane in list(self.lanes):
            if self.is_held(lane):
                self.unload(lane)
        if before.keys() - holds.keys():
            self.released()

    def released(self) -> None:
        """Something on disk may be due that was not."""
        self.begin_again()
        self.look.set()

    def withdraw(self, ids: AbstractSet[str]) -> set[str]:
        """Leave messages to the queue that have not set out; return those that have."""
        for lane in list(self.lanes):
            for flight in [each for each in lane.ready if each.id in ids]:
                lane.ready.remove(flight)
                self._unboard(flight)
        return {each for each in ids if each in self._records}

    @property
    def ids(self) -> list[str]:
        """Messages that are in memory."""
        return list(self._records)

    def ask_again(self, names: Iterable[str]) -> None:
        """Ask destinations at once that are down, by one message each."""
        for name in names:
            lane = self.lanes.find(name)
            if lane is not None and not lane.local and lane.pace.down_until:
                lane.pace.down_until = 0.0
                lane.more = True
        self.released()

    def sources_returned(self) -> None:
        for lane in self.lanes:
            if lane.held:
                lane.held = False
                self._hungry[lane.name] = None
        self._walk_at = -math.inf
        self.look.set()

    def _board(self, lane: Lane, message: QueuedMessage, body: Body | None) -> None:
        if self._tasks is None:
            return
        message_id = message.envelope.id
        record = self._records.get(message_id)
        if record is None:
            record = self._records[message_id] = Record(message_id, None)
            self._hold(record, body)
        record.aboard += 1
        record.flying += 1
        record.message = record.message or message
        lane.ids.add(message_id)
        lane.ready.append(Flight(lane, record, message))
        if not self.count:
            self._shares.busy(self.facts.owner)
        self.count += 1
        self.advance(lane)

    def _hold(self, record: Record, body: Body | None) -> None:
        """Keep a body in memory, if there is room."""
        if body is not None and self._held + len(body.head) <= self._shares.octets:
            record.body, record.held = body, len(body.head)
            self._held += record.held

    def advance(self, lane: Lane) -> None:
        """Let set out who may, and ask for more before there is none."""
        tasks = self._tasks
        if tasks is None:
            return
        for _ in range(lane.startable(self._clock())):
            flight = lane.ready.popleft()
            flight.started_in = lane.pace.round
            lane.running += 1
            self._start(tasks, self._fly(flight))
        low = len(lane.ready) <= lane.pace.window
        wants = lane.more and low and not lane.held
        if wants and lane.wanted(self._clock(), LANE_READY) > 0:
            self._hungry[lane.name] = None
            self.look.set()

    def _make_room(self) -> None:
        """Leave to the queue what waits in long lanes, for those that have nothing."""
        keep = max(self._room_for_known() // (len(self.lanes) + 1), FIRST_WINDOW)
        for lane in list(self.lanes):
            self.unload(lane, keep)

    def unload(self, lane: Lane, keep: int = 0) -> None:
        """Leave to the queue what has not set out, the last to come first."""
        while len(lane.ready) > keep:
            self._unboard(lane.ready.pop())

    def _unboard(self, flight: Flight) -> None:
        """Leave a flight to the queue that has not set out."""
        record = flight.record
        flight.lane.more = True
        record.flying -= 1
        if not record.flying and record.failures and self._tasks is not None:
            record.aboard += 1
            self._start(self._tasks, self._finish(record))
        self._leave(flight)

    def _start(
        self, tasks: asyncio.TaskGroup, doing: Coroutine[None, None, None]
    ) -> None:
        task = tasks.create_task(doing)
        self.flying.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        # Not when the flight is over, while its task still runs: who waits until
        # nothing flies would look too early, and wait in vain.
        self.flying.discard(task)
        self.something_landed.set()

    async def _finish(self, record: Record) -> None:
        try:
            await self._settle_failures(record)
        finally:
            self._close(record)

    def landed(self, flight: Flight) -> None:
        """A flight that was under way is over."""
        flight.lane.running -= 1
        self._leave(flight)
        self.advance(flight.lane)

    def _leave(self, flight: Flight) -> None:
        """A flight is over."""
        record, lane = flight.record, flight.lane
        self.count -= 1
        if record.flying and any(
            destination(to) == lane.name for to in record.failures
        ):
            # On disk they are still due. Lanes without one may go on with a retry.
            record.waiting.append(lane)
        else:
            lane.ids.discard(record.id)
        self._close(record)
        if not self.count:
            self._shares.idle(self.facts.owner)
        if self._full and self._room() > 0:
            self._full = False
            self.look.set()
        self.lanes.tidy(lane)

    def _close(self, record: Record) -> None:
        record.aboard -= 1
        if record.aboard:
            return
        for lane in record.waiting:
            lane.ids.discard(record.id)
            self.lanes.tidy(lane)
        self._held -= record.held
        del self._records[record.id]


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
