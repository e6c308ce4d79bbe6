"""Virtual hosts as ip(8) and their neighbours see them, from the making to the end."""

import socket
from dataclasses import replace

import pytest

from integration.net_machine import (
    INSTANCE,
    alone,
    build,
    host,
    inside,
    ip,
    make,
    namespace,
    port,
    seen_address,
    snapshot,
    steps_to,
)
from vnsmail.net import namespaces
from vnsmail.net.apply import apply

pytestmark = pytest.mark.root

BRIDGE = ("10.77.0.11/24", "fd77::11/64")
MACVLAN = ("192.0.2.11/24", "2001:db8::11/64")


def global_inside(name="alpha.example"):
    """Return addresses and prefix lengths of a host as ip(8) shows them."""
    (eth0,) = inside(namespace(name), "addr show eth0")
    found = (a for a in eth0["addr_info"] if a["scope"] == "global")
    return {(a["local"], a["prefixlen"]) for a in found}


@alone()
def test_bridge():
    """A namespace on a bridge: seen by ip(8), reached by name, heard under its address."""
    build()
    make(host("alpha.example", *BRIDGE))

    assert namespace() in {each["name"] for each in ip("netns list")}
    (outer,) = ip(f"-d link show {port()}")
    assert ("br0", "veth") == (outer["master"], outer["linkinfo"]["info_kind"])
    assert f"vnsmail:{INSTANCE}:alpha.example" == outer["ifalias"]
    assert {("10.77.0.11", 24), ("fd77::11", 64)} == global_inside()
    (default,) = inside(namespace(), "route show default")
    assert "10.77.0.1" == default["gateway"]
    (default,) = inside(namespace(), "-6 route show default")
    assert "fd77::1" == default["gateway"]
    (lo,) = inside(namespace(), "link show lo")
    assert "UP" in lo["flags"]
    assert "10.77.0.11" == seen_address("10.77.0.2", "10.77.0.11", namespace())
    assert "fd77::11" == seen_address("fd77::2", "fd77::11", namespace())


@alone()
def test_macvlan():
    """A namespace on a link: its router and what lies behind hear it."""
    build()
    make(host("alpha.example", *MACVLAN))

    (eth0,) = inside(namespace(), "-d link show eth0")
    assert "macvlan" == eth0["linkinfo"]["info_kind"]
    assert "bridge" == eth0["linkinfo"]["info_data"]["mode"]
    for source, target in (
        ("192.0.2.11", "192.0.2.1"),
        ("192.0.2.11", "198.51.100.1"),
        ("2001:db8::11", "2001:db8::1"),
        ("2001:db8::11", "2001:db8:ff::1"),
    ):
        assert source == seen_address(target, source, namespace())


@alone()
def test_alias():
    """Addresses on a link of the machine: whoever binds them is heard under them."""
    build()
    make(
        host("alpha.example", *BRIDGE, context="alias"),
        host("beta.example", *MACVLAN, context="alias"),
    )

    for source, target in (
        ("10.77.0.11", "10.77.0.2"),
        ("fd77::11", "fd77::2"),
        ("192.0.2.11", "198.51.100.1"),
        ("2001:db8::11", "2001:db8:ff::1"),
    ):
        assert source == seen_address(target, source)


def everybody():
    return (
        host("alpha.example", *BRIDGE),
        host("beta.example", *MACVLAN),
        host("gamma.example", "10.77.0.13/24", context="alias"),
        host("delta.example", "2001:db8::14/64", context="alias"),
        host("epsilon.example", "10.77.0.15/24", "10.77.0.16/24"),
    )


@alone()
def test_twice_does_nothing():
    """A second plan is empty; the same steps applied again change nothing."""
    build()
    hosts = everybody()
    steps = steps_to(*hosts)
    apply(steps, INSTANCE)
    after = snapshot()

    assert () == steps_to(*hosts)
    apply(steps, INSTANCE)
    assert after == snapshot()


@alone()
def test_destroy_leaves_nothing():
    """All hosts made and destroyed: links, routes, files and mounts are as before."""
    build()
    before = snapshot()
    make(*everybody())
    assert before != snapshot()
    steps = steps_to()
    apply(steps, INSTANCE)
    assert before == snapshot()

    apply(steps, INSTANCE)
    assert before == snapshot()


@alone()
def test_destroy_one():
    """What goes is one host; the others do not notice."""
    build()
    hosts = everybody()
    make(*hosts[1:])
    before = snapshot()
    make(*hosts)
    make(*hosts[1:])

    assert before == snapshot()


@alone()
@pytest.mark.parametrize("after", ["bridge", "macvlan", "alias"])
@pytest.mark.parametrize("before", ["bridge", "macvlan", "alias"])
def test_context_changes(before, after):
    """However a host lived, it lives as it should now, and nothing of before is left."""
    build()
    clean = snapshot()
    ways = {
        "bridge": host("alpha.example", *BRIDGE),
        "macvlan": host("alpha.example", *MACVLAN),
        "alias": host("alpha.example", *BRIDGE, context="alias"),
    }
    make(ways[after])
    expected = snapshot()
    make()
    assert clean == snapshot()
    make(ways[before])
    make(ways[after])

    assert expected == snapshot()
    assert () == steps_to(ways[after])


@alone()
def test_prefix_and_addresses_change():
    """Addresses come, go and change their network; the default route stays."""
    build()
    make(
        host("alpha.example", "10.77.0.11/24", "10.77.0.12/24", "fd77::11/64"),
        host("beta.example", "10.77.0.21/24", "10.77.0.22/24"),
    )
    wanted = host("alpha.example", "10.77.0.12/16", "10.77.0.13/24", "fd77::11/72")
    rest = host("beta.example", "10.77.0.22/24")
    make(wanted, rest)

    assert {("10.77.0.12", 16), ("10.77.0.13", 24), ("fd77::11", 72)} == global_inside()
    assert {("10.77.0.22", 24)} == global_inside("beta.example")
    assert "10.77.0.1" == inside(namespace(), "route show default")[0]["gateway"]
    assert () == steps_to(wanted, rest)


@alone()
def test_bridge_keeps_its_address_and_hosts_its_mtu():
    """A port with a low address or a large MTU would cut the machine off."""
    build()
    ip("link add br1 type bridge")
    ip("link add dev cable type veth peer name cable1")
    ip("link set cable address fa:00:00:00:00:01 mtu 1400 master br1 up")
    ip("link set br1 up")
    ip("addr add 10.78.0.1/24 dev br1")
    (before,) = ip("link show br1")
    make(
        *(host(f"host{n}.example", f"10.78.0.{n}/24") for n in range(11, 17)),
    )

    (after,) = ip("link show br1")
    assert (1400, "fa:00:00:00:00:01") == (after["mtu"], after["address"])
    assert before["address"] == after["address"]
    (eth0,) = inside(namespace("host11.example"), "link show eth0")
    assert 1400 == eth0["mtu"]
    (outer,) = ip(f"link show {port('host11.example')}")
    assert 1400 == outer["mtu"]
    ip("link set br1 mtu 1300")
    hosts = [host(f"host{n}.example", f"10.78.0.{n}/24") for n in range(11, 17)]
    make(*hosts)
    (eth0,) = inside(namespace("host11.example"), "link show eth0")
    assert 1300 == eth0["mtu"]
    assert () == steps_to(*hosts)


@alone()
def test_mtu_of_one_host():
    """One host's packets are smaller; its bridge and its neighbours stay as they are."""
    build()
    other = host("beta.example", "10.77.0.12/24")
    small = [
        replace(host("alpha.example", *BRIDGE), mtu=1300),
        replace(host("gamma.example", *MACVLAN), mtu=1350),
    ]
    make(other, *small)

    def sizes():
        alpha, beta, gamma = (
            inside(namespace(f"{name}.example"), "link show eth0")[0]["mtu"]
            for name in ("alpha", "beta", "gamma")
        )
        return alpha, beta, gamma, ip("link show br0")[0]["mtu"]

    assert (1300, 1500, 1350, 1500) == sizes()
    assert () == steps_to(other, *small)
    make(other, *(replace(each, mtu=None) for each in small))
    assert (1500, 1500, 1500, 1500) == sizes()


@alone()
def test_no_address_by_itself():
    """Router advertisements give a host no address and no route."""
    build()
    make(host("alpha.example", *BRIDGE))

    def settings():
        folder = "/proc/sys/net/ipv6/conf/eth0"
        found = []
        for name in ("accept_ra", "autoconf"):
            with open(f"{folder}/{name}") as file:
                found.append(file.read().strip())
        return found

    assert ["0", "0"] == namespaces.inside(namespace(), settings)


@alone()
def test_sockets_do_not_keep_a_destroyed_host_on_the_network():
    """A macvlan in a namespace held by a socket would go on answering."""
    build()
    make(host("alpha.example", *MACVLAN))
    with namespaces.inside(namespace(), socket.socket) as held:
        make()
        make(host("beta.example", *MACVLAN))

        assert "192.0.2.11" == seen_address(
            "192.0.2.1", "192.0.2.11", namespace("beta.example")
        )
        with pytest.raises(OSError, match="unreachable"):
            held.connect(("192.0.2.1", 9))


@alone(root=False)
def test_without_root():
    """An ordinary user with a user namespace has all of it."""
    build()
    before = snapshot()
    hosts = everybody()
    make(*hosts)

    assert () == steps_to(*hosts)
    assert "10.77.0.11" == seen_address("10.77.0.2", "10.77.0.11", namespace())
    assert "10.77.0.13" == seen_address("10.77.0.2", "10.77.0.13")
    make()
    assert before == snapshot()
