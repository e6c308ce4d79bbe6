"""The network as it is and as it should be: what plan.py compares.

Rules of this file: pure; values only, in the words of the kernel's own tools. Whether a
thing is ours was decided by observe.py from its mark (names.py), never from its name.
"""

import ipaddress
from dataclasses import dataclass
from typing import TypeAlias

from vnsmail.model import IPAddress, SourceAddress, VirtualHost

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

NO_GATEWAY = (ipaddress.IPv4Address(0), ipaddress.IPv6Address(0))
"""Stands in for the gateway of a default route that goes straight to a link."""


def network_of(first: IPAddress, prefix_length: int) -> Network:
    """Return the network that begins with an address."""
    if first.version == 4:
        return ipaddress.IPv4Network((first, prefix_length))
    return ipaddress.IPv6Network((first, prefix_length))


@dataclass(frozen=True, slots=True)
class Settings:
    """What the kernel is told of a link: ip-sysctl, net.ipv4.conf and net.ipv6.conf."""

    forwarding4: int = 0
    forwarding6: int = 0
    forced6: int | None = None
    """force_forwarding, Linux 6.17 and later: this link alone; None without it."""
    accept_ra: int = 1
    proxy_ndp: int = 0
    off6: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """A network device, of the machine or inside a namespace."""

    name: str
    kind: str = ""
    """What ``ip -d link`` calls it: bridge, veth, macvlan… Empty for hardware."""
    up: bool = True
    mtu: int = 1500
    loopback: bool = False
    ours: bool = False
    master: str = ""
    """The bridge or the like whose port it is."""
    arriving: bool = False
    """It was kept from its siblings for a moment, and still is."""
    below: str = ""
    """The machine's link it stands on: other end of a veth, parent of a macvlan."""
    addresses: tuple[SourceAddress, ...] = ()
    """Without link-local ones, which the kernel makes, and without our aliases."""
    networks: tuple[Network, ...] = ()
    """What is reached on it without a router."""
    router: bool = False
    """It is the machine's end of a routed uplink."""
    neighbours: tuple[IPAddress, ...] = ()
    """Of a routed uplink: those whose hardware address it knows without asking."""
    settings: Settings = Settings()


@dataclass(frozen=True, slots=True)
class HostRoute:
    """A route of ours to one address, on a routed uplink."""

    address: IPAddress
    link: str


@dataclass(frozen=True, slots=True)
class Proxy:
    """An address that the machine answers for on a link (ip-neighbour(8), proxy)."""

    link: str
    address: IPAddress
    ours: bool = True
    known: bool = True
    """vnsmail made it, this root or another."""


@dataclass(frozen=True, slots=True)
class TableRoute:
    """A default route of ours in a table of its own."""

    table: int
    version: int
    gateway: IPAddress | None
    """None stands for the last resort: unreachable."""
    link: str = ""


@dataclass(frozen=True, slots=True)
class SourceRule:
    """A rule of ours: what has this source looks for its way in this table."""

    address: IPAddress
    table: int


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A default route of the machine."""

    gateway: IPAddress
    link: str
    metric: int = 0


@dataclass(frozen=True, slots=True)
class Alias:
    """An address of ours on a link of the machine."""

    link: str
    address: IPAddress
    quiet: bool = True
    """The kernel never chooses it for an unbound socket."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace of ours."""

    name: str
    entered: bool = True
    """False for a file in /run/netns with no namespace behind it: half made."""
    loopback_up: bool = True
    link: Link | None = None
    """The link called eth0."""
    gateways: tuple[IPAddress, ...] = ()
    """Of its default routes over that link."""
    identity: int = 0
    """See namespaces.identity; zero if it is not known."""


@dataclass(frozen=True, slots=True)
class Actual:
    """The network as observed."""

    links: tuple[Link, ...] = ()
    """Those of the machine."""
    routes: tuple[DefaultRoute, ...] = ()
    """The machine's default routes."""
    aliases: tuple[Alias, ...] = ()
    namespaces: tuple[Namespace, ...] = ()
    elsewhere: tuple[IPAddress, ...] = ()
    """Addresses that virtual hosts of other roots have as aliases, or are routed."""
    host_routes: tuple[HostRoute, ...] = ()
    proxies: tuple[Proxy, ...] = ()
    table_routes: tuple[TableRoute, ...] = ()
    rules: tuple[SourceRule, ...] = ()
    forwards: frozenset[int] = frozenset()
    """IP versions that the machine forwards on all its links."""


@dataclass(frozen=True, slots=True)
class Desired:
    """The network as it should be."""

    hosts: tuple[VirtualHost, ...]
