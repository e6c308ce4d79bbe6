"""The network plan: whatever is there, it leads to what should be there, and stops."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.net.kernel import Kernel
from tests.net.networks import (
    FOREIGN,
    INSTANCE,
    MACHINE,
    host,
    hosts,
    ip,
    states,
)
from vnsmail.errors import Taken
from vnsmail.model import Context, SourceAddress
from vnsmail.net import names
from vnsmail.net.facts import Alias, Desired, Link, Namespace, Settings
from vnsmail.net.plan import plan

PORT = names.link(INSTANCE, "alpha.example")


def steps(desired, actual):
    return plan(Desired(tuple(desired)), actual, INSTANCE)


def described(desired, actual):
    return [step.describe() for step in steps(desired, actual)]


def made(*desired, actual=MACHINE):
    """Return the network with these hosts made."""
    kernel = Kernel(actual)
    for step in steps(desired, actual):
        kernel.perform(step)
    return kernel.observe()


def changed(actual, **facts):
    """Return a network whose one namespace has other facts."""
    (namespace,) = actual.namespaces
    return replace(actual, namespaces=(replace(namespace, **facts),))


def changed_inside(actual, **facts):
    (namespace,) = actual.namespaces
    return changed(actual, link=replace(namespace.link, **facts))


def changed_port(actual, **facts):
    links = [replace(x, **facts) if x.name == PORT else x for x in actual.links]
    return replace(actual, links=tuple(links))


BOTH = host("alpha.example", "10.77.0.11/24", "fd77::11/64", gateways=["10.77.0.1"])
NS = "vns1a2b3c-alpha.example"


class TestWhole:
    def test_bridge(self):
        """A host on a bridge, from nothing."""
        assert [
            f"make namespace {NS}",
            f"connect {NS} to bridge br0 by veth {PORT}",
            f"add address 10.77.0.11/24 on eth0 in {NS}",
            f"add address fd77::11/64 on eth0 in {NS}",
            f"set eth0 up in {NS}",
            f"set default route by 10.77.0.1 in {NS}",
            f"set {PORT} up",
        ] == described([BOTH], MACHINE)

    def test_macvlan(self):
        """A host on a link that is no bridge, from nothing."""
        wanted = host("alpha.example", "192.0.2.11/24", link="eth0", uplink="macvlan")

        assert [
            f"make namespace {NS}",
            f"connect {NS} to eth0 by macvlan",
            f"add address 192.0.2.11/24 on eth0 in {NS}",
            f"set eth0 up in {NS}",
        ] == described([wanted], MACHINE)

    def test_routed(self):
        """A host that the machine routes, from nothing and back."""
        wanted = host("alpha.example", "192.0.2.11/24", link="eth0", uplink="routed")

        assert [
            f"make namespace {NS}",
            f"connect {NS} to the machine by veth {PORT}",
            f"set {PORT} up",
            f"add address 192.0.2.11/32 on eth0 in {NS}",
            f"set eth0 up in {NS}",
            f"add neighbour 169.254.0.1 on eth0 in {NS}",
            f"set default route by 169.254.0.1 in {NS}",
            f"add neighbour 192.0.2.11 on {PORT}",
            f"add route to 192.0.2.11 on {PORT}",
            f"set net.ipv4.conf.{PORT}.forwarding to 1",
            "answer for 192.0.2.11 on eth0",
            "set net.ipv4.conf.eth0.forwarding to 1",
        ] == described([wanted], MACHINE)
        assert [] == described([wanted], made(wanted))
        assert [
            "set net.ipv4.conf.eth0.forwarding to 0",
            "answer no more for 192.0.2.11 on eth0",
            f"remove link {PORT}",
            f"remove namespace {NS}",
        ] == described([], made(wanted))

    def test_routed_by_a_router(self):
        """Where the machine forwards anyway, what it forwards is not ours to switch."""
        router = replace(MACHINE, forwards=frozenset({4, 6}))
        wanted = host("alpha.example", "192.0.2.11/24", link="eth0", uplink="routed")
        there = made(wanted, actual=router)

        assert [
            "answer no more for 192.0.2.11 on eth0",
            f"remove link {PORT}",
            f"remove namespace {NS}",
        ] == described([], there)

    def test_alias(self):
        """A host with addresses of the machine, from nothing."""
        wanted = host("alpha.example", "192.0.2.11/24", link="eth0", uplink="")

        assert ["add address 192.0.2.11 to eth0 for alpha.example"] == described(
            [wanted], MACHINE
        )

    def test_alias_with_a_router(self):
        """It has a way of its own before it has an address, and until it has none."""
        wanted = host(
            "alpha.example",
            "192.0.2.11/24",
            link="eth0",
            uplink="",
            gateways=["192.0.2.9"],
        )
        table = names.table(INSTANCE, "eth0", "192.0.2.9")
        main = "main but for its default routes"

        assert [
            f"add IPv4 unreachable to table {table}",
            f"add default route by 192.0.2.9 on eth0 to table {table}",
            f"route what is from 192.0.2.11 by table {main}",
            f"route what is from 192.0.2.11 by table {table}",
            "add address 192.0.2.11 to eth0 for alpha.example",
        ] == described([wanted], MACHINE)
        assert [] == described([wanted], made(wanted))
        assert "remove address 192.0.2.11 from eth0" == described([], made(wanted))[0]

    def test_nothing_twice(self):
        """What is as desired needs no step."""
        assert [] == described([BOTH], made(BOTH))

    def test_destroy_bridge(self):
        """The pair goes from the outside, then the name."""
        assert [f"remove link {PORT}", f"remove namespace {NS}"] == described(
            [], made(BOTH)
        )

    def test_destroy_macvlan(self):
        """A macvlan is seen from the inside only; sockets could keep it alive."""
        wanted = host("alpha.example", "192.0.2.11/24", link="eth0", uplink="macvlan")

        assert [f"remove link eth0 in {NS}", f"remove namespace {NS}"] == described(
            [], made(wanted)
        )

    def test_destroy_alias(self):
        wanted = host("alpha.example", "192.0.2.11/24", link="eth0", uplink="")

        assert ["remove address 192.0.2.11 from eth0"] == described([], made(wanted))


class TestVlan:
    ONE = replace(
        host("alpha.example", "10.5.0.11/24", link="eth0", uplink="macvlan"), vlan=42
    )
    TWO = replace(
        host("beta.example", "10.5.0.12/24", link="eth0", uplink="macvlan"), vlan=42
    )
    NAME = names.vlan(INSTANCE, "eth0", 42)

    def test_one_link_for_all_of_a_tag(self):
        """It comes with the first host of its tag, and goes with the last."""
        found = described([self.ONE, self.TWO], MACHINE)

        assert [
            f"make link {self.NAME} for tag 42 on eth0",
            f"set {self.NAME} up",
            f"make namespace {NS}",
            f"connect {NS} to {self.NAME} by macvlan",
        ] == found[:4]
        both = made(self.ONE, self.TWO)
        assert [] == described([self.ONE, self.TWO], both)
        assert f"remove link {self.NAME}" not in described([self.TWO], both)
        assert [
            f"remove link eth0 in {NS}",
            f"remove namespace {NS}",
            f"remove link {self.NAME}",
        ] == described([], made(self.ONE))

    def test_another_tag(self):
        """The host moves, and the old link goes: nobody else has the tag."""
        other = names.vlan(INSTANCE, "eth0", 43)
        found = described([replace(self.ONE, vlan=43)], made(self.ONE))

        assert f"remove link {self.NAME}" in found
        assert f"make link {other} for tag 43 on eth0" in found
        assert f"connect {NS} to {other} by macvlan" in found

    def test_alone(self):
        """A plan for one host makes its link for the tag, and removes it."""
        after = plan(Desired(()), made(self.ONE), INSTANCE, self.ONE.name)

        assert f"remove link {self.NAME}" in [step.describe() for step in after]


class TestHalf:
    def test_file_without_namespace(self):
        """A namespace that was being made when the power went is made."""
        half = replace(MACHINE, namespaces=(Namespace(NS, entered=False),))

        assert f"make namespace {NS}" == described([BOTH], half)[0]
        assert [f"remove namespace {NS}"] == described([], half)

    def test_namespace_without_link(self):
        half = replace(MACHINE, namespaces=(Namespace(NS),))

        assert described([BOTH], MACHINE)[1:] == described([BOTH], half)

    def test_link_without_namespace(self):
        """The outer end of a pair whose namespace lost its name."""
        stray = Link(PORT, "veth", ours=True, master="br0")
        half = replace(MACHINE, links=(*MACHINE.links, stray))

        assert [f"remove link {PORT}", *described([BOTH], MACHINE)] == described(
            [BOTH], half
        )

    @pytest.mark.parametrize(
        ("half", "expected"),
        [
            (changed_port(made(BOTH), up=False), [f"set {PORT} up"]),
            (changed_port(made(BOTH), arriving=True), [f"set {PORT} up"]),
            (
                changed_port(made(BOTH), master=""),
                [f"make {PORT} a port of bridge br0"],
            ),
            (changed_port(made(BOTH), mtu=1500), [f"set mtu 1400 on {PORT}"]),
            (changed_inside(made(BOTH), mtu=1500), [f"set mtu 1400 on eth0 in {NS}"]),
            (changed(made(BOTH), loopback_up=False), [f"set lo up in {NS}"]),
            (
                changed_inside(changed(made(BOTH), gateways=()), up=False),
                [f"set eth0 up in {NS}", f"set default route by 10.77.0.1 in {NS}"],
            ),
            (
                changed(made(BOTH), gateways=()),
                [f"set default route by 10.77.0.1 in {NS}"],
            ),
            (
                changed(made(BOTH), gateways=(ip("10.77.0.1"), ip("fd77::1"))),
                [f"remove default route by fd77::1 in {NS}"],
            ),
            (
                changed_inside(made(BOTH), addresses=BOTH.addresses[:1]),
                [f"add address fd77::11/64 on eth0 in {NS}"],
            ),
            (
                changed_inside(
                    made(BOTH),
                    addresses=(*BOTH.addresses, SourceAddress.parse("fd77::99/64")),
                ),
                [f"remove address fd77::99/64 on eth0 in {NS}"],
            ),
        ],
    )
    def test_one_thing_amiss(self, half, expected):
        """One fact amiss takes the step that mends it, and no other."""
        assert expected == described([BOTH], half)


class TestMtu:
    @pytest.mark.parametrize(
        ("uplink", "expected"),
        [
            ("bridge", [f"set mtu 1300 on eth0 in {NS}"]),
            ("macvlan", [f"set mtu 1300 on eth0 in {NS}"]),
        ],
    )
    def test_of_one_host(self, uplink, expected):
        """The bridge's port stays as it is: the bridge carries what its smallest does."""
        link = "br0" if uplink == "bridge" else "eth0"
        before = host(uplink=uplink, link=link)

        assert expected == described([replace(before, mtu=1300)], made(before))

    @pytest.mark.parametrize("uplink", ["bridge", "macvlan"])
    def test_made_with_it(self, uplink):
        wanted = replace(host(uplink=uplink), mtu=1300)
        (namespace,) = made(wanted).namespaces

        assert 1300 == namespace.link.mtu

    def test_never_more_than_the_uplink(self):
        """A bridge whose packets became smaller takes its hosts along."""
        before = made(replace(BOTH, mtu=1350))
        smaller = tuple(
            replace(x, mtu=1300) if x.name == "br0" else x for x in before.links
        )

        assert [
            f"set mtu 1300 on {PORT}",
            f"set mtu 1300 on eth0 in {NS}",
        ] == described([replace(BOTH, mtu=1350)], replace(before, links=smaller))


class TestChanges:
    def test_prefix_length(self):
        """An address with another prefix is removed first; its routes come back."""
        wanted = host("alpha.example", "10.77.0.11/16", gateways=["10.77.0.1"])
        before = made(host("alpha.example", "10.77.0.11/24", gateways=["10.77.0.1"]))

        assert [
            f"remove address 10.77.0.11/24 on eth0 in {NS}",
            f"add address 10.77.0.11/16 on eth0 in {NS}",
            f"set default route by 10.77.0.1 in {NS}",
        ] == described([wanted], before)

    @pytest.mark.parametrize("after", ["macvlan", "bridge", "routed", ""])
    @pytest.mark.parametrize("before", ["macvlan", "bridge", "routed", ""])
    def test_context_and_uplink(self, before, after):
        """The address is nowhere twice while a host moves."""
        kernel = Kernel(made(host(uplink=before)))
        for step in steps([host(uplink=after)], kernel.observe()):
            kernel.perform(step)
            now = kernel.observe()
            inside = [n for n in now.namespaces if n.link and n.link.addresses]
            assert len(inside) + len(now.aliases) <= 1

        assert () == steps([host(uplink=after)], kernel.observe())

    def test_address_moves_between_hosts(self):
        """What one host gives up, another takes in the same plan."""
        before = made(host("alpha.example", uplink=""))
        wanted = host("beta.example")

        assert "remove address 10.77.0.11 from br0" == described([wanted], before)[0]

    def test_bridge_becomes_another(self):
        """A port moves; connections of the host live on."""
        other = Link("br1", "bridge", mtu=1400)
        before = replace(made(BOTH), links=(*made(BOTH).links, other))

        assert [f"make {PORT} a port of bridge br1"] == described(
            [replace(BOTH, link="br1")], before
        )

    def test_loud_alias(self):
        """An alias that the kernel may choose for others is made again."""
        before = replace(
            MACHINE, aliases=(Alias("br0", ip("10.77.0.11"), quiet=False),)
        )

        assert [
            "remove address 10.77.0.11 from br0",
            "add address 10.77.0.11 to br0 for alpha.example",
        ] == described([host(uplink="")], before)


class TestProperties:
    @given(hosts(), states())
    def test_reaches_what_is_desired(self, desired, actual):
        """From any state, the plan leads to the desired one, and then does nothing."""
        kernel = Kernel(actual)
        for step in steps(desired, actual):
            kernel.perform(step)

        assert () == steps(desired, kernel.observe())
        assert _as_desired(desired, kernel.observe())

    @given(hosts(), states(), st.data())
    def test_cut_off_anywhere(self, desired, actual, data):
        """Cut off after any step, a new plan finishes."""
        kernel = Kernel(actual)
        whole = steps(desired, actual)
        for step in whole[: data.draw(st.integers(0, len(whole)))]:
            kernel.perform(step)
        for step in steps(desired, kernel.observe()):
            kernel.perform(step)

        assert () == steps(desired, kernel.observe())
        assert _as_desired(desired, kernel.observe())

    @given(hosts(), hosts())
    def test_from_hosts_to_hosts(self, before, after):
        """Change all hosts at once: the result is as if they had been made anew."""
        kernel = Kernel(_with_bridges())
        for desired in (before, after):
            for step in steps(desired, kernel.observe()):
                kernel.perform(step)

        assert _as_desired(after, kernel.observe())

    @given(hosts(), states())
    def test_nothing_foreign_is_named(self, desired, actual):
        """No step changes a link, namespace or address that is not ours."""
        kernel = Kernel(actual)
        for step in steps(desired, actual):
            kernel.perform(step)
        after = kernel.observe()

        assert FOREIGN in after.links
        assert {
            replace(x, settings=Settings()) for x in actual.links if not x.ours
        } <= {replace(x, settings=Settings()) for x in after.links}
        through = {h.link for h in desired if h.uplink == "routed"}
        touched = through | {each.link for each in actual.proxies}
        assert {x for x in actual.links if not x.ours and x.name not in touched} <= set(
            after.links
        )

    @given(states())
    def test_destroy_leaves_nothing(self, actual):
        """Without hosts nothing of ours is left."""
        kernel = Kernel(actual)
        for step in steps((), actual):
            kernel.perform(step)
        after = kernel.observe()

        assert () == after.namespaces
        assert () == after.aliases
        assert [] == [link for link in after.links if link.ours]
        assert ((), ()) == (after.host_routes, after.proxies)
        assert ((), ()) == (after.table_routes, after.rules)
        for link in {each.link for each in actual.proxies}:
            (found,) = (each.settings for each in after.links if each.name == link)
            versions = {p.address.version for p in actual.proxies if p.link == link}
            if 4 in versions:
                assert not found.forwarding4
            if 6 in versions:
                assert (0, 0, 0) == (found.forwarding6, found.forced6, found.proxy_ndp)
                assert found.accept_ra != 2

    @settings(max_examples=25)
    @given(hosts(), states())
    def test_same_plan_for_same_facts(self, desired, actual):
        assert steps(desired, actual) == steps(desired, actual)

    @given(hosts())
    def test_descriptions_are_one_line(self, desired):
        for step in steps(desired, _with_bridges()):
            assert step.describe().isprintable()


def test_two_hosts_with_one_port(monkeypatch):
    """Names of links are hashes; two that meet are refused before anything is made."""
    monkeypatch.setattr(names, "link", lambda *_: "vns1a2b3caaaaaa")

    with pytest.raises(Taken, match=r"beta\.example.*alpha\.example"):
        steps([host("alpha.example"), host("beta.example")], MACHINE)


def _with_bridges():
    return replace(MACHINE, links=(*MACHINE.links, Link("br1", "bridge")))


def _as_desired(desired, actual):
    """Compare by the meaning of the facts, not by the plan's own idea of it."""
    inside = {
        names.namespace(INSTANCE, h.name): h
        for h in desired
        if h.context is Context.NAMESPACE
    }
    found = {each.name: each for each in actual.namespaces}
    assert inside.keys() == found.keys()
    for name, wanted in inside.items():
        there = found[name]
        assert there.entered
        assert there.loopback_up
        assert there.link is not None
        assert there.link.up
        routed = wanted.uplink == "routed"
        assert set(_bare(wanted) if routed else wanted.addresses) == set(
            there.link.addresses
        )
        routers = {ip(names.ROUTERS[f]) for f in wanted.families} if routed else set()
        assert set(wanted.gateways) | routers == set(there.gateways)
        assert routers <= set(there.link.neighbours)
    assert {
        (h.link, a.address, True)
        for h in desired
        if h.context is Context.ALIAS
        for a in h.addresses
    } == {(a.link, a.address, a.quiet) for a in actual.aliases}
    own_way = {
        (a.address, h.link, g)
        for h in desired
        if h.context is Context.ALIAS
        for a in h.addresses
        for g in h.gateways
        if g.version == a.address.version
    }
    ways = {r.table: (r.link, r.gateway) for r in actual.table_routes if r.gateway}
    last = {(r.table, r.version) for r in actual.table_routes if not r.gateway}
    found_ways = {(r.address, *ways[r.table]) for r in actual.rules if r.table != 254}
    assert own_way == found_ways
    assert {a for a, *_ in own_way} == {
        r.address for r in actual.rules if r.table == 254
    }
    assert all(
        (r.table, r.address.version) in last for r in actual.rules if r.table != 254
    )
    ours = {x.name: x for x in actual.links if x.ours and x.kind != "vlan"}
    tagged = {names.vlan(INSTANCE, h.link, h.vlan): h for h in desired if h.vlan}
    assert tagged.keys() == {
        x.name for x in actual.links if x.ours and x.kind == "vlan"
    }
    assert all(x.up for x in actual.links if x.name in tagged)
    for h in desired:
        if h.uplink == "macvlan":
            below = names.vlan(INSTANCE, h.link, h.vlan) if h.vlan else h.link
            link = found[names.namespace(INSTANCE, h.name)].link
            assert ("macvlan", below) == (link.kind, link.below)
    paired = {
        names.link(INSTANCE, h.name): h
        for h in inside.values()
        if h.uplink in {"bridge", "routed"}
    }
    assert paired.keys() == ours.keys()
    for name, wanted in paired.items():
        assert ours[name].up
        if wanted.uplink == "bridge":
            assert ours[name].master == wanted.link
    return _routed_as_desired(
        {name: h for name, h in paired.items() if h.uplink == "routed"}, actual
    )


def _bare(wanted):
    return [SourceAddress(a.address, a.address.max_prefixlen) for a in wanted.addresses]


def _routed_as_desired(routed, actual):
    links = {link.name: link for link in actual.links}
    own = {(a.address, name) for name, h in routed.items() for a in h.addresses}
    answered = {(h.link, a.address) for h in routed.values() for a in h.addresses}
    assert own == {(each.address, each.link) for each in actual.host_routes}
    assert answered == {(each.link, each.address) for each in actual.proxies}
    for name, h in routed.items():
        assert {a.address for a in h.addresses} == set(links[name].neighbours)
        port, through = links[name].settings, links[h.link].settings
        if 4 in h.families:
            assert port.forwarding4
            assert through.forwarding4
        if 6 in h.families:
            assert (port.accept_ra, port.off6, port.forced6) == (0, 0, 1)
            assert through.proxy_ndp
            assert through.forwarding6
            assert through.forced6
    return True


def _seen_for(name, actual):
    """Return what is looked at for one host: all, where hosts may share a tag's link."""
    if any(link.ours and link.kind == "vlan" for link in actual.links):
        return actual
    inside = names.namespace(INSTANCE, name)
    own = tuple(n for n in actual.namespaces if n.name == inside)
    return replace(actual, namespaces=own)


class TestOnly:
    @given(hosts(), states(), st.data())
    def test_one_host(self, desired, actual, data):
        """A plan for one host does for it what a whole plan does, and nothing else."""
        if not desired:
            return
        wanted = data.draw(st.sampled_from(desired))
        inside = names.namespace(INSTANCE, wanted.name)
        seen = _seen_for(wanted.name, actual)
        others = tuple(h for h in desired if h != wanted)
        kernel = Kernel(actual)
        for step in plan(Desired(desired), seen, INSTANCE, wanted.name):
            kernel.perform(step)
        after = kernel.observe()

        assert () == plan(Desired(desired), after, INSTANCE, wanted.name)
        kept = {each for each in actual.namespaces if each.name != inside}
        assert kept <= set(after.namespaces)
        for step in plan(Desired(others), after, INSTANCE, wanted.name):
            kernel.perform(step)
        assert kept <= set(kernel.observe().namespaces)
        assert inside not in {n.name for n in kernel.observe().namespaces}
        port = names.link(INSTANCE, wanted.name)
        assert port not in {link.name for link in kernel.observe().links}
