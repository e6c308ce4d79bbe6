import email
import email.header

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.message import complete
from vnsmail.message.complete import Completion, HeaderTooLong, Missing, mailbox

MISSING = Missing.of(1_800_000_000.0, "0123", "alpha.example", "ann@alpha.example")
ADDED = (
    b"Date: Fri, 15 Jan 2027 08:00:00 +0000\r\n"
    b"From: ann@alpha.example\r\n"
    b"Message-ID: <0123@alpha.example>\r\n"
)


def fed(pieces):
    completion = Completion(MISSING)
    return b"".join(
        [*(completion.feed(piece) for piece in pieces), completion.finish()]
    )


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (b"", ADDED + b"\r\n"),
        (b"\r\ntext", ADDED + b"\r\ntext"),
        (b"just text\r\n", ADDED + b"\r\njust text\r\n"),
        (b"Subject: x", ADDED + b"Subject: x\r\n\r\n"),
        (
            b"Bcc: x@y\r\n\tz@y\r\nTo: a\r\n\r\nBcc: stays\r\n",
            ADDED + b"To: a\r\n\r\nBcc: stays\r\n",
        ),
        (
            b"DATE: x\r\nfrom : y\r\nMessage-id:z\r\n\r\nt",
            b"DATE: x\r\nfrom : y\r\nMessage-id:z\r\n\r\nt",
        ),
    ],
)
def test_completed(message, expected):
    """Only what is missing is added, only Bcc goes."""
    assert expected == fed([message])


LINE = st.sampled_from(
    [
        b"Subject: x",
        b"Date: d",
        b"From: a@b",
        b"Bcc: s@t",
        b" folded",
        b"text",
        b"",
        b"X:",
        b"Resent-Bcc: q",
        b"\xff",
    ]
)


@given(st.lists(LINE), st.booleans(), st.data())
def test_every_other_byte_stays(lines, ended, data):
    """Without what was added and the Bcc, it is what came in; however it was cut."""
    message = b"\r\n".join(lines) + (b"\r\n" if ended else b"")
    pieces, left = [], message
    while left:
        size = data.draw(st.integers(1, len(left)))
        pieces.append(left[:size])
        left = left[size:]
    found = fed(pieces)

    assert fed([message]) == found
    head, _, text = found.partition(b"\r\n\r\n")
    assert message.endswith(text)
    fields = email.message_from_bytes(head + b"\r\n\r\n")
    assert {"date", "from", "message-id"} <= {name.lower() for name in fields}
    assert "Bcc" not in fields
    assert "Resent-Bcc" not in fields


COMPLETE = b"Date: d\r\nFrom: a@b\r\nMessage-ID: <m>\r\n"


@given(
    st.lists(LINE.filter(lambda line: line[:1] in {b"S", b"D", b"F", b" ", b"X"})),
    st.binary(),
    st.data(),
)
def test_a_complete_message_is_not_touched(lines, text, data):
    """Every byte of it comes out as it went in."""
    message = COMPLETE + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + text
    cut = data.draw(st.integers(0, len(message)))
    found = fed([message[:cut], message[cut:]])
    assert message == found


def test_only_the_header_is_held():
    """The text goes through piece by piece."""
    completion = Completion(MISSING)
    assert b"" == completion.feed(b"Subject: x\r\n")
    assert completion.feed(b"\r\n").endswith(b"Subject: x\r\n\r\n")
    assert b"piece" == completion.feed(b"piece")


def test_header_without_an_end(monkeypatch):
    """Memory is bounded, whatever comes."""
    monkeypatch.setattr(complete, "MAX_HEADER", 100)
    completion = Completion(MISSING)
    for _ in range(8):
        completion.feed(b"X: 1234567\r\n")
    with pytest.raises(HeaderTooLong):
        completion.feed(b"X: 1234567\r\n")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", "a@b.c"),
        ("Ann Archer", "Ann Archer <a@b.c>"),
        ('A. "B" <x@y>', '"A. \\"B\\" <x@y>" <a@b.c>'),
        ("Ann\r\nBcc: x", '"Ann Bcc: x" <a@b.c>'),
        ("Jörg", "=?utf-8?b?SsO2cmc=?= <a@b.c>"),
    ],
)
def test_mailbox(name, expected):
    """A name is quoted or encoded, and never becomes structure."""
    assert expected == mailbox("a@b.c", name)


@given(st.text(max_size=60))
def test_any_name(name):
    """Any name comes back as it was, but for what cannot be printed."""
    found = mailbox("a@b.c", name)
    assert all(len(line) <= 76 or name.isascii() for line in found.split("\r\n "))
    shown = found.removesuffix("<a@b.c>").rstrip()
    if shown.startswith("=?"):
        decoded = str(email.header.make_header(email.header.decode_header(shown)))
        assert decoded == " ".join(
            "".join(c if c.isprintable() else " " for c in name).split()
        )
