"""The kernel agrees: what has a wrong source does not leave, and is counted."""

from pathlib import Path

import pytest

from integration.labs import syns

CONNECT = (
    "import socket, sys; s = socket.socket(); s.settimeout(2); "
    "s.setsockopt(0, 19, 1); "  # IP_TRANSPARENT: any address may be the source
    "s.bind((sys.argv[1], 0)); s.connect(('10.77.0.3', 25)); print(s.recv(99))"
)


def guard(lab, host):
    return lab.json("host", "show", host)["guard"]


@pytest.mark.parametrize("host", ["alpha.example", "delta.example"])
def test_every_host_is_guarded(lab, host):
    """In both contexts, from the moment that it exists."""
    assert "" == guard(lab, host)["problem"]


def test_wrong_source_inside_a_namespace(lab):
    """An address that is not the host's: nothing leaves."""
    done = lab.inside(
        *("alpha.example", "/usr/bin/python3", "-c", CONNECT, "10.77.0.99"),
        check=False,
    )
    found = guard(lab, "alpha.example")

    assert 0 != done.returncode
    assert "10.77.0.99" not in syns(Path(lab.facts["capture"]))
    assert found["dropped_packets"] > 0
    assert found["dropped_bytes"] > 0


def test_the_machine_cannot_borrow_an_alias(lab):
    """A program of the machine that binds a host's address sends no mail from it."""
    done = lab.inside(
        "machine", "/usr/bin/python3", "-c", CONNECT, "10.77.0.14", check=False
    )

    assert 0 != done.returncode
    assert "10.77.0.14" not in syns(Path(lab.facts["capture"]))
    assert guard(lab, "delta.example")["borrowed_packets"] > 0
    assert guard(lab, "epsilon.example")["borrowed_packets"] == 0


def test_right_sources_pass(lab):
    """The hosts' own mail is in nobody's way."""
    for host in ("alpha.example", "delta.example"):
        lab.send(f"user@{host}", "ann@north.example", subject=host)
    lab.settle()

    assert {"fd77::11", "fd77::14"} <= syns(Path(lab.facts["capture"]))
    assert 0 == guard(lab, "delta.example")["dropped_packets"]


def test_the_guard_goes_with_its_hosts(lab):
    """No table is left when the last alias is gone; foreign ones are untouched."""
    lab.inside("machine", "nft", "add table inet mine")
    before = lab.inside("machine", "nft", "list", "table", "inet", "mine").stdout
    for host in ("delta.example", "epsilon.example"):
        lab.vnsmail("host", "destroy", host, "--discard-queue")
    tables = lab.inside("machine", "nft", "list", "tables").stdout

    assert ["table inet mine"] == tables.strip().splitlines()
    assert (
        before == lab.inside("machine", "nft", "list", "table", "inet", "mine").stdout
    )
