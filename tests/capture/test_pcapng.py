import contextlib
import io
import ipaddress
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vnsmail.capture.packets import ETHERNET
from vnsmail.capture.pcapng import (
    MAX_BLOCK,
    BrokenCapture,
    CapturedPacket,
    Direction,
    PcapngReader,
    decryption_secrets,
    enhanced_packet,
    interface_description,
    interface_statistics,
    name_resolution,
    section_header,
    whole_blocks,
)

START = section_header("tests") + interface_description("lan0", ETHERNET)

PACKETS = st.builds(
    lambda data, more, **facts: CapturedPacket(
        data, len(data) + more, link_type=ETHERNET, **facts
    ),
    data=st.binary(max_size=80),
    more=st.integers(0, 10),
    time=st.integers(0, 2**63 - 1),
    direction=st.sampled_from(Direction),
    comment=st.text(st.characters(categories=["L", "N"]), max_size=9),
)


def read(data):
    reader = PcapngReader(io.BytesIO(data))
    return list(reader), reader


def block(kind, body, order="<", size=None):
    size = struct.pack(order + "I", len(body) + 12 if size is None else size)
    return struct.pack(order + "I", kind) + size + body + size


def option(code, value, order="<"):
    padding = b"\0" * (-len(value) % 4)
    return struct.pack(order + "HH", code, len(value)) + value + padding


@given(st.lists(PACKETS, max_size=5))
def test_what_is_written_is_read(packets):
    """Data, times to the nanosecond, direction and comment come back."""
    found, reader = read(START + b"".join(map(enhanced_packet, packets)))

    assert packets == found
    assert ["lan0"] == reader.interfaces
    assert not reader.cut_off


@given(st.lists(PACKETS, max_size=3), st.data())
def test_a_file_that_is_being_written(packets, source):
    """Cut off anywhere behind its start, it gives the packets that are whole."""
    blocks = [enhanced_packet(packet) for packet in packets]
    data = START + b"".join(blocks)
    end = source.draw(st.integers(len(START), len(data)))
    found, reader = read(data[:end])
    ends = [len(START) + len(b"".join(blocks[:n])) for n in range(len(blocks) + 1)]

    assert packets[: len(found)] == found
    assert sum(each <= end for each in ends) == len(found) + 1
    assert (end not in ends) == reader.cut_off


@given(st.binary(max_size=200))
@example(b"")
@example(START[:8])
def test_random_bytes(data):
    """Whatever the bytes, it ends, and says so if they are no capture."""
    with pytest.raises(BrokenCapture):
        read(data)


WHOLE = (
    START
    + enhanced_packet(CapturedPacket(b"abcde", 9, 5, ETHERNET, comment="note"))
    + name_resolution({ipaddress.ip_address("10.77.0.11"): "alpha.example"})
    + interface_statistics(7, 10, 3)
)


@given(
    st.lists(
        st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=4
    ),
    st.integers(0, len(WHOLE)),
)
def test_damaged_files(changes, end):
    """A good file with octets changed is read or refused, and nothing else."""
    data = bytearray(WHOLE)
    for at, value in changes:
        data[at] = value
    with contextlib.suppress(BrokenCapture):
        assert len(read(bytes(data[:end]))[0]) <= 1


def test_drops():
    """The last count is the one that holds; without any, nobody knows."""
    earlier = interface_statistics(5, 4, 1)

    assert read(START)[1].drops is None
    assert 3 == read(START + earlier + interface_statistics(7, 10, 3))[1].drops
    assert 0 == read(START + interface_statistics(7, 10, 0))[1].drops


def test_drops_of_two_interfaces():
    """They add up, and the silence of one is not zero."""
    both = START + interface_description("lan1", ETHERNET)
    one = interface_statistics(5, 4, 1)

    assert read(both + one)[1].drops is None
    assert 3 == read(both + one + interface_statistics(5, 4, 2, interface=1))[1].drops


def test_drops_of_the_system():
    """What the interface and the system dropped is all missing."""
    options = option(5, struct.pack("<Q", 2)) + option(7, struct.pack("<Q", 3))

    assert 5 == read(START + block(5, struct.pack("<III", 0, 0, 0) + options))[1].drops


def test_statistics_without_drops():
    assert read(START + block(5, struct.pack("<III", 0, 0, 0)))[1].drops is None


def test_names():
    _, reader = read(
        START
        + name_resolution(
            {
                ipaddress.ip_address("10.77.0.11"): "alpha.example",
                ipaddress.ip_address("fd77::11"): "alpha.example",
            }
        )
    )

    assert {
        ipaddress.ip_address("10.77.0.11"): "alpha.example",
        ipaddress.ip_address("fd77::11"): "alpha.example",
    } == reader.names


def test_the_other_byte_order():
    """A file of a big-endian machine, with microseconds and an offset, is read."""
    data = block(0x0A0D0D0A, struct.pack(">IHHq", 0x1A2B3C4D, 1, 0, -1), ">")
    data += block(
        1,
        struct.pack(">HHI", 1, 0, 0)
        + option(2, b"eth0", ">")
        + option(14, struct.pack(">q", 100), ">"),
        ">",
    )
    data += block(6, struct.pack(">IIIII", 0, 0, 1_500_000, 4, 4) + b"abcd", ">")
    found, reader = read(data)

    assert [CapturedPacket(b"abcd", 4, 101_500_000_000, 1)] == found
    assert ["eth0"] == reader.interfaces


def test_resolution_in_powers_of_two():
    data = section_header("tests")
    data += block(1, struct.pack("<HHI", 1, 0, 0) + option(9, b"\x81"))
    data += block(6, struct.pack("<IIIII", 0, 0, 3, 0, 0))

    assert [1_500_000_000] == [packet.time for packet in read(data)[0]]


def test_simple_packets():
    """They have no time, and are cut at the interface's snap length."""
    data = section_header("tests") + interface_description("a", ETHERNET, 3)
    data += block(3, struct.pack("<I", 5) + b"abc\0")

    assert [CapturedPacket(b"abc", 5, 0, ETHERNET)] == read(data)[0]


def test_sections_have_interfaces_of_their_own():
    packet = CapturedPacket(b"a", 1, 1, ETHERNET)
    data = START + enhanced_packet(packet)
    found, reader = read(data + data)

    assert [0, 1] == [each.interface for each in found]
    assert ["lan0", "lan0"] == reader.interfaces


def test_unknown_blocks_are_stepped_over():
    assert ([], False) == (read(START + block(0xBAD, b"abcd"))[0], False)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "no section header"),
        (b"GIF89a and so on", "no section header"),
        (block(0x0A0D0D0A, b"\0" * 16), "no byte order"),
        (
            block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 2, 0, -1)),
            "version 2, not 1",
        ),
        (block(0x0A0D0D0A, struct.pack("<I", 0x1A2B3C4D)), "too short"),
        (START + block(6, b"\0" * 8), "too short"),
        (START + block(6, struct.pack("<IIIII", 1, 0, 0, 0, 0)), "interface 1"),
        (START + block(6, struct.pack("<IIIII", 0, 0, 0, 9, 9) + b"a" * 8), "longer"),
        (START + block(3, struct.pack("<I", 9) + b"a" * 8), "longer"),
        (START + block(2, b"\0" * 20), "obsolete"),
        (START + block(5, struct.pack("<III", 4, 0, 0)), "interface 4"),
        (
            START + block(5, struct.pack("<III", 0, 0, 0) + option(5, b"abcd")),
            "too short",
        ),
        (START + block(1, b"\0" * 8 + b"\2\0\x09\0abcd"), "option is longer"),
        (START + block(1, b"\0" * 8 + option(9, b"")), "too short"),
        (START + block(9, b"", size=13), "impossible size 13"),
        (START + block(9, b"", size=8), "impossible size 8"),
        (START + block(9, b"", size=MAX_BLOCK + 4), "impossible size"),
        (START + struct.pack("<IIII", 9, 16, 0, 12), "two different sizes"),
    ],
)
def test_files_that_contradict_themselves(data, problem):
    """Each is refused, with what is wrong and where."""
    with pytest.raises(BrokenCapture, match=problem):
        read(data)


TEXTS = st.text(st.characters(categories=["L", "N"]), max_size=20)
ADDRESSES = st.ip_addresses()


@given(
    st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4),
    st.dictionaries(ADDRESSES, TEXTS.filter(bool), max_size=4),
    st.binary(max_size=99),
    st.lists(st.integers(0, 2**40), max_size=4),
)
def test_places_names_keys_and_losses_come_back(places, names, keys, drops):
    """Whatever they are called, and however many there are."""
    drops = drops[: len(places)]
    data = section_header("tests")
    for name, description in places:
        data += interface_description(name, ETHERNET, 0, description)
    data += decryption_secrets(keys) + name_resolution(names)
    for number, lost in enumerate(drops):
        data += interface_statistics(5, lost + 1, lost, number)
    found, reader = read(data)

    assert [] == found
    assert places == list(zip(reader.interfaces, reader.descriptions, strict=True))
    assert (names, keys) == (reader.names, reader.key_log)
    told_of_all = len(drops) == len(places)
    assert reader.drops == (sum(drops) if told_of_all else None)


@given(st.lists(PACKETS, max_size=4), st.data())
def test_a_file_that_grows_is_read_on(packets, data):
    """Cut anywhere: what is whole comes first, the rest when it is there."""
    whole = START + b"".join(map(enhanced_packet, packets))
    cut = data.draw(st.integers(len(START), len(whole)))
    file = io.BytesIO()
    file.write(whole[:cut])
    file.seek(0)
    reader = PcapngReader(file)
    first = list(reader)
    file.seek(0, io.SEEK_END)
    file.write(whole[cut:])

    assert packets == first + list(reader)
    assert not reader.cut_off
    assert whole_blocks(whole[:cut]) <= cut
    assert whole_blocks(whole) == len(whole)
