"""Hosts with a tag (IEEE 802.1Q); a kernel without VLANs says so."""

import subprocess
from dataclasses import replace

import pytest

from integration.net_machine import (
    alone,
    build,
    host,
    inside,
    ip,
    make,
    namespace,
    seen_address,
    snapshot,
    steps_to,
)
from vnsmail.errors import NetworkStepFailed


def _kernel_has_vlans():
    words = "ip link add name one type veth && ip link add link one type vlan id 9"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", words], capture_output=True, check=False
    )
    return done.returncode == 0


VLANS = _kernel_has_vlans()


def tagged(name, number, tag=42):
    facts = host(name, f"192.0.2.{number}/24", link="wire0")
    own = replace(
        facts.addresses[0], address=type(facts.addresses[0].address)(f"10.5.0.{number}")
    )
    return replace(facts, addresses=(own,), gateways=(), vlan=tag)


@pytest.mark.root
@pytest.mark.skipif(VLANS, reason="this kernel has VLANs")
@alone()
def test_a_kernel_without_vlans_says_so():
    build()
    clean = snapshot()
    with pytest.raises(NetworkStepFailed, match="no VLANs; load the module 8021q"):
        make(tagged("alpha.example", 11))
    make()

    assert clean == snapshot()


@pytest.mark.root
@pytest.mark.skipif(not VLANS, reason="this kernel has no VLANs (module 8021q)")
@alone()
def test_seen_with_its_tag():
    """Who listens in the tagged network sees the host; the link goes with the last."""
    build()
    inside("far", "link add link eth0 name eth0.42 type vlan id 42")
    inside("far", "addr add 10.5.0.1/24 dev eth0.42")
    inside("far", "link set eth0.42 up")
    clean = snapshot()
    alpha, beta = tagged("alpha.example", 11), tagged("beta.example", 12)
    make(alpha, beta)

    assert () == steps_to(alpha, beta)
    vlans = ip("-d link show type vlan")
    assert [42] == [x["linkinfo"]["info_data"]["id"] for x in vlans]
    for name, own in (("alpha.example", "10.5.0.11"), ("beta.example", "10.5.0.12")):
        assert own == seen_address("10.5.0.1", own, namespace(name))
    make(beta)
    assert 1 == len(ip("link show type vlan"))
    make()
    assert clean == snapshot()
