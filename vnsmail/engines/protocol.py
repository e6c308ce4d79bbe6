"""What the supervisor and a worker say to each other.

Pure. Each message is one msgpack value over a channel (vnsmail/channel.py). The
supervisor asks, the worker answers with the same ``id``; a worker never asks. Unknown
fields and tags are refused, so that the two ends cannot drift apart unnoticed.
"""

from typing import Literal, TypeAlias

import msgspec

from vnsmail.model import NO_LIMITS, Envelope, Limits, Priority
from vnsmail.queue.selection import Selection

Action: TypeAlias = Literal["retry", "hold", "release", "delete", "bounce"]
"""What is done to queued messages."""


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    id: int


class UserFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be known of a user besides that it has a mailbox."""

    local_part: str
    password: str = ""
    """Argon2 hash; empty: it cannot sign in."""
    scram: str = ""
    """Keys for SCRAM-SHA-256 (RFC 5803)."""
    suspended: bool = False
    quota: int | None = None
    senders: tuple[str, ...] = ()
    """Addresses that it may send as besides its own."""

    def __repr__(self) -> str:
        return f"UserFacts({self.local_part!r}, …)"


class DkimKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A private key that a worker signs with."""

    domain: str
    selector: str
    private: bytes
    """PKCS #8, DER."""

    def __repr__(self) -> str:
        """Return whose key it is, and nothing of it."""
        return f"DkimKey({self.selector}._domainkey.{self.domain})"


class Certificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What TLS is spoken with, for clients that ask for a name."""

    name: str
    """Whom they ask for (SNI); empty: for all others."""
    pem: bytes
    """Certificate, chain and key."""

    def __repr__(self) -> str:
        return f"Certificate({self.name!r}, …)"


class RelayLogin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The server that an owner's mail for others leaves by."""

    server: str
    user: str = ""
    """Who the owner signs in as; empty: it does not."""
    password: str = ""
    problem: str = ""
    """Why there is no password, though there is a user."""

    def __repr__(self) -> str:
        return f"RelayLogin({self.server!r}, {self.user!r}, …)"


class OwnerFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker must know of a virtual host, or of the machine, to serve it."""

    owner: str
    """The virtual host's name, or ``machine``."""
    name: str
    """The name given in EHLO, in the banner and in trace headers."""
    folder: str
    """Where its queue and mailboxes lie."""
    addresses: tuple[str, ...]
    """Its own addresses; none for the machine, whose sockets are unbound."""
    domains: tuple[str, ...]
    users: tuple[str, ...]
    """Local parts with a mailbox; empty with ``any_user``."""
    any_user: bool = False
    """Every local part has a mailbox (the machine's own name only)."""
    listen: bool = True
    """Whether mail is received on its addresses."""
    accounts: tuple[UserFacts, ...] = ()
    """Of users who can sign in, are suspended, or have a quota."""
    aliases: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Local part, and targets: local parts here, addresses elsewhere."""
    certificates: tuple[Certificate, ...] = ()
    """The default first; none: no TLS, and no submission."""
    secret: bytes = b""
    """The owner's own; answers for users who are not there are made of it."""
    authentication: str = "none"
    """A word of model.Authentication: what becomes of mail from strangers."""
    dkim: tuple[DkimKey, ...] = ()
    """Keys that what its users send is signed with."""
    suspended: bool = False
    """Nothing is sent or received; the queue is kept."""
    limits: Limits = NO_LIMITS
    resolvers: tuple[str, ...] = ()
    """Name servers of its own, asked from its own address; none: those of vnsmail."""
    engine: str = ""
    """What takes its mail for others (model.Engine); empty: its worker sends it."""
    relay: RelayLogin | None = None
    """Where its mail for others goes; None: where DNS and the settings say."""

    def __repr__(self) -> str:
        # It has what proves who users are, and a secret.
        return f"OwnerFacts({self.owner!r}, …)"


class LocalMail(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message that a local command left in the drop, or hands over."""

    owner: str
    sender: str
    """Reverse-path; empty for the null one."""
    recipients: tuple[str, ...]
    uid: int
    """Who ran the command, as the kernel says."""
    user: str = ""
    """Local part of the user who sends; empty if it may be any of the owner's."""
    name: str = ""
    """Stands beside the address in a From that is added."""
    take_recipients: bool = False
    """Those that the message names are recipients too."""
    logins: tuple[tuple[str, str], ...] = ()
    """Names of local accounts with the local parts of the users they are."""
    offset: int = 0
    """Bytes of the file that stand in front of the message."""
    token: str = ""
    """A queue takes a message with the same token once."""
    notify: str = ""
    returned: str = ""
    envelope_id: str = ""
    priority: Priority = Priority.NORMAL
    """Which messages of one destination go first."""
    require_tls: bool = False
    """Only by servers that have proven who they are, and ask the same (RFC 8689)."""


class Configure(_Message, frozen=True):
    """The first message: settings as JSON, and the name servers to ask."""

    worker: str
    settings: str
    resolvers: tuple[str, ...]
    authorities: bytes = b""
    """Certificates of those who are trusted to say who a server is, as PEM."""


class UseBroker(_Message, frozen=True):
    """Carries one descriptor: a channel to the broker that replaces any earlier."""


class UseEvents(_Message, frozen=True):
    """Carries one descriptor: the pipe that lines of the event log go through."""


class Assign(_Message, frozen=True):
    """Serve this owner, or take its changed facts. Answered when it is served."""

    facts: OwnerFacts


class Release(_Message, frozen=True):
    """Stop serving this owner and close its files."""

    owner: str


class Leave(_Message, frozen=True):
    """Answer when nothing is said any more from or to addresses that it had."""

    owner: str
    addresses: tuple[str, ...]
    seconds: float
    """After those, cut off what is still said."""


class Explain(_Message, frozen=True):
    """Tell where a message of an owner for an address would go."""

    owner: str
    address: str


class Tell(_Message, frozen=True):
    """Tell what has been counted for an owner."""

    owner: str


class Inject(_Message, frozen=True):
    """Queue a message that a local command hands over.

    Carries one descriptor, readable from the start: the message as it was given.
    """

    mail: LocalMail


class GiveBack(_Message, frozen=True):
    """Tell the sender that a message was refused when nobody waited for an answer.

    Carries the descriptor of it, as Inject does.
    """

    mail: LocalMail
    reason: str


class Report(_Message, frozen=True):
    """Say how every owner is doing."""


class ListQueue(_Message, frozen=True):
    """List queued messages of one owner, oldest first."""

    owner: str
    limit: int


class FindQueue(_Message, frozen=True):
    """List messages of one owner that are meant, a page."""

    owner: str
    selection: Selection = Selection()
    after: str = ""
    """Where the page before ended."""
    limit: int = 100
    header: bool = False
    """Return the header block too; of the first message."""


class WorkQueue(_Message, frozen=True):
    """Do something to messages of one owner that are meant, a page."""

    owner: str
    action: Action
    selection: Selection = Selection()
    after: str = ""
    reason: str = ""
    dry_run: bool = False


class HoldPlace(_Message, frozen=True):
    """Hold a destination of an owner, or all it sends; or hold it no more."""

    owner: str
    place: str
    """A domain; ``*`` is all."""
    reason: str = ""
    release: bool = False
    look_only: bool = False
    """Change nothing, and tell what is held."""


class BeginMove(_Message, frozen=True):
    """Hold messages that go to another host, a page; answer which are to be copied."""

    owner: str
    target: str = ""
    """Empty: finish what was begun before, wherever it goes."""
    domains: tuple[str, ...] = ()
    """Whose senders the target may send for."""
    selection: Selection = Selection()
    after: str = ""
    force: bool = False
    """Other senders too."""
    dry_run: bool = False


class CopyOut(_Message, frozen=True):
    """Write a message that moves into the file whose descriptor comes along."""

    owner: str
    queue_id: str


class Adopt(_Message, frozen=True):
    """Queue a message of another host's; its descriptor comes along."""

    owner: str
    envelope: Envelope
    source: str
    nonce: str


class EndMove(_Message, frozen=True):
    """Forget recipients of a message that another host has."""

    owner: str
    queue_id: str


class Stop(_Message, frozen=True):
    """Finish what is being said, keep the rest queued, and end."""


Request: TypeAlias = (
    Configure
    | UseBroker
    | UseEvents
    | Assign
    | Release
    | Leave
    | Tell
    | Explain
    | Inject
    | GiveBack
    | Report
    | ListQueue
    | FindQueue
    | WorkQueue
    | HoldPlace
    | BeginMove
    | CopyOut
    | Adopt
    | EndMove
    | Stop
)


class Done(_Message, frozen=True):
    """The request was carried out."""


class Failed(_Message, frozen=True):
    """The request was not carried out, and nothing of it is left."""

    text: str
    exit_code: int = 1


class Injected(_Message, frozen=True):
    """The message is durably in the queue under this queue id."""

    queue_id: str


class OwnerReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one owner is doing."""

    owner: str
    listening: tuple[str, ...]
    """Addresses with port on which mail is received."""
    sessions: int
    """Connections being received on now."""
    messages: int
    """Messages in the queue."""
    deferred: int
    """Recipients waiting for a further attempt."""
    oldest: float | None
    """When the oldest queued message arrived, seconds since the epoch."""
    problem: str
    """Why mail does not flow, empty if it does."""
    held: str = ""
    """Which address to send from is missing, and why; empty if none is. Meanwhile no
    attempt is made, and no retry used up."""
    held_since: float | None = None
    """Since when, seconds since the epoch."""
    resting: tuple[tuple[str, float, str], ...] = ()
    """Destinations that are down: name, until when, what was met; the first ones."""
    failed_sign_ins: int = 0
    """Since its worker took it."""
    octets: int = 0
    """Of all messages in the queue together."""
    suspended: bool = False
    engine: str = ""
    """What sends for it, if that is not its worker."""
    engine_messages: int = 0
    """Messages in the queue of that."""
    unread: bool = False
    """The queue cannot be read: nobody knows what is in it."""
    moving: int = 0
    """Messages on their way to other hosts' queues."""


class Tally(msgspec.Struct, forbid_unknown_fields=True):
    """Numbers of one owner since a moment; they only grow."""

    since: float
    """Seconds since the epoch: when counting began."""
    accepted: int = 0
    """Messages taken into the queue."""
    accepted_octets: int = 0
    refused: int = 0
    """Messages refused because a limit of the host was reached."""
    sent: int = 0
    """Recipients that a remote took."""
    sent_octets: int = 0
    delivered: int = 0
    """Recipients whose mailbox is here, and got it."""
    deferred: int = 0
    """Attempts for a recipient that came to nothing yet."""
    failed: int = 0
    """Recipients that will not get it; the sender is told."""
    connections_in: int = 0
    connections_out: int = 0


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One address of a mail exchanger, or an exchanger without one."""

    exchanger: str
    preference: int
    address: str
    turn: int
    """Which is tried first, from 1; 0: it is not tried."""
    why: str
    """Why it is not tried."""


class Explained(_Message, frozen=True):
    """Answer to Explain."""

    mailboxes: tuple[str, ...]
    """Where it is put, if the address is here; or whom it stands for."""
    targets: tuple[Target, ...]
    refusal: str
    """What would become of it at once; empty if it would be tried."""
    servers: tuple[str, ...]
    """Name servers that were asked."""
    tls: str


class Told(_Message, frozen=True):
    """Answer to Tell."""

    owner: str
    tally: Tally


class Reported(_Message, frozen=True):
    """Answer to Report."""

    owners: tuple[OwnerReport, ...]


class QueueEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message in a queue, with the recipients it still has to reach."""

    envelope: Envelope
    size: int
    recipients: tuple[tuple[str, int, float, str], ...]
    """Address, attempts made, next attempt (seconds since the epoch), last answer."""
    held: str = ""
    """Why an operator holds it, or its destinations; empty: nobody does."""
    active: bool = False
    """It is in memory, ready or under way."""


class QueueListed(_Message, frozen=True):
    """Answer to ListQueue."""

    entries: tuple[QueueEntry, ...]


class QueueFound(_Message, frozen=True):
    """Answer to FindQueue."""

    entries: tuple[QueueEntry, ...]
    place: str
    """Where the next page begins; empty: there is none."""
    header: str = ""


class QueueWorked(_Message, frozen=True):
    """Answer to WorkQueue: what was done, or would be."""

    messages: int
    recipients: int
    under_way: int
    """Messages that were left alone: they are being sent."""
    place: str


class PlaceHeld(_Message, frozen=True):
    """Answer to HoldPlace."""

    changed: bool
    holds: dict[str, str] = {}
    """What is held now, with the reason."""


class Leaving(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message on its way to another host."""

    queue_id: str
    target: str
    nonce: str
    recipients: int


class MoveBegun(_Message, frozen=True):
    """Answer to BeginMove."""

    leaving: tuple[Leaving, ...]
    under_way: int
    """Messages that were left alone: they are being sent, or go elsewhere."""
    refused: tuple[str, ...]
    """Queue ids of those whose sender the target does not send for."""
    place: str


class CopiedOut(_Message, frozen=True):
    """Answer to CopyOut: it is in the file."""

    envelope: Envelope | None
    """With the recipients that move; None: there are none any more."""


Answer: TypeAlias = (
    MoveBegun
    | CopiedOut
    | QueueFound
    | QueueWorked
    | PlaceHeld
    | Done
    | Failed
    | Injected
    | Told
    | Explained
    | Reported
    | QueueListed
)

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
