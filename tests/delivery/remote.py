"""A scripted SMTP server on loopback, and sockets such as the broker hands out."""

import asyncio
import errno
import socket
import ssl
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vnsmail.broker.client import SourceSocket
from vnsmail.errors import SourceUnavailable, VnsmailError
from vnsmail.model import Family

CUT = "cut"
"""In place of a reply: the connection ends without a word."""

PATIENCE = 20
"""Seconds after which what a test waits for counts as never."""

EXTENSIONS = ("PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE 50000000")

_USUAL = {
    "GREETING": "220 mx.b.example",
    "HELO": "250 mx.b.example",
    "DATA": "354 go on",
    "BODY": "250 2.0.0 taken",
    "QUIT": "221 goodbye",
}


@dataclass
class Arrived:
    """A message as it came."""

    sender: str
    recipients: list[str]
    body: bytes
    peer: str


@dataclass
class Session:
    """What a client said."""

    peer: str
    port: int
    verbs: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    helo: str = ""
    pieces: list[bytes] = field(default_factory=list)
    spoiled: bool = False
    """A piece of the body was refused."""


class Remote:
    """Started by ``async with``.

    ``replies`` has what is said to a verb, each once and the last for ever; GREETING
    and BODY are verbs, and ``RCPT address`` goes before ``RCPT``. ``held`` has events
    to wait for before a verb is answered. ``early`` is said, and the connection cut,
    after so many octets of a body. With ``lmtp`` each recipient has a reply to the
    body, by ``BODY address``.
    """

    def __init__(
        self, address="127.0.0.1", port=0, extensions=EXTENSIONS, *, lmtp=False
    ):
        self.tls: ssl.SSLContext | None = None
        """What STARTTLS is answered with; None: with nonsense."""
        self.address, self.port = address, port
        self.lmtp = lmtp
        self.extensions = extensions
        self.replies: dict[str, deque[str]] = defaultdict(deque)
        self.held: dict[str, asyncio.Event] = {}
        self.early: tuple[int, str] | None = None
        self.messages: list[Arrived] = []
        self.sessions: list[Session] = []
        self.happened = asyncio.Condition()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def says(self, verb: str, *replies: str) -> None:
        self.replies[verb].extend(replies)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until something that happens here makes the condition true."""
        async with asyncio.timeout(PATIENCE), self.happened:
            await self.happened.wait_for(condition)

    async def __aenter__(self):
        self._server = await asyncio.start_server(
            self._connected, self.address, self.port
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        """End all connections without a word."""
        for writer in list(self._writers):
            writer.transport.abort()

    def tell(self, line: str) -> None:
        """Say something that nobody asked for."""
        for writer in self._writers:
            writer.write(f"{line}\r\n".encode())

    async def _connected(self, reader, writer):
        task: Any = asyncio.current_task()
        self._tasks.add(task)
        self._writers.add(writer)
        session = Session(*writer.get_extra_info("peername")[:2])
        self.sessions.append(session)
        try:
            await self._converse(session, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()
            session.verbs.append("gone")
            self._writers.discard(writer)
            self._tasks.discard(task)
            await self._happen()

    async def _happen(self):
        async with self.happened:
            self.happened.notify_all()

    async def _converse(self, session, reader, writer):
        await self._reply(writer, "GREETING")
        sender, recipients = "", list[str]()
        while line := (await reader.readline()).decode().rstrip("\r\n"):
            verb, _, argument = line.partition(" ")
            session.verbs.append(verb)
            session.arguments.append(argument)
            await self._happen()
            address = argument.partition("<")[2].partition(">")[0]
            if verb in {"EHLO", "HELO", "LHLO"}:
                session.helo = argument
            elif verb == "MAIL":
                sender, recipients = address, []
                session.pieces, session.spoiled = [], False
            if verb == "BDAT" and await self._piece(
                session, reader, argument, listened=bool(recipients)
            ):
                body = b"".join(session.pieces)
                await self._end(writer, Arrived(sender, recipients, body, session.peer))
                continue
            said = await self._reply(writer, verb, address)
            session.spoiled |= verb == "BDAT" and not said.startswith("2")
            if verb == "RCPT" and said.startswith("2"):
                recipients.append(address)
            if verb == "DATA" and said.startswith("3"):
                body = await self._body(reader, writer)
                session.verbs.append("BODY")
                arrived = Arrived(sender, recipients, body, session.peer)
                await self._end(writer, arrived)
            if verb == "STARTTLS" and said.startswith("2"):
                await self._start_tls(session, reader, writer)
            if verb == "QUIT":
                return

    async def _start_tls(self, session, reader, writer):
        if self.tls is None:
            await reader.read(1)
            writer.write(b"what?\r\n")
            await reader.read()
            raise ConnectionError
        await writer.start_tls(self.tls)
        session.verbs.append("secure")

    async def _piece(
        self, session: Session, reader: Any, argument: str, *, listened: bool
    ) -> bool:
        """Read a chunk; say whether a message is whole with it."""
        octets, _, last = argument.partition(" ")
        session.pieces.append(await reader.readexactly(int(octets)))
        return bool(last) and listened and not session.spoiled

    async def _end(self, writer, arrived):
        answers = arrived.recipients if self.lmtp else [""]
        said = [await self._reply(writer, "BODY", each) for each in answers]
        if any(each.startswith("2") for each in said):
            self.messages.append(arrived)
            await self._happen()

    async def _body(self, reader: Any, writer: Any) -> bytes:
        if self.early is not None:
            octets, reply = self.early
            await reader.readexactly(octets)
            if reply != CUT:
                writer.write(f"{reply}\r\n".encode())
                await writer.drain()
                await reader.read()  # the client's turn to end it
            raise ConnectionError
        lines = []
        while (line := await reader.readuntil(b"\r\n")) != b".\r\n":
            lines.append(line.removeprefix(b"."))
        return b"".join(lines)

    async def _reply(self, writer: Any, verb: str, address: str = "") -> str:
        await self._happen()
        if verb in self.held:
            await self.held[verb].wait()
        said = self._next(f"{verb} {address}") or self._next(verb)
        if not said and verb in {"EHLO", "LHLO"}:
            lines = ["mx.b.example", *self.extensions]
            marks = ["-"] * (len(lines) - 1) + [" "]
            said = "\r\n".join(
                f"250{m}{line}" for m, line in zip(marks, lines, strict=True)
            )
        said = said or _USUAL.get(verb, "250 ok")
        if said == CUT:
            raise ConnectionError
        writer.write(f"{said}\r\n".encode())
        await writer.drain()
        return said

    def _next(self, key: str) -> str:
        found = self.replies.get(key)
        if not found:
            return ""
        return found.popleft() if len(found) > 1 else found[0]


class Loopback:
    """Sockets bound to an address of loopback, as the broker binds them.

    Args:
        source: what they are bound to.
        claimed: what the broker says of it; None for unbound ones.
    """

    IP_BIND_ADDRESS_NO_PORT = 24

    def __init__(self, source: str = "127.0.0.1", claimed: str | None = ""):
        self.source = source
        self.claimed = source if claimed == "" else claimed
        self.port = 0
        self.errors: deque[VnsmailError] = deque()
        self.connect_errno = 0
        self.asked: list[tuple[str, Family]] = []
        self.given: list[socket.socket] = []

    async def engine(self, owner: str) -> SourceSocket:
        raise SourceUnavailable(owner, "its engine", 111)

    async def store(self, owner, path):
        raise AssertionError("no test here hands mail to a store")

    async def connectable(self, owner: str, family: Family) -> SourceSocket:
        self.asked.append((owner, family))
        if self.errors:
            raise self.errors.popleft()
        sock = _Socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.connect_errno = self.connect_errno
        self.given.append(sock)
        if self.claimed is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if not self.port:
                sock.setsockopt(socket.SOL_IP, self.IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((self.source, self.port))
        sock.setblocking(False)
        return SourceSocket(sock, owner, self.claimed)


class _Socket(socket.socket):
    """One whose connect may fail as told."""

    connect_errno = 0

    def connect(self, address):
        if self.connect_errno:
            raise OSError(self.connect_errno, errno.errorcode[self.connect_errno])
        super().connect(address)
