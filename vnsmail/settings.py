"""vnsmail.toml, and where everything lies, as frozen values.

A root is one installation: its settings file, durable state and runtime files. The
default root keeps them where the Filesystem Hierarchy Standard wants them; any other
root keeps everything below one folder.

    default root                      --root DIR
    /etc/vnsmail/vnsmail.toml         DIR/vnsmail.toml      settings, optional
    /var/lib/vnsmail/directory.db     DIR/directory.db      which hosts should exist
    /var/lib/vnsmail/hosts/HOST/      DIR/hosts/HOST/       queue.db, body/, mail/USER/
    /var/lib/vnsmail/tls/HOST/        DIR/tls/HOST/         certificates and keys
    /var/lib/vnsmail/dkim/HOST/       DIR/dkim/HOST/        DKIM keys, root's alone
    /var/lib/vnsmail/relay/HOST/      DIR/relay/HOST/       password for its relay, root's alone
    /var/lib/vnsmail/machine/         DIR/machine/          queue.db of the machine
    /run/vnsmail/                     DIR/run/              control socket, pid, log
    /var/log/vnsmail/events.jsonl     DIR/log/events.jsonl  what became of each message

Unknown keys are refused: a typing error must not become a default. So is a value of
another kind than the key has: ``port = "25"`` or ``count = true`` was not thought over.
"""

import hashlib
import ipaddress
import os
import re
import socket
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, cast

import msgspec

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, TypeAdapter
    from pydantic_core import CoreSchema, ErrorDetails

from vnsmail.errors import BadInput, SettingsError, StateUnusable
from vnsmail.model import MACHINE, Owner, Relay, domain_name, relay, server

_LONGEST_SHOWN = 80
"""Characters of a wrong value that are shown; it may be a whole table."""

_CONTROL_SOCKET_LIMIT = 107  # unix(7): sun_path holds 108 bytes with the final NUL


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the files of one root lie."""

    settings_file: Path
    state: Path
    run: Path
    instance: str
    """Empty for the default root; else six hexadecimal digits that tell roots apart
    in the names of links and namespaces."""

    @property
    def directory_db(self) -> Path:
        return self.state / "directory.db"

    @property
    def hosts(self) -> Path:
        return self.state / "hosts"

    @property
    def certificates(self) -> Path:
        """Certificates with their keys, which workers cannot read."""
        return self.state / "tls"

    @property
    def control_socket(self) -> Path:
        return self.run / "control.sock"

    @property
    def drop(self) -> Path:
        """Where local commands leave mail (vnsmail/drop)."""
        return self.state / "drop"

    @property
    def drop_socket(self) -> Path:
        return self.run / "drop.sock"

    @property
    def pid_file(self) -> Path:
        return self.run / "supervisor.pid"

    @property
    def log_file(self) -> Path:
        return self.run / "vnsmail.log"

    @property
    def events(self) -> Path:
        """The event log, where the settings do not name another file."""
        folder = self.state / "log" if self.instance else Path("/var/log/vnsmail")
        return folder / "events.jsonl"

    @property
    def tls_keys(self) -> Path:
        """Folder of a lab with keys of TLS sessions, for whoever reads its capture."""
        return self.state / "tls-keys"

    @property
    def dkim(self) -> Path:
        """Folder with a folder of DKIM keys for each host; it is root's alone."""
        return self.state / "dkim"

    @property
    def engines(self) -> Path:
        """Folder with a folder for each host whose engine is not ours."""
        return self.state / "engines"

    @property
    def relay(self) -> Path:
        """Folder with the passwords that hosts sign in at relays with; root's alone."""
        return self.state / "relay"

    def owner_folder(self, owner: Owner) -> Path:
        """Return the folder with the queue and mailboxes of a host or the machine."""
        return self.state / "machine" if owner == MACHINE else self.hosts / owner


def layout(root: Path | None) -> Layout:
    """Return where the files of a root lie.

    Args:
        root: the folder given as --root, or None for the system's own places.

    Raises:
        StateUnusable: the path is too long for a Unix socket below it (unix(7)).
    """
    if root is None:
        return Layout(
            settings_file=Path("/etc/vnsmail/vnsmail.toml"),
            state=Path("/var/lib/vnsmail"),
            run=Path("/run/vnsmail"),
            instance="",
        )
    folder = root.absolute()
    instance = hashlib.blake2s(bytes(folder.resolve()), digest_size=3).hexdigest()
    found = Layout(
        settings_file=folder / "vnsmail.toml",
        state=folder,
        run=folder / "run",
        instance=instance,
    )
    if len(bytes(found.control_socket)) > _CONTROL_SOCKET_LIMIT:
        raise StateUnusable(
            str(folder),
            "the path is too long for a Unix socket below it",
            f"use a root of at most {_CONTROL_SOCKET_LIMIT - 17} bytes",
        )
    return found


class _Table:
    __slots__ = ()
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class _Exact:
    """In an annotation: pydantic takes this kind of value, and none that resembles it."""

    finite: bool = False

    def __get_pydantic_core_schema__(
        self, source: object, handler: "GetCoreSchemaHandler"
    ) -> "CoreSchema":
        number = {"allow_inf_nan": False} if self.finite else {}
        return {**handler(source), **number, "strict": True}


@dataclass(frozen=True, slots=True)
class _Checked:
    """In an annotation: what makes the value of what is written, or says what is wrong."""

    function: Callable[[str], object]

    def __get_pydantic_core_schema__(
        self, source: object, handler: "GetCoreSchemaHandler"
    ) -> "CoreSchema":
        from pydantic_core import core_schema  # noqa: PLC0415

        return core_schema.no_info_after_validator_function(
            self.function, handler(source)
        )


@dataclass(frozen=True, slots=True)
class _Bound:
    """In an annotation: how far a number goes."""

    word: str
    limit: float

    def __get_pydantic_core_schema__(
        self, source: object, handler: "GetCoreSchemaHandler"
    ) -> "CoreSchema":
        return {**handler(source), self.word: self.limit}


Ge, Gt, Le = (partial(_Bound, word) for word in ("ge", "gt", "le"))

_EXACT = _Exact()
_FINITE = _Exact(finite=True)

Seconds = Annotated[float, _FINITE, Gt(0)]
Number = Annotated[int, _EXACT]
Flag = Annotated[bool, _EXACT]

_ONE_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def _machine_name(text: str) -> str:
    """Return what can be said in EHLO; systems without a domain have names too."""
    name = text.strip().rstrip(".").lower()
    if _ONE_LABEL.fullmatch(name):
        return name
    try:
        return domain_name(name)
    except BadInput as error:
        raise ValueError(error.remedy) from None


def _sealer(text: str) -> str:
    try:
        return domain_name(text)
    except BadInput as error:
        raise ValueError(error.remedy) from None


def _own_name() -> str:
    """Return what the system calls itself, if that can be said in EHLO."""
    try:
        return _machine_name(socket.getfqdn())
    except ValueError:
        return "localhost"


@dataclass(frozen=True, slots=True)
class RelaySettings(_Table):
    """[machine.relay]: the server that the machine's mail for others leaves by."""

    server: str
    """Name with or without ``:port``."""
    user: str = ""
    """Who the machine signs in as; empty: it does not."""
    password_file: str = ""
    """File with the password, which nobody but root may read."""

    def __post_init__(self) -> None:
        try:
            _ = self.value
        except BadInput as error:
            raise ValueError(error.remedy) from None
        if self.user and not self.password_file:
            raise ValueError("give the password_file too")

    @property
    def value(self) -> Relay:
        return relay(self.server, self.user, self.password_file)


@dataclass(frozen=True, slots=True)
class MachineSettings(_Table):
    """[machine]: the machine's own mail."""

    name: Annotated[str, _Checked(_machine_name)] = field(default_factory=_own_name)
    """Name the machine gives in EHLO; the default asks the system."""
    relay: RelaySettings | None = None
    """Where its mail for others goes; without it where DNS says."""


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError("write it as 10.77.0.1 or fd77::1") from None


def _network(text: str) -> str:
    return str(ipaddress.ip_network(text))


MOST_WORKERS = 8
"""Workers unless the file says otherwise; each takes some 60 MiB."""


def _processors() -> int:
    """Return the processors that this process may use, up to MOST_WORKERS."""
    return min(len(os.sched_getaffinity(0)), MOST_WORKERS)


@dataclass(frozen=True, slots=True)
class WorkerSettings(_Table):
    """[worker]: the unprivileged processes that own virtual hosts."""

    count: Annotated[Number, Ge(1), Le(64)] = field(default_factory=_processors)
    """Each host is one worker's; a new one goes to the worker with the fewest."""
    user: str = "vnsmail"
    """Account (name or number) the workers run as; only root can change to it."""


def _routed_host(text: str) -> str:
    return text if text == MACHINE else _domain_key(text)


def _domain_key(text: str) -> str:
    try:
        return domain_name(text)
    except BadInput as error:
        raise ValueError(error.remedy) from None


HostKey = Annotated[str, _Checked(_routed_host)]


@dataclass(frozen=True, slots=True)
class HostSmtpSettings(_Table):
    """[smtp.host."NAME"]: what is different for one virtual host; None: nothing."""

    hide_clients: Flag | None = None
    strict_8bit: Flag | None = None


@dataclass(frozen=True, slots=True)
class SmtpSettings(_Table):
    """[smtp]: limits of the protocol; defaults are those of RFC 5321 section 4.5.3."""

    port: Annotated[Number, Ge(1), Le(65535)] = 25
    """Port listened on and connected to."""
    submission_port: Annotated[Number, Ge(0), Le(65535)] = 587
    """Port for users who sign in, with STARTTLS (RFC 6409); 0: none."""
    submissions_port: Annotated[Number, Ge(0), Le(65535)] = 465
    """The same with TLS from the beginning (RFC 8314); 0: none."""
    max_message_size: Annotated[Number, Ge(64 * 1024)] = 50 * 1024 * 1024
    """Bytes; announced with SIZE (RFC 1870)."""
    max_recipients: Annotated[Number, Ge(100)] = 1000
    """Recipients a transaction (RFC 5321 section 4.5.3.1.8 wants 100 at least)."""
    hide_clients: Flag = False
    """Trace headers of mail that users submit tell neither name nor address of the
    computer that they sit at."""
    command_timeout: Seconds = 300.0
    connect_timeout: Seconds = 30.0
    data_timeout: Seconds = 600.0
    handshake_timeout: Seconds = 30.0
    """Seconds a client gets for a handshake of TLS."""
    session_timeout: Seconds = 1800.0
    """Seconds of a received session in which no message is taken."""
    max_sessions: Annotated[Number, Ge(1)] = 500
    """Sessions that one virtual host receives at a time."""
    max_sessions_per_address: Annotated[Number, Ge(1)] = 50
    """Of those, sessions from one address."""
    strict_8bit: Flag = False
    """Refuse text beyond ASCII wherever BODY=8BITMIME (RFC 6152) was not said."""
    proxy_from: tuple[Annotated[str, _Checked(_network)], ...] = ()
    """Proxies: from there, and only there, connections begin with a PROXY header of
    version 2, which says who the client is."""
    host: dict[HostKey, HostSmtpSettings] = field(default_factory=dict)
    """By virtual host, what is different there."""

    def __post_init__(self) -> None:
        ports = [self.port, self.submission_port, self.submissions_port]
        used = [port for port in ports if port]
        if len(set(used)) != len(used):
            raise ValueError("port, submission_port and submissions_port must differ")

    def hides_clients(self, owner: str) -> bool:
        """Say whether trace headers of an owner are silent about its users' computers."""
        own = self.host.get(owner)
        said = own.hide_clients if own is not None else None
        return self.hide_clients if said is None else said

    def is_strict(self, owner: str) -> bool:
        """Say whether an owner refuses 8-bit text that was not announced."""
        own = self.host.get(owner)
        said = own.strict_8bit if own is not None else None
        return self.strict_8bit if said is None else said

    @property
    def listening_ports(self) -> tuple[int, ...]:
        """All ports that virtual hosts listen on."""
        ports = (self.port, self.submission_port, self.submissions_port)
        return tuple(port for port in ports if port)


@dataclass(frozen=True, slots=True)
class UsersSettings(_Table):
    """[users]: how much those who sign in may send, whichever way they came in."""

    messages_per_hour: Annotated[Number, Ge(1)] = 500
    """Messages of each user."""
    recipients_per_hour: Annotated[Number, Ge(1)] = 5000
    """Recipients of each user."""
    address_messages_per_hour: Annotated[Number, Ge(1)] = 1000
    """Messages of all users at one client address (IPv6: one /64)."""


@dataclass(frozen=True, slots=True)
class QueueSettings(_Table):
    """[queue]: when a deferred message is tried again, and for how long."""

    first_retry: Seconds = 300.0
    """Seconds before the second attempt; each further wait is twice as long."""
    longest_retry: Seconds = 4 * 3600.0
    lifetime: Seconds = 5 * 86400.0
    """Seconds after which a message that could not be delivered is returned."""
    delay_warning: Annotated[float, _FINITE, Ge(0)] = 4 * 3600.0
    """Seconds after which the sender is told once that a message is late; 0: never."""


def _routed(text: str) -> str:
    return text if text == "*" else _domain_key(text)


LMTP = "lmtp:"
"""Before a route: what listens there is a store that speaks LMTP (RFC 2033)."""


def _relay(text: str) -> str:
    """Return a route: ``mx``, or a host with or without a port, or a store."""
    text = text.strip()
    if text.lower().startswith(LMTP):
        store = text[len(LMTP) :]
        # A path is as it is written, a name is not.
        is_path = store.startswith(("/", "unix:"))
        return LMTP + _store(store if is_path else store.lower())
    text = text.lower()
    return text if text == "mx" else _host_and_port(text)


def store_path(route: str) -> str:
    """Return the path of a store's Unix socket; empty if a route leads elsewhere."""
    prefix = f"{LMTP}unix:"
    return route.removeprefix(prefix) if route.startswith(prefix) else ""


def _store(text: str) -> str:
    """Return the host and port of a store."""
    if text.startswith("unix:/"):
        if len(text.removeprefix("unix:").encode()) > _CONTROL_SOCKET_LIMIT:
            raise ValueError("the path is too long for a Unix socket")
        return text
    if text.startswith(("/", "unix:")):
        raise ValueError("write the absolute path of a socket as lmtp:unix:/PATH")
    name, _, port = text.rpartition(":")
    if not name or text.endswith("]"):
        raise ValueError("give a port too, as lmtp:HOST:PORT: LMTP has none of its own")
    if port == "25":
        raise ValueError("port 25 is for SMTP (RFC 2033 section 5): give another one")
    return _host_and_port(text)


def _host_and_port(text: str) -> str:
    try:
        return server(text)
    except BadInput as error:
        raise ValueError(error.remedy) from None


DomainKey = Annotated[str, _Checked(_domain_key)]
Connections = Annotated[int, _EXACT, Ge(1), Le(1000)]
PerConnection = Annotated[int, _EXACT, Ge(1), Le(100_000)]
PerMinute = Annotated[int, _EXACT, Ge(0), Le(1_000_000)]
Routes = dict[Annotated[str, _Checked(_routed)], Annotated[str, _Checked(_relay)]]


@dataclass(frozen=True, slots=True)
class LimitSettings(_Table):
    """What may be asked of one destination; what is not said is as elsewhere."""

    connections: Connections | None = None
    messages_per_connection: PerConnection | None = None
    messages_per_minute: PerMinute | None = None


TlsLevel = Literal["none", "may", "encrypt", "verify", "secure"]
"""See tls.policy.Level."""


@dataclass(frozen=True, slots=True)
class HostTlsSettings(_Table):
    """[delivery.host."NAME".tls]: what is different for one virtual host."""

    policy: TlsLevel | None = None
    client_certificate: Flag | None = None
    destination: dict[DomainKey, TlsLevel] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TlsSettings(_Table):
    """[delivery.tls]: how mail that goes out is protected on its way."""

    policy: TlsLevel = "may"
    """``none``, ``may`` (where it is offered), ``encrypt`` (or it waits), ``verify`` (with a
    certificate for the exchanger's name), ``secure`` (for the destination's own name)."""
    plain_after_failure: Flag = True
    """With ``may``: a server whose TLS fails is asked again without."""
    dane: Flag = True
    """TLSA records count (RFC 7672), where dns.validating says that they can be believed."""
    mta_sts: Flag = True
    """MTA-STS policies count (RFC 8461)."""
    client_certificate: Flag = False
    """A virtual host shows its own certificate to servers that ask for one."""
    ca_file: str = ""
    """File with the certificates of trusted authorities; empty: those of the system."""
    destination: dict[DomainKey, TlsLevel] = field(default_factory=dict)
    """By the recipients' domain, or the name of a relay, another policy."""


@dataclass(frozen=True, slots=True)
class HostDeliverySettings(LimitSettings):
    """[delivery.host."NAME"]: what is different for one virtual host."""

    tls: HostTlsSettings = field(default_factory=HostTlsSettings)

    destination: dict[DomainKey, LimitSettings] = field(default_factory=dict)
    site: dict[DomainKey, LimitSettings] = field(default_factory=dict)
    route: Routes = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeliverySettings(_Table):
    """[delivery]: where mail goes, and how much a destination is asked."""

    connections: Connections = 10
    """Connections at a time of one virtual host to one destination."""
    messages_per_connection: PerConnection = 100
    messages_per_minute: PerMinute = 0
    """Messages of one virtual host to one destination; 0: no limit."""
    connections_per_host: Connections = 200
    """Connections at a time of one virtual host to all destinations."""
    tls: TlsSettings = field(default_factory=TlsSettings)
    loopback: Flag = False
    """Deliver to mail hosts on loopback addresses, which reach this machine itself."""
    destination: dict[DomainKey, LimitSettings] = field(default_factory=dict)
    """Limits by the recipients' domain."""
    site: dict[DomainKey, LimitSettings] = field(default_factory=dict)
    """Limits by the domain in which all mail exchangers of a destination are."""
    route: Routes = field(default_factory=dict)
    """Where the mail of a domain goes: ``mx``, a host, ``[address]``, with ``:port``;
    ``*`` is all others."""
    host: dict[HostKey, HostDeliverySettings] = field(default_factory=dict)
    """By virtual host, what is different there."""

    @property
    def stores(self) -> tuple[tuple[str, str], ...]:
        """Unix sockets of mail stores: who may use each (empty: all), and its path."""
        tables = [("", self.route), *((o, h.route) for o, h in self.host.items())]
        return tuple(
            (owner, path)
            for owner, routes in tables
            for route in routes.values()
            if (path := store_path(route))
        )


@dataclass(frozen=True, slots=True)
class DnsSettings(_Table):
    """[dns]: who is asked."""

    servers: tuple[Annotated[str, _Checked(_address)], ...] = ()
    """Name servers; empty means those of /etc/resolv.conf."""
    timeout: Seconds = 10.0
    validating: Flag = False
    """The name servers validate DNSSEC: what they say is authentic (the AD bit of RFC 4035)
    is believed, if they are on this machine."""
    trusted: tuple[Annotated[str, _Checked(_address)], ...] = ()
    """Validating name servers elsewhere that are believed too: nobody may be able to forge
    what comes from them."""


@dataclass(frozen=True, slots=True)
class NetworkSettings(_Table):
    """[network]: what becomes of changes that others make to the hosts' network."""

    mend: Flag = True
    """What somebody took away or changed is put back; if not, it is only told."""
    sweep: Seconds = 60.0
    """Seconds between looks at the whole, for what the kernel tells nobody."""


@dataclass(frozen=True, slots=True)
class AuthenticationSettings(_Table):
    """[authentication]: whose word counts when mail is looked at."""

    trusted_sealers: tuple[Annotated[str, _Checked(_sealer)], ...] = ()
    """Domains of mailing lists and forwarders whose ARC seal (RFC 8617) counts more than
    a failure of DMARC."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen: an address of this machine with a port, or a Unix socket."""

    address: str = ""
    port: int = 0
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        literal = f"[{self.address}]" if ":" in self.address else self.address
        return f"{literal}:{self.port}"


_ADDRESS_AND_PORT = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):([0-9]{1,5})")


def _listen(text: str) -> Listen | None:
    """Return where to listen; None for nowhere.

    Raises:
        ValueError: no loopback address with a port, nor the absolute path of a socket.
    """
    if not text:
        return None
    if text.startswith("unix:/"):
        path = Path(text.removeprefix("unix:"))
        if len(bytes(path)) > _CONTROL_SOCKET_LIMIT:
            raise ValueError("the path is too long for a Unix socket")
        return Listen(path=path)
    match = _ADDRESS_AND_PORT.fullmatch(text)
    if match is None:
        raise ValueError("write it as 127.0.0.1:9925, [::1]:9925 or unix:/PATH")
    address = ipaddress.ip_address(match[1] or match[2])
    port = int(match[3])
    if not address.is_loopback:
        raise ValueError(
            "only loopback addresses: it has no encryption and asks for no password"
        )
    if not 0 < port < 65536:
        raise ValueError("a port is 1 to 65535")
    return Listen(str(address), port)


def _can_listen(text: str) -> str:
    _listen(text)
    return text


@dataclass(frozen=True, slots=True)
class MetricsSettings(_Table):
    """[metrics]: where Prometheus is answered."""

    listen: Annotated[str, _Checked(_can_listen)] = ""
    """A loopback address with a port, or unix:/PATH; empty is nowhere."""

    @property
    def where(self) -> Listen | None:
        return _listen(self.listen)


def _absolute(text: str) -> str:
    if text and text != "off" and not text.startswith("/"):
        raise ValueError("write an absolute path, or `off`")
    return text


@dataclass(frozen=True, slots=True)
class AuditSettings(_Table):
    """[audit]: how connections begin, looked at all the time."""

    enabled: Flag = False
    """Watch from the start; `vnsmail audit start` does the same until the next one."""
    ignore: tuple[Annotated[str, _Checked(_network)], ...] = ()
    """Networks whose connections pass by here and are somebody else's."""


def _folder(text: str) -> str:
    if text and not text.startswith("/"):
        raise ValueError("write an absolute path")
    return text


@dataclass(frozen=True, slots=True)
class LabSettings(_Table):
    """[lab]: what a lab does and nobody else."""

    tls_keys: Annotated[str, _Checked(_folder)] = ""
    """Folder for the keys of TLS sessions; empty: they are told nobody. It is refused
    outside a lab: whoever has them reads the mail."""


@dataclass(frozen=True, slots=True)
class EventSettings(_Table):
    """[events]: the event log, a line of JSON for what becomes of each message."""

    file: Annotated[str, _Checked(_absolute)] = ""
    """Where it is written; empty: /var/log/vnsmail/events.jsonl, or log/events.jsonl
    below another root; ``off``: nowhere."""


@dataclass(frozen=True, slots=True)
class Settings(_Table):
    """All of vnsmail.toml."""

    machine: MachineSettings = field(default_factory=MachineSettings)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    smtp: SmtpSettings = field(default_factory=SmtpSettings)
    users: UsersSettings = field(default_factory=UsersSettings)
    queue: QueueSettings = field(default_factory=QueueSettings)
    delivery: DeliverySettings = field(default_factory=DeliverySettings)
    dns: DnsSettings = field(default_factory=DnsSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    events: EventSettings = field(default_factory=EventSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    lab: LabSettings = field(default_factory=LabSettings)
    authentication: AuthenticationSettings = field(
        default_factory=AuthenticationSettings
    )


def event_file(layout: Layout, settings: Settings) -> Path | None:
    """Return where the event log is; None if there is to be none."""
    if settings.events.file == "off":
        return None
    return Path(settings.events.file) if settings.events.file else layout.events


def load(file: Path) -> Settings:
    """Return the settings in a TOML file; the defaults if there is none.

    Raises:
        SettingsError: not TOML, an unknown key, or a value out of range.
    """
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        problem = f"cannot read it: {(error.strerror or str(error)).lower()}"
        raise SettingsError(str(file), "", "", problem) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(str(file), "", "", f"this is not TOML: {error}") from None
    return checked(Settings, table, str(file)) if table else Settings()


TableT = TypeVar("TableT")


def checked(kind: type[TableT], table: dict[str, Any], file: str = "") -> TableT:
    """Return the settings of a table of the file.

    Raises:
        SettingsError: an unknown key, or a value out of range.
    """
    # Workers and most commands read no file, and pydantic takes long to import.
    from pydantic import ValidationError  # noqa: PLC0415

    try:
        found = _reader(kind).validate_python(table)  # type: ignore[arg-type]  # a class can be hashed
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SettingsError(
            file, key, _shown(first["input"]), _problem(first)
        ) from None
    return cast("TableT", found)


@cache
def _reader(kind: type) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter  # noqa: PLC0415

    return TypeAdapter(kind)


def to_json(settings: Settings) -> str:
    """Return the settings as a worker is told them."""
    return msgspec.json.encode(settings).decode()


def from_json(text: str) -> Settings:
    """Return what ``to_json`` was given.

    Raises:
        msgspec.ValidationError: it comes from another version of this program.
    """
    return msgspec.json.decode(text, type=Settings)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _problem(details: "ErrorDetails") -> str:
    match details["type"]:
        case "unexpected_keyword_argument":
            return "there is no such key"
        case "dataclass_type":
            return f"this is a table: write [{details['loc'][-1]}] and keys below it"
        case "value_error":
            return str(details["ctx"]["error"])
        case _:
            return details["msg"].lower()
