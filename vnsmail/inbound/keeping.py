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
from vnsmail.inbound.policy import Client, Recipient, Relayed
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
)
from vnsmail.message.trace import Arrival, received
from vnsmail.model import DsnRequest, Envelope, Notify, Ret
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


@dataclass(frozen=True, slots=True)
class Arrived:
    """A message that is whole, and who brought it."""

    message: MessageReceived
    transaction: Transaction
    client: Client
    extended: bool
    """The client said EHLO."""


async def keep(arrived: Arrived, shared: Shared, named: asyncio.Event) -> str | Reply:
    """Keep a message; return its queue id, or the reply that refuses it.

    Args:
        arrived: the message.
        shared: of the owner who takes it.
        named: set when ``client.reverse_name`` is settled.
    """
    try:
        return await _kept(arrived, shared, named)
    except QueueUnavailable as error:
        return _not_kept(shared, error, NO_ROOM)
    except LimitReached as error:
        return _not_kept(shared, error, allowance.reply(error))
    except VnsmailError as error:
        return _not_kept(shared, error, TROUBLE)
    except Exception:  # one message's fault must not end the others
        log.exception("message.fault", peer=arrived.client.literal)
        return TROUBLE


def _not_kept(shared: Shared, error: VnsmailError, reply: Reply) -> Reply:
    owner = shared.facts.owner
    log.warning("message.not_kept", owner=owner, reason=str(error))
    return reply


async def _kept(arrived: Arrived, shared: Shared, named: asyncio.Event) -> str | Reply:
    spool, client = arrived.transaction.spool, arrived.client
    if spool is None:
        raise RuntimeError("a message without a body")
    if not named.is_set():
        await named.wait()
    body = await spool.finish()
    facts = shared.facts
    try:
        envelope = _envelope(arrived, facts, shared.clock())
        answer = _problem(spool.front, body, facts.name) or await facts.asked.examine(
            client, envelope, body, spool.front
        )
        if isinstance(answer, Reply):
            body.discard()
            return answer
        body, envelope = answer.body, answer.envelope or envelope
        whole = body.prefixed(answer.fields + _trace(arrived, envelope, facts))
    except BaseException:
        body.discard()
        raise
    await shared.keep(envelope, whole)
    _tell(arrived, envelope, whole.size, shared)
    return envelope.id


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
