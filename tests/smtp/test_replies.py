import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.smtp.helpers import cut, in_bytes
from vnsmail.smtp.errors import SmtpProtocolError
from vnsmail.smtp.replies import (
    MAX_LINE_READ,
    MAX_LINES_READ,
    MAX_REPLY_LINE,
    Reply,
    ReplyParser,
)


@pytest.mark.parametrize(
    ("reply", "wire"),
    [
        (Reply(250, ("ok",)), b"250 ok\r\n"),
        (Reply(250, ("ok",), "2.0.0"), b"250 2.0.0 ok\r\n"),
        (Reply(250, ()), b"250 \r\n"),
        (Reply(250, ("",)), b"250 \r\n"),
        (Reply(250, ("a", "b", "")), b"250-a\r\n250-b\r\n250 \r\n"),
        (Reply(550, ("a", "b"), "5.1.1"), b"550-5.1.1 a\r\n550 5.1.1 b\r\n"),
        (Reply(250, ("a\r\n354 b\x00",)), b"250 a??354 b?\r\n"),
        (Reply(250, ("z\xfcrich",)), b"250 z\\xfcrich\r\n"),
        (Reply(250, ("a\x9b\u2028",)), b"250 a\\x9b\\u2028\r\n"),
    ],
)
def test_encode(reply, wire):
    """A reply is ASCII, one line each, with the enhanced code on every line."""
    assert wire == reply.encode()


def test_encode_long_text():
    """A long text goes on in the next line, as no line is over 512 octets."""
    lines = Reply(550, ("x" * 1200,), "5.7.1").encode().splitlines(keepends=True)

    assert [len(line) for line in lines[:2]] == [MAX_REPLY_LINE, MAX_REPLY_LINE]
    assert lines[0].startswith(b"550-5.7.1 x")
    assert lines[2].startswith(b"550 5.7.1 x")
    assert b"".join(lines).count(b"x") == 1200


def test_kinds():
    """The first digit says what a reply means."""
    ok, later, never = Reply(250, ()), Reply(421, ()), Reply(554, ("a", "b"))

    assert (ok.is_positive, ok.is_transient, ok.is_permanent) == (True, False, False)
    assert (
        later.is_positive,
        later.is_transient,
        later.is_permanent,
    ) == (False, True, False)
    assert (
        never.is_positive,
        never.is_transient,
        never.is_permanent,
    ) == (False, False, True)
    assert never.text == "a b"


@pytest.mark.parametrize(
    ("wire", "replies"),
    [
        (b"250 ok\r\n", [Reply(250, ("ok",))]),
        (b"250\r\n", [Reply(250, ("",))]),
        (b"250-a\r\n250\r\n", [Reply(250, ("a", ""))]),
        (b"250 a\r\n354 b\r\n", [Reply(250, ("a",)), Reply(354, ("b",))]),
        (b"250 2.1.0 ok\r\n", [Reply(250, ("ok",), "2.1.0")]),
        (b"550 5.1.1\r\n", [Reply(550, ("",), "5.1.1")]),
        (b"550-5.1.1 a\r\n550 5.1.1 b\r\n", [Reply(550, ("a", "b"), "5.1.1")]),
        (b"550-5.1.1 a\r\n550 b\r\n", [Reply(550, ("a", "b"), "5.1.1")]),
        (b"550-5.1.1 a\r\n550 5.1.1\r\n", [Reply(550, ("a", ""), "5.1.1")]),
        (b"550-a\r\n550 5.1.1 b\r\n", [Reply(550, ("a", "5.1.1 b"))]),
        (b"550 4.1.1 b\r\n", [Reply(550, ("4.1.1 b",))]),
        (b"550 5.1.1234 b\r\n", [Reply(550, ("5.1.1234 b",))]),
        (b"550 5.1.1b\r\n", [Reply(550, ("5.1.1b",))]),
        (b"250 \x1b[2J\x00\t\xff\xc2\x9b\r\n", [Reply(250, ("?[2J??\ufffd?",))]),
        ("250 zürich\r\n".encode(), [Reply(250, ("zürich",))]),
        (b"", []),
        (b"250 ok\r", []),
    ],
)
@pytest.mark.parametrize("pieces", [lambda wire: [wire], in_bytes])
def test_parse(wire, replies, pieces):
    """Replies are found however they are cut; the enhanced code is split off."""
    parser = ReplyParser()

    assert replies == [reply for piece in pieces(wire) for reply in parser.feed(piece)]


NONSENSE = [
    b"\r\n",
    b"ok\r\n",
    b"25 ok\r\n",
    b"2500 ok\r\n",
    b"250_ok\r\n",
    b" 250 ok\r\n",
    b"150 ok\r\n",
    b"650 ok\r\n",
    b"250-a\r\n251 b\r\n",
    b"250-a\r\nb\r\n",
    b"250 a\n",
    b"250 a\n250 b\r\n",
    b"250 a\rb",
    b"250 a\r\r\n",
    b"250 " + b"x" * (MAX_LINE_READ - 5) + b"\r\n",
    b"250 " + b"x" * (MAX_LINE_READ - 5),
    b"250-x\r\n" * (MAX_LINES_READ + 1),
    "٢٥٠ ok\r\n".encode(),
]


@pytest.mark.parametrize("wire", NONSENSE, ids=range(len(NONSENSE)))
@pytest.mark.parametrize("pieces", [lambda wire: [wire], in_bytes], ids=["once", "cut"])
def test_nonsense(wire, pieces):
    """What is no reply ends the connection, at once and for good."""
    parser = ReplyParser()
    with pytest.raises(SmtpProtocolError):
        list(map(parser.feed, pieces(wire)))
    with pytest.raises(SmtpProtocolError):
        parser.feed(b"250 ok\r\n")


def test_longest_reply():
    """At the limits a reply is one."""
    line = b"250-" + b"x" * (MAX_LINE_READ - 6) + b"\r\n"
    [reply] = ReplyParser().feed(line * (MAX_LINES_READ - 1) + b"250 end\r\n")

    assert len(reply.lines) == MAX_LINES_READ


def test_nonsense_behind_a_reply():
    """A good reply counts, whatever comes behind it; that is found the next time."""
    parser = ReplyParser()

    assert [Reply(250, ("accepted",))] == parser.feed(b"250 accepted\r\nrubbish\r\n")
    with pytest.raises(SmtpProtocolError):
        parser.feed(b"")


texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
replies = st.builds(
    Reply,
    st.integers(200, 599),
    # A first word that looks like an enhanced code is one.
    st.lists(texts.map(lambda text: "-" + text), min_size=1, max_size=4).map(tuple),
)


@given(st.lists(replies, max_size=4), st.lists(st.integers(0, 500)), st.data())
def test_replies_survive_the_wire(sent, places, data):
    """What is encoded is read again, however it is cut."""
    sent = [
        Reply(r.code, r.lines, f"{r.code // 100}.1.10")
        if r.code // 100 in {2, 4, 5} and data.draw(st.booleans())
        else r
        for r in sent
    ]
    wire = b"".join(reply.encode() for reply in sent)
    parser = ReplyParser()

    assert sent == [r for piece in cut(wire, places) for r in parser.feed(piece)]


@given(st.text(max_size=600), st.integers(0, 5))
def test_any_text_is_one_reply(text, lines):
    """No text, wherever it comes from, makes a second reply or ends the first."""
    wire = Reply(550, (text,) * lines, "5.0.0").encode()
    [reply] = ReplyParser().feed(wire)

    assert (reply.code, reply.enhanced) == (550, "5.0.0")
    assert wire.isascii()
    assert all(len(line) <= 512 for line in wire.splitlines(keepends=True))


@given(st.lists(st.sampled_from([b"250", b" ", b"-", b"\r", b"\n", b"ok", b"\r\n"])))
def test_cuts_make_no_difference_to_nonsense(pieces):
    """The same replies are found in nonsense, cut or not."""

    def read(chunks):
        parser = ReplyParser()
        found: list[Reply | None] = []
        try:
            for chunk in chunks:
                found += parser.feed(chunk)
            parser.feed(b"")
        except SmtpProtocolError:
            found.append(None)
        return found

    wire = b"".join(pieces)

    assert read([wire]) == read(in_bytes(wire))
