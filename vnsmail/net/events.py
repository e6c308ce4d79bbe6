"""What the kernel tells of changes to a network, taken apart.

Whoever joins a multicast group of rtnetlink(7) or of nfnetlink gets a message for each
change, whoever made it, in the form that makes the thing. One read may hold several.

Rules of this file: pure; a message that is not understood, or is cut short, is passed
over, for the next look at the whole finds what it would have said; numbers are those of
linux/rtnetlink.h, fib_rules.h, nfnetlink.h and nf_tables.h.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from vnsmail.model import IPAddress
from vnsmail.net import messages
from vnsmail.net.messages import HEADER

NEW_NSID, DEL_NSID = 88, 89

LINKS, NSIDS = 1, 28
IPV4_ADDRESSES, IPV4_ROUTES, IPV4_RULES = 5, 7, 8
IPV6_ADDRESSES, IPV6_ROUTES, IPV6_RULES = 9, 11, 19
ROUTE_GROUPS = (
    *(LINKS, IPV4_ADDRESSES, IPV4_ROUTES, IPV4_RULES),
    *(IPV6_ADDRESSES, IPV6_ROUTES, IPV6_RULES, NSIDS),
)
"""RTNLGRP_*: what is listened to. Not neighbours, who come and go all the time."""

NFTABLES_GROUP = 7
"""NFNLGRP_NFTABLES."""

_NAME, _MTU, _MASTER = 3, 4, 10
_DESTINATION, _OUT = 1, 4
_RULE_TO, _RULE_FROM = 1, 2
_TABLE = 15
_NEAR = 2
_NSID_ATTRIBUTE = 1
_NFTABLES = 10  # NFNL_SUBSYS_NFTABLES
_NEW_GENERATION = 15
_TABLE_NAME = 1
_PROCESS_NAME = 3
_RULE = struct.Struct("=BBBBBBBBI")


class Kind(StrEnum):
    """What kind of thing has changed."""

    LINK = "link"
    ADDRESS = "address"
    ROUTE = "route"
    RULE = "rule"
    NAMESPACE = "namespace"
    FILTER = "filter"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that came, changed or went."""

    kind: Kind
    gone: bool = False
    index: int = 0
    """Of the link it is, or is on; of a namespace, its number (ip-netns(8), nsid)."""
    name: str = ""
    """Of a link; of a filter's table."""
    state: tuple[object, ...] = ()
    """Of a link: whether it is up, its MTU and its master."""
    addresses: tuple[IPAddress, ...] = ()
    """The address; of a route its destination; of a rule, from and to."""
    table: int = 0
    """Of a route, or the one a rule leads to."""
    sender: int = 0
    """Port of the netlink socket that asked for it, as a rule the number of a process;
    0: the kernel by itself."""
    process: str = ""
    """Of a filter's generation: what the process calls itself that made it."""


def route_events(data: bytes) -> Iterator[Event]:
    """Return what one read from a socket of NETLINK_ROUTE tells."""
    for kind, sender, payload in _each(data):
        decode = _DECODERS.get(kind)
        if decode is None:
            continue
        try:
            event = decode(kind, payload, sender)
        except (struct.error, LookupError, ValueError):
            continue
        if event is not None:
            yield event


def filter_events(data: bytes) -> Iterator[Event]:
    """Return what one read from a socket of NETLINK_NETFILTER tells of nftables.

    A transaction comes as its changes, each with the name of its table, and at last its
    generation: an event without a name, with what the process calls itself.
    """
    last = None
    for kind, sender, payload in _each(data):
        if kind >> 8 != _NFTABLES:
            continue
        found = messages.attributes(payload, 4)
        if kind & 0xFF == _NEW_GENERATION:
            said = messages.text_in(found, _PROCESS_NAME)
            event = Event(Kind.FILTER, sender=sender, process=said)
        else:
            name = messages.text_in(found, _TABLE_NAME)
            event = Event(Kind.FILTER, name=name, sender=sender)
        if event != last:
            yield event
        last = event


def _each(data: bytes) -> Iterator[tuple[int, int, memoryview]]:
    """Return type, sender and payload of each whole message."""
    view, offset = memoryview(data), 0
    while offset + HEADER.size <= len(view):
        length, kind, _, _, sender = HEADER.unpack_from(view, offset)
        if length < HEADER.size or offset + length > len(view):
            return
        yield kind, sender, view[offset + HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _link(kind: int, payload: memoryview, sender: int) -> Event | None:
    if payload[0] != 0:  # a bridge tells of its ports apart (AF_BRIDGE)
        return None
    index, flags, found = messages.link_facts(payload)
    up = bool(flags & messages.UP)
    return Event(
        Kind.LINK,
        gone=kind == messages.DEL_LINK,
        index=index,
        name=messages.text_in(found, _NAME),
        state=(
            up,
            messages.number_in(found, _MTU),
            messages.number_in(found, _MASTER),
        ),
        sender=sender,
    )


def _address(kind: int, payload: memoryview, sender: int) -> Event:
    _, _, index, found = messages.address_facts(payload)
    own = found.get(_NEAR) or found[messages.FAR]
    return Event(
        Kind.ADDRESS,
        gone=kind == messages.DEL_ADDRESS,
        index=index,
        addresses=(messages.address_in(own),),
        sender=sender,
    )


def _route(kind: int, payload: memoryview, sender: int) -> Event:
    _, _, table, _, found = messages.route_facts(payload)
    to = found.get(_DESTINATION)
    return Event(
        Kind.ROUTE,
        gone=kind == messages.DEL_ROUTE,
        index=messages.number_in(found, _OUT),
        addresses=(messages.address_in(to),) if to else (),
        table=table,
        sender=sender,
    )


def _rule(kind: int, payload: memoryview, sender: int) -> Event:
    facts = _RULE.unpack_from(payload)
    found = messages.attributes(payload, _RULE.size)
    ends = [found[each] for each in (_RULE_FROM, _RULE_TO) if each in found]
    return Event(
        Kind.RULE,
        gone=kind == messages.DEL_RULE,
        addresses=tuple(map(messages.address_in, ends)),
        table=messages.number_in(found, _TABLE) or facts[4],
        sender=sender,
    )


def _namespace(kind: int, payload: memoryview, sender: int) -> Event:
    found = messages.attributes(payload, 4)
    number = messages.number_in(found, _NSID_ATTRIBUTE)
    return Event(Kind.NAMESPACE, gone=kind == DEL_NSID, index=number, sender=sender)


_DECODERS = {
    messages.NEW_LINK: _link,
    messages.DEL_LINK: _link,
    messages.NEW_ADDRESS: _address,
    messages.DEL_ADDRESS: _address,
    messages.NEW_ROUTE: _route,
    messages.DEL_ROUTE: _route,
    messages.NEW_RULE: _rule,
    messages.DEL_RULE: _rule,
    NEW_NSID: _namespace,
    DEL_NSID: _namespace,
}
