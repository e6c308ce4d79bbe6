"""``vnsmail doctor`` in a lab: clean when all is well, and finds what somebody broke."""

import json
import os
import signal

from integration.labs import eventually
from vnsmail.net import names
from vnsmail.settings import layout


def namespace(lab, host):
    return names.namespace(layout(lab.root).instance, host)


def examined(lab):
    """Return the exit code, and what is not ok."""
    done = lab.vnsmail("doctor", "--json", check=False)
    found = json.loads(done.stdout)
    assert len(found) > 20
    bad = {(f["check"], f["subject"]): f for f in found if f["verdict"] != "ok"}
    return done.returncode, bad


def up(lab):
    """Start vnsmail again, inside of the lab."""
    python = "from vnsmail.cli.app import main; main()"
    lab.inside(
        *("machine", lab.python, "-P", "-c", python),
        *("--root", str(lab.root), "up", "--detach"),
    )


def test_a_fresh_lab(lab):
    """Every check is ok."""
    assert (0, {}) == examined(lab)


def test_after_create_and_destroy(lab):
    """A host that came and went leaves nothing to find; nor do the looks themselves."""
    for context in ("namespace", "alias"):
        lab.vnsmail(
            *("host", "create", "new.example", "--address", "10.77.0.90/24"),
            *("--address", "fd77::90/64", "--context", context),
        )
        # The name server reads the directory anew after some seconds.
        eventually(lambda: examined(lab) == (0, {}), "a clean bill")
        lab.vnsmail("host", "destroy", "new.example")

        assert (0, {}) == examined(lab)


def test_a_foreign_folder(lab):
    """Something lies among the hosts' folders that is no host's."""
    (lab.root / "hosts" / "old.example").mkdir()
    code, bad = examined(lab)
    (lab.root / "hosts" / "old.example").rmdir()

    assert (1, {("orphans", "old.example")}) == (code, set(bad))
    assert "belongs to no host" in bad["orphans", "old.example"]["text"]


def test_addresses_that_are_gone(lab):
    """While vnsmail is down: one of a namespace, one of an alias, and one too many."""
    lab.vnsmail("down")
    lab.inside("alpha.example", "ip", "addr", "del", "10.77.0.11/24", "dev", "eth0")
    lab.inside("machine", "ip", "addr", "del", "fd77::14/128", "dev", "lan0")
    lab.inside("machine", "ip", "netns", "del", namespace(lab, "beta.example"))
    code, bad = examined(lab)

    assert 1 == code
    assert {
        ("daemon", "vnsmail"),
        ("network", "alpha.example"),
        ("address", "alpha.example"),
        ("network", "delta.example"),
        ("address", "delta.example"),
        ("network", "beta.example"),
        ("address", "beta.example"),
    } == set(bad)
    assert "add address 10.77.0.11/24" in bad["network", "alpha.example"]["text"]
    assert "namespace is not there" in bad["address", "beta.example"]["text"]
    up(lab)
    assert (0, {}) == examined(lab)


def test_a_link_that_is_nobody_s(lab):
    """What is marked as ours and belongs to no host is found."""
    lab.vnsmail("down")
    name = namespace(lab, "gamma.example")
    link = json.loads(lab.inside("machine", "ip", "-j", "link").stdout)
    ours = next(x for x in link if x["ifname"].startswith(name[:9]))
    lab.inside(
        *("machine", "ip", "link", "add", "stray0", "group", str(ours["group"])),
        *("type", "bridge"),
    )
    _, bad = examined(lab)
    lab.inside("machine", "ip", "link", "del", "stray0", check=False)
    up(lab)

    assert {("daemon", "vnsmail"), ("orphans", "network")} == set(bad)
    assert "remove link stray0" in bad["orphans", "network"]["text"]
    assert (0, {}) == examined(lab)


def test_a_killed_worker(lab):
    """It was started again by itself; for some minutes that is told."""
    os.kill(lab.outer_pid("worker-0"), signal.SIGKILL)

    def restarted():
        processes = lab.json("status")["processes"]
        found = next(p for p in processes if p["name"] == "worker-0")
        problems = lab.json("status")["problems"]
        return found["restarts"] == 1 and found["state"] == "running" and not problems

    eventually(restarted, "worker-0 runs again")
    code, bad = examined(lab)

    assert (1, {("processes", "worker-0")}) == (code, set(bad))
    assert "started again" in bad["processes", "worker-0"]["text"]


def test_from_every_host_to_a_server(lab):
    """Each connects from its own address; a refusal is told with it."""
    found = lab.vnsmail("doctor", "--reach", "10.77.0.3", "--json", check=False)
    rows = [f for f in json.loads(found.stdout) if f["check"] == "reach"]
    assert {"ok"} == {row["verdict"] for row in rows}
    assert {f"10.77.0.{n}" for n in range(11, 16)} == {
        row["text"].rpartition(" ")[2] for row in rows
    }
    found = lab.vnsmail("doctor", "--reach", "10.77.0.99", "--json", check=False)
    rows = [f for f in json.loads(found.stdout) if f["check"] == "reach"]
    assert {"wrong"} == {row["verdict"] for row in rows}


def test_a_suspended_host_is_well(lab):
    """That its ports are closed is as it should be."""
    lab.vnsmail("host", "suspend", "beta.example")
    found = lab.vnsmail("doctor", "--json", check=False)
    lab.vnsmail("host", "resume", "beta.example")

    rows = [f for f in json.loads(found.stdout) if f["subject"] == "beta.example"]
    assert [] == [row for row in rows if row["verdict"] == "wrong"]
