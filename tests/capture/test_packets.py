import ipaddress
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.capture.build import (
    ALPHA4,
    ALPHA6,
    NORTH4,
    NORTH6,
    ethernet,
    ipv4,
    ipv6,
    tcp,
)
from vnsmail.capture.packets import (
    ACK,
    ETHERNET,
    LINK_TYPES,
    LINUX_SLL,
    LINUX_SLL2,
    RAW_IP,
    SYN,
    parse,
)

PORT = st.integers(0, 65535)
NUMBER = st.integers(0, 2**32 - 1)
HELLO = b"EHLO alpha.example\r\n"


@given(
    v6=st.booleans(),
    source=PORT,
    destination=PORT,
    sequence=NUMBER,
    acknowledgement=NUMBER,
    flags=st.integers(0, 255),
    payload=st.binary(max_size=100),
    words=st.integers(0, 10),
    padding=st.binary(max_size=20),
)
def test_every_field_is_read(
    v6,
    source,
    destination,
    sequence,
    acknowledgement,
    flags,
    payload,
    words,
    padding,
):
    """What was put into a frame is what comes out; Ethernet's padding does not."""
    segment = tcp(
        source,
        destination,
        sequence=sequence,
        acknowledgement=acknowledgement,
        flags=flags,
        payload=payload,
        options=b"\1" * (4 * words),
    )
    packet = parse(ethernet(ipv6(segment) if v6 else ipv4(segment)) + padding)

    assert packet is not None
    ends = (ALPHA6, NORTH6) if v6 else (ALPHA4, NORTH4)
    assert ends == (str(packet.source), str(packet.destination))
    assert (source, destination) == (packet.source_port, packet.destination_port)
    assert (sequence, acknowledgement) == (packet.sequence, packet.acknowledgement)
    assert (flags, payload) == (packet.flags, packet.payload)
    assert len(payload) == packet.length


FRAMES = [
    ethernet(ipv4(tcp(payload=HELLO))),
    ethernet(ipv6(tcp(payload=HELLO))),
    ethernet(ipv4(tcp(payload=HELLO), options=b"\1" * 8)),
    ethernet(ipv6(b"\x06\0" + b"\0" * 6 + tcp(payload=HELLO), kind=0)),
    ethernet(ipv6(b"\x06\0\0\1" + b"\0" * 4 + tcp(payload=HELLO), kind=44)),
    ethernet(ipv4(tcp(payload=HELLO)), tags=b"\x81\0\0\5"),
]


@given(st.binary(max_size=200), st.sampled_from(sorted(LINK_TYPES)))
@example(b"", ETHERNET)
@example(b"\x45", RAW_IP)
def test_random_bytes_are_no_error(frame, link_type):
    """Whatever was captured, the answer is a packet or None."""
    packet = parse(frame, link_type)

    assert packet is None or len(packet.payload) <= packet.length


@given(
    st.sampled_from(FRAMES),
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=4),
    st.integers(0, 200),
)
def test_damaged_frames_are_no_error(frame, changes, end):
    """Nor is a good frame with octets changed and its end cut off."""
    damaged = bytearray(frame)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    packet = parse(bytes(damaged[:end]))

    assert packet is None or len(packet.payload) <= packet.length


@pytest.mark.parametrize("frame", FRAMES[:3])
def test_short_capture_keeps_the_true_length(frame):
    """A packet recorded in part says how long its payload was."""
    packet = parse(frame[:-5])

    assert packet is not None
    assert HELLO[:-5] == packet.payload
    assert len(HELLO) == packet.length


@pytest.mark.parametrize("extensions", [(0,), (43,), (60,), (0, 60, 43, 60), (51,)])
def test_ipv6_extension_headers(extensions):
    """TCP is found behind them."""
    data, kind = tcp(payload=HELLO), 6
    for extension in reversed(extensions):
        length = b"\2" if extension == 51 else b"\1"
        data, kind = bytes([kind]) + length + b"\0" * 14 + data, extension
    packet = parse(ethernet(ipv6(data, kind=kind)))

    assert packet is not None
    assert HELLO == packet.payload


def test_ipv6_chain_without_end():
    """A chain of empty extension headers ends somewhere."""
    assert parse(ethernet(ipv6(b"\0" * 8000, kind=0))) is None


@pytest.mark.parametrize(
    "tags", [b"\x81\0\0\5", b"\x88\xa8\0\5\x81\0\0\5", b"\x91\0\0\5"]
)
def test_vlan_tags_are_stepped_over(tags):
    assert parse(ethernet(ipv4(tcp()), tags=tags)) is not None


def test_too_many_vlan_tags():
    assert parse(ethernet(ipv4(tcp()), tags=b"\x81\0\0\5" * 5)) is None


@pytest.mark.parametrize("build", [ipv4, ipv6])
def test_packet_that_is_cut_later(build):
    """A length of zero is the kernel's word for one that it will cut up itself."""
    zero = {"total": 0} if build is ipv4 else {"length": 0}
    packet = parse(ethernet(build(tcp(payload=b"x" * 70000), **zero)))

    assert packet is not None
    assert 70000 == packet.length == len(packet.payload)


def test_first_fragment_shows_its_ports_only():
    packets = [
        parse(ethernet(ipv4(tcp(payload=HELLO), fragment=0x2000))),
        parse(ethernet(ipv6(b"\6\0\0\1\0\0\0\7" + tcp(), kind=44))),
    ]

    for packet in packets:
        assert packet is not None
        assert packet.is_fragment
        assert 25 == packet.destination_port
        assert b"" == packet.payload


def test_later_fragments_are_no_packets():
    assert parse(ethernet(ipv4(tcp(), fragment=1))) is None
    assert parse(ethernet(ipv6(b"\6\0\0\x08\0\0\0\7" + tcp(), kind=44))) is None


@pytest.mark.parametrize(
    ("link_type", "header"),
    [
        (RAW_IP, b""),
        (LINUX_SLL, b"\0\4\0\1\0\6" + b"\0" * 8 + b"\x08\0"),
        (LINUX_SLL2, b"\x08\0" + b"\0" * 18),
    ],
)
def test_other_links(link_type, header):
    """What tcpdump writes of all links at once, or of tunnels, is read too."""
    packet = parse(header + ipv4(tcp(payload=HELLO)), link_type)

    assert packet is not None
    assert HELLO == packet.payload


@pytest.mark.parametrize(
    "frame",
    [
        ethernet(ipv4(tcp(), protocol=17)),
        ethernet(ipv6(tcp(), kind=17)),
        ethernet(b"\0" * 60, kind=0x0806),
        ethernet(ipv4(tcp(), total=19)),
        ethernet(b"\x44" + ipv4(tcp())[1:]),
        ethernet(ipv4(tcp()[:12] + b"\x40" + tcp()[13:])),
        ethernet(ipv4(tcp()[:12] + b"\x60" + tcp()[13:])),
        ethernet(ipv4(tcp()), kind=0x86DD)[:40],
    ],
)
def test_what_is_no_tcp_segment(frame):
    assert parse(frame) is None


def test_unknown_link_type():
    assert parse(ethernet(ipv4(tcp())), 999) is None


def test_fingerprint_survives_a_router():
    """Hop limit and checksums change on the way; nothing else does."""
    first = parse(ethernet(ipv4(tcp(payload=HELLO), hops=64, identification=7)))
    routed = bytearray(ipv4(tcp(payload=HELLO), hops=63, identification=7))
    routed[10:12] = routed[36:38] = struct.pack("!H", 12345)
    other = parse(ethernet(ipv4(tcp(payload=HELLO), identification=8)))
    again = parse(ethernet(bytes(routed)))

    assert first is not None
    assert again is not None
    assert other is not None
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint


def test_has():
    packet = parse(ethernet(ipv4(tcp(flags=SYN | ACK))))

    assert packet is not None
    assert packet.has(SYN)
    assert packet.has(SYN | ACK)
    assert not packet.has(SYN | 1)
    assert ipaddress.ip_address(ALPHA4) == packet.source
