"""A disk that remembers what was promised, and what a power cut may leave of it.

``PowerDisk`` watches a queue's folder: SQLite's writes and syncs through a VFS, ours
through ``os``. ``instants`` are all states in between. ``leave`` writes what may be
found after a cut at one of them, in the ways a disk may take its freedom:

    strict   only what was synced is there
    eager    names are there at once, contents only as far as synced
    mixed    of everything not synced some is there and some is not
"""

import dataclasses
import os
import random
from pathlib import Path
from typing import Any

import apsw

DATABASE_FILES = ("queue.db", "queue.db-wal")
SECTOR = 512


@dataclasses.dataclass(frozen=True)
class Instant:
    """What is known of the disk at one instant."""

    synced: dict[str, bytes]
    """Database files, as far as synced."""
    pending: dict[str, tuple[tuple[int, bytes | None], ...]]
    """What was written since: offset and data, or a new size and None."""
    names: dict[str, int]
    """Names below the folder, to a number for each file."""
    synced_names: dict[str, int]
    contents: dict[int, bytes]
    """What was synced of each file that is no database."""
    said: tuple[tuple[str, str], ...]
    """What callers had been told by then."""


class PowerDisk(apsw.VFS):
    """The disk below one folder."""

    def __init__(self, name, folder, monkeypatch):
        super().__init__(name, "unix")
        self.folder = Path(folder)
        self.instants: list[Instant] = []
        self._synced = dict.fromkeys(DATABASE_FILES, b"")
        self._pending: dict[str, Any] = dict.fromkeys(DATABASE_FILES, ())
        self._synced_names: dict[str, int] = {}
        self._contents: dict[int, bytes] = {}
        self._said: tuple[tuple[str, str], ...] = ()
        self._held: dict[int, int] = {}
        for call in ("fsync", "link", "unlink", "rename"):
            monkeypatch.setattr(os, call, self._watched(call, getattr(os, call)))

    def say(self, word, message_id):
        """Note that a caller begins something, or has been told that it is done."""
        self._said += ((word, message_id),)
        self._note()

    def xOpen(self, name, flags):  # noqa: N802  SQLite's name
        return _PowerFile(name, flags, self)

    def close(self):
        for fd in self._held.values():
            os.close(fd)
        self.unregister()

    # What happens ---------------------------------------------------------------

    def wrote(self, name, offset, data):
        self._pending[name] += ((offset, data),)
        self._note()

    def synced(self, name):
        self._synced[name] = replay(self._synced[name], self._pending[name])
        self._pending[name] = ()
        self._note()

    def _watched(self, call, original):
        def watched(first, *rest, **kwargs):
            result = original(first, *rest, **kwargs)
            if call == "fsync":
                self._fsynced(first)
            self._note()
            return result

        return watched

    def _fsynced(self, fd):
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.is_file():
            self._contents[os.fstat(fd).st_ino] = path.read_bytes()
        elif path.parent == self.folder:
            below = f"{path.name}/"
            before = self._synced_names.items()
            self._synced_names = {n: i for n, i in before if not n.startswith(below)}
            now = self._names().items()
            self._synced_names |= {n: i for n, i in now if n.startswith(below)}

    def _names(self):
        found = {}
        for below in ("body", "incoming"):
            folder = self.folder / below
            for path in folder.iterdir() if folder.is_dir() else ():
                number = path.stat().st_ino
                if number not in self._held:
                    # Held open, so that no later file gets the same number.
                    self._held[number] = os.open(path, os.O_RDONLY)
                found[f"{below}/{path.name}"] = number
        return found

    def _note(self):
        self.instants.append(
            Instant(
                dict(self._synced),
                dict(self._pending),
                self._names(),
                dict(self._synced_names),
                dict(self._contents),
                self._said,
            )
        )


class _PowerFile(apsw.VFSFile):
    def __init__(self, name, flags, disk):
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name = Path(path or "").name
        self._disk = disk
        super().__init__("unix", name, flags)

    def xWrite(self, data, offset):  # noqa: N802
        super().xWrite(data, offset)
        if self._name in DATABASE_FILES:
            self._disk.wrote(self._name, offset, bytes(data))

    def xTruncate(self, size):  # noqa: N802
        super().xTruncate(size)
        if self._name in DATABASE_FILES:
            self._disk.wrote(self._name, size, None)

    def xSync(self, flags):  # noqa: N802
        super().xSync(flags)
        if self._name in DATABASE_FILES:
            self._disk.synced(self._name)


def replay(data, writes):
    """Return a file after writes."""
    result = bytearray(data)
    for offset, written in writes:
        if written is None:
            del result[offset:]
            continue
        result.extend(bytes(max(0, offset - len(result))))
        result[offset : offset + len(written)] = written
    return bytes(result)


def leave(instant: Instant, folder: Path, way: str, chance: random.Random) -> None:
    """Write below ``folder`` what may be found after a power cut at that instant."""
    for below in ("body", "incoming"):
        (folder / below).mkdir(parents=True)
    for name in DATABASE_FILES:
        pending = instant.pending[name]
        if way == "mixed":
            pending = tuple(p for write in pending for p in torn(write, chance))
        else:
            pending = ()
        if data := replay(instant.synced[name], pending):
            (folder / name).write_bytes(data)
    for name, number in surviving_names(instant, way, chance).items():
        (folder / name).write_bytes(instant.contents.get(number, b""))


def surviving_names(instant, way, chance):
    if way == "strict":
        return instant.synced_names
    if way == "eager":
        return instant.names
    both = [*instant.synced_names.items(), *instant.names.items()]
    unsure = (
        dict(set(both)).keys()
        - dict(set(instant.synced_names.items()) & set(instant.names.items())).keys()
    )
    return {n: i for n, i in both if n not in unsure or chance.random() < 0.5}


def torn(write, chance):
    """Return those sectors of a write that reached the disk."""
    offset, data = write
    if data is None:
        return [write] if chance.random() < 0.5 else []
    sectors = range(0, len(data), SECTOR)
    return [
        (offset + start, data[start : start + SECTOR])
        for start in sectors
        if chance.random() < 0.7
    ]
