"""What a client session is asked to do, and what it tells whoever drives it.

Rules of this file: values only.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol, TypeAlias

from vnsmail.model import DsnRequest, Ret
from vnsmail.smtp.replies import Reply


class Wish(Enum):
    """Whether a session is to go on within TLS."""

    NEVER = auto()
    OFFERED = auto()
    """Where the server offers it."""
    ALWAYS = auto()
    """Or it does not go on."""


class SaslExchange(Protocol):
    """One attempt to sign in; vnsmail.sasl.client makes them."""

    @property
    def mechanism(self) -> str: ...

    @property
    def satisfied(self) -> bool: ...

    def first(self) -> bytes | None: ...

    def respond(self, challenge: bytes) -> bytes | None: ...


class SignIn(Protocol):
    """Who signs in: vnsmail.sasl.client.Login."""

    def begin(
        self, offered: Collection[str], *, plain: bool
    ) -> SaslExchange | None: ...


@dataclass(frozen=True, slots=True)
class Transaction:
    """One message to send: its envelope, and what the server has to be able to do."""

    sender: str
    """Reverse-path without brackets; empty for the null reverse-path."""
    recipients: tuple[str, ...]
    """Forward-paths without brackets."""
    body_size: int
    """Octets, before dot-stuffing (RFC 1870 section 5)."""
    eight_bit: bool
    """The body has octets over 127."""
    smtputf8: bool
    """An address or header needs SMTPUTF8 (RFC 6531)."""
    ret: Ret | None = None
    envid: str = ""
    requests: tuple[DsnRequest, ...] = ()
    """What the sender asked of notifications; said to a server that offers DSN."""
    require_tls: bool = False
    """The server has to ask the same of the next (RFC 8689); a notice it may get all
    the same."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The server said hello: transactions can begin. Comes once."""

    extensions: Mapping[str, str]
    """Keyword in upper case → its parameters; empty if the server knows only HELO."""


@dataclass(frozen=True, slots=True)
class StartTls:
    """The server waits for a handshake; tell the session when it is done."""


@dataclass(frozen=True, slots=True)
class NoTls:
    """There is no TLS with this server, though it was wanted."""

    text: str


@dataclass(frozen=True, slots=True)
class NotSignedIn:
    """The server does not let us sign in; nothing is sent to it."""

    reply: Reply
    """Its own, or one that we made up."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The server does not want us: its greeting, its answer to hello, or 421."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class BodyWanted:
    """The body can be sent: someone may get it. It may go along with the envelope."""


@dataclass(frozen=True, slots=True)
class TransactionFinished:
    """The transaction is over."""

    recipients: dict[str, Reply]
    """The last reply for each; one that we made up where the server gave none."""
    answered: bool = field(default=True, compare=False)
    """The server said something of it. If not, a body that was sent along with the
    envelope fell on deaf ears: the server had hung up before."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection ended, or has to, while no transaction was under way."""

    text: str


Event: TypeAlias = (
    Ready
    | StartTls
    | NoTls
    | NotSignedIn
    | Refused
    | BodyWanted
    | TransactionFinished
    | Disconnected
)
