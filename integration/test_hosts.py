"""Virtual hosts come and go, whole, through the command line."""

import json

import pytest

from integration.labs import eventually


def network(lab):
    """Return what the kernel has, apart from counters and ages."""
    links = json.loads(lab.inside("machine", "ip", "-j", "link").stdout)
    addresses = lab.inside("machine", "ip", "-o", "addr").stdout
    routes = lab.inside("machine", "ip", "route", "show", "table", "all").stdout
    routes6 = lab.inside("machine", "ip", "-6", "route", "show", "table", "all").stdout
    return (
        sorted(link["ifname"] for link in links),
        [line.partition("valid_lft")[0] for line in addresses.splitlines()],
        sorted(routes.splitlines()),
        sorted(line.partition("expires")[0] for line in routes6.splitlines()),
        sorted(lab.inside("machine", "ip", "netns").stdout.split("\n")),
        lab.inside("machine", "mount").stdout,
    )


@pytest.mark.parametrize("context", ["namespace", "alias"])
@pytest.mark.parametrize("family", ["both", "4", "6"])
def test_create_use_and_destroy(lab, context, family):
    """A new host sends and receives at once; destroyed, it leaves nothing."""
    name = f"{context}{family}.example"
    addresses = {"4": ["10.77.0.77/24"], "6": ["fd77::77/64"]}
    addresses["both"] = addresses["4"] + addresses["6"]
    options = [w for a in addresses[family] for w in ("--address", a)]
    before = network(lab)
    create = ("host", "create", name, *options, "--context", context)
    planned = lab.json(*create, "--dry-run")
    assert before == network(lab)
    done = lab.json(*create)
    made = network(lab)
    again = lab.json(*create)

    assert planned["steps"] == done["steps"] != []
    assert (True, False) == (done["changed"], again["changed"])
    assert made == network(lab) != before

    lab.vnsmail("user", "add", f"user@{name}")
    lab.send("user@alpha.example", f"user@{name}", subject="in")
    lab.send(f"user@{name}", "user@beta.example", subject=f"out of {name}")
    lab.settle()
    inward = lab.mail("user", name)
    outward = [m for m in lab.mail("user", "beta.example") if name.encode() in m]

    assert 1 == len(inward)
    assert 1 == len(outward)
    literals = {"4": b"[10.77.0.77]", "6": b"[IPv6:fd77::77]"}
    expected = literals["4" if family == "4" else "6"]
    assert expected in outward[0]

    lab.vnsmail("host", "destroy", name)
    assert before == eventually(
        lambda: network(lab) == before and network(lab), "the network as it was"
    )
    assert not (lab.root / "hosts" / name).exists()
    assert name not in [host["name"] for host in lab.json("host", "list")]
    assert 2 == lab.vnsmail("host", "destroy", name, check=False).returncode


def test_destroy_with_mail_in_the_queue(lab):
    """Queued mail is not thrown away unless that is said."""
    create = ("host", "create", "full.example", "--address", "10.77.0.78/24")
    lab.vnsmail(*create)
    lab.vnsmail("user", "add", "user@full.example")
    lab.inside("mx2.south.example", "ip", "link", "set", "eth0", "down")
    try:
        lab.send("user@full.example", "ann@south.example")
        refused = lab.vnsmail("host", "destroy", "full.example", check=False)
    finally:
        lab.inside("mx2.south.example", "ip", "link", "set", "eth0", "up")

    assert 2 == refused.returncode
    assert "mail is still in its queue" in refused.stderr
    lab.vnsmail("host", "destroy", "full.example", "--discard-queue")
    assert not (lab.root / "hosts" / "full.example").exists()


def test_destroying_one_host_leaves_its_neighbours(lab):
    """Hosts on one link in one network do not depend on each other."""
    for number in (81, 82, 83):
        lab.vnsmail(
            *("host", "create", f"n{number}.example", "--context", "alias"),
            *("--address", f"10.77.0.{number}/24", "--address", f"fd77::{number}/64"),
        )
        lab.vnsmail("user", "add", f"user@n{number}.example")
    lab.vnsmail("host", "destroy", "n81.example")
    lab.send("user@n82.example", "user@n83.example", subject="still here")
    lab.settle()
    (mail,) = lab.mail("user", "n83.example")

    assert b"[IPv6:fd77::82]" in mail
    for number in (82, 83):
        lab.vnsmail("host", "destroy", f"n{number}.example")
