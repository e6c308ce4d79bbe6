"""dnspython's network, made of sockets that somebody else opened.

A worker can reach nothing by itself, so each question goes over a socket that comes
already connected to the name server.

Rules of this file: only what dnspython documents is used; a socket is closed by
whoever asked for it, whatever happens; nothing here knows what is asked.
"""

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal, TypeAlias

import dns.asyncbackend
import dns.exception

from vnsmail.errors import VnsmailError

Transport: TypeAlias = Literal["udp", "tcp"]

OpenSocket: TypeAlias = Callable[[Transport, str], Awaitable[socket.socket]]
"""Given transport and server, return a socket connected to port 53 of it."""

_Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int]


@contextlib.asynccontextmanager
async def _within(seconds: float | None) -> AsyncIterator[None]:
    """Do asyncio.timeout, in dnspython's words."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        timeout = dns.exception.Timeout(timeout=seconds)  # type: ignore[no-untyped-call]  # dnspython's are
        raise timeout from None


class ConnectedDatagram(dns.asyncbackend.DatagramSocket):  # type: ignore[name-defined,misc]  # re-exported, not in __all__
    """A connected UDP socket."""

    def __init__(self, family: int, sock: socket.socket) -> None:
        super().__init__(family, socket.SOCK_DGRAM)
        self._socket = sock
        self._destination: _Address | None = None

    async def sendto(
        self,
        what: bytes,
        destination: _Address,
        timeout: float | None,
    ) -> int:
        self._destination = destination
        async with _within(timeout):
            await asyncio.get_running_loop().sock_sendall(self._socket, what)
        return len(what)

    async def recvfrom(
        self,
        size: int,
        timeout: float | None,
    ) -> tuple[bytes, _Address | None]:
        async with _within(timeout):
            data = await asyncio.get_running_loop().sock_recv(self._socket, size)
        # Only what the connected peer sent gets here: the kernel sees to it (udp(7)).
        return data, self._destination

    async def close(self) -> None:
        self._socket.close()

    async def getpeername(self) -> object:
        return self._socket.getpeername()

    async def getsockname(self) -> object:
        return self._socket.getsockname()


class ConnectedStream(dns.asyncbackend.StreamSocket):  # type: ignore[name-defined,misc]  # re-exported, not in __all__
    """A connected TCP socket."""

    def __init__(self, family: int, sock: socket.socket) -> None:
        super().__init__(family, socket.SOCK_STREAM)
        self._socket = sock

    async def sendall(
        self,
        what: bytes,
        timeout: float | None,
    ) -> None:
        async with _within(timeout):
            await asyncio.get_running_loop().sock_sendall(self._socket, what)

    async def recv(
        self,
        size: int,
        timeout: float | None,
    ) -> bytes:
        async with _within(timeout):
            return await asyncio.get_running_loop().sock_recv(self._socket, size)

    async def close(self) -> None:
        self._socket.close()

    async def getpeername(self) -> object:
        return self._socket.getpeername()

    async def getsockname(self) -> object:
        return self._socket.getsockname()


class HandedBackend(dns.asyncbackend.Backend):  # type: ignore[name-defined,misc]  # re-exported, not in __all__
    """Gives dnspython the sockets that ``open_socket`` returns, and no others."""

    def __init__(self, open_socket: OpenSocket) -> None:
        self._open_socket = open_socket

    def name(self) -> str:
        return "vnsmail"

    def datagram_connection_required(self) -> bool:
        # Else make_socket is not told which server the socket is for.
        return True

    async def make_socket(
        self,
        af: int,
        socktype: int,
        proto: int = 0,
        source: object = None,
        destination: _Address = ("", 0),
        timeout: float | None = None,
        ssl_context: object = None,
        server_hostname: str | None = None,
    ) -> ConnectedDatagram | ConnectedStream:
        """Return a socket connected to ``destination``.

        Raises:
            OSError: there is none. dnspython then leaves this server out for the
                question; any other error it would repeat until the time is over.
        """
        transport: Transport = "udp" if socktype == socket.SOCK_DGRAM else "tcp"
        try:
            async with _within(timeout):
                sock = await self._open_socket(transport, destination[0])
        except VnsmailError as error:
            raise OSError(errno.ENETUNREACH, str(error)) from error
        sock.setblocking(False)
        if transport == "udp":
            return ConnectedDatagram(af, sock)
        return ConnectedStream(af, sock)

    async def sleep(self, interval: float) -> None:
        await asyncio.sleep(interval)
