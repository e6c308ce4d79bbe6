import email
import email.policy
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inbound.helpers import NOW, facts_in
from vnsmail.errors import BadInput
from vnsmail.inbound import inject as inject_module
from vnsmail.inbound.accept import AcceptPolicy
from vnsmail.inbound.inject import InjectRequest, prepare
from vnsmail.queue.body import INCOMING, THRESHOLD

ID = "0123456789abcdefghjk"
REQUEST = InjectRequest("ann@alpha.example", ("bob@b.example",), 1000)
TRACE = (
    b"Received: by alpha.example (local, uid 1000)\r\n"
    b"\twith local id 0123456789abcdefghjk; Fri, 15 Jan 2027 08:00:00 +0000\r\n"
)
DATE = b"Date: Fri, 15 Jan 2027 08:00:00 +0000\r\n"
FROM = b"From: ann@alpha.example\r\n"
MESSAGE_ID = b"Message-ID: <0123456789abcdefghjk@alpha.example>\r\n"
COMPLETE = b"Date: x\r\nFrom: y\r\nMessage-ID: z\r\n"


@contextmanager
def handed(message: bytes) -> Iterator[int]:
    """A file as `vnsmail send` hands it over: its position is at the end."""
    fd = os.memfd_create("message")
    try:
        os.write(fd, message)
        yield fd
    finally:
        os.close(fd)


def prepared(folder, message, request=REQUEST, **changes):
    with handed(message) as fd:
        return prepare(fd, request, facts_in(folder, **changes), ID, NOW)


def content(folder, message, request=REQUEST, **changes):
    body = prepared(folder, message, request, **changes).body
    data = b"".join(body.chunks())
    body.discard()
    assert data.startswith(TRACE)
    return data.removeprefix(TRACE)


# What is added, changed and left out ---------------------------------------------------


def test_what_every_message_has(tmp_path):
    """Date, From and Message-ID are added if they are missing."""
    found = content(tmp_path, b"Subject: hi\n\nhello\n")

    assert DATE + FROM + MESSAGE_ID + b"Subject: hi\r\n\r\nhello\r\n" == found


def test_what_is_there_stays(tmp_path):
    """A field that is there is not touched, however it is written."""
    message = b"DATE : yesterday\r\nfrom: Ann\r\n <a@a.example>\r\nMessage-Id:<1@a>\r\n"
    message += b"X-Odd:\t  spaces  \r\nReceived: earlier\r\n\r\n\xff body \t\r\n"

    assert message == content(tmp_path, message)


@pytest.mark.parametrize(
    ("message", "rest"),
    [
        (b"", b"\r\n"),
        (b"\n", b"\r\n"),
        (b"\r\ntext", b"\r\ntext"),
        (b"just text", b"\r\njust text"),
        (b"just text\nFrom: x\n", b"\r\njust text\r\nFrom: x\r\n"),
        (b" indented: text\n", b"\r\n indented: text\r\n"),
        (b"Subject: hi", b"Subject: hi\r\n\r\n"),
        (b"Subject: hi\n folded", b"Subject: hi\r\n folded\r\n\r\n"),
        (b"Subject: hi\nno field\n\nx\n", b"Subject: hi\r\n\r\nno field\r\n\r\nx\r\n"),
        (b"Subject: hi\n\nno end", b"Subject: hi\r\n\r\nno end"),
    ],
)
def test_where_the_text_begins(tmp_path, message, rest):
    """Text without a header block is text; an empty line parts the two."""
    found = content(tmp_path, message)

    assert found == DATE + FROM + MESSAGE_ID + rest


@pytest.mark.parametrize("name", [b"Bcc", b"BCC", b"bcc ", b"Resent-Bcc"])
def test_blind_copies(tmp_path, name):
    """Bcc goes with all its lines (RFC 5322 section 3.6.3), in the header block only."""
    message = COMPLETE + name + b": eve@e.example,\n\tmallory@m.example\nTo: x\n\n"
    message += b"Bcc: in the text\n"
    found = content(tmp_path, message)

    assert COMPLETE + b"To: x\r\n\r\nBcc: in the text\r\n" == found


def test_lines_end_as_in_smtp(tmp_path):
    """LF becomes CRLF, and CRLF stays."""
    found = content(tmp_path, COMPLETE + b"\none\ntwo\r\n\n\r\nthree")

    assert COMPLETE + b"\r\none\r\ntwo\r\n\r\n\r\nthree" == found


@settings(max_examples=50)
@given(
    lines=st.lists(st.binary(max_size=30).map(lambda b: b.translate(None, b"\r\n\0"))),
    ends=st.lists(st.sampled_from([b"\n", b"\r\n"]), min_size=1),
    piece=st.integers(1, 40),
)
def test_any_text_comes_out_with_crlf(tmp_path_factory, lines, ends, piece):
    """However lines end, and however they are read, the text is the same with CRLF."""
    folder = tmp_path_factory.mktemp("owner")
    text = b"".join(
        line + ends[number % len(ends)] for number, line in enumerate(lines)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inject_module, "PIECE", piece)
        found = content(folder, COMPLETE + b"\n" + text)

    assert COMPLETE + b"\r\n" + b"".join(line + b"\r\n" for line in lines) == found


@settings(max_examples=100)
@given(message=st.binary(max_size=300).map(lambda b: b.translate(None, b"\r\0")))
def test_any_bytes_become_one_message(tmp_path_factory, message):
    """Whatever is handed over, what is queued has one header block, and no bare LF."""
    found = content(tmp_path_factory.mktemp("owner"), message)
    head = found.partition(b"\r\n\r\n")[0]

    assert b"\n" not in found.replace(b"\r\n", b"")
    assert message.replace(b"\n", b"\r\n").endswith(found.partition(b"\r\n\r\n")[2])
    names = [n.lower() for n in email.message_from_bytes(head + b"\r\n\r\n")]
    assert {"date", "from", "message-id"} <= set(names)
    assert "bcc" not in names


def test_large_message(tmp_path):
    """What does not fit in memory goes to a file of the owner's."""
    text = b"line of text\n" * THRESHOLD
    with handed(COMPLETE + b"\n" + text) as fd:
        found = prepare(fd, REQUEST, facts_in(tmp_path), ID, NOW)

    assert found.body.file is not None
    assert found.body.file.parent == tmp_path / INCOMING
    whole = TRACE + COMPLETE + b"\r\n" + text.replace(b"\n", b"\r\n")
    assert whole == b"".join(found.body.chunks())


# The envelope ----------------------------------------------------------------------------


def test_envelope(tmp_path):
    """Sender and recipients are in the spelling of the queue, each once."""
    request = InjectRequest(
        "Ann@ALPHA.example",
        ("Bob@B.example", "cy@alpha.example", "CY@alpha.example", "Bob@b.example"),
        0,
    )
    envelope = prepared(tmp_path, b"", request).envelope

    assert (ID, "alpha.example", NOW) == (
        envelope.id,
        envelope.owner,
        envelope.received_at,
    )
    assert "ann@alpha.example" == envelope.sender
    assert ("Bob@b.example", "cy@alpha.example") == envelope.recipients


@pytest.mark.parametrize(
    ("message", "recipient", "eight_bit", "smtputf8"),
    [
        (b"Subject: x\n\ntext", "bob@b.example", False, False),
        (b"Subject: x\n\ntext \xc3\xbc", "bob@b.example", True, False),
        (b"Subject: \xc3\xbc\n\ntext", "bob@b.example", True, True),
        (b"Subject: \xfc\n\ntext", "bob@b.example", True, False),
        (b"Bcc: \xc3\xbc\n\ntext", "bob@b.example", False, False),
        (b"x" * 300_000 + b"\n\xc3\xbc", "bob@b.example", True, False),
        (b"", "grü@b.example", False, True),
        (b"", "bob@grü.example", False, True),
    ],
)
def test_what_the_way_must_carry(tmp_path, message, recipient, eight_bit, smtputf8):
    """8BITMIME for any byte beyond ASCII, SMTPUTF8 for headers and addresses."""
    request = InjectRequest("ann@alpha.example", (recipient,), 0)
    found = prepared(tmp_path, message, request)
    found.body.discard()

    assert (eight_bit, smtputf8) == (
        found.envelope.eight_bit,
        found.envelope.smtputf8,
    )


# Refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sender",
    [
        "",
        "eve@alpha.example",
        "ann@beta.example",
        "ann",
        "ann@alpha.example\r\nBcc: x",
        "<ann@alpha.example>",
    ],
)
def test_nobody_sends_as_somebody_else(tmp_path, sender):
    """The sender is a user of this host, whatever was found out before."""
    with pytest.raises(BadInput, match="sender"):
        prepared(tmp_path, b"", InjectRequest(sender, ("bob@b.example",), 0))


def test_machine_sends_as_anybody_of_its_own(tmp_path):
    """Whoever has an account may send; only as the machine."""
    policy = AcceptPolicy.of(["machine.example"], [], any_user=True)
    request = InjectRequest("cron@machine.example", ("bob@b.example",), 0)
    found = prepared(tmp_path, b"", request, policy=policy, name="machine.example")

    assert "cron@machine.example" == found.envelope.sender
    with pytest.raises(BadInput, match=r"machine\.example has no such user"):
        prepared(tmp_path, b"", REQUEST, policy=policy, name="machine.example")


@pytest.mark.parametrize(
    "recipients",
    [
        (),
        ("bob",),
        ("bob@",),
        ("a b@b.example",),
        ("x@b.example\n",),
        ("",),
        ("\0@b.c",),
    ],
)
def test_recipients_that_are_none(tmp_path, recipients):
    """Each address must be one."""
    with pytest.raises(BadInput, match="recipient"):
        prepared(tmp_path, b"", InjectRequest("ann@alpha.example", recipients, 0))


def test_too_many_recipients(tmp_path):
    """The limit is that of a transaction."""
    recipients = tuple(f"u{number}@b.example" for number in range(101))
    with pytest.raises(BadInput, match="100 at most"):
        prepared(tmp_path, b"", InjectRequest("ann@alpha.example", recipients, 0))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"a\0b", "NUL"),
        (b"Subject: x\n\n" + b"y" * 400_000 + b"\0", "NUL"),
        (b"a\rb", "CR"),
        (b"a\r", "CR"),
        (b"a\r\r\n", "CR"),
        (b"\r" * 10, "CR"),
        (b"Received: x\n" * 51 + b"\n", "circle"),
        (b"X: " + b"y" * 2_000_000, "longer than"),
        (b"x\n" * 6_000_000, "larger than 10000000 bytes"),
        (b"\n" * 6_000_000, "larger than 10000000 bytes"),
    ],
)
def test_messages_that_cannot_be_sent(tmp_path, message, words):
    """It is said what is wrong, in one line, and nothing is left."""
    with pytest.raises(BadInput, match=words) as caught:
        prepared(tmp_path, message)

    assert "\n" not in str(caught.value)
    assert [] == list((tmp_path / INCOMING).iterdir())


@pytest.mark.parametrize("message", [b"a\rb", b"a\r\rb", b"a\r\r\n", b"a\n\rb\n"])
def test_bare_cr_at_the_end_of_a_piece(tmp_path, monkeypatch, message):
    """It is found wherever the reading is cut."""
    monkeypatch.setattr(inject_module, "PIECE", 1)
    with pytest.raises(BadInput, match="CR without LF"):
        prepared(tmp_path, message)


def test_fifty_hops_are_allowed(tmp_path):
    """A message may have come a long way."""
    message = COMPLETE + b"Received: x\r\n" * 50 + b"\r\n"

    assert message == content(tmp_path, message)


def test_descriptor_that_is_no_file(tmp_path):
    """A pipe that nobody writes to would hold a thread for ever."""
    reader, writer = os.pipe()
    try:
        with pytest.raises(BadInput, match="in a file"):
            prepare(reader, REQUEST, facts_in(tmp_path), ID, NOW)
    finally:
        os.close(reader)
        os.close(writer)


def test_file_that_cannot_be_read(tmp_path):
    """A file that is open for writing only is no message."""
    fd = os.open(tmp_path / "x", os.O_WRONLY | os.O_CREAT)
    try:
        with pytest.raises(BadInput, match="cannot be read"):
            prepare(fd, REQUEST, facts_in(tmp_path), ID, NOW)
    finally:
        os.close(fd)
