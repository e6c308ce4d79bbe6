"""The network as the kernel describes it now, ours told from the rest by its mark.

Rules of this file: nothing is changed; what appears or vanishes meanwhile is simply
seen or not, and the next observation is right again; a table is read whole, once for
the machine and once in each namespace, for a question for each thing costs more.
"""

import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from vnsmail.model import HostName, IPAddress, SourceAddress
from vnsmail.net import messages, names, namespaces, requests, sysctl
from vnsmail.net.facts import (
    NO_GATEWAY,
    Actual,
    Alias,
    DefaultRoute,
    HostRoute,
    Link,
    Namespace,
    Network,
    Proxy,
    Settings,
    SourceRule,
    TableRoute,
    network_of,
)
from vnsmail.net.messages import Attributes
from vnsmail.net.netlink import Kernel

# Numbers of linux/if.h, linux/if_link.h, linux/if_addr.h and linux/rtnetlink.h.
_LOOPBACK = 0x8
_NAME, _MTU, _BELOW, _MASTER, _INFO, _REMARK = 3, 4, 5, 10, 18, 20
_SPECIFIC, _GROUP, _FILTER, _APART = 26, 27, 29, 37
_SKIP_STATISTICS = 1 << 3
_SCOPE_HOST = 254
_DEPRECATED = 0x20
_FAR, _NEAR, _FLAGS, _METRIC = 1, 2, 8, 9
_SETTINGS4, _SETTINGS6 = 1, 2  # IFLA_INET_CONF, IFLA_INET6_CONF
_FORWARDING4 = 0  # of IPV4_DEVCONF_FORWARDING, which is counted from 1
_FORWARDING6, _ACCEPT_RA, _PROXY_NDP, _OFF6, _FORCED6 = 0, 3, 22, 26, 59
_DESTINATION, _OUT, _GATEWAY, _PRIORITY, _HOPS = 1, 4, 5, 6, 9


_SMALL_TABLES = 255
_VALUE = struct.Struct("=i")
_NOTHING = memoryview(b"")
_NONE = Settings()
_ROUTER = bytes.fromhex(names.ROUTER_HARDWARE.replace(":", ""))


def observe(instance: str, only: HostName | None = None) -> Actual:
    """Return the network of the machine and of this instance's namespaces.

    Args:
        instance: whose.
        only: look into no namespace but that of this host; a plan from what was seen
            must be for this host only. Where there are links for tags, which several
            hosts share, all are looked into.

    Raises:
        OSError: the kernel does not let us look.
    """
    mark = names.mark(instance)
    machine = _look(mark)
    shared = any(x.ours and x.kind == "vlan" for x in machine.links.values())
    alone = only is not None and not shared
    wanted = names.namespace(instance, only) if only is not None and alone else None
    machine.rules = _rules(names.rule_mark(instance))
    proxies = _proxies(machine)

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
        host_routes=tuple(machine.host_routes),
        proxies=proxies,
        table_routes=tuple(machine.table_routes),
        rules=tuple(machine.rules),
        forwards=frozenset(
            version
            for version in (4, 6)
            if sysctl.read(f"ipv{version}/conf/all/forwarding") == "1"
        ),
    )


def is_ours(instance: str) -> bool:
    """Return whether the namespace of the calling thread carries our mark."""
    with Kernel() as kernel:
        answer = kernel.ask(requests.question(kernel.index("lo")))
    _, _, facts = messages.link_facts(answer)
    return messages.number_in(facts, _GROUP) == names.mark(instance)


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
    routes: list[DefaultRoute] = field(default_factory=list)
    aliases: list[Alias] = field(default_factory=list)
    elsewhere: list[IPAddress] = field(default_factory=list)
    host_routes: list[HostRoute] = field(default_factory=list)
    table_routes: list[TableRoute] = field(default_factory=list)
    rules: list[SourceRule] = field(default_factory=list)


def _namespace(name: str, machine: _View, mark: int) -> Namespace | None:
    """Return what is in the namespace of the calling thread; None if it is not ours.

    Only what a plan asks of it is taken apart: with a thousand of them that is what a
    look costs.
    """
    tables = _Tables.dumped(messages.MAIN_TABLE)
    loopback, link = False, None
    gateways: list[IPAddress] = []
    for message in tables.links:
        index, flags, found = messages.link_facts(message)
        if flags & _LOOPBACK:
            if messages.number_in(found, _GROUP) != mark:
                return None
            loopback = bool(flags & messages.UP)
        elif messages.text_in(found, _NAME) == names.INSIDE_LINK:
            own = _addresses_of(index, tables.addresses)
            link = _inside_link(flags, found, mark, own)
            below = messages.number_in(found, _BELOW) if _APART in found else 0
            if (outer := machine.links.get(below)) is not None:
                known = _neighbours(names.ROUTER_HARDWARE) if outer.router else ()
                link = replace(link, below=outer.name, neighbours=known)
            gateways = _gateways(index, tables.routes)
    return Namespace(
        name,
        loopback_up=loopback,
        link=link,
        gateways=tuple(dict.fromkeys(gateways)),
        identity=tables.identity,
    )


def _inside_link(
    flags: int, found: Attributes, mark: int, own: list[SourceAddress]
) -> Link:
    info = messages.attributes(found[_INFO]) if _INFO in found else {}
    return Link(
        name=names.INSIDE_LINK,
        kind=messages.text_in(info, 1),
        up=bool(flags & messages.UP),
        mtu=messages.number_in(found, _MTU),
        ours=messages.number_in(found, _GROUP) == mark,
        addresses=tuple(own),
    )


def _addresses_of(wanted: int, found: list[memoryview]) -> list[SourceAddress]:
    """Return the addresses of one link that were given to it."""
    own = []
    for message in found:
        length, _, index, facts = messages.address_facts(message)
        if index == wanted and not names.is_mark(messages.number_in(facts, _METRIC)):
            address = _address(length, facts)
            if not address.address.is_link_local:
                own.append(address)
    return own


def _gateways(wanted: int, found: list[memoryview]) -> list[IPAddress]:
    """Return the routers of one link's default routes."""
    gateways = []
    for message in found:
        if messages.is_default_route(message):
            family, *_, facts = messages.route_facts(message)
            gateways += [by for index, by in _hops(family, facts) if index == wanted]
    return gateways


@dataclass(frozen=True, slots=True)
class _Tables:
    """What the kernel says of one network namespace."""

    identity: int
    links: list[memoryview]
    addresses: list[memoryview]
    routes: list[memoryview]

    @classmethod
    def dumped(cls, table: int = 0) -> Self:
        """Ask in the namespace of the calling thread.

        Args:
            table: of routes; zero stands for all.
        """
        filtered = messages.number(_FILTER, _SKIP_STATISTICS)
        with Kernel() as kernel:
            return cls(
                kernel.identity,
                kernel.dump(messages.GET_LINK, messages.link(filtered)),
                kernel.dump(messages.GET_ADDRESS, bytes(8)),
                kernel.dump(messages.GET_ROUTE, messages.route_filter(table)),
            )


def _look(mark: int) -> _View:
    """Return what the namespace of the calling thread holds, the machine's."""
    tables = _Tables.dumped()
    links = [messages.link_facts(each) for each in tables.links]
    view = _View()
    name_of = {index: messages.text_in(found, _NAME) for index, _, found in links}
    own = _addresses(tables.addresses, view, name_of, mark)
    networks = _routes(tables.routes, view, name_of, mark)
    for index, flags, found in links:
        view.links[index] = _link(
            flags, found, name_of, mark, own.get(index, []), networks.get(index, [])
        )
    _see_routed(view)
    return view


def _see_routed(view: _View) -> None:
    """Note what our ends of routed uplinks know of their other ends."""
    routed = [index for index, link in view.links.items() if link.router]
    if not routed:
        return
    known = _permanent(names.INSIDE_HARDWARE)
    for index in routed:
        link = view.links[index]
        view.links[index] = replace(link, neighbours=tuple(known.get(index, ())))


def _neighbours(hardware: str) -> tuple[IPAddress, ...]:
    """Return whom the links of this namespace know at a hardware address."""
    return tuple(each for found in _permanent(hardware).values() for each in found)


def _permanent(hardware: str) -> dict[int, list[IPAddress]]:
    """Return by link who is known to be at a hardware address, for good."""
    wanted = bytes.fromhex(hardware.replace(":", ""))
    found: dict[int, list[IPAddress]] = defaultdict(list)
    with Kernel() as kernel:
        for each in kernel.dump(messages.GET_NEIGHBOUR, messages.neighbour_filter()):
            index, state, _, facts = messages.neighbour_facts(each)
            there = bytes(facts.get(messages.NEIGHBOUR_HARDWARE, b""))
            if state & messages.PERMANENT and there == wanted:
                found[index].append(messages.address_in(facts[_FAR]))
    return found


def _proxies(machine: _View) -> tuple[Proxy, ...]:
    """Return the addresses that the machine answers for.

    An entry has no room for a mark. It is ours if it says that vnsmail made it, and no
    other root has a route to the address: one that has lost its route leads nowhere.
    """
    elsewhere = set(machine.elsewhere)
    found: list[Proxy] = []
    with Kernel() as kernel:
        for each in kernel.dump(
            messages.GET_NEIGHBOUR, messages.neighbour_filter(proxy=True)
        ):
            index, _, _, facts = messages.neighbour_facts(each)
            if index not in machine.links or _FAR not in facts:
                continue
            address = messages.address_in(facts[_FAR])
            maker = bytes(facts.get(messages.NEIGHBOUR_PROTOCOL, b"\0"))[0]
            known = maker == names.PROTOCOL
            ours = known and address not in elsewhere
            found.append(Proxy(machine.links[index].name, address, ours, known))
    return tuple(found)


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
    found: list[memoryview], view: _View, name_of: Mapping[int, str], mark: int
) -> dict[int, list[Network]]:
    """Return the networks that are straight on each link; note the other routes."""
    networks: dict[int, list[Network]] = defaultdict(list)
    for message in found:
        family, length, table, kind, facts = messages.route_facts(message)
        if table != messages.MAIN_TABLE or kind != messages.UNICAST:
            if length == 0 and table > _SMALL_TABLES:
                version = 6 if family == messages.IPV6 else 4
                _see_table(view, table, version, facts, name_of, mark)
            continue
        metric = messages.number_in(facts, _PRIORITY)
        if names.is_mark(metric) and _DESTINATION in facts:
            address = messages.address_in(facts[_DESTINATION])
            if metric != mark:
                view.elsewhere.append(address)
            else:
                out = name_of.get(messages.number_in(facts, _OUT), "")
                view.host_routes.append(HostRoute(address, out))
            continue
        for index, gateway in _hops(family, facts):
            if length == 0:
                route = DefaultRoute(gateway, name_of.get(index, ""), metric)
                view.routes.append(route)
            elif gateway in NO_GATEWAY:
                network = network_of(messages.address_in(facts[_DESTINATION]), length)
                if not network.is_link_local:
                    networks[index].append(network)
    return networks


def _see_table(
    view: _View,
    table: int,
    version: int,
    facts: Attributes,
    name_of: Mapping[int, str],
    mark: int,
) -> None:
    """Note a default route of a table that is not the main one, if it is ours."""
    metric = messages.number_in(facts, _PRIORITY)
    if metric == mark ^ 1 << 31:
        view.table_routes.append(TableRoute(table, version, None))
    elif metric == mark and _GATEWAY in facts:
        out = name_of.get(messages.number_in(facts, _OUT), "")
        gateway = messages.address_in(facts[_GATEWAY])
        view.table_routes.append(TableRoute(table, version, gateway, out))


def _rules(mark: int) -> list[SourceRule]:
    """Return our rules about sources, of the machine."""
    found: list[SourceRule] = []
    with Kernel() as kernel:
        for each in kernel.dump(messages.GET_RULE, messages.rule_filter()):
            number, table, source = messages.rule_facts(each)
            if number == mark and source is not None:
                found.append(SourceRule(source, table))
    return found


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
    ours = messages.number_in(found, _GROUP) == mark
    master = name_of.get(messages.number_in(found, _MASTER), "")
    return Link(
        name=messages.text_in(found, _NAME),
        kind=messages.text_in(info, 1),
        up=bool(flags & messages.UP),
        mtu=messages.number_in(found, _MTU),
        loopback=bool(flags & _LOOPBACK),
        ours=ours,
        master=master,
        arriving=messages.text_in(found, _REMARK).endswith(names.ARRIVING),
        addresses=tuple(own),
        networks=tuple(dict.fromkeys(reached)),
        router=ours and bytes(found.get(messages.HARDWARE, b"")) == _ROUTER,
        settings=_NONE if master else _settings(found),
    )


def _settings(found: Attributes) -> Settings:
    """Return how the kernel treats a link, as far as that is of interest."""
    if _SPECIFIC not in found:
        return _NONE
    parts = messages.attributes(found[_SPECIFIC])
    four = messages.attributes(parts.get(messages.IPV4, _NOTHING)).get(_SETTINGS4)
    six = messages.attributes(parts.get(messages.IPV6, _NOTHING)).get(_SETTINGS6)
    forwarding4 = _setting(four, _FORWARDING4)
    if six is None:
        return Settings(forwarding4 or 0)
    return Settings(
        forwarding4=forwarding4 or 0,
        forwarding6=_setting(six, _FORWARDING6) or 0,
        forced6=_setting(six, _FORCED6),
        accept_ra=_setting(six, _ACCEPT_RA) or 0,
        proxy_ndp=_setting(six, _PROXY_NDP) or 0,
        off6=_setting(six, _OFF6) or 0,
    )


def _setting(values: memoryview | None, number: int) -> int | None:
    """Return a setting; None if the kernel is older than it."""
    if values is None or len(values) < 4 * number + 4:
        return None
    return int(_VALUE.unpack_from(values, 4 * number)[0])


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
