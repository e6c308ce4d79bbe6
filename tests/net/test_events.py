"""Notifications of the kernel, taken apart."""

import struct
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from vnsmail.net import events, messages
from vnsmail.net.events import Event, Kind, filter_events, route_events
from vnsmail.net.messages import attribute, number, text

OWN = ip_address("10.77.0.11")


def told(kind, body, sender=0):
    header = messages.HEADER.pack(16 + len(body), kind, 0, 0, sender)
    return header + body


def link(name="br0", *, up=True, mtu=1500, master=0, family=0):
    flags = messages.UP if up else 0
    body = struct.pack("=BxHiII", family, 1, 7, flags, 0)
    return body + text(3, name) + number(4, mtu) + number(10, master)


def test_links():
    """Name and state; what a bridge says apart of its ports is no news."""
    said = told(messages.NEW_LINK, link(up=False, mtu=1400, master=3), 99)
    said += told(messages.DEL_LINK, link("eth9"))
    said += told(messages.DEL_LINK, link(family=messages.BRIDGE_FAMILY))

    assert [
        Event(Kind.LINK, index=7, name="br0", state=(False, 1400, 3), sender=99),
        Event(Kind.LINK, gone=True, index=7, name="eth9", state=(True, 1500, 0)),
    ] == list(route_events(said))


def test_addresses():
    """The own address of a link, also of one between two points."""
    body = struct.pack("=BBBBI", 2, 24, 0, 0, 5) + attribute(1, bytes([10, 9, 9, 9]))
    said = told(messages.DEL_ADDRESS, body + attribute(2, OWN.packed))
    six = ip_address("fd77::11")
    body = struct.pack("=BBBBI", 10, 64, 0, 0, 5) + attribute(1, six.packed)
    said += told(messages.NEW_ADDRESS, body, 4)

    assert [
        Event(Kind.ADDRESS, gone=True, index=5, addresses=(OWN,)),
        Event(Kind.ADDRESS, index=5, addresses=(six,), sender=4),
    ] == list(route_events(said))


def test_routes_and_rules():
    """Where to, out of which link, and which table."""
    body = messages.route(2, attribute(1, OWN.packed), number(4, 6), prefix_length=32)
    said = told(messages.DEL_ROUTE, body)
    said += told(messages.NEW_ROUTE, messages.route(10, table=7000))
    rule = struct.pack("=BBBBBBBBI", 2, 0, 32, 0, 0, 0, 0, 1, 0)
    said += told(messages.DEL_RULE, rule + attribute(2, OWN.packed) + number(15, 7000))

    assert [
        Event(Kind.ROUTE, gone=True, index=6, addresses=(OWN,), table=254),
        Event(Kind.ROUTE, table=7000),
        Event(Kind.RULE, gone=True, addresses=(OWN,), table=7000),
    ] == list(route_events(said))


def test_namespaces():
    """The number of one that is no more."""
    said = told(events.DEL_NSID, bytes(4) + number(1, 12))

    assert [Event(Kind.NAMESPACE, gone=True, index=12)] == list(route_events(said))


def test_filters():
    """A table for many changes of it, and who made them; other netfilter is not told."""
    change = bytes(4) + text(1, "vnsmail")
    generation = bytes(4) + number(1, 3) + text(3, "nft")
    said = told(10 << 8 | 6, change, 77) + told(10 << 8 | 8, change, 77)
    said += told(10 << 8 | 15, generation, 77) + told(1 << 8, change)

    assert [
        Event(Kind.FILTER, name="vnsmail", sender=77),
        Event(Kind.FILTER, sender=77, process="nft"),
    ] == list(filter_events(said))


KINDS = st.sampled_from([*range(16, 40), 88, 89, 0xA00, 0xA02, 0xA0F])


@given(st.lists(st.tuples(KINDS, st.binary(max_size=80))), st.integers(0, 9))
def test_anything_at_all(parts, cut):
    """What is broken or cut short is passed over, and raises nothing."""
    said = b"".join(told(kind, body + bytes(-len(body) % 4)) for kind, body in parts)
    for decode in (route_events, filter_events):
        for event in decode(said[: len(said) - cut]):
            assert event.kind in Kind


@given(st.binary(max_size=300))
def test_any_bytes(data):
    """So are bytes that are no message."""
    assert list(route_events(data)) is not None
    assert list(filter_events(data)) is not None
