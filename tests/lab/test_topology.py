"""Who is who in a lab."""

import pytest

from vnsmail.errors import BadInput
from vnsmail.lab import topology
from vnsmail.model import Context, Family, host_name


def test_of_five_hosts_three_are_namespaces():
    """A small lab has both kinds of context, each with both families."""
    hosts = topology.virtual_hosts(5)

    assert 3 == sum(host.context is Context.NAMESPACE for host in hosts)
    assert 2 == sum(host.context is Context.ALIAS for host in hosts)
    assert all(
        [Family.IPV4, Family.IPV6] == [a.family for a in host.addresses]
        for host in hosts
    )


def test_no_name_or_address_is_given_twice():
    """The largest lab there is still gives everybody an address of their own."""
    hosts = topology.virtual_hosts(topology.MAX_HOSTS)
    named = [host.name for host in hosts] + [node.name for node in topology.nodes()]
    addresses = [a.address for host in hosts for a in host.addresses]
    addresses += [a.address for node in topology.nodes() for a in node.addresses]
    addresses += [a.address for a in topology.MACHINE_ADDRESSES]

    assert len(named) == len(set(named))
    assert len(addresses) == len(set(addresses))
    assert named == [host_name(name) for name in named]


@pytest.mark.parametrize("count", [-1, topology.MAX_HOSTS + 1])
def test_too_many_hosts(count):
    """A number of hosts that cannot be is refused with the numbers that can."""
    with pytest.raises(BadInput, match=f"give 0 to {topology.MAX_HOSTS}"):
        topology.virtual_hosts(count)
