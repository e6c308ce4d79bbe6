"""The filter that the kernel runs on each packet: TCP from or to SMTP ports. Pure.

A program of classic BPF (linux/filter.h): it reads the frame, and its result is how
many octets of it to keep.

Rules of this file: what cannot be decided without following a chain of headers (IPv6
extension headers, fragments, VLAN tags still in the frame) is kept rather than missed;
the reader of the capture looks again.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple

KEEP_ALL = 0x40000
"""Octets of a packet that are kept: 256 KiB, libpcap's limit, is all of any."""

MAX_PORTS = 32

# Operation codes: load a half-word or an octet, at a place or at X plus a place; load
# X with an IPv4 header's length; jump if A equals, or has a bit in common; return.
LOAD_HALF, LOAD_BYTE, LOAD_HALF_X = 0x28, 0x30, 0x48
LOAD_HEADER_LENGTH = 0xB1
JUMP_EQUAL, JUMP_ANY_BIT = 0x15, 0x45
RETURN = 0x06

_ETHERTYPE, _FRAME = 12, 14
_IPV4, _IPV6 = 0x0800, 0x86DD
_VLAN_TAGS = (0x8100, 0x88A8)
_TCP = 6
# Headers behind which TCP may stand (RFC 8200 section 4.1, RFC 6275, 7401, 5533).
_EXTENSIONS = (0, 43, 44, 51, 60, 135, 139, 140)


class Instruction(NamedTuple):
    """One instruction; jumps count the instructions that are skipped."""

    code: int
    if_true: int
    if_false: int
    value: int

    def packed(self) -> bytes:
        """Return it as the kernel takes it (struct sock_filter)."""
        return struct.pack("HBBI", *self)


NOTHING = (Instruction(RETURN, 0, 0, 0),)
"""Keeps no packet."""


class _Program:
    """Instructions with jumps to labels, resolved at the end."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, str, str, int]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        self._labels[name] = len(self._lines)

    def do(self, code: int, value: int) -> None:
        self._lines.append((code, "", "", value))

    def jump(self, code: int, value: int, if_true: str, if_false: str = "") -> None:
        """Jump to a label; without one, go on."""
        self._lines.append((code, if_true, if_false, value))

    def resolved(self) -> tuple[Instruction, ...]:
        def distance(at: int, label: str) -> int:
            return self._labels[label] - at - 1 if label else 0

        return tuple(
            Instruction(code, distance(at, true), distance(at, false), value)
            for at, (code, true, false, value) in enumerate(self._lines)
        )


def smtp_filter(ports: Sequence[int]) -> tuple[Instruction, ...]:
    """Return the program that keeps TCP from or to these ports in Ethernet frames.

    Args:
        ports: at least one, MAX_PORTS at most: a jump reaches 255 instructions.
    """
    if not 1 <= len(ports) <= MAX_PORTS:
        message = f"1 to {MAX_PORTS} ports fit, not {len(ports)}"
        raise ValueError(message)
    program = _Program()
    program.do(LOAD_HALF, _ETHERTYPE)
    program.jump(JUMP_EQUAL, _IPV4, "ipv4")
    program.jump(JUMP_EQUAL, _IPV6, "ipv6")
    for tag in _VLAN_TAGS:
        program.jump(JUMP_EQUAL, tag, "keep")
    program.do(RETURN, 0)

    program.label("ipv4")
    program.do(LOAD_BYTE, _FRAME + 9)
    program.jump(JUMP_EQUAL, _TCP, "", "drop")
    program.do(LOAD_HALF, _FRAME + 6)
    program.jump(JUMP_ANY_BIT, 0x3FFF, "keep")  # More fragments, or not the first.
    program.do(LOAD_HEADER_LENGTH, _FRAME)
    for place in (_FRAME, _FRAME + 2):
        program.do(LOAD_HALF_X, place)
        for port in ports:
            program.jump(JUMP_EQUAL, port, "keep")
    program.do(RETURN, 0)

    program.label("ipv6")
    program.do(LOAD_BYTE, _FRAME + 6)
    program.jump(JUMP_EQUAL, _TCP, "ipv6 tcp")
    for extension in _EXTENSIONS:
        program.jump(JUMP_EQUAL, extension, "keep")
    program.do(RETURN, 0)
    program.label("ipv6 tcp")
    for place in (_FRAME + 40, _FRAME + 42):
        program.do(LOAD_HALF, place)
        for port in ports:
            program.jump(JUMP_EQUAL, port, "keep")
    program.label("drop")
    program.do(RETURN, 0)
    program.label("keep")
    program.do(RETURN, KEEP_ALL)
    return program.resolved()


SMALL = 512
"""Octets of a segment in which commands are; one with more is part of a body."""

_AND, _SHIFT_RIGHT, _SUBTRACT_X, _TO_X = 0x54, 0x74, 0x1C, 0x07
_STORE, _LOAD_STORED, _LOAD_BYTE_X, _JUMP_GREATER = 0x02, 0x60, 0x50, 0x25


def audit_filter(ports: Sequence[int]) -> tuple[Instruction, ...]:
    """Return the program that keeps what shows how connections to these ports begin.

    Of TCP to the ports: SYN, FIN and RST, and segments of 1 to SMALL octets. What the
    servers answer, acknowledgements without data and message bodies are left out, which
    is nearly all. What cannot be decided is kept, as by ``smtp_filter``.

    Args:
        ports: at least one, MAX_PORTS at most.
    """
    if not 1 <= len(ports) <= MAX_PORTS:
        message = f"1 to {MAX_PORTS} ports fit, not {len(ports)}"
        raise ValueError(message)
    program = _Program()
    program.do(LOAD_HALF, _ETHERTYPE)
    program.jump(JUMP_EQUAL, _IPV4, "ipv4")
    program.jump(JUMP_EQUAL, _IPV6, "ipv6")
    for tag in _VLAN_TAGS:
        program.jump(JUMP_EQUAL, tag, "keep")
    program.do(RETURN, 0)
    _begins_ipv4(program, ports)
    _begins_ipv6(program, ports)
    program.label("drop")
    program.do(RETURN, 0)
    program.label("keep")
    program.do(RETURN, KEEP_ALL)
    return program.resolved()


def _begins_ipv4(program: _Program, ports: Sequence[int]) -> None:
    program.label("ipv4")
    program.do(LOAD_BYTE, _FRAME + 9)
    program.jump(JUMP_EQUAL, _TCP, "", "drop")
    program.do(LOAD_HALF, _FRAME + 6)
    program.jump(JUMP_ANY_BIT, 0x3FFF, "keep")
    program.do(LOAD_HEADER_LENGTH, _FRAME)
    program.do(LOAD_HALF_X, _FRAME + 2)
    for port in ports:
        program.jump(JUMP_EQUAL, port, "ipv4 port")
    program.do(RETURN, 0)
    program.label("ipv4 port")
    program.do(_LOAD_BYTE_X, _FRAME + 13)
    program.jump(JUMP_ANY_BIT, _BEGIN_OR_END, "keep")
    program.do(LOAD_HALF, _FRAME + 2)
    program.do(_SUBTRACT_X, 0)
    program.do(_STORE, 0)
    program.do(_LOAD_BYTE_X, _FRAME + 12)
    _payload(program)


def _begins_ipv6(program: _Program, ports: Sequence[int]) -> None:
    program.label("ipv6")
    program.do(LOAD_BYTE, _FRAME + 6)
    program.jump(JUMP_EQUAL, _TCP, "ipv6 tcp")
    for extension in _EXTENSIONS:
        program.jump(JUMP_EQUAL, extension, "keep")
    program.do(RETURN, 0)
    program.label("ipv6 tcp")
    program.do(LOAD_HALF, _FRAME + 42)
    for port in ports:
        program.jump(JUMP_EQUAL, port, "ipv6 port")
    program.do(RETURN, 0)
    program.label("ipv6 port")
    program.do(LOAD_BYTE, _FRAME + 40 + 13)
    program.jump(JUMP_ANY_BIT, _BEGIN_OR_END, "keep")
    program.do(LOAD_HALF, _FRAME + 4)
    program.do(_STORE, 0)
    program.do(LOAD_BYTE, _FRAME + 40 + 12)
    _payload(program)


_BEGIN_OR_END = 0x07  # FIN, SYN, RST


def _payload(program: _Program) -> None:
    """Go on with how many octets follow TCP's header, whose length A has; M[0] the rest."""
    program.do(_AND, 0xF0)
    program.do(_SHIFT_RIGHT, 2)
    program.do(_TO_X, 0)
    program.do(_LOAD_STORED, 0)
    program.do(_SUBTRACT_X, 0)
    program.jump(JUMP_EQUAL, 0, "drop")
    program.jump(_JUMP_GREATER, SMALL, "drop", "keep")
