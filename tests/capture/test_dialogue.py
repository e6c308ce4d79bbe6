import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vnsmail.capture.dialogue import Dialogue, read
from vnsmail.capture.fields import printable

GREETING = b"220 mx.example ESMTP\r\n"
EHLO = b"250-mx.example\r\n250-PIPELINING\r\n250 SIZE\r\n"
OK = b"250 ok\r\n"


def crlf(text):
    return text.replace("\n", "\r\n").encode()


def test_one_message():
    said = crlf(
        "EHLO Alpha.Example.\nMAIL FROM:<ann@alpha.example> SIZE=9\nRCPT TO:<b@c.d>\nDATA\n"
    )
    answered = GREETING + EHLO + OK + OK + b"354 go on\r\n"

    assert Dialogue(220, ("alpha.example",), ("ann@alpha.example",), False) == read(
        said, answered
    )
    assert read(said, answered).has_mail


def test_bodies_are_stepped_over():
    """Commands in a body are text; those behind its end are commands."""
    body = crlf("EHLO evil.example\n..\nMAIL FROM:<x@y.z>\n.\n")
    said = crlf("EHLO a.example\nMAIL FROM:<1@a.example>\nDATA\n") + body
    said += crlf("MAIL FROM:<2@a.example>\n")
    answered = GREETING + OK + OK + b"354 go\r\n" + OK + OK
    found = read(said, answered)

    assert ("a.example",) == found.helo
    assert ("1@a.example", "2@a.example") == found.senders


def test_empty_body():
    said = crlf("EHLO a.example\nDATA\n.\nMAIL FROM:<2@a.example>\n")

    assert ("2@a.example",) == read(said, GREETING + OK + b"354 go\r\n" + OK).senders


def test_refused_data_has_no_body():
    said = crlf("EHLO a.example\nMAIL FROM:<1@a.example>\nDATA\nMAIL FROM:<>\n")
    answered = GREETING + OK + OK + b"554 no recipients\r\n"

    assert ("1@a.example", "") == read(said, answered).senders


def test_chunks_are_stepped_over():
    said = (
        crlf("EHLO a.example\nMAIL FROM:<1@a.example>\nBDAT 6\nEHLO x")
        + crlf("BDAT 6 LAST\nEHLO y")
        + crlf("MAIL FROM:<2@a.example>\n")
    )
    found = read(said, GREETING + OK * 4)

    assert ("a.example",) == found.helo
    assert ("1@a.example", "2@a.example") == found.senders


def test_nothing_is_read_behind_tls():
    said = crlf("EHLO a.example\nSTARTTLS\n") + b"\x16\x03\nEHLO x\n"
    found = read(said, GREETING + EHLO + b"220 go\r\n")

    assert ("a.example",) == found.helo
    assert found.encrypted
    assert found.has_mail


def test_refused_tls():
    said = crlf("EHLO a.example\nSTARTTLS\nMAIL FROM:<1@a.example>\n")
    found = read(said, GREETING + EHLO + b"454 later\r\n")

    assert not found.encrypted
    assert ("1@a.example",) == found.senders


def test_lines_of_an_authentication_are_no_commands():
    said = crlf("EHLO a.example\nAUTH LOGIN\nEHLO x\nEHLO y\nMAIL FROM:<>\n")
    found = read(said, GREETING + OK + b"334 a\r\n334 b\r\n235 in\r\n")

    assert ("a.example",) == found.helo
    assert ("",) == found.senders


@pytest.mark.parametrize("name", ["", "a.example\x1b[31m", "a" * 600])
def test_strange_names(name):
    (found,) = read(f"EHLO {name}\r\n".encode(), GREETING).helo

    assert printable(name) == found


def test_half_a_line_is_no_name():
    """A name that was cut off would be another name."""
    assert () == read(b"EHLO alpha.exam", GREETING).helo


def test_turned_away():
    assert Dialogue(421, (), (), False) == read(b"QUIT\r\n", b"421 too busy\r\n")


def test_greeting_of_several_lines():
    assert 220 == read(b"", b"220-mx\r\n220-rules\r\n220 go\r\n").greeting


LINES = [b"EHLO a.b\r\n", b"DATA\r\n", b".\r\n", b"BDAT 5\r\n", b"BDAT x\r\n", b"\r\n"]
LINES += [
    b"MAIL FROM:<a@b>\r\n",
    b"AUTH X\r\n",
    b"STARTTLS\r\n",
    b"EHLO",
    b"\xff",
    b"\0\n",
]
REPLIES = [
    b"220 a\r\n",
    b"250-a\r\n",
    b"250\r\n",
    b"354 a\r\n",
    b"334 \r\n",
    b"500 ",
    b"\n",
]


@given(
    st.one_of(st.binary(), st.lists(st.sampled_from(LINES)).map(b"".join)),
    st.one_of(st.binary(), st.lists(st.sampled_from(REPLIES)).map(b"".join)),
)
@example(b"BDAT " + b"9" * 5000 + b"\r\n", b"220 a\r\n")
def test_random_bytes_are_no_error(said, answered):
    """Whatever both sides say, it is read as far as it is understood."""
    found = read(said, answered)

    assert all(name.isprintable() for name in (*found.helo, *found.senders))
