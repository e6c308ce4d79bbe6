"""The network as the kernel describes it now, ours told from the rest by its mark.

Rules of this file: nothing is changed; what appears or vanishes meanwhile is simply
seen or not, and the next observation is right again; a table is read whole, once for
the machine and once in each namespace, for a question for each thing costs more.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from pyroute2 import IPRoute

from vnsmail.model import HostName, IPAddress, SourceAddress
from vnsmail.net import messages, names, namespaces
from vnsmail.net.facts import (
    NO_GATEWAY,
    Actual,
    Alias,
    DefaultRoute,
    Link,
    Namespace,
    Network,
    network_of,
)
from vnsmail.net.messages import Attributes
from vnsmail.net.netlink import Kernel

# Numbers of linux/if.h, linux/if_link.h, linux/if_addr.h and linux/rtnetlink.h.
_LOOPBACK = 0x8
_NAME, _MTU, _BELOW, _MASTER, _INFO = 3, 4, 5, 10, 18
_GROUP, _FILTER, _APART = 27, 29, 37
_SKIP_STATISTICS = 1 << 3
_SCOPE_HOST = 254
_DEPRECATED = 0x20
_FAR, _NEAR, _FLAGS, _METRIC = 1, 2, 8, 9
_DESTINATION, _OUT, _GATEWAY, _PRIORITY, _HOPS = 1, 4, 5, 6, 9


def open_kernel() -> IPRoute:
    """Return a netlink socket in the namespace of the calling thread, to be closed.

    No notifications are asked for; the kernel gives reasons with its errors.
    """
    return IPRoute(ext_ack=True, strict_check=True, groups=0)


def observe(instance: str, only: HostName | None = None) -> Actual:
    """Return the network of the machine and of this instance's namespaces.

    Args:
        instance: whose.
        only: look into no namespace but that of this host; a plan from what was seen
            must be for this host only.

    Raises:
        OSError: the kernel does not let us look.
    """
    mark = names.mark(instance)
    wanted = None if only is None else names.namespace(instance, only)
    machine = _look(mark)

    def look(name: str) -> Namespace | None:
        return _namespace(name, machine, mark)

    with namespaces.Visitor() as visitor:
        inside = visitor.run_each(
            [
                name
                for name in namespaces.existing()
                if (wanted is None and names.is_namespace(instance, name))
                or name == wanted
            ],
            look,
        )
    return Actual(
        links=tuple(machine.links.values()),
        routes=tuple(machine.routes),
        aliases=tuple(machine.aliases),
        namespaces=tuple(_found(inside)),
        elsewhere=tuple(machine.elsewhere),
    )


def _found(
    inside: Mapping[str, Namespace | OSError | None],
) -> Iterator[Namespace]:
    for name, each in inside.items():
        if isinstance(each, FileNotFoundError):
            yield Namespace(name, entered=False, loopback_up=False)
        elif isinstance(each, OSError):
            raise each
        elif each is not None:
            yield each


@dataclass(slots=True)
class _View:
    """What one network namespace holds."""

    links: dict[int, Link] = field(default_factory=dict)
    below: dict[int, int] = field(default_factory=dict)
    """Index in another namespace of what a link stands on, by its own index."""
    routes: list[DefaultRoute] = field(default_factory=list)
    aliases: list[Alias] = field(default_factory=list)
    elsewhere: list[IPAddress] = field(default_factory=list)


def _namespace(name: str, machine: _View, mark: int) -> Namespace | None:
    """Return what is in the namespace of the calling thread; None if it is not ours."""
    view = _look(mark)
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
    with Kernel() as kernel:
        filtered = messages.number(_FILTER, _SKIP_STATISTICS)
        links = [
            messages.link_facts(each)
            for each in kernel.dump(messages.GET_LINK, messages.link(filtered))
        ]
        addresses = kernel.dump(messages.GET_ADDRESS, bytes(8))
        routes = kernel.dump(messages.GET_ROUTE, messages.route_filter())
    view = _View()
    name_of = {index: messages.text_in(found, _NAME) for index, _, found in links}
    own = _addresses(addresses, view, name_of, mark)
    networks = _routes(routes, view, name_of)
    for index, flags, found in links:
        view.links[index] = _link(
            flags, found, name_of, mark, own.get(index, []), networks.get(index, [])
        )
        apart = _APART in found
        view.below[index] = messages.number_in(found, _BELOW) if apart else 0
    return view


def _addresses(
    found: list[memoryview], view: _View, name_of: Mapping[int, str], mark: int
) -> dict[int, list[SourceAddress]]:
    """Return the addresses of each link; note those of virtual hosts apart."""
    own: dict[int, list[SourceAddress]] = defaultdict(list)
    for message in found:
        length, scope, index, facts = messages.address_facts(message)
        address = _address(length, facts)
        metric = messages.number_in(facts, _METRIC)
        if metric == mark:
            quiet = _is_quiet(scope, facts, address)
            view.aliases.append(Alias(name_of[index], address.address, quiet))
        elif names.is_mark(metric):
            view.elsewhere.append(address.address)
        elif not address.address.is_link_local:
            own[index].append(address)
    return own


def _routes(
    found: list[memoryview], view: _View, name_of: Mapping[int, str]
) -> dict[int, list[Network]]:
    """Return the networks that are straight on each link; note default routes."""
    networks: dict[int, list[Network]] = defaultdict(list)
    for message in found:
        family, length, table, kind, facts = messages.route_facts(message)
        if table != messages.MAIN_TABLE or kind != messages.UNICAST:
            continue
        for index, gateway in _hops(family, facts):
            if length == 0:
                metric = messages.number_in(facts, _PRIORITY)
                route = DefaultRoute(gateway, name_of.get(index, ""), metric)
                view.routes.append(route)
            elif gateway in NO_GATEWAY:
                network = network_of(messages.address_in(facts[_DESTINATION]), length)
                if not network.is_link_local:
                    networks[index].append(network)
    return networks


def _link(
    flags: int,
    found: Attributes,
    name_of: Mapping[int, str],
    mark: int,
    own: list[SourceAddress],
    networks: list[Network],
) -> Link:
    info = messages.attributes(found[_INFO]) if _INFO in found else {}
    reached = [a.network for a in own] + networks
    return Link(
        name=messages.text_in(found, _NAME),
        kind=messages.text_in(info, 1),
        up=bool(flags & messages.UP),
        mtu=messages.number_in(found, _MTU),
        loopback=bool(flags & _LOOPBACK),
        ours=messages.number_in(found, _GROUP) == mark,
        master=name_of.get(messages.number_in(found, _MASTER), ""),
        addresses=tuple(own),
        networks=tuple(dict.fromkeys(reached)),
    )


def _address(length: int, facts: Attributes) -> SourceAddress:
    """Return an address of a link with the prefix length of its network."""
    far = facts[_FAR]
    near = facts.get(_NEAR, far)
    address = messages.address_in(near)
    # Between two points the prefix is that of the other end (ip-address(8), peer).
    own = length if near == far else address.max_prefixlen
    return SourceAddress(address, own)


def _is_quiet(scope: int, facts: Attributes, address: SourceAddress) -> bool:
    """Return whether an alias is as addresses.py makes it."""
    if address.prefix_length != address.address.max_prefixlen:
        return False
    if address.address.version == 4:
        return scope == _SCOPE_HOST
    return bool(messages.number_in(facts, _FLAGS) & _DEPRECATED)


def _hops(family: int, facts: Attributes) -> Iterator[tuple[int, IPAddress]]:
    """Return link index and gateway of each path of a route."""
    unspecified = NO_GATEWAY[family == messages.IPV6]
    paths = (
        messages.hops_in(facts[_HOPS])
        if _HOPS in facts
        else [(messages.number_in(facts, _OUT), facts)]
    )
    for index, path in paths:
        gateway = path.get(_GATEWAY)
        yield index, messages.address_in(gateway) if gateway else unspecified
