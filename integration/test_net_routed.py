"""Hosts that the machine routes: seen under their own address, by packets, and fenced."""

import functools
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

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
from vnsmail.net import guard, namespaces
from vnsmail.net.apply import apply

pytestmark = pytest.mark.root

BOTH = ("192.0.2.11/24", "2001:db8::11/64")


def routed(name="alpha.example", *addresses):
    return host(name, *(addresses or BOTH), uplink="routed")


def settings():
    """Return what the kernel does on each link of the machine, and on all."""
    found = {}
    for pattern in (
        "ipv4/conf/*/forwarding",
        "ipv6/conf/*/forwarding",
        "ipv6/conf/*/force_forwarding",
        "ipv6/conf/*/proxy_ndp",
        "ipv6/conf/*/accept_ra",
    ):
        for path in Path("/proc/sys/net").glob(pattern):
            found[str(path)] = path.read_text().strip()
    return found


def everything() -> tuple[object, ...]:
    proxies = [line for f in "46" for line in ip(f"-{f} neigh show proxy")]
    tables = subprocess.run(
        ["nft", "list", "tables"], capture_output=True, text=True, check=True
    )
    return snapshot(), settings(), str(proxies), tables.stdout


def establish(*hosts):
    guard.fence(hosts, INSTANCE)
    done = make(*hosts)
    guard.fence(hosts, INSTANCE)
    return done


@alone()
def test_seen_under_its_own_address():
    """Far beyond the uplink, both ways, both families; the machine stays itself."""
    build()
    before = everything()
    establish(routed())

    for source, target in (
        ("192.0.2.11", "192.0.2.1"),
        ("192.0.2.11", "198.51.100.1"),
        ("2001:db8::11", "2001:db8::1"),
        ("2001:db8::11", "2001:db8:ff::1"),
    ):
        assert source == seen_address(target, "", namespace())
        assert source == seen_address(target, source, namespace())
    assert "192.0.2.2" == seen_address("198.51.100.1")
    assert "2001:db8::2" == seen_address("2001:db8:ff::1")
    for address, seen in (("192.0.2.11", "192.0.2.1"), ("2001:db8::11", "2001:db8::1")):
        assert seen == reached(address, "far")
    # The machine and its host hear each other, each under its own address.
    assert reached("192.0.2.11") in {"192.0.2.2", "10.77.0.1"}
    assert reached("2001:db8::11") in {"2001:db8::2", "fd77::1"}

    assert () == steps_to(routed())
    assert "0" == Path("/proc/sys/net/ipv4/ip_forward").read_text().strip()
    establish()
    assert before == everything()


def reached(address, where=""):
    """Connect to a listener of the host; returns whom the host saw."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def listen():
        sock = socket.create_server((address, 0), family=family)
        sock.settimeout(20)
        return sock

    with namespaces.inside(namespace(), listen) as listener:
        number = listener.getsockname()[1]
        call = functools.partial(connect, family, (address, number))
        with namespaces.inside(where, call) if where else call():
            connection, seen = listener.accept()
            connection.close()
    return seen[0]


def connect(family, target):
    sock = socket.socket(family)
    sock.settimeout(20)
    sock.connect(target)
    return sock


@alone()
def test_forged_sources_go_nowhere():
    """What leaves a namespace under another's address is dropped and counted."""
    build()
    alpha, beta = routed(), routed("beta.example", "192.0.2.12/24", "2001:db8::12/64")
    establish(alpha, beta)
    guard.apply([alpha, beta], INSTANCE)
    with namespaces.inside("far", functools.partial(listener, 9999)) as heard:
        inside(namespace(), "addr add 192.0.2.12/32 dev eth0")
        inside(namespace(), "addr add 2001:db8::12/128 dev eth0 nodad")
        inside(namespace(), "addr add 192.0.2.2/32 dev eth0")
        for source in ("192.0.2.12", "2001:db8::12", "192.0.2.2", "192.0.2.11"):
            namespaces.inside(namespace(), functools.partial(say, source, 9999))

        assert [("192.0.2.11", b"192.0.2.11")] == gathered(heard)
    found = guard.counters([alpha, beta], INSTANCE)
    assert 3 == found[alpha.name].forged_packets
    assert 0 == found[beta.name].forged_packets


def listener(number):
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", number))
    return sock


def say(source, number):
    """Send a datagram to far, in the name of some address."""
    six = ":" in source
    target = "2001:db8::1" if six else "192.0.2.1"
    with socket.socket(
        socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM
    ) as sock:
        sock.bind((source, 0))
        sock.sendto(source.encode(), (target, number))


def gathered(sock):
    """Return who said what, until the last one, which is honest, is heard."""
    sock.settimeout(20)
    found: list[tuple[str, bytes]] = []
    while not found or found[-1][1] != b"192.0.2.11":
        said, whom = sock.recvfrom(99)
        found.append((whom[0].removeprefix("::ffff:"), said))
    return found


@alone()
def test_the_machine_is_no_router_by_that():
    """Others cannot send through it, as before; a machine that is a router stays one."""
    build()
    inside("far", "route add 10.77.0.0/24 via 192.0.2.2")
    inside("neighbour", "route add default via 10.77.0.1")
    establish(routed())
    with namespaces.inside("neighbour", functools.partial(listener, 9998)) as heard:
        heard.settimeout(0.5)
        namespaces.inside("far", functools.partial(hail, "10.77.0.2", 9998))
        with pytest.raises(TimeoutError):
            heard.recvfrom(99)

        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        establish(routed())
        heard.settimeout(20)
        namespaces.inside("far", functools.partial(hail, "10.77.0.2", 9998))
        assert b"hello" == heard.recvfrom(99)[0]
    establish()
    assert "1" == Path("/proc/sys/net/ipv4/conf/wire0/forwarding").read_text().strip()


def hail(target, number):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"hello", (target, number))


@alone()
def test_a_learned_router_is_kept():
    """Forwarding on a link makes the kernel forget its routers; not this time."""
    build()
    accept = Path("/proc/sys/net/ipv6/conf/wire0/accept_ra")
    assert "1" == accept.read_text().strip()
    establish(routed())
    assert "2" == accept.read_text().strip()
    assert "1" == Path("/proc/sys/net/ipv6/conf/br0/accept_ra").read_text().strip()
    establish()
    assert "1" == accept.read_text().strip()


@alone()
def test_damage_by_hand():
    """Whatever somebody does to it, the next plan mends it, and then does nothing."""
    build()
    clean = everything()
    alpha = routed()
    establish(alpha)
    whole = everything()
    inner = f"-n {namespace()}"
    for damage in (
        f"link del {port()}",
        f"netns del {namespace()}",
        f"link set {port()} down",
        f"{inner} link set eth0 down",
        f"{inner} neigh del 169.254.0.1 dev eth0",
        f"{inner} route del default",
        f"neigh del 192.0.2.11 dev {port()}",
        f"-6 neigh del 2001:db8::11 dev {port()}",
        f"route del 192.0.2.11 dev {port()}",
        f"-6 route del 2001:db8::11 dev {port()}",
        "neigh del proxy 192.0.2.11 dev wire0",
        "-6 neigh del proxy 2001:db8::11 dev wire0",
        "sysctl ipv4/conf/wire0/forwarding 0",
        "sysctl ipv6/conf/wire0/proxy_ndp 0",
        f"sysctl ipv6/conf/{port()}/accept_ra 1",
    ):
        if damage.startswith("sysctl"):
            _, name, value = damage.split()
            Path("/proc/sys/net", name).write_text(value)
        else:
            ip(damage)
        assert () != steps_to(alpha), damage
        establish(alpha)

        assert whole == everything(), damage
        assert () == steps_to(alpha), damage
    ip(f"link del {port()}")
    establish()
    assert clean == everything()


@alone()
def test_cut_off_between_any_two_steps():
    """After any number of steps, it is finished or undone, and nothing is left."""
    build()
    clean = everything()
    alpha = routed()
    establish(alpha)
    whole = everything()
    for goal, start in (((alpha,), ()), ((), (alpha,))):
        establish(*start)
        count = len(steps_to(*goal))
        for cut in range(count + 1):
            way_out = goal if cut % 2 else start
            establish(*start)
            guard.fence([alpha], INSTANCE)
            apply(steps_to(*goal)[:cut], INSTANCE)
            establish(*way_out)

            assert () == steps_to(*way_out)
            assert (whole if way_out else clean) == everything(), (cut, goal)


@alone()
def test_addresses_change():
    """One comes and one goes; what the machine answers for follows."""
    build()
    establish(routed("alpha.example", "192.0.2.11/24", "2001:db8::11/64"))
    wanted = replace(routed("alpha.example", "192.0.2.13/24"), mtu=1400)
    establish(wanted)

    assert () == steps_to(wanted)
    assert "192.0.2.13" == seen_address("198.51.100.1", "", namespace())
    assert ["192.0.2.13"] == [each["dst"] for each in ip("neigh show proxy")]
    assert [] == ip("-6 neigh show proxy")
    assert "0" == Path("/proc/sys/net/ipv6/conf/wire0/proxy_ndp").read_text().strip()
    assert 1400 == inside(namespace(), "link show eth0")[0]["mtu"]


@alone()
def test_a_bridge_goes_on_bridging():
    """Its ports reach each other while hosts are routed through it.

    The kernel shows what they say to each other to the rules of forwarding where
    br_netfilter is on, as it is after Docker was started.
    """
    build()
    for name in ("iptables", "ip6tables"):
        switch = Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}")
        if switch.exists():
            switch.write_text("1")
    bridged = host("beta.example", "10.77.0.12/24", "fd77::12/64")
    establish(routed("alpha.example", "10.77.0.11/24", "fd77::11/64"), bridged)

    for source, target, name in (
        ("10.77.0.12", "10.77.0.2", "beta.example"),
        ("fd77::12", "fd77::2", "beta.example"),
        ("10.77.0.11", "10.77.0.2", "alpha.example"),
        ("fd77::11", "fd77::2", "alpha.example"),
    ):
        assert source == seen_address(target, "", namespace(name))
