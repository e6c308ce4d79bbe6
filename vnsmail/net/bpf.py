"""Puts eBPF programs together, instruction by instruction. Pure.

    asm = Assembler()
    asm.load(Register.R1, Register.R6, 4, Size.WORD)    # r1 = *(u32 *)(r6 + 4)
    asm.jump_if_equal(Register.R1, 0, "refuse")
    ...
    asm.label("refuse")
    asm.set(Register.R0, 0)
    asm.end()
    code = packed(asm.assembled())

Rules of this file: it knows instructions (RFC 9669) and nothing of what they are for;
only those are here that net/hook_programs.py uses; jumps go forward, to labels, so that
every program ends. Comparisons look at 32 bits: one of 64 would take the constant with
its sign, and no address from 128.0.0.0 on would ever be equal.
"""

import struct
import sys
from collections.abc import Iterable
from enum import IntEnum
from typing import Literal, NamedTuple

ByteOrder = Literal["little", "big"]


class Register(IntEnum):
    """Where a program keeps values.

    R0 is what a program or a helper returns. R1 to R5 are given to a helper, and lost;
    R6 to R9 stay. R10 is the end of the stack, and read-only.
    """

    R0 = 0
    R1 = 1
    R2 = 2
    R3 = 3
    R4 = 4
    R5 = 5
    R6 = 6
    R7 = 7
    R8 = 8
    R9 = 9
    R10 = 10


class Size(IntEnum):
    """How much is loaded or stored; the value is that of an instruction's size bits."""

    WORD = 0x00
    HALF = 0x08
    BYTE = 0x10
    DOUBLE = 0x18


# Operation codes: class, source and operation in one octet (RFC 9669 section 3.1).
LOAD, STORE_VALUE, STORE = 0x61, 0x62, 0x63
SET, COPY, ADD = 0xB4, 0xBF, 0x07
JUMP, JUMP_IF_EQUAL, JUMP_UNLESS_EQUAL = 0x05, 0x16, 0x56
CALL, END = 0x85, 0x95

STACK = 512
"""Octets below R10 that a program may use."""

_MAX_JUMP = 0x7FFF


class Instruction(NamedTuple):
    """One instruction; ``offset`` is of a place in memory, or of a jump."""

    code: int
    to: int
    source: int
    offset: int
    value: int

    def packed(self, order: ByteOrder) -> bytes:
        """Return it as the kernel takes it (struct bpf_insn)."""
        low, high = self.to, self.source
        if order == "big":
            low, high = high, low
        mark = "<" if order == "little" else ">"
        registers = low | high << 4
        return struct.pack(
            f"{mark}BBhI", self.code, registers, self.offset, self.value & 0xFFFFFFFF
        )


def packed(program: Iterable[Instruction], order: ByteOrder = sys.byteorder) -> bytes:
    """Return a program as the kernel takes it."""
    return b"".join(each.packed(order) for each in program)


def words(octets: bytes, order: ByteOrder = sys.byteorder) -> tuple[int, ...]:
    """Return what a program finds where these octets are, loaded word by word."""
    return tuple(
        int.from_bytes(octets[at : at + 4], order) for at in range(0, len(octets), 4)
    )


class Assembler:
    """Instructions with jumps to labels that come later."""

    def __init__(self) -> None:
        self._lines: list[tuple[Instruction, str]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        """Name the place of the next instruction.

        Raises:
            ValueError: another place has the name.
        """
        if name in self._labels:
            message = f"label {name!r} stands twice"
            raise ValueError(message)
        self._labels[name] = len(self._lines)

    def label_if_reached(self, name: str) -> bool:
        """Name the place of the next instruction, unless nothing can get here.

        The kernel takes no program with instructions that nothing leads to.
        """
        goes_on = not self._lines or self._lines[-1][0].code not in {JUMP, END}
        here = {label for label, at in self._labels.items() if at == len(self._lines)}
        if goes_on or any(label in {name, *here} for _, label in self._lines):
            self.label(name)
            return True
        return False

    def load(self, to: Register, base: Register, offset: int, size: Size) -> None:
        """Load a register from memory; what is above the size becomes zero."""
        self._add(LOAD | size, to, base, offset)

    def store(self, base: Register, offset: int, source: Register, size: Size) -> None:
        """Store a register in memory."""
        self._add(STORE | size, base, source, offset)

    def store_value(self, base: Register, offset: int, value: int, size: Size) -> None:
        """Store a constant in memory."""
        self._add(STORE_VALUE | size, base, 0, offset, value)

    def set(self, to: Register, value: int) -> None:
        """Set a register to a constant of 32 bits; the upper half becomes zero."""
        self._add(SET, to, value=value)

    def copy(self, to: Register, source: Register) -> None:
        """Copy a register, pointers too."""
        self._add(COPY, to, source)

    def add(self, to: Register, value: int) -> None:
        """Add a signed constant to a register, pointers too."""
        self._add(ADD, to, value=value)

    def jump(self, label: str) -> None:
        """Go on at a label."""
        self._add(JUMP, label=label)

    def jump_if_equal(self, left: Register, value: int, label: str) -> None:
        """Go on at a label if a register's lower half is this constant."""
        self._add(JUMP_IF_EQUAL, left, value=value, label=label)

    def jump_unless_equal(self, left: Register, value: int, label: str) -> None:
        """Go on at a label if a register's lower half is not this constant."""
        self._add(JUMP_UNLESS_EQUAL, left, value=value, label=label)

    def call(self, helper: int) -> None:
        """Call a helper of the kernel by its number (bpf-helpers(7))."""
        self._add(CALL, value=helper)

    def end(self) -> None:
        """Return R0."""
        self._add(END)

    def _add(
        self,
        code: int,
        to: int = 0,
        source: int = 0,
        offset: int = 0,
        value: int = 0,
        label: str = "",
    ) -> None:
        self._lines.append((Instruction(code, to, source, offset, value), label))

    def assembled(self) -> tuple[Instruction, ...]:
        """Return the program.

        Raises:
            ValueError: a jump has no label, goes back, or goes too far.
        """
        return tuple(
            line._replace(offset=self._distance(at, label)) if label else line
            for at, (line, label) in enumerate(self._lines)
        )

    def _distance(self, at: int, label: str) -> int:
        try:
            distance = self._labels[label] - at - 1
        except KeyError:
            message = f"there is no label {label!r}"
            raise ValueError(message) from None
        if not 0 <= distance <= _MAX_JUMP:
            message = f"label {label!r} is {distance} instructions away"
            raise ValueError(message)
        return distance
