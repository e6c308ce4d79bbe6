"""An address that moves is reached at once by neighbours that knew it elsewhere."""

import socket

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
)
from vnsmail.net import namespaces, requests
from vnsmail.net.netlink import Kernel

pytestmark = pytest.mark.root

PATIENCE = 2.0
"""Seconds. A stale entry is believed for five at least, and the kernel's first retry of
a connection request comes after one."""

CONTEXTS = ("namespace", "alias")
SAME, OTHER = "alpha.example", "beta.example"


def reached(address, where):
    """Connect from the neighbour to an address of a host; say if it is reached."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def listen():
        return socket.create_server((address, 4025), family=family)

    def connect():
        sock = socket.socket(family)
        sock.settimeout(PATIENCE)
        try:
            sock.connect((address, 4025))
        except OSError:
            return False
        finally:
            sock.close()
        return True

    with namespaces.inside(where, listen) if where else listen():
        return namespaces.inside("neighbour", connect)


@alone()
@pytest.mark.parametrize("name", [SAME, OTHER])
@pytest.mark.parametrize("after", CONTEXTS)
@pytest.mark.parametrize("before", CONTEXTS)
@pytest.mark.parametrize("address", ["10.77.0.11/24", "fd77::11/64"])
def test_address_moves(before, after, address, name):
    """From a namespace to an alias of the machine, back, and from host to host."""
    build()
    bare = address.partition("/")[0]

    for context, who in ((before, SAME), (after, name)):
        make(host(who, address, context=context))
        where = namespace(who) if context == "namespace" else ""
        assert reached(bare, where), context


@alone()
@pytest.mark.parametrize("address", ["10.77.0.12/24", "fd77::12/64"])
def test_address_added_to_a_host_that_is_there(address):
    """A second address arrives on a link that is up already."""
    build()
    first = ("10.77.0.11/24", "fd77::11/64")
    bare = address.partition("/")[0]
    make(host(SAME, *first), host(OTHER, address))
    assert reached(bare, namespace(OTHER))
    make(host(SAME, *first, address))

    assert reached(bare, namespace(SAME))
    assert inside("neighbour", f"neigh show {bare}")


def isolated():
    """Return the ports of the machine that are kept from their siblings."""
    return [
        link["ifname"]
        for link in ip("-d link show")
        if link.get("linkinfo", {}).get("info_slave_data", {}).get("isolated")
    ]


def reached_from(where, address):
    """Connect from one host to another."""
    with namespaces.inside(namespace("h0.example"), listening(address)):
        return namespaces.inside(where, connecting(address))


def listening(address):
    return lambda: socket.create_server((address, 4025))


def connecting(address):
    def connect():
        with socket.socket() as sock:
            sock.settimeout(PATIENCE)
            sock.connect((address, 4025))
            return True

    return connect


@alone()
def test_many_arrive_at_once():
    """Who knew the addresses elsewhere is told; afterwards all hear each other."""
    build()
    numbers = range(8)
    moved = [
        host(f"h{n}.example", f"10.77.0.{20 + n}/24", context="alias") for n in numbers
    ]
    make(*moved)
    assert reached("10.77.0.20", "")
    hosts = [host(f"h{n}.example", f"10.77.0.{20 + n}/24") for n in numbers]
    make(*hosts)

    assert reached("10.77.0.20", namespace("h0.example"))
    assert [] == isolated()
    assert reached_from(namespace("h7.example"), "10.77.0.20")
    for link in ip("link show"):
        assert "arriving" not in link.get("ifalias", "")


@alone()
def test_cut_off_while_they_are_kept_apart():
    """The next plan lets them hear each other; ports that somebody isolated stay so."""
    build()
    hosts = [host(f"h{n}.example", f"10.77.0.{20 + n}/24") for n in range(3)]
    make(*hosts)
    ports = [port(each.name) for each in hosts]
    ip(f"link set {ports[0]} type bridge_slave isolated on")
    with Kernel() as kernel:
        for each in ports[1:]:
            remark = ip(f"link show {each}")[0]["ifalias"]
            kernel.do(requests.port_apart(each, remark, apart=True))
    assert sorted(ports) == sorted(isolated())
    assert {f"set {each} up" for each in ports[1:]} == set(make(*hosts))

    assert ports[:1] == isolated()
    assert [] == make(*hosts)
