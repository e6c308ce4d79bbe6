"""The main job: each virtual host's mail leaves from its own address."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from integration.labs import syns

HOSTS = {
    "alpha.example": ("namespace", "10.77.0.11", "fd77::11"),
    "beta.example": ("namespace", "10.77.0.12", "fd77::12"),
    "gamma.example": ("namespace", "10.77.0.13", "fd77::13"),
    "delta.example": ("alias", "10.77.0.14", "fd77::14"),
    "epsilon.example": ("alias", "10.77.0.15", "fd77::15"),
}
MACHINE = ("10.77.0.1", "fd77::1")


@pytest.fixture(scope="module")
def sent(lab):
    """One message from each host, and one from the machine, to both remotes."""
    for name in HOSTS:
        lab.send(f"user@{name}", "ann@north.example", "bob@south.example", subject=name)
    lab.send("machine", "ann@north.example", "bob@south.example", subject="machine")
    lab.settle()
    return lab


def received_by_subject(mails):
    """Return the topmost Received field, unfolded, by the subject of its message."""
    found = {}
    for mail in mails:
        head = re.sub(rb"\r\n[ \t]+", b" ", mail.partition(b"\r\n\r\n")[0]).decode()
        fields = [line.partition(": ")[::2] for line in head.split("\r\n")]
        subject = next(value for name, value in fields if name == "Subject")
        found[subject] = next(value for name, value in fields if name == "Received")
    return found


@pytest.mark.parametrize(
    ("user", "domain", "family"),
    [("ann", "north.example", 6), ("bob", "south.example", 4)],
)
def test_remote_wrote_the_virtual_host(sent, user, domain, family):
    """A remote that knows nothing of the senders names each by its own address."""
    received = received_by_subject(sent.remote_mail(user, domain))

    assert {*HOSTS, "machine"} == set(received)
    for name, (_, ipv4, ipv6) in HOSTS.items():
        literal = f"[{ipv4}]" if family == 4 else f"[IPv6:{ipv6}]"
        assert received[name].startswith(f"from {name} ({name} {literal}) by mx")
    literal = f"[{MACHINE[0]}]" if family == 4 else f"[IPv6:{MACHINE[1]}]"
    name = "machine.example"
    assert received["machine"].startswith(f"from {name} ({name} {literal}) by mx")


def test_packets_have_the_virtual_hosts_source(sent):
    """In each connection request stands the address of who sends, in both families."""
    addresses = {each for _, *own in HOSTS.values() for each in own}

    assert addresses | set(MACHINE) == syns(Path(sent.facts["capture"]))


def test_proof_passes(sent):
    """The verdict is drawn from packets and from what the remotes wrote."""
    done = sent.vnsmail("prove", "--json", check=False)
    proof = json.loads(done.stdout)
    rows = {row["name"]: row for row in proof["hosts"]}

    assert (0, "pass") == (done.returncode, proof["verdict"])
    assert {*HOSTS, "machine.example"} == set(rows)
    for name, (context, *own) in HOSTS.items():
        row = rows[name]
        assert (context, "pass", 0) == (row["context"], row["verdict"], row["wrong"])
        assert set(own) == set(row["seen"]) == set(row["expected"])
        assert row["packets"] > 10
    assert set(MACHINE) == set(rows["machine.example"]["seen"])


def test_a_wrong_source_fails_the_proof(sent):
    """Mail in a host's name from the machine's address is found in the packets."""
    talk = (
        "import smtplib; s = smtplib.SMTP('10.77.0.3', 25, 'alpha.example'); "
        "s.sendmail('user@alpha.example', "
        "['eve@north.example'], 'Subject: forged\\r\\n\\r\\nx\\r\\n'); s.quit()"
    )
    sent.inside("machine", "/usr/bin/python3", "-c", talk)
    done = sent.vnsmail("prove", "--json", check=False)
    rows = {row["name"]: row for row in json.loads(done.stdout)["hosts"]}

    assert 1 == done.returncode
    assert "fail" == rows["alpha.example"]["verdict"]
    assert rows["alpha.example"]["wrong"] > 0


def test_one_worker_serves_all_hosts(sent):
    """Virtual hosts share the machine: there is no process for each of them."""
    status = sent.json("status")
    owners = {p["name"]: p["owners"] for p in status["processes"]}

    assert set(HOSTS) == set(owners["worker-0"])
    assert ["machine"] == owners["worker-machine"]
    assert {"broker", "worker-0", "worker-machine"} == set(owners)


def test_the_real_network_has_nothing_of_the_lab(sent):
    """All of it happens inside: the machine's own links and namespaces are as before."""
    links = subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout
    found = subprocess.run(["ip", "netns"], capture_output=True, check=True).stdout

    assert b"lan0" not in links
    assert b"vns" not in found
