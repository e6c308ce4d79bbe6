import ipaddress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.delivery.helpers import (
    ALPHA,
    DUAL,
    MACHINE,
    Table,
    facts,
    no_such,
    null_mx,
    server_failure,
)
from vnsmail.delivery.route import MAX_EXCHANGERS, MAX_HOPS, Hop, RouteRules, route
from vnsmail.model import Family, Outcome, Verdict


async def hops(domain, who, table, shuffle=lambda _: None, rules=RouteRules()):  # noqa: B008  frozen
    """Return the hops as text, or the outcome."""
    found = await route(domain, who, table, shuffle, rules)
    return found if isinstance(found, Outcome) else [str(hop) for hop in found]


async def failure(domain, who, table):
    """Return status and words of a route that there is not."""
    found = await route(domain, who, table, lambda _: None, RouteRules())
    assert isinstance(found, Outcome)
    return found.verdict, found.reply_code, found.enhanced, found.text


async def test_by_preference():
    """The lowest preference is tried first (RFC 5321 section 5.1)."""
    table = Table(
        {"b.example": [(20, "two.example"), (10, "one.example")]},
        {"one.example": ["10.0.1.1"], "two.example": ["10.0.2.1", "10.0.2.2"]},
    )

    assert [
        "one.example [10.0.1.1]",
        "two.example [10.0.2.1]",
        "two.example [10.0.2.2]",
    ] == await hops("b.example", ALPHA, table)


async def test_equals_are_shuffled():
    """Chance decides among exchangers of one preference, and only among those."""
    table = Table(
        {"b.example": [(10, "a.example"), (10, "b.example"), (20, "c.example")]},
        {f"{x}.example": [f"10.0.0.{n}"] for n, x in enumerate("abc", 10)},
    )
    asked = []

    def backwards(equals):
        asked.append([each.name for each in equals])
        equals.reverse()

    found = await hops("b.example", ALPHA, table, backwards)

    assert [["a.example", "b.example"], ["c.example"]] == asked
    assert [
        "b.example [10.0.0.11]",
        "a.example [10.0.0.10]",
        "c.example [10.0.0.12]",
    ] == found


async def test_implicit_mx():
    """A domain without exchangers takes its mail itself."""
    table = Table({}, {"b.example": ["10.0.0.9"]})

    assert ["b.example [10.0.0.9]"] == await hops("b.example", ALPHA, table)


async def test_ipv6_before_ipv4():
    """Who has both families tries IPv6 first, exchanger by exchanger (RFC 6724)."""
    table = Table(
        {"b.example": [(10, "one.example"), (20, "two.example")]},
        {"one.example": ["10.0.1.1", "fd00:1::1"], "two.example": ["fd00:2::1"]},
    )

    assert [
        "one.example [fd00:1::1]",
        "one.example [10.0.1.1]",
        "two.example [fd00:2::1]",
    ] == await hops("b.example", DUAL, table)


@pytest.mark.parametrize(
    ("own", "expected"), [("10.0.0.1", "10.0.1.1"), ("fd00::1", "fd00:1::1")]
)
async def test_only_families_of_the_host(own, expected):
    """A host never leaves by a family that it has no address of, nor asks for it."""
    table = Table({}, {"b.example": ["10.0.1.1", "fd00:1::1"]})
    who = facts(own)

    assert [f"b.example [{expected}]"] == await hops("b.example", who, table)
    assert who.families == {family for _, family in table.asked}


async def test_no_family_in_common():
    """If the two sides share no family, the sender learns it today."""
    table = Table({}, {"b.example": ["fd00:1::1"]})
    found = await failure("b.example", ALPHA, table)

    text = "b.example is reached by IPv6 only, and alpha.example has only IPv4"
    assert (Verdict.FAILED, 550, "5.4.4", text) == found


async def test_no_address_at_all():
    """Exchangers without any address are an error (RFC 5321 section 5.1)."""
    table = Table({"b.example": [(1, "x.example"), (2, "y.example")]})
    found = await failure("b.example", ALPHA, table)

    text = "no mail host of b.example has an address: x.example, y.example"
    assert (Verdict.FAILED, 550, "5.4.4", text) == found


async def test_the_machine_uses_both():
    """What the machine can use, only the kernel knows."""
    table = Table({}, {"b.example": ["10.0.1.1", "fd00:1::1"]})

    assert ["b.example [fd00:1::1]", "b.example [10.0.1.1]"] == await hops(
        "b.example", MACHINE, table
    )


async def test_null_mx():
    """A domain that takes no mail says so for good (RFC 7505 section 4.1)."""
    table = Table({"b.example": null_mx("b.example")})

    expected = (Verdict.FAILED, 556, "5.1.10", "b.example takes no mail")
    assert expected == await failure("b.example", ALPHA, table)


async def test_no_such_domain():
    """A domain that does not exist fails at once."""
    error = no_such("b.example")

    expected = (Verdict.FAILED, 550, "5.1.2", str(error))
    assert expected == await failure("b.example", ALPHA, Table({"b.example": error}))


async def test_name_server_in_trouble():
    """While nobody can say, the message waits."""
    error = server_failure("b.example")

    expected = (Verdict.DEFERRED, 451, "4.4.3", str(error))
    assert expected == await failure("b.example", ALPHA, Table({"b.example": error}))


async def test_addresses_unknown_for_now():
    """While an exchanger's address cannot be asked for, the message waits."""
    error = server_failure("one.example", "A")
    table = Table(
        {"b.example": [(10, "one.example"), (20, "two.example")]},
        {"one.example": error, "two.example": no_such("two.example", "A")},
    )

    expected = (Verdict.DEFERRED, 451, "4.4.3", str(error))
    assert expected == await failure("b.example", ALPHA, table)


async def test_another_exchanger_in_place_of_one_unknown():
    """One exchanger's trouble keeps no mail from the next."""
    table = Table(
        {"b.example": [(10, "one.example"), (20, "two.example")]},
        {
            "one.example": server_failure("one.example", "A"),
            "two.example": ["10.0.2.1"],
        },
    )

    assert ["two.example [10.0.2.1]"] == await hops("b.example", ALPHA, table)


async def test_one_family_unknown():
    """Trouble with one family's answer leaves the other usable."""
    table = Table(
        {},
        {
            "b.example": {
                Family.IPV6: server_failure("b.example", "AAAA"),
                Family.IPV4: ["10.0.1.1"],
            }
        },
    )

    assert ["b.example [10.0.1.1]"] == await hops("b.example", DUAL, table)


@pytest.mark.parametrize(
    ("preference", "expected"),
    [
        (10, None),
        (20, ["one.example [10.0.1.1]"]),
        (30, ["one.example [10.0.1.1]", "two.example [10.0.2.1]"]),
    ],
)
@pytest.mark.parametrize("by_address", [False, True])
async def test_only_closer_than_ourselves(preference, expected, by_address):
    """Mail never goes to an exchanger that would send it back to us."""
    me = "other-name.example" if by_address else "alpha.example"
    table = Table(
        {
            "b.example": [
                (10, "one.example"),
                (20, "two.example"),
                (30, "three.example"),
                (preference, me),
            ]
        },
        {
            "one.example": ["10.0.1.1"],
            "two.example": ["10.0.2.1"],
            "three.example": ["10.0.3.1"],
            me: ["10.0.0.1"],
        },
    )
    found = await hops("b.example", ALPHA, table)

    if expected is None:
        assert (Verdict.FAILED, "5.4.6") == (found.verdict, found.enhanced)
        assert "b.example" in found.text
        assert "alpha.example, which does not know that domain" in found.text
    else:
        assert expected == found


async def test_an_address_is_tried_once():
    """Two names of one address are one hop."""
    table = Table(
        {"b.example": [(1, "x.example"), (2, "y.example")]},
        {"x.example": ["10.0.1.1"], "y.example": ["10.0.1.1", "10.0.1.2"]},
    )

    assert ["x.example [10.0.1.1]", "y.example [10.0.1.2]"] == await hops(
        "b.example", ALPHA, table
    )


async def test_limits():
    """A domain with hundreds of exchangers does not keep us for hours."""
    many = [(n, f"mx{n}.example") for n in range(100)]
    table = Table(
        {"b.example": many},
        {name: [f"10.1.{n}.{k}" for k in range(1, 4)] for n, name in many},
    )
    found = await hops("b.example", ALPHA, table)

    assert MAX_HOPS == len(found)
    assert MAX_EXCHANGERS == len(table.asked)


@pytest.mark.parametrize(
    ("domain", "address"),
    [
        ("[10.0.0.9]", "10.0.0.9"),
        ("[IPv6:fd00::9]", "fd00::9"),
        ("[ipv6:FD00::9]", "fd00::9"),
    ],
)
async def test_address_literal(domain, address):
    """An address literal is its own hop, and nobody is asked (RFC 5321 4.1.3)."""
    table = Table()
    found = await route(domain, DUAL, table, lambda _: None, RouteRules())

    assert (Hop(domain, ipaddress.ip_address(address)),) == found
    assert [] == table.asked


@pytest.mark.parametrize(
    ("domain", "enhanced"),
    [
        ("[10.0.0.999]", "5.1.2"),
        ("[IPv6:nonsense]", "5.1.2"),
        ("[tag:content]", "5.1.2"),
        ("[", "5.1.2"),
        ("[IPv6:fd00::9]", "5.4.4"),
        ("[10.0.0.1]", "5.4.6"),
    ],
)
async def test_unusable_address_literal(domain, enhanced):
    """No address, one of a family we lack, and our own: all fail with a reason."""
    found = await failure(domain, ALPHA, Table())

    assert (Verdict.FAILED, 550, enhanced) == found[:3]
    assert found[3]


_ADDRESSES = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"]
_NAMES = ["alpha.example", "b.example", "x.example", "y.example"]
_ANSWERS = st.one_of(
    st.lists(st.sampled_from(_ADDRESSES), unique=True),
    st.sampled_from([server_failure("x", "A"), no_such("x", "A")]),
)


@settings(max_examples=60)
@given(
    st.dictionaries(st.sampled_from(_NAMES), st.integers(0, 3), min_size=1),
    st.fixed_dictionaries(dict.fromkeys(_NAMES, _ANSWERS)),
    st.sampled_from([ALPHA, DUAL, facts("fd00::1"), MACHINE]),
    st.randoms(use_true_random=False),
)
async def test_any_dns(exchangers, hosts, who, random):
    """Whatever DNS says: no own address, no family of others, closer ones only."""
    table = Table({"b.example": [(n, name) for name, n in exchangers.items()]}, hosts)
    found = await route("b.example", who, table, random.shuffle, RouteRules())

    if isinstance(found, Outcome):
        assert found.verdict is not Verdict.DELIVERED
        return
    assert 0 < len(found) <= MAX_HOPS
    assert len({hop.address for hop in found}) == len(found)
    order = [exchangers[hop.name] for hop in found]
    assert all(one <= two for one, two in pairwise(order))
    for hop in found:
        assert hop.address not in who.addresses
        assert hop.family in who.families
        assert exchangers[hop.name] < exchangers.get(who.name, 9)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9"])
async def test_loopback(address):
    """A mail host on a loopback address is this machine, whatever its name."""
    table = Table({}, {"b.example": [address], "c.example": [address, "10.0.1.1"]})
    lab = RouteRules(loopback=True)

    for domain in ("b.example", f"[{address}]"):
        verdict, _, enhanced, _ = await failure(domain, ALPHA, table)
        assert (Verdict.FAILED, "5.4.6") == (verdict, enhanced)
        assert not isinstance(await hops(domain, ALPHA, table, rules=lab), Outcome)
    assert ["c.example [10.0.1.1]"] == await hops("c.example", ALPHA, table)


ROUTES = {
    "intranet.example": "mail.intranet.example:2525",
    "literal.example": "[10.0.9.9]:26",
    "six.example": "[fd00::9]",
    "direct.example": "mx",
    "*": "relay.example",
}


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("intranet.example", ("mail.intranet.example", "10.0.5.5", 2525)),
        ("literal.example", ("[10.0.9.9]", "10.0.9.9", 26)),
        ("direct.example", ("direct.example", "10.0.6.6", None)),
        ("b.example", ("relay.example", "10.0.7.7", None)),
        ("[10.0.8.8]", ("relay.example", "10.0.7.7", None)),
    ],
)
async def test_routes(domain, expected):
    """The domain's own route goes before the one for all others; MX is not asked."""
    table = Table(
        {"relay.example": [(10, "elsewhere.example")]},
        {
            "mail.intranet.example": ["10.0.5.5"],
            "direct.example": ["10.0.6.6"],
            "relay.example": ["10.0.7.7"],
        },
    )
    found = await route(domain, ALPHA, table, lambda _: None, RouteRules(ROUTES))

    assert not isinstance(found, Outcome)
    assert [expected] == [(hop.name, str(hop.address), hop.port) for hop in found]


@pytest.mark.parametrize("domain", ["b.example", "six.example"])
async def test_a_relay_that_cannot_be_used(domain):
    """Mail waits for it: whoever set it can mend it, and nobody else is asked."""
    table = Table({}, {"b.example": ["10.0.1.1"]})
    found = await route(domain, ALPHA, table, lambda _: None, RouteRules(ROUTES))

    assert isinstance(found, Outcome)
    assert Verdict.DEFERRED is found.verdict
    assert found.text.startswith("the relay ")


async def test_a_store():
    """A route to a store is one to its address and port, spoken to in LMTP."""
    table = Table({}, {"store.example": ["10.0.7.7"]})
    rules = RouteRules({"b.example": "lmtp:store.example:24"})
    found = await route("b.example", ALPHA, table, lambda _: None, rules)
    assert not isinstance(found, Outcome)
    [hop] = found

    assert ("store.example", 24, True) == (hop.name, hop.port, hop.lmtp)
    rules = RouteRules({"b.example": "lmtp:[10.0.7.9]:2424"})
    found = await route("b.example", ALPHA, table, lambda _: None, rules)
    assert not isinstance(found, Outcome)
    [hop] = found
    assert ("[10.0.7.9]", 2424, True) == (hop.name, hop.port, hop.lmtp)


async def test_domains_with_the_same_exchangers_are_one_site():
    """Limits count what a provider sees, not the names of its customers."""
    mx = [(10, "one.big.example"), (20, "two.big.example")]
    table = Table(
        {"b.example": mx, "c.example": mx, "d.example": mx[:1]},
        {"one.big.example": ["10.0.1.1"], "two.big.example": ["10.0.2.2"]},
    )
    sites = []
    for domain in ("b.example", "c.example", "d.example"):
        found = await route(domain, ALPHA, table, lambda _: None, RouteRules())
        assert not isinstance(found, Outcome)
        sites.append({hop.site for hop in found})

    assert sites[0] == sites[1] != sites[2]
    assert 1 == len(sites[0])
