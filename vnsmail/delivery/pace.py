"""How much a destination is asked at a time, and when it is left alone. Pure.

A destination that cannot be reached is left alone for a time that doubles; then one
message asks it, and only when that one gets through do the others follow (RFC 5321
section 4.5.4.1: keep a list of hosts that cannot be reached). One that works is asked
more and more, up to its limit.

Rules of this file: no clock and no dice; times are seconds of one clock, whichever.
"""

from dataclasses import dataclass

from vnsmail.model import Outcome
from vnsmail.queue.schedule import backoff

FIRST_WINDOW = 5
"""Messages under way at once to a destination of which nothing is known yet."""


@dataclass(slots=True)
class Pace:
    """What is known of one destination."""

    limit: int
    """Messages under way at once, at most."""
    window: int = FIRST_WINDOW
    failures: int = 0
    """Rounds in a row in which it could not be reached."""
    down_until: float = 0.0
    why: Outcome | None = None
    """What was met when it was asked last, while it is down."""
    round: int = 0
    """Grows when the destination goes down or comes back; what was started before says
    nothing of how things are now."""

    def allowed(self, now: float) -> int:
        """Return how many messages may be under way."""
        if now < self.down_until:
            return 0
        return 1 if self.failures else min(self.window, self.limit)

    def reached(self) -> None:
        """Note that somebody answered there."""
        if self.failures:
            self.failures, self.window = 0, FIRST_WINDOW
            self.down_until, self.why = 0.0, None
            self.round += 1
        elif self.window < self.limit:
            self.window += 1

    def unreachable(
        self,
        started_in: int,
        now: float,
        why: Outcome,
        waits: tuple[float, float],
        jitter: float,
    ) -> bool:
        """Note that nobody could be reached; say whether that is news.

        Args:
            started_in: ``round`` when the message set out.
            now: seconds.
            why: what was met.
            waits: seconds of the first wait and of the longest.
            jitter: 0 to 1, random.
        """
        if started_in != self.round:
            return False
        self.failures += 1
        self.why = why
        self.down_until = now + backoff(self.failures, *waits, jitter)
        self.round += 1
        return True
