"""What a server session tells whoever drives it.

Rules of this file: values only. An event that asks waits for one ``accept`` or
``reject``; an event that tells needs no answer.
"""

from dataclasses import dataclass
from typing import TypeAlias

from vnsmail.smtp.address import Mailbox


@dataclass(frozen=True, slots=True)
class Connected:
    """Asks: may this client talk to us at all? Always the first event."""


@dataclass(frozen=True, slots=True)
class MailRequested:
    """Asks: may this sender begin a transaction?"""

    sender: Mailbox | None
    """None for the null reverse-path."""
    size: int | None
    """Octets that the client announced; within the limit."""
    eight_bit: bool
    """BODY=8BITMIME was given."""
    smtputf8: bool


@dataclass(frozen=True, slots=True)
class RecipientRequested:
    """Asks: is mail for this recipient taken here?"""

    recipient: Mailbox


@dataclass(frozen=True, slots=True)
class DataRequested:
    """Asks: may the body come? There is a recipient at least."""


@dataclass(frozen=True, slots=True)
class BodyReceived:
    """Tells the next bytes of the body, without dot-stuffing; never empty."""

    data: bytes


@dataclass(frozen=True, slots=True)
class MessageReceived:
    """Asks: is the message, which is whole now, ours to keep?"""

    size: int
    """Octets of the body, all of which were in BodyReceived."""
    eight_bit: bool
    smtputf8: bool


@dataclass(frozen=True, slots=True)
class TransactionAborted:
    """Tells that the transaction is over without a message: throw away what came.

    The client gave it up or is gone, or the session refuses the body; it still answers
    at the real end of the body then.
    """


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """Tells that nothing more comes. The last event."""

    clean: bool
    """The client said QUIT."""


Question: TypeAlias = (
    Connected | MailRequested | RecipientRequested | DataRequested | MessageReceived
)
Event: TypeAlias = Question | BodyReceived | TransactionAborted | SessionEnded
