"""Delivery into a Maildir, one file a message (cr.yp.to/proto/maildir.html).

Rules of this file: when ``deliver`` returns, the message is on disk under its last
name; a reader never sees half of one. The bytes are kept as they came, CRLF and all,
behind the two header fields that final delivery puts in front. A delivery that is made
again, because nobody could write down that it was made, has the same name, and is found
by it. Blocking: call it in a thread.
"""

import contextlib
import hashlib
import os
import secrets
import socket
from pathlib import Path

from vnsmail.database import reason, sync_folder
from vnsmail.errors import StateUnusable
from vnsmail.queue.body import Body

_PARTS = ("tmp", "new", "cur")


def deliver(
    folder: Path, body: Body, *, return_path: str, delivered_to: str, name: str
) -> Path:
    """Put a message into a Maildir, durably, and return its file in ``new``.

    Args:
        folder: the Maildir; made with what is missing above it.
        body: the message; it is read, and stays the caller's.
        return_path: reverse-path without brackets, empty for the null one (RFC 5321
            section 4.4).
        delivered_to: the address it was delivered for.
        name: of the file; ``unique_name`` or ``name_of`` made it.

    Raises:
        StateUnusable: the disk is full, or the folder cannot be written; nothing is
            left in ``new``, and trying later may help.
        QueueUnavailable: the body cannot be read.
    """
    head = _field("Return-Path", f"<{return_path}>")
    head += _field("Delivered-To", delivered_to)
    # Not the last name: what a crash left in tmp must not be in the way.
    arriving = folder / "tmp" / f"{secrets.token_hex(8)}.{name}"
    arrived = folder / "new" / name
    try:
        _make(folder)
        try:
            _write(arriving, body.prefixed(head))
            os.rename(arriving, arrived)
        except BaseException:
            with contextlib.suppress(OSError):
                arriving.unlink()
            raise
        sync_folder(arrived.parent)
    except OSError as error:
        raise StateUnusable(
            str(folder), reason(error), "make room, or check who owns it"
        ) from None
    return arrived


def holds(folder: Path, name: str) -> bool:
    """Return whether a message is in a Maildir, seen by its reader or not; durably.

    Args:
        folder: the Maildir; it may be missing.
        name: of the file, without what a reader adds to it.

    Raises:
        StateUnusable: the folder cannot be read, or a disk did not take what is there.
    """
    try:
        new, cur = folder / "new", folder / "cur"
        if (new / name).exists():
            found = new
        elif cur.is_dir() and _is_in(cur, name):
            found = cur
        else:
            return False
        # The file was synced before it got its name; the name may not be.
        sync_folder(found)
    except OSError as error:
        raise StateUnusable(
            str(folder), reason(error), "check who owns it, and its disk"
        ) from None
    return True


def _is_in(cur: Path, name: str) -> bool:
    # A reader adds a colon and flags.
    with os.scandir(cur) as entries:
        return any(entry.name.partition(":")[0] == name for entry in entries)


def unique_name(now: float) -> str:
    """Return a file name that no other delivery chooses; see ``name_of``."""
    return name_of(now, secrets.token_hex(16))


def name_of(now: float, key: str) -> str:
    """Return the file name of one delivery, the same whenever it is asked for.

    Time and key make it unique; the machine's name is the custom, with ``/`` and ``:``
    written so that they can stand in a name.

    Args:
        now: seconds since the epoch.
        key: what no other delivery has, of any length and any characters.
    """
    machine = socket.gethostname().replace("/", "\\057").replace(":", "\\072")
    seconds, micros = divmod(int(now * 1_000_000), 1_000_000)
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16)
    return f"{seconds}.M{micros}Q{digest.hexdigest()}.{machine}"


def _field(name: str, value: str) -> bytes:
    if any(ord(c) < 32 or ord(c) == 127 for c in value):
        message = f"a control character in {name}: {value!r}"
        raise ValueError(message)
    return f"{name}: {value}\r\n".encode()


def _write(path: Path, body: Body) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        for chunk in body.chunks():
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _make(folder: Path) -> None:
    """Make a Maildir whose names outlive a power cut, if it is not there yet."""
    if all((folder / part).is_dir() for part in _PARTS):
        return
    missing = [folder, *folder.parents]
    missing = missing[: next(i for i, f in enumerate(missing) if f.is_dir())]
    for each in (*reversed(missing), *(folder / part for part in _PARTS)):
        each.mkdir(mode=0o700, exist_ok=True)
    for each in (folder, *(f.parent for f in missing)):
        sync_folder(each)
