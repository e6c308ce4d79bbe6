"""Queue ids, and what a queue says of its messages. Pure.

Rules of this file: values only. The envelope itself is vnsmail.model.Envelope.
"""

from dataclasses import dataclass
from typing import TypeAlias

from vnsmail.model import Envelope, Outcome

_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
"""Base 32 in ASCII order without i, l, o, u: ids sort by time, and a file system or a
person that mixes up upper and lower case, or 1 and l, cannot confuse two of them."""

_TIME_DIGITS = 11
_ENTROPY_DIGITS = 9
# Two digits at a time, as an id is made for every message.
_PAIRS = tuple(a + b for a in _DIGITS for b in _DIGITS)
_PLACES = tuple(range(5 * (_TIME_DIGITS + _ENTROPY_DIGITS - 2), -1, -10))
_LATEST = 32**_TIME_DIGITS / 1_000_000

ENTROPY_BYTES = 6
"""Random bytes an id takes."""


def new_id(now: float, entropy: bytes) -> str:
    """Return a queue id of 20 characters that sorts by time and fits a file name.

    Args:
        now: seconds since the epoch; kept in microseconds, so good to the year 3111.
        entropy: at least ENTROPY_BYTES random bytes, of which 45 bits are used.
    """
    if len(entropy) < ENTROPY_BYTES or not 0 <= now < _LATEST:
        message = f"no queue id for time {now} and {len(entropy)} random bytes"
        raise ValueError(message)
    random = int.from_bytes(entropy[:ENTROPY_BYTES], "big") >> 3
    number = int(now * 1_000_000) << 5 * _ENTROPY_DIGITS | random
    return "".join([_PAIRS[number >> place & 1023] for place in _PLACES])


def is_id(text: str) -> bool:
    """Say whether a text has the form of a queue id."""
    return len(text) == _TIME_DIGITS + _ENTROPY_DIGITS and not set(text) - set(_DIGITS)


def arrival(message_id: str) -> float:
    """Return when a message arrived, seconds since the epoch, as its queue id says."""
    number = 0
    for digit in message_id[:_TIME_DIGITS]:
        number = number * 32 + _DIGITS.index(digit)
    return number / 1_000_000


def destination(address: str) -> str:
    """Return the domain of an address, in lower case; empty if it has none.

    A recipient without a domain is here: only "postmaster" is written so (RFC 5321
    section 4.5.1).
    """
    return address.rpartition("@")[2].lower() if "@" in address else ""


@dataclass(frozen=True, slots=True)
class QueuedRecipient:
    """A recipient a message still has to reach."""

    address: str
    attempts: int
    """Attempts that asked a remote; those without a source are not counted."""
    next_attempt_at: float
    """Seconds since the epoch; the time of arrival before the first attempt."""
    last: Outcome | None
    """What the last attempt came to, if there was one."""


@dataclass(frozen=True, slots=True)
class QueuedMessage:
    """A message in the queue, with the recipients it still has to reach."""

    envelope: Envelope
    """Its recipients are those that are left, in the order they were given."""
    size: int
    """Bytes of the body."""
    recipients: tuple[QueuedRecipient, ...]
    """All that are left, due or not; the same as those of the envelope."""
    held: str = ""
    """Why an operator holds it; empty: nobody does."""


@dataclass(frozen=True, slots=True)
class Due:
    """A message that is due at one destination."""

    destination: str
    message: QueuedMessage


@dataclass(frozen=True, slots=True)
class Move:
    """A message that goes to another host's queue."""

    target: str
    """The host."""
    nonce: str
    """Of this move and no other: the target takes a message with the same once."""
    recipients: tuple[str, ...]
    """Those that go; others stay."""


Place: TypeAlias = tuple[str, int]
"""Where a walk through a queue is: destination and priority."""

START: Place = ("", -1)


@dataclass(frozen=True, slots=True)
class Walk:
    """What a walk through the destinations of a queue found."""

    due: list[Due]
    next_due: float
    """When something more is due where all that is due was taken; infinity if never."""
    more: frozenset[str]
    """Destinations with more that is due than was asked for."""
    went_on_at: Place | None
    """Where the next walk goes on; None if this one came to the end."""
    visited: int
    """Places seen, a measure of what it cost."""


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """How full a queue is."""

    messages: int
    recipients: int
    deferred: int
    """Recipients that wait for a further attempt."""
    bytes: int
    """Size of all bodies."""
    oldest: float | None
    """When the oldest message arrived, seconds since the epoch."""
