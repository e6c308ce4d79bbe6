"""The values every part of the system shares. No input or output, no clock.

Rules of this file: values are frozen; each is valid once it exists (the constructors
named ``parse`` refuse everything else with BadInput); words are those of
docs/explanation/architecture.md.
"""

import ipaddress
import re
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import NewType, Self

from vnsmail.errors import BadInput

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

HostName = NewType("HostName", str)
"""A fully qualified domain name: lower case, A-labels, no dot at the end."""

MACHINE = "machine"
"""The owner of the machine's own mail. It has no dot, so no virtual host has it."""

Owner = NewType("Owner", str)
"""Who a message or socket belongs to: a virtual host's name, or MACHINE."""

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def domain_name(text: str, what: str = "domain") -> HostName:
    """Return ``text`` as a canonical domain name of two labels or more.

    U-labels are turned into A-labels (RFC 5890) so that one name has one spelling.
    Length limits are those of RFC 1035 section 2.3.4.

    Raises:
        BadInput: it is not such a name.
    """
    name = text.strip().rstrip(".").lower()
    try:
        name.encode("ascii")
    except UnicodeEncodeError:
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            raise BadInput(
                what, text, "not a domain name that IDNA can write"
            ) from None
    labels = name.split(".")
    if len(labels) < 2:
        raise BadInput(what, text, "give a full name such as alpha.example")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise BadInput(
            what, text, "use labels of letters, digits and inner hyphens, 63 at most"
        )
    if labels[-1].isdigit():
        raise BadInput(what, text, "this is an address, not a name")
    return HostName(name)


def host_name(text: str) -> HostName:
    """Return ``text`` as the name of a virtual host.

    Raises:
        BadInput: it is not a fully qualified domain name.
    """
    return domain_name(text, "virtual host")


def ip_address(text: str) -> IPAddress:
    """Return ``text`` as the address of one machine, without a prefix.

    Raises:
        BadInput: it is none.
    """
    try:
        address = ipaddress.ip_address(text.strip())
    except ValueError:
        raise BadInput("address", text, "write it as 10.77.0.1 or fd77::1") from None
    if isinstance(address, ipaddress.IPv6Address) and (
        address.ipv4_mapped or address.scope_id
    ):
        raise BadInput("address", text, "give it without a scope, and not as mapped")
    if address.is_multicast or address.is_unspecified:
        raise BadInput("address", text, "it stands for no single machine")
    return address


# A dot-string (RFC 5321 section 4.1.2) in lower case, without the slash: a user's
# mailbox is a folder of that name.
_LOCAL_PART = re.compile(r"[a-z0-9!#$%&'*+=?^_`{|}~-]+(\.[a-z0-9!#$%&'*+=?^_`{|}~-]+)*")
_LOCAL_PART_OCTETS = 64  # RFC 5321 section 4.5.3.1.1


def local_part(text: str) -> str:
    """Return ``text`` as what stands before the @ of a user.

    Raises:
        BadInput: it cannot be the name of a mailbox.
    """
    if _LOCAL_PART.fullmatch(text) and len(text) <= _LOCAL_PART_OCTETS:
        return text
    raise BadInput(
        "user",
        text,
        "before the @, use up to 64 of a-z, 0-9 and !#$%&'*+=?^_`{|}~- with "
        "single dots between them",
    )


def mail_address(text: str, what: str = "address") -> str:
    """Return ``text`` as an address that mail can be sent to, the domain in one spelling.

    Before the @ is a dot-string (RFC 5321 section 4.1.2), as it was written: only who
    has the address knows whether upper case means another.

    Raises:
        BadInput: it is none.
    """
    before, at, domain = text.strip().rpartition("@")
    named = _LOCAL_PART.fullmatch(before.lower().replace("/", "x"))
    if not (at and named and before.isascii() and len(before) <= _LOCAL_PART_OCTETS):
        raise BadInput(what, text, "write it as user@alpha.example")
    return f"{before}@{domain_name(domain, what)}"


CATCH_ALL = "*"
"""The local part of the alias that takes what no user and no other alias does."""


def alias_local_part(text: str) -> str:
    """Return ``text`` as what stands before the @ of an alias, or CATCH_ALL.

    Raises:
        BadInput: it cannot be that of an alias.
    """
    if text == CATCH_ALL:
        return text
    try:
        return local_part(text)
    except BadInput as error:
        raise BadInput("alias", text, f"{error.remedy}, or * alone") from None


class Family(IntEnum):
    """An address family; the value is the IP version."""

    IPV4 = 4
    IPV6 = 6


class Context(StrEnum):
    """Where a virtual host's sockets live."""

    NAMESPACE = "namespace"
    """A network namespace of its own (network_namespaces(7))."""
    ALIAS = "alias"
    """An address added to a link of the machine."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the context of that name; raises BadInput for any other."""
        try:
            return cls(text)
        except ValueError:
            raise BadInput(
                "context", text, f"choose one of {', '.join(c.value for c in cls)}"
            ) from None


class Uplink(StrEnum):
    """How a namespace reaches the network."""

    BRIDGE = "bridge"
    """A veth pair whose outer end is a port of a bridge of the machine."""
    MACVLAN = "macvlan"
    """A macvlan device, mode bridge, on a link of the machine."""
    ROUTED = "routed"
    """A veth pair with no other host on it: the machine routes between it and a link."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the uplink of that name; raises BadInput for any other."""
        try:
            return cls(text)
        except ValueError:
            raise BadInput(
                "uplink", text, f"choose one of {', '.join(u.value for u in cls)}"
            ) from None


class SourceCheck(StrEnum):
    """What is proven of the address that a virtual host's mail leaves from."""

    STRICT = "strict"
    """It is the host's own, in its packets and at the remote."""
    NAT = "nat"
    """It is the host's own up to the uplink; remotes see its public address."""
    OFF = "off"
    """Nothing is judged. Sockets are bound to the host's address all the same."""


class Authentication(StrEnum):
    """What becomes of mail from strangers that may not be from whom it says."""

    NONE = "none"
    """Nothing is checked."""
    MARK = "mark"
    """What was found stands in an Authentication-Results field (RFC 8601)."""
    REJECT = "reject"
    """And what its author's domain wants refused (DMARC, p=reject) is refused."""


class Engine(StrEnum):
    """What sends a virtual host's mail to other servers."""

    NATIVE = "native"
    """Ours."""
    SENDMAIL = "sendmail"
    POSTFIX = "postfix"
    EXIM = "exim"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the engine of that name; raises BadInput for any other."""
        try:
            return cls(text)
        except ValueError:
            raise BadInput(
                "engine", text, f"choose one of {', '.join(e.value for e in cls)}"
            ) from None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a virtual host may use of the machine; None is as much as there is."""

    messages_per_hour: int | None = None
    """Messages taken for sending in any hour, one a message whatever its recipients."""
    connections: int | None = None
    """Connections open at a time, those that come in and those that go out each."""
    queue_bytes: int | None = None
    """Octets that the messages in its queue have together."""


NO_LIMITS = Limits()


def server(text: str, what: str = "server") -> str:
    """Return ``text`` as a name or ``[address]``, with or without ``:port``.

    Raises:
        BadInput: it is none.
    """
    text = text.strip().lower()
    name, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        name, port = text, ""
    if colon and name != text and not (port.isdecimal() and 0 < int(port) < 65536):
        raise BadInput(what, text, "the port is a number from 1 to 65535")
    if name.startswith("[") and name.endswith("]"):
        ip_address(name[1:-1])
    else:
        name = domain_name(name, what)
    return f"{name}:{port}" if port else name


@dataclass(frozen=True, slots=True)
class Relay:
    """The server that all of a host's mail for others leaves by (a smart host)."""

    server: str
    """Name or ``[address]``, with ``:port`` where it is not that of the settings."""
    user: str = ""
    """Who the host signs in as (RFC 4954); empty: it does not."""
    password_file: str = ""
    """Absolute path of the file with the password; empty: vnsmail keeps it."""


def relay(server_name: str, user: str = "", password_file: str = "") -> Relay:
    """Return a relay, checked.

    Raises:
        BadInput: there cannot be such a one.
    """
    found = Relay(server(server_name, "relay"), user, password_file)
    if user and (len(user) > _LONGEST_USER or not user.isprintable()):
        raise BadInput("relay user", user, "use up to 255 printable characters")
    if user and found.server.startswith("["):
        # Its certificate has to be for a name.
        remedy = "to sign in, give the relay by name: its certificate is looked at"
        raise BadInput("relay", found.server, remedy)
    if password_file and not user:
        raise BadInput("relay", found.server, "a password goes with a user")
    if password_file and not password_file.startswith("/"):
        raise BadInput("password file", password_file, "give its absolute path")
    return found


_LONGEST_USER = 255


@dataclass(frozen=True, slots=True, order=True)
class SourceAddress:
    """An address a virtual host sends from, with the prefix length of its network."""

    address: IPAddress
    prefix_length: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the address written as ``ADDRESS/PREFIX`` (10.77.0.11/24).

        Without a prefix the whole address is the network (/32, /128).

        Raises:
            BadInput: not an address that a host can send from.
        """
        try:
            interface = ipaddress.ip_interface(text.strip())
        except ValueError:
            raise BadInput(
                "address", text, "write it as 10.77.0.11/24 or fd77::11/64"
            ) from None
        address = interface.ip
        # ``ip`` has lost the scope, so the interface is asked.
        if isinstance(interface, ipaddress.IPv6Interface) and (
            interface.ipv4_mapped or interface.scope_id
        ):
            raise BadInput("address", text, "a mapped or scoped address is no source")
        if address.is_multicast or address.is_unspecified or address.is_loopback:
            raise BadInput("address", text, "mail cannot come from such an address")
        if address.is_link_local:
            raise BadInput("address", text, "a link-local address reaches no mail host")
        network = interface.network
        if network.num_addresses > 2 and (
            address == network.network_address
            or (address.version == 4 and address == network.broadcast_address)
        ):
            raise BadInput(
                "address", text, f"it is the network or broadcast address of {network}"
            )
        return cls(address, network.prefixlen)

    @property
    def family(self) -> Family:
        return Family(self.address.version)

    @property
    def network(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        return ipaddress.ip_network(
            f"{self.address}/{self.prefix_length}", strict=False
        )

    def __str__(self) -> str:
        return f"{self.address}/{self.prefix_length}"


@dataclass(frozen=True, slots=True)
class VirtualHost:
    """A tenant: its name, where its sockets live, its addresses and mail domains."""

    name: HostName
    context: Context
    addresses: tuple[SourceAddress, ...]
    """At least one; the first of each family is the one mail is sent from."""
    domains: tuple[HostName, ...]
    """Domains whose mail it takes and sends; the host's name is always the first."""
    link: str
    """The machine's link: bridge or parent of the namespace, or holder of the alias."""
    uplink: Uplink | None = None
    """How the namespace reaches the network; None in an alias context."""
    gateways: tuple[IPAddress, ...] = ()
    """Default routers for what leaves from its addresses, at most one a family. In an
    alias context none means that the machine's own routes are used."""
    mtu: int | None = None
    """Octets of the largest packet on its link (netdevice(7)); None is as its uplink."""
    vlan: int | None = None
    """Tag of its packets on the uplink, 1 to 4094 (IEEE 802.1Q); None is untagged."""
    resolvers: tuple[IPAddress, ...] = ()
    """Name servers that it asks from its own address; none means those of vnsmail."""
    source_check: SourceCheck = SourceCheck.STRICT
    public_addresses: tuple[IPAddress, ...] = ()
    """What remotes see in place of its sources behind NAT, at most one a family."""
    limits: Limits = NO_LIMITS
    suspended: bool = False
    """Nothing is sent or received; its queue, users and network stay."""
    authentication: Authentication = Authentication.MARK
    """What becomes of mail from strangers that may not be from whom it says."""
    helo: HostName | None = None
    """What it calls itself to remotes and clients (RFC 5321 section 4.1.1.1); None is
    its name."""
    engine: Engine = Engine.NATIVE
    """What sends its mail; a real mail server runs in its context, with a queue of its
    own, and gets what its users send from ours."""
    relay: Relay | None = None
    """Where its mail for others goes; None: where DNS and the settings say."""

    @property
    def says(self) -> HostName:
        """Return the name it gives in EHLO, greetings and trace headers."""
        return self.helo or self.name

    def source(self, family: Family) -> SourceAddress | None:
        """Return the address mail of that family leaves from, if there is one."""
        return next((a for a in self.addresses if a.family is family), None)

    @property
    def families(self) -> frozenset[Family]:
        return frozenset(a.family for a in self.addresses)


@dataclass(frozen=True, slots=True)
class User:
    """Someone with a mailbox at a virtual host."""

    host: HostName
    local_part: str
    """Lower case; what stands before the @, at any of the host's domains."""
    suspended: bool = False
    """May not sign in; mail is still taken for it."""
    quota: int | None = None
    """Octets its mailbox may have; None is as many as there is room for."""


class Priority(IntEnum):
    """Which messages of one destination go first; the value is their order."""

    HIGH = 0
    NORMAL = 1
    BULK = 2

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the priority of that name; raises BadInput for any other."""
        try:
            return cls[text.upper()]
        except KeyError:
            names = ", ".join(each.name.lower() for each in cls)
            raise BadInput("priority", text, f"choose one of {names}") from None


class Role(StrEnum):
    """What a listening socket is for."""

    MX = "mx"
    """Mail from other servers, for mailboxes here (port 25)."""
    SUBMISSION = "submission"
    """Mail from users who sign in (RFC 6409; ports 587 and 465)."""


class TlsWish(StrEnum):
    """What a sender wants of the encryption of a message on its way (RFC 8689)."""

    USUAL = ""
    REQUIRED = "required"
    """REQUIRETLS: only to servers that have proven who they are, and ask the same."""
    OPTIONAL = "optional"
    """``TLS-Required: No``: what destinations ask for does not count."""


class Ret(StrEnum):
    """What a notification of failure carries of the message (RFC 3461 section 4.3)."""

    FULL = "FULL"
    HDRS = "HDRS"


class Notify(StrEnum):
    """When a sender wants to be told of a recipient (RFC 3461 section 4.1)."""

    NEVER = "NEVER"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    DELAY = "DELAY"


@dataclass(frozen=True, slots=True)
class DsnRequest:
    """What a sender asked to be told of one recipient (RFC 3461)."""

    recipient: str
    """As in the envelope."""
    notify: tuple[Notify, ...] = ()
    """NEVER alone, or some of the others in their order; empty: the sender did not say."""
    orcpt: str = ""
    """The original recipient as it goes on the wire, ``type;xtext``; empty: not given."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a user proves who it is with; both empty: nobody signs in."""

    password: str = field(repr=False)
    """Hash of the password, as Argon2 writes it (RFC 9106)."""
    scram: str = field(repr=False)
    """Keys for SCRAM-SHA-256, as RFC 5803 writes them."""


@dataclass(frozen=True, slots=True)
class Alias:
    """A local part whose mail goes elsewhere."""

    host: HostName
    local_part: str
    """Lower case, or CATCH_ALL; at any of the host's domains."""
    targets: tuple[str, ...]
    """Addresses, here or elsewhere, at least one."""


@dataclass(frozen=True, slots=True)
class Login:
    """A local account, and the user of a virtual host that it sends as."""

    uid: int
    name: str
    user: User


def account(text: str) -> str:
    """Return the name of a local account, or its uid, as it can be written down.

    Raises:
        BadInput: no account can be called so.
    """
    if not _ACCOUNT.fullmatch(text):
        raise BadInput("account", text, "give the name of a local account, or its uid")
    return text


_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}\$?")
"""What useradd(8) takes, and what is in use beyond it."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What SMTP says of a message, apart from the message (RFC 5321 section 2.3.1)."""

    id: str
    """Queue id: unique in its queue, sorts by time of arrival."""
    owner: Owner
    sender: str
    """Reverse-path without brackets; empty for the null reverse-path."""
    recipients: tuple[str, ...]
    """Forward-paths without brackets, at least one."""
    received_at: float
    """Seconds since the epoch."""
    eight_bit: bool = False
    """The body was announced as BODY=8BITMIME (RFC 6152)."""
    smtputf8: bool = False
    """The message needs SMTPUTF8 on its way (RFC 6531)."""
    priority: Priority = Priority.NORMAL
    ret: Ret | None = None
    """What a notification is to carry; None: the sender did not say."""
    envid: str = ""
    """What the sender calls the transaction, as xtext (RFC 3461 section 4.4)."""
    requests: tuple[DsnRequest, ...] = ()
    """Of the recipients whose sender asked for something, in their order."""
    tls: TlsWish = TlsWish.USUAL

    def request(self, recipient: str) -> DsnRequest:
        """Return what was asked for a recipient: nothing, as a rule."""
        for request in self.requests:
            if request.recipient == recipient:
                return request
        return DsnRequest(recipient)


class Verdict(StrEnum):
    """What became of one recipient in one attempt."""

    DELIVERED = "delivered"
    DEFERRED = "deferred"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Contact:
    """The connection that an outcome came over, as the kernel and the clock have it.

    Times are seconds: from asking for a socket to the connection, from there to the
    answer to EHLO, from the body's first octet to the last reply, and of the whole
    transaction. The first two are 0 on a connection that was used before.
    """

    source: str
    """Address that getsockname(2) gave."""
    source_port: int
    helo: str
    """The name given in EHLO."""
    remote: str
    """Name of the server asked."""
    remote_address: str
    remote_port: int
    tls: str = ""
    """Version and cipher; empty without."""
    tls_verified: str = ""
    """What the server proved: ``no``, ``certificate (by whom it is wanted)``, ``dane``."""
    connect: float = 0.0
    hello: float = 0.0
    data: float = 0.0
    total: float = 0.0
    dsn: bool = False
    """The server takes over notifications: it offers DSN, and was told (RFC 3461)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one attempt for one recipient."""

    verdict: Verdict
    reply_code: int
    """The remote's reply code, or ours where no remote answered (RFC 5321 4.2)."""
    enhanced: str
    """Enhanced status code such as 5.1.1 (RFC 3463)."""
    text: str
    """One line a person understands: the remote's text, or our reason."""
    remote: str = ""
    """Name and address of the remote asked, empty where none was reached."""
    source: str = ""
    """The socket's own address as getsockname(2) gave it, empty where none was."""
    not_an_attempt: bool = field(default=False, compare=False)
    """The source was missing: no remote was asked, and no retry is used up."""
    unreachable: bool = field(default=False, compare=False)
    """It is the destination that failed, whatever the message: no connection, no DNS."""
    contact: Contact | None = field(default=None, compare=False)
    """The connection, where there was one."""
