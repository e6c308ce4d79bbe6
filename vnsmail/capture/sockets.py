"""What sockets said of the messages they carried, out of the event log."""

import contextlib
import ipaddress
from collections.abc import Iterator
from pathlib import Path

from vnsmail.capture.witnesses import SocketSaid
from vnsmail.errors import NotPrivileged
from vnsmail.events import search
from vnsmail.events.record import Delivered

AROUND = 10.0
"""Seconds before and after a capture in which events of its messages are told."""


def read(path: Path, began: float, ended: float) -> list[SocketSaid]:
    """Return what is said of messages that were delivered within a time.

    Args:
        path: the event log; rotated files beside it are read, too.
        began: seconds since the epoch.
        ended: the same.

    Raises:
        NotPrivileged: the log is not ours to read.
    """
    try:
        return list(_read(path, began - AROUND, ended + AROUND))
    except PermissionError:
        remedy = "run it as root, or leave the event log out with --events off"
        what = f"read {path}"
        raise NotPrivileged(what, remedy) from None


def _read(path: Path, began: float, ended: float) -> Iterator[SocketSaid]:
    for event in search.of_kind(path, "delivered", began):
        if not isinstance(event, Delivered) or not event.source_port:
            continue
        moment = event.time.timestamp()
        if not began <= moment <= ended:
            continue
        with contextlib.suppress(ValueError):  # not written by us
            yield SocketSaid(
                owner=event.host,
                id=event.id,
                time=int(moment * 1e9),
                source=ipaddress.ip_address(event.source),
                source_port=event.source_port,
                remote=event.remote,
                remote_address=ipaddress.ip_address(event.remote_address),
                remote_port=event.remote_port,
            )
