"""Netlink messages: what is packed can be taken apart, and rubbish is no disaster."""

import ipaddress
import struct

from hypothesis import given
from hypothesis import strategies as st

from vnsmail.net import messages
from vnsmail.net.announce import announcement

kinds = st.integers(1, 0x3FFF)
addresses = st.ip_addresses()


@given(st.dictionaries(kinds, st.binary(max_size=40)))
def test_attributes(wanted):
    """Every attribute comes back with its own value, whatever padding it needed."""
    packed = b"".join(messages.attribute(k, v) for k, v in wanted.items())
    found = messages.attributes(memoryview(packed))

    assert wanted == {kind: bytes(value) for kind, value in found.items()}


@given(st.lists(st.tuples(kinds, st.binary(max_size=9))))
def test_nested(wanted):
    """Attributes in an attribute, in their order, equal ones too."""
    packed = messages.nested(5, *(messages.attribute(*each) for each in wanted))
    found = messages.attributes(memoryview(packed))

    assert wanted == [(k, bytes(v)) for k, v in messages.each(found[5])]


@given(st.binary(max_size=200))
def test_rubbish(octets):
    """No octets make the parser loop or fail."""
    view = memoryview(octets)
    for value in messages.attributes(view).values():
        messages.text_in({1: value}, 1)
    list(messages.each(view))
    list(messages.hops_in(view))


@given(addresses, st.integers(1, 2**31 - 1), st.integers(0, 254))
def test_address(own, index, scope):
    """An address message says the same when it is read."""
    length = own.max_prefixlen
    body = messages.address(own, length, index, scope=scope)
    found = messages.address_facts(memoryview(body))

    assert (length, scope, index) == found[:3]
    assert own == messages.address_in(found[3][messages.FAR])


@given(addresses, st.integers(0, 2**32 - 1))
def test_route(router, table):
    """A default route: a table of more than eight bits is kept whole."""
    body = messages.route(
        messages.family(router), messages.gateway(router), table=table
    )
    family, length, found, kind, facts = messages.route_facts(memoryview(body))

    assert (messages.family(router), 0, messages.UNICAST) == (family, length, kind)
    assert (table or messages.MAIN_TABLE) == found
    assert router == messages.address_in(facts[5])


def test_header():
    """The length counts the header; the socket gives the number."""
    packed = messages.message(messages.NEW_LINK, 0, b"12345678")

    assert (24, 16, 1, 0, 0) == struct.unpack_from("=IHHII", packed)


HARDWARE = bytes.fromhex("020000000001")


def test_announcement_ipv4():
    """A gratuitous ARP request: sender and target are the address (RFC 5227)."""
    frame = announcement(ipaddress.ip_address("10.77.0.11"), HARDWARE)

    assert "ffffffffffff0200000000010806" == frame[:14].hex()
    assert ("00010800060400010200000000010a4d000b0000000000000a4d000b") == frame[
        14:
    ].hex()


@given(st.ip_addresses(v=6), st.binary(min_size=6, max_size=6))
def test_announcement_ipv6(address, hardware):
    """An unsolicited advertisement that overrides, with a right checksum."""
    frame = announcement(address, hardware)
    header, said = frame[14:54], frame[54:]

    assert "333300000001" == frame[:6].hex()
    assert (32, 58, 255) == struct.unpack("!HBB", header[4:8])
    assert address.packed == header[8:24] == said[8:24]
    assert (136, 0) == (said[0], said[1])
    assert "20000000" == said[4:8].hex()
    assert b"\x02\x01" + hardware == said[24:]
    pseudo = header[8:40] + struct.pack("!II", len(said), 58)
    total = sum(struct.unpack(f"!{(len(pseudo) + len(said)) // 2}H", pseudo + said))
    assert 0 == (total % 0xFFFF)
