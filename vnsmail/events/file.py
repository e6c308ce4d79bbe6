"""The event log on disk: lines from the pipes of workers, added to one file.

Rules of this file: it runs in a thread of its own, for a disk may hang; nothing waits
for it but the pipes, and who writes into a full one counts what it could not say. Only
whole lines are written. Rotation is the system's: a file that was moved away is let go
of, and made anew, within some seconds or on ``reopen``; one that was emptied in its
place (copytruncate) is written on from its beginning.
"""

import contextlib
import fcntl
import os
import selectors
import threading
import time
from pathlib import Path

from vnsmail.events import record
from vnsmail.log import logger

LOOK_EVERY = 2.0
"""Seconds between looks whether the file was moved away, and tries to write again."""

CHUNK = 256 * 1024
PIPE_SIZE = 1024 * 1024
"""Bytes that wait in a pipe; pipe(7) lets anybody have as many."""

LONGEST_LINE = 256 * 1024
"""A line that is longer is none of ours."""

log = logger("events")


class EventFile:
    """The one writer of the event log of a root.

    Args:
        path: the file; its folder is made.
        look_every: see LOOK_EVERY.
    """

    def __init__(self, path: Path, look_every: float = LOOK_EVERY) -> None:
        self._path = path
        self._look_every = look_every
        self._fd = -1
        self._lost = 0
        self._broken_line = False
        self._problem = ""
        self._rests: dict[int, bytes] = {}
        """What came of a line that is not whole, by pipe."""
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._lock = threading.Lock()
        self._new: list[int] = []
        self._reopening = True
        self._closing = False
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str:
        """Why lines are not written now; empty if they are."""
        return self._problem

    def pipe(self) -> int:
        """Return the end of a new pipe that a worker writes into; it is the caller's."""
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.suppress(OSError):
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        with self._lock:
            self._new.append(reading)
        self._nudge()
        return writing

    def reopen(self) -> None:
        """Let go of the file, which somebody may have moved away, and open it anew."""
        self._reopening = True
        self._nudge()

    def close(self) -> None:
        """Write what is in the pipes, and end; a disk that hangs is not waited for."""
        self._closing = True
        self._nudge()
        self._thread.join(5.0)

    def _nudge(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b"!")

    # In the thread ------------------------------------------------------------------

    def _run(self) -> None:
        looked = -self._look_every
        while not self._closing:
            ready = [key.fd for key, _ in self._selector.select(self._look_every)]
            self._take_new()
            if self._reopening or time.monotonic() - looked >= self._look_every:
                looked = time.monotonic()
                self._look(anew=self._reopening)
            for fd in ready:
                self._read(fd)
        self._take_new()
        for fd in list(self._rests):
            while fd in self._rests and self._read(fd):
                pass
        self._let_go()

    def _take_new(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._woken, CHUNK)
        with self._lock:
            new, self._new = self._new, []
        for fd in new:
            self._selector.register(fd, selectors.EVENT_READ)
            self._rests[fd] = b""

    def _read(self, fd: int) -> bool:
        """Take over what is in a pipe; return whether there was something."""
        if fd not in self._rests:
            return False
        try:
            chunk = os.read(fd, CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            self._selector.unregister(fd)
            os.close(fd)
            del self._rests[fd]
            return False
        whole, newline, rest = (self._rests[fd] + chunk).rpartition(b"\n")
        self._rests[fd] = rest if len(rest) <= LONGEST_LINE else b""
        if newline:
            self._write(whole + newline)
        return True

    def _write(self, lines: bytes) -> None:
        amends = self._amends() if self._lost or self._broken_line else b""
        data = amends + lines
        try:
            written = os.write(self._fd, data) if self._fd >= 0 else 0
        except OSError as error:
            self._lose(lines, error.strerror or str(error))
            return
        if written < len(data):
            if written:
                self._broken_line = data[written - 1 : written] != b"\n"
            if written >= len(amends):
                self._lost = 0
            unsaid = data[max(written, len(amends)) :]
            self._lose(unsaid, self._problem or "the disk is full")
            return
        self._lost, self._broken_line = 0, False
        self._well()

    def _amends(self) -> bytes:
        """Return what stands before the first line after some were lost."""
        now = record.at(time.time())
        lost = record.Lost(time=now, host="", lines=self._lost)
        return b"\n" * self._broken_line + (record.line(lost) if self._lost else b"")

    def _lose(self, lines: bytes, problem: str) -> None:
        self._lost += lines.count(b"\n")
        if not self._problem:
            log.error("events.not_written", file=str(self._path), problem=problem)
        self._problem = problem

    def _well(self) -> None:
        if self._problem:
            log.info("events.written_again", file=str(self._path))
        self._problem = ""

    def _look(self, *, anew: bool) -> None:
        """Open the file, if it is not open or is another now."""
        self._reopening = False
        try:
            there = os.stat(self._path)
            same = self._fd >= 0 and os.path.samestat(there, os.fstat(self._fd))
        except OSError:
            same = False
        if same and not anew:
            return
        try:
            self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            flags = (
                os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            )
            fd = os.open(self._path, flags | os.O_NONBLOCK, 0o640)
        except OSError as error:
            # The old file is better than none.
            if self._fd < 0:
                self._lose(b"", error.strerror or str(error))
            return
        self._let_go()
        self._fd = fd

    def _let_go(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
