"""What the command line and the supervisor say to each other.

Pure. One JSON value a message over the control socket (SOCK_SEQPACKET, mode 0600): the
client sends one request, with at most one descriptor, and reads one answer.
"""

from typing import Literal, TypeAlias

import msgspec

from vnsmail.capture.audit_protocol import Found
from vnsmail.engines.protocol import (
    Action,
    OwnerReport,
    QueueEntry,
    Tally,
)
from vnsmail.model import Priority
from vnsmail.queue.selection import Selection


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    pass


class GetStatus(_Message, frozen=True):
    """How is the whole?"""


class CreateHost(_Message, frozen=True):
    """Create a virtual host. Words as the user typed them; the supervisor checks."""

    name: str
    addresses: tuple[str, ...]
    context: str
    link: str | None = None
    gateways: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    dry_run: bool = False
    uplink: str | None = None
    mtu: int | None = None
    vlan: int | None = None
    no_probe: bool = False
    """Take addresses without asking whether somebody has them."""
    engine: str = "native"


class DestroyHost(_Message, frozen=True):
    """Destroy a virtual host and everything that is its own."""

    name: str
    discard_queue: bool = False
    dry_run: bool = False


class ChangeHost(_Message, frozen=True):
    """Change facts of a host, in the words and values of the hosts file.

    A key of a table within the table is written with a dot (limits.connections); a
    value of null takes the fact away, so that it is as if it were not in the file.
    """

    name: str
    changes: dict[str, str | int | bool | tuple[str, ...] | None]
    dry_run: bool = False
    force: bool = False
    """Resume a host that was packed, and may be somewhere else by now."""
    relay_password: str = ""
    """Of the relay that it is to have after the change; empty: it stays."""

    def __repr__(self) -> str:
        return f"ChangeHost({self.name!r}, {self.changes!r}, …)"


class ChangeAddresses(_Message, frozen=True):
    """Give a host further addresses, or take some from it."""

    name: str
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    drain: float = 60.0
    """Seconds for what is being said from and to addresses that go."""
    dry_run: bool = False
    no_probe: bool = False


class RenameHost(_Message, frozen=True):
    """Give a host another name."""

    name: str
    new_name: str
    keep_domain: bool = True
    """Mail for the old name is taken still."""
    dry_run: bool = False


class PackHost(_Message, frozen=True):
    """Suspend a host, and write all that is its own into a file."""

    name: str
    to: str
    """Absolute path: a file that is not there yet, or a folder."""


class UnpackHost(_Message, frozen=True):
    """Make a host of a pack. What is not given is as the pack or the machine has it."""

    file: str
    addresses: tuple[str, ...] = ()
    context: str | None = None
    link: str | None = None
    gateways: tuple[str, ...] = ()
    uplink: str | None = None
    no_probe: bool = False
    dry_run: bool = False
    force: bool = False
    """Also if the pack became a host here before."""


class GetTally(_Message, frozen=True):
    """What has been counted for a host?"""

    name: str


class ExplainHost(_Message, frozen=True):
    """Where would a message of a host for an address go?"""

    name: str
    address: str


class ApplyHosts(_Message, frozen=True):
    """Make the virtual hosts of a file (directory/declaration.py) all there are."""

    text: str
    discard_queue: bool = False
    dry_run: bool = False
    no_probe: bool = False


class WatchMail(_Message, frozen=True):
    """Start or end the audit; None: neither. How is it?"""

    on: bool | None = None


class GetProgress(_Message, frozen=True):
    """How far is what is under way?"""


class Proofs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of a password (sasl/passwords.py); nothing: nobody signs in."""

    password: str = ""
    scram: str = ""

    def __repr__(self) -> str:
        return "Proofs(…)"


class AddUser(_Message, frozen=True):
    """Give a user of a virtual host a mailbox."""

    address: str
    proofs: Proofs = Proofs()
    quota: int | None = None


class SetPassword(_Message, frozen=True):
    """Give a user another password."""

    address: str
    proofs: Proofs


class SuspendUser(_Message, frozen=True):
    """Let a user sign in no more, or again."""

    address: str
    suspended: bool


class SetQuota(_Message, frozen=True):
    """Limit the octets of a user's mailbox; None is no limit."""

    address: str
    quota: int | None


class AllowSender(_Message, frozen=True):
    """Let a user send as one more address, or no more."""

    address: str
    sender: str
    allowed: bool = True


class AddAlias(_Message, frozen=True):
    """Send mail for an address elsewhere; targets come behind those it has."""

    address: str
    targets: tuple[str, ...]


class RemoveAlias(_Message, frozen=True):
    """Remove an alias; or some targets of it, where any are given."""

    address: str
    targets: tuple[str, ...] = ()


class RemoveUser(_Message, frozen=True):
    """Remove a user; the mailbox folder stays."""

    address: str


class AddLogin(_Message, frozen=True):
    """Let a local account send as a user."""

    address: str
    uid: int
    name: str


class RemoveLogin(_Message, frozen=True):
    """Let a local account send no more; its name as it was given, or its uid."""

    account: str


class Send(_Message, frozen=True):
    """Queue a message. Carries one descriptor: the message."""

    sender: str
    recipients: tuple[str, ...]
    machine: bool = False
    """Send as the machine itself, from an unbound socket."""
    priority: Priority = Priority.NORMAL
    require_tls: bool = False
    """Only by servers that have proven who they are, and ask the same (RFC 8689)."""


class ListQueue(_Message, frozen=True):
    """List queued messages of one owner, or of all."""

    owner: str | None
    limit: int


class FindQueue(_Message, frozen=True):
    """List queued messages of one owner that are meant, a page."""

    owner: str
    selection: Selection = Selection()
    after: str = ""
    """Where the page before ended."""
    limit: int = 100
    header: bool = False
    """Return the header block of the first one too."""


class WorkQueue(_Message, frozen=True):
    """Do something to queued messages of one owner that are meant, a page."""

    owner: str
    action: Action
    selection: Selection = Selection()
    after: str = ""
    reason: str = ""
    dry_run: bool = False


class HoldPlace(_Message, frozen=True):
    """Hold a destination of an owner, or all it sends (``*``); or hold it no more."""

    owner: str
    place: str
    reason: str = ""
    release: bool = False
    look_only: bool = False
    """Change nothing, and tell what is held."""


class MoveQueue(_Message, frozen=True):
    """Move queued messages of one owner that are meant to another host, a page."""

    owner: str
    target: str
    selection: Selection = Selection()
    after: str = ""
    force: bool = False
    """Also those whose sender is in none of its domains."""
    dry_run: bool = False


class GetGuard(_Message, frozen=True):
    """How are a host's source addresses guarded by the kernel?"""

    name: str


class SetCertificate(_Message, frozen=True):
    """Speak TLS with this certificate."""

    host: str
    certificate: bytes
    """PEM, with its chain."""
    key: bytes
    """PEM."""
    names: tuple[str, ...] = ()
    """Whom clients ask for that get it; none: it is the host's own."""

    def __repr__(self) -> str:
        return f"SetCertificate({self.host!r}, …)"


class RemoveCertificate(_Message, frozen=True):
    """Forget a certificate; without a name the host's own, in whose place one is made."""

    host: str
    name: str = ""


class GetCertificates(_Message, frozen=True):
    """Which certificates has a host?"""

    host: str


class ChangeDkim(_Message, frozen=True):
    """Make, rotate, put to use or remove DKIM keys of a host."""

    name: str
    action: Literal["create", "rotate", "activate", "remove"]
    domain: str | None = None
    """None: all domains of the host."""
    selector: str | None = None
    algorithms: tuple[str, ...] = ()
    active: bool = False
    """Sign with new keys at once, before anybody has seen their records."""


class ListDkim(_Message, frozen=True):
    """Which DKIM keys has a host, or have all?"""

    name: str | None = None


class GetMetrics(_Message, frozen=True):
    """What is measured?"""


class ShutDown(_Message, frozen=True):
    """End the supervisor and all its processes."""


PeopleRequest: TypeAlias = (
    AddUser
    | RemoveUser
    | SetPassword
    | SuspendUser
    | SetQuota
    | AllowSender
    | AddAlias
    | RemoveAlias
)

Request: TypeAlias = (
    GetStatus
    | WatchMail
    | CreateHost
    | DestroyHost
    | ChangeHost
    | ChangeAddresses
    | RenameHost
    | PackHost
    | UnpackHost
    | GetTally
    | ExplainHost
    | ApplyHosts
    | GetProgress
    | PeopleRequest
    | AddLogin
    | RemoveLogin
    | Send
    | ListQueue
    | FindQueue
    | WorkQueue
    | HoldPlace
    | MoveQueue
    | GetGuard
    | SetCertificate
    | RemoveCertificate
    | GetCertificates
    | ChangeDkim
    | ListDkim
    | GetMetrics
    | ShutDown
)


class ProcessStatus(msgspec.Struct, frozen=True):
    """One process of the system."""

    name: str
    state: str
    """A state of supervisor/process.py."""
    pid: int | None
    restarts: int
    privileges: str
    owners: tuple[str, ...] = ()


class Drift(msgspec.Struct, frozen=True):
    """Something that others changed in the network."""

    at: float
    """Seconds since the epoch."""
    host: str
    missing: tuple[str, ...]
    """What was to be done so that it is as it should be."""
    problem: str = ""
    """Why it was not put back; empty if it was."""


class Status(_Message, frozen=True):
    """Answer to GetStatus."""

    pid: int
    root: str
    processes: tuple[ProcessStatus, ...]
    owners: tuple[OwnerReport, ...]
    problems: tuple[tuple[str, str], ...]
    """Virtual hosts that cannot be served, and why."""
    watching: str = ""
    """How much of the network is heard of at once."""
    drifts: tuple[Drift, ...] = ()
    """What others changed in it, the last ones, newest last."""


class Planned(_Message, frozen=True):
    """Answer to what changes the network: the steps, done or only planned."""

    steps: tuple[str, ...]
    changed: bool


class Changed(_Message, frozen=True):
    """Answer to what changes a host: in words, and the steps of the network."""

    details: tuple[str, ...]
    steps: tuple[str, ...]
    changed: bool


class Packed(_Message, frozen=True):
    """Answer to PackHost."""

    file: str
    pack: str
    files: int
    octets: int


class Unpacked(_Message, frozen=True):
    """Answer to UnpackHost."""

    host: str
    addresses: tuple[str, ...]
    steps: tuple[str, ...]
    changed: bool


class Told(_Message, frozen=True):
    """Answer to GetTally."""

    tally: Tally


class WayTo(msgspec.Struct, frozen=True):
    """One target of a message, and the way there."""

    exchanger: str
    preference: int
    address: str
    turn: int
    why: str
    source: str = ""
    """What the socket would be bound to."""
    link: str = ""
    gateway: str = ""


class PathOf(_Message, frozen=True):
    """Answer to ExplainHost."""

    context: str
    namespace: str
    sources: tuple[str, ...]
    helo: str
    engine: str
    servers: tuple[str, ...]
    mailboxes: tuple[str, ...]
    targets: tuple[WayTo, ...]
    refusals: tuple[str, ...]
    """Why it would not be sent now, or ever."""
    tls: str
    limits: dict[str, int]


class HostChange(msgspec.Struct, frozen=True):
    """What became of one host, or would."""

    name: str
    action: Literal["create", "change", "mend", "destroy"]
    details: tuple[str, ...] = ()
    problem: str = ""
    """Why it could not be done, or not yet; empty if it is done."""


class FileProblem(msgspec.Struct, frozen=True):
    """One thing that is wrong in a file."""

    line: int
    key: str
    text: str


class Applied(_Message, frozen=True):
    """Answer to ApplyHosts: what was done, or would be; or why nothing was."""

    changes: tuple[HostChange, ...] = ()
    steps: tuple[str, ...] = ()
    """Those of the network."""
    unchanged: int = 0
    """Hosts that are as the file says."""
    problems: tuple[FileProblem, ...] = ()
    """What is wrong in the file. If there is anything, nothing was changed."""


class Progress(_Message, frozen=True):
    """Answer to GetProgress; empty where nothing is under way."""

    what: str = ""
    done: int = 0
    total: int = 0


class Queued(_Message, frozen=True):
    """Answer to Send: the message is durable in this owner's queue."""

    owner: str
    queue_id: str


class QueueListed(_Message, frozen=True):
    """Answer to ListQueue."""

    entries: tuple[QueueEntry, ...]


class QueuePage(_Message, frozen=True):
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


class QueueMoved(_Message, frozen=True):
    """Answer to MoveQueue: what was moved, or would be."""

    messages: int
    recipients: int
    under_way: int
    refused: tuple[str, ...]
    """Queue ids of those whose sender is in none of the target's domains."""
    place: str


class PlaceHeld(_Message, frozen=True):
    """Answer to HoldPlace."""

    changed: bool
    holds: dict[str, str] = {}


class Guarded(_Message, frozen=True):
    """Answer to GetGuard."""

    problem: str
    """Why there is no guard; empty if there is one."""
    dropped_packets: int = 0
    """Of the host's own sockets, from an address that is not the host's."""
    dropped_bytes: int = 0
    borrowed_packets: int = 0
    """Of others' sockets, from an address of the host."""
    forged_packets: int = 0
    """Out of its namespace to the machine, from an address that is not the host's."""
    identity: int = 0
    """Which its namespace is (net/namespaces.py); 0: it has none, or none that is
    known."""


class CertificateFacts(msgspec.Struct, frozen=True):
    """What a certificate says; empty where its file cannot be read."""

    name: str
    """Whom clients ask for that get it; empty: all others."""
    names: tuple[str, ...] = ()
    """Names that it is for."""
    issuer: str = ""
    expires: float = 0.0
    """Seconds since the epoch."""
    fingerprint: str = ""
    """SHA-256, as hexadecimal digits."""
    self_signed: bool = False


class Certificates(_Message, frozen=True):
    """Answer to what is about certificates: all that the host has, the default first."""

    entries: tuple[CertificateFacts, ...]


class DkimFacts(msgspec.Struct, frozen=True):
    """A DKIM key, without its private half."""

    host: str
    domain: str
    selector: str
    algorithm: str
    state: str
    """See supervisor/signing_keys.py."""
    changed_at: float
    """Since when, seconds since the epoch."""
    public: str
    """What p= of its record says."""


class DkimKeys(_Message, frozen=True):
    """Answer to ChangeDkim and ListDkim."""

    keys: tuple[DkimFacts, ...]


class Watched(_Message, frozen=True):
    """Answer to WatchMail: what the audit found (supervisor/auditing.py)."""

    state: str
    """``off``, or the state of its process."""
    pid: int | None = None
    since: float = 0.0
    """Seconds since the epoch."""
    links: tuple[str, ...] = ()
    packets: int = 0
    connections: int = 0
    """That were seen to begin."""
    right: int = 0
    wrong: int = 0
    given_up: int = 0
    """That said no EHLO until others came in their place."""
    dropped: int = 0
    """Packets for which there was no room."""
    problem: str = ""
    """What keeps it from seeing everything; empty: nothing."""
    found: tuple[Found, ...] = ()
    """The wrong ones, the last of them last."""


class Measured(_Message, frozen=True):
    """Answer to GetMetrics."""

    text: str
    """In Prometheus' text format."""


class Done(_Message, frozen=True):
    """The request was carried out."""


class Error(_Message, frozen=True):
    """The request was refused or failed; nothing of it is left."""

    text: str
    exit_code: int
    kind: Literal["error"] = "error"


Answer: TypeAlias = (
    Status
    | Watched
    | Planned
    | Changed
    | Packed
    | Unpacked
    | Told
    | PathOf
    | Applied
    | Progress
    | Queued
    | QueueListed
    | QueuePage
    | QueueWorked
    | QueueMoved
    | PlaceHeld
    | Guarded
    | Measured
    | Certificates
    | DkimKeys
    | Done
    | Error
)

encode = msgspec.json.Encoder().encode
decode_request = msgspec.json.Decoder(Request).decode
decode_answer = msgspec.json.Decoder(Answer).decode
