"""Reading a pack (pack_form.py) into a folder beside those of the hosts.

Rules of this file: the pack may be anybody's: what it says is believed when its digest
is right, and before that nothing but the folder it is read into is touched. Names are
judged before they are used; each file is made anew, and no link is followed. Files pass
in pieces, and nothing in them is understood.
"""

import ctypes
import os
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vnsmail.directory.declaration import DeclaredHost, Misfits, parse
from vnsmail.directory.moves import PackedPeople
from vnsmail.errors import StateUnusable
from vnsmail.supervisor.folders import Account
from vnsmail.supervisor.pack_form import (
    AREAS,
    FACTS,
    MANIFEST,
    MAX_TEXT,
    PEOPLE,
    BadPack,
    Digest,
    Manifest,
    judge_name,
    read_manifest,
    read_people,
)
from vnsmail.supervisor.packing import PIECE, Hashing

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_RESERVE = 64 * 1024 * 1024
"""Bytes that stay free for the hosts that are here."""
_PLAIN = {tarfile.REGTYPE, tarfile.AREGTYPE}


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A pack whose digest is right, in a folder."""

    manifest: Manifest
    host: DeclaredHost
    people: PackedPeople
    folder: Path

    def area(self, name: str) -> Path:
        """Return where an area of it lies; it may not be there."""
        return self.folder / name


def read(file: str, folder: Path) -> Unpacked:
    """Read a pack into an empty folder.

    Raises:
        BadPack: it is none, or was changed; the folder is gone.
        StateUnusable: it cannot be read, or there is no room; the folder is gone.
    """
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        fd = os.open(file, _READ)
        with open(fd, "rb") as source:
            found = _Reader(file, folder).read(source)
    except tarfile.TarError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise BadPack(file, f"it cannot be read as tar: {error}") from None
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        why = (error.strerror or str(error)).lower()
        raise StateUnusable(file, why, "mend it, and unpack again") from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return found


def give(folder: Path, account: Account | None) -> None:
    """Give what was read to the account of the workers; on return all is on disk.

    Raises:
        OSError: it is not.
    """
    if account is not None:
        for place, folders, files in os.walk(folder):
            for path in (place, *(os.path.join(place, n) for n in folders + files)):
                os.chown(path, account.uid, account.gid, follow_symlinks=False)
    _sync(folder.parent)


class _Reader:
    def __init__(self, file: str, folder: Path) -> None:
        self._file = file
        self._folder = folder
        self._digest = Digest()
        self._texts: dict[str, bytes] = {}

    def read(self, source: IO[bytes]) -> Unpacked:
        with tarfile.open(fileobj=source, mode="r|", bufsize=PIECE) as tar:
            for entry in tar:
                if MANIFEST in self._texts:
                    raise BadPack(self._file, "something stands behind its manifest")
                self._take(tar, entry)
                tar.members = []  # type: ignore[attr-defined]  # it would remember each
        for name in (MANIFEST, FACTS, PEOPLE):
            if name not in self._texts:
                raise BadPack(self._file, f"it has no {name}: it is not whole")
        manifest = read_manifest(self._file, self._texts[MANIFEST], self._digest)
        people = read_people(self._file, self._texts[PEOPLE])
        host = self._host(manifest)
        if not (self._folder / AREAS[0]).is_dir():
            raise BadPack(self._file, f"it has no {AREAS[0]}: it is not whole")
        return Unpacked(manifest, host, people, self._folder)

    def _host(self, manifest: Manifest) -> DeclaredHost:
        try:
            hosts = parse(self._texts[FACTS].decode()).hosts
        except (Misfits, UnicodeDecodeError) as error:
            raise BadPack(self._file, f"{FACTS} cannot be: {error}") from None
        if [host.name for host in hosts] != [manifest.host]:
            raise BadPack(self._file, f"{FACTS} is of another host")
        return hosts[0]

    def _take(self, tar: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
        name = entry.name.rstrip("/") if entry.isdir() else entry.name
        if not (entry.isdir() or entry.type in _PLAIN) or entry.sparse is not None:
            raise BadPack(self._file, f"{name!r} is neither a plain file nor a folder")
        judge_name(self._file, name, folder=entry.isdir())
        path = self._folder / name
        try:
            if entry.isdir():
                os.mkdir(path, 0o700)
                self._digest.add(f"{name}/", 0, b"")
                return
            content = tar.extractfile(entry)
            assert content is not None  # noqa: S101  it is a plain file
            through = Hashing(content.read)
            if "/" in name:
                self._copy(path, entry, through)
            else:
                self._text(name, entry, through)
        except FileExistsError:
            raise BadPack(self._file, f"{name!r} is in it twice") from None
        except (FileNotFoundError, NotADirectoryError):
            raise BadPack(self._file, f"{name!r} has no folder in it") from None
        if through.octets != entry.size:
            raise BadPack(self._file, f"it ends in {name!r}: it is not whole")
        if name != MANIFEST:
            self._digest.add(name, through.octets, through.digest())

    def _text(self, name: str, entry: tarfile.TarInfo, through: Hashing) -> None:
        if name in self._texts:
            raise FileExistsError
        if entry.size > MAX_TEXT:
            raise BadPack(self._file, f"{name} is too large")
        pieces = []
        while piece := through.read():
            pieces.append(piece)
        self._texts[name] = b"".join(pieces)

    def _copy(self, path: Path, entry: tarfile.TarInfo, through: Hashing) -> None:
        room = os.statvfs(self._folder)
        if entry.size + _RESERVE > room.f_bavail * room.f_frsize:
            raise StateUnusable(str(self._folder), "there is no room", "make some")
        fd = os.open(path, _NEW, 0o600)
        try:
            while piece := through.read():
                view = memoryview(piece)
                while view:
                    view = view[os.write(fd, view) :]
            os.utime(fd, (entry.mtime, entry.mtime))
        finally:
            os.close(fd)


def _sync(folder: Path) -> None:
    """Have on disk all that is in the file system of a folder (syncfs(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if libc.syncfs(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(fd)
