"""Sessions over socket pairs, with clients that say what they are told to."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from vnsmail.inbound.accept import AcceptPolicy
from vnsmail.inbound.session import MX, Receiver
from vnsmail.inbound.shared import Door, ReceiverFacts, Shared
from vnsmail.model import Envelope, IPAddress, Owner
from vnsmail.queue.body import INCOMING

NOW = 1_800_000_000.0
PEER: IPAddress = ipaddress.ip_address("10.77.0.21")
GREETING = b"220 alpha.example ESMTP vnsmail\r\n"
TO_ANN = b"EHLO mx1.north.example\r\nMAIL FROM:<bob@north.example>\r\n"
TO_ANN += b"RCPT TO:<ann@alpha.example>\r\nDATA\r\n"
HELLO_TLS = TO_ANN


def facts_in(folder: Path, **changes: Any) -> ReceiverFacts:
    (folder / INCOMING).mkdir(exist_ok=True)
    facts = ReceiverFacts(
        owner=Owner("alpha.example"),
        name="alpha.example",
        policy=AcceptPolicy.of(["alpha.example"], ["ann", "cy"]),
        folder=folder,
        max_message_size=10_000_000,
        max_recipients=100,
        command_timeout=300.0,
    )
    return replace(facts, **changes)


class Kept:
    """Keeps messages in memory; fails, or waits, if told to."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.messages: list[bytes] = []
        self.error: Exception | None = None
        self.begun = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def __call__(self, envelope, body):
        self.begun.set()
        await self.may_go_on.wait()
        if self.error is not None:
            body.discard()
            raise self.error
        self.messages.append(b"".join(body.chunks()))
        self.envelopes.append(envelope)
        body.discard()

    @property
    def bodies(self) -> list[bytes]:
        """The messages as they were sent, without the trace header."""
        return [without_trace(message) for message in self.messages]


def without_trace(message: bytes) -> bytes:
    """Return a message without its first field, which must be a Received one."""
    assert message.startswith(b"Received: ")
    at = 0
    while True:
        at = message.index(b"\r\n", at) + 2
        if message[at : at + 1] not in {b" ", b"\t"}:
            return message[at:]


class Names:
    """Knows the names of addresses; is slow if told to."""

    def __init__(self) -> None:
        self.names = {PEER: "mx1.north.example"}
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.error: Exception | None = None

    async def __call__(self, address):
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return self.names.get(address)


class Client:
    """The other end of a session."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.seen = b""

    async def say(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def hear(self, until: bytes) -> bytes:
        """Read until something was said; return all up to its end."""
        while until not in self.seen:
            data = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
            if not data:
                message = f"ended before {until!r}: {self.seen!r}"
                raise EOFError(message)
            self.seen += data
        end = self.seen.index(until) + len(until)
        heard, self.seen = self.seen[:end], self.seen[end:]
        return heard

    async def rest(self) -> bytes:
        """Read until the server ends the connection."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionResetError):
            while data := await loop.sock_recv(self.sock, 65536):
                self.seen += data
        heard, self.seen = self.seen, b""
        return heard

    async def ask(self, line: str) -> bytes:
        """Say a command and return the reply."""
        await self.say(line.encode() + b"\r\n")
        heard = b""
        while True:
            got = await self.hear(b"\r\n")
            heard += got
            if got[3:4] != b"-":
                return heard

    def hang_up(self) -> None:
        self.sock.close()


class TlsClient:
    """A client within TLS, on top of another one's socket."""

    def __init__(self, client: Client, context: ssl.SSLContext) -> None:
        self._client = client
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out)
        self._seen = b""

    @property
    def certificate(self) -> bytes | None:
        return self._tls.getpeercert(binary_form=True)

    async def shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._client.say(self._out.read())
                await self._more()
            else:
                await self._client.say(self._out.read())
                return

    async def say(self, data: bytes) -> None:
        for at in range(0, len(data), 16_384):
            self._tls.write(data[at : at + 16_384])
            await self._client.say(self._out.read())

    async def hear(self, until: bytes) -> bytes:
        while until not in self._seen:
            if not await self._read():
                message = f"ended before {until!r}: {self._seen!r}"
                raise EOFError(message)
        end = self._seen.index(until) + len(until)
        heard, self._seen = self._seen[:end], self._seen[end:]
        return heard

    async def rest(self) -> bytes:
        while await self._read():
            pass
        return self._seen

    async def _read(self) -> bool:
        while True:
            try:
                data = self._tls.read(65536)
            except ssl.SSLWantReadError:
                if not await self._more():
                    return False
            except ssl.SSLZeroReturnError:
                return False
            else:
                self._seen += data
                return bool(data)

    async def _more(self) -> bool:
        data = await asyncio.get_running_loop().sock_recv(self._client.sock, 65536)
        self._in.write(data)
        return bool(data)


class HeldExecutor(Executor):
    """Holds the first thing it is given until it is told to go on."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._future: Future[object] = Future()
        self.held: Callable[[], object] | None = None

    def submit(self, function, /, *args, **kwargs):
        if self.held is not None:
            return self._executor.submit(function, *args, **kwargs)
        self.held = lambda: function(*args, **kwargs)
        return self._future

    def go_on(self) -> None:
        assert self.held is not None
        try:
            self._future.set_result(self.held())
        except Exception as error:  # noqa: BLE001  as executors do
            self._future.set_exception(error)


class House:
    """An owner that receives, without a network."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.kept = Kept()
        self.names = Names()
        self.executor = ThreadPoolExecutor(2)
        self.shared = Shared(
            facts_in(folder, **changes),
            self.kept,
            self.names,
            self.executor,
            lambda: NOW,
            # What needs nothing but the disk goes the short way, as in a worker.
            keep_soon=lambda *message: asyncio.ensure_future(self.kept(*message)),
        )
        self.clients: list[Client] = []

    async def connect(
        self, peer: IPAddress | None = PEER, door: Door = MX
    ) -> tuple[Client, Receiver]:
        here, there = socket.socketpair()
        here.setblocking(False)
        _, receiver = await asyncio.get_running_loop().connect_accepted_socket(
            lambda: Receiver(self.shared, peer, door), here
        )
        client = Client(there)
        self.clients.append(client)
        return client, receiver

    async def greeted(self, peer: IPAddress | None = PEER) -> Client:
        client, _ = await self.connect(peer)
        await client.hear(GREETING)
        return client

    @property
    def incoming(self) -> list[str]:
        return [path.name for path in (self.folder / INCOMING).iterdir()]

    async def written(self) -> None:
        """Wait until nothing is on its way to the disk, or from it."""
        for _ in range(10):
            await asyncio.sleep(0)
        self.executor.shutdown()

    async def quiet(self) -> None:
        """Wait until nothing is under way for any session that is over."""
        while self.shared.tasks:
            await asyncio.wait(self.shared.tasks)

    async def close(self) -> None:
        self.kept.may_go_on.set()
        self.names.may_answer.set()
        for receiver in list(self.shared.receivers):
            receiver.abort()
            await receiver.gone
        await self.quiet()
        for client in self.clients:
            client.hang_up()
        self.executor.shutdown()
