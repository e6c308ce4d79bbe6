"""The network as the kernel describes it now, ours told from the rest by its mark.

Rules of this file: nothing is changed; what appears or vanishes meanwhile is simply
seen or not, and the next observation is right again.
"""

import ipaddress
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from socket import AF_INET, AF_INET6
from typing import Any, TypeAlias

from pyroute2 import IPRoute

from vnsmail.model import IPAddress, SourceAddress
from vnsmail.net import names, namespaces
from vnsmail.net.facts import (
    NO_GATEWAY,
    Actual,
    Alias,
    DefaultRoute,
    Link,
    Namespace,
    Network,
)

# Numbers of linux/if.h, linux/rtnetlink.h and linux/if_addr.h.
_UP, _LOOPBACK = 0x1, 0x8
_MAIN_TABLE = 254
_UNICAST = 1
_SCOPE_HOST = 254
_DEPRECATED = 0x20

Message: TypeAlias = Any
"""A netlink message as pyroute2, which has no types, takes it apart."""


def open_kernel() -> IPRoute:
    """Return a netlink socket in the namespace of the calling thread, to be closed.

    No notifications are asked for; the kernel gives reasons with its errors.
    """
    return IPRoute(ext_ack=True, strict_check=True, groups=0)


def observe(instance: str) -> Actual:
    """Return the network of the machine and of this instance's namespaces.

    Raises:
        OSError: the kernel does not let us look.
    """
    mark = names.mark(instance)
    machine = _look(mark)
    with namespaces.Visitor() as visitor:
        inside = [
            _namespace(visitor, name, machine, mark)
            for name in namespaces.existing()
            if names.is_namespace(instance, name)
        ]
    return Actual(
        links=tuple(machine.links.values()),
        routes=tuple(machine.routes),
        aliases=tuple(machine.aliases),
        namespaces=tuple(each for each in inside if each is not None),
        elsewhere=tuple(machine.elsewhere),
    )


@dataclass(slots=True)
class _View:
    """What one network namespace holds."""

    links: dict[int, Link]
    below: dict[int, int]
    """Index in another namespace of what a link stands on, by its own index."""
    routes: list[DefaultRoute]
    aliases: list[Alias]
    elsewhere: list[IPAddress]


def _namespace(
    visitor: namespaces.Visitor, name: str, machine: _View, mark: int
) -> Namespace | None:
    """Return what is inside a namespace; None if it is not ours."""
    try:
        view = visitor.run(name, lambda: _look(mark))
    except FileNotFoundError:
        return Namespace(name, entered=False, loopback_up=False)
    loopback = next(link for link in view.links.values() if link.loopback)
    if not loopback.ours:
        return None
    found = None
    for index, link in view.links.items():
        if link.name == names.INSIDE_LINK:
            below = machine.links.get(view.below[index])
            found = replace(link, below=below.name if below else "")
    gateways = [r.gateway for r in view.routes if r.link == names.INSIDE_LINK]
    return Namespace(
        name,
        loopback_up=loopback.up,
        link=found,
        gateways=tuple(dict.fromkeys(gateways)),
    )


def _look(mark: int) -> _View:
    """Return what the namespace of the calling thread holds."""
    with open_kernel() as kernel:
        links = {message["index"]: message for message in kernel.get_links()}
        addresses = list(kernel.get_addr())
        routes = [
            route
            for family in (AF_INET, AF_INET6)
            for route in kernel.get_routes(family=family, table=_MAIN_TABLE)
            if route["type"] == _UNICAST
        ]
    name_of = {index: str(message.get("ifname")) for index, message in links.items()}
    view = _View({}, {}, [], [], [])
    own: dict[int, list[SourceAddress]] = defaultdict(list)
    for message in addresses:
        index, address = message["index"], _address(message)
        metric = message.get("IFA_RT_PRIORITY") or 0
        if metric == mark:
            quiet = _is_quiet(message, address)
            view.aliases.append(Alias(name_of[index], address.address, quiet))
        elif names.is_mark(metric):
            view.elsewhere.append(address.address)
        elif not address.address.is_link_local:
            own[index].append(address)
    networks: dict[int, list[Network]] = defaultdict(list)
    for message in routes:
        for index, gateway in _hops(message):
            if message["dst_len"] == 0:
                metric = message.get("priority") or 0
                route = DefaultRoute(gateway, name_of.get(index, ""), metric)
                view.routes.append(route)
            elif gateway in NO_GATEWAY:
                networks[index].append(_network(message))
    for index, message in links.items():
        view.links[index] = _link(message, name_of, mark, own[index], networks[index])
        apart = message.get("link_netnsid") is not None
        view.below[index] = message.get("link") or 0 if apart else 0
    return view


def _link(
    message: Message,
    name_of: Mapping[int, str],
    mark: int,
    own: list[SourceAddress],
    networks: list[Network],
) -> Link:
    reached = [a.network for a in own] + [n for n in networks if not n.is_link_local]
    return Link(
        name=name_of[message["index"]],
        kind=message.get(("linkinfo", "kind")) or "",
        up=bool(message["flags"] & _UP),
        mtu=message.get("mtu") or 0,
        loopback=bool(message["flags"] & _LOOPBACK),
        ours=message.get("group") == mark,
        master=name_of.get(message.get("master") or 0, ""),
        addresses=tuple(own),
        networks=tuple(dict.fromkeys(reached)),
    )


def _address(message: Message) -> SourceAddress:
    """Return an address of a link with the prefix length of its network."""
    far = message.get("IFA_ADDRESS")
    near = message.get("IFA_LOCAL") or far
    address = ipaddress.ip_address(near)
    # Between two points the prefix is that of the other end (ip-address(8), peer).
    own = message["prefixlen"] if near == far else address.max_prefixlen
    return SourceAddress(address, own)


def _is_quiet(message: Message, address: SourceAddress) -> bool:
    """Return whether an alias is as apply.py makes it."""
    if address.prefix_length != address.address.max_prefixlen:
        return False
    if address.address.version == 4:
        return bool(message["scope"] == _SCOPE_HOST)
    return bool((message.get("IFA_FLAGS") or 0) & _DEPRECATED)


def _hops(message: Message) -> Iterator[tuple[int, IPAddress]]:
    """Return link index and gateway of each path of a route."""
    unspecified = NO_GATEWAY[message["family"] == AF_INET6]
    for hop in message.get("multipath") or [message]:
        gateway = hop.get("gateway")
        yield (
            hop.get("oif") or 0,
            ipaddress.ip_address(gateway) if gateway else unspecified,
        )


def _network(message: Message) -> Network:
    return ipaddress.ip_network((message.get("dst"), message["dst_len"]))
