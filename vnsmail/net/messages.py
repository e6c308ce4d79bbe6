"""Netlink messages, packed into bytes and taken apart.

A message is a header (netlink(7)), a body of fixed size that depends on its type
(rtnetlink(7)), and attributes, each a length, a kind and a value, padded to four bytes.

Rules of this file: pure; numbers are those of linux/netlink.h, rtnetlink.h, if_link.h,
if_addr.h and neighbour.h, in the machine's byte order; what the kernel may add later is
passed over.
"""

import ipaddress
import struct
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from vnsmail.model import IPAddress

NEW_LINK, DEL_LINK, GET_LINK, SET_LINK = 16, 17, 18, 19
NEW_ADDRESS, DEL_ADDRESS, GET_ADDRESS = 20, 21, 22
NEW_ROUTE, DEL_ROUTE, GET_ROUTE = 24, 25, 26
NEW_NEIGHBOUR, DEL_NEIGHBOUR, GET_NEIGHBOUR = 28, 29, 30
NEW_RULE, DEL_RULE, GET_RULE = 32, 33, 34
GET_SETTINGS = 82
ERROR, DONE = 2, 3

REQUEST, ACK = 0x1, 0x4
DUMP = 0x300
REPLACE, EXCLUSIVE, CREATE = 0x100, 0x200, 0x400

IPV4, IPV6, BRIDGE_FAMILY = 2, 10, 7

UP = 0x1
"""IFF_UP of netdevice(7)."""

GROUP = 27
"""IFLA_GROUP: the mark of a link (names.py)."""

REMARK = 20
"""IFLA_IFALIAS: what people are told of a link."""

METRIC = 9
"""IFA_RT_PRIORITY: the mark of an address."""

HARDWARE, BELOW, OPERATES = 1, 5, 16
"""IFLA_ADDRESS, IFLA_LINK and IFLA_OPERSTATE of a link."""

READY = (b"\0", b"\6")
"""Values of IFLA_OPERSTATE: unknown, of a link that never says, and up (RFC 2863)."""

FAR = 1
"""IFA_ADDRESS: of two ends of a link the other's address, else the link's own."""

HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_RULE = struct.Struct("=BBBBBBBBI")
_NUMBER = struct.Struct("=I")
_KIND = 0x3FFF  # the two bits above say nested and byte order

Attributes: TypeAlias = dict[int, memoryview]


def message(kind: int, flags: int, body: bytes) -> bytes:
    """Return a request without a number, which the socket gives it."""
    return HEADER.pack(HEADER.size + len(body), kind, flags | REQUEST, 0, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute."""
    length = ATTRIBUTE.size + len(value)
    return ATTRIBUTE.pack(length, kind) + value + b"\0" * (-length % 4)


def nested(kind: int, *inner: bytes) -> bytes:
    """Return an attribute made of attributes."""
    return attribute(kind | 0x8000, b"".join(inner))


def number(kind: int, value: int) -> bytes:
    """Return an attribute with a number of 32 bits."""
    return attribute(kind, _NUMBER.pack(value & 0xFFFFFFFF))


def text(kind: int, value: str) -> bytes:
    """Return an attribute with a text."""
    return attribute(kind, value.encode() + b"\0")


def attributes(payload: memoryview, offset: int = 0) -> Attributes:
    """Return the attributes of a message's payload by kind; of equal ones the last."""
    found: Attributes = {}
    unpack, end = ATTRIBUTE.unpack_from, len(payload) - 3
    while offset < end:
        length, kind = unpack(payload, offset)
        if length < ATTRIBUTE.size:
            break
        found[kind & _KIND] = payload[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def each(payload: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Return attributes one by one, where several have the same kind."""
    offset, end = 0, len(payload) - 3
    while offset < end:
        length, kind = ATTRIBUTE.unpack_from(payload, offset)
        if length < ATTRIBUTE.size:
            break
        yield kind & _KIND, payload[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def number_in(found: Mapping[int, memoryview], kind: int) -> int:
    """Return the number of an attribute, zero if it is not there."""
    value = found.get(kind)
    return int(_NUMBER.unpack_from(value)[0]) if value else 0


def text_in(found: Mapping[int, memoryview], kind: int) -> str:
    """Return the text of an attribute, empty if it is not there."""
    value = found.get(kind)
    return bytes(value).rstrip(b"\0").decode(errors="replace") if value else ""


def address_in(value: memoryview | bytes) -> IPAddress:
    """Return the address that an attribute holds."""
    if len(value) == 4:
        return ipaddress.IPv4Address(bytes(value))
    return ipaddress.IPv6Address(bytes(value))


def family(address: IPAddress) -> int:
    """Return the kernel's number for the family of an address."""
    return IPV4 if address.version == 4 else IPV6


# Bodies ----------------------------------------------------------------------------


def link(
    *more: bytes, index: int = 0, name: str = "", up: bool = False, kind: int = 0
) -> bytes:
    """Return the body of a link message.

    Args:
        more: its attributes.
        index: which link, or which index a new one gets.
        name: which link, if no index is given; of a new one, its name.
        up: it is set up by this message.
        kind: the family, zero but for questions to bridges.
    """
    flags = UP if up else 0
    named = text(3, name) if name else b""
    return _LINK.pack(kind, 0, index, flags, flags) + named + b"".join(more)


def address(
    own: IPAddress, prefix_length: int, index: int, *more: bytes, scope: int = 0
) -> bytes:
    """Return the body of an address message."""
    body = _ADDRESS.pack(family(own), prefix_length, 0, scope, index)
    local = attribute(2, own.packed) if own.version == 4 else b""
    return body + local + attribute(1, own.packed) + b"".join(more)


def route(
    of: int,
    *more: bytes,
    prefix_length: int = 0,
    table: int = 0,
    flags: int = 0,
    any_origin: bool = False,
    origin: int = 4,
    kind: int = 1,
) -> bytes:
    """Return the body of a message for a route.

    Args:
        of: the family.
        more: its attributes: destination, gateway, link, metric.
        prefix_length: of the destination; zero is a default route.
        table: zero stands for the main one.
        flags: RTNH_F_ONLINK.
        any_origin: of one to remove: who made it does not matter.
        origin: who makes it; static, if nothing else is said.
        kind: UNICAST, or UNREACHABLE.
    """
    small = table if 0 < table < 256 else 0 if table else MAIN_TABLE
    if any_origin:
        origin, kind = 0, 0
    # Of a route to remove, the scope too is whichever it is (RT_SCOPE_NOWHERE).
    scope = 255 if any_origin else 0
    body = _ROUTE.pack(of, prefix_length, 0, 0, small, origin, scope, kind, flags)
    return body + (number(15, table) if table else b"") + b"".join(more)


MAIN_TABLE = 254
STATIC = 4
UNICAST, UNREACHABLE = 1, 7


NEIGHBOUR_HARDWARE, NEIGHBOUR_PROTOCOL = 2, 12
"""NDA_LLADDR and NDA_PROTOCOL; NDA_DST is FAR."""

PERMANENT, PROXY = 0x80, 0x08
"""A state and a flag of neighbours: never asked for, and answered for."""


def neighbour(other: IPAddress, index: int, *more: bytes, proxy: bool = False) -> bytes:
    """Return the body of a message for a neighbour on a link."""
    flags = PROXY if proxy else 0
    body = _NEIGHBOUR.pack(family(other), index, PERMANENT, flags, 0)
    return body + attribute(FAR, other.packed) + b"".join(more)


def neighbour_filter(*, proxy: bool = False) -> bytes:
    """Return the body of a question for all neighbours, or all that are answered for."""
    return _NEIGHBOUR.pack(0, 0, 0, PROXY if proxy else 0, 0)


def neighbour_facts(payload: memoryview) -> tuple[int, int, int, Attributes]:
    """Return link's index, state, flags and attributes of a neighbour."""
    _, index, state, flags, _ = _NEIGHBOUR.unpack_from(payload)
    return index, state, flags, attributes(payload, _NEIGHBOUR.size)


def destination(other: IPAddress) -> bytes:
    return attribute(1, other.packed)


def gateway(router: IPAddress) -> bytes:
    return attribute(5, router.packed)


def out_of(index: int) -> bytes:
    return number(4, index)


def metric(value: int) -> bytes:
    return number(6, value)


# Numbers of linux/fib_rules.h.
_TO_TABLE = 1
_SOURCE, _PRIORITY, _BUT_GROUP, _BUT_LENGTH, _TABLE, _MAKER = 2, 6, 13, 14, 15, 21


def rule(source: IPAddress, table: int, priority: int, mark: int, maker: int) -> bytes:
    """Return the body of a message for a rule about one source.

    Args:
        source: of the packets that it is about.
        table: where to look; of the main one all but default routes.
        priority: when, among other rules; the lowest first.
        mark: which the kernel keeps as a group of links that the way must not take.
        maker: protocol.
    """
    own = attribute(_SOURCE, source.packed) + number(_PRIORITY, priority)
    own += number(_BUT_GROUP, mark) + number(_TABLE, table)
    if table == MAIN_TABLE:
        own += number(_BUT_LENGTH, 0)
    own += attribute(_MAKER, bytes([maker]))
    length = source.max_prefixlen
    small = table if table < 256 else 0
    head = _RULE.pack(family(source), 0, length, 0, small, 0, 0, _TO_TABLE, 0)
    return head + own


def rule_filter() -> bytes:
    """Return the body of a question for all rules."""
    return _RULE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0)


def rule_facts(payload: memoryview) -> tuple[int, int, IPAddress | None]:
    """Return mark, table and source of a rule; None if it is not about one source."""
    _, _, length, _, small, *_ = _RULE.unpack_from(payload)
    found = attributes(payload, _RULE.size)
    source = found.get(_SOURCE)
    alone = source is not None and length == 8 * len(source)
    return (
        number_in(found, _BUT_GROUP),
        number_in(found, _TABLE) or small,
        address_in(source) if source is not None and alone else None,
    )


# Bodies of what the kernel says ----------------------------------------------------


def link_facts(payload: memoryview) -> tuple[int, int, Attributes]:
    """Return index, flags and attributes of a link."""
    _, _, index, flags, _ = _LINK.unpack_from(payload)
    return index, flags, attributes(payload, _LINK.size)


def address_facts(payload: memoryview) -> tuple[int, int, int, Attributes]:
    """Return prefix length, scope, link's index and attributes of an address."""
    _, length, _, scope, index = _ADDRESS.unpack_from(payload)
    return length, scope, index, attributes(payload, _ADDRESS.size)


def route_facts(payload: memoryview) -> tuple[int, int, int, int, Attributes]:
    """Return family, prefix length, table, type and attributes of a route."""
    facts = _ROUTE.unpack_from(payload)
    found = attributes(payload, _ROUTE.size)
    table = number_in(found, 15) or facts[4]
    return facts[0], facts[1], table, facts[7], found


def is_default_route(payload: memoryview) -> bool:
    """Return whether a route leads to all that no other leads to (struct rtmsg)."""
    return payload[1] == 0 and payload[7] == UNICAST


def route_filter(table: int = 0) -> bytes:
    """Return the body of a question for all routes of both families, or of a table."""
    return _ROUTE.pack(0, 0, 0, 0, table, 0, 0, 0, 0)


NAME = 3
"""IFLA_IFNAME of a link."""

SOURCE, OUT_OF, _GATEWAY, _VIA = 2, 4, 5, 18
"""RTA_SRC and RTA_OIF of a route; its router, which may be of the other family."""


def way(of: int, destination_length: int, source_length: int) -> bytes:
    """Return the head of a question for the route of one packet."""
    return _ROUTE.pack(of, destination_length, source_length, 0, 0, 0, 0, 0, 0)


def gateway_in(facts: Attributes) -> IPAddress | None:
    """Return the router of a route; None if the destination is on the link."""
    if _GATEWAY in facts:
        return address_in(facts[_GATEWAY])
    via = facts.get(_VIA)  # struct rtvia: two bytes of family, the address
    return address_in(via[2:]) if via else None


def hops_in(value: memoryview) -> Iterator[tuple[int, Attributes]]:
    """Return link's index and attributes of each path of a route with several."""
    offset = 0
    while offset + 8 <= len(value):
        length, _, _, index = struct.unpack_from("=HBBi", value, offset)
        if length < 8:
            break
        yield index, attributes(value[offset : offset + length], 8)
        offset += (length + 3) & ~3
