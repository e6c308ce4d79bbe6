import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.message.headers import (
    count_received,
    count_received_by,
    parse_header,
)

MESSAGE = (
    b"Received: from a.example\r\n\tby b.example; x\r\n"
    b"Subject : lunch\r\n"
    b"BCC: eve@e.example\r\n"
    b"\r\n"
    b"Received: in the text\r\n"
)


def test_fields_with_their_lines():
    """A field has its continuations; its name is in lower case."""
    header = parse_header(MESSAGE)

    assert ["received", "subject", "bcc"] == [f.name for f in header.fields]
    assert b"Subject : lunch\r\n" == header.fields[1].raw
    assert b"\tby b.example; x\r\n" in header.fields[0].raw
    assert b"\r\nReceived: in the text\r\n" == header.rest
    assert header.whole
    assert header.has("bcc")
    assert not header.has("from")


@pytest.mark.parametrize(
    ("front", "names", "rest", "whole"),
    [
        (b"", [], b"", False),
        (b"\r\n", [], b"\r\n", True),
        (b"\r\ntext", [], b"\r\ntext", True),
        (b"hello\r\n", [], b"hello\r\n", True),
        (b" folded: x\r\n", [], b" folded: x\r\n", True),
        (b"A: 1\r\nno field\r\n\r\n", ["a"], b"no field\r\n\r\n", True),
        (b"A: 1\r\nB: 2", ["a"], b"B: 2", False),
        (b"A: 1\r\n more", ["a"], b" more", False),
        (b"A: 1\r\n\r", ["a"], b"\r", False),
        (b"From ann@a.example Mon 1\r\n", [], b"From ann@a.example Mon 1\r\n", True),
        (b"Gr\xc3\xbc: x\r\n", [], b"Gr\xc3\xbc: x\r\n", True),
    ],
)
def test_where_the_header_block_ends(front, names, rest, whole):
    """It ends at the first line that is no field, and an unfinished line is none yet."""
    header = parse_header(front)

    assert (names, rest, whole) == (
        [field.name for field in header.fields],
        header.rest,
        header.whole,
    )


@given(st.lists(st.sampled_from([b"A", b": ", b"\r\n", b" ", b"\t", b"\n", b"\xff"])))
def test_nothing_is_lost(parts):
    """Fields and rest, put together, are the bytes that were given."""
    front = b"".join(parts)
    header = parse_header(front)

    assert front == b"".join(field.raw for field in header.fields) + header.rest


@pytest.mark.parametrize(
    ("front", "count"),
    [
        (MESSAGE, 1),
        (b"received: x\r\nRECEIVED : y\r\nX-Received: z\r\n\r\n", 2),
        (b"\r\nReceived: text", 0),
        (b"", 0),
        (b"A: x\r\n Received: folded\r\n\r\n", 0),
        (b"Received: x\r\n" * 51, 51),
    ],
)
def test_hops(front, count):
    """Received fields of the header block count, those of the text do not."""
    assert count == count_received(front)


@given(st.binary())
def test_any_bytes_can_be_counted(front):
    """No bytes are an error."""
    assert count_received(front) >= 0


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        (b"Received: from a.example by B.example (x); date\r\n", 1),
        (b"RECEIVED: from b.example\r\n\tby b.example\r\n with ESMTP\r\n", 1),
        (b"Received: by b.example; date\r\nReceived: by b.example with X\r\n", 2),
        (b"Received: from b.example by c.example; date\r\n", 0),
        (b"Received: by bxexample; x\r\nReceived: by b.example.org; x\r\n", 0),
        (b"X-Received: by b.example; date\r\n", 0),
    ],
)
def test_received_by(fields, count):
    """Those of one host are known by its name behind "by", in the header block only."""
    text = fields + b"\r\nReceived: by b.example; no field\r\n"

    assert count == count_received_by(text, "b.example")
