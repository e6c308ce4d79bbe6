import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.capture.received import parse, topmost

FOUR, SIX = "10.77.0.11", "fd77::11"


@pytest.mark.parametrize(
    ("text", "remote", "names", "addresses"),
    [
        (
            (
                "from alpha.example (alpha.example [10.77.0.11]) by mx1.north.example with "
                "ESMTP id 1; Thu, 1 Jan 2026 00:00:00 +0000"
            ),
            "mx1.north.example",
            {"alpha.example"},
            {FOUR},
        ),
        (
            "from alpha.example ([IPv6:fd77::11]) by mx1.north.example; today",
            "mx1.north.example",
            {"alpha.example"},
            {SIX},
        ),
        (
            (
                "from alpha.example (unknown [10.77.0.11]) (using TLSv1.3 by us (really)) "
                "by mx (Postfix) with ESMTPS id 4"
            ),
            "mx",
            {"alpha.example", "unknown"},
            {FOUR},
        ),
        (
            "from ALPHA.example (Rev.Example [10.77.0.11] (may be forged)) by mx",
            "mx",
            {"alpha.example", "rev.example"},
            {FOUR},
        ),
        (
            "from [10.77.0.11] (helo=alpha.example) by mx with esmtp (Exim 4.96)",
            "mx",
            {"alpha.example"},
            {FOUR},
        ),
        (
            "from rev.example ([fd77::11] helo=alpha.example) by mx with esmtp",
            "mx",
            {"alpha.example", "rev.example"},
            {SIX},
        ),
        (
            "from alpha.example ([10.77.0.11]:40000) by mx",
            "mx",
            {"alpha.example"},
            {FOUR},
        ),
        (
            "from rev.example (HELO alpha.example) (10.77.0.11) by mx with SMTP",
            "mx",
            {"alpha.example", "rev.example"},
            {FOUR},
        ),
        (
            "from [192.0.2.1] (alpha.example [10.77.0.11]) by mx",
            "mx",
            {"alpha.example"},
            {FOUR},
        ),
        (
            "by mx1.north.example (local, uid 0); today",
            "mx1.north.example",
            set(),
            set(),
        ),
        ("from alpha.example", "?", {"alpha.example"}, set()),
        ("from alpha.example ([10.77.0.999]) by mx", "mx", {"alpha.example"}, set()),
        ("nonsense", "?", set(), set()),
        ("", "?", set(), set()),
    ],
)
def test_forms(text, remote, names, addresses):
    """The name, the address and the remote are found in what mail systems write."""
    found = parse(text, remote="?")

    assert remote == found.remote
    assert names == found.names
    assert {ipaddress.ip_address(address) for address in addresses} == found.addresses


def test_topmost():
    """The first field is the one that the last server added; its lines are joined."""
    header = (
        b"Return-Path: <ann@alpha.example>\r\n"
        b"X-Received: not this\r\n"
        b"received: from alpha.example (alpha.example\r\n"
        b"\t[10.77.0.11])\r\n by mx1.north.example; today\r\n"
        b"Received: from earlier.example ([192.0.2.1]) by alpha.example\r\n"
        b"Subject: hello\r\n"
    )

    assert (
        "from alpha.example (alpha.example [10.77.0.11]) by mx1.north.example; today"
        == topmost(header)
    )


@pytest.mark.parametrize(
    "header", [b"", b"Subject: x\r\n", b"Subject: a\n Received: b"]
)
def test_no_received_field(header):
    assert topmost(header) is None


def test_what_does_not_print():
    """A header from anywhere must not write on the terminal."""
    assert "from a?[31m \N{REPLACEMENT CHARACTER} by b" == topmost(
        b"Received: from a\x1b[31m \xff by b\n"
    )


PARTS = ["from ", " by ", "(", ")", "[", "]", "helo=", "HELO ", "a.example", "10.0.0.1"]
PARTS += ["IPv6:", "fd77::1", ";", " ", "\n ", "Received:", "\x1b"]
TEXT = st.lists(st.sampled_from(PARTS)).map("".join)


@given(st.one_of(TEXT, st.text()))
def test_random_text_is_no_error(text):
    """Whatever a remote wrote is read as far as it is understood."""
    found = parse(text)
    value = topmost(b"Received: " + text.encode())

    assert found.text == text
    assert value is None or value.isprintable()
