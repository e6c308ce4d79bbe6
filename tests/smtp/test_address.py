import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vnsmail.smtp.address import (
    Mailbox,
    needs_smtputf8,
    parse_forward_path,
    parse_mailbox,
    parse_reverse_path,
    valid_helo,
)
from vnsmail.smtp.errors import SmtpSyntaxError

LABEL_63 = "a" * 63
DOMAIN_253 = ".".join([LABEL_63] * 3 + ["a" * 61])


@pytest.mark.parametrize(
    ("text", "local_part", "domain"),
    [
        ("a@b", "a", "b"),
        ("Anna.Maria@B.Example", "Anna.Maria", "b.example"),
        ("!#$%&'*+-/=?^_`{|}~@b.example", "!#$%&'*+-/=?^_`{|}~", "b.example"),
        ('"anna"@b.example', "anna", "b.example"),
        ('"a b"@b.example', "a b", "b.example"),
        (r'"a\"b\\c\d"@b.example', r'a"b\cd', "b.example"),
        ('"a@b>,"@b.example', "a@b>,", "b.example"),
        ('""@b.example', "", "b.example"),
        ("a@1-2.3b", "a", "1-2.3b"),
        ("a@[192.0.2.1]", "a", "[192.0.2.1]"),
        ("a@[ipv6:2001:DB8:0::1]", "a", "[IPv6:2001:db8::1]"),
        ("a@[IPv6:::ffff:192.0.2.1]", "a", "[IPv6:::ffff:c000:201]"),
        ("a@" + LABEL_63 + ".b", "a", LABEL_63 + ".b"),
        ("x" * 100 + "@b.example", "x" * 100, "b.example"),
        ("jürg@Bücher.example", "jürg", "bücher.example"),
        ("дима@почта.example", "дима", "почта.example"),
        ('"ü b"@b.example', "ü b", "b.example"),
    ],
)
def test_mailboxes(text, local_part, domain):
    """Every form of RFC 5321 4.1.2 and RFC 6531 3.3 is read, into one spelling."""
    assert Mailbox(local_part, domain) == parse_mailbox(text, smtputf8=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "@",
        "a@",
        "@b",
        " a@b",
        "a@b ",
        "a @b",
        ".a@b",
        "a.@b",
        "a..b@c",
        "a@b@c",
        "a(b)@c",
        "a,b@c",
        "a<b@c",
        '"a@b',
        '"a"b@c',
        'a"b"@c',
        '"a"b"@c',
        '"a\\"@c',
        '"a\tb"@c',
        '"a\\\tb"@c',
        "a\x7f@b",
        '"a\x7f"@b',
        "a\x85b@c",
        "a\u2028b@c",
        "a\r\n@b",
        '"a\r\nb"@c',
        "a\x00@b",
        "a@b\n",
        "a@-b",
        "a@b-",
        "a@b_c",
        "a@b.",
        "a@.b",
        "a@b..c",
        "a@b c",
        "a@" + "a" * 64,
        "a@" + DOMAIN_253 + "a",
        "x" * 245 + "@b.example",
        "a@[192.0.2.1",
        "a@192.0.2.1]",
        "a@[192.0.2]",
        "a@[192.0.2.256]",
        "a@[192.0.2.01]",
        "a@[192.0.2.1] ",
        "a@[2001:db8::1]",
        "a@[IPv6:192.0.2.1]",
        "a@[IPv6:fe80::1%eth0]",
        "a@[IPv6:2001:db8::1",
        "a@[IPv6:]",
        "a@[]",
        "a@[x-tag:anything]",
        "a@bü cher",
        "a@ü\u3002b",
        "a@\uff41ü",
        "a@\u0301ü",
        "a@-ü",
        "a@ü-",
        "a@☃.example",
        "a@" + "ü" * 60,
        "a@" + ".".join(["ü" * 30] * 8),
        "\ud800@b",
        "a@\ud800",
    ],
)
def test_no_mailboxes(text):
    """What is not in the grammar is refused; nothing is repaired."""
    with pytest.raises(SmtpSyntaxError) as caught:
        parse_mailbox(text, smtputf8=True)

    assert (caught.value.reply.code, caught.value.reply.enhanced) == (501, "5.1.3")


@pytest.mark.parametrize("text", ["jürg@b.example", "a@bücher.example"])
def test_smtputf8_is_asked_for(text):
    """Without SMTPUTF8 an address beyond ASCII is refused (RFC 6531 3.5)."""
    with pytest.raises(SmtpSyntaxError) as caught:
        parse_mailbox(text)

    assert (caught.value.reply.code, caught.value.reply.enhanced) == (553, "5.6.7")
    assert needs_smtputf8(text)
    assert parse_mailbox(text, smtputf8=True).needs_smtputf8


def test_ascii_needs_no_smtputf8():
    """A-labels travel everywhere."""
    assert not needs_smtputf8("a@xn--bcher-kva.example")
    assert not parse_mailbox("a@xn--bcher-kva.example").needs_smtputf8


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        ("a.b@c", "a.b@c"),
        ('"a.b"@c', "a.b@c"),
        ('"a..b"@c', '"a..b"@c'),
        ('"a b"@c', '"a b"@c'),
        (r'"\a\"\\"@c', r'"a\"\\"@c'),
        ('""@c', '""@c'),
    ],
)
def test_quotes_where_needed(text, wire):
    """A mailbox is written with quotes only if it needs them."""
    assert wire == str(parse_mailbox(text))


def test_reverse_path():
    """A sender is a path in angle brackets, or the null reverse-path."""
    assert parse_reverse_path("<>") is None
    assert Mailbox("a", "b") == parse_reverse_path("<a@b>")
    assert Mailbox("ü", "b") == parse_reverse_path("<ü@b>", smtputf8=True)


@pytest.mark.parametrize(
    "text", ["", "a@b", "<a@b", "a@b>", "< >", "<<a@b>>", "<a@b>>", "<postmaster>"]
)
def test_bad_reverse_path(text):
    """A bad sender is told with 5.1.7."""
    with pytest.raises(SmtpSyntaxError) as caught:
        parse_reverse_path(text)

    assert (caught.value.reply.code, caught.value.reply.enhanced) == (501, "5.1.7")


def test_forward_path():
    """A recipient is a path; just postmaster is one too (RFC 5321 4.5.1)."""
    assert Mailbox("a", "b") == parse_forward_path("<a@b>")
    assert Mailbox("postmaster", "") == parse_forward_path("<PostMaster>")
    assert str(parse_forward_path("<postmaster>")) == "postmaster"


@pytest.mark.parametrize("text", ["<>", "<abuse>", "postmaster", "<a@b> ", ""])
def test_bad_forward_path(text):
    """A bad recipient is told with 5.1.3."""
    with pytest.raises(SmtpSyntaxError) as caught:
        parse_forward_path(text)

    assert (caught.value.reply.code, caught.value.reply.enhanced) == (501, "5.1.3")


@pytest.mark.parametrize("route", ["@x:", "@x,@y.example:", "@[192.0.2.1]:"])
def test_source_route_is_ignored(route):
    """RFC 5321 appendix C: a source route is taken, and not followed."""
    assert Mailbox("a", "b") == parse_forward_path(f"<{route}a@b>")


@pytest.mark.parametrize("route", ["@", "@x", "@:", "@x,:", "@x,y:", "@x_:", "@x,,@y:"])
def test_bad_source_route(route):
    """A source route has the grammar of one."""
    with pytest.raises(SmtpSyntaxError):
        parse_forward_path(f"<{route}a@b>")


@pytest.mark.parametrize(
    "text", ["a", "a.example", "LOCALHOST", "[192.0.2.1]", "[IPv6:::1]", DOMAIN_253]
)
def test_helo(text):
    """EHLO has a domain or an address literal (RFC 5321 4.1.1.1)."""
    assert valid_helo(text)


@pytest.mark.parametrize(
    "text",
    ["", " ", "a b", "a_b", "-a", "a.", "[a]", "[]", "[", "ü", "a\r\n", "a" * 254],
)
def test_no_helo(text):
    """And nothing else."""
    assert not valid_helo(text)


labels = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9-]{0,8}[A-Za-z0-9])?", fullmatch=True)
domains = st.lists(labels, min_size=1, max_size=4).map(".".join)
local_characters = st.characters(codec="utf-8", exclude_categories=["C", "Z"])
local_parts = st.text(
    st.one_of(st.sampled_from(string.printable[:95] + '"\\ @>'), local_characters),
    max_size=20,
)


@given(local_parts, domains)
def test_mailboxes_survive_the_wire(local_part, domain):
    """Every mailbox that can be is written so that the same is read."""
    mailbox = Mailbox(local_part, domain.lower())

    assert mailbox == parse_mailbox(str(mailbox), smtputf8=True)


@given(st.text(max_size=40) | st.text('ab@."\\<> [:]IPv6ü\t\r\n', max_size=20))
@example('"\\@"@a')
def test_what_is_read_has_one_spelling(text):
    """Whatever is read at all, is read again from how we write it."""
    try:
        mailbox = parse_mailbox(text, smtputf8=True)
    except SmtpSyntaxError:
        return
    wire = str(mailbox)

    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in wire)
    assert mailbox == parse_mailbox(wire, smtputf8=True)
    assert wire == str(parse_mailbox(wire, smtputf8=True))


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8))
def test_internationalized_domains_have_one_spelling(label):
    """A domain that is read is lower case, and is read again as itself."""
    try:
        mailbox = parse_mailbox(f"a@{label}.example", smtputf8=True)
    except SmtpSyntaxError:
        return

    assert mailbox.domain == mailbox.domain.lower()
    assert mailbox == parse_mailbox(str(mailbox), smtputf8=True)
