import errno
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.errors import NetworkStepFailed
from vnsmail.model import HostName
from vnsmail.supervisor import examine
from vnsmail.supervisor.examine import Finding, ProcessFacts

ALPHA, BETA = HostName("alpha.example"), HostName("beta.example")
NOTHING = "0000000000000000"
CONFINED = ProcessFacts(
    status={
        "CapEff": NOTHING,
        "CapPrm": NOTHING,
        "CapBnd": NOTHING,
        "NoNewPrivs": "1",
        "Seccomp": "2",
    },
    own_network=True,
    age=5000,
    descriptors=30,
    limit=1024,
)


def by_subject(findings):
    return {(f.check, f.subject): f.verdict for f in findings}


def test_network():
    """What is left to do for a host is that host's; the rest is nobody's."""
    found = list(
        examine.network(
            [ALPHA, BETA],
            {BETA: ["add address 10.0.0.2"]},
            ["remove namespace vns-x.y"],
        )
    )

    assert {
        ("network", ALPHA): "ok",
        ("network", BETA): "wrong",
        ("orphans", "network"): "wrong",
    } == by_subject(found)
    assert "to do: add address 10.0.0.2" in found[1].text
    assert "to do: remove namespace vns-x.y" in found[2].text


def test_network_as_planned():
    """No steps, nothing wrong."""
    found = by_subject(examine.network([ALPHA], {}, []))

    assert {("network", ALPHA): "ok", ("orphans", "network"): "ok"} == found


@given(st.sets(st.sampled_from("abcd")), st.sets(st.sampled_from("abcd")))
def test_folders(found, hosts):
    """A folder without a host and a host without a folder are both wrong."""
    findings = list(examine.folders(found, hosts, "/x/hosts"))
    wrong = {(f.check, f.subject) for f in findings if f.verdict == "wrong"}

    assert {("orphans", n) for n in found - hosts} | {
        ("queue", n) for n in hosts - found
    } == wrong


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"CapEff": "0000000000000400"}, "no capabilities"),
        ({"CapPrm": "0000000000000400"}, "no capabilities to be had"),
        ({"CapBnd": "00000000a80425fb"}, "no capabilities ever"),
        ({"NoNewPrivs": "0"}, "no new privileges"),
        ({"Seccomp": "0"}, "a system call filter"),
        ({"Seccomp": "1"}, "a system call filter"),
    ],
)
def test_confinement(change, said):
    """Whatever a worker has beyond nothing is wrong."""
    facts = replace(CONFINED, status={**CONFINED.status, **change})
    found = examine.confinement("worker-0", facts)

    assert "ok" == examine.confinement("worker-0", CONFINED).verdict
    assert ("wrong", f"it should have {said}") == (found.verdict, found.text)


def test_confinement_in_the_machine_s_network():
    """So is a network that reaches somebody."""
    found = examine.confinement("worker-0", replace(CONFINED, own_network=False))

    assert "it should have an empty network" == found.text


def test_confinement_without_facts():
    """What the kernel does not say is not taken for granted."""
    found = examine.confinement("worker-0", replace(CONFINED, status={}))

    assert "wrong" == found.verdict


def test_privileges():
    """The broker has some, and no others."""
    facts = replace(CONFINED, status={"CapEff": "3400"})

    assert "ok" == examine.privileges("broker", facts, 0x3400).verdict
    assert "ok" == examine.privileges("broker", facts, 0x7400).verdict
    assert "wrong" == examine.privileges("broker", facts, 0x2400).verdict


def test_restarted():
    """A restart is told for a while."""
    assert None is examine.restarted("worker-0", 0, 3)
    assert None is examine.restarted("worker-0", 1, 3600)
    found = examine.restarted("worker-0", 2, 3.4)
    assert found is not None
    assert ("wrong", "started again 3 s ago, 2 times in all") == (
        found.verdict,
        found.text,
    )


@pytest.mark.parametrize(
    ("used", "limit", "hosts", "verdict"),
    [
        (30, 1024, 5, "ok"),
        (30, 1024, 1000, "wrong"),
        (1000, 1024, 5, "wrong"),
        (30, 20000, 1000, "ok"),
    ],
)
def test_descriptors(used, limit, hosts, verdict):
    """There must be enough for the hosts, and for what is open now."""
    facts = replace(CONFINED, descriptors=used, limit=limit)

    assert verdict == examine.descriptors("worker-0", facts, hosts).verdict


@pytest.mark.parametrize(
    ("free", "files_free", "verdict"),
    [(50, 500, "ok"), (0, 500, "wrong"), (1, 500, "wrong"), (50, 5, "wrong")],
)
def test_disk(free, files_free, verdict):
    """Bytes and files can both run out."""
    gib = 2**30

    assert (
        verdict == examine.disk("/x", free * gib, 100 * gib, files_free, 1000).verdict
    )


def test_disk_without_counts():
    """Some file systems have files without number."""
    assert "ok" == examine.disk("/x", 2**40, 2**41, 0, 0).verdict


@pytest.mark.parametrize(
    ("said", "verdict", "words"),
    [
        (b"220 alpha.example ESMTP\r\n", "ok", "answers"),
        (b"421 later\r\n", "wrong", "says '421 later'"),
        (b"", "wrong", "says 'nothing'"),
        (b"\xff\x00", "wrong", "says"),
        (OSError(errno.ECONNREFUSED, "Connection refused"), "wrong", "refused"),
    ],
)
def test_banner(said, verdict, words):
    """Only a greeting is one."""
    found = examine.banner(ALPHA, "10.0.0.1", 25, said)

    assert verdict == found.verdict
    assert words in found.text


def test_failed():
    """What cannot be looked at is unknown, with words."""
    denied = examine.failed("x", "y", PermissionError(1, "Operation not permitted"))
    other = examine.failed("x", "y", NetworkStepFailed("look", 5))

    assert Finding(
        "x", "y", "unknown", "Operation not permitted", "run it as root"
    ) == (denied)
    assert ("unknown", True) == (other.verdict, "cannot look" in other.text)
