"""What is asked of the supervisor about hosts that exist, and what is shown."""

import time
from typing import Any

import pytest

from vnsmail.engines.protocol import OwnerReport, Tally
from vnsmail.supervisor import control

NOW = 1_800_000_000.0
DONE = control.Changed(("a detail",), ("a step",), changed=True)


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: NOW)


@pytest.fixture
def asked(supervisor):
    for kind in (control.ChangeHost, control.ChangeAddresses, control.RenameHost):
        supervisor.answers[kind] = DONE
    return supervisor


CHANGES: dict[str, dict[str, Any]] = {
    "suspend a.example": {"suspended": True},
    "resume a.example": {"suspended": False},
    "limits a.example --connections 5 --queue-bytes none": {
        "limits.connections": 5,
        "limits.queue_bytes": None,
    },
    "set a.example --mtu 1400 --helo mx.a.example": {
        "mtu": 1400,
        "helo": "mx.a.example",
    },
    "set a.example --gateway none --domain none --mtu none": {
        "gateways": (),
        "domains": None,
        "mtu": None,
    },
    "set a.example --resolver 10.0.0.5 --resolver fd00::5": {
        "resolvers": ("10.0.0.5", "fd00::5")
    },
    "set a.example --source-check nat --public-address 203.0.113.7": {
        "source_check": "nat",
        "public_addresses": ("203.0.113.7",),
    },
}


@pytest.mark.parametrize("words", CHANGES)
def test_changes(vnsmail, asked, words):
    """In the words of the hosts file; what was done is data."""
    done = vnsmail("host", *words.split())
    (request,) = asked.requests

    assert (0, "a detail\n") == (done.code, done.out)
    assert "virtual host a.example is changed\n" == done.err
    assert (
        CHANGES[words].items()
        == {
            key: tuple(each) if isinstance(each, list) else each
            for key, each in request.changes.items()
        }.items()
    )


def test_addresses_and_names(vnsmail, asked):
    """What was typed goes to the supervisor as it is."""
    vnsmail("host", "address", "add", "a.example", "10.0.0.2/24", "fd00::2/64")
    vnsmail("host", "address", "remove", "a.example", "10.0.0.1", "--drain", "5")
    vnsmail("host", "rename", "a.example", "b.example", "--drop-domain")

    assert [
        control.ChangeAddresses("a.example", add=("10.0.0.2/24", "fd00::2/64")),
        control.ChangeAddresses("a.example", remove=("10.0.0.1",), drain=5.0),
        control.RenameHost("a.example", "b.example", keep_domain=False),
    ] == asked.requests


def test_dry_run(vnsmail, asked):
    """The steps are told, and nothing is said to be changed."""
    asked.answers[control.ChangeHost] = control.Changed(("d",), ("s",), changed=False)
    done = vnsmail("host", "suspend", "a.example", "--dry-run")

    assert ("d\n  s\n", "") == (done.out, done.err)
    assert asked.requests[0].dry_run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("set a.example", "say what to change"),
        ("limits a.example", "say which limit"),
        ("limits a.example --connections many", "--connections 'many': give a number"),
        ("set a.example --mtu 1e3", "--mtu '1e3': give a number, or none"),
        ("address remove a.example", "Missing argument"),
        ("explain a.example", "Missing option"),
    ],
)
def test_mistakes(vnsmail, asked, words, said):
    """One line, code 2, and nobody is asked."""
    done = vnsmail("host", *words.split())

    assert (2, "", 1) == (done.code, done.out, len(done.err.splitlines()))
    assert said in done.err
    assert [] == asked.requests


def test_stats(vnsmail, supervisor, root):
    """Numbers, since when they are counted, and what the mailboxes take up."""
    tally = Tally(NOW - 7200, 5, 500, 1, 3, 300, 2, 4, 1, 7, 6)
    supervisor.answers[control.GetTally] = control.Told(tally)
    supervisor.answers[control.GetGuard] = control.Guarded("", 3, 180, 1)
    report = OwnerReport("a.example", (), 0, 2, 0, None, "", octets=900)
    supervisor.answers[control.GetStatus] = control.Status(1, "/r", (), (report,), ())
    new = root / "hosts" / "a.example" / "mail" / "ann" / "new"
    new.mkdir(parents=True)
    (new / "1").write_text("x" * 42)
    done = vnsmail("host", "stats", "a.example")
    found = vnsmail("host", "stats", "a.example", "--json").json

    assert "counted since     2h0m ago\n" in done.out
    assert (5, 3, 1, 900, 42) == (
        found["accepted"],
        found["dropped_packets"],
        found["refused"],
        found["queued_octets"],
        found["mailbox_octets"],
    )


PATH = control.PathOf(
    context="namespace",
    namespace="vns-a.example",
    sources=("10.0.0.1",),
    helo="a.example",
    engine="native",
    servers=("10.0.0.5",),
    mailboxes=(),
    targets=(
        control.WayTo("mx.b.example", 10, "fd00::9", 0, "a.example has no IPv6"),
        control.WayTo(
            "mx.b.example", 10, "10.9.0.9", 1, "", "10.0.0.1", "eth0", "10.0.0.254"
        ),
    ),
    refusals=(),
    tls="none",
    limits={"connections": 5},
)


def test_explain(vnsmail, supervisor):
    """What is tried comes first, then what is not, and why not."""
    supervisor.answers[control.ExplainHost] = PATH
    done = vnsmail("host", "explain", "a.example", "--to", "bob@b.example")
    lines = done.screen().splitlines()

    assert 0 == done.code
    assert [control.ExplainHost("a.example", "bob@b.example")] == supervisor.requests
    assert "limits        connections 5" in lines
    (tried,) = [each for each in lines if "10.9.0.9" in each]
    (passed,) = [each for each in lines if "fd00::9" in each]
    assert "eth0 by 10.0.0.254" in tried
    assert "a.example has no IPv6" in passed
    assert lines.index(tried) < lines.index(passed)


def test_explain_a_refusal(vnsmail, supervisor):
    """It is told, and the exit code says so."""
    supervisor.answers[control.ExplainHost] = control.PathOf(
        *("alias", "", (), "a.example", "native", (), (), (), ("it is suspended",)),
        *("", {}),
    )
    done = vnsmail("host", "explain", "a.example", "--to", "bob@b.example")

    assert (1, "it is suspended") == (done.code, done.out.splitlines()[-1])
