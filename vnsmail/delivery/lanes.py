"""Destinations of one owner, each with its own queue in memory.

A lane is what is known of one destination and what of its mail is in memory: a few
messages under way, some more ready. The rest stays on disk, and is read when the lane
runs low. So a destination with a hundred thousand messages has as much of memory and
of the owner's connections as one with ten.

Rules of this file: values and their bookkeeping; who delivers is agent.py. A message
is in a lane once, from ``board`` to ``leave``, and is not taken from disk meanwhile.
"""

import heapq
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from vnsmail.delivery.outcomes import Outcomes
from vnsmail.delivery.pace import Pace
from vnsmail.queue.body import Body
from vnsmail.queue.envelope import QueuedMessage

MANY_LANES = 5000
"""Lanes without a message that are remembered, as they are down; beyond, those that
come back first are forgotten, and found again on disk."""


@dataclass(slots=True)
class Record:
    """A message with a flight at one destination or several."""

    id: str
    body: Body | None
    """None if it is to be read when it is needed."""
    held: int = 0
    """Bytes of the body that count as held in memory."""
    flying: int = 0
    """Flights without an outcome."""
    aboard: int = 0
    """Flights that are not over."""
    failures: Outcomes = field(default_factory=dict)
    """Not settled yet: they wait for the other flights, and share a notice."""
    waiting: list["Lane"] = field(default_factory=list)
    """Lanes whose failures wait; there it is still in flight."""
    message: QueuedMessage | None = None


@dataclass(slots=True)
class Flight:
    """A message on its way to one destination."""

    lane: "Lane"
    record: Record
    message: QueuedMessage
    started_in: int = 0
    """Round of the lane's pace when it set out."""

    @property
    def id(self) -> str:
        return self.record.id


@dataclass(slots=True)
class Lane:
    """One destination."""

    name: str
    """Domain in lower case; empty for recipients without one."""
    local: bool
    pace: Pace
    ready: deque[Flight] = field(default_factory=deque)
    running: int = 0
    ids: set[str] = field(default_factory=set)
    """Messages in flight here."""
    more: bool = False
    """There may be more on disk that is due."""
    feeding: bool = False
    """The disk is being asked for more."""
    held: bool = False
    """The address to send from is missing."""

    def closed(self, now: float) -> bool:
        """Say whether nothing may be asked of it now."""
        return self.held or now < self.pace.down_until

    def startable(self, now: float) -> int:
        """Return how many flights may set out now."""
        if self.held:
            return 0
        return max(min(self.pace.allowed(now) - self.running, len(self.ready)), 0)

    def wanted(self, now: float, cap: int) -> int:
        """Return how many messages it has room for in memory."""
        if self.closed(now):
            return 0
        if self.pace.failures:
            return 1 - len(self.ids)
        return cap - len(self.ready)


class Lanes:
    """All lanes with something in them, or something known of them."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}
        self._reopening: list[tuple[float, str]] = []

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._lanes.values())

    def __len__(self) -> int:
        return len(self._lanes)

    def find(self, name: str) -> Lane | None:
        return self._lanes.get(name)

    def add(self, lane: Lane) -> Lane:
        self._lanes[lane.name] = lane
        if len(self._lanes) > MANY_LANES:
            self._forget_some()
        return lane

    def reopens(self, lane: Lane) -> None:
        """Remember when a lane that went down is asked again."""
        heapq.heappush(self._reopening, (lane.pace.down_until, lane.name))

    def reopened(self, now: float) -> list[Lane]:
        """Return the lanes whose time of rest is over."""
        found = []
        while self._reopening and self._reopening[0][0] <= now:
            at, name = heapq.heappop(self._reopening)
            lane = self._lanes.get(name)
            if lane is not None and lane.pace.down_until == at:
                found.append(lane)
        return found

    @property
    def next_reopening(self) -> float:
        return self._reopening[0][0] if self._reopening else math.inf

    def tidy(self, lane: Lane) -> None:
        """Forget a lane of which nothing needs to be remembered."""
        busy = lane.ids or lane.more or lane.feeding
        quiet = not (busy or lane.held or lane.pace.failures)
        if quiet and self._lanes.get(lane.name) is lane:
            del self._lanes[lane.name]

    def _forget_some(self) -> None:
        idle = [lane for lane in self if not lane.ids and not lane.feeding]
        idle.sort(key=lambda lane: lane.pace.down_until)
        for lane in idle[: max(MANY_LANES // 10, 1)]:
            del self._lanes[lane.name]
