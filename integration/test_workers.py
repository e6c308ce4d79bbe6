"""What a worker can do by itself, by what the kernel says: nothing."""

import os
import subprocess
from pathlib import Path

import pytest

from integration.labs import outer


def status(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (x.partition(":") for x in lines)}


@pytest.mark.parametrize("worker", ["worker-0", "worker-machine"])
def test_no_privilege(lab, worker):
    """No capability, no way to get one, an account of its own, system calls refused."""
    found = status(lab.outer_pid(worker))

    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert 0 == int(found[kind], 16)
    assert "1" == found["NoNewPrivs"]
    assert "2" == found["Seccomp"]
    assert {"65534"} == set(found["Uid"].split())
    assert {"65534"} == set(found["Gid"].split())
    assert "" == found["Groups"]


@pytest.mark.parametrize("worker", ["worker-0", "worker-machine"])
def test_empty_network(lab, worker):
    """Its network namespace has a loopback that is down, and nothing else."""
    pid = str(lab.outer_pid(worker))
    network = os.readlink(f"/proc/{pid}/ns/net")
    done = subprocess.run(
        ["nsenter", "--target", pid, "--net", "ip", "-o", "addr"],
        capture_output=True,
        text=True,
        check=True,
    )
    links = subprocess.run(
        ["nsenter", "--target", pid, "--net", "ip", "-o", "link"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert network != os.readlink(f"/proc/{lab.pid}/ns/net")
    assert "" == done.stdout
    assert 1 == len(links.stdout.splitlines())
    assert "state DOWN" in links.stdout


@pytest.mark.parametrize(
    ("worker", "seen", "hidden"),
    [
        ("worker-0", "hosts/alpha.example/queue.db", "machine"),
        ("worker-machine", "machine/queue.db", "hosts"),
    ],
)
def test_sees_its_own_folder_only(lab, worker, seen, hidden):
    """The directory, the control socket and what others own are not there for it."""
    root = Path(f"/proc/{lab.outer_pid(worker)}/root{lab.root}")

    assert (root / seen).exists()
    for name in ("directory.db", "run", "vnsmail.toml", "capture.pcapng", hidden):
        assert not (root / name).exists()


def test_broker_keeps_what_it_needs(lab):
    """NET_BIND_SERVICE, NET_ADMIN, NET_RAW and SYS_ADMIN: not one more."""
    found = status(lab.outer_pid("broker"))
    needed = sum(1 << number for number in (10, 12, 13, 21))

    assert needed == int(found["CapEff"], 16) == int(found["CapBnd"], 16)
    assert "1" == found["NoNewPrivs"]


def test_status_tells_what_the_kernel_says(lab):
    """The privileges in ``vnsmail status`` are not a promise but a reading."""
    told = {p["name"]: p["privileges"] for p in lab.json("status")["processes"]}

    apart = "uid 65534; no capabilities; a network namespace apart"
    assert apart == told["worker-0"] == told["worker-machine"]
    assert (
        "uid 0; net_bind_service, net_admin, net_raw, sys_admin; the machine's network"
        == told["broker"]
    )


def test_pids_are_found(lab):
    """The helper of these tests looks at the right process."""
    command = Path(f"/proc/{outer(lab.pid, 1)}/cmdline").read_bytes()

    assert b"vnsmail.lab.keeper" in command
