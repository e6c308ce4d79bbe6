"""Runs eBPF programs as RFC 9669 says, from the octets that the kernel is given.

It knows only what the programs of vnsmail.net.hook_programs use, and refuses the rest:
memory that was not written, places that no hook may see, helpers that nobody offered.
"""

import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

SIZES = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}
WORD = 0xFFFFFFFF


@dataclass
class Region:
    """Memory; ``written`` are the places that can be read."""

    data: bytearray
    written: set[int]
    pointers: dict[int, "Pointer"] = field(default_factory=dict)

    @classmethod
    def of(cls, data: bytes) -> "Region":
        return cls(bytearray(data), set(range(len(data))))

    @classmethod
    def empty(cls, size: int) -> "Region":
        return cls(bytearray(size), set())


@dataclass(frozen=True)
class Pointer:
    region: Region
    offset: int

    def read(self, size: int) -> bytes:
        places = range(self.offset, self.offset + size)
        assert set(places) <= self.region.written, f"{self.offset} was not written"
        return bytes(self.region.data[self.offset : self.offset + size])

    def write(self, value: bytes) -> None:
        end = self.offset + len(value)
        assert 0 <= self.offset, "below the stack"
        assert end <= len(self.region.data), "beyond the end"
        self.region.data[self.offset : end] = value
        self.region.written |= set(range(self.offset, end))


Value = int | Pointer
Helper = Callable[..., int]


def run(code: bytes, context: Region, helpers: dict[int, Helper]) -> int:
    """Return what a program returns."""
    stack = Region.empty(512)
    registers: dict[int, Value] = {1: Pointer(context, 0), 10: Pointer(stack, 512)}
    lines = [code[at : at + 8] for at in range(0, len(code), 8)]
    at = 0
    while True:
        operation, both, offset, value = struct.unpack("<BBhi", lines[at])
        to, source = both & 15, both >> 4
        at += 1
        match operation:
            case 0x95:
                found = registers[0]
                assert isinstance(found, int)
                return found
            case 0x85:
                given = [registers.get(number) for number in range(1, 6)]
                for number in range(1, 6):
                    registers.pop(number, None)
                registers[0] = helpers[value](*given) & (2**64 - 1)
            case 0x05:
                at += offset
            case 0x16 | 0x56:
                left = registers[to]
                assert isinstance(left, int)
                same = left & WORD == value & WORD
                at += offset if same == (operation == 0x16) else 0
            case 0xB4:
                registers[to] = value & WORD
            case 0xBF:
                registers[to] = registers[source]
            case 0x07:
                left = registers[to]
                assert isinstance(left, Pointer)
                registers[to] = Pointer(left.region, left.offset + value)
            case _:
                _memory(operation, registers, to, source, offset, value)


def _memory(
    operation: int,
    registers: dict[int, Value],
    to: int,
    source: int,
    offset: int,
    value: int,
) -> None:
    size = SIZES[operation & 0x18]
    base = registers[source if operation & 7 == 1 else to]
    assert isinstance(base, Pointer)
    place = Pointer(base.region, base.offset + offset)
    match operation & 0xE7:
        case 0x61:
            pointer = base.region.pointers.get(place.offset) if size == 8 else None
            loaded = int.from_bytes(place.read(size), sys.byteorder)
            registers[to] = loaded if pointer is None else pointer
        case 0x62:
            wide = value & (2 ** (8 * size) - 1)
            place.write(wide.to_bytes(size, sys.byteorder))
        case 0x63:
            stored = registers[source]
            assert isinstance(stored, int)
            place.write((stored & (2 ** (8 * size) - 1)).to_bytes(size, sys.byteorder))
        case _:
            message = f"operation {operation:#x}"
            raise AssertionError(message)
