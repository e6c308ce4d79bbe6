"""Messages with file descriptors between our own processes, over Unix sockets.

SOCK_SEQPACKET keeps messages apart and passes descriptors with SCM_RIGHTS (unix(7)).
What a message says is the business of the module that defines it (broker/protocol.py,
engines/protocol.py, supervisor/control.py); here it is bytes.

Rules of this file: a descriptor received is close-on-exec and belongs to the caller;
a truncated message or descriptor list closes what arrived and is an error, never a
partial result.
"""

import array
import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence

from vnsmail.errors import VnsmailError

MAX_MESSAGE = 128 * 1024
"""Bytes. The kernel's default send buffer (net.core.wmem_default) holds 212,992."""

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


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected ends, neither inherited by children."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send_now(sock: socket.socket, payload: bytes, fds: Sequence[int] = ()) -> None:
    """Send one message with its descriptors.

    Raises:
        BlockingIOError: the socket is non-blocking and its buffer is full.
        ChannelClosed: nobody reads the other end.
    """
    ancillary = (
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    )
    try:
        sock.sendmsg([payload], ancillary, socket.MSG_NOSIGNAL)
    except (BrokenPipeError, ConnectionResetError, ConnectionRefusedError):
        raise ChannelClosed from None


def receive_now(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Return the next message and its descriptors.

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
    return payload, list(fds)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that nobody will use."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Channel:
    """One end of a channel, for coroutines. Takes over the socket it is given."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._sending = asyncio.Lock()

    async def send(self, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Send one message; waits while the other end is slow.

        Raises:
            ChannelClosed: the other end is gone, or this one was closed.
        """
        async with self._sending:
            while True:
                try:
                    return send_now(self._socket, payload, fds)
                except BlockingIOError:
                    await self._ready(write=True)
                except OSError:
                    raise ChannelClosed from None

    async def receive(self) -> tuple[bytes, list[int]]:
        """Return the next message and the descriptors that came with it.

        Raises:
            ChannelClosed: the other end is gone, or this one was closed.
            ChannelMisused: the message did not fit.
        """
        while True:
            try:
                return receive_now(self._socket)
            except BlockingIOError:
                await self._ready(write=False)
            except OSError:
                raise ChannelClosed from None

    async def _ready(self, *, write: bool) -> None:
        loop = asyncio.get_running_loop()
        fd = self._socket.fileno()
        if fd < 0:
            raise ChannelClosed
        add = loop.add_writer if write else loop.add_reader
        remove = loop.remove_writer if write else loop.remove_reader
        waiter: asyncio.Future[None] = loop.create_future()
        add(fd, _wake, waiter)
        try:
            await waiter
        finally:
            remove(fd)

    def close(self) -> None:
        """Close this end; a coroutine waiting here must be cancelled by its owner."""
        self._socket.close()
