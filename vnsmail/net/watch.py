"""Hearing at once of what others do to the network. PRIVILEGED.

    one socket of NETLINK_ROUTE        links, addresses, routes, rules
    one socket of NETLINK_NETFILTER    tables of nftables
    one inotify(7) on /run/netns       names of namespaces that come and go

Two sockets are enough for any number of namespaces: with NETLINK_LISTEN_ALL_NSID
(netlink(7)) a socket hears those namespaces too that have a number in its own, and is
told the number with each message. ``follow`` gives numbers to the namespaces of hosts.

Rules of this file: nothing waits; what was lost (ENOBUFS: others changed more than the
socket holds) is told as lost, and whoever listens looks at everything; nothing is
judged here (supervisor/drift.py).
"""

import contextlib
import ctypes
import errno
import itertools
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from vnsmail.net import events, messages, namespaces
from vnsmail.net.events import Event, Kind
from vnsmail.net.netlink import Kernel

BUFFER = 4 * 1024 * 1024
"""Bytes each socket may hold; the kernel takes memory only for what is unread."""

_SOL_NETLINK = 270
_ADD_MEMBERSHIP, _LISTEN_ALL_NSID = 1, 8
_NSID = struct.Struct("=i")
_NETLINK_NETFILTER = 12
_SO_RCVBUFFORCE = 33
_READ = 64 * 1024
_AT_ONCE = 512
"""Reads a turn, so that a storm of messages does not keep the process for itself."""

_FIRST_PORT = 1 << 30
"""Above all numbers of processes: the port of this process's own number stays free for
libnftables, so that its changes are known as ours (``Event.sender``)."""

_GET_NSID, _NEW_NSID_REQUEST = 90, 88
_NSID_NUMBER, _NSID_FD = 1, 3
_NO_NSID = 0xFFFFFFFF

_IN_CREATE, _IN_DELETE, _IN_MOVED = 0x100, 0x200, 0xC0
_IN_OVERFLOW = 0x4000
_IN_ONLYDIR = 0x01000000
_INOTIFY = struct.Struct("=iIII")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Heard:
    """An event, and where it was."""

    place: str | None
    """Namespace by name; empty for the machine's own; None for one that is not
    followed."""
    event: Event


@dataclass(frozen=True, slots=True)
class Lost:
    """Something was not heard: anything may be otherwise now."""


@dataclass(slots=True)
class _Followed:
    """A namespace that is listened to."""

    name: str
    inode: int


class Watch:
    """All that is listened to, in the namespace of the thread that makes it.

    Raises:
        OSError: the kernel does not let us listen.
    """

    def __init__(self) -> None:
        self._sockets: list[tuple[socket.socket, _Decoder]] = []
        self._inotify = -1
        self._numbers: dict[int, _Followed] = {}
        self._inodes: dict[str, int] = {}
        self._kernel = Kernel()
        self.everywhere = True
        """Whether changes within namespaces are heard; it takes CAP_NET_BROADCAST."""
        try:
            self._listen(socket.NETLINK_ROUTE, events.ROUTE_GROUPS, _routes)
            # A kernel without nftables has no guard to look after.
            with contextlib.suppress(OSError):
                self._listen(_NETLINK_NETFILTER, (events.NFTABLES_GROUP,), _filters)
            self._watch_names()
        except BaseException:
            self.close()
            raise

    def filenos(self) -> Iterator[int]:
        """Return the descriptors that become readable when something is to be heard."""
        yield from (sock.fileno() for sock, _ in self._sockets)
        yield self._inotify

    def close(self) -> None:
        for sock, _ in self._sockets:
            sock.close()
        self._kernel.close()
        if self._inotify >= 0:
            os.close(self._inotify)
            self._inotify = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Listening -------------------------------------------------------------------

    def read(self) -> Iterator[Heard | Lost]:
        """Return what was heard since the last time; it never waits."""
        for sock, decode in self._sockets:
            for _ in range(_AT_ONCE):
                try:
                    data, extra, _, (sender, _) = sock.recvmsg(_READ, 64)
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    yield Lost()
                    continue
                if sender == 0:  # others may write to us too; this is the kernel
                    place = self._place(extra)
                    yield from (Heard(place, event) for event in decode(data))
        yield from self._names()

    def _place(self, extra: Iterable[tuple[int, int, bytes]]) -> str | None:
        for level, kind, value in extra:
            if (level, kind) == (_SOL_NETLINK, _LISTEN_ALL_NSID):
                followed = self._numbers.get(_NSID.unpack(value)[0])
                return followed.name if followed else None
        return ""

    def _names(self) -> Iterator[Heard | Lost]:
        try:
            data = os.read(self._inotify, _READ)
        except BlockingIOError:
            return
        offset = 0
        while offset + _INOTIFY.size <= len(data):
            _, mask, _, length = _INOTIFY.unpack_from(data, offset)
            offset += _INOTIFY.size
            name = os.fsdecode(data[offset : offset + length].rstrip(b"\0"))
            offset += length
            if mask & _IN_OVERFLOW:
                yield Lost()
            elif name:
                gone = not mask & _IN_CREATE
                yield Heard(name, Event(Kind.NAMESPACE, gone=gone, name=name))

    # Namespaces ------------------------------------------------------------------

    def name_of(self, number: int) -> str:
        """Return the name of the namespace that has, or had, a number; else empty."""
        followed = self._numbers.get(number)
        return followed.name if followed else ""

    def follow(self, names: Iterable[str]) -> set[str]:
        """Listen to these namespaces and to no others of those followed before.

        Returns those that were not listened to until now: anything may have happened
        in them. One that is not there is passed over.
        """
        wanted = set(names)
        for number, each in list(self._numbers.items()):
            if each.name not in wanted:
                del self._numbers[number]
                self._inodes.pop(each.name, None)
        fresh = set()
        for name in wanted:
            with contextlib.suppress(OSError):
                inode = os.stat(namespaces.FOLDER / name).st_ino
                if self._inodes.get(name) != inode:
                    self._begin_to_follow(name, inode)
                    fresh.add(name)
        return fresh

    def _begin_to_follow(self, name: str, inode: int) -> None:
        fd = namespaces.open_namespace(name)
        try:
            by_fd = messages.number(_NSID_FD, fd)
            number = self._number(by_fd)
            if number == _NO_NSID:
                body = bytes(4) + messages.number(_NSID_NUMBER, _NO_NSID) + by_fd
                with contextlib.suppress(FileExistsError):
                    self._kernel.do(messages.message(_NEW_NSID_REQUEST, 0, body))
                number = self._number(by_fd)
        finally:
            os.close(fd)
        old = [n for n, each in self._numbers.items() if each.name == name]
        for each in old:
            del self._numbers[each]
        self._numbers[number] = _Followed(name, inode)
        self._inodes[name] = inode

    def _number(self, by_fd: bytes) -> int:
        question = messages.message(_GET_NSID, 0, bytes(4) + by_fd)
        answer = self._kernel.ask(question)
        return messages.number_in(messages.attributes(answer, 4), _NSID_NUMBER)

    # Within ----------------------------------------------------------------------

    def _listen(self, protocol: int, groups: Iterable[int], decode: "_Decoder") -> None:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._sockets.append((sock, decode))
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER)
        except PermissionError:  # of root of the machine only: what is allowed, then
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        try:
            sock.setsockopt(_SOL_NETLINK, _LISTEN_ALL_NSID, 1)
        except OSError:
            self.everywhere = False
        _bind(sock)
        for group in groups:
            sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def _watch_names(self) -> None:
        namespaces.prepare_folder()
        self._inotify = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        mask = _IN_CREATE | _IN_DELETE | _IN_MOVED | _IN_ONLYDIR
        folder = bytes(namespaces.FOLDER)
        if (
            self._inotify < 0
            or _libc.inotify_add_watch(self._inotify, folder, mask) < 0
        ):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(namespaces.FOLDER))


_Decoder = Callable[[bytes], Iterator[Event]]
_routes: _Decoder = events.route_events
_filters: _Decoder = events.filter_events


def _bind(sock: socket.socket) -> None:
    for port in itertools.count(_FIRST_PORT + os.getpid()):
        try:
            sock.bind((port, 0))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return
