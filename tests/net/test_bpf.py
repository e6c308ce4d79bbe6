"""Instructions as RFC 9669 writes them, and labels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.net.bpf_machine import Region, run
from vnsmail.net import bpf
from vnsmail.net.bpf import Assembler, Instruction, Register, Size

R0, R1, R2, R6, R10 = Register.R0, Register.R1, Register.R2, Register.R6, Register.R10


def octets(*lines):
    return bytes.fromhex("".join(lines).replace(" ", ""))


def test_octets():
    """Each instruction as the kernel's own disassembler reads it, on x86."""
    asm = Assembler()
    asm.copy(R6, R1)  # r6 = r1
    asm.load(R1, R6, 4, Size.BYTE)  # r1 = *(u8 *)(r6 + 4)
    asm.load(R2, R6, 64, Size.DOUBLE)  # r2 = *(u64 *)(r6 + 64)
    asm.jump_if_equal(R1, 127, "out")  # if w1 == 0x7f goto +8
    asm.jump_unless_equal(R1, 0xFFFFFFFE, "out")  # if w1 != 0xfffffffe goto +7
    asm.store_value(R10, -32, 2, Size.HALF)  # *(u16 *)(r10 - 32) = 2
    asm.store(R6, 40, R1, Size.WORD)  # *(u32 *)(r6 + 40) = r1
    asm.copy(R2, R10)  # r2 = r10
    asm.add(R2, -32)  # r2 += -32
    asm.set(R0, 0x8000000A)  # w0 = 0x8000000a
    asm.call(64)  # call bpf_bind#64
    asm.jump("out")  # goto +0
    asm.label("out")
    asm.end()  # exit

    assert octets(
        *("bf 16 0000 00000000", "71 61 0400 00000000", "79 62 4000 00000000"),
        *("16 01 0800 7f000000", "56 01 0700 feffffff", "6a 0a e0ff 02000000"),
        *("63 16 2800 00000000", "bf a2 0000 00000000", "07 02 0000 e0ffffff"),
        *("b4 00 0000 0a000080", "85 00 0000 40000000", "05 00 0000 00000000"),
        "95 00 0000 00000000",
    ) == bpf.packed(asm.assembled(), "little")


def test_big_endian():
    """The halves of the octet with the registers change places too."""
    line = Instruction(bpf.LOAD, 1, 6, 4, -2)

    assert octets("61 61 0400 feffffff") == line.packed("little")
    assert octets("61 16 0004 fffffffe") == line.packed("big")


@given(st.binary(min_size=4, max_size=16).filter(lambda b: len(b) % 4 == 0))
def test_words_are_what_a_load_finds(data):
    """An address compared with its own words is equal, whatever its octets."""
    for at, word in enumerate(bpf.words(data)):
        asm = Assembler()
        asm.load(R2, R1, 4 * at, Size.WORD)
        asm.set(R0, 1)
        asm.jump_if_equal(R2, word, "same")
        asm.set(R0, 0)
        asm.label("same")
        asm.end()

        assert 1 == run(bpf.packed(asm.assembled()), Region.of(data), {})


@given(
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20, unique=True),
    st.data(),
)
def test_jumps_find_their_labels(values, data):
    """A table of cases gives each value its own answer, and others none."""
    asked = data.draw(st.sampled_from(values) | st.integers(0, 2**32 - 1))
    asm = Assembler()
    asm.load(R2, R1, 0, Size.WORD)
    for number, value in enumerate(values):
        asm.jump_if_equal(R2, value, str(number))
    asm.set(R0, len(values))
    asm.end()
    for number in range(len(values)):
        asm.label(str(number))
        asm.set(R0, number)
        asm.end()
    found = run(bpf.packed(asm.assembled()), Region.of(asked.to_bytes(4, "little")), {})

    assert (values.index(asked) if asked in values else len(values)) == found


def test_a_label_that_nothing_reaches_is_left_out():
    """The kernel refuses a program with instructions that nothing leads to."""
    asm = Assembler()
    assert asm.label_if_reached("start")
    asm.jump("end")
    assert not asm.label_if_reached("nowhere")
    assert asm.label_if_reached("end")
    assert asm.label_if_reached("same place")


@pytest.mark.parametrize("labels", [[], ["here", "here"], ["before"]])
def test_labels_that_cannot_be(labels):
    """None, two of a name, and one that lies behind: a program would not end."""
    asm = Assembler()

    def build():
        for label in labels:
            asm.label(label)
        asm.jump(labels[0] if labels else "missing")
        asm.end()
        return asm.assembled()

    with pytest.raises(ValueError, match="label"):
        build()


def test_too_far():
    asm = Assembler()
    asm.jump("far")
    for _ in range(0x8000):
        asm.set(R0, 0)
    asm.label("far")
    asm.end()

    with pytest.raises(ValueError, match="32768 instructions away"):
        asm.assembled()
