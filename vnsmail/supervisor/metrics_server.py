"""GET /metrics, for Prometheus: on an address of this machine only, or a Unix socket.

Rules of this file: it runs as root, so of what a client says only the first line is
read, and compared with the one that is allowed; all that it may say is bounded in bytes
and seconds, and how many may say something at a time; a client never makes more work
than one look at the whole, which is kept for a while.
"""

import asyncio
import contextlib
import os
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from vnsmail.errors import StateUnusable, VnsmailError
from vnsmail.log import logger
from vnsmail.settings import Listen
from vnsmail.supervisor.exposition import CONTENT_TYPE

LONGEST_REQUEST = 8192
"""Bytes of a request with its headers, which are not looked at."""

PATIENCE = 5.0
"""Seconds for a client to say its request, and as many to read the answer."""

AT_ONCE = 16
"""Clients at a time; others are let go without a word."""

KEPT = 5.0
"""Seconds for which what was found is told again."""

log = logger("metrics")

Collect = Callable[[], Awaitable[str]]


class MetricsServer:
    """Tells what ``collect`` finds to whoever asks."""

    def __init__(self, collect: Collect) -> None:
        self._collect = collect
        self._clients = 0
        self._lock = asyncio.Lock()
        self._found = ""
        self._found_at = -KEPT

    @contextlib.asynccontextmanager
    async def listening(self, where: Listen | None) -> AsyncIterator[None]:
        """Listen while the context lasts; nowhere if ``where`` is None.

        Raises:
            StateUnusable: the address or path cannot be had.
        """
        if where is None:
            yield
            return
        try:
            server = await self._listen(where)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            remedy = "set metrics.listen in vnsmail.toml otherwise"
            raise StateUnusable(str(where), reason, remedy) from None
        try:
            yield
        finally:
            server.close()
            if where.path is not None:
                where.path.unlink(missing_ok=True)

    async def _listen(self, where: Listen) -> asyncio.Server:
        limit = LONGEST_REQUEST
        if where.path is None:
            return await asyncio.start_server(
                self._serve, where.address, where.port, limit=limit
            )
        _remove_socket(where.path)
        before = os.umask(0o117)
        try:
            return await asyncio.start_unix_server(self._serve, where.path, limit=limit)
        finally:
            os.umask(before)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._clients += 1
        try:
            if self._clients <= AT_ONCE:
                async with asyncio.timeout(PATIENCE):
                    request = await _request(reader)
                answer = await self._answer(request)
                async with asyncio.timeout(PATIENCE):
                    writer.write(answer)
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError):
            writer.transport.abort()
        finally:
            self._clients -= 1
            writer.close()

    async def _answer(self, request: list[bytes]) -> bytes:
        if len(request) != 3 or not request[2].startswith(b"HTTP/1."):
            return _response("400 Bad Request")
        method, target, _ = request
        if target.partition(b"?")[0] != b"/metrics":
            return _response("404 Not Found")
        if method not in {b"GET", b"HEAD"}:
            return _response("405 Method Not Allowed", more="Allow: GET, HEAD\r\n")
        try:
            body = (await self._current()).encode()
        except VnsmailError as error:
            log.warning("metrics.not_collected", reason=str(error))
            return _response("503 Service Unavailable")
        return _response("200 OK", body, head=method == b"HEAD")

    async def _current(self) -> str:
        async with self._lock:
            if time.monotonic() - self._found_at >= KEPT:
                self._found = await self._collect()
                self._found_at = time.monotonic()
            return self._found


async def _request(reader: asyncio.StreamReader) -> list[bytes]:
    """Return the words of a request's first line; none if it is too long."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        return []
    return head.partition(b"\r\n")[0].split(b" ")


def _response(
    status: str, body: bytes | None = None, *, more: str = "", head: bool = False
) -> bytes:
    kind = CONTENT_TYPE if body is not None else "text/plain; charset=utf-8"
    told = body if body is not None else f"{status}\n".encode()
    lines = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}"
    lines += f"Content-Length: {len(told)}\r\nConnection: close\r\n\r\n"
    return lines.encode() + (b"" if head else told)


def _remove_socket(path: Path) -> None:
    """Remove what an earlier process left; anything but a socket stays."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
