"""An address that somebody has is found by asking on the link, and one that is free is."""

import time
from ipaddress import ip_address

import pytest

from integration.net_machine import alone, build, host, inside, ip, make, namespace
from vnsmail.net import in_use

pytestmark = pytest.mark.root


def asked(*pairs):
    found = in_use.holders([(link, ip_address(text)) for link, text in pairs])
    return {str(address): hardware for address, hardware in found.items()}


def hardware(where):
    return inside(where, "link show eth0")[0]["address"]


@alone()
def test_who_has_it():
    """Neighbours on a bridge and on a wire, of both families, and nobody else."""
    build()
    make(host("alpha.example", "10.77.0.12/24", "fd77::12/64"))
    near, far, ours = hardware("neighbour"), hardware("far"), hardware(namespace())

    assert {
        "10.77.0.2": near,
        "fd77::2": near,
        "192.0.2.1": far,
        "2001:db8::1": far,
        "10.77.0.12": ours,
        "fd77::12": ours,
    } == asked(
        *(("br0", a) for a in ("10.77.0.2", "fd77::2", "10.77.0.11", "fd77::11")),
        *(("br0", a) for a in ("10.77.0.12", "fd77::12", "192.0.2.1")),
        *(("wire0", a) for a in ("192.0.2.1", "2001:db8::1", "192.0.2.11")),
        *(("wire0", a) for a in ("2001:db8::11", "10.77.0.2")),
    )


@alone()
def test_nobody_to_ask():
    """The loopback, a link that is down, and one that is not there hold nobody up."""
    build()
    ip("link set br0 down")

    assert {} == asked(("lo", "10.77.0.2"), ("br0", "10.77.0.2"), ("gone", "fd77::2"))
    assert {} == asked()


@alone()
def test_a_thousand_at_once():
    """All are asked together: as long as for one, apart from the work itself."""
    build()
    inside("neighbour", "addr add 10.77.3.7/16 dev eth0")
    many = [("br0", f"10.77.{n >> 8}.{n & 255}") for n in range(700, 1700)]
    many += [("br0", f"fd77::{n:x}") for n in range(0x1000, 0x1000 + 1000)]
    begin = time.monotonic()
    found = asked(*many)

    assert {"10.77.3.7": hardware("neighbour")} == found
    # Not one after another: that would be twenty minutes.
    assert time.monotonic() - begin < 60
