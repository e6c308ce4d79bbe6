import contextlib
import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.capture.packets import ETHERNET
from vnsmail.capture.pcap import MAGICS, PcapReader
from vnsmail.capture.pcapng import MAX_BLOCK, BrokenCapture, CapturedPacket


def header(order="<", magic=0xA1B2C3D4, link_type=ETHERNET):
    return struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link_type)


def packet(data=b"abc", order="<", seconds=7, part=5, length=3):
    return struct.pack(order + "IIII", seconds, part, len(data), length) + data


def read(data):
    reader = PcapReader(io.BytesIO(data))
    return list(reader), reader


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "scale"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_the_four_kinds(order, magic, scale):
    """Both byte orders, with microseconds or nanoseconds."""
    data = header(order, magic) + packet(order=order)
    found, reader = read(data)

    assert data[:4] in MAGICS
    assert [CapturedPacket(b"abc", 3, 7_000_000_000 + 5 * scale, ETHERNET)] == found
    assert reader.drops is None
    assert not reader.cut_off


def test_link_type_without_the_checksum_bits():
    """The upper half of its word is about something else."""
    (found,) = read(header(link_type=0x14000001) + packet())[0]

    assert ETHERNET == found.link_type


@given(st.integers(24, 24 + 19 * 3))
def test_a_file_that_is_being_written(end):
    found, reader = read((header() + packet() * 3)[:end])

    assert (end - 24) // 19 == len(found)
    assert bool((end - 24) % 19) == reader.cut_off


@given(st.binary(max_size=100), st.sampled_from(sorted(MAGICS)))
def test_random_bytes(data, magic):
    """Whatever the bytes, it is read or refused."""
    for each in (data, magic + data):
        with contextlib.suppress(BrokenCapture):
            read(each)


def test_impossible_size():
    data = header() + struct.pack("<IIII", 0, 0, MAX_BLOCK + 1, 0)
    with pytest.raises(BrokenCapture, match="impossible size"):
        read(data)
