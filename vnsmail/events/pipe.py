"""How a worker hands lines of the event log over: through a pipe to the supervisor.

A worker sees no file but its own, and gets no descriptor of the log either: whoever
has one can shorten the file, or write over what was there. What goes through a pipe is
added to the log, and nothing else can be done with it.

Rules of this file: it never waits and never fails. Where nobody takes the lines, since
the disk is full or hangs, some are kept, the rest is counted, and the count is told.
Lines gather for a moment, so that a burst is one write(2).
"""

import asyncio
import os
import time
from collections import deque

from vnsmail.events import record
from vnsmail.events.record import Event

GATHER = 0.02
"""Seconds that lines gather. A worker that is killed loses those."""

RETRY = 0.2
"""Seconds until a full pipe is tried again."""

KEPT = 4 * 1024 * 1024
"""Bytes kept while nobody takes them."""

TOGETHER = 256 * 1024
"""Bytes of one write."""


class EventPipe:
    """The worker's end. Before ``use`` there is no log, and nothing is kept."""

    def __init__(self) -> None:
        self._fd = -1
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._lost = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def on(self) -> bool:
        """Whether there is a log."""
        return self._fd >= 0

    def use(self, fd: int) -> None:
        """Write here from now on. Takes over the descriptor, which does not block."""
        self.close()
        self._fd = fd

    def tell(self, event: Event) -> None:
        """Take an event; see record.Tell."""
        if self._fd < 0:
            return
        line = record.line(event)
        if self._size + len(line) > KEPT:
            self._lost += 1
            return
        if self._lost:
            self._confess()
        self._lines.append(line)
        self._size += len(line)
        if self._timer is None:
            self._flush_in(GATHER)

    def close(self) -> None:
        """Write what can be written now, and let go."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._write()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _confess(self) -> None:
        lost, self._lost = self._lost, 0
        now = record.at(time.time())
        line = record.line(record.Lost(time=now, host="", lines=lost))
        self._lines.append(line)
        self._size += len(line)

    def _flush_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._flush)

    def _flush(self) -> None:
        self._timer = None
        if not self._write():
            self._flush_in(RETRY)

    def _write(self) -> bool:
        """Write what is there; return whether all of it is written."""
        while self._lines:
            batch = b"".join(self._next())
            try:
                written = os.write(self._fd, batch)
            except BlockingIOError:
                written = 0
            except OSError:  # the supervisor is gone, and its workers go too
                self._lines.clear()
                self._size = 0
                return True
            self._size -= written
            if written < len(batch):
                self._lines.appendleft(batch[written:])
                return False
        return True

    def _next(self) -> list[bytes]:
        batch, size = [], 0
        while self._lines and size < TOGETHER:
            batch.append(self._lines.popleft())
            size += len(batch[-1])
        return batch
