"""The kernel's filter, run by a small machine of our own."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.capture.build import ethernet, ipv4, ipv6, mail, parsed, tcp
from tests.capture.test_packets import FRAMES
from vnsmail.capture.bpf import (
    JUMP_ANY_BIT,
    JUMP_EQUAL,
    KEEP_ALL,
    LOAD_BYTE,
    LOAD_HALF,
    LOAD_HALF_X,
    LOAD_HEADER_LENGTH,
    MAX_PORTS,
    NOTHING,
    RETURN,
    SMALL,
    audit_filter,
    smtp_filter,
)
from vnsmail.capture.packets import parse


def run(program, frame):  # noqa: C901, PLR0912  a machine, instruction by instruction
    """Return what the program returns for a frame; 0 if it reads beyond the end."""
    a = x = at = 0
    stored = {}
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        place = value + (x if code in {LOAD_HALF_X, LOAD_BYTE_X} else 0)
        size = 2 if code in {LOAD_HALF, LOAD_HALF_X} else 1
        loads = {LOAD_HALF, LOAD_HALF_X, LOAD_BYTE, LOAD_BYTE_X, LOAD_HEADER_LENGTH}
        if code in loads and place + size > len(frame):
            return 0
        match code:
            case _ if code in {LOAD_HALF, LOAD_HALF_X}:
                (a,) = struct.unpack_from("!H", frame, place)
            case 0x54:
                a &= value
            case 0x74:
                a >>= value
            case 0x1C:
                a = (a - x) % 2**32
            case 0x07:
                x = a
            case 0x02:
                stored[value] = a
            case 0x60:
                a = stored[value]
            case 0x25:
                at += if_true if a > value else if_false
            case _ if code in {LOAD_BYTE, LOAD_BYTE_X}:
                a = frame[place]
            case _ if code == LOAD_HEADER_LENGTH:
                x = (frame[place] & 15) * 4
            case _ if code == JUMP_EQUAL:
                at += if_true if a == value else if_false
            case _ if code == JUMP_ANY_BIT:
                at += if_true if a & value else if_false
            case _ if code == RETURN:
                return value
            case _:
                raise AssertionError(code)


LOAD_BYTE_X = 0x50
FILTER = smtp_filter((25, 2525))


@pytest.mark.parametrize("frame", [*FRAMES, *mail().frames])
def test_smtp_is_kept(frame):
    assert KEEP_ALL == run(FILTER, frame)


@pytest.mark.parametrize(
    "frame",
    [
        ethernet(ipv4(tcp(1000, 80))),
        ethernet(ipv6(tcp(1000, 80))),
        ethernet(ipv4(tcp(), protocol=17)),
        ethernet(ipv6(tcp(), kind=17)),
        ethernet(b"\0" * 60, kind=0x0806),
        b"",
    ],
)
def test_the_rest_is_not(frame):
    assert 0 == run(FILTER, frame)


@pytest.mark.parametrize(
    "frame",
    [
        ethernet(ipv4(b"\0" * 30, fragment=7)),
        ethernet(ipv4(tcp(1, 80), fragment=0x2000)),
        ethernet(ipv6(b"\0" * 30, kind=44)),
        ethernet(ipv6(b"\0" * 30, kind=0)),
    ],
)
def test_what_cannot_be_decided_is_kept(frame):
    assert KEEP_ALL == run(FILTER, frame)


FRAME = st.one_of(
    st.sampled_from(FRAMES),
    st.builds(
        lambda v6, source, destination, options: ethernet(
            ipv6(tcp(source, destination))
            if v6
            else ipv4(tcp(source, destination), options=b"\1" * 4 * options)
        ),
        st.booleans(),
        st.sampled_from([24, 25, 2525, 40000]),
        st.sampled_from([24, 25, 2525, 40000]),
        st.integers(0, 10),
    ),
)


@given(
    FRAME,
    st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=3),
    st.integers(0, 200),
)
def test_nothing_is_missed(frame, changes, end):
    """Whatever the reader takes for SMTP, the filter has kept."""
    damaged = bytearray(frame)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    packet = parse(bytes(damaged[:end]))
    smtp = packet is not None and {packet.source_port, packet.destination_port} & {
        25,
        2525,
    }

    if smtp:
        assert KEEP_ALL == run(FILTER, bytes(damaged[:end]))


def test_nothing():
    assert 0 == run(NOTHING, mail().frames[0])


def test_number_of_ports():
    """As many as a jump can step over."""
    ports = tuple(range(1, MAX_PORTS + 1))

    assert KEEP_ALL == run(smtp_filter(ports), ethernet(ipv4(tcp(1000, MAX_PORTS))))
    assert all(max(i.if_true, i.if_false) < 256 for i in smtp_filter(ports))
    for wrong in ((), (*ports, 99)):
        with pytest.raises(ValueError, match="ports"):
            smtp_filter(wrong)


def test_as_the_kernel_takes_it():
    assert struct.pack("HBBI", RETURN, 0, 0, 0) == NOTHING[0].packed()
    assert 8 == len(FILTER[0].packed())


AUDIT = audit_filter((25, 2525))


@pytest.mark.parametrize("client", ["10.77.0.11", "fd77::11"])
def test_of_a_connection_the_audit_gets_what_the_client_commands(client):
    """SYN, EHLO and the like, FIN: not the answers, nor bare acknowledgements."""
    server = "fd77::3" if ":" in client else "10.77.0.3"
    frames = mail(client, server=server).frames
    kept = [parsed(frame) for frame in frames if run(AUDIT, frame)]

    assert ["SYN", "EHLO", "MAIL", "Subj", "QUIT", "FIN"] == [
        packet.payload[:4].decode() or ("SYN" if packet.has(2) else "FIN")
        for packet in kept
    ]


@pytest.mark.parametrize("build", [ipv4, ipv6])
@pytest.mark.parametrize("options", [b"", b"\1" * 12])
def test_the_audit_gets_no_bodies(build, options):
    kept = [
        size
        for size in (0, 1, SMALL, SMALL + 1, 1400)
        if run(AUDIT, ethernet(build(tcp(payload=b"x" * size, options=options))))
    ]

    assert [1, SMALL] == kept


@given(st.binary(max_size=200))
def test_whatever_comes_the_audit_s_filter_ends(frame):
    assert run(AUDIT, frame) in {0, KEEP_ALL}
