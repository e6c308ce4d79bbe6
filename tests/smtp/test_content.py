"""What no message may have: found wherever it is, and however the octets are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.smtp import content
from vnsmail.smtp.content import ContentCheck, Fault


def check(*blocks, limit=10**6, seven_bit=True):
    found = ContentCheck(limit, seven_bit=seven_bit)
    for block in blocks:
        found.look(block)
    return found


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"a\0b\r\n", Fault.NUL),
        (b"f\xfcr\r\n", Fault.EIGHT_BIT),
        (b"a\nb\r\n", Fault.BARE_NEWLINE),
        (b"a\rb\r\n", Fault.BARE_NEWLINE),
        (b"a\0\n\xff", Fault.BARE_NEWLINE),
        (b"x" * 10_001, Fault.LONG_LINE),
        (b"", None),
        (b"text\r\n" * 5000, None),
    ],
)
def test_the_worst_is_told(data, fault):
    assert check(data).worst is fault


def test_size():
    assert check(b"abc\r\n", limit=5).worst is None
    assert check(b"abc\r\n", b"x", limit=5).worst is Fault.TOO_BIG


def test_8_bit_where_it_may_be():
    found = check(b"f\xfcr\r\n", seven_bit=False)
    assert (found.worst, found.eight_bit) == (None, True)


@given(st.lists(st.integers(0, 30), max_size=12), st.lists(st.integers(0, 300)))
def test_lines_are_measured_however_they_are_cut(lengths, places):
    """Over the limit or not: the same as looking at each line."""
    data = b"".join(b"x" * length + b"\r\n" for length in lengths)
    edges = sorted({0, len(data), *(p for p in places if p < len(data))})
    edges = [e for e in edges if data[e - 1 : e] != b"\r"]
    blocks = [data[a:b] for a, b in zip(edges, [*edges[1:], len(data)], strict=True)]
    saved, content.MAX_LINE = content.MAX_LINE, 20
    try:
        found = check(*blocks)
    finally:
        content.MAX_LINE = saved

    assert (Fault.LONG_LINE in found.faults) == any(n + 2 > 20 for n in lengths)
    assert found.size == len(data)
