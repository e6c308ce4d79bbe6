"""How much of the machine one owner may use: what its limits leave. Pure.

Rules of this file: what was taken is counted before it is used and given back if it is
not, so that whoever comes at the same moment sees it; a limit is never overrun, and
what cannot be known exactly counts against the owner.
"""

from dataclasses import dataclass, field

from vnsmail.errors import LimitReached
from vnsmail.model import Limits
from vnsmail.smtp.replies import Reply

MINUTES = 60

FULL = Reply(452, ("the queue is full, try again later",), "4.3.1")
TOO_FAST = Reply(451, ("too many messages this hour, try again later",), "4.7.1")


def reply(error: LimitReached) -> Reply:
    """Return what a client is told; the numbers are not its business."""
    return FULL if error.limit == "queue_bytes" else TOO_FAST


@dataclass(slots=True)
class Hour:
    """Counts what happens in any hour, by the minute.

    A window of 61 minutes holds every hour that ends now, so a limit on the sum holds
    for each hour; it may be reached up to a minute early.
    """

    minutes: dict[int, int] = field(default_factory=dict)
    """How many, by minutes since the epoch."""

    def count(self, now: float) -> int:
        """Return how many there were in the hour that ends now."""
        current = int(now // 60)
        # One from the future was written by a clock that was wrong.
        for minute in [m for m in self.minutes if abs(current - m) > MINUTES]:
            del self.minutes[minute]
        return sum(self.minutes.values())

    def add(self, now: float, number: int = 1) -> None:
        """Count one more, or with a negative number less."""
        minute = int(now // 60)
        self.minutes[minute] = max(0, self.minutes.get(minute, 0) + number)

    def free_in(self, now: float) -> float:
        """Return in how many seconds some leave the window."""
        oldest = min((m for m, number in self.minutes.items() if number), default=None)
        if oldest is None:
            return 0.0
        return max(0.0, (oldest + MINUTES + 1) * 60 - now)


class HostAllowance:
    """What an owner may still take, by its limits.

    Args:
        owner: whose limits they are.
        limits: what it may use.
        hour: messages taken for sending, kept by somebody else.
        queued: octets in its queue.
    """

    def __init__(self, owner: str, limits: Limits, hour: Hour, queued: int) -> None:
        self._owner = owner
        self.limits = limits
        self._hour = hour
        self._queued = queued
        self._pending = 0

    def recount(self, queued: int) -> None:
        """Take the octets that are in the queue, as counted by the queue."""
        self._queued = queued

    def may_begin(self, octets: int) -> Reply | None:
        """Return the reply that turns a message away before its body comes, if any.

        The queue may have become emptier than it was when last counted, so this is
        asked only of what can never fit.
        """
        most = self.limits.queue_bytes
        return FULL if most is not None and octets > most else None

    def fits(self, octets: int) -> bool:
        """Say whether the queue has room for so much, as it was last counted."""
        most = self.limits.queue_bytes
        return most is None or self._queued + self._pending + octets <= most

    def take(self, octets: int, now: float, *, for_sending: bool) -> None:
        """Take room for a message; give it back with ``done``.

        Raises:
            LimitReached: there is none.
        """
        if not self.fits(octets):
            most = self.limits.queue_bytes or 0
            raise LimitReached(self._owner, "queue_bytes", most)
        most_messages = self.limits.messages_per_hour
        if (
            for_sending
            and most_messages is not None
            and self._hour.count(now) >= most_messages
        ):
            wait = self._hour.free_in(now)
            raise LimitReached(self._owner, "messages_per_hour", most_messages, wait)
        self._pending += octets
        if for_sending:
            self._hour.add(now)

    def done(self, octets: int, now: float, *, for_sending: bool, kept: bool) -> None:
        """Say what became of a message that room was taken for."""
        self._pending -= octets
        if kept:
            self._queued += octets
        elif for_sending:
            self._hour.add(now, -1)
