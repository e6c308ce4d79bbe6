"""A message that is whole: looked at, given its trace header, and kept.

Rules of this file: whatever goes wrong is a reply, never an exception, and leaves
nothing behind; why is for the log, as paths and faults of this system are no client's
business. A message is opened no further than its header block: what is packed in it, how
deep ever, costs nothing here.
"""

import asyncio
import os
from dataclasses import dataclass, field

from vnsmail.errors import LimitReached, QueueUnavailable, VnsmailError
from vnsmail.events.record import Accepted, at, named, untold
from vnsmail.inbound import allowance
from vnsmail.inbound.accept import Aliased, Taken
from vnsmail.inbound.policy import Client, Examined, Recipient, Relayed
from vnsmail.inbound.shared import ReceiverFacts, Shared
from vnsmail.inbound.spool import FRONT, Spool
from vnsmail.log import logger
from vnsmail.message.complete import Completion, Missing
from vnsmail.message.headers import (
    MAX_HOPS,
    MAX_OWN_HOPS,
    count_received,
    count_received_by,
    parse_header,
    tls_wish,
)
from vnsmail.message.trace import Arrival, received
from vnsmail.model import DsnRequest, Envelope, Notify, Ret, TlsWish
from vnsmail.queue.body import Body
from vnsmail.queue.envelope import ENTROPY_BYTES, new_id
from vnsmail.smtp.address import Mailbox
from vnsmail.smtp.replies import Reply
from vnsmail.smtp.server_session import MessageReceived

LOOP = Reply(554, ("too many hops, the message goes in a circle",), "5.4.6")
LONG_HEADER = Reply(552, ("the header of the message is too long",), "5.3.4")
NO_ROOM = Reply(452, ("the message cannot be kept now, try again later",), "4.3.1")
TROUBLE = Reply(451, ("something is wrong here, try again later",), "4.3.0")

log = logger("inbound")


@dataclass(slots=True)
class Transaction:
    """A message on its way in."""

    sender: Mailbox | None = None
    ret: Ret | None = None
    envid: str = ""
    require_tls: bool = False
    recipients: dict[str, DsnRequest | None] = field(default_factory=dict)
    """In the spelling of the queue, each once, in the order they came."""
    spool: Spool | None = None

    def add(self, recipient: Recipient, notify: tuple[Notify, ...], orcpt: str) -> None:
        """Take a recipient; what was asked first for an address holds."""
        for address in addresses(recipient):
            if address not in self.recipients:
                asked = DsnRequest(address, notify, orcpt) if notify or orcpt else None
                self.recipients[address] = asked

    def discard(self) -> None:
        """Throw away what came of the body."""
        if self.spool is not None:
            self.spool.discard()


def addresses(recipient: Recipient) -> tuple[str, ...]:
    """Return whom a recipient is in the queue."""
    match recipient:
        case Taken(_, address) | Relayed(address):
            return (address,)
        case Aliased(several):
            return several


def completion(client: Client, name: str, now: float) -> Completion | None:
    """Return what completes a message of a user (RFC 6409 section 8); None: nothing.

    What strangers bring is theirs, and is not touched.
    """
    if not client.user:
        return None
    unique = new_id(now, os.urandom(ENTROPY_BYTES))
    return Completion(Missing.of(now, unique, name, client.user))


@dataclass(slots=True)
class Arrived:
    """A message that is whole, and who brought it."""

    message: MessageReceived
    transaction: Transaction
    client: Client
    extended: bool
    """The client said EHLO."""


class Keeping:
    """A message on its way from the session to the disk.

    Most need nothing but the disk: ``at_once`` hands such a one over, without a task. For
    the others ``later`` waits: for a name, for what an examination asks, for a file.

    Args:
        arrived: the message.
        shared: of the owner who takes it.
        named: set when ``client.reverse_name`` is settled.
    """

    __slots__ = ("_arrived", "_body", "_envelope", "_named", "_shared", "_size")

    _envelope: Envelope
    """As it is kept."""
    _size: int
    """Octets of what is kept."""

    def __init__(self, arrived: Arrived, shared: Shared, named: asyncio.Event) -> None:
        self._arrived = arrived
        self._shared = shared
        self._named = named
        self._body: Body | None = None
        """As it came, once it is whole."""

    def at_once(self) -> "asyncio.Future[None] | Reply | None":
        """Hand the message over, or refuse it, if nothing has to be waited for before.

        Returns the future of the disk, for ``outcome``; the reply that refuses it; or
        None: ask ``later``.
        """
        try:
            return self._at_once()
        except Exception as error:  # noqa: BLE001  one message's fault ends no others
            return self._failed(error)

    async def later(self) -> str | Reply:
        """Keep the message; return its queue id, or the reply that refuses it."""
        try:
            refusal = await self._later()
        except Exception as error:  # noqa: BLE001  as above
            return self._failed(error)
        return self._kept() if refusal is None else refusal

    def outcome(self, done: "asyncio.Future[None]") -> str | Reply:
        """Return what came of a message that ``at_once`` handed over, as ``later`` does."""
        if done.cancelled():
            return TROUBLE
        error = done.exception()
        return self._kept() if error is None else self._failed(error)

    # Within ------------------------------------------------------------------------

    def _at_once(self) -> "asyncio.Future[None] | Reply | None":
        spool, shared = self._arrived.transaction.spool, self._shared
        keep_soon = shared.keep_soon
        if spool is None or keep_soon is None or not self._named.is_set():
            return None
        body = self._body = spool.finish_at_once()
        if body is None:
            return None
        facts = shared.facts
        answer: Examined | Reply | None = _problem(spool.front, body, facts.name)
        if answer is None:
            envelope = _envelope(self._arrived, facts, shared.clock())
            self._envelope = envelope
            client = self._arrived.client
            answer = facts.asked.examine_at_once(client, envelope, body, spool.front)
        if answer is None:
            return None
        if isinstance(answer, Reply):
            return answer
        whole = self._whole(answer)
        return keep_soon(self._envelope, whole)

    async def _later(self) -> Reply | None:
        spool, shared = self._arrived.transaction.spool, self._shared
        if spool is None:
            raise RuntimeError("a message without a body")
        if not self._named.is_set():
            await self._named.wait()
        if self._body is None:
            self._body = await spool.finish()
        body, facts = self._body, shared.facts
        try:
            self._envelope = _envelope(self._arrived, facts, shared.clock())
            answer = _problem(
                spool.front, body, facts.name
            ) or await facts.asked.examine(
                self._arrived.client, self._envelope, body, spool.front
            )
            if isinstance(answer, Reply):
                body.discard()
                return answer
            body = answer.body
            whole = self._whole(answer)
        except BaseException:
            body.discard()
            raise
        await shared.keep(self._envelope, whole)
        return None

    def _whole(self, examined: Examined) -> Body:
        """Return a message with all that stands in front of it."""
        if examined.envelope is not None:
            self._envelope = examined.envelope
        trace = _trace(self._arrived, self._envelope, self._shared.facts)
        whole = examined.body.prefixed(examined.fields + trace)
        self._size = whole.size
        return whole

    def _kept(self) -> str:
        _tell(self._arrived, self._envelope, self._size, self._shared)
        return self._envelope.id

    def _failed(self, error: BaseException) -> Reply:
        """Return what is said of an error, and tell the log why."""
        if not isinstance(error, VnsmailError):
            peer = self._arrived.client.literal
            log.error("message.fault", peer=peer, exc_info=error)
            return TROUBLE
        owner = self._shared.facts.owner
        log.warning("message.not_kept", owner=owner, reason=str(error))
        if isinstance(error, LimitReached):
            return allowance.reply(error)
        return NO_ROOM if isinstance(error, QueueUnavailable) else TROUBLE


def _tell(arrived: Arrived, envelope: Envelope, size: int, shared: Shared) -> None:
    """Tell of a message that is on disk: in the event log, else in that of the daemon."""
    client = arrived.client
    if shared.tell is not untold:
        version = client.tls_version
        shared.tell(
            Accepted(
                time=at(envelope.received_at),
                host=envelope.owner,
                id=envelope.id,
                via=client.role.value,
                sender=envelope.sender,
                recipients=named(envelope.recipients),
                recipient_count=len(envelope.recipients),
                size=size,
                peer=client.literal,
                peer_name=client.reverse_name or "",
                helo=client.helo,
                tls=f"{version} {client.tls_cipher}" if version else "",
                user=client.user,
            )
        )
        return
    log.info(
        "message.accepted",
        owner=envelope.owner,
        id=envelope.id,
        sender=envelope.sender,
        recipients=len(envelope.recipients),
        size=arrived.message.size,
        peer=client.literal,
        helo=client.helo,
        **({"user": client.user} if client.user else {}),
    )


def _problem(front: bytes, body: Body, name: str) -> Reply | None:
    """Return why a message is refused that is sound as a body."""
    if body.size > FRONT and b"\r\n\r\n" not in front and not parse_header(front).whole:
        return LONG_HEADER
    hops = count_received(front)
    own = count_received_by(front, name) if hops > MAX_OWN_HOPS else 0
    return LOOP if hops > MAX_HOPS or own > MAX_OWN_HOPS else None


def _envelope(arrived: Arrived, facts: ReceiverFacts, now: float) -> Envelope:
    message, transaction = arrived.message, arrived.transaction
    front = b"" if transaction.spool is None else transaction.spool.front
    sender, recipients = transaction.sender, transaction.recipients
    return Envelope(
        id=new_id(now, os.urandom(ENTROPY_BYTES)),
        owner=facts.owner,
        sender="" if sender is None else str(sender),
        recipients=tuple(recipients),
        received_at=now,
        eight_bit=message.eight_bit,
        smtputf8=message.smtputf8,
        ret=transaction.ret,
        envid=transaction.envid,
        requests=tuple(asked for asked in recipients.values() if asked is not None),
        # RFC 8689 section 4.1: the field counts only where the parameter is not given.
        tls=TlsWish.REQUIRED if transaction.require_tls else tls_wish(front),
    )


def _trace(arrived: Arrived, envelope: Envelope, facts: ReceiverFacts) -> bytes:
    client, recipients = arrived.client, envelope.recipients
    version = client.tls_version
    return received(
        Arrival(
            by=facts.name,
            queue_id=envelope.id,
            at=envelope.received_at,
            helo=client.helo,
            address=client.address,
            reverse_name=client.reverse_name,
            extended=arrived.extended,
            smtputf8=envelope.smtputf8,
            tls=f"{version}, {client.tls_cipher}" if version else "",
            authenticated=bool(client.user),
            hide_client=bool(client.user) and facts.hide_clients,
            recipient=recipients[0] if len(recipients) == 1 else "",
        )
    )
