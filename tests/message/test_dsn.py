import email
import email.policy
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vnsmail.message.dsn import MAX_HEADERS, Action, header_block, report
from vnsmail.model import DsnRequest, Envelope, Notify, Outcome, Owner, Verdict

NOW = 1_800_000_000.0
HEADERS = (
    b"Received: from client.example ([192.0.2.1]) by alpha.example;\r\n"
    b"\tFri, 15 Jan 2027 08:00:00 +0000\r\n"
    b"From: Ann <ann@alpha.example>\r\n"
    b"Subject: lunch\r\n"
    b"Message-ID: <lunch.1@alpha.example>\r\n"
)
NO_USER = Outcome(
    Verdict.FAILED, 550, "5.1.1", "no such user", "mx.b.example [192.0.2.9]"
)
NO_DOMAIN = Outcome(
    Verdict.FAILED, 550, "5.1.2", "cannot resolve c.example MX: the name does not exist"
)

EXPECTED = """\
Date: Fri, 15 Jan 2027 08:00:00 +0000
From: Mail Delivery <postmaster@alpha.example>
To: <ann@alpha.example>
Subject: Your message could not be delivered
Message-ID: <0notice@alpha.example>
In-Reply-To: <lunch.1@alpha.example>
References: <lunch.1@alpha.example>
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
	boundary="=_0notice"

--=_0notice
Content-Type: text/plain; charset=utf-8

This is the mail system at alpha.example.

Your message of Fri, 15 Jan 2027 07:00:00 +0000
could not be delivered to 2 recipients. It will not be tried again.

<bob@b.example>
  mx.b.example [192.0.2.9] answered:
    550 5.1.1 no such user

<cy@c.example>
    550 5.1.2 cannot resolve c.example MX: the name does not exist

The header of your message is attached.

--=_0notice
Content-Type: message/delivery-status

Reporting-MTA: dns; alpha.example
Arrival-Date: Fri, 15 Jan 2027 07:00:00 +0000

Final-Recipient: rfc822; bob@b.example
Action: failed
Status: 5.1.1
Remote-MTA: dns; mx.b.example
Diagnostic-Code: smtp; 550 5.1.1 no such user
Last-Attempt-Date: Fri, 15 Jan 2027 08:00:00 +0000

Final-Recipient: rfc822; cy@c.example
Action: failed
Status: 5.1.2
Diagnostic-Code: x-vnsmail; 550 5.1.2 cannot resolve c.example MX: the name
	does not exist
Last-Attempt-Date: Fri, 15 Jan 2027 08:00:00 +0000

--=_0notice
Content-Type: text/rfc822-headers

Received: from client.example ([192.0.2.1]) by alpha.example;
	Fri, 15 Jan 2027 08:00:00 +0000
From: Ann <ann@alpha.example>
Subject: lunch
Message-ID: <lunch.1@alpha.example>

--=_0notice--
"""


def original(sender="ann@alpha.example", **facts):
    return Envelope(
        id="0original",
        owner=Owner("alpha.example"),
        sender=sender,
        recipients=("bob@b.example",),
        received_at=NOW - 3600,
        **facts,
    )


def notice(
    told,
    *,
    headers=HEADERS,
    sender="ann@alpha.example",
    action=Action.FAILED,
    full=False,
    **asked,
):
    return report(
        notice_id="0notice",
        host="alpha.example",
        now=NOW,
        original=original(sender, **asked),
        returned=headers,
        told=told,
        action=action,
        full=full,
        until=NOW + 86400,
    )


def parsed(content):
    return email.message_from_bytes(content, policy=email.policy.default)


def test_whole_notice():
    """A person and a program each find who was not reached, and why."""
    made = notice({"bob@b.example": NO_USER, "cy@c.example": NO_DOMAIN})

    assert EXPECTED.replace("\n", "\r\n") == made.content.decode()
    assert not made.smtputf8


def test_structure():
    """It is a multipart/report with the three parts of RFC 6522 section 3."""
    message = parsed(notice({"bob@b.example": NO_USER}).content)

    assert "multipart/report" == message.get_content_type()
    assert "delivery-status" == message["Content-Type"].params["report-type"]
    assert ["text/plain", "message/delivery-status", "text/rfc822-headers"] == [
        part.get_content_type() for part in message.iter_parts()
    ]
    assert [] == message.defects
    assert datetime.fromtimestamp(NOW, UTC) == message["Date"].datetime


def test_status_fields():
    """The fields of the status part are those of RFC 3464."""
    message = parsed(notice({"bob@b.example": NO_USER}).content)
    about_message, about_recipient = message.get_payload(1).get_payload()

    assert "dns; alpha.example" == about_message["Reporting-MTA"]
    assert "rfc822; bob@b.example" == about_recipient["Final-Recipient"]
    assert "failed" == about_recipient["Action"]
    assert "5.1.1" == about_recipient["Status"]


def test_international_address():
    """An address that needs SMTPUTF8 makes a notice in the forms of RFC 6533."""
    made = notice({"bücher@b.example": NO_USER})
    message = parsed(made.content)

    assert made.smtputf8
    assert "global-delivery-status" == message["Content-Type"].params["report-type"]
    assert [
        "text/plain",
        "message/global-delivery-status",
        "message/global-headers",
    ] == [part.get_content_type() for part in message.iter_parts()]
    assert "Final-Recipient: utf-8; bücher@b.example\r\n".encode() in made.content


def test_international_sender():
    """So does a sender's address."""
    assert notice({"bob@b.example": NO_USER}, sender="jürg@alpha.example").smtputf8


@pytest.mark.parametrize(
    "headers",
    [
        "Subject: Mittagessen für dich\r\n".encode(),
        b"Subject: " + b"x" * 2000 + b"\r\n",
        b"Subject: a\0b\r\n",
        b"Subject: a\rb\r\n",
        b"Subject: no line end",
    ],
    ids=["8-bit", "long line", "NUL", "bare CR", "cut off"],
)
def test_headers_that_do_not_fit(headers):
    """A header block that is not 7-bit text is encoded, and comes out as it was."""
    made = notice({"bob@b.example": NO_USER}, headers=headers)
    part = parsed(made.content).get_payload(2)

    assert made.content.isascii()
    assert b"\0" not in made.content
    assert max(map(len, made.content.split(b"\r\n"))) <= 998
    assert "quoted-printable" == part["Content-Transfer-Encoding"]
    assert headers.rstrip(b"\r\n") == part.get_payload(decode=True).rstrip(b"\r\n")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (b"Message-ID: <a@b>\r\n", "<a@b>"),
        (b"Subject: x\r\nmessage-id:\r\n <a@b> \r\n", "<a@b>"),
        (b"Subject: x\r\n", None),
        (b"Message-ID: <a@b> <c@d>\r\n", None),
        (b"Message-ID: <a b@c>\r\n", None),
        (b"X: y\r\n Message-ID: <a@b>\r\n", None),
    ],
)
def test_reply_to_what(headers, expected):
    """The notice names the message it is about, if that has one clear Message-ID."""
    message = parsed(notice({"bob@b.example": NO_USER}, headers=headers).content)

    assert expected == message["In-Reply-To"]
    assert expected == message["References"]


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (Action.DELAYED, b"could not be delivered to one recipient yet"),
        (Action.DELIVERED, b"was delivered to one recipient."),
        (Action.RELAYED, b"does not say whether it has been delivered"),
    ],
)
def test_other_news(action, words):
    """Delay and success have the same form, and words of their own."""
    made = notice({"bob@b.example": NO_USER}, action=action)
    _, about_recipient = parsed(made.content).get_payload(1).get_payload()

    assert words in b" ".join(made.content.split())
    assert action.value == about_recipient["Action"]
    until = about_recipient["Will-Retry-Until"]
    assert ("Sat, 16 Jan 2027 08:00:00 +0000" if action == "delayed" else None) == until


def test_what_the_sender_called_it():
    """Envelope id and original recipient come back as they were, not as xtext."""
    made = notice(
        {"bob@b.example": NO_USER},
        envid="QQ+2B314",
        requests=(
            DsnRequest(
                "bob@b.example", (Notify.FAILURE,), "rfc822;Bob+2BX@old.example"
            ),
        ),
    )
    about_message, about_recipient = parsed(made.content).get_payload(1).get_payload()

    assert "QQ+314" == about_message["Original-Envelope-Id"]
    assert "rfc822; Bob+X@old.example" == about_recipient["Original-Recipient"]


@pytest.mark.parametrize("text", [b"hello\r\n", "für dich\r\n".encode()])
def test_the_whole_message_comes_back(text):
    """With RET=FULL, the message is a part of its own, byte for byte."""
    message = HEADERS + b"\r\n" + text
    made = notice({"bob@b.example": NO_USER}, headers=message, full=True)
    part = parsed(made.content).get_payload(2)

    assert message in made.content
    assert "message/rfc822" == part.get_content_type()
    assert made.eight_bit == (not text.isascii())


@example("", ";\x80")
@example("", "rfc822;\x80")
@given(st.text(max_size=40), st.text(max_size=40))
def test_what_was_asked_is_never_structure(envid, orcpt):
    """Whatever a client gave as ENVID and ORCPT, there are the same fields."""
    asked = {
        "envid": envid,
        "requests": (DsnRequest("bob@b.example", (), orcpt),),
    }
    made = notice({"bob@b.example": NO_USER}, **asked)
    # The library knows the blocks of the older type only; the form is the same.
    older = made.content.replace(b"message/global-delivery", b"message/delivery")
    message = parsed(older)

    assert b"\n" not in made.content.replace(b"\r\n", b"")
    assert 3 == len(list(message.iter_parts()))
    assert {*message.get_payload(1).get_payload()[1].keys()} <= {
        "Original-Recipient",
        "Final-Recipient",
        "Action",
        "Status",
        "Remote-MTA",
        "Diagnostic-Code",
        "Last-Attempt-Date",
    }


@given(
    text=st.text(max_size=3000),
    remote=st.text(max_size=50).filter(str.strip),
    headers=st.binary(max_size=300),
)
def test_quotes_are_never_structure(text, remote, headers):
    """Whatever a remote said, the notice has its three parts and no other fields."""
    outcome = Outcome(Verdict.FAILED, 554, "5.0.0", text, remote)
    made = notice({"bob@b.example": outcome}, headers=headers)
    message = parsed(made.content)
    plain = notice({"bob@b.example": NO_USER}, headers=headers).content

    assert made.content.isascii()
    assert b"\r\n".join(made.content.split(b"\r\n")) == made.content
    assert b"\n" not in made.content.replace(b"\r\n", b"")
    assert b"\r" not in made.content.replace(b"\r\n", b"")
    assert 3 == len(list(message.iter_parts()))
    assert parsed(plain).keys() == message.keys()
    assert {
        "Final-Recipient",
        "Action",
        "Status",
        "Remote-MTA",
        "Diagnostic-Code",
        "Last-Attempt-Date",
    } == set(message.get_payload(1).get_payload()[1].keys())


@given(
    block=st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b""))).map(
        lambda lines: b"".join(b"H: " + line + b"\r\n" for line in lines)
    ),
    body=st.binary(max_size=50),
    size=st.integers(min_value=1, max_value=7),
)
def test_header_block_in_any_chunks(block, body, size):
    """The header block is found wherever the chunks are cut."""
    data = block + b"\r\n" + body
    chunks = [data[at : at + size] for at in range(0, len(data), size)]

    assert block == header_block(chunks)


def test_header_block_reads_no_further():
    """A large body is not read for its header block."""

    def chunks():
        yield b"A: b\r\n\r\n"
        raise AssertionError

    assert b"A: b\r\n" == header_block(chunks())


def test_header_block_without_end():
    """An endless header block is cut after a line."""
    line = b"X: " + b"y" * 100 + b"\r\n"
    found = header_block([line] * 2000)

    assert MAX_HEADERS - len(line) < len(found) <= MAX_HEADERS
    assert b"" == found.replace(line, b"")
    assert b"" == header_block([b"z" * 100])
