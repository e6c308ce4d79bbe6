"""The folders of the drop as root uses them: made, listed, opened, emptied.

They belong to local accounts, whose programs may do anything in them at any moment.

Rules of this file: nothing in them is followed, neither links nor mounts (openat2(2));
what is opened is looked at through its descriptor, and is a plain file of the account's
own or nothing; nothing here waits for another process, and nothing is read but what
stands in front of a message.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vnsmail.database import sync_folder
from vnsmail.drop import form
from vnsmail.errors import StateUnusable
from vnsmail.supervisor import kernel

AT_ONCE = 200
"""Messages of one account that are taken before another's turn."""

_NOT_FILES = {errno.ELOOP, errno.EXDEV, errno.ENXIO}
"""A link, something that is mounted there, a socket."""

STALE_AFTER = 86400.0
"""Seconds after which a file that never got its name is removed."""


class NotTakeable(Exception):
    """The file is no message of this account; it can be removed."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """An open message."""

    uid: int
    name: str
    fd: int
    request: form.Request
    offset: int
    size: int

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prepare(drop: Path, uids: Collection[int], max_size: int) -> dict[int, str]:
    """Make the drop, and a folder for each account; take away those of others.

    Returns the accounts that could not be given a folder, and why.

    Raises:
        StateUnusable: it cannot be made.
    """
    try:
        drop.mkdir(mode=0o711, exist_ok=True)
        drop.chmod(0o711)
        _tell(drop / "limits", f"{max_size}\n")
        unmade = dict(each for uid in uids if (each := _make(drop / str(uid), uid)))
        # Whoever leaves a message syncs the folder it is in, and may do no more.
        for folder in (drop, drop.parent):
            sync_folder(folder)
        for folder in drop.iterdir():
            if folder.name.isdecimal() and int(folder.name) not in uids:
                _take_away(folder)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise StateUnusable(str(error.filename or drop), why, "mend it") from None
    return unmade


def _tell(file: Path, text: str) -> None:
    """Have a text in a file that anybody may read; written only if it is another."""
    with contextlib.suppress(OSError):
        if file.read_text() == text:
            return
    half = file.with_name(f"{file.name}.new")
    half.write_text(text)
    half.chmod(0o644)
    half.rename(file)


def _make(folder: Path, uid: int) -> tuple[int, str] | None:
    """Give an account its folder; returns the account and the reason if it has none."""
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if folder.lstat().st_uid != uid:
            # In a user namespace there may be no such account (user_namespaces(7)).
            os.chown(folder, uid, -1, follow_symlinks=False)
    except OSError as error:
        return uid, (error.strerror or str(error)).lower()
    return None


def _take_away(folder: Path) -> None:
    """Take a folder from its account, and remove it with the files in it."""
    os.chown(folder, 0, 0, follow_symlinks=False)
    with contextlib.suppress(OSError), _opened(folder) as fd:
        for name in os.listdir(fd):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=fd)
    with contextlib.suppress(OSError):  # what else is in there, root may look at
        folder.rmdir()


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """Open an account's folder.

    Raises:
        OSError: it is not there, or is none, or something is mounted on it.
    """
    top = os.open(folder.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = kernel.open_beneath(top, folder.name, os.O_RDONLY | os.O_DIRECTORY)
    finally:
        os.close(top)
    try:
        yield fd
    finally:
        os.close(fd)


def waiting(drop: Path, uid: int, now: float) -> list[str]:
    """Return the names of messages in an account's folder, some at a time.

    Files that never got a name are removed when they are old.

    Args:
        drop: the drop.
        uid: the account.
        now: seconds since the epoch.
    """
    found = []
    with contextlib.suppress(OSError), _opened(drop / str(uid)) as fd:
        for name in os.listdir(fd):
            if form.is_name(name):
                found.append(name)
            elif name.startswith(".") and form.is_name(name[1:]):
                with contextlib.suppress(OSError):
                    facts = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if facts.st_mtime < now - STALE_AFTER:
                        os.unlink(name, dir_fd=fd)
            if len(found) >= AT_ONCE:
                break
    return found


def open_message(drop: Path, uid: int, name: str, max_size: int) -> Dropped | None:
    """Open a message; None if there is none of that name.

    Raises:
        NotTakeable: something else has the name.
        StateUnusable: it cannot be read now.
    """
    try:
        with _opened(drop / str(uid)) as folder:
            # A FIFO, a device or a lease must not make us wait.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
            fd = kernel.open_beneath(folder, name, flags)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in _NOT_FILES and _is_folder(drop / str(uid)):
            message = "it is no file"
            raise NotTakeable(message) from None
        why = (error.strerror or str(error)).lower()
        path = str(drop / str(uid) / name)
        raise StateUnusable(path, why, "mend or remove it") from None
    try:
        return _looked_at(fd, uid, name, max_size)
    except BaseException:
        os.close(fd)
        raise


def _is_folder(folder: Path) -> bool:
    return stat.S_ISDIR(folder.lstat().st_mode)


def _looked_at(fd: int, uid: int, name: str, max_size: int) -> Dropped:
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode):
        message = "it is no file"
        raise NotTakeable(message)
    # A second link may be another's file, or another's way to change this one.
    if facts.st_uid != uid or facts.st_nlink != 1:
        message = "it is another account's, or has a second name"
        raise NotTakeable(message)
    if facts.st_size > max_size + form.MAX_FRONT:
        message = f"it is larger than {max_size} bytes"
        raise NotTakeable(message)
    try:
        request, offset, size = form.read_front(os.pread(fd, form.MAX_FRONT, 0))
    except form.BadDrop as error:
        raise NotTakeable(str(error)) from None
    if facts.st_size != offset + size:
        message = "it is not whole"
        raise NotTakeable(message)
    return Dropped(uid, name, fd, request, offset, size)


def remove(drop: Path, uid: int, name: str, fd: int | None = None) -> None:
    """Remove a message that was taken, or is none.

    Args:
        drop: the drop.
        uid: the account.
        name: of the file.
        fd: the file that is meant; another in its place stays.
    """
    with contextlib.suppress(OSError), _opened(drop / str(uid)) as folder:
        if fd is not None:
            there = os.stat(name, dir_fd=folder, follow_symlinks=False)
            mine = os.fstat(fd)
            if (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
                return
        os.unlink(name, dir_fd=folder)
