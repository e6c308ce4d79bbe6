"""A host's own address is missing: its mail waits, and leaves from nowhere else."""

import json
import re
from pathlib import Path

import pytest

from integration.labs import eventually, syns

pytestmark = pytest.mark.usefixtures("unmended_lab")

CASES = {
    "gamma.example": ("gamma.example", "eth0", ("10.77.0.13/24", "fd77::13/64")),
    "epsilon.example": ("machine", "lan0", ("10.77.0.15/32", "fd77::15/128")),
}


@pytest.mark.parametrize("host", CASES)
def test_mail_waits_and_goes_when_the_address_is_back(lab, host):
    """No packet, no other source, no attempt used up; then it leaves as it should."""
    node, link, addresses = CASES[host]
    before = syns(Path(lab.facts["capture"]))
    for address in addresses:
        lab.inside(node, "ip", "addr", "del", address, "dev", link)
    lab.send(f"user@{host}", "ann@north.example", subject=host)

    def reason():
        found = lab.json("queue", "list", "--host", host)
        waiting = [r for entry in found for r in entry["recipients"]]
        return waiting and waiting[0][3] and waiting[0]

    address, attempts, _, said = eventually(reason, "a reason in the queue")
    state = json.loads(lab.vnsmail("host", "show", host, "--json").stdout)["state"]
    sources = syns(Path(lab.facts["capture"]))

    assert "ann@north.example" == address
    assert 0 == attempts
    assert re.search(rf"cannot send as {host}: \S+ is not usable here", said)
    assert f"cannot send as {host}" in state
    assert before == sources
    assert not [m for m in lab.remote_mail("ann") if host.encode() in m]

    for address in addresses:
        nodad = ["nodad"] if ":" in address else []
        lab.inside(node, "ip", "addr", "add", address, "dev", link, *nodad)
    eventually(
        lambda: [m for m in lab.remote_mail("ann") if host.encode() in m],
        "the message at the remote",
    )
    lab.settle()
    own = {address.partition("/")[0] for address in addresses}
    assert syns(Path(lab.facts["capture"])) - before <= own


def test_only_one_family_is_missing(lab):
    """The other family is no way out: it would be another address of the host."""
    lab.inside("beta.example", "ip", "addr", "del", "fd77::12/64", "dev", "eth0")
    lab.send("user@beta.example", "ann@north.example", subject="one family")

    def reason():
        found = lab.json("queue", "list", "--host", "beta.example")
        return [r[3] for entry in found for r in entry["recipients"] if r[3]]

    (said,) = eventually(reason, "a reason in the queue")

    assert "fd77::12" in said
    assert "10.77.0.12" not in syns(Path(lab.facts["capture"]))
    lab.inside(
        "beta.example", "ip", "addr", "add", "fd77::12/64", "dev", "eth0", "nodad"
    )
    lab.settle()


def test_the_namespace_is_gone(lab):
    """A host without its namespace has no way out through anybody else's."""
    before = syns(Path(lab.facts["capture"]))
    namespace = json.loads(
        lab.vnsmail("host", "show", "alpha.example", "--json").stdout
    )
    lab.inside("machine", "ip", "netns", "del", namespace["namespace"])
    lab.send("user@alpha.example", "bob@south.example", subject="no namespace")

    def reason():
        found = lab.json("queue", "list", "--host", "alpha.example")
        return [r[3] for entry in found for r in entry["recipients"] if r[3]]

    (said,) = eventually(reason, "a reason in the queue")

    assert "cannot send as alpha.example" in said
    assert before == syns(Path(lab.facts["capture"]))
