import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.inbound import authorship
from vnsmail.message.headers import parse_header
from vnsmail.smtp.address import Mailbox

ANN = Mailbox("ann", "alpha.example")


def refusal(fields, sender="ann@alpha.example"):
    if isinstance(fields, str):
        fields = fields.encode()
    header = parse_header(fields + b"\r\n\r\nhello\r\n")
    reply = authorship.refusal(header, sender, lambda mailbox: mailbox == ANN)
    return reply and (reply.code, reply.enhanced, reply.text)


@pytest.mark.parametrize(
    "fields",
    [
        "Subject: no From",
        "From: ann@alpha.example",
        "From: Ann <ann@Alpha.Example>",
        "FROM : (a) ann@alpha.example (b)",
        "From: ann@alpha.example,\r\n Ann <ann@alpha.example>",
        'From: "eve@x.example" <ann@alpha.example>',
        "From: =?utf-8?q?eve=40x.example?= <ann@alpha.example>",
        "From: <ann@alpha.example>\r\nSender: ann@alpha.example",
        "Resent-From: eve@x.example\r\nFrom: ann@alpha.example",
    ],
)
def test_own(fields):
    """Whatever the name says, the addresses are the user's."""
    assert refusal(fields) is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("From: eve@x.example", "From is not your own address"),
        ("From: ann@alpha.example, eve@x.example", "From is not"),
        ("From: friends: eve@x.example;", "From is not"),
        ("From: ann", "From is not"),
        ("From: <>", "From is not"),
        ("From: ", "From names nobody"),
        ("From: friends:;", "From names nobody"),
        ("From: ann@alpha.example\r\nSender: (ann@alpha.example)", "Sender names"),
        ("From: ann@alpha.example <eve@x.example>", "From is no"),
        ("From: <ann@alpha.example> <eve@x.example>", "From is no address list"),
        ("From: ann@alpha.example\r\nFrom: eve@x.example", "several From fields"),
        ("From: ann@alpha.example\r\n ,eve@x.example", "From is not"),
        ("From: ann@alpha.example\r\nSender: eve@x.example", "Sender is not"),
        (
            "Sender: ann@alpha.example\r\nSender: ann@alpha.example",
            "several Sender fields",
        ),
        (b"From: \xff <ann@alpha.example>", "From is no address list"),
        ("From: (ann@alpha.example", "From is no address list"),
    ],
)
def test_of_others(fields, words):
    """Anybody else among them, or what can be read in two ways, is refused."""
    found = refusal(fields)
    assert found

    assert (550, "5.7.1") == found[:2]
    assert words in found[2]


NOTICE = (
    "From: ann@alpha.example\r\n"
    "Content-Type: multipart/report;\r\n report-type=disposition-notification; boundary=x"
)


def test_null_sender():
    """It is for notices that a reader's program sends (RFC 8098), from the user all the same."""
    assert refusal(NOTICE, "") is None
    assert (550, "5.7.1") == refusal("From: ann@alpha.example", "")[:2]
    assert (550, "5.7.1") == refusal(NOTICE.replace("ann", "eve"), "")[:2]


@given(st.binary(max_size=80))
def test_anything(value):
    """Whatever a From has, it is answered, and by chance nothing is the user's."""
    value = value.replace(b"\r", b" ").replace(b"\n", b" ")

    assert refusal(b"From: " + value)
