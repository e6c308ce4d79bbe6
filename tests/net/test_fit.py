"""What is asked for and cannot be had is refused, with what to do instead."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.net.networks import MACHINE, host, ip
from vnsmail.errors import BadInput
from vnsmail.net.facts import Proxy
from vnsmail.net.fit import check, reduced

BRIDGED = host("alpha.example", "10.77.0.11/24")
ALIAS = host("alpha.example", "192.0.2.11/24", link="eth0", uplink="")
ROUTED = host("alpha.example", "192.0.2.11/24", link="eth0", uplink="routed")
BOTH = host("alpha.example", "10.77.0.11/24", "fd77::11/64")


def with_(facts, *gateways, **changes):
    return replace(facts, gateways=tuple(map(ip, gateways)), **changes)


@pytest.mark.parametrize(
    "wanted",
    [
        BRIDGED,
        with_(BRIDGED, "10.77.0.1", mtu=1400),
        with_(BRIDGED, mtu=68),
        with_(BOTH, "10.77.0.1", "fe80::1", mtu=1280),
        with_(ALIAS, "192.0.2.1"),
        with_(host("alpha.example", link="eth0", uplink="macvlan"), vlan=7),
    ],
)
def test_what_can_be_had(wanted):
    check(wanted, MACHINE)


WRONG = {
    "larger than the bridge": (with_(BRIDGED, mtu=1401), "mtu", "br0 carries packets of 1400"),
    "too small": (with_(BRIDGED, mtu=67), "mtu", "from 68 to"),
    "too small for IPv6": (with_(BOTH, mtu=1279), "mtu", "from 1280 to"),
    "an alias with mtu": (with_(ALIAS, mtu=1400), "mtu", "set that of eth0"),
    "its own router": (with_(BRIDGED, "10.77.0.11"), "gateways", "the host's own"),
    "two routers": (with_(BRIDGED, "10.77.0.1", "10.77.0.2"), "gateways", "one of each"),
    "a router without an address": (with_(BRIDGED, "fd77::1"), "gateways", "no IPv6"),
    "the loopback": (with_(ALIAS, "127.0.0.1"), "gateways", "another machine"),
    "an alias with a tag": (with_(ALIAS, vlan=7), "vlan", "name a link"),
    "a routed one with a router": (with_(ROUTED, "192.0.2.1"), "gateways", "the machine is"),
    "a routed one with a tag": (with_(ROUTED, vlan=7), "vlan", "nothing is tagged"),
    "a bridge with a tag": (with_(BRIDGED, vlan=7), "vlan", "br0 is a bridge"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_had(case):
    """The key is that of hosts.toml, and one line says what to do."""
    wanted, key, words = WRONG[case]
    with pytest.raises(BadInput) as refused:
        check(wanted, MACHINE)

    assert key == refused.value.what
    assert words in str(refused.value)
    assert str(refused.value).isprintable()


def machine(**settings):
    """The machine with other settings of eth0."""
    links = [
        replace(x, settings=replace(x.settings, **settings)) if x.name == "eth0" else x
        for x in MACHINE.links
    ]
    return replace(MACHINE, links=tuple(links))


def test_a_link_that_forwards_for_somebody_else():
    """It would be ours to switch off again, with the last host."""
    actual = machine(forwarding4=1)
    with pytest.raises(BadInput, match=r"net\.ipv4\.conf\.eth0\.forwarding is on"):
        check(ROUTED, actual)

    check(ROUTED, replace(actual, forwards=frozenset({4})))
    check(ROUTED, replace(actual, proxies=(Proxy("eth0", ip("192.0.2.12")),)))


def test_a_kernel_that_forwards_ipv6_everywhere_or_nowhere():
    six = host("alpha.example", "2001:db8::11/64", link="eth0", uplink="routed")
    with pytest.raises(BadInput, match=r"before 6\.17"):
        check(six, machine(forced6=None))

    check(six, machine())
    check(six, replace(machine(forced6=None, forwarding6=1), forwards=frozenset({6})))


def test_what_was_had_before_is_not_refused():
    """A link whose packets became smaller makes no file wrong that said nothing new."""
    before = with_(BRIDGED, mtu=1450)

    check(replace(before, suspended=True), MACHINE, before)
    with pytest.raises(BadInput):
        check(replace(before, mtu=1451), MACHINE, before)


@given(st.none() | st.integers(68, 65535), st.sampled_from(MACHINE.links))
def test_never_larger_than_what_is_below(wanted, link):
    assert reduced(wanted, link) <= link.mtu
    assert reduced(wanted, None) <= 1500
