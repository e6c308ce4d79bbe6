"""Messages with file descriptors between our own processes, for coroutines.

What travels, and how, is in packets.py.
"""

import asyncio
import socket
from collections.abc import Sequence

from vnsmail.packets import (
    MAX_DESCRIPTORS,
    MAX_LARGE,
    MAX_MESSAGE,
    ChannelClosed,
    ChannelMisused,
    MessageTooLong,
    close_all,
    pair,
    receive_now,
    send_now,
)

__all__ = [
    "MAX_DESCRIPTORS",
    "MAX_LARGE",
    "MAX_MESSAGE",
    "Channel",
    "ChannelClosed",
    "ChannelMisused",
    "MessageTooLong",
    "close_all",
    "pair",
    "receive_now",
    "send_now",
]


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Channel:
    """One end of a channel, for coroutines. Takes over the socket it is given.

    Args:
        sock: the socket.
        large: take messages in memory too.
    """

    def __init__(self, sock: socket.socket, *, large: bool = False) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._large = large
        self._sending = asyncio.Lock()

    async def send(self, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Send one message; waits while the other end is slow.

        Raises:
            ChannelClosed: the other end is gone, or this one was closed.
            MessageTooLong: it is longer than MAX_LARGE.
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
                return receive_now(self._socket, large=self._large)
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
