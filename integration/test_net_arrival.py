"""An address that moves is reached at once by neighbours that knew it elsewhere."""

import socket

import pytest

from integration.net_machine import alone, build, host, inside, make, namespace
from vnsmail.net import namespaces

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
