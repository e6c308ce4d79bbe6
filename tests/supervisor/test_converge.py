from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.net.networks import BR0, ETH0, LO
from vnsmail.directory.declaration import Misfits, parse, write
from vnsmail.model import Context, HostName, SourceAddress, Uplink, VirtualHost
from vnsmail.net.facts import Actual, Link
from vnsmail.supervisor.converge import Tenant, decide

BR1 = Link("br1", "bridge", networks=BR0.networks)
MACHINE = Actual(links=(LO, BR0, BR1, ETH0))
ALPHA = HostName("alpha.example")


def decided(text, *existing, actual=MACHINE):
    return decide(parse(text), {t.facts.name: t for t in existing}, actual)


def table(name=ALPHA, *lines):
    return "\n".join([f'[host."{name}"]', *lines, ""])


def tenant(text, *existing, actual=MACHINE):
    """Return the host that one table makes."""
    (found,) = decided(text, *existing, actual=actual).hosts
    return found


NEW = table(ALPHA, 'addresses = ["10.77.0.11/24"]')


def test_a_new_host():
    """It gets what ``vnsmail host create`` would choose."""
    decision = decided(NEW)
    (change,) = decision.changes
    (made,) = decision.hosts

    assert ("br0", Uplink.BRIDGE) == (made.facts.link, made.facts.uplink)
    assert ["10.77.0.1"] == [str(g) for g in made.facts.gateways]
    assert ("create", ALPHA, ()) == (change.action, change.name, made.users)
    assert (
        "context namespace",
        "addresses 10.77.0.11/24",
        "link br0",
        "uplink bridge",
        "gateways 10.77.0.1",
    ) == change.details()


def test_nothing_to_do():
    """What is as the file says stays; so does what the file does not say."""
    before = tenant(NEW)
    odd = Tenant(
        replace(before.facts, link="eth0", uplink=Uplink.MACVLAN, gateways=()), ("ann",)
    )

    assert () == decided(NEW, before).changes
    assert () == decided(NEW, odd).changes


def test_nothing_to_do_though_the_network_is_gone():
    """A host that is there needs no new choice; its network is another matter."""
    before = tenant(NEW)

    assert () == decided(NEW, before, actual=Actual()).changes


CHANGES = {
    "domains": ('domains = ["b.example"]', "domains +b.example", False),
    "users": ('users = ["bob", "ann"]', "users -eve +ann +bob", False),
    "nobody": ("users = []", "users -eve", False),
    "no router": ("gateways = []", "gateways -10.77.0.1", False),
    "a router": ('gateways = ["10.77.0.9"]', "gateways -10.77.0.1 +10.77.0.9", False),
    "link": ('link = "br1"', "link br0 → br1", True),
    "context": ('context = "alias"', "context namespace → alias", True),
    "limits": (
        "limits = { connections = 5, queue_bytes = 9 }",
        "limits.connections none → 5, limits.queue_bytes none → 9",
        False,
    ),
    "suspended": ("suspended = true", "suspended false → true", False),
}


@pytest.mark.parametrize("case", CHANGES)
def test_changes(case):
    """What differs is told, and whether sockets have to be opened anew for it."""
    line, said, reopens = CHANGES[case]
    before = replace(tenant(NEW), users=("eve",))
    (change,) = decided(NEW + line, before).changes

    assert ("change", reopens) == (change.action, change.reopens)
    assert said in change.details()


def test_other_addresses():
    """Link and router stay where they fit; the order of addresses is a fact too."""
    two = table(ALPHA, 'addresses = ["10.77.0.11/24", "10.77.0.12/24"]')
    other = table(ALPHA, 'addresses = ["10.77.0.12/24", "10.77.0.11/24"]')
    before = tenant(two + 'gateways = ["10.77.0.9"]')
    (change,) = decided(other, before).changes

    assert not change.reopens
    assert ("addresses in the order 10.77.0.12/24 10.77.0.11/24",) == change.details()
    assert change.after is not None
    assert ["10.77.0.9"] == [str(g) for g in change.after.facts.gateways]


def test_a_link_that_somebody_chose():
    """It stays with other addresses that it reaches too, as no file names another."""
    before = tenant(NEW + 'link = "br1"')
    after = tenant(table(ALPHA, 'addresses = ["10.77.0.12/24"]'), before)

    assert "br1" == after.facts.link


def test_a_router_that_somebody_chose():
    """It stays while the addresses do, even one that their network does not hold."""
    before = tenant(NEW + 'gateways = ["203.0.113.1"]')
    (change,) = decided(NEW + 'users = ["ann"]', before).changes

    assert ("users +ann",) == change.details()


def test_addresses_of_another_network():
    """A link that does not reach them is left for one that does."""
    text = table(ALPHA, 'addresses = ["192.0.2.7/24"]')
    after = tenant(text, tenant(NEW))

    assert ("eth0", Uplink.MACVLAN) == (after.facts.link, after.facts.uplink)
    assert () == after.facts.gateways


def test_a_router_that_is_out_of_reach_goes():
    """With other addresses, only routers stay that they reach."""
    before = tenant(NEW + 'gateways = ["192.0.2.1"]')
    after = tenant(table(ALPHA, 'addresses = ["10.77.0.12/24"]'), before)

    assert ["10.77.0.1"] == [str(g) for g in after.facts.gateways]


def test_who_is_not_in_the_file_goes():
    """In the end there are these hosts and no others."""
    decision = decided("", tenant(NEW))
    (change,) = decision.changes

    assert () == decision.hosts
    assert ("destroy", ALPHA, ()) == (change.action, change.name, change.details())


WRONG = {
    "the machine's own": (
        ["10.77.0.1/24"],
        "",
        2,
        "addresses[0]",
        "the machine has it",
    ),
    "out of reach": (
        ["10.77.0.11/24", "203.0.113.1/24"],
        "",
        2,
        "addresses[1]",
        "does not reach it",
    ),
    "no such link": (["10.77.0.11/24"], 'link = "wan9"', 3, "link", "the machine has"),
    "another uplink": (
        ["10.77.0.11/24"],
        'uplink = "macvlan"',
        3,
        "uplink",
        "br0 gives bridge",
    ),
    "larger packets": (["10.77.0.11/24"], "mtu = 9000", 3, "mtu", "br0 carries"),
    "a tag on a bridge": (
        ["10.77.0.11/24"],
        'link = "br0"\nvlan = 7',
        4,
        "vlan",
        "is a bridge",
    ),
    "a tag on no link": (["10.77.0.11/24"], "vlan = 7", 1, "link", "name the link"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_here(case):
    """What only the machine can tell has its line too."""
    addresses, line, at, key, said = WRONG[case]
    text = table(ALPHA, f"addresses = {addresses}".replace("'", '"'), line)
    with pytest.raises(Misfits) as refused:
        decided(text)
    (problem,) = refused.value.problems

    assert (at, f'host."alpha.example".{key}') == (problem.line, problem.key)
    assert said in problem.text


def test_every_host_is_checked():
    """All that cannot be is told, not the first."""
    text = "".join(
        table(f"h{n}.example", f'addresses = ["203.0.113.{n}/24"]') for n in (9, 1, 5)
    )
    with pytest.raises(Misfits) as refused:
        decided(text)

    assert [2, 4, 6] == [problem.line for problem in refused.value.problems]


def test_order():
    """First those that come, then those that change, then those that go, by name."""
    old = {
        name: tenant(table(name, f'addresses = ["10.77.0.{n}/24"]'))
        for n, name in enumerate("abcd", 21)
        for name in [f"{name}.example"]
    }
    text = "".join(
        [
            table("z.example", 'addresses = ["10.77.0.30/24"]'),
            table("b.example", 'addresses = ["10.77.0.22/24"]', 'users = ["x"]'),
            table("a.example", 'addresses = ["10.77.0.24/24"]'),
            table("n.example", 'addresses = ["10.77.0.31/24"]'),
        ]
    )
    changes = decided(text, *old.values()).changes

    assert [
        ("create", "n.example"),
        ("create", "z.example"),
        ("change", "a.example"),
        ("change", "b.example"),
        ("destroy", "c.example"),
        ("destroy", "d.example"),
    ] == [(change.action, change.name) for change in changes]


# Any two sets of hosts ---------------------------------------------------------------


@st.composite
def tenants(draw):
    found: list[Tenant] = []
    numbers = draw(st.lists(st.integers(10, 60), unique=True, max_size=6))
    for number in numbers:
        name = HostName(f"h{draw(st.sampled_from(range(4)))}-{len(found)}.example")
        inside = draw(st.booleans())
        facts = VirtualHost(
            name=name,
            context=Context.NAMESPACE if inside else Context.ALIAS,
            addresses=(SourceAddress.parse(f"10.77.0.{number}/24"),),
            domains=(
                name,
                *draw(st.sampled_from([(), (HostName(f"d{number}.example"),)])),
            ),
            link="br0",
            uplink=Uplink.BRIDGE if inside else None,
            gateways=(),
        )
        users = draw(st.lists(st.sampled_from("abc"), unique=True))
        found.append(Tenant(facts, tuple(sorted(users))))
    return found


@given(tenants(), tenants())
def test_from_any_to_any(before, after):
    """Doing what is decided leaves the hosts of the file; deciding again, nothing."""
    text = write((t.facts, t.users) for t in after)
    there = {t.facts.name: t for t in before}
    decision = decide(parse(text), there, MACHINE)
    for change in decision.changes:
        assert change.before == there.pop(change.name, None)
        if change.after:
            there[change.name] = change.after

    assert {t.facts.name: t for t in after} == there
    assert () == decide(parse(text), there, MACHINE).changes
    assert all(change.before != change.after for change in decision.changes)
