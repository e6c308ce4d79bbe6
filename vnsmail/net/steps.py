"""The steps a network plan is made of.

Rules of this file: pure; a step is one change that the kernel makes wholly or not at
all, or that the next plan sees as not made; ``describe`` gives the words that follow
"cannot" in an error and stand alone in a dry run; ``namespace`` is where a step is
performed, empty for the machine's own network.
"""

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from vnsmail.model import HostName, IPAddress, SourceAddress, Uplink
from vnsmail.net.messages import MAIN_TABLE
from vnsmail.net.names import INSIDE_LINK


@dataclass(frozen=True, slots=True)
class MakeNamespace:
    """Make a namespace with its loopback up."""

    name: str
    host: HostName
    namespace: ClassVar[str] = ""

    def describe(self) -> str:
        return f"make namespace {self.name}"


@dataclass(frozen=True, slots=True)
class RemoveNamespace:
    """Remove a namespace and everything that is only in it."""

    name: str
    namespace: ClassVar[str] = ""

    def describe(self) -> str:
        return f"remove namespace {self.name}"


@dataclass(frozen=True, slots=True)
class Connect:
    """Give a namespace its link, which is down and has no address yet."""

    into: str
    host: HostName
    uplink: Uplink
    link: str
    """The bridge, or the parent."""
    port: str
    """Name of the machine's end of the veth pair; empty for a macvlan."""
    mtu: int
    outer_mtu: int
    """That of the machine's end."""
    namespace: ClassVar[str] = ""

    def describe(self) -> str:
        if self.uplink is Uplink.BRIDGE:
            return f"connect {self.into} to bridge {self.link} by veth {self.port}"
        if self.uplink is Uplink.ROUTED:
            return f"connect {self.into} to the machine by veth {self.port}"
        return f"connect {self.into} to {self.link} by {self.uplink}"


@dataclass(frozen=True, slots=True)
class MakeVlan:
    """Make a link for a tag on a link of the machine; it is down (IEEE 802.1Q)."""

    name: str
    link: str
    tag: int
    host: HostName
    """One of those who use it."""
    namespace: ClassVar[str] = ""

    def describe(self) -> str:
        return f"make link {self.name} for tag {self.tag} on {self.link}"


@dataclass(frozen=True, slots=True)
class JoinBridge:
    """Make a port of ours, which exists, a port of this bridge."""

    port: str
    bridge: str
    namespace: ClassVar[str] = ""

    def describe(self) -> str:
        return f"make {self.port} a port of bridge {self.bridge}"


@dataclass(frozen=True, slots=True)
class RemoveLink:
    """Remove a link of ours; of a veth pair, both ends."""

    link: str
    namespace: str = ""

    def describe(self) -> str:
        return f"remove link {self.link}{_within(self.namespace)}"


@dataclass(frozen=True, slots=True)
class SetMtu:
    """Let a link carry packets of so many octets, and no larger."""

    link: str
    mtu: int
    namespace: str = ""

    def describe(self) -> str:
        return f"set mtu {self.mtu} on {self.link}{_within(self.namespace)}"


@dataclass(frozen=True, slots=True)
class SetUp:
    """Set a link up inside a namespace."""

    namespace: str
    link: str = INSIDE_LINK

    def describe(self) -> str:
        return f"set {self.link} up{_within(self.namespace)}"


@dataclass(frozen=True, slots=True)
class SetPortUp:
    """Set the machine's end of a veth pair up, silent, with a remark for people."""

    port: str
    host: HostName
    ipv6: bool = False
    """It speaks IPv6; a port of a bridge does not, nor one without such an address."""
    namespace: ClassVar[str] = ""

    def describe(self) -> str:
        return f"set {self.port} up"


@dataclass(frozen=True, slots=True)
class AddAddress:
    """Add an address to the link of a namespace."""

    namespace: str
    address: SourceAddress

    def describe(self) -> str:
        return f"add address {self.address}{_on_link(self.namespace)}"


@dataclass(frozen=True, slots=True)
class RemoveAddress:
    """Remove an address from the link of a namespace."""

    namespace: str
    address: SourceAddress

    def describe(self) -> str:
        return f"remove address {self.address}{_on_link(self.namespace)}"


@dataclass(frozen=True, slots=True)
class SetGateway:
    """Make this the default router of its family, in place of any other."""

    namespace: str
    gateway: IPAddress
    on_link: bool = False
    """It is reached on the link although no network of the host holds it."""

    def describe(self) -> str:
        return f"set default route by {self.gateway}{_within(self.namespace)}"


@dataclass(frozen=True, slots=True)
class RemoveGateway:
    """Remove the default route by this router."""

    namespace: str
    gateway: IPAddress

    def describe(self) -> str:
        return f"remove default route by {self.gateway}{_within(self.namespace)}"


@dataclass(frozen=True, slots=True)
class AddAlias:
    """Add an address that the kernel never chooses to a link of the machine."""

    link: str
    address: IPAddress
    host: HostName
    namespace: ClassVar[str] = ""

    def describe(self) -> str:
        return f"add address {self.address} to {self.link} for {self.host}"


@dataclass(frozen=True, slots=True)
class RemoveAlias:
    """Remove an address of ours from a link of the machine."""

    link: str
    address: IPAddress
    namespace: ClassVar[str] = ""

    def describe(self) -> str:
        return f"remove address {self.address} from {self.link}"


@dataclass(frozen=True, slots=True)
class AddNeighbour:
    """Let a link know the hardware address of its other end."""

    namespace: str
    link: str
    address: IPAddress
    hardware: str

    def describe(self) -> str:
        return f"add neighbour {self.address}{_over(self.link, self.namespace)}"


@dataclass(frozen=True, slots=True)
class RemoveNeighbour:
    """Forget who is at the other end of a link of ours."""

    link: str
    address: IPAddress
    namespace: ClassVar[str] = ""

    def describe(self) -> str:
        return f"remove neighbour {self.address} on {self.link}"


@dataclass(frozen=True, slots=True)
class AddRoute:
    """Route one address into a routed uplink."""

    address: IPAddress
    link: str
    namespace: ClassVar[str] = ""

    def describe(self) -> str:
        return f"add route to {self.address} on {self.link}"


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """Route an address no longer."""

    address: IPAddress
    link: str
    namespace: ClassVar[str] = ""

    def describe(self) -> str:
        return f"remove route to {self.address} on {self.link}"


@dataclass(frozen=True, slots=True)
class AddProxy:
    """Answer for an address on a link of the machine (ARP, neighbour discovery)."""

    link: str
    address: IPAddress
    namespace: ClassVar[str] = ""

    def describe(self) -> str:
        return f"answer for {self.address} on {self.link}"


@dataclass(frozen=True, slots=True)
class RemoveProxy:
    """Answer for an address no longer."""

    link: str
    address: IPAddress
    namespace: ClassVar[str] = ""

    def describe(self) -> str:
        return f"answer no more for {self.address} on {self.link}"


@dataclass(frozen=True, slots=True)
class AddTableRoute:
    """Give a table of ours its default route, or its last resort."""

    table: int
    version: int
    gateway: IPAddress | None
    link: str
    host: HostName
    """One of those who use it."""
    namespace: ClassVar[str] = ""

    def describe(self) -> str:
        return f"add {_way(self)} to table {self.table}"


@dataclass(frozen=True, slots=True)
class RemoveTableRoute:
    """Take a default route from a table of ours."""

    table: int
    version: int
    gateway: IPAddress | None
    link: str
    namespace: ClassVar[str] = ""

    def describe(self) -> str:
        return f"remove {_way(self)} from table {self.table}"


@dataclass(frozen=True, slots=True)
class AddRule:
    """Let what has a source look for its way in a table."""

    address: IPAddress
    table: int
    namespace: ClassVar[str] = ""

    def describe(self) -> str:
        return f"route what is from {self.address} by table {_table(self.table)}"


@dataclass(frozen=True, slots=True)
class RemoveRule:
    """Let what has a source look there no longer."""

    address: IPAddress
    table: int
    namespace: ClassVar[str] = ""

    def describe(self) -> str:
        return f"route no more what is from {self.address} by {_table(self.table)}"


@dataclass(frozen=True, slots=True)
class SetSetting:
    """Set how the kernel treats a link of the machine (ip-sysctl)."""

    version: int
    link: str
    name: str
    value: int
    namespace: ClassVar[str] = ""

    def describe(self) -> str:
        return f"set net.ipv{self.version}.conf.{self.link}.{self.name} to {self.value}"

    @property
    def path(self) -> str:
        """Below /proc/sys/net; there a link's name may have a dot."""
        return f"ipv{self.version}/conf/{self.link}/{self.name}"


Step: TypeAlias = (
    MakeNamespace
    | RemoveNamespace
    | Connect
    | MakeVlan
    | JoinBridge
    | RemoveLink
    | SetMtu
    | SetUp
    | SetPortUp
    | AddAddress
    | RemoveAddress
    | SetGateway
    | RemoveGateway
    | AddAlias
    | RemoveAlias
    | AddNeighbour
    | RemoveNeighbour
    | AddRoute
    | RemoveRoute
    | AddProxy
    | RemoveProxy
    | SetSetting
    | AddTableRoute
    | RemoveTableRoute
    | AddRule
    | RemoveRule
)


def _within(namespace: str) -> str:
    return f" in {namespace}" if namespace else ""


def _over(link: str, namespace: str) -> str:
    return f" on {link}{_within(namespace)}"


def _way(step: AddTableRoute | RemoveTableRoute) -> str:
    if step.gateway is None:
        return f"IPv{step.version} unreachable"
    return f"default route by {step.gateway} on {step.link}"


def _table(number: int) -> str:
    return "main but for its default routes" if number == MAIN_TABLE else str(number)


def _on_link(namespace: str) -> str:
    return f" on {INSIDE_LINK} in {namespace}"
