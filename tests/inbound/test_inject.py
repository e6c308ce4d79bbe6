import email
import email.policy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.inbound.helpers import NOW, facts_in
from vnsmail.errors import BadInput, NotAllowed
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
COMPLETE = b"Date: x\r\nFrom: y@z.example\r\nMessage-ID: z\r\n"


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
        "eve@alpha.example",
        "ann@beta.example",
        "eve",
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


@pytest.mark.parametrize("piece", [1, 2, 3, 100])
def test_cr_of_its_own_ends_a_line(tmp_path, monkeypatch, piece):
    """What cron sends of a command that shows its progress is mail all the same."""
    monkeypatch.setattr(inject_module, "PIECE", piece)
    found = content(tmp_path, COMPLETE + b"\n10%\r20%\r\rdone\r\n\r")

    assert COMPLETE + b"\r\n10%\r\n20%\r\n\r\ndone\r\n\r\n" == found


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


# A user's own -----------------------------------------------------------------------------

ANN = InjectRequest("ann@alpha.example", ("bob@b.example",), 1000, user="ann")


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"From: cy@alpha.example\n\n", "cy@alpha.example.*ann@alpha.example only"),
        (b"From: ann@alpha.example, cy@alpha.example\n\n", "cy@alpha.example"),
        (b"From: Ann <ann@beta.example>\n\n", "ann@beta.example"),
        (b'From: "ann@alpha.example" <eve@beta.example>\n\n', "eve@beta.example"),
        (b"From: ann@alpha.example\nSender: cy@alpha.example\n\n", "cy@alpha"),
        (b"From: ann@alpha.example\nFrom: ann@alpha.example\n\n", "several From"),
        (b"From: ann@alpha.example <eve@beta.example\n\n", "From: .*somebody else"),
        (b"From: <@b.example:eve@beta.example>\n\n", "eve@beta.example"),
        (b"from : (x) eve @ beta . example\n\n", "eve@beta.example"),
        (b"From:\n eve@beta.example\n\n", "eve@beta.example"),
    ],
)
def test_from_is_the_users_own(tmp_path, message, words):
    """RFC 6409 section 6.1: nobody writes another's name over a message."""
    with pytest.raises(BadInput, match=words):
        prepared(tmp_path, message, ANN)


@pytest.mark.parametrize(
    "field",
    [
        b"From: Ann <ANN@Alpha.Example>\r\n",
        b"From: (me) ann@alpha.example\r\n",
        b"From: us: ann@alpha.example;\r\n",
    ],
)
def test_own_from_stays(tmp_path, field):
    """It is not touched, however it is written."""
    assert field in content(tmp_path, field + b"\r\nx", ANN)


def test_whoever_may_be_anybody_is_not_asked(tmp_path):
    """Root sends what it likes, as an address of the host."""
    field = b"From: ceo@elsewhere.example\r\n"

    assert field in content(tmp_path, field + b"\r\n")


def test_sender_of_another_user(tmp_path):
    """The envelope is the user's own as well."""
    request = InjectRequest("cy@alpha.example", ("bob@b.example",), 1000, user="ann")
    with pytest.raises(NotAllowed, match=r"sends as ann@alpha\.example only"):
        prepared(tmp_path, b"", request)


def test_further_addresses_of_a_user(tmp_path):
    """What a user may send as besides its own is asked of who knows."""
    request = replace(
        ANN,
        sender="sales@shop.example",
        may_send_as=lambda mailbox: str(mailbox) == "sales@shop.example",
    )
    found = prepared(tmp_path, b"From: sales@shop.example\n\n", request)

    assert found.envelope.sender == "sales@shop.example"
    with pytest.raises(NotAllowed):
        prepared(tmp_path, b"From: ann@alpha.example\n\n", request)


def test_from_of_cron(tmp_path):
    """A From without a domain is nobody's elsewhere: it gives way, its name stays."""
    request = replace(ANN, logins=(("annie", "ann"),), sender="annie")
    message = b"From: root (Cron Daemon)\nTo: annie\nSubject: Cron <x> y\n\nout\n"
    found = content(tmp_path, message, request)

    assert b"From: Cron Daemon <ann@alpha.example>\r\nTo: annie\r\n" in found
    assert found.count(b"From:") == 1


def test_null_sender(tmp_path):
    """A reply by a machine has no reverse-path, and a From all the same."""
    found = prepared(
        tmp_path, b"Subject: away\n\n", replace(ANN, sender="", name="Ann")
    )

    assert found.envelope.sender == ""
    assert b"From: Ann <ann@alpha.example>\r\n" in b"".join(found.body.chunks())


def test_recipients_of_the_message(tmp_path):
    """To, Cc and Bcc are recipients when asked for; Bcc goes."""
    request = replace(ANN, take_recipients=True, logins=(("charles", "cy"),))
    message = b"To: Bob <bob@b.example>, charles\nCC: list: x@c.example, y@d.example;\n"
    message += b"Bcc: z@e.example\n\nx"
    found = prepared(tmp_path, message, request)

    assert found.envelope.recipients == (
        *("bob@b.example", "cy@alpha.example", "x@c.example"),
        *("y@d.example", "z@e.example"),
    )
    assert b"z@e" not in b"".join(found.body.chunks())


def test_recipients_of_a_message_sent_again(tmp_path):
    """Resent- fields take the place of the others (RFC 5322 section 3.6.6)."""
    request = replace(ANN, take_recipients=True, recipients=())
    message = b"To: bob@b.example\nResent-To: x@c.example\nResent-Bcc: y@d.example\n\n"
    found = prepared(tmp_path, message, request)

    assert found.envelope.recipients == ("x@c.example", "y@d.example")


@pytest.mark.parametrize(
    "message", [b"", b"To: Bob Builder\n\n", b"To: bob@b.example, <c\n\n", b"To: ;\n\n"]
)
def test_message_without_recipients(tmp_path, message):
    """What names nobody, or nobody knows whom, is not sent."""
    with pytest.raises(BadInput, match=r"recipient|To:"):
        prepared(tmp_path, message, replace(ANN, take_recipients=True, recipients=()))


def test_message_behind_something(tmp_path):
    """What stands in front of it in the file is none of it."""
    found = content(tmp_path, b"not of it\nSubject: x\n\ny", replace(ANN, offset=10))

    assert b"not of it" not in found
    assert found.endswith(b"Subject: x\r\n\r\ny")
