"""Writing a pack (pack_form.py) out of the folders of a host that nobody serves.

Rules of this file: the folders belong to workers, which may be anybody's by now: no
link in them is followed, and what is no plain file is refused. Files pass in pieces,
and nothing in them is understood. A pack has its name when all of it is on disk.
"""

import contextlib
import hashlib
import io
import os
import stat
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vnsmail import __version__
from vnsmail.database import sync_folder
from vnsmail.directory.moves import PackedPeople
from vnsmail.errors import BadInput, StateUnusable
from vnsmail.supervisor.pack_form import (
    FACTS,
    FORM,
    MANIFEST,
    PEOPLE,
    SUFFIX,
    Digest,
    Manifest,
)

PIECE = 1024 * 1024
UNFINISHED = ".part"
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_FOLDER = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Content:
    """What a pack is made of."""

    host: str
    pack: str
    facts: str
    people: PackedPeople
    folders: tuple[tuple[str, Path], ...]
    """Area of the pack, folder of the installation; one that is not there is left out."""


def target(to: str, host: str) -> Path:
    """Return the file a pack is written to: ``to``, or one of its own in that folder.

    Raises:
        BadInput: it cannot be, or is there already.
    """
    path = Path(to)
    if not path.is_absolute():
        raise BadInput("pack", to, "give the whole path")
    if path.is_dir():
        path /= f"{host}{SUFFIX}"
    if os.path.lexists(path):
        raise BadInput("pack", str(path), "it is there already; give another --to")
    if not path.parent.is_dir():
        raise BadInput("pack", str(path), "there is no such folder")
    return path


def write(content: Content, path: Path) -> Manifest:
    """Write a pack; returns what stands at its end.

    Raises:
        StateUnusable: something cannot be read or written; there is no pack.
    """
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        fd = os.open(unfinished, _WRITE, 0o600)
        try:
            os.fchmod(fd, 0o600)  # one that a crash left may have had another
            with open(fd, "wb", closefd=False) as file:
                manifest = _Writer(file).write(content)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(unfinished, path)
        sync_folder(path.parent)
    except (OSError, tarfile.TarError) as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        why = getattr(error, "strerror", None) or str(error)
        raise StateUnusable(str(path), why.lower(), "mend it, and pack again") from None
    return manifest


class _Writer:
    def __init__(self, file: io.BufferedWriter) -> None:
        self._digest = Digest()
        self._tar = tarfile.open(  # noqa: SIM115  closed by write
            fileobj=file,
            mode="w|",
            format=tarfile.PAX_FORMAT,
            bufsize=PIECE,
        )

    def write(self, content: Content) -> Manifest:
        try:
            return self._write(content)
        except BaseException:
            with contextlib.suppress(OSError, tarfile.TarError):
                self._tar.close()
            raise

    def _write(self, content: Content) -> Manifest:
        self._text(FACTS, content.facts.encode())
        self._text(PEOPLE, msgspec.json.encode(content.people))
        for area, folder in content.folders:
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(folder, _FOLDER)
                try:
                    self._folder(area, fd)
                finally:
                    os.close(fd)
        manifest = Manifest(
            form=FORM,
            pack=content.pack,
            host=content.host,
            version=__version__,
            packed_at=time.time(),
            files=self._digest.files,
            octets=self._digest.octets,
            digest=self._digest.hexadecimal,
        )
        data = msgspec.json.encode(manifest)
        self._tar.addfile(_entry(MANIFEST, len(data)), io.BytesIO(data))
        self._tar.close()
        return manifest

    def _text(self, name: str, data: bytes) -> None:
        self._tar.addfile(_entry(name, len(data)), io.BytesIO(data))
        self._digest.add(name, len(data), hashlib.sha256(data).digest())

    def _folder(self, name: str, folder: int) -> None:
        entry = _entry(name, 0)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o700
        self._tar.addfile(entry)
        self._digest.add(f"{name}/", 0, b"")
        for each in sorted(os.listdir(folder)):
            path = f"{name}/{each}"
            facts = os.stat(each, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISDIR(facts.st_mode):
                with _opened(each, _FOLDER, folder) as fd:
                    self._folder(path, fd)
            elif stat.S_ISREG(facts.st_mode):
                with _opened(each, _READ, folder) as fd:
                    self._file(path, fd)
            else:
                raise OSError(None, f"{path} is no plain file; remove it")

    def _file(self, name: str, fd: int) -> None:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(None, f"{name} is no plain file; remove it")
        entry = _entry(name, facts.st_size)
        entry.mtime = facts.st_mtime
        with open(fd, "rb", closefd=False) as file:
            through = Hashing(file.read)
            self._tar.addfile(entry, through)
        self._digest.add(name, through.octets, through.digest())


class Hashing:
    """A file that is read once, in pieces, and hashed meanwhile."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._sum = hashlib.sha256()
        self.octets = 0

    def read(self, size: int = PIECE) -> bytes:
        data = self._read(size)
        self._sum.update(data)
        self.octets += len(data)
        return data

    def digest(self) -> bytes:
        return self._sum.digest()


@contextlib.contextmanager
def _opened(name: str, flags: int, folder: int) -> Iterator[int]:
    fd = os.open(name, flags, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o600
    return entry
