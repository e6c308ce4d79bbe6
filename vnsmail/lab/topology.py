"""Who is who in a lab, and at which address. Pure.

    10.77.0.0/24, fd77::/64 on one bridge
    .1      the machine           .2      the name server
    .3      mx1.north.example     .4      mx2.south.example, IPv4 only
    .11 …   virtual hosts, in the order of NAMES

Rules of this file: values only. The remotes differ in family on purpose, so that a host
with both families sends by both.
"""

import ipaddress
from dataclasses import dataclass

from vnsmail.errors import BadInput
from vnsmail.model import Context, HostName, SourceAddress, Uplink, VirtualHost

BRIDGE = "lan0"
INSTANCE = "lab"
"""Tells the links and namespaces of the lab's nodes from those of virtual hosts."""

MACHINE_NAME = "machine.example"
NAMESERVER = "ns.example"
USER = "user"
"""Every virtual host of a fresh lab has this user."""

FIRST_HOST, LAST_HOST = 11, 250
MAX_HOSTS = LAST_HOST - FIRST_HOST + 1

NAMES = (
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "omicron",
    "pi",
    "rho",
    "sigma",
    "tau",
    "upsilon",
    "phi",
    "chi",
    "psi",
    "omega",
)

_IPV4 = ipaddress.ip_network("10.77.0.0/24")
_IPV6 = ipaddress.ip_network("fd77::/64")


def both(number: int) -> tuple[SourceAddress, ...]:
    """Return the IPv4 and the IPv6 address that end in a decimal number."""
    return (*ipv4(number), SourceAddress(_ipv6(number), _IPV6.prefixlen))


def ipv4(number: int) -> tuple[SourceAddress, ...]:
    """Return the IPv4 address that ends in a number."""
    return (SourceAddress(_IPV4[number], _IPV4.prefixlen),)


def _ipv6(number: int) -> ipaddress.IPv6Address:
    # Read the decimal digits as hexadecimal ones, so that .11 and ::11 belong together.
    return ipaddress.IPv6Address(int(_IPV6.network_address) + int(str(number), 16))


MACHINE_ADDRESSES = both(1)


@dataclass(frozen=True, slots=True)
class Remote:
    """A mail host that takes mail for every user of one domain."""

    name: HostName
    domain: HostName
    addresses: tuple[SourceAddress, ...]


REMOTES = (
    Remote(HostName("mx1.north.example"), HostName("north.example"), both(3)),
    Remote(HostName("mx2.south.example"), HostName("south.example"), ipv4(4)),
)

NAMESERVER_ADDRESSES = both(2)


def nodes() -> tuple[VirtualHost, ...]:
    """Return the lab's own nodes, as namespaces on the bridge."""
    named = [(NAMESERVER, NAMESERVER_ADDRESSES)]
    named += [(remote.name, remote.addresses) for remote in REMOTES]
    return tuple(
        VirtualHost(
            name=HostName(name),
            context=Context.NAMESPACE,
            addresses=addresses,
            domains=(HostName(name),),
            link=BRIDGE,
            uplink=Uplink.BRIDGE,
        )
        for name, addresses in named
    )


@dataclass(frozen=True, slots=True)
class LabHost:
    """A virtual host to create in a fresh lab."""

    name: HostName
    context: Context
    addresses: tuple[SourceAddress, ...]


def virtual_hosts(count: int) -> tuple[LabHost, ...]:
    """Return so many virtual hosts: of five, three in namespaces and two aliases.

    Raises:
        BadInput: more than there are addresses for, or fewer than none.
    """
    if not 0 <= count <= MAX_HOSTS:
        raise BadInput("hosts", str(count), f"give 0 to {MAX_HOSTS}")
    return tuple(
        LabHost(
            HostName(f"{_name(position)}.example"),
            Context.NAMESPACE if position % 5 < 3 else Context.ALIAS,
            both(FIRST_HOST + position),
        )
        for position in range(count)
    )


def _name(position: int) -> str:
    if position < len(NAMES):
        return NAMES[position]
    return f"host{position + 1}"
