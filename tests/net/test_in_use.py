"""Frames that ask for an address, and what answers say. Who is asked: integration."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.net.networks import ip
from vnsmail.net.announce import announcement, checksum
from vnsmail.net.in_use import claim_in_arp, claim_in_ipv6, question

ME, OTHER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
FOUR, SIX = ip("10.77.0.11"), ip("fd77::1:2203:4405")


def test_arp_probe():
    """RFC 5227 section 2.1.1: to all, from nobody, about the address."""
    frame = question(FOUR, ME)

    assert "ffffffffffff0200000000010806" == frame[:14].hex()
    assert (1, 0x0800, 6, 4, 1) == struct.unpack_from("!HHBBH", frame, 14)
    assert (ME, bytes(4), bytes(6), FOUR.packed) == (
        frame[22:28],
        frame[28:32],
        frame[32:38],
        frame[38:42],
    )


def test_neighbour_solicitation():
    """RFC 4862 section 5.4.2: from nobody, to the group of the last three octets."""
    frame = question(SIX, ME)

    assert "3333ff034405" == frame[:6].hex()
    assert (bytes(16), "ff0200000000000000000001ff034405") == (
        frame[22:38],
        frame[38:54].hex(),
    )
    assert (135, 255, SIX.packed) == (frame[54], frame[21], frame[62:78])
    pseudo = frame[22:54] + struct.pack("!II", 24, 58)
    assert 0 == checksum(pseudo + frame[54:])


@pytest.mark.parametrize(
    ("address", "claim"), [(FOUR, claim_in_arp), (SIX, claim_in_ipv6)]
)
def test_who_has_it_says_so(address, claim):
    assert (address.packed, OTHER) == claim(announcement(address, OTHER))


def test_somebody_else_is_about_to_take_it():
    """RFC 5227 section 2.1.1: a probe of another for the same address counts."""
    assert (FOUR.packed, OTHER) == claim_in_arp(question(FOUR, OTHER))


@pytest.mark.parametrize(
    ("address", "claim", "place"),
    [(FOUR, claim_in_arp, 12), (FOUR, claim_in_arp, 15), (FOUR, claim_in_arp, 18)]
    + [(SIX, claim_in_ipv6, n) for n in (12, 20, 21, 54)],
)
def test_what_is_no_answer(address, claim, place):
    """Another kind of frame, or one that did not come from a neighbour."""
    frame = bytearray(announcement(address, OTHER))
    frame[place] ^= 1

    assert claim(bytes(frame)) is None


@given(st.binary(max_size=90), st.sampled_from([b"\x08\x06", b"\x86\xdd"]))
def test_anything_may_come(octets, kind):
    frame = octets[:12] + kind + octets[12:]
    for claim in (claim_in_arp, claim_in_ipv6):
        found = claim(frame)
        assert found is None or len(found[0]) in {4, 16}
