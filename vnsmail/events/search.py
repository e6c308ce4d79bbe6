"""Finding the events of one message in the log, and in what was rotated away.

A queue id says when its message arrived, and the log is in order of time. So the place
where its events begin is found by halving, file by file, and what stands before it is
never read. From there on the id is looked for as bytes, up to the last recipient's end.

Rules of this file: reads only; a line that is no event (half of one, from when a disk
was full) is passed over; files that come and go meanwhile are no error.
"""

import contextlib
import gzip
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self

import msgspec

from vnsmail.events import record
from vnsmail.events.record import Accepted, Bounced, Delivered, Event, Expired

SLACK = 5.0
"""Seconds by which lines of several workers may stand out of order, or a clock jump."""

NOTICE_WITHIN = 10.0
"""Seconds after its last recipient's end in which a notice is looked for."""

NEAR = 64 * 1024
"""Bytes from which on halving gains nothing."""

_QUOTED = b'"%s"'


class _When(msgspec.Struct):
    time: str


_when = msgspec.json.Decoder(_When).decode


@dataclass(slots=True)
class Life:
    """What is known of one message."""

    id: str
    events: list[Event] = field(default_factory=list)
    expected: int | None = None
    """Recipients, as far as it is known."""
    ended: set[str] = field(default_factory=set)
    until: float | None = None
    """When nothing more is to be expected, seconds since the epoch."""

    def add(self, event: Event) -> None:
        """Take an event that is of it, or of a notice about it."""
        self.events.append(event)
        if getattr(event, "id", "") != self.id:
            return
        match event:
            case Accepted():
                self.expected = event.recipient_count
            case Delivered() | Bounced() | Expired():
                self.ended.add(event.recipient)
            case record.Deleted():
                self.ended |= set(event.recipients)
            case _:
                return
        if self.expected is not None and len(self.ended) >= self.expected:
            self.until = event.time.timestamp() + NOTICE_WITHIN


def files(path: Path) -> list[Path]:
    """Return the log and what was rotated away, the oldest first.

    Names are those of logrotate: ``.1``, ``.2.gz``, ``-20261128``, ``-20261128.gz``.
    """
    found: list[tuple[float, Path]] = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(path.parent):
            rest = entry.name.removeprefix(path.name)
            if rest != entry.name and (not rest or rest[0] in ".-"):
                with contextlib.suppress(OSError):
                    found.append((entry.stat().st_mtime, Path(entry.path)))
    found.sort(key=lambda pair: (pair[1] == path, pair[0]))
    return [each for _, each in found]


def trace(path: Path, message_id: str, since: float) -> Life:
    """Return the events of a message.

    Args:
        path: the event log.
        message_id: its queue id.
        since: when it arrived, seconds since the epoch.

    Raises:
        PermissionError: the log is not ours to read.
    """
    life = Life(message_id)
    for file in files(path):
        try:
            # What was written last before it arrived has nothing of it.
            if file.stat().st_mtime < since - SLACK:
                continue
            with _Lines.open(file) as lines:
                _collect(lines, life, since)
        except FileNotFoundError:
            continue
        if life.until is not None and file != path and _newer(file, life.until):
            break
    life.events.sort(key=lambda event: event.time)
    return life


def of_kind(path: Path, kind: str, since: float) -> Iterator[Event]:
    """Give the events of one kind from about a time on, the oldest file first.

    Args:
        path: the event log.
        kind: what ``event`` says.
        since: seconds since the epoch; some that are older may come, too.

    Raises:
        PermissionError: the log is not ours to read.
    """
    needle = b'"event":' + _QUOTED % kind.encode()
    for file in files(path):
        try:
            if file.stat().st_mtime < since - SLACK:
                continue
            with _Lines.open(file) as lines:
                for line in lines.with_bytes(needle, since - SLACK):
                    with contextlib.suppress(ValueError):
                        yield record.parse(line)
        except FileNotFoundError:
            continue


def _newer(file: Path, until: float) -> bool:
    with contextlib.suppress(OSError):
        return file.stat().st_mtime > until
    return False


def _collect(lines: "_Lines", life: Life, since: float) -> None:
    needle = _QUOTED % life.id.encode()
    for line in lines.with_bytes(needle, since - SLACK):
        try:
            event = record.parse(line)
        except ValueError:
            continue
        if life.until is not None and event.time.timestamp() > life.until:
            return
        if life.id in {getattr(event, "id", ""), getattr(event, "about", "")}:
            life.add(event)


class _Lines:
    """The lines of one file: of one in memory, or of one that is unpacked."""

    def __init__(self, file: BinaryIO, *, packed: bool) -> None:
        self._file = file
        self._packed = packed

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path) -> Iterator[Self]:
        packed = path.suffix == ".gz"
        with gzip.open(path) if packed else path.open("rb") as file:
            yield cls(file, packed=packed)  # type: ignore[arg-type]

    def with_bytes(self, needle: bytes, since: float) -> Iterator[bytes]:
        """Give the lines from a time on that have these bytes in them."""
        if self._packed:
            with contextlib.suppress(EOFError, gzip.BadGzipFile):
                for line in self._file:
                    if needle in line:
                        yield line
            return
        if not os.fstat(self._file.fileno()).st_size:
            return
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = _beginning(data, since)
            while (found := data.find(needle, at)) >= 0:
                start = data.rfind(b"\n", 0, found) + 1
                end = data.find(b"\n", found)
                at = len(data) if end < 0 else end + 1
                yield data[start:at]


def _beginning(data: mmap.mmap, since: float) -> int:
    """Return a place before all lines from that time on, by halving."""
    wanted = record.at(max(since, 0.0)).isoformat().replace("+00:00", "Z")
    low, high = 0, len(data)
    while high - low > NEAR:
        middle = (low + high) // 2
        start = data.find(b"\n", middle, high) + 1
        time = _time_behind(data, start, high) if start else ""
        if time and time < wanted:
            low = start
        else:
            high = middle
    return low


def _time_behind(data: mmap.mmap, start: int, high: int) -> str:
    """Return the time of the first line from there on that is an event."""
    for _ in range(10):
        end = data.find(b"\n", start, high)
        if end < 0:
            return ""
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            return _when(data[start:end]).time
        start = end + 1
    return ""
