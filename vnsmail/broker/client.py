"""A worker's way to get a socket; it has no other.

Rules of this file: a socket is handed to the one who asked, or closed; whoever waits
is answered, or told BrokerGone; a refusal is never answered with another socket.
"""

import asyncio
import contextlib
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from vnsmail.broker import protocol
from vnsmail.channel import Channel, ChannelClosed, ChannelMisused, close_all
from vnsmail.errors import BrokerGone, BrokerRefused, SourceUnavailable
from vnsmail.log import logger
from vnsmail.model import MACHINE, Family

ANSWER_WITHIN = 30.0
"""Seconds. The broker waits for nothing, so an answer takes milliseconds; one that does
not come by then is as good as none, and the message in hand is tried again later."""

DOMAINS = {4: socket.AF_INET, 6: socket.AF_INET6}

log = logger("broker.client")


@dataclass(frozen=True, slots=True)
class SourceSocket:
    """A TCP socket to connect, with what it will be seen as."""

    sock: socket.socket
    owner: str
    source: str | None
    """The address it is bound to; None if the kernel is to choose (the machine's)."""


@dataclass(slots=True, eq=False)
class _Question:
    """A request under way."""

    request: protocol.WorkerRequest
    asked_at: float
    answer: asyncio.Future[tuple[protocol.WorkerAnswer, int]]
    """The answer with its descriptor, -1 where there is none."""


class SocketClient:
    """Asks the broker for sockets. Use it in one event loop."""

    def __init__(self) -> None:
        self._conversation: _Conversation | None = None

    def replace_channel(self, channel: Channel) -> None:
        """Use this channel from now on; who waits on an earlier one is told so."""
        self.close()
        self._conversation = _Conversation(channel)

    def close(self) -> None:
        """Tell everybody who waits that there is no broker, and ask no more."""
        if self._conversation is not None:
            self._conversation.end()
            self._conversation = None

    async def connectable(self, owner: str, family: Family) -> SourceSocket:
        """Return a TCP socket bound to the owner's address of that family.

        Raises:
            SourceUnavailable: no such address, or it cannot be used now. There is no
                other to be tried instead.
            BrokerRefused: this worker does not own ``owner``.
            BrokerGone: there is no broker now.
        """
        version: Literal[4, 6] = 4 if family is Family.IPV4 else 6
        answer, fd = await self._ask(
            lambda number: protocol.OpenConnectable(number, owner, version)
        )
        source = _source(answer, owner, f"IPv{version}")
        return SourceSocket(_stream(fd, DOMAINS[version]), owner, source)

    async def listener(self, owner: str, address: str, port: int) -> socket.socket:
        """Return a TCP socket listening on an address of the owner.

        Raises:
            OSError: EADDRINUSE, somebody else listens there.
            SourceUnavailable: the address cannot be used now.
            BrokerRefused: this worker does not own ``owner``, or not that address, or
                the port is not one to listen on.
            BrokerGone: there is no broker now.
        """
        answer, fd = await self._ask(
            lambda number: protocol.OpenListener(number, owner, address, port)
        )
        if isinstance(answer, protocol.Unavailable) and (
            answer.errno == errno.EADDRINUSE
        ):
            raise OSError(answer.errno, answer.reason)
        _source(answer, owner, address)
        return _stream(fd, DOMAINS[6 if ":" in address else 4])

    async def resolver(
        self, transport: Literal["udp", "tcp"], server: str, owner: str = ""
    ) -> socket.socket:
        """Return a socket connected, or connecting, to port 53 of a name server.

        With an owner, the server is one of its own and is asked from its address.

        Raises:
            SourceUnavailable: there is no way to it now.
            BrokerRefused: it is not one of the name servers configured, or of the owner.
            BrokerGone: there is no broker now.
        """
        answer, fd = await self._ask(
            lambda number: protocol.OpenResolver(number, transport, server, owner)
        )
        _source(answer, owner or MACHINE, server)
        kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
        return _socket(fd, DOMAINS[6 if ":" in server else 4], kind)

    async def engine(self, owner: str) -> SourceSocket:
        """Return a Unix socket on which the owner's engine speaks SMTP.

        Raises:
            SourceUnavailable: its engine does not run now.
            BrokerRefused: this worker does not own ``owner``, or it has no engine.
            BrokerGone: there is no broker now.
        """
        answer, fd = await self._ask(lambda number: protocol.OpenEngine(number, owner))
        _source(answer, owner, "its engine")
        sock = _socket(fd, socket.AF_UNIX, socket.SOCK_STREAM)
        return SourceSocket(sock, owner, None)

    async def store(self, owner: str, path: str) -> SourceSocket:
        """Return a Unix socket connected to a mail store of this machine.

        Raises:
            OSError: nobody listens there, or not for us.
            BrokerRefused: this worker does not own ``owner``, or it is not a store of
                its settings.
            BrokerGone: there is no broker now.
        """
        answer, fd = await self._ask(
            lambda number: protocol.OpenStore(number, owner, path)
        )
        if isinstance(answer, protocol.Unavailable):
            raise OSError(answer.errno, answer.reason)
        return SourceSocket(_stream(fd, socket.AF_UNIX), owner, None)

    async def _ask(
        self, request: Callable[[int], protocol.WorkerRequest]
    ) -> tuple[protocol.WorkerAnswer, int]:
        conversation = self._conversation
        if conversation is None:
            raise BrokerGone
        waiter = conversation.ask(request)
        try:
            answer, fd = await waiter
        except asyncio.CancelledError:
            # Answered and cancelled in the same turn of the loop: nobody else has it.
            if waiter.done() and not waiter.cancelled() and not waiter.exception():
                close_all([fd for fd in waiter.result()[1:] if fd >= 0])
            raise
        if isinstance(answer, protocol.Refused):
            raise BrokerRefused(answer.kind, answer.text)
        return answer, fd


class _Conversation:
    """What is said over one channel. Requests of one loop turn go in one message."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._last_id = 0
        self._unsent: deque[_Question] = deque()
        self._asked = asyncio.Event()
        self._waiting: dict[int, _Question] = {}
        """By id, so the longest waiting is the first."""
        self._watch: asyncio.TimerHandle | None = None
        self._over = False
        self._task = asyncio.ensure_future(self._run())
        # Not in _run: a task that is cancelled before its first step never runs.
        self._task.add_done_callback(self._ended)

    def ask(
        self, request: Callable[[int], protocol.WorkerRequest]
    ) -> asyncio.Future[tuple[protocol.WorkerAnswer, int]]:
        """Put a request on its way, and return what will hold the answer."""
        if self._over:
            raise BrokerGone
        self._last_id += 1
        loop = asyncio.get_running_loop()
        question = _Question(request(self._last_id), loop.time(), loop.create_future())
        self._waiting[self._last_id] = question
        self._unsent.append(question)
        self._asked.set()
        if self._watch is None:
            self._watch = loop.call_later(ANSWER_WITHIN, self._give_up)
        return question.answer

    def end(self) -> None:
        """Tell all who wait that nothing comes any more."""
        self._over = True
        self._task.cancel()
        if self._watch is not None:
            self._watch.cancel()
        for question in self._waiting.values():
            _fail(question)
        self._waiting.clear()
        self._unsent.clear()

    def _ended(self, _: asyncio.Task[None]) -> None:
        """Close the channel, now that the loop does not watch its descriptor."""
        self.end()
        self._channel.close()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(self._send())
            await self._receive()
            sending.cancel()

    async def _send(self) -> None:
        with contextlib.suppress(ChannelClosed):
            while True:
                await self._asked.wait()
                self._asked.clear()
                while batch := self._next_batch():
                    await self._channel.send(protocol.encode_batch(batch))

    def _next_batch(self) -> list[protocol.WorkerRequest]:
        """Take requests off the queue; not those whose asker has gone away."""
        batch: list[protocol.WorkerRequest] = []
        while self._unsent and len(batch) < protocol.MAX_BATCH:
            question = self._unsent.popleft()
            if question.answer.done():
                self._waiting.pop(question.request.id, None)
            else:
                batch.append(question.request)
        return batch

    async def _receive(self) -> None:
        try:
            while True:
                try:
                    payload, fds = await self._channel.receive()
                except ChannelMisused:
                    self._lost()
                else:
                    self._take(payload, fds)
        except ChannelClosed:
            log.warning("broker.gone")
        except protocol.Malformed as error:
            log.warning("broker.misspoke", reason=str(error))

    def _take(self, payload: bytes, fds: Sequence[int]) -> None:
        """Give the answers of a message to those who asked."""
        left = deque(fds)
        try:
            for answer in protocol.decode_answers(payload):
                fd = left.popleft() if isinstance(answer, protocol.Opened) else -1
                question = self._waiting.pop(answer.id, None)
                if question is not None and not question.answer.done():
                    question.answer.set_result((answer, fd))
                elif fd >= 0:
                    os.close(fd)
        except IndexError:
            message = "fewer descriptors than sockets"
            raise protocol.Malformed(message) from None
        finally:
            close_all(left)

    def _lost(self) -> None:
        """Fail all that wait: sockets came that this process had no room for.

        Whose they were is not known, for a message that was cut off is not kept.
        """
        reason = "this process has too many open files"
        for number, question in self._waiting.items():
            if not question.answer.done():
                lost = protocol.Unavailable(number, errno.EMFILE, reason, None)
                question.answer.set_result((lost, -1))
        self._waiting.clear()

    def _give_up(self) -> None:
        """Fail what waited too long; a late answer finds nobody and is closed."""
        loop = asyncio.get_running_loop()
        self._watch = None
        for number, question in list(self._waiting.items()):
            due = question.asked_at + ANSWER_WITHIN
            if due > loop.time():
                self._watch = loop.call_at(due, self._give_up)
                break
            del self._waiting[number]
            _fail(question)
        self._unsent = deque(q for q in self._unsent if not q.answer.done())


def _fail(question: _Question) -> None:
    if not question.answer.done():
        question.answer.set_exception(BrokerGone())


def _source(answer: protocol.WorkerAnswer, owner: str, wanted: str) -> str | None:
    """Return the address of an opened socket.

    Raises:
        SourceUnavailable: it was not opened.
        BrokerRefused: it was refused.
    """
    match answer:
        case protocol.Opened(source=source):
            return source
        case protocol.Unavailable():
            address = answer.source or wanted
            raise SourceUnavailable(owner, address, answer.errno, answer.reason)
        case protocol.Refused():
            raise BrokerRefused(answer.kind, answer.text)
        case _:
            assert_never(answer)


def _stream(fd: int, family: socket.AddressFamily) -> socket.socket:
    return _socket(fd, family, socket.SOCK_STREAM)


def _socket(
    fd: int, family: socket.AddressFamily, kind: socket.SocketKind
) -> socket.socket:
    # Family and type are given, else four system calls a socket would find them out.
    sock = socket.socket(family, kind, fileno=fd)
    sock.setblocking(False)
    return sock
