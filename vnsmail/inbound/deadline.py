"""Until when a client must have got on.

A silence is not the only way to hold a session: a client may also send one byte a
minute. So it is not what arrives that moves the deadline on, but what is done: a
command that got its reply. Within a body each byte moves it a little. And a session as
a whole has a limit, which a message that is taken moves on: a client that says NOOP for
ever has no more from it than one that says nothing.

Rules of this file: one timer, which is set anew only when it rings, as most deadlines
are moved long before.
"""

import asyncio
from collections.abc import Callable
from math import inf

MIN_RATE = 500
"""Bytes a second that a body must come with in the long run; Postfix has the same
(smtpd_min_data_rate). A modem of 1990 sends twice as much."""


class Deadline:
    """Calls back once time is over. Not running until ``restart``."""

    def __init__(self, on_late: Callable[[], None], whole: float = inf) -> None:
        """``whole``: seconds until the end of everything, unless ``extend`` is called."""
        self._on_late = on_late
        self._loop = asyncio.get_running_loop()
        self._whole = whole
        self._time = self._loop.time
        self._end = self._time() + whole
        self._at = 0.0
        self._seconds = 0.0
        self._running = False
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = inf
        """When the timer rings; infinity: there is none."""

    @property
    def running(self) -> bool:
        """Whether the client is being waited for."""
        return self._running

    def restart(self, seconds: float) -> None:
        """Give the client that many seconds from now."""
        self._running = True
        self._seconds = seconds
        at = self._time() + seconds
        at = min(at, self._end)
        self._at = at
        if self._rings_at > at:
            self._ring_at(at)

    def came(self, count: int) -> None:
        """Give the client the time that so many bytes may take, within the limit."""
        latest = min(self._loop.time() + self._seconds, self._end)
        self._at = min(self._at + count / MIN_RATE, latest)

    def extend(self) -> None:
        """Begin the session's own time anew."""
        self._end = self._loop.time() + self._whole

    def stop(self) -> None:
        """The client is not waited for now."""
        self._running = False

    def end(self) -> None:
        """Never call back again."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._rings_at = inf

    def _ring_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._ring)
        self._rings_at = when

    def _ring(self) -> None:
        self._timer = None
        self._rings_at = inf
        if not self._running:
            return
        if self._at > self._loop.time():
            self._ring_at(self._at)
        else:
            self._running = False
            self._on_late()
