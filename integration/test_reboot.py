"""The machine is started again: the kernel and /run have forgotten everything."""

import json
import os
import shutil
import signal

import pytest

from integration.labs import eventually
from vnsmail.settings import layout


def forget(lab):
    """Take away all that does not outlive a reboot, as the power does."""
    instance = layout(lab.root).instance
    os.kill(lab.outer_pid("supervisor"), signal.SIGKILL)
    eventually(lambda: lab.vnsmail("status", check=False).returncode == 3, "it ended")
    spaces = lab.inside("machine", "ip", "netns").stdout.split()
    for name in spaces:
        if name.startswith(f"vns{instance}-"):
            lab.inside("machine", "ip", "netns", "del", name)
    for link in json.loads(lab.inside("machine", "ip", "-j", "link").stdout):
        if link["ifname"].startswith(f"vns{instance}"):
            lab.inside("machine", "ip", "link", "del", link["ifname"], check=False)
    for line in lab.inside("machine", "ip", "-o", "addr", "show").stdout.splitlines():
        _, link, _, address, *_ = line.split()
        if address.endswith(("/32", "/128")) and "::1/" not in address:
            lab.inside("machine", "ip", "addr", "del", address, "dev", link)
    lab.inside("machine", "nft", "flush", "ruleset")
    shutil.rmtree(lab.root / "run")
    (lab.root / "run").mkdir()


@pytest.mark.timeout(240)
def test_up_rebuilds_all(lab):
    """Every host is as before, and what was queued leaves; doctor has no complaint."""
    facts = (lab.root / "run" / "lab.json").read_bytes()
    hosts = lab.hosts()
    before = [lab.json("host", "show", f"{h}.example") for h in ("beta", "epsilon")]
    # What is said to be queued, delivered by now or not, arrives.
    for host in ("alpha", "delta"):
        lab.send(f"user@{host}.example", "ann@south.example", subject=f"from {host}")
    forget(lab)
    (lab.root / "run" / "lab.json").write_bytes(facts)
    lab.up()
    lab.settle()

    assert hosts == lab.hosts()
    after = [lab.json("host", "show", f"{h}.example") for h in ("beta", "epsilon")]
    same = ("name", "context", "addresses", "link", "gateways")
    for old, new in zip(before, after, strict=True):
        assert {k: old.get(k) for k in same} == {k: new.get(k) for k in same}
        assert "" == new["guard"]["problem"]
    got = b"".join(lab.remote_mail("ann", "south.example"))
    assert b"Subject: from alpha" in got
    assert b"Subject: from delta" in got
    findings = json.loads(lab.vnsmail("doctor", "--json", check=False).stdout)
    assert [] == [f for f in findings if f["verdict"] != "ok"]
