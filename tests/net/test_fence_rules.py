"""What the fence lets pass; integration/test_net_routed.py has it judged by packets."""

import json

import pytest

from tests.net.networks import INSTANCE, host
from vnsmail.net import names
from vnsmail.net.fence_rules import fence, fence_name

ALPHA = host("alpha.example", "192.0.2.11/24", link="eth0", uplink="routed")
BETA = host("beta.example", "192.0.2.12/24", "fd77::12/64", link="br0", uplink="routed")
BRIDGED = host("gamma.example", "10.77.0.13/24")


def sets(*hosts, forwards=()):
    table = fence(hosts, INSTANCE, forwards)
    assert table is not None
    json.dumps([table.chains[0].rules, table.chains[1].rules])
    return {each.name: each.elements for each in table.sets}


@pytest.mark.parametrize("hosts", [(), (BRIDGED,)])
def test_nobody_routed(hosts):
    assert fence(hosts, INSTANCE) is None


def test_each_uplink_has_its_own_addresses():
    found = sets(BETA, BRIDGED, ALPHA)
    alpha, beta = (names.link(INSTANCE, h.name) for h in (ALPHA, BETA))

    assert (
        {"concat": [alpha, "192.0.2.11"]},
        {"concat": [beta, "192.0.2.12"]},
    ) == found["own4"]
    assert ({"concat": [beta, "fd77::12"]},) == found["own6"]
    assert (("br0", "eth0"), ("br0",)) == (found["through4"], found["through6"])
    assert [alpha, "forged-alpha.example"] in found["uplinks"]
    assert ({"concat": ["br0", "br0"]}, {"concat": ["eth0", "eth0"]}) == found["within"]


def test_a_router_goes_on_routing():
    """What the machine forwards anyway is the operator's business."""
    found = sets(ALPHA, BETA, forwards=(4,))

    assert ((), ("br0",)) == (found["through4"], found["through6"])


def test_the_same_for_the_same_hosts():
    """The state says whether it is there already: order is no difference."""
    one, other = fence((ALPHA, BETA), INSTANCE), fence((BETA, ALPHA), INSTANCE)
    assert one is not None
    assert other is not None

    assert one.state == other.state
    assert fence_name(INSTANCE) == one.name
    assert fence((ALPHA,), INSTANCE) != one
