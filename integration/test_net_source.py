"""The machine's own sockets keep the machine's address, whatever aliases there are."""

import fcntl
import socket
import struct

import pytest

from integration.net_machine import (
    alone,
    build,
    host,
    inside,
    ip,
    make,
    namespace,
    port,
    seen_address,
    steps_to,
)
from vnsmail.net import namespaces

pytestmark = pytest.mark.root

# Lower than the machine's address and higher, in case an order should matter.
ALIASES = (
    ("192.0.2.1%d/24", "2001:db8::1%d/64"),
    ("10.77.0.1%d/24", "fd77::1%d/64"),
)
TARGETS = {
    "10.77.0.2": "10.77.0.1",
    "fd77::2": "fd77::1",
    "192.0.2.1": "192.0.2.2",
    "198.51.100.1": "192.0.2.2",
    "2001:db8::1": "2001:db8::2",
    "2001:db8:ff::1": "2001:db8::2",
}


def make_aliases():
    hosts = [
        host(
            f"host{number}-{row}.example",
            *(address % number for address in addresses),
            context="alias",
        )
        for row, addresses in enumerate(ALIASES)
        for number in range(1, 4)
    ]
    make(*hosts)
    return hosts


def chosen():
    """Return which address the kernel chooses towards each neighbour."""
    return {target: seen_address(target) for target in TARGETS}


@alone()
def test_unbound():
    """On the link, behind a router, both families."""
    build()
    assert TARGETS == chosen()
    make_aliases()

    assert TARGETS == chosen()
    assert "192.0.2.12" == seen_address("198.51.100.1", "192.0.2.12")
    assert "2001:db8::12" == seen_address("2001:db8:ff::1", "2001:db8::12")


@alone()
def test_machine_address_comes_again():
    """A new lease puts the machine's address last in the list, not in the choice."""
    build()
    hosts = make_aliases()
    ip("addr del 192.0.2.2/24 dev wire0")
    ip("addr add 192.0.2.2/24 dev wire0")
    ip("route replace default via 192.0.2.1")
    ip("-6 addr del 2001:db8::2/64 dev wire0")
    ip("-6 addr add 2001:db8::2/64 dev wire0 nodad")

    assert TARGETS == chosen()
    assert () == steps_to(*hosts)


@alone()
def test_machine_with_a_bare_address():
    """Where the router is in no network of the machine, no network helps to choose."""
    build()
    hosts = make_aliases()
    ip("addr del 192.0.2.2/24 dev wire0")
    ip("addr add 192.0.2.2/32 dev wire0")
    ip("route replace default via 192.0.2.1 dev wire0 onlink")
    inside("far", "route add 192.0.2.2/32 dev eth0")

    assert "192.0.2.2" == seen_address("198.51.100.1")
    assert () == steps_to(*hosts)


@alone()
def test_machine_without_address():
    """What the machine has lost is not replaced by what virtual hosts have."""
    build()
    make_aliases()
    ip("addr del 192.0.2.2/24 dev wire0")
    ip("route replace default via 192.0.2.1 dev wire0 onlink")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("198.51.100.1", 9))

        assert "10.77.0.1" == sock.getsockname()[0]


@alone()
def test_address_of_a_link_for_legacy_programs():
    """SIOCGIFADDR (netdevice(7)) still names the machine's address."""
    build()
    make_aliases()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, 0x8915, struct.pack("16s24x", b"wire0"))

    assert "192.0.2.2" == socket.inet_ntoa(answer[20:24])


@alone()
@pytest.mark.parametrize("cable", ["in", "out"])
def test_ipv6_can_be_bound_at_once(cable):
    """Nothing waits for duplicate address detection, not even without a carrier."""
    build()
    if cable == "out":
        inside("far", "link set eth0 down")
    make(
        host("alpha.example", "fd77::11/64"),
        host("beta.example", "2001:db8::12/64"),
        host("gamma.example", "2001:db8::13/64", context="alias"),
    )

    def bind(address):
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind((address, 0))
        return True

    assert namespaces.inside(namespace(), lambda: bind("fd77::11"))
    assert namespaces.inside(namespace("beta.example"), lambda: bind("2001:db8::12"))
    assert bind("2001:db8::13")


@alone()
def test_ports_are_silent():
    """The machine has no address on the link to a host's namespace."""
    build()
    make(host("alpha.example", "10.77.0.11/24"))

    assert [] == ip(f"addr show {port()}")[0]["addr_info"]
