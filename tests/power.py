"""A folder of which it is known what a power cut at any instant may leave.

``PowerTree`` watches the calls of ``os`` that make, name and sync files below a folder;
that folder itself is on disk. ``leave`` makes what may be found after a cut at an
instant, in the ways a disk may take its freedom (fsync(2), its notes):

    strict   only what was synced is there: a name if its folder was synced since, and
             of a file what it held when it was synced
    eager    all names are there, contents only as far as synced
    mixed    of the names that differ some are there and some are not; what got another
             name has the one or the other, as rename(2) is one step for file systems
"""

import dataclasses
import os
import random
from pathlib import Path
from typing import Any

WAYS = ("strict", "eager", "mixed")
CALLS = ("fsync", "link", "unlink", "rename", "replace", "mkdir", "rmdir")

Names = dict[str, int]
"""What is in a folder: by name, a number for each file or folder."""


@dataclasses.dataclass(frozen=True)
class Instant:
    """What is known of the disk at one instant."""

    top: int
    there: dict[int, Names]
    """Folders as programs see them."""
    synced: dict[int, Names]
    """Folders as far as synced; one that never was is empty."""
    contents: dict[int, bytes]
    """Files as far as synced."""
    said: tuple[str, ...]
    """What somebody had been promised by then."""


class PowerTree:
    """The disk below one folder."""

    def __init__(self, folder: Path, monkeypatch: Any) -> None:
        self.folder = folder
        self.instants: list[Instant] = []
        self._synced: dict[int, Names] = {}
        self._contents: dict[int, bytes] = {}
        self._said: tuple[str, ...] = ()
        self._held: dict[int, int] = {}
        for call in CALLS:
            monkeypatch.setattr(os, call, self._watched(call, getattr(os, call)))

    def say(self, word: str) -> None:
        """Note that somebody has been promised something."""
        self._said += (word,)
        self._note()

    def close(self) -> None:
        for fd in self._held.values():
            os.close(fd)

    def _watched(self, call: str, original: Any) -> Any:
        def watched(first: Any, *rest: Any, **kwargs: Any) -> Any:
            result = original(first, *rest, **kwargs)
            if call == "fsync":
                self._fsynced(first)
            self._note()
            return result

        return watched

    def _fsynced(self, fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").resolve()
        number = os.fstat(fd).st_ino
        if path.is_dir():
            self._synced[number] = self._names(path)
        else:
            size = os.fstat(fd).st_size
            again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
            self._contents[number] = os.pread(again, size, 0)
            os.close(again)

    def _names(self, folder: Path) -> Names:
        found = {}
        for path in folder.iterdir():
            number = path.lstat().st_ino
            if number not in self._held:
                # Held open, so that no later file gets the same number.
                self._held[number] = os.open(path, os.O_RDONLY)
            found[path.name] = number
        return found

    def _note(self) -> None:
        there = {
            folder.stat().st_ino: self._names(folder)
            for folder in (self.folder, *self.folder.rglob("*"))
            if folder.is_dir()
        }
        top = self.folder.stat().st_ino
        synced = {number: dict(names) for number, names in self._synced.items()}
        self.instants.append(
            Instant(top, there, synced, dict(self._contents), self._said)
        )


def leave(instant: Instant, folder: Path, way: str, chance: random.Random) -> None:
    """Make in ``folder`` what may be found after a power cut at that instant."""
    folders = instant.there.keys() | instant.synced.keys()
    moved = {
        number: chance.random() < 0.5
        for number in sorted(_named(instant.there) & _named(instant.synced))
    }

    def make(number: int, at: Path) -> None:
        at.mkdir()
        for name, each in surviving(instant, number, way, chance, moved).items():
            if each in folders:
                make(each, at / name)
            else:
                (at / name).write_bytes(instant.contents.get(each, b""))

    make(instant.top, folder)


def _named(tree: dict[int, Names]) -> set[int]:
    return {number for names in tree.values() for number in names.values()}


def surviving(
    instant: Instant,
    number: int,
    way: str,
    chance: random.Random,
    moved: dict[int, bool],
) -> Names:
    """Return the names that are left in a folder.

    ``moved`` says of what has a name both as synced and as programs see it whether the
    later one is left.
    """
    there = instant.there.get(number, {})
    synced = instant.synced.get(number, {})
    if way == "strict":
        return synced
    if way == "eager":
        return there
    found = {}
    for name, each in (synced | there).items():
        if synced.get(name) == there.get(name):
            found[name] = each
        elif each in moved:
            if moved[each] == (there.get(name) == each):
                found[name] = each
        elif chance.random() < 0.5:
            found[name] = each
    return found
