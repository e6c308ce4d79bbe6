"""One SMTP session with a client: bytes between its transport and the ServerSession.

    question of the session          answered
    Connected                        by the number of sessions that are open
    MailRequested, DataRequested     yes
    RecipientRequested               by the owner's AcceptPolicy
    MessageReceived                  when ``keep`` returned: 250 means durable

Rules of this file: nothing is decided here but who may talk at all; no message is
acknowledged that ``keep`` did not keep; nothing more is read while a message is being
kept, a body is on its way to the disk, or the client does not read its replies. All
that it needs is handed to it, so it serves a worker and a test's remote alike.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, cast

from vnsmail.errors import QueueUnavailable, VnsmailError
from vnsmail.inbound.accept import AcceptPolicy, Taken
from vnsmail.inbound.admission import (
    MAX_SESSIONS,
    MAX_SESSIONS_PER_PEER,
    Admission,
)
from vnsmail.inbound.deadline import Deadline
from vnsmail.inbound.spool import Spool
from vnsmail.log import logger
from vnsmail.message.headers import MAX_HOPS, count_received
from vnsmail.message.trace import Arrival, received
from vnsmail.model import Envelope, IPAddress, Owner
from vnsmail.queue.body import Body
from vnsmail.queue.envelope import ENTROPY_BYTES, new_id
from vnsmail.smtp.address import Mailbox
from vnsmail.smtp.replies import Reply
from vnsmail.smtp.server_session import (
    BodyReceived,
    Connected,
    DataRequested,
    Event,
    MailRequested,
    MessageReceived,
    RecipientRequested,
    ServerConfig,
    ServerSession,
    SessionEnded,
    TransactionAborted,
)

REVERSE_TIME = 2.0
"""Seconds that the look-up of a client's name may take. It goes on beside the dialogue,
so it delays only a message that is whole sooner, and that one by no more."""

LINGER = 10.0
"""Seconds that a client gets to read the last reply before the connection is cut."""

LATE = Reply(421, ("you took too long",), "4.4.2")
LOOP = Reply(554, ("too many hops, the message goes in a circle",), "5.4.6")
NO_ROOM = Reply(452, ("the message cannot be kept now, try again later",), "4.3.1")
TROUBLE = Reply(451, ("something is wrong here, try again later",), "4.3.0")

Keep: TypeAlias = Callable[[Envelope, Body], Awaitable[None]]
"""Makes a message durable; the body is its own from then on, also if it fails."""

ReverseName: TypeAlias = Callable[[IPAddress], Awaitable[str | None]]
"""Returns the verified name of an address (Resolver.verified_reverse_name)."""

log = logger("inbound")


@dataclass(frozen=True, slots=True)
class ReceiverFacts:
    """Who receives, what it takes, and its limits."""

    owner: Owner
    name: str
    """Given in the greeting, in the answer to EHLO and in trace headers."""
    policy: AcceptPolicy
    folder: Path
    """The owner's; large bodies are written to its incoming/ while they arrive."""
    max_message_size: int
    max_recipients: int
    command_timeout: float
    """Seconds a client gets for each command (RFC 5321 section 4.5.3.2.7)."""
    max_sessions: int = MAX_SESSIONS
    max_sessions_per_peer: int = MAX_SESSIONS_PER_PEER

    @property
    def config(self) -> ServerConfig:
        return ServerConfig(self.name, self.max_message_size, self.max_recipients)


@dataclass(slots=True)
class Shared:
    """What the sessions of one owner have in common."""

    facts: ReceiverFacts
    """Put others in its place when they change: open sessions follow, but for the name
    they greeted with and the sizes they announced."""
    keep: Keep
    reverse_name: ReverseName
    executor: Executor
    """Writes large bodies."""
    clock: Callable[[], float] = time.time
    """Seconds since the epoch."""
    admission: Admission[IPAddress | None] = field(default_factory=Admission)
    receivers: set["Receiver"] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    """What is under way for a session, be it open still or not."""

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Do something beside the sessions."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


@dataclass(slots=True)
class _Transaction:
    """A message on its way in."""

    sender: Mailbox | None
    recipients: dict[str, None] = field(default_factory=dict)
    """In the spelling of the queue, each once, in the order they came."""
    spool: Spool | None = None


class Receiver(asyncio.Protocol):
    """One session.

    Args:
        shared: what it has in common with the owner's other sessions.
        peer: where the client connects from; None over a Unix socket.
    """

    def __init__(self, shared: Shared, peer: IPAddress | None) -> None:
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the connection is lost."""
        self._shared = shared
        self._peer = peer
        self._peer_text = "local" if peer is None else str(peer)
        self._session = ServerSession(shared.facts.config)
        self._transport: asyncio.Transport | None = None
        self._deadline = Deadline(self._late)
        self._admitted = False
        self._lost = False
        self._keeping = False
        self._may_write = True
        self._may_read = True
        self._closing = False
        self._transaction = _Transaction(None)
        self._named = asyncio.Event()
        self._reverse_name: str | None = None

    def shutdown(self) -> None:
        """End the session; a message that is being kept gets its answer first."""
        self._session.shutdown()
        self._pump()

    def abort(self) -> None:
        """Cut the connection now."""
        if self._transport is not None:
            self._transport.abort()

    # What the event loop does ------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._shared.receivers.add(self)
        self._pump()

    def data_received(self, data: bytes) -> None:
        if self._session.in_body:
            self._deadline.came(len(data))
        self._session.receive_data(data)
        self._pump()

    def eof_received(self) -> bool:
        self._session.receive_eof()
        self._pump()
        # What the client sent before is still answered; _flush closes.
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._deadline.end()
        self._abandon()
        self._shared.receivers.discard(self)
        if self._admitted:
            self._shared.admission.leave(self._peer)
        self.gone.set_result(None)

    def pause_writing(self) -> None:
        self._may_write = False
        self._regulate()

    def resume_writing(self) -> None:
        self._may_write = True
        self._regulate()

    # From the session to the transport ----------------------------------------------

    def _pump(self) -> None:
        """Do all that can be done now, and write what is to be said."""
        while not self._lost and (event := self._session.next_event()) is not None:
            self._on(event)
        self._flush()

    def _flush(self) -> None:
        transport = self._transport
        if transport is None or self._lost or transport.is_closing():
            return
        if data := self._session.data_to_send():
            transport.write(data)
            self._deadline.restart(self._shared.facts.command_timeout)
        if self._session.closing:
            self._closing = True
            self._deadline.restart(LINGER)
            transport.close()
        else:
            self._regulate()

    def _regulate(self) -> None:
        """Read only while somebody can take what comes; wait only for the client."""
        transport = self._transport
        if transport is None or self._lost or transport.is_closing():
            return
        spool = self._transaction.spool
        ours = self._keeping or (spool is not None and spool.busy)
        may_read = self._may_write and not ours
        if may_read != self._may_read:
            self._may_read = may_read
            if may_read:
                transport.resume_reading()
            else:
                transport.pause_reading()
        if ours:
            self._deadline.stop()
        elif not self._deadline.running:
            self._deadline.restart(self._shared.facts.command_timeout)

    def _late(self) -> None:
        if self._closing or not self._may_write:
            # It does not read: whatever was said to it would stay here.
            self.abort()
            return
        log.info("session.late", owner=self._shared.facts.owner, peer=self._peer_text)
        self._session.shutdown(LATE)
        self._pump()

    # What the session says -------------------------------------------------------------

    def _on(self, event: Event) -> None:
        match event:
            case BodyReceived(data):
                if self._transaction.spool is not None:
                    self._transaction.spool.add(data)
            case RecipientRequested(recipient):
                self._answer_recipient(recipient)
            case MailRequested(sender):
                self._transaction = _Transaction(sender)
                self._session.accept()
            case DataRequested():
                shared = self._shared
                self._transaction.spool = Spool(
                    shared.facts.folder, shared.executor, self._regulate
                )
                self._session.accept()
            case MessageReceived():
                self._keeping = True
                transaction, self._transaction = self._transaction, _Transaction(None)
                self._shared.start(self._answer_message(event, transaction))
            case TransactionAborted() | SessionEnded():
                self._abandon()
            case Connected():
                self._answer_client()

    def _abandon(self) -> None:
        """Throw away the transaction; a message that is being kept is none any more."""
        if self._transaction.spool is not None:
            self._transaction.spool.discard()
        self._transaction = _Transaction(None)

    def _answer_client(self) -> None:
        facts = self._shared.facts
        refusal = self._shared.admission.admit(
            self._peer, facts.max_sessions, facts.max_sessions_per_peer
        )
        if refusal is not None:
            log.warning(
                "session.refused",
                owner=facts.owner,
                peer=self._peer_text,
                reason=refusal.text,
            )
            self._session.reject(refusal)
            return
        self._admitted = True
        self._shared.start(self._look_up())
        self._session.accept()

    def _answer_recipient(self, recipient: Mailbox) -> None:
        decision = self._shared.facts.policy.decide(recipient)
        if isinstance(decision, Taken):
            self._transaction.recipients[decision.address] = None
            self._session.accept()
        else:
            self._session.reject(decision)

    async def _look_up(self) -> None:
        """Find the client's name, which is a courtesy and worth no delay."""
        try:
            if self._peer is not None:
                async with asyncio.timeout(REVERSE_TIME):
                    self._reverse_name = await self._shared.reverse_name(self._peer)
        except (TimeoutError, VnsmailError):
            pass
        except Exception:  # a fault of ours in a courtesy must not cost the message
            log.exception("reverse.fault", peer=self._peer_text)
        finally:
            self._named.set()

    # A message ---------------------------------------------------------------------------

    async def _answer_message(
        self, event: MessageReceived, transaction: _Transaction
    ) -> None:
        kept: Envelope | Reply
        try:
            kept = await self._keep(event, transaction)
        except QueueUnavailable as error:
            kept = self._not_kept(error, NO_ROOM)
        except VnsmailError as error:
            kept = self._not_kept(error, TROUBLE)
        except Exception:  # one message's fault must not end the others
            log.exception("message.fault", peer=self._peer_text)
            kept = TROUBLE
        self._keeping = False
        if isinstance(kept, Reply):
            self._session.reject(kept)
        else:
            self._session.accept(f"queued as {kept.id}")
        self._pump()

    def _not_kept(self, error: VnsmailError, reply: Reply) -> Reply:
        # Why is for the log: paths and faults of this system are no client's business.
        owner = self._shared.facts.owner
        log.warning("message.not_kept", owner=owner, reason=str(error))
        return reply

    async def _keep(
        self, event: MessageReceived, transaction: _Transaction
    ) -> Envelope | Reply:
        """Keep a message; return its envelope, or the reply that refuses it."""
        spool, shared = transaction.spool, self._shared
        if spool is None:
            raise RuntimeError("a message without a body")
        await self._named.wait()
        body = await spool.finish()
        try:
            if count_received(spool.front) > MAX_HOPS:
                body.discard()
                return LOOP
            envelope = self._envelope(event, transaction)
            whole = body.prefixed(self._trace(envelope))
        except BaseException:
            body.discard()
            raise
        await shared.keep(envelope, whole)
        log.info(
            "message.accepted",
            owner=envelope.owner,
            id=envelope.id,
            sender=envelope.sender,
            recipients=len(envelope.recipients),
            size=event.size,
            peer=self._peer_text,
            helo=self._session.helo_name,
        )
        return envelope

    def _envelope(self, event: MessageReceived, transaction: _Transaction) -> Envelope:
        now = self._shared.clock()
        return Envelope(
            id=new_id(now, os.urandom(ENTROPY_BYTES)),
            owner=self._shared.facts.owner,
            sender="" if transaction.sender is None else str(transaction.sender),
            recipients=tuple(transaction.recipients),
            received_at=now,
            eight_bit=event.eight_bit,
            smtputf8=event.smtputf8,
        )

    def _trace(self, envelope: Envelope) -> bytes:
        recipients = envelope.recipients
        return received(
            Arrival(
                by=self._shared.facts.name,
                queue_id=envelope.id,
                at=envelope.received_at,
                helo=self._session.helo_name,
                address=self._peer,
                reverse_name=self._reverse_name,
                extended=self._session.extended,
                smtputf8=envelope.smtputf8,
                recipient=recipients[0] if len(recipients) == 1 else "",
            )
        )
