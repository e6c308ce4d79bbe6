"""What a line of the event log says. Pure.

One JSON object a line, told apart by ``event``; docs/reference/events.md explains each
field. A field that has nothing to say is left out.

Rules of this file: fields are added and never change their meaning, for programs of
others read them; addresses and replies, never contents and never credentials.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

import msgspec

from vnsmail.model import Contact, Envelope, Outcome

MAX_RECIPIENTS = 100
"""Recipients named when a message is accepted; ``recipient_count`` counts them all."""

MAX_TEXT = 1000
"""Characters of a reply that are kept; a remote may say any number of lines."""


class _Event(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    forbid_unknown_fields=True,
    tag_field="event",
):
    time: datetime
    host: str
    """The virtual host, or ``machine``."""


class _OfMessage(_Event, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    """Queue id."""


class Accepted(
    _OfMessage, frozen=True, kw_only=True, omit_defaults=True, tag="accepted"
):
    """A message is on disk, and whoever brought it was told so."""

    via: str
    """``mx``, ``submission``, ``local``, ``notice``, ``forward`` or ``move``."""
    sender: str
    recipients: tuple[str, ...]
    recipient_count: int
    size: int
    """Octets, with the fields that were put in front."""
    peer: str = ""
    peer_name: str = ""
    """Verified name of the client."""
    helo: str = ""
    """What the client called itself."""
    tls: str = ""
    user: str = ""
    """Who signed in."""
    uid: int | None = None
    """Who ran the local command."""
    about: str = ""
    """Queue id of the message that this one is a notice, copy or continuation of."""


class _Attempt(_OfMessage, frozen=True, kw_only=True, omit_defaults=True):
    """An attempt for one recipient; what it was over, as the kernel has it."""

    sender: str
    recipient: str
    size: int
    reply: str
    """Code, enhanced code and text: the remote's, or ours where none answered."""
    attempt: int
    """Which it was, from 1."""
    queue_seconds: float
    """Since the message was accepted."""
    source: str = ""
    """The socket's own address, as getsockname(2) gave it."""
    source_port: int = 0
    helo: str = ""
    """What we called ourselves."""
    remote: str = ""
    """Name of the server asked; without a connection, what is known of it."""
    remote_address: str = ""
    remote_port: int = 0
    tls: str = ""
    """Version and cipher."""
    tls_verified: str = ""
    connect_seconds: float = 0.0
    hello_seconds: float = 0.0
    data_seconds: float = 0.0
    total_seconds: float = 0.0


class Delivered(
    _Attempt, frozen=True, kw_only=True, omit_defaults=True, tag="delivered"
):
    """A remote took it, or it is in a mailbox here."""


class Deferred(_Attempt, frozen=True, kw_only=True, omit_defaults=True, tag="deferred"):
    """It is tried again."""

    next_attempt: datetime | None = None


class Bounced(_Attempt, frozen=True, kw_only=True, omit_defaults=True, tag="bounced"):
    """It failed for good; the sender is told, unless nobody is to be."""


class Expired(_Attempt, frozen=True, kw_only=True, omit_defaults=True, tag="expired"):
    """It was tried for its lifetime; the sender is told, unless nobody is to be."""


class Delayed(_OfMessage, frozen=True, kw_only=True, omit_defaults=True, tag="delayed"):
    """The sender is told that it is late."""

    queue_seconds: float


class Withdrawn(
    _OfMessage, frozen=True, kw_only=True, omit_defaults=True, tag="withdrawn"
):
    """It was taken out of the queue while it was under way."""


class Held(_Event, frozen=True, kw_only=True, omit_defaults=True, tag="held"):
    """An operator holds a message, a destination, or all of a host."""

    id: str = ""
    """Queue id; empty: a destination, or all."""
    destination: str = ""
    reason: str = ""


class Released(_Event, frozen=True, kw_only=True, omit_defaults=True, tag="released"):
    """An operator lets it go again."""

    id: str = ""
    destination: str = ""


class Deleted(_OfMessage, frozen=True, kw_only=True, omit_defaults=True, tag="deleted"):
    """An operator took it out of the queue; nobody is told."""

    sender: str
    recipients: tuple[str, ...]
    recipient_count: int


class Moved(_OfMessage, frozen=True, kw_only=True, omit_defaults=True, tag="moved"):
    """An operator moved it to another host's queue, and it is there."""

    to: str
    """The host."""
    sender: str
    recipients: tuple[str, ...]
    recipient_count: int


class SourceMissing(
    _Event, frozen=True, kw_only=True, omit_defaults=True, tag="source_missing"
):
    """There is no address to send from: the host's mail waits, and nothing is tried."""

    family: int
    """4 or 6."""
    reason: str


class SourceBack(
    _Event, frozen=True, kw_only=True, omit_defaults=True, tag="source_back"
):
    """It is there again."""

    family: int
    held_seconds: float


class WrongSource(
    _Event, frozen=True, kw_only=True, omit_defaults=True, tag="wrong_source"
):
    """The audit saw a connection from an address that is not its sender's."""

    source: str
    source_port: int
    remote_address: str
    remote_port: int
    reason: str
    helo: str = ""
    """What it called itself, if it was that what showed it."""


class Lost(_Event, frozen=True, kw_only=True, omit_defaults=True, tag="lost"):
    """Lines before this one could not be written: the disk was full, or too slow."""

    lines: int


Event: TypeAlias = (
    Accepted
    | Delivered
    | Deferred
    | Bounced
    | Expired
    | Delayed
    | Withdrawn
    | Held
    | Released
    | Deleted
    | Moved
    | SourceMissing
    | SourceBack
    | WrongSource
    | Lost
)

Tell: TypeAlias = Callable[[Event], None]
"""Takes an event, at once and whatever happens."""

Ended: TypeAlias = type[Delivered] | type[Bounced] | type[Expired]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Event).decode


def untold(_event: Event) -> None:
    """Tell nobody."""


def line(event: Event) -> bytes:
    """Return an event as it stands in the log, with the end of its line.

    Text that is no Unicode (a reply may have any bytes) is written with question marks.
    """
    try:
        return _encode(event) + b"\n"
    except UnicodeEncodeError:
        return _encode(_clean(event)) + b"\n"


def parse(text: bytes) -> Event:
    """Return the event on a line.

    Raises:
        ValueError: it is none; half of one, say, from when the disk was full.
    """
    try:
        event: Event = _decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return event


def at(seconds: float) -> datetime:
    """Return a time given in seconds since the epoch."""
    return datetime.fromtimestamp(seconds, UTC)


@dataclass(frozen=True, slots=True)
class Tried:
    """One recipient of a message in an attempt."""

    envelope: Envelope
    size: int
    recipient: str
    attempt: int


def outcome(
    kind: Ended,
    tried: Tried,
    came_to: Outcome,
    now: float,
) -> Delivered | Bounced | Expired:
    """Return what is told of a recipient who is not tried again."""
    return kind(
        **_tried(tried, came_to, now),
        **_contact(came_to.contact, came_to),
    )


def deferral(
    tried: Tried, came_to: Outcome, now: float, next_attempt: float | None
) -> Deferred:
    """Return what is told of a recipient who is tried again."""
    return Deferred(
        **_tried(tried, came_to, now),
        **_contact(came_to.contact, came_to),
        next_attempt=None if next_attempt is None else at(next_attempt),
    )


def named(recipients: Iterable[str]) -> tuple[str, ...]:
    """Return the recipients that an event names: the first ones."""
    return tuple(recipients)[:MAX_RECIPIENTS]


def _tried(tried: Tried, came_to: Outcome, now: float) -> dict[str, Any]:
    envelope = tried.envelope
    reply = f"{came_to.reply_code} {came_to.enhanced} {came_to.text}"
    return {
        "time": at(now),
        "host": envelope.owner,
        "id": envelope.id,
        "sender": envelope.sender,
        "recipient": tried.recipient,
        "size": tried.size,
        "reply": reply[:MAX_TEXT],
        "attempt": tried.attempt,
        "queue_seconds": round(now - envelope.received_at, 6),
    }


def _contact(contact: Contact | None, came_to: Outcome) -> dict[str, Any]:
    """Return the facts of the connection; seconds to the microsecond."""
    if contact is None:
        return {"remote": came_to.remote, "source": came_to.source}
    return {
        "source": contact.source,
        "source_port": contact.source_port,
        "helo": contact.helo,
        "remote": contact.remote,
        "remote_address": contact.remote_address,
        "remote_port": contact.remote_port,
        "tls": contact.tls,
        "tls_verified": contact.tls_verified,
        "connect_seconds": round(contact.connect, 6),
        "hello_seconds": round(contact.hello, 6),
        "data_seconds": round(contact.data, 6),
        "total_seconds": round(contact.total, 6),
    }


def _clean(event: Event) -> Event:
    """Return an event whose texts can be written."""
    texts = {name: _text(getattr(event, name)) for name in event.__struct_fields__}
    return msgspec.structs.replace(event, **texts)


def _text(value: object) -> object:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, tuple):
        return tuple(map(_text, value))
    return value
