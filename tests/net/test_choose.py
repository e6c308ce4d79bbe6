"""Which link and which routers a new virtual host gets, and what is refused."""

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.net.networks import BR0, ETH0, ETH1, LO, MACHINE, ip, own
from vnsmail.errors import BadInput, Taken
from vnsmail.model import Context, SourceAddress, Uplink
from vnsmail.net.choose import choose_gateways, choose_link
from vnsmail.net.facts import Actual, DefaultRoute, Link


def addresses(*texts):
    return tuple(SourceAddress.parse(text) for text in texts)


def link(*texts, actual=MACHINE, context=Context.NAMESPACE, requested=None):
    return choose_link(addresses(*texts), actual, context, requested)


def gateways(*texts, actual=MACHINE, link="br0"):
    return [str(g) for g in choose_gateways(addresses(*texts), actual, link)]


def refusal(*texts, kind=BadInput, **options):
    with pytest.raises(BadInput) as caught:
        link(*texts, **options)
    assert caught.type is kind
    assert str(caught.value).isprintable()
    return str(caught.value)


class TestLink:
    @pytest.mark.parametrize(
        ("address", "expected"),
        [
            ("10.77.0.11/24", ("br0", Uplink.BRIDGE)),
            ("fd77::11/64", ("br0", Uplink.BRIDGE)),
            ("192.0.2.11/24", ("eth0", Uplink.MACVLAN)),
            ("2001:db8::11/64", ("eth0", Uplink.MACVLAN)),
        ],
    )
    def test_found_by_network(self, address, expected):
        assert expected == link(address)

    def test_alias_has_no_uplink(self):
        assert ("br0", None) == link("10.77.0.11", context=Context.ALIAS)

    def test_narrowest_network(self):
        """As in routing, the more specific network decides."""
        wide = Link("eth9", **own("10.0.0.1/8"))
        actual = replace(MACHINE, links=(wide, *MACHINE.links))

        assert ("br0", Uplink.BRIDGE) == link("10.77.0.11/24", actual=actual)

    def test_link_that_is_up(self):
        down = Link("abc0", up=False, **own("192.0.2.3/24"))
        actual = replace(MACHINE, links=(down, *MACHINE.links))

        assert ("eth0", Uplink.MACVLAN) == link("192.0.2.11/24", actual=actual)

    def test_network_without_address(self):
        """A DHCPv6 lease is a /128; the network is known from its route."""
        net = ipaddress.ip_network("2001:db8:5::/64")
        eth = Link("eth5", addresses=addresses("2001:db8:5::9"), networks=(net,))

        assert ("eth5", Uplink.MACVLAN) == link(
            "2001:db8:5::11/64", actual=Actual(links=(eth,))
        )

    def test_no_link(self):
        text = refusal("10.99.0.11/24")

        assert (
            "address '10.99.0.11/24': no link reaches it; use one in 10.77.0.0/24 on "
            "br0, fd77::/64 on br0, 192.0.2.0/24 on eth0, 2001:db8::/64 on eth0, or "
            "give --link"
        ) == text

    def test_no_network_at_all(self):
        assert "no link has a network" in refusal("10.99.0.11/24", actual=Actual())

    def test_addresses_on_two_links(self):
        text = refusal("10.77.0.11/24", "2001:db8::11/64")

        assert (
            "address '2001:db8::11/64': br0 does not reach it: it has fd77::/64"
        ) == text

    def test_bare_address_in_a_namespace(self):
        """A host with a /32 would have no neighbours; say what to write."""
        assert (
            "address '10.77.0.11/32': its network is 10.77.0.0/24; write it as "
            "10.77.0.11/24"
        ) == refusal("10.77.0.11")

    def test_loopback_networks_are_not_searched(self):
        refusal("127.0.0.5/8")


class TestRequested:
    def test_bridge_without_address(self):
        """The machine need not be in the network it connects a host to."""
        actual = replace(MACHINE, links=(*MACHINE.links, Link("dmz", "bridge")))

        assert ("dmz", Uplink.BRIDGE) == link(
            "10.99.0.11/24", actual=actual, requested="dmz"
        )

    def test_address_routed_to_the_machine(self):
        """A bare address claims no network."""
        assert ("eth0", None) == link(
            "203.0.113.7", context=Context.ALIAS, requested="eth0"
        )

    def test_other_network(self):
        assert (
            "address '10.99.0.11/24': br0 does not reach it: it has 10.77.0.0/24"
        ) == refusal("10.99.0.11/24", requested="br0")

    def test_unknown(self):
        assert "link 'br9': the machine has br0, eth0" == refusal(
            "10.77.0.11/24", requested="br9"
        )

    def test_loopback(self):
        assert "loopback" in refusal("10.77.0.11/24", requested="lo")

    def test_port_of_a_bridge(self):
        """A macvlan there would be refused by the kernel, an alias would hear nothing."""
        assert "link 'eth1': it is a port of br0; use that" == refusal(
            "10.77.0.11/24", requested="eth1"
        )

    def test_link_of_a_virtual_host(self):
        ours = Link("vns-abc", "veth", ours=True)
        actual = replace(MACHINE, links=(*MACHINE.links, ours))

        assert "another virtual host" in refusal(
            "10.77.0.11/24", actual=actual, requested="vns-abc"
        )


class TestTaken:
    @pytest.mark.parametrize("context", list(Context))
    @pytest.mark.parametrize(
        ("address", "holder"),
        [
            ("10.77.0.1/24", "the machine has it itself, on br0"),
            ("2001:db8::2/64", "the machine has it itself, on eth0"),
            ("192.0.2.1/24", "it is that of the machine's router"),
        ],
    )
    def test_the_machine(self, address, holder, context):
        assert holder in refusal(address, kind=Taken, context=context)

    def test_another_root(self):
        actual = replace(MACHINE, elsewhere=(ip("10.77.0.11"),))

        assert "another root" in refusal("10.77.0.11/24", kind=Taken, actual=actual)


class TestGateways:
    def test_router_of_the_machine(self):
        """Its own router where the host can reach it, a link-local one too."""
        assert ["192.0.2.1", "fe80::1"] == gateways(
            "192.0.2.11/24", "2001:db8::11/64", link="eth0"
        )

    def test_bridge_is_the_router(self):
        assert ["10.77.0.1", "fd77::1"] == gateways("10.77.0.11/24", "fd77::11/64")

    def test_only_families_of_the_host(self):
        assert ["fd77::1"] == gateways("fd77::11/64")

    def test_machine_on_a_link_is_no_router(self):
        """On a shared link the machine does not forward for others."""
        assert [] == gateways("192.0.2.11/24", link="eth0", actual=Actual((LO, ETH0)))

    def test_router_outside_the_host_s_network(self):
        assert [] == gateways("192.0.2.129/25", link="eth0")

    def test_lowest_metric(self):
        better = DefaultRoute(ip("10.77.0.254"), "br0", 50)
        worse = DefaultRoute(ip("10.77.0.253"), "br0", 100)

        assert ["10.77.0.254"] == gateways(
            "10.77.0.11/24", actual=replace(MACHINE, routes=(worse, better))
        )

    def test_route_without_router(self):
        """A default route straight to a link names nobody to ask."""
        straight = DefaultRoute(ip("0.0.0.0"), "br0")

        assert ["10.77.0.1"] == gateways(
            "10.77.0.11/24", actual=replace(MACHINE, routes=(straight,))
        )


_ANY_ADDRESS = st.one_of(
    st.sampled_from(["10.77.0.0/24", "192.0.2.0/24", "10.99.0.0/24", "fd77::/64"])
    .map(ipaddress.ip_network)
    .flatmap(
        lambda n: st.integers(2, 254).map(lambda i: SourceAddress(n[i], n.prefixlen))
    ),
    st.ip_addresses().map(lambda a: SourceAddress(a, a.max_prefixlen)),
)
_CHOSEN = st.lists(_ANY_ADDRESS, min_size=1, max_size=3)


@given(_CHOSEN, st.sampled_from(Context), st.sampled_from([None, "br0", "eth0", "x"]))
def test_chosen_or_refused(chosen, context, requested):
    """A link of use that reaches all addresses, or BadInput; never anything else."""
    try:
        name, uplink = choose_link(tuple(chosen), MACHINE, context, requested)
    except BadInput:
        return
    (found,) = (each for each in MACHINE.links if each.name == name)

    assert found in {BR0, ETH0}
    assert requested in {None, name}
    assert (uplink is None) == (context is Context.ALIAS)
    for each in chosen:
        reached = any(each.address in network for network in found.networks)
        assert reached or (requested and each.prefix_length in {32, 128})
        assert each.address not in {own.address for own in found.addresses}
    for gateway in choose_gateways(tuple(chosen), MACHINE, name):
        assert gateway.is_link_local or any(gateway in a.network for a in chosen)
        assert gateway not in {a.address for a in chosen}


def test_ports_are_what_the_fixture_says():
    assert "br0" == ETH1.master


class TestTagged:
    """Of a tagged network the machine knows nothing: it is believed what is said."""

    def test_any_address_on_a_named_link(self):
        found = choose_link(
            addresses("10.5.0.11/24"), MACHINE, Context.NAMESPACE, "eth0", tagged=True
        )

        assert ("eth0", Uplink.MACVLAN) == found

    def test_the_link_has_to_be_named(self):
        with pytest.raises(BadInput, match="name the link"):
            choose_link(
                addresses("192.0.2.11/24"),
                MACHINE,
                Context.NAMESPACE,
                None,
                tagged=True,
            )
