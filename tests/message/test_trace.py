import email
import email.policy
import email.utils
import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.message.trace import Arrival, date, received, received_locally

NOW = 1_800_000_000.0
PLAIN = Arrival(
    by="alpha.example",
    queue_id="0123456789abcdefghjk",
    at=NOW,
    helo="mx1.north.example",
    address=ipaddress.ip_address("10.77.0.21"),
    reverse_name="mx1.north.example",
    extended=True,
    smtputf8=False,
    recipient="ann@alpha.example",
)


def changed(**facts):
    return Arrival(
        **({name: getattr(PLAIN, name) for name in Arrival.__slots__} | facts)
    )


def unfolded(field: bytes) -> str:
    return re.sub(r"\r\n(?=[ \t])", "", field.decode()).replace("\t", " ")


def test_field_in_full():
    """Client, host, id, recipient and time, folded below 78 characters."""
    expected = (
        b"Received: from mx1.north.example (mx1.north.example [10.77.0.21])\r\n"
        b"\tby alpha.example with ESMTP id 0123456789abcdefghjk"
        b" for <ann@alpha.example>;\r\n"
        b"\tFri, 15 Jan 2027 08:00:00 +0000\r\n"
    )

    assert expected == received(PLAIN)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"reverse_name": None}, "from mx1.north.example ([10.77.0.21]) by"),
        (
            {"address": ipaddress.ip_address("fd77::11"), "reverse_name": None},
            "from mx1.north.example ([IPv6:fd77::11]) by",
        ),
        ({"address": None}, "from mx1.north.example by"),
        ({"helo": "[10.77.0.21]"}, "from [10.77.0.21] (mx1.north.example [10."),
        ({"extended": False}, "by alpha.example with SMTP id"),
        ({"smtputf8": True}, "by alpha.example with UTF8SMTP id"),
        (
            {"tls": "TLSv1.3, TLS_AES_256_GCM_SHA384"},
            "with ESMTPS (TLSv1.3, TLS_AES_256_GCM_SHA384) id 0123",
        ),
        ({"authenticated": True}, "with ESMTPA id"),
        ({"tls": "TLSv1.2, X", "authenticated": True}, "with ESMTPSA (TLSv1.2, X) id"),
        ({"tls": "x", "authenticated": True, "smtputf8": True}, "with UTF8SMTPSA (x)"),
        ({"authenticated": True, "user": "ann@a.example"}, "ESMTPA (ann@a.example)"),
        ({"authenticated": True, "user": "a) (b"}, "with ESMTPA (a? ?b) id"),
        ({"hide_client": True}, "Received: by alpha.example with ESMTP id"),
        ({"recipient": ""}, "id 0123456789abcdefghjk; Fri, 15"),
        (
            {"smtputf8": True, "recipient": "grüße@alpha.example"},
            "for <grüße@alpha.example>;",
        ),
        ({"recipient": '"a b)("@alpha.example'}, 'for <"a b)("@alpha.example>;'),
    ],
)
def test_clauses(facts, words):
    """What is known is said, and nothing else (RFC 5321 section 4.4)."""
    assert words in unfolded(received(changed(**facts)))


def test_local_message():
    """A message of a local command names who ran it, and no client."""
    expected = (
        b"Received: by alpha.example (local, uid 1000)"
        b" with local id 0123456789abcdefghjk;\r\n"
        b"\tFri, 15 Jan 2027 08:00:00 +0000\r\n"
    )

    found = received_locally("alpha.example", "0123456789abcdefghjk", NOW, 1000)

    assert unfolded(expected) == unfolded(found)
    assert max(map(len, found.split(b"\r\n"))) <= 78


@pytest.mark.parametrize(
    "helo",
    [
        "x\r\nBcc: eve@e.example",
        "x\nX: y",
        "x\r\n\r\nbody",
        "x) by evil.example (y",
        "x; Mon, 1 Jan 2001 00:00:00 +0000",
        'x" <y> for <z>',
        "",
    ],
)
def test_name_of_the_client_adds_nothing(helo):
    """No name makes a second field, a second clause or a second date."""
    field = received(changed(helo=helo))
    flat = unfolded(field)

    assert 1 == len(email.message_from_bytes(field + b"\r\n").items())
    assert 1 == flat.count(" by ") == flat.count(";") == flat.count(" for ")
    assert "evil.example" not in flat.partition(" by ")[2]


TEXT = st.text(max_size=400)
DOMAIN = st.from_regex(r"[a-z0-9]{1,63}(\.[a-z0-9]{1,63}){0,3}", fullmatch=True)
ADDRESS = st.none() | st.ip_addresses()


@given(
    st.builds(
        Arrival,
        by=DOMAIN,
        queue_id=st.just("0123456789abcdefghjk"),
        at=st.floats(0, 4e9),
        helo=TEXT,
        address=ADDRESS,
        reverse_name=st.none() | TEXT,
        extended=st.booleans(),
        smtputf8=st.booleans(),
        recipient=TEXT,
    )
)
def test_whatever_was_said_it_is_one_field(arrival):
    """One field, ended by CRLF, no line over 998, no bare newline, all continued."""
    field = received(arrival)
    lines = field.split(b"\r\n")

    assert b"" == lines[-1]
    assert lines[0].startswith(b"Received: from ")
    assert all(line.startswith(b"\t") for line in lines[1:-1])
    assert all(line.strip() for line in lines[:-1])
    assert max(map(len, lines)) <= 998
    assert not re.search(rb"[\r\n\0]", b"".join(lines))
    assert arrival.smtputf8 or field.isascii()
    field.decode()


@given(
    st.builds(
        Arrival,
        by=DOMAIN,
        queue_id=st.just("0123456789abcdefghjk"),
        at=st.floats(0, 4e9),
        helo=DOMAIN,
        address=ADDRESS,
        reverse_name=st.none() | DOMAIN,
        extended=st.booleans(),
        smtputf8=st.just(False),
        recipient=st.just("") | st.emails().filter(lambda text: len(text) < 254),
    )
)
def test_it_reads_back(arrival):
    """Each fact is found again where it was put."""
    match = re.fullmatch(
        r"Received: from (\S+)(?: \((?:(\S+) )?\[(?:IPv6:)?([^\]]+)\]\))? by (\S+)"
        r" with (E?SMTP) id (\S+?)(?: for <(.+)>)?; (.+)\r\n",
        unfolded(received(arrival)),
    )
    assert match is not None
    helo, name, address, by, protocol, queue_id, recipient, at = match.groups()

    assert (arrival.helo, arrival.by) == (helo, by)
    assert (arrival.address and str(arrival.address)) == address
    assert name == (arrival.reverse_name if arrival.address else None)
    assert ("ESMTP" if arrival.extended else "SMTP") == protocol
    assert arrival.queue_id == queue_id
    assert (arrival.recipient or None) == recipient
    assert int(arrival.at) == email.utils.parsedate_to_datetime(at).timestamp()


@given(st.builds(changed, helo=DOMAIN, reverse_name=st.none() | DOMAIN, by=DOMAIN))
def test_lines_are_short_where_words_are(arrival):
    """A line over 78 has one word, with what stands before it in the first line."""
    for line in received(arrival).decode().split("\r\n"):
        words = line.removeprefix("Received: from ").split()
        assert len(line) <= 78 or len(words) == 1


@given(st.floats(0, 4e9))
def test_date(seconds):
    """Dates are those of RFC 5322, in UTC."""
    text = date(seconds)

    assert text.endswith(" +0000")
    assert int(seconds) == email.utils.parsedate_to_datetime(text).timestamp()
