import contextlib
import email.headerregistry
import email.policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.message.addresses import Address, NoAddressList, parse_addresses


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", []),
        (b" , ,", []),
        (b"ann@a.example", [("ann@a.example", "")]),
        (
            b" ann@a.example,\r\n\tbob@b.example\r\n",
            [("ann@a.example", ""), ("bob@b.example", "")],
        ),
        (b"Ann Archer <ann@a.example>", [("ann@a.example", "Ann Archer")]),
        (b'"Archer, Ann" <ann@a.example>', [("ann@a.example", "Archer, Ann")]),
        (b'"a\\"b" <ann@a.example>', [("ann@a.example", 'a"b')]),
        (b"J. R. User <u@a.example>", [("u@a.example", "J. R. User")]),
        (b"root (Cron Daemon)", [("root", "Cron Daemon")]),
        (b"(one (two) three) u@a.example (four)", [("u@a.example", "four")]),
        (b"u (x) @ (y) a . example", [("u@a.example", "y")]),
        (b'"a b"@a.example', [('"a b"@a.example', "")]),
        (b"u@[192.0.2.1]", [("u@[192.0.2.1]", "")]),
        (b"<@x.example,@y.example:u@a.example>", [("u@a.example", "")]),
        (b"<>", [("", "")]),
        (
            b"all: a@a.example, B <b@b.example>;, c@c.example",
            [("a@a.example", ""), ("b@b.example", "B"), ("c@c.example", "")],
        ),
        (b"undisclosed-recipients:;", []),
        ("Jörg <jörg@grü.example>".encode(), [("jörg@grü.example", "Jörg")]),
    ],
)
def test_lists(value, expected):
    """Every form of RFC 5322 section 3.4 and 4.4."""
    assert [Address(*each) for each in expected] == list(parse_addresses(value))


@pytest.mark.parametrize(
    "value",
    [
        b"Ann Archer",
        b"Ann ann@a.example",
        b"ann@a.example bob@b.example",
        b"ann@a.example <bob@b.example>",
        b"<ann@a.example> bob@b.example",
        b"<ann@a.example><bob@b.example>",
        b"<ann@a.example",
        b"ann@a.example>",
        b"ann@@a.example",
        b"ann@a.example@b.example",
        b"@a.example",
        b"ann@",
        b"(ann@a.example",
        b"ann)",
        b'"ann@a.example',
        b"a: b: c@c.example;;",
        b"c@c.example;",
        b"a: c@c.example",
        b": c@c.example;",
        b"ann@a.example\0",
        b"\xff@a.example",
        b"ann@a\\.example",
        b"(" * 60 + b")" * 60 + b"u@a.example",
        b"u@[1][2]",
        b"<<u@a.example>>",
    ],
)
def test_what_is_no_list(value):
    """What others may read as somebody else is nobody."""
    with pytest.raises(NoAddressList):
        parse_addresses(value)


@given(st.binary(max_size=80))
def test_any_bytes(value):
    """Whatever comes is read or refused, in one way."""
    found: tuple[Address, ...] = ()
    with contextlib.suppress(NoAddressList):
        found = parse_addresses(value)
    for address in found:
        assert address.text.count("@") <= 1 or '"' in address.text
        assert "\n" not in address.name


ATOM = st.from_regex(r"[a-z0-9!#$%&'*+/=?^_`{|}~-]{1,8}", fullmatch=True)


@given(
    st.lists(
        st.tuples(
            st.lists(ATOM, max_size=2),
            ATOM,
            st.from_regex(r"[a-z]{1,5}\.example", fullmatch=True),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_same_as_the_standard_library(members):
    """On what is well formed, another parser finds the same."""
    text = ", ".join(
        f"{' '.join(name)} <{local}@{domain}>" for name, local, domain in members
    )
    header = email.policy.default.header_factory("To", text)
    assert isinstance(header, email.headerregistry.AddressHeader)

    assert [a.addr_spec for a in header.addresses] == [
        a.text for a in parse_addresses(text.encode())
    ]
