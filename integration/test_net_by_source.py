"""Aliases with a router of their own, on a machine with two uplinks; judged by packets.

    wire0  192.0.2.2, default route ──── far     198.18.9.9, 2001:db8:99::9
    wire1  198.51.100.2            ──── other   198.18.9.9, 2001:db8:99::9

Both ways lead to the same remote addresses; who is reached says which way was taken.
"""

import contextlib
import functools
import socket

import pytest

from integration.net_machine import (
    alone,
    build,
    host,
    inside,
    ip,
    make,
    snapshot,
    steps_to,
)
from vnsmail.net import namespaces

pytestmark = pytest.mark.root

REMOTES = {4: "198.18.9.9", 6: "2001:db8:99::9"}
OTHER = ("198.51.100.11/24", "2001:db8:1::11/64")
ROUTERS = ("198.51.100.1", "2001:db8:1::1")


def two_uplinks():
    build()
    inside("far", "addr del 198.51.100.1/32 dev lo")
    ip("netns add other")
    inside("other", "link set lo up")
    ip("link add wire1 type veth peer name eth0 netns other")
    inside("other", "addr add 198.51.100.1/24 dev eth0")
    inside("other", "addr add 2001:db8:1::1/64 dev eth0 nodad")
    inside("other", "link set eth0 up")
    ip("addr add 198.51.100.2/24 dev wire1")
    ip("addr add 2001:db8:1::2/64 dev wire1 nodad")
    ip("link set wire1 up")
    for name in ("far", "other"):
        inside(name, f"addr add {REMOTES[4]}/32 dev lo")
        inside(name, f"addr add {REMOTES[6]}/128 dev lo nodad")
        # What would answer is of no matter: each hears what comes its way.
        for back in ("192.0.2.0/24", "198.51.100.0/24"):
            with contextlib.suppress(AssertionError):
                inside(name, f"route add {back} dev eth0 onlink")


def alias(name="alpha.example", *addresses, routers=ROUTERS, link="wire1"):
    return host(
        name, *(addresses or OTHER), context="alias", link=link, gateways=routers
    )


def heard(source, version=4, target=None):
    """Send a datagram from a source; returns who hears it: far, other or nobody."""
    target = target or REMOTES[version]
    family = socket.AF_INET if version == 4 else socket.AF_INET6

    def listen(address):
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.bind((address, 0))
        return sock

    with contextlib.ExitStack() as stack:
        listening = {}
        for name in ("far", "other"):
            listening[name] = stack.enter_context(
                namespaces.inside(name, functools.partial(listen, REMOTES[version]))
            )
        for name, sock in listening.items():
            with (
                socket.socket(family, socket.SOCK_DGRAM) as sender,
                contextlib.suppress(OSError),
            ):
                if source:
                    sender.bind((source, 0))
                sender.sendto(b"hello", (target, sock.getsockname()[1]))
            sock.settimeout(1)
            with contextlib.suppress(TimeoutError):
                _, whom = sock.recvfrom(9)
                return name, whom[0]
    return "nobody", ""


@alone()
def test_each_leaves_by_its_own_uplink():
    """The alias by its router, another alias and the machine by the default route."""
    two_uplinks()
    clean = snapshot()
    hosts = (alias(), alias("beta.example", "192.0.2.12/24", routers=(), link="wire0"))
    make(alias(routers=()))
    assert ("far", "198.51.100.11") == heard("198.51.100.11")
    make(*hosts)

    assert ("other", "198.51.100.11") == heard("198.51.100.11")
    assert ("other", "2001:db8:1::11") == heard("2001:db8:1::11", 6)
    assert ("far", "192.0.2.12") == heard("192.0.2.12")
    assert ("far", "192.0.2.2") == heard("")
    assert "far" == heard("", 6)[0]
    assert () == steps_to(*hosts)
    make()
    assert clean == snapshot()
    assert 3 == len(ip("rule show"))


@alone()
def test_a_link_that_is_down():
    """Then it reaches nobody; it does not leave by the machine's default route."""
    two_uplinks()
    wanted = alias()
    make(wanted)
    ip("link set wire1 down")

    assert ("nobody", "") == heard("198.51.100.11")
    assert ("nobody", "") == heard("2001:db8:1::11", 6)
    ip("link set wire1 up")
    ip("addr replace 2001:db8:1::2/64 dev wire1 nodad")
    make(wanted)
    assert ("other", "198.51.100.11") == heard("198.51.100.11")
    assert ("other", "2001:db8:1::11") == heard("2001:db8:1::11", 6)


@alone()
def test_what_is_near_is_reached_as_by_everybody():
    """A namespace host on a bridge of the machine is not looked for at the router."""
    two_uplinks()
    make(alias())
    found = ip("route get 10.77.0.2 from 198.51.100.11")

    assert "br0" == found[0]["dev"]


@alone()
def test_damage_by_hand():
    """Rules and routes that somebody took away come back; those of others stay."""
    two_uplinks()
    ip("rule add from 198.51.100.11 lookup 77 priority 7000")
    wanted = alias()
    make(wanted)
    whole = (snapshot(), ip("rule show"), ip("-6 rule show"))
    table = next(r["table"] for r in ip("rule show") if r["priority"] == 5551)
    for damage in (
        "rule del priority 5550",
        "-6 rule del priority 5551",
        f"route flush table {table}",
        f"route del default via 198.51.100.1 table {table}",
    ):
        ip(damage)
        assert () != steps_to(wanted), damage
        make(wanted)
        assert whole == (snapshot(), ip("rule show"), ip("-6 rule show")), damage
    make()
    assert [0, 7000, 32766, 32767] == [r["priority"] for r in ip("rule show")]
