"""What a server session tells whoever drives it.

Rules of this file: values only. An event that asks waits for one ``accept`` or
``reject``; an event that tells needs no answer. Some are made for each command of each
message, so they are msgspec's, which makes them in a fifth of the time.
"""

from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from vnsmail.model import Notify, Ret
from vnsmail.smtp.address import Mailbox


class Connected(msgspec.Struct, frozen=True):
    """Asks: may this client talk to us at all? Always the first event."""


class MailRequested(msgspec.Struct, frozen=True):
    """Asks: may this sender begin a transaction?"""

    sender: Mailbox | None
    """None for the null reverse-path."""
    size: int | None
    """Octets that the client announced; within the limit."""
    eight_bit: bool
    """BODY=8BITMIME was given."""
    smtputf8: bool
    ret: Ret | None = None
    """What notifications are to carry (RFC 3461); None: not given."""
    envid: str = ""
    """What the sender calls the transaction, as xtext; empty: not given."""
    require_tls: bool = False
    """REQUIRETLS was given (RFC 8689)."""


class RecipientRequested(msgspec.Struct, frozen=True):
    """Asks: is mail for this recipient taken here?"""

    recipient: Mailbox
    notify: tuple[Notify, ...] = ()
    """When the sender wants to be told (RFC 3461); empty: not given."""
    orcpt: str = ""
    """Who it was at first, ``type;xtext``; empty: not given."""


class TlsRequested(msgspec.Struct, frozen=True):
    """Asks: can TLS be begun now?

    After ``accept`` the driver writes what is to be sent, takes everything that comes
    for TLS, and says ``tls_started`` when the handshake is done.
    """


@dataclass(frozen=True, slots=True)
class AuthRequested:
    """Asks: may somebody sign in so?

    Answered with ``challenge`` too; then AuthResponse follows, or AuthAborted.
    """

    mechanism: str
    """One of ServerConfig.mechanisms."""
    initial: bytes | None = field(repr=False)
    """The first response; None: the client waits for a challenge."""


@dataclass(frozen=True, slots=True)
class AuthResponse:
    """Asks what follows from the response to a challenge; ``challenge`` is an answer."""

    data: bytes = field(repr=False)


class AuthAborted(msgspec.Struct, frozen=True):
    """Tells that the exchange is over: the client gave it up, or sent no base64."""


class DataRequested(msgspec.Struct, frozen=True):
    """Asks: may the body come? There is a recipient at least. Once a message."""


class BodyReceived(msgspec.Struct, frozen=True):
    """Tells the next bytes of the body, without dot-stuffing; never empty."""

    data: bytes


class MessageReceived(msgspec.Struct, frozen=True):
    """Asks: is the message, which is whole now, ours to keep?"""

    size: int
    """Octets of the body, all of which were in BodyReceived."""
    eight_bit: bool
    """BODY=8BITMIME was given, or there was an octet beyond ASCII."""
    smtputf8: bool


class TransactionAborted(msgspec.Struct, frozen=True):
    """Tells that the transaction is over without a message: throw away what came.

    The client gave it up or is gone, or the session refuses the body; it still answers
    at the real end of the body then.
    """


class SessionEnded(msgspec.Struct, frozen=True):
    """Tells that nothing more comes. The last event."""

    clean: bool
    """The client said QUIT."""


Question: TypeAlias = (
    Connected
    | TlsRequested
    | AuthRequested
    | AuthResponse
    | MailRequested
    | RecipientRequested
    | DataRequested
    | MessageReceived
)
Event: TypeAlias = (
    Question | BodyReceived | AuthAborted | TransactionAborted | SessionEnded
)
