"""What a session asks of whoever knows users, limits and senders: the seams of receiving.

    the session's question    method            answered
    AUTH                      sign_in           step by step, as SASL goes (RFC 4422)
    MAIL FROM                 may_send          at once
    RCPT TO                   may_receive       at once
    a message that is whole   examine_at_once   at once, where there is nothing to wait for
                              examine           when it is done; may add or change

Each owner has one ``Policy``, in ReceiverFacts.rules; a changed one takes its place
while sessions go on. ``HousePolicy`` is the plain one: it takes mail for mailboxes here,
and lets nobody sign in.

Rules of this file: questions are asked in the event loop, so what computes or waits
(argon2, DNS, a disk) is in ``sign_in`` and ``examine``, which are awaited, and beyond
them nothing waits. A policy that raises has refused: the client hears 451, the log why.
``Later`` makes a refusal slow, without holding anything but this one session.
"""

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from vnsmail.inbound.accept import AcceptPolicy, Aliased, Taken
from vnsmail.model import Envelope, IPAddress, Role
from vnsmail.queue.body import Body
from vnsmail.smtp.address import Mailbox
from vnsmail.smtp.replies import Reply

__all__ = [
    "Challenge",
    "Client",
    "Examined",
    "HousePolicy",
    "Later",
    "Policy",
    "Recipient",
    "Relayed",
    "Role",
    "SignIn",
    "SignInStep",
    "SignedIn",
]

NO_SIGN_IN = Reply(504, ("there is no such mechanism here",), "5.5.4")


@dataclass(slots=True)
class Client:
    """Who is at the other end. One object a session; it learns as the session goes on."""

    address: IPAddress | None
    """Where it connects from (as a trusted proxy says, if one is between); None over a
    Unix socket."""
    role: Role = Role.MX
    helo: str = ""
    """What it calls itself; empty before EHLO or HELO."""
    reverse_name: str | None = None
    """Its verified name in DNS; None until it is found, or if there is none. It is
    settled when ``examine`` is asked."""
    tls_version: str = ""
    """TLSv1.2 or TLSv1.3; empty: in the clear."""
    tls_cipher: str = ""
    """Name of the cipher suite; empty: in the clear."""
    user: str = ""
    """Who signed in, as ``SignedIn`` named it; empty: nobody."""
    misses: int = 0
    """Recipients it asked for who are not here."""

    @property
    def literal(self) -> str:
        """The address for logs and limits; ``local`` over a Unix socket."""
        return "local" if self.address is None else str(self.address)


@dataclass(frozen=True, slots=True)
class Challenge:
    """The exchange goes on: say this, without base64, and wait for the response."""

    data: bytes


@dataclass(frozen=True, slots=True)
class SignedIn:
    """The exchange succeeded."""

    user: str
    """An address of the owner, in the one spelling that a policy knows it by."""


@dataclass(frozen=True, slots=True)
class Later:
    """A refusal that is said only after a while (against guessing)."""

    reply: Reply
    seconds: float


@dataclass(frozen=True, slots=True)
class Relayed:
    """A recipient that has its mailbox elsewhere, and may be written to."""

    address: str
    """The recipient in the one spelling that the queue and delivery know."""


Recipient: TypeAlias = Taken | Aliased | Relayed
"""Where mail for an accepted recipient goes."""

SignInStep: TypeAlias = Challenge | SignedIn | Later | Reply
"""A Reply here is a refusal: 535 5.7.8, 454 4.7.0 …"""


class SignIn(Protocol):
    """One exchange of one mechanism."""

    async def respond(self, response: bytes | None) -> SignInStep:
        """Take the client's response, and say how it goes on.

        The first call has the initial response, None where the client gave none. The
        session takes care of base64, of lengths, of ``*``, and of how many attempts it
        bears. After anything but a Challenge this is not called again; it may never be
        called again after a Challenge, too, if the client gives up or goes away.
        """
        ...


@dataclass(frozen=True, slots=True)
class Examined:
    """A message that is to be kept."""

    body: Body
    """The one that was examined, or what takes its place; then the policy has discarded
    the other."""
    fields: bytes = b""
    """Whole header fields, with CRLF, that go in front of everything, the trace header of
    this hop too (RFC 8601 section 4): Authentication-Results, DKIM-Signature."""
    envelope: Envelope | None = None
    """In place of the one that was shown (sender, recipients, eight_bit); None: as it is."""


class Policy(Protocol):
    """What one owner lets in, and from whom."""

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """SASL mechanisms in upper case, the best first; none: nobody can sign in.

        They are announced on submission, once there is TLS, and nowhere else.
        """
        ...

    def sign_in(self, client: Client, mechanism: str) -> SignIn | Reply:
        """Begin an exchange, or refuse it (throttled, suspended). One of ``mechanisms``."""
        ...

    def may_send(
        self, client: Client, sender: Mailbox | None, size: int | None
    ) -> Reply | Later | None:
        """Return why this sender (None: the null one) may not begin; None if it may.

        On submission somebody has signed in by now. ``size`` is what SIZE= said.
        """
        ...

    def may_receive(
        self, client: Client, sender: Mailbox | None, recipient: Mailbox
    ) -> Recipient | Reply | Later:
        """Return where mail for a recipient goes, or why it is refused.

        ``Relayed`` to nobody but who signed in: this is what an open relay is made of.
        """
        ...

    def examine_at_once(
        self, client: Client, envelope: Envelope, body: Body, front: bytes
    ) -> Examined | Reply | None:
        """Do what ``examine`` does where nothing has to be waited for.

        None: something has, and ``examine`` is to be asked; nothing was done. Most mail
        of a busy host goes this way, and a task for each message would cost as much as
        all the rest.
        """
        ...

    async def examine(
        self, client: Client, envelope: Envelope, body: Body, front: bytes
    ) -> Examined | Reply:
        """Look at a message that is whole, and not kept yet; add to it, change it, or refuse.

        ``front`` is its first bytes (spool.FRONT of them at most): mostly the header
        block. ``body`` may be a file; reading it is for an executor. Whoever refuses need
        not discard it. It has not the trace header of this hop yet.
        """
        ...


@dataclass(frozen=True, slots=True)
class HousePolicy:
    """Takes mail for mailboxes here, whoever brings it, and nothing else."""

    local: AcceptPolicy
    mechanisms: tuple[str, ...] = ()

    def sign_in(self, client: Client, mechanism: str) -> SignIn | Reply:
        return NO_SIGN_IN

    def may_send(
        self, client: Client, sender: Mailbox | None, size: int | None
    ) -> Reply | Later | None:
        return None

    def may_receive(
        self, client: Client, sender: Mailbox | None, recipient: Mailbox
    ) -> Recipient | Reply | Later:
        return self.local.expand(recipient)

    def examine_at_once(
        self, client: Client, envelope: Envelope, body: Body, front: bytes
    ) -> Examined | Reply | None:
        return Examined(body)

    async def examine(
        self, client: Client, envelope: Envelope, body: Body, front: bytes
    ) -> Examined | Reply:
        return Examined(body)
