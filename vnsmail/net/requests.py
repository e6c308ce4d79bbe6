"""What the kernel is told to perform a step: the messages of each kind of step.

Rules of this file: nothing is sent here; a step is one message wherever it can be, so
that it is done wholly or not at all; everything of ours carries its mark from the
message that makes it (names.py).
"""

import errno
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

from vnsmail.model import IPAddress, Uplink
from vnsmail.net import messages, names
from vnsmail.net.facts import NO_GATEWAY
from vnsmail.net.messages import (
    CREATE,
    EXCLUSIVE,
    REPLACE,
    attribute,
    message,
    nested,
    number,
    text,
)
from vnsmail.net.steps import (
    AddAddress,
    AddAlias,
    AddNeighbour,
    AddProxy,
    AddRoute,
    AddRule,
    AddTableRoute,
    Connect,
    JoinBridge,
    MakeVlan,
    RemoveAddress,
    RemoveAlias,
    RemoveGateway,
    RemoveNeighbour,
    RemoveProxy,
    RemoveRoute,
    RemoveRule,
    RemoveTableRoute,
    SetGateway,
    SetMtu,
    SetUp,
    Step,
)

# Numbers of linux/if_link.h, linux/veth.h, linux/if_addr.h and linux/rtnetlink.h.
_HARDWARE, _NAME, _MTU, _BELOW, _MASTER = 1, 3, 4, 5, 10
_INFO, _REMARK, _GROUP, _NAMESPACE_FD = 18, 20, 27, 28
_KIND, _DATA = 1, 2
_PORT_KIND, _PORT_DATA, _PORT_ISOLATED = 4, 5, 33
_PEER = 1
_VLAN_ID = 1
_MACVLAN_MODE, _MACVLAN_BRIDGE = 1, 4
_LABEL, _LIFETIMES, _FLAGS, _METRIC = 3, 6, 8, 9
_NODAD, _NOPREFIXROUTE = 0x02, 0x200
_SCOPE_HOST = 254
_ONLINK = 4
_LABEL_LIMIT = 15  # bytes; IFNAMSIZ is 16 with the final NUL
_NEVER_PREFERRED = attribute(
    _LIFETIMES, bytes.fromhex("00000000ffffffff0000000000000000")
)

Index: TypeAlias = Callable[[str], int]
"""Returns the index of a link by name; raises OSError if there is none."""


def connect(step: Connect, index: Index, mark: int, fd: int) -> bytes:
    """Return what makes a link where it belongs, so that nothing has to move.

    Args:
        step: which link.
        index: of the machine's links.
        mark: of this instance.
        fd: descriptor of the namespace.
    """
    ours, into = number(_GROUP, mark), number(_NAMESPACE_FD, fd)
    mtu = number(_MTU, step.mtu)
    if step.uplink is Uplink.MACVLAN:
        data = nested(_DATA, number(_MACVLAN_MODE, _MACVLAN_BRIDGE))
        kind = nested(_INFO, text(_KIND, "macvlan"), data)
        body = messages.link(
            *(ours, mtu, number(_BELOW, index(step.link)), into, kind),
            name=names.INSIDE_LINK,
        )
        return message(messages.NEW_LINK, CREATE | EXCLUSIVE, body)
    if step.uplink is Uplink.ROUTED:
        inside = [attribute(_HARDWARE, _octets(names.INSIDE_HARDWARE))]
        outside = [attribute(_HARDWARE, _octets(names.ROUTER_HARDWARE))]
    else:
        inside = []
        outside = [
            number(_MASTER, index(step.link)),
            attribute(_HARDWARE, _octets(names.port_address(step.link))),
        ]
    peer = attribute(_PEER, messages.link(mtu, into, *inside, name=names.INSIDE_LINK))
    body = messages.link(
        ours,
        number(_MTU, step.outer_mtu),
        *outside,
        nested(_INFO, text(_KIND, "veth"), nested(_DATA, peer)),
        name=step.port,
    )
    return message(messages.NEW_LINK, CREATE | EXCLUSIVE, body)


def _make_vlan(step: MakeVlan, index: Index, mark: int) -> bytes:
    tag = attribute(_VLAN_ID, step.tag.to_bytes(2, sys.byteorder))
    body = messages.link(
        number(_GROUP, mark),
        number(_BELOW, index(step.link)),
        nested(_INFO, text(_KIND, "vlan"), nested(_DATA, tag)),
        name=step.name,
    )
    return message(messages.NEW_LINK, CREATE | EXCLUSIVE, body)


def _octets(hardware: str) -> bytes:
    return bytes.fromhex(hardware.replace(":", ""))


def loopback_up(mark: int, remark: str) -> bytes:
    """Return what sets a namespace's loopback up and marks the namespace with it."""
    body = messages.link(number(_GROUP, mark), text(_REMARK, remark), index=1, up=True)
    return message(messages.NEW_LINK, 0, body)


def port_up(name: str, remark: str) -> bytes:
    body = messages.link(text(_REMARK, remark), name=name, up=True)
    return message(messages.NEW_LINK, 0, body)


def port_apart(name: str, remark: str, *, apart: bool, up: bool = False) -> bytes:
    """Return what keeps a port of a bridge from its siblings (ip-link(8), isolated).

    Ports that are apart do not hear each other; all other ports hear them, and they
    those. The remark says that it was us, and not somebody who wants it so.

    Args:
        name: the port.
        remark: what people are told of it.
        apart: whether it is.
        up: it is set up too, which the kernel does last.
    """
    data = nested(_PORT_DATA, attribute(_PORT_ISOLATED, bytes([apart])))
    kind = nested(_INFO, text(_PORT_KIND, "bridge"), data)
    said = text(_REMARK, remark + names.ARRIVING if apart else remark)
    body = messages.link(said, kind, name=name, up=up)
    return message(messages.NEW_LINK, 0, body)


def announce(index: int, hardware: bytes) -> bytes:
    """Return what makes a link tell its neighbours its addresses, if it is to.

    Args:
        index: of the link.
        hardware: the address it has already.
    """
    body = messages.link(attribute(_HARDWARE, hardware), index=index)
    return message(messages.NEW_LINK, 0, body)


def remove_link(index: int) -> bytes:
    return message(messages.DEL_LINK, 0, messages.link(index=index))


def question(index: int) -> bytes:
    """Return a question for one link."""
    return message(messages.GET_LINK, 0, messages.link(index=index))


def way(destination: IPAddress, source: IPAddress | None) -> bytes:
    """Return a question for the route that a packet would take."""
    more = [messages.destination(destination)]
    if source is not None:
        more.append(attribute(messages.SOURCE, source.packed))
    whole = destination.max_prefixlen
    head = messages.way(messages.family(destination), whole, whole if source else 0)
    return message(messages.GET_ROUTE, 0, head + b"".join(more))


def _join_bridge(step: JoinBridge, index: Index, _: int) -> bytes:
    body = messages.link(number(_MASTER, index(step.bridge)), index=index(step.port))
    return message(messages.NEW_LINK, 0, body)


def _set_mtu(step: SetMtu, index: Index, _: int) -> bytes:
    body = messages.link(number(_MTU, step.mtu), index=index(step.link))
    return message(messages.NEW_LINK, 0, body)


def _set_up(step: SetUp, index: Index, _: int) -> bytes:
    body = messages.link(index=index(step.link), up=True)
    return message(messages.NEW_LINK, 0, body)


def _add_address(step: AddAddress, index: Index, _: int) -> bytes:
    own = step.address.address
    # Without NODAD an IPv6 address cannot be bound while the kernel asks the network
    # whether somebody has it (RFC 4862 section 5.4), and mail would wait a second or
    # two, or for ever if the link is not connected. The directory says whose it is.
    flags = [number(_FLAGS, _NODAD)] if own.version == 6 else []
    body = messages.address(
        own, step.address.prefix_length, index(names.INSIDE_LINK), *flags
    )
    return message(messages.NEW_ADDRESS, CREATE | EXCLUSIVE, body)


def _remove_address(step: RemoveAddress, index: Index, _: int) -> bytes:
    own, length = step.address.address, step.address.prefix_length
    body = messages.address(own, length, index(names.INSIDE_LINK))
    return message(messages.DEL_ADDRESS, 0, body)


def _set_gateway(step: SetGateway, index: Index, _: int) -> bytes:
    body = messages.route(
        messages.family(step.gateway),
        messages.gateway(step.gateway),
        messages.out_of(index(names.INSIDE_LINK)),
        flags=_ONLINK if step.on_link else 0,
    )
    return message(messages.NEW_ROUTE, CREATE | REPLACE, body)


def _remove_gateway(step: RemoveGateway, index: Index, _: int) -> bytes:
    by = [] if step.gateway in NO_GATEWAY else [messages.gateway(step.gateway)]
    out = messages.out_of(index(names.INSIDE_LINK))
    body = messages.route(messages.family(step.gateway), *by, out, any_origin=True)
    return message(messages.DEL_ROUTE, 0, body)


def _add_alias(step: AddAlias, index: Index, mark: int) -> bytes:
    """Add an address that is used by who binds it and by nobody else.

    The machine's own sockets must never get it, whatever happens to the machine's own
    addresses. So it is never a choice for the kernel: IPv4 has scope host, which no
    route to another machine accepts, and the whole address as its network, so that it
    is neither primary nor secondary to another; IPv6 is deprecated from the start,
    which loses against any other address (RFC 6724 section 5, rule 3).
    """
    own, marked = step.address, number(_METRIC, mark)
    if own.version == 4:
        more = [marked, *_label(step.link)]
        body = messages.address(own, 32, index(step.link), *more, scope=_SCOPE_HOST)
    else:
        flags = number(_FLAGS, _NODAD | _NOPREFIXROUTE)
        more = [_NEVER_PREFERRED, flags, marked]
        body = messages.address(own, 128, index(step.link), *more)
    return message(messages.NEW_ADDRESS, CREATE | EXCLUSIVE, body)


def _label(link: str) -> list[bytes]:
    """Return what keeps a legacy question for the link's address from finding an alias.

    SIOCGIFADDR (netdevice(7)) returns the first address whose label is the link's
    name, and addresses of scope host come first.
    """
    label = f"{link}:vns"
    return [text(_LABEL, label)] if len(label) <= _LABEL_LIMIT else []


def _remove_alias(step: RemoveAlias, index: Index, _: int) -> bytes:
    body = messages.address(step.address, step.address.max_prefixlen, index(step.link))
    return message(messages.DEL_ADDRESS, 0, body)


def _add_neighbour(step: AddNeighbour, index: Index, _: int) -> bytes:
    hardware = attribute(messages.NEIGHBOUR_HARDWARE, _octets(step.hardware))
    body = messages.neighbour(step.address, index(step.link), hardware)
    return message(messages.NEW_NEIGHBOUR, CREATE | REPLACE, body)


def _remove_neighbour(step: RemoveNeighbour, index: Index, _: int) -> bytes:
    body = messages.neighbour(step.address, index(step.link))
    return message(messages.DEL_NEIGHBOUR, 0, body)


def _host_route(step: AddRoute | RemoveRoute, index: Index, mark: int) -> bytes:
    return messages.route(
        messages.family(step.address),
        messages.destination(step.address),
        messages.out_of(index(step.link)),
        messages.metric(mark),
        prefix_length=step.address.max_prefixlen,
        any_origin=isinstance(step, RemoveRoute),
        origin=names.PROTOCOL,
    )


def _add_route(step: AddRoute, index: Index, mark: int) -> bytes:
    body = _host_route(step, index, mark)
    return message(messages.NEW_ROUTE, CREATE | REPLACE, body)


def _remove_route(step: RemoveRoute, index: Index, mark: int) -> bytes:
    return message(messages.DEL_ROUTE, 0, _host_route(step, index, mark))


def _add_proxy(step: AddProxy, index: Index, _: int) -> bytes:
    ours = attribute(messages.NEIGHBOUR_PROTOCOL, bytes([names.PROTOCOL]))
    body = messages.neighbour(step.address, index(step.link), ours, proxy=True)
    return message(messages.NEW_NEIGHBOUR, CREATE | REPLACE, body)


def _remove_proxy(step: RemoveProxy, index: Index, _: int) -> bytes:
    body = messages.neighbour(step.address, index(step.link), proxy=True)
    return message(messages.DEL_NEIGHBOUR, 0, body)


def _table_route(
    step: AddTableRoute | RemoveTableRoute, index: Index, mark: int
) -> bytes:
    of = messages.IPV4 if step.version == 4 else messages.IPV6
    more, flags, kind = [], 0, messages.UNICAST
    if step.gateway is None:
        # Metrics tell the two apart; the lower one is tried first.
        more.append(messages.metric(mark ^ 1 << 31))
        kind = messages.UNREACHABLE
    else:
        more.append(messages.metric(mark))
        more.append(messages.gateway(step.gateway))
        more.append(messages.out_of(index(step.link)))
        near = step.version == 6 and step.gateway.is_link_local
        flags = 0 if near else _ONLINK
    removes = isinstance(step, RemoveTableRoute)
    return messages.route(
        of,
        *more,
        table=step.table,
        flags=0 if removes else flags,
        any_origin=removes,
        origin=names.PROTOCOL,
        kind=kind,
    )


def _add_table_route(step: AddTableRoute, index: Index, mark: int) -> bytes:
    body = _table_route(step, index, mark)
    return message(messages.NEW_ROUTE, CREATE | REPLACE, body)


def _remove_table_route(step: RemoveTableRoute, index: Index, mark: int) -> bytes:
    return message(messages.DEL_ROUTE, 0, _table_route(step, index, mark))


def _rule(step: AddRule | RemoveRule, mark: int) -> bytes:
    own = step.table != messages.MAIN_TABLE
    priority = names.THEN_OWN_TABLE if own else names.SPECIFIC_FIRST
    rule_mark = mark ^ 1 << 31
    return messages.rule(step.address, step.table, priority, rule_mark, names.PROTOCOL)


def _add_rule(step: AddRule, _: Index, mark: int) -> bytes:
    return message(messages.NEW_RULE, CREATE | EXCLUSIVE, _rule(step, mark))


def _remove_rule(step: RemoveRule, _: Index, mark: int) -> bytes:
    return message(messages.DEL_RULE, 0, _rule(step, mark))


# The table -------------------------------------------------------------------------

_Request: TypeAlias = Callable[[Any, Index, int], bytes]

NO_DEVICE = {errno.ENODEV, errno.ENXIO}

REQUESTS: dict[type[Step], tuple[_Request, set[int]]] = {
    MakeVlan: (_make_vlan, set()),
    JoinBridge: (_join_bridge, set()),
    SetMtu: (_set_mtu, set()),
    SetUp: (_set_up, set()),
    AddAddress: (_add_address, {errno.EEXIST}),
    RemoveAddress: (_remove_address, NO_DEVICE | {errno.EADDRNOTAVAIL}),
    SetGateway: (_set_gateway, {errno.EEXIST}),
    RemoveGateway: (_remove_gateway, NO_DEVICE | {errno.ESRCH}),
    AddAlias: (_add_alias, set()),
    RemoveAlias: (_remove_alias, NO_DEVICE | {errno.EADDRNOTAVAIL}),
    AddNeighbour: (_add_neighbour, set()),
    RemoveNeighbour: (_remove_neighbour, NO_DEVICE | {errno.ENOENT}),
    AddRoute: (_add_route, {errno.EEXIST}),
    RemoveRoute: (_remove_route, NO_DEVICE | {errno.ESRCH}),
    AddProxy: (_add_proxy, {errno.EEXIST}),
    RemoveProxy: (_remove_proxy, NO_DEVICE | {errno.ENOENT}),
    AddTableRoute: (_add_table_route, {errno.EEXIST}),
    RemoveTableRoute: (_remove_table_route, NO_DEVICE | {errno.ESRCH}),
    AddRule: (_add_rule, {errno.EEXIST}),
    RemoveRule: (_remove_rule, {errno.ENOENT}),
}
"""What asks the kernel for a step, and the errors that say it is as wanted already."""
