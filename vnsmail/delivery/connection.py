"""One SMTP connection to a hop, from the owner's own address.

Rules of this file: the socket comes from the broker, bound; after connect the kernel
is asked what it is bound to, and a connection from any other address is closed before
a byte is sent. What is said is decided by smtp/client_session.py; here bytes and time
pass. One coroutine uses a connection at a time; if it is cancelled in the middle, the
connection is cut, so that nobody takes up half a dialogue.
"""

import asyncio
import errno
import ipaddress
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Protocol, TypeAlias, cast

from vnsmail.broker.client import SourceSocket
from vnsmail.delivery import outcomes as say
from vnsmail.delivery.facts import AgentFacts
from vnsmail.delivery.route import Hop
from vnsmail.errors import SourceUnavailable, VnsmailError
from vnsmail.model import Contact, Family, Outcome
from vnsmail.queue.body import Body
from vnsmail.settings import SmtpSettings
from vnsmail.smtp.client_session import (
    BodyWanted,
    ClientSession,
    Disconnected,
    Event,
    NoTls,
    NotSignedIn,
    Ready,
    Refused,
    StartTls,
    Transaction,
    TransactionFinished,
    Wish,
)
from vnsmail.smtp.replies import Reply
from vnsmail.tls.client import ClientTls, verified
from vnsmail.tls.layer import CertificateUnusable, TlsFailed, TlsLayer
from vnsmail.tls.policy import Check, Step

ENGINE_TRIES, ENGINE_PAUSE = 20, 0.5
"""How often an engine that does not answer is tried again, and seconds between: it may
be starting."""

QUIT_TIMEOUT = 5.0
"""Seconds a remote has to answer QUIT; the mail is safe, so waiting gains nothing."""

SOURCE_ERRORS = {errno.EADDRNOTAVAIL, errno.EINVAL}
"""What connect(2) on a bound socket says when its address is gone from the machine
(EINVAL for IPv4), or when all ports of the address are in use (ip(7))."""


SUBMISSIONS = 465
"""Port where TLS is spoken from the beginning (RFC 8314 section 3.3)."""

LOST = "4.4.2"
"""Status of a reply that no remote gave: the connection broke (RFC 3463: X.4.2)."""


PLAIN = Step(Check.PLAIN, required=False)

Told: TypeAlias = Callable[[Hop, Step, TlsFailed | None], None]


class Sockets(Protocol):
    """Where sockets come from; vnsmail.broker.client.SocketClient in a worker."""

    async def connectable(self, owner: str, family: Family) -> SourceSocket: ...

    async def engine(self, owner: str) -> SourceSocket: ...

    async def store(self, owner: str, path: str) -> SourceSocket: ...


class ConnectionFailed(VnsmailError):
    """No connection on which mail could be sent; ``outcome`` says why."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome

    def __str__(self) -> str:
        return f"cannot send by {self.outcome.remote}: {self.outcome.text}"


class SignInFailed(ConnectionFailed):
    """A relay does not let the owner sign in."""


def _signing(hop: Hop, reply: Reply) -> Outcome:
    user = hop.login.user if hop.login else ""
    text = (
        f"the relay does not let {user!r} sign in: {reply.code} {reply.enhanced} "
        f"{reply.text}; see `vnsmail host relay`"
    )
    return say.not_signed_in(text, str(hop))


@dataclass(frozen=True, slots=True)
class Result:
    """What a transaction came to."""

    replies: dict[str, Reply]
    """The last reply for each recipient."""
    body_sent: bool
    """The body was sent whole to a remote that listened; if the connection broke, who
    knows (RFC 1047)."""
    contact: Contact


class Connection(asyncio.Protocol):
    """A connection; made by ``connect``, and ready for ``send`` then."""

    def __init__(
        self,
        hop: Hop,
        helo: str,
        timeouts: SmtpSettings,
        on_gone: Callable[["Connection"], None],
        step: Step = PLAIN,
        tls: ClientTls | None = None,
    ) -> None:
        self.hop = hop
        self._step = step
        self._tls = tls or ClientTls()
        self._layer: TlsLayer | None = None
        self._broken_tls: TlsFailed | None = None
        self.source = ""
        """Its own address, as getsockname(2) gave it."""
        self.contact = Contact(
            *("", 0, helo, hop.name),
            hop.path or str(hop.address),
            0 if hop.path else hop.port or timeouts.port,
        )
        self._body_at = 0.0
        self.transactions = 0
        self.gone = asyncio.get_running_loop().create_future()
        self._timeouts = timeouts
        self._on_gone = on_gone
        self._session = ClientSession(
            helo,
            _wish(step),
            lmtp=hop.lmtp,
            implicit=hop.port == SUBMISSIONS and step.check is not Check.PLAIN,
            sign_in=hop.login,
            plain=step.check in {Check.NAME, Check.DANE},
        )
        self._transport: asyncio.Transport | None = None
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._may_write = True
        self._ending = False
        """We are ending it; ``gone`` is still to come."""
        self._silence = _Silence(self.abort)

    @property
    def usable(self) -> bool:
        """Whether another transaction can begin."""
        return not (
            self._ending
            or self.gone.done()
            or self._session.closing
            or self._events  # the remote said something that nobody asked for
        )

    # What the owner of the connection does ---------------------------------------

    async def ready(self) -> None:
        """Wait for the greeting, for TLS, and for the answer to EHLO.

        Raises:
            SignInFailed: it does not let us sign in.
            ConnectionFailed: the remote does not want us, or is gone.
            TlsFailed: there is no TLS with it, or not with the one that is meant.
        """
        event = await self._next(self._timeouts.command_timeout)
        shaken = isinstance(event, StartTls)
        if shaken:
            await self._shake_hands()
            event = await self._next(self._timeouts.command_timeout)
        match event:
            case Ready():
                self.contact = replace(self.contact, dsn=self._session.offers_dsn)
                return
            case NoTls(text=text):
                raise TlsFailed(text, "starttls-not-supported")
            case NotSignedIn(reply=reply):
                raise SignInFailed(_signing(self.hop, reply))
            case Refused(reply=reply):
                outcome = say.unwelcome(
                    say.from_reply(reply, str(self.hop), self.source)
                )
                if outcome.reply_code < 400:
                    outcome = say.connection_failed(reply.text, str(self.hop))
            case event:
                outcome = say.connection_failed(self._broken(event), str(self.hop))
        raise ConnectionFailed(outcome)

    async def send(self, transaction: Transaction, body: Body) -> Result:
        """Carry out one transaction.

        Raises:
            QueueUnavailable: the body cannot be read; the connection is cut.
            SmtpProtocolError: the body cannot be sent; the connection is cut.
        """
        self.transactions += 1
        began = perf_counter()
        self._body_at = 0.0
        try:
            event, body_sent = await self._dialogue(transaction, body)
        except BaseException:
            self.abort()
            raise
        contact = self._contact(began)
        if isinstance(event, TransactionFinished):
            replies = {to: self._explained(r) for to, r in event.recipients.items()}
            return Result(replies, body_sent and event.answered, contact)
        broken = Reply(421, (self._broken(event),), LOST)
        replies = dict.fromkeys(transaction.recipients, broken)
        return Result(replies, body_sent, contact)

    async def _shake_hands(self) -> None:
        """Put TLS below the session, and see who answers.

        Raises:
            TlsFailed: nothing was said within it.
        """
        try:
            layer = self._layer = self._tls.layer(self._step, self.hop.name)
        except CertificateUnusable as error:
            raise TlsFailed(str(error)) from None
        self._silence.limit(self._timeouts.handshake_timeout)
        self._write_out()
        while not (layer.established or self._broken_tls or self.gone.done()):
            await self._wait()
        self._silence.stop()
        if self._broken_tls is not None:
            raise self._broken_tls
        if not layer.established:
            what = self._silence.words if self._silence.was else "connection lost"
            problem = f"{what} in the handshake"
            raise TlsFailed(problem)
        proven = verified(layer, self._step)
        self.contact = replace(
            self.contact,
            tls=f"{layer.version} {layer.cipher}",
            tls_verified=proven or "no",
        )
        self._session.tls_established()
        self._flush()

    def _contact(self, began: float) -> Contact:
        """Return the facts of this transaction; who made the connection tells of it."""
        now = perf_counter()
        contact = replace(
            self.contact,
            data=now - self._body_at if self._body_at else 0.0,
            total=now - began + self.contact.connect + self.contact.hello,
        )
        if self.contact.connect or self.contact.hello:
            self.contact = replace(self.contact, connect=0.0, hello=0.0)
        return contact

    def quit(self) -> None:
        """Say QUIT and let the connection end; nobody waits for it but ``gone``."""
        if self.gone.done():
            return
        if not self.usable:
            self.abort()
            return
        self._ending = True
        self._session.quit()
        self._silence.limit(QUIT_TIMEOUT)
        self._flush()

    def end_unsafe(self) -> None:
        """End a connection that is not to be used, as its TLS is not good."""
        if self._layer is None:
            self.quit()
        else:
            self._ending = True
            self._write_out()
            if self._transport is not None:
                self._transport.close()

    def abort(self) -> None:
        """Cut the connection now."""
        self._ending = True
        if self._transport is not None:
            self._transport.abort()

    # What the event loop does ------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._silence.heard()
        if self._layer is not None:
            was = self._layer.established
            try:
                data = self._layer.receive(data)
            except TlsFailed as error:
                self._broken_tls = error
                self._write_out()
                if was:
                    self.abort()
                self._wake()
                return
            self._write_out()
            if not was and self._layer.established:
                self._wake()
        if data:
            self._session.receive_data(data)
        self._flush()

    def eof_received(self) -> None:
        self._session.receive_eof()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._session.receive_eof()
        self._collect()
        self._may_write = True
        if not self.gone.done():
            self.gone.set_result(None)
        self._silence.end()
        self._wake()
        self._on_gone(self)

    def pause_writing(self) -> None:
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        self._silence.heard()
        self._wake()

    # Inside --------------------------------------------------------------------------

    def _flush(self) -> None:
        self._collect()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if data := self._session.data_to_send():
            if self._layer is not None:
                self._layer.send(data)
            else:
                transport.write(data)
        if self._layer is not None:
            self._write_out()
        if self._session.closing:
            transport.close()

    def _write_out(self) -> None:
        """Write what the layer of TLS has to say."""
        transport = self._transport
        if self._layer is None or transport is None or transport.is_closing():
            return
        if data := self._layer.outgoing():
            transport.write(data)

    def _collect(self) -> None:
        while (event := self._session.next_event()) is not None:
            self._events.append(event)
        if self._events:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _next(self, seconds: float) -> Event:
        """Return the next event; silence of that many seconds cuts the connection."""
        self._silence.limit(seconds)
        while not self._events:
            if self.gone.done():
                return Disconnected("the connection is closed")
            await self._wait()
        self._silence.stop()
        return self._events.popleft()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def _dialogue(
        self, transaction: Transaction, body: Body
    ) -> tuple[Event, bool]:
        self._session.begin(transaction)
        self._collect()
        if not self._events:
            # Else the body goes along, in one piece with the envelope.
            self._flush()
        event = await self._next(self._timeouts.command_timeout)
        if not isinstance(event, BodyWanted):
            return event, False
        body_sent = await self._send_body(body)
        event = await self._next(self._timeouts.data_timeout)
        if not body_sent and self._session.closing:
            # The rest of the body would be taken for commands.
            self.abort()
        return event, body_sent

    async def _send_body(self, body: Body) -> bool:
        """Send a body; False if the remote had its last word before the end."""
        self._body_at = perf_counter()
        self._silence.limit(self._timeouts.command_timeout)
        chunks = body.chunks()
        while True:
            # The remote may have its last word while a file is read, or while we wait.
            chunk = await _next_chunk(body, chunks)
            while not (self._may_write or self._events or self.gone.done()):
                await self._wait()
            if self._events or self.gone.done():
                return False
            if not chunk:
                break
            self._session.send_body(chunk)
            if body.size > len(chunk):
                self._flush()
        self._session.finish_body()
        self._flush()
        return True

    def _explained(self, reply: Reply) -> Reply:
        if self._silence.was and reply.enhanced == LOST:
            return Reply(reply.code, (self._silence.words,), LOST)
        return reply

    def _broken(self, event: Event) -> str:
        if self._silence.was:
            return self._silence.words
        return event.text if isinstance(event, Disconnected) else "unexpected answer"


class _Silence:
    """Calls back when nothing was heard for some time; one timer for many waits."""

    def __init__(self, on_silence: Callable[[], None]) -> None:
        self.was = 0.0
        """Seconds of the silence that was too long; 0 if none was."""
        self._on_silence = on_silence
        self._loop = asyncio.get_running_loop()
        self._since = 0.0
        self._limit = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0

    @property
    def words(self) -> str:
        return f"no answer within {self.was:g} seconds"

    def limit(self, seconds: float) -> None:
        """From now on, a silence of that many seconds is too long."""
        self._limit = seconds
        self._since = self._loop.time()
        if self._timer is None or self._rings_at > self._since + seconds:
            self._ring_at(self._since + seconds)

    def heard(self) -> None:
        self._since = self._loop.time()

    def stop(self) -> None:
        """Nothing is waited for; the timer stays, as the next wait comes soon."""
        self._limit = 0.0

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _ring_at(self, when: float) -> None:
        self.end()
        self._timer = self._loop.call_at(when, self._ring)
        self._rings_at = when

    def _ring(self) -> None:
        self._timer = None
        if not self._limit:
            return
        if self._since + self._limit > self._loop.time():
            self._ring_at(self._since + self._limit)
        else:
            self.was = self._limit
            self._on_silence()


async def _next_chunk(body: Body, chunks: Iterator[bytes]) -> bytes:
    """Return the next chunk, empty at the end; a file is not read in the event loop."""
    if body.file is None:
        return next(chunks, b"")
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, next, chunks, b"")


async def connect(
    hop: Hop,
    facts: AgentFacts,
    sockets: Sockets,
    settings: SmtpSettings,
    on_gone: Callable[[Connection], None],
    tls: ClientTls | None = None,
    told: Told | None = None,
) -> Connection:
    """Connect to a hop in the first way of ``hop.tls`` that works.

    Args:
        hop: where to, and how it is to be protected.
        facts: who sends.
        sockets: where the bound socket comes from.
        settings: port and timeouts.
        on_gone: see ``connect_once``.
        tls: what TLS is made with.
        told: called with each step and how it failed; None if it did not.

    Raises:
        SourceUnavailable, BrokerGone, BrokerRefused, ConnectionFailed: see
            ``connect_once``.
    """
    failure: TlsFailed | None = None
    for step in hop.tls.steps:
        try:
            connection = await connect_once(
                hop, facts, sockets, settings, on_gone, step, tls
            )
        except TlsFailed as error:
            failure = failure or error
            if told is not None:
                told(hop, step, error)
            continue
        if told is not None and step.check is not Check.PLAIN:
            told(hop, step, None)
        return connection
    text = f"no safe connection (TLS): {failure}"
    outcome = say.no_tls(text, str(hop))
    raise ConnectionFailed(outcome)


def _wish(step: Step) -> Wish:
    if step.check is Check.PLAIN:
        return Wish.NEVER
    return Wish.ALWAYS if step.required else Wish.OFFERED


async def connect_once(
    hop: Hop,
    facts: AgentFacts,
    sockets: Sockets,
    settings: SmtpSettings,
    on_gone: Callable[[Connection], None],
    step: Step,
    tls: ClientTls | None = None,
) -> Connection:
    """Connect to a hop, and return when it is ready for mail.

    Args:
        hop: where to.
        facts: who sends.
        sockets: where the bound socket comes from.
        settings: port and timeouts.
        on_gone: called once when the connection has ended, if there was one: also if
            it failed here.
        step: how it is to be protected.
        tls: what TLS is made with.

    Raises:
        SourceUnavailable: the owner's own address cannot be used. Nothing was sent,
            and no other address may be tried instead.
        BrokerGone, BrokerRefused: there is no socket.
        ConnectionFailed: the hop does not answer, or does not want us.
        TlsFailed: it cannot be protected so.
    """
    began = perf_counter()
    source = await _source(facts.owner, hop, sockets)
    connection = Connection(hop, facts.name, settings, on_gone, step, tls)
    try:
        port = 0
        if not (hop.path or hop.engine):
            await _connect(source, hop, settings)
            connection.source, port = checked_source(source)
        connected = perf_counter()
        connection.contact = replace(
            connection.contact, source=connection.source, source_port=port
        )
        await asyncio.get_running_loop().create_connection(
            lambda: connection, sock=source.sock
        )
    except TimeoutError:
        source.sock.close()
        problem = "no answer to the connection attempt"
        raise ConnectionFailed(say.connection_failed(problem, str(hop))) from None
    except OSError as error:
        source.sock.close()
        if source.source is not None and error.errno in SOURCE_ERRORS:
            raise SourceUnavailable(
                facts.owner, source.source, error.errno or errno.EADDRNOTAVAIL
            ) from None
        # Not error.strerror: asyncio puts a sentence of its own there.
        problem = os.strerror(error.errno).lower() if error.errno else str(error)
        raise ConnectionFailed(say.connection_failed(problem, str(hop))) from None
    except BaseException:
        source.sock.close()
        raise
    try:
        await connection.ready()
        connection.contact = replace(
            connection.contact,
            connect=connected - began,
            hello=perf_counter() - connected,
        )
    except ConnectionFailed:
        connection.quit()
        raise
    except TlsFailed:
        connection.end_unsafe()
        raise
    except BaseException:
        connection.abort()
        raise
    return connection


async def _source(owner: str, hop: Hop, sockets: Sockets) -> SourceSocket:
    """Return a socket for a hop; an engine may be starting at this moment.

    Raises:
        SourceUnavailable, BrokerGone, BrokerRefused: there is no socket.
        ConnectionFailed: the engine, or the store, does not run.
    """
    if hop.path:
        try:
            return await sockets.store(owner, hop.path)
        except OSError as error:
            problem = os.strerror(error.errno).lower() if error.errno else str(error)
            outcome = say.connection_failed(problem, str(hop))
            raise ConnectionFailed(outcome) from None
    if not hop.engine:
        return await sockets.connectable(owner, hop.family)
    for left in range(ENGINE_TRIES, -1, -1):
        try:
            return await sockets.engine(owner)
        except SourceUnavailable as error:
            if not left:
                outcome = say.connection_failed(error.reason, str(hop))
                raise ConnectionFailed(outcome) from None
        await asyncio.sleep(ENGINE_PAUSE)
    raise AssertionError


async def _connect(source: SourceSocket, hop: Hop, settings: SmtpSettings) -> None:
    source.sock.setblocking(False)
    async with asyncio.timeout(settings.connect_timeout):
        await asyncio.get_running_loop().sock_connect(
            source.sock, (str(hop.address), hop.port or settings.port)
        )


def checked_source(source: SourceSocket) -> tuple[str, int]:
    """Return the address and port that a connected socket has by what the kernel says.

    Raises:
        SourceUnavailable: it is not the one the broker bound.
    """
    name = source.sock.getsockname()
    actual = ipaddress.ip_address(name[0])
    if source.source is not None and actual != ipaddress.ip_address(source.source):
        raise SourceUnavailable(
            source.owner,
            source.source,
            errno.EADDRNOTAVAIL,
            f"the kernel chose {actual} instead",
        )
    return str(actual), int(name[1])
