"""One message with file descriptors to or from another of our processes.

SOCK_SEQPACKET keeps messages apart and passes descriptors with SCM_RIGHTS (unix(7)).
What a message says is the business of the module that defines it (broker/protocol.py,
engines/protocol.py, supervisor/control.py); here it is bytes.

What does not fit a packet, such as the state of a thousand hosts, is handed over in
memory (memfd_create(2)), to a receiver that takes such; sealed, so that neither its
size nor what it says can change while it is read.

Rules of this file: a descriptor received is close-on-exec and belongs to the caller;
a truncated message or descriptor list closes what arrived and is an error, never a
partial result. Commands import this, so no event loop (channel.py has one).
"""

import array
import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator, Sequence

from vnsmail.errors import VnsmailError

MAX_MESSAGE = 128 * 1024
"""Bytes of a packet. The kernel's default send buffer (net.core.wmem_default) holds
212,992."""

MAX_LARGE = 16 * 1024 * 1024
"""Bytes of a message in memory: some 100 for each of 100,000 recipients."""

_LARGE = b"\xc1"
"""The packet that comes with a message in memory. MessagePack never uses that byte, and
no JSON begins with it."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

MAX_DESCRIPTORS = 64
"""The kernel allows 253 (SCM_MAX_FD); fewer keep a burst from one peer small."""


class ChannelClosed(VnsmailError):
    """The other end is gone."""

    retry_helps = True

    def __str__(self) -> str:
        return "the other process closed the channel"


class ChannelMisused(VnsmailError):
    """The other end sent what does not fit a message."""

    def __str__(self) -> str:
        return "a message or its descriptors were longer than the channel takes"


class MessageTooLong(VnsmailError):
    """What is to be said is more than a message can hold."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size

    def __str__(self) -> str:
        return f"this is too much for one message ({self.size} bytes); ask for less"


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected ends, neither inherited by children."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send_now(sock: socket.socket, payload: bytes, fds: Sequence[int] = ()) -> None:
    """Send one message with its descriptors.

    Raises:
        BlockingIOError: the socket is non-blocking and its buffer is full.
        ChannelClosed: nobody reads the other end.
        MessageTooLong: it is longer than MAX_LARGE; nothing is sent.
    """
    if len(payload) > MAX_MESSAGE:
        with _in_memory(payload) as memory:
            return send_now(sock, _LARGE, [*fds, memory])
    ancillary = (
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    )
    try:
        sock.sendmsg([payload], ancillary, socket.MSG_NOSIGNAL)
    except (BrokenPipeError, ConnectionResetError, ConnectionRefusedError):
        raise ChannelClosed from None


def receive_now(sock: socket.socket, *, large: bool = False) -> tuple[bytes, list[int]]:
    """Return the next message and its descriptors.

    Args:
        sock: a connected end.
        large: take a message in memory too, up to MAX_LARGE.

    Raises:
        BlockingIOError: the socket is non-blocking and nothing is there.
        ChannelClosed: the other end is gone.
        ChannelMisused: the message or its descriptors were cut off; none is kept.
    """
    try:
        payload, ancillary, flags, _ = sock.recvmsg(
            MAX_MESSAGE,
            socket.CMSG_LEN(MAX_DESCRIPTORS * array.array("i").itemsize),
            socket.MSG_CMSG_CLOEXEC,
        )
    except ConnectionResetError:
        raise ChannelClosed from None
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(fds)
        raise ChannelMisused
    if not payload:
        close_all(fds)
        raise ChannelClosed
    if large and payload == _LARGE:
        return _from_memory(fds)
    return payload, list(fds)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that nobody will use."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


@contextlib.contextmanager
def _in_memory(payload: bytes) -> Iterator[int]:
    if len(payload) > MAX_LARGE:
        raise MessageTooLong(len(payload))
    fd = os.memfd_create("message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(payload)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        yield fd
    finally:
        os.close(fd)


def _from_memory(fds: Sequence[int]) -> tuple[bytes, list[int]]:
    """Return the message in the last descriptor, and the others."""
    payload = _sealed(fds[-1]) if fds else b""
    if not payload:
        close_all(fds)
        raise ChannelMisused
    os.close(fds[-1])
    return payload, list(fds[:-1])


def _sealed(fd: int) -> bytes:
    """Return what sealed memory holds; nothing if it is anything else.

    The sender may be hostile: only memory can have seals, and what is sealed neither
    blocks a reader nor changes under it.
    """
    try:
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
        size = os.fstat(fd).st_size
        fits = MAX_MESSAGE < size <= MAX_LARGE
        return os.pread(fd, size, 0) if sealed and fits else b""
    except OSError:
        return b""
