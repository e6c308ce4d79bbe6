import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.smtp.helpers import cut, in_bytes
from vnsmail.smtp.body import BodyDecoder, BodyEncoder, dot_stuff
from vnsmail.smtp.errors import SmtpProtocolError

END = b".\r\n"


def decode(chunks):
    """Return body, whether it ended, what came behind, and the bare newline flag."""
    decoder, body, rest = BodyDecoder(), b"", b""
    ended = False
    for chunk in chunks:
        if ended:
            rest += chunk
            continue
        payload, ended, rest = decoder.feed(chunk)
        body += payload
    return body, ended, rest, decoder.bare_newline


def simple_decode(wire):
    """The same, byte after byte, as the RFC says it: an oracle."""
    body, bare, at = b"", False, 0
    line_start = True
    while at < len(wire):
        if line_start and wire[at : at + 3] == END:
            return body, True, wire[at + 3 :], bare
        if line_start and wire[at : at + 1] == b".":
            at += 1
            line_start = False
            continue
        if wire[at : at + 2] == b"\r\n":
            body += b"\r\n"
            at += 2
            line_start = True
            continue
        bare = bare or wire[at] in b"\r\n"
        body += wire[at : at + 1]
        at += 1
        line_start = False
    return body, False, b"", bare


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        (b"", b""),
        (b"a\r\n", b"a\r\n"),
        (b"\r\n", b"\r\n"),
        (b"..\r\n", b".\r\n"),
        (b"...a\r\n", b"..a\r\n"),
        (b".a\r\n", b"a\r\n"),
        (b"a.\r\n..b\r\n", b"a.\r\n.b\r\n"),
        (b"\x00\xff\x80\r\n", b"\x00\xff\x80\r\n"),
    ],
)
@pytest.mark.parametrize("pieces", [lambda wire: [wire], in_bytes], ids=["once", "cut"])
def test_decode(wire, body, pieces):
    """The body is what stands before CRLF . CRLF, without dot-stuffing."""
    assert (body, True, b"QUIT\r\n", False) == decode(pieces(wire + END + b"QUIT\r\n"))


@pytest.mark.parametrize(
    "false_end",
    [
        b"\n.\n",
        b"\n.\r\n",
        b"\r\n.\n",
        b"\r\n.\r",
        b"\r.\r",
        b"\r.\r\n",
        b"\r\r\n.\n",
        b"\n\r.\r\n",
        b"\r\n.\r\r\n",
        b"\r\n.\r\x00\n",
        b"\n\n.\n\n",
    ],
)
@pytest.mark.parametrize("pieces", [lambda wire: [wire], in_bytes], ids=["once", "cut"])
def test_false_ends(false_end, pieces):
    """Nothing else ends a body, and what might to another server is noticed."""
    _, ended, rest, bare = decode(pieces(b"a" + false_end + b"MAIL FROM:<>\r\n"))

    assert (ended, rest, bare) == (False, b"", True)


@pytest.mark.parametrize("newline", [b"\r", b"\n", b"\n\r", b"\r\r\n", b"\r\n\n"])
@pytest.mark.parametrize("place", [b"%b", b"a%b", b"%ba", b"a\r\n%ba\r\n"])
@pytest.mark.parametrize("pieces", [lambda wire: [wire], in_bytes], ids=["once", "cut"])
def test_bare_newlines(newline, place, pieces):
    """A CR or LF alone is noticed anywhere, and the body still ends at its end."""
    _, ended, rest, bare = decode(pieces(place % newline + b"x\r\n" + END + b"RSET"))

    assert (ended, rest, bare) == (True, b"RSET", True)


tricky = st.lists(
    st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"a", b"\r\n.", b"\r\n.\r\n"]),
    max_size=12,
).map(b"".join)
places = st.lists(st.integers(0, 50), max_size=6)


@given(tricky, places)
def test_decoding_is_what_the_rfc_says(wire, places):
    """However the bytes are cut, the result is that of a reading byte by byte."""
    # Without an end the last bytes may still become one, so give it one.
    wire += b"x\r\n" + END + b"rest\r\n.\r\n"

    assert simple_decode(wire) == decode([wire])
    assert simple_decode(wire) == decode(cut(wire, places))
    assert simple_decode(wire) == decode(in_bytes(wire))


@given(st.binary(max_size=200), places)
def test_decoding_gives_no_byte_too_early(wire, places):
    """What is given out of an unfinished body is never taken back."""
    so_far = decode(cut(wire, places))[0]
    whole = simple_decode(wire + b"x\r\n" + END)[0]

    assert whole.startswith(so_far) or simple_decode(wire)[1]


bodies = st.lists(
    st.sampled_from([b"\r\n", b".", b"a", b"..", b"\r\n.", b"\x00", b"\xff"]),
    max_size=12,
).map(b"".join)


@given(bodies, places, places)
def test_bodies_survive_the_wire(body, places, other_places):
    """What is stuffed is unstuffed, but for a CRLF that a body has to end in."""
    wire = b"".join(dot_stuff(cut(body, places)))
    complete = body if not body or body.endswith(b"\r\n") else body + b"\r\n"

    assert wire.endswith(END)
    assert (complete, True, b"", False) == decode(cut(wire, other_places))


@pytest.mark.parametrize(
    ("body", "wire"),
    [
        (b"", b".\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b"a\r\n", b"a\r\n.\r\n"),
        (b".", b"..\r\n.\r\n"),
        (b".\r\n.\r\na.\r\n", b"..\r\n..\r\na.\r\n.\r\n"),
        (b"\r\n", b"\r\n.\r\n"),
    ],
)
@pytest.mark.parametrize("pieces", [lambda wire: [wire], in_bytes], ids=["once", "cut"])
def test_dot_stuff(body, wire, pieces):
    """A dot at the start of a line gets another; the end is added."""
    assert wire == b"".join(dot_stuff(pieces(body)))


@pytest.mark.parametrize("newline", [b"\r", b"\n", b"\n\r", b"\r\r\n", b"\r\n\n"])
@pytest.mark.parametrize("place", [b"%b", b"a%b", b"%ba", b"a\r\n%b.\r\n"])
@pytest.mark.parametrize("pieces", [lambda wire: [wire], in_bytes], ids=["once", "cut"])
def test_dot_stuff_refuses_bare_newlines(newline, place, pieces):
    """A body that is not canonical is not sent."""
    with pytest.raises(SmtpProtocolError):
        list(dot_stuff(pieces(place % newline)))


def test_encoder_lets_nothing_out_behind_a_bare_newline():
    """The block with the fault in it is not sent, not even in part."""
    encoder = BodyEncoder()

    assert encoder.encode(b"good\r\n") == b"good\r\n"
    with pytest.raises(SmtpProtocolError):
        encoder.encode(b"bad\n.\nMAIL FROM:<>")
