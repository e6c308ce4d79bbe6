"""The proof on a running system: recorded live in every context, read by tshark too;
and the audit, that watches all the time. A socket that is bound wrong makes both tell.
"""

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from integration.labs import VNSMAIL, Lab, eventually

pytestmark = pytest.mark.root

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon")

MISBOUND = """
import socket
sock = socket.socket()
sock.bind(("10.77.0.1", 0))
sock.connect(("10.77.0.3", 25))
for line in ("EHLO alpha.example", "MAIL FROM:<user@alpha.example>", "QUIT"):
    sock.recv(9999)
    sock.send(line.encode() + b"\\r\\n")
sock.recv(9999)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A lab that keeps the keys of its TLS sessions, and is audited."""
    found = Lab(tmp_path_factory.mktemp("lab") / "root", options=("--tls-keys",))
    found.vnsmail("audit", "start")
    eventually(lambda: audit(found)["links"], "the audit watches")
    yield found
    found.stop()


def audit(lab):
    return json.loads(lab.vnsmail("audit", "--json", check=False).stdout)


def record(lab, *words):
    """Begin to record; returns the process once the recorder hears."""
    process = subprocess.Popen(
        [*VNSMAIL, "--root", str(lab.root), "prove", "--json", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("recording:")
    return process


def ended(process):
    out, err = process.communicate(timeout=120)
    assert out, err
    return json.loads(out)


@pytest.fixture(scope="module")
def proven(lab, tmp_path_factory):
    """What was recorded of a message from each sender to remotes, and of one with TLS."""
    folder = tmp_path_factory.mktemp("proof")
    files = ("--save", folder / "all.pcapng", "--html", folder / "proof.html")
    process = record(
        lab, "--messages", 8, "--timeout", 100, "--all", "--tls-keys", *files
    )
    for name in NAMES:
        lab.send(f"user@{name}.example", "bob@north.example")
    lab.send("machine", "bob@south.example")
    lab.send("user@alpha.example", "bob@south.example")
    lab.send("user@alpha.example", "user@beta.example")
    lab.settle()
    return ended(process), folder


def tshark(file: Path, wanted: str, *fields: str) -> list[tuple[str, ...]]:
    done = subprocess.run(
        [
            *("tshark", "-n", "-r", str(file), "-Y", wanted, "-T", "fields"),
            *(word for field in fields for word in ("-e", field)),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return [tuple(line.split("\t")) for line in done.stdout.splitlines()]


def test_all_witnesses_agree(proven):
    proof, _ = proven

    assert [] == [p for host in proof["hosts"] for p in host["problems"]]
    assert ("pass", []) == (proof["verdict"], proof["problems"])
    assert ["packets", "remote", "socket"] == proof["witnesses"]
    assert 0 == proof["drops"]
    agreed = [each for each in proof["messages"] if not each["absent"]]
    assert {f"{name}.example" for name in NAMES} | {"machine.example"} == {
        each["sender"] for each in agreed
    }
    assert all(each["packets"] == each["socket"] == each["received"] for each in agreed)
    # Within the machine nobody's Maildir is read: two witnesses, behind TLS.
    (inner,) = [each for each in proof["messages"] if each["absent"]]
    assert ("alpha.example", ["remote"]) == (inner["sender"], inner["absent"])


def test_tshark_sees_the_same_connections(proven):
    """Each once or more often, as it passes one place or several; no other ones."""
    proof, folder = proven
    ends = ("ip.src", "ipv6.src", "tcp.srcport", "ip.dst", "ipv6.dst", "tcp.dstport")
    wanted = "tcp.flags.syn==1 && tcp.flags.ack==0"
    theirs = {
        (v4 or v6, port, to4 or to6, to_port)
        for v4, v6, port, to4, to6, to_port in tshark(
            folder / "all.pcapng", wanted, *ends
        )
    }
    ours = Counter(
        (c["client"], str(c["client_port"]), c["server"], str(c["server_port"]))
        for c in proof["connections"]
    )

    assert theirs == set(ours)
    assert {1} == set(ours.values())


def test_tshark_shows_names_contexts_and_comments(proven):
    proof, folder = proven
    done = subprocess.run(
        [
            *("tshark", "-N", "n", "-r", str(folder / "all.pcapng"), "-T", "fields"),
            *("-Y", "frame.comment && tcp.dstport == 25", "-e", "frame.comment"),
            *("-e", "ip.src_host", "-e", "ipv6.src_host", "-e", "frame.interface_name"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split("\t") for line in done.stdout.splitlines()]

    assert all(four or six in text for text, four, six, _ in rows), rows
    places = {"lan0", *(f"{name}.example/eth0" for name in NAMES[:3])}
    assert places == set(proof["interfaces"])
    told = " ".join(row[0] for row in rows)
    assert all(m["id"] in told for m in proof["messages"])
    assert "connection of machine.example" in told


def test_tshark_reads_what_was_said_behind_tls(proven):
    """The keys are in the file: MAIL FROM is read of the one connection with TLS."""
    _, folder = proven
    file = folder / "all.pcapng"
    stream = tshark(file, "tls", "tcp.stream")[0][0]
    done = subprocess.run(
        ["tshark", "-r", str(file), "-q", "-z", f"follow,tls,ascii,{stream}"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert "MAIL FROM:<user@alpha.example>" in done.stdout


def test_the_page_is_there(proven):
    _, folder = proven
    page = (folder / "proof.html").read_text()

    assert "mx1.north.example" in page
    assert "<script" not in page


def test_the_same_file_on_another_machine(proven, lab, tmp_path):
    """With nothing but the file and the hosts: the same connections are right."""
    proof, folder = proven
    hosts = tmp_path / "hosts.toml"
    hosts.write_text(lab.vnsmail("export").stdout)
    words = ("--pcap", folder / "all.pcapng", "--hosts", hosts, "--seen", "--json")
    known = ("--machine", "10.77.0.1", "--machine", "fd77::1")
    done = subprocess.run(
        [
            *(*VNSMAIL, "--root", str(tmp_path / "none"), "prove"),
            *(*map(str, words), *known, "--machine-name", "machine.example"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)

    assert (0, "pass") == (done.returncode, found["verdict"]), done.stderr
    assert len(proof["connections"]) == len(found["connections"])


def test_keys_are_told_in_a_lab_only(tmp_path, proven):
    _, folder = proven
    root = tmp_path / "root"
    root.mkdir()
    words = (folder / "all.pcapng", "--tls-keys", "--save", tmp_path / "x")
    known = ("--machine", "10.77.0.1")
    done = subprocess.run(
        [*VNSMAIL, "--root", str(root), "prove", *map(str, words), *known],
        capture_output=True,
        text=True,
        check=False,
    )

    assert 2 == done.returncode
    assert "keys are kept in a lab only" in done.stderr
    assert 1 == done.stderr.count("\n")
    assert not (tmp_path / "x").exists()


def test_a_socket_that_is_bound_wrong(lab, proven):
    """The proof fails, and the audit raises: event, status, metrics."""
    before = audit(lab)
    assert ("running", 0) == (before["state"], before["wrong"])
    assert before["right"] >= len(NAMES)
    process = record(lab, "--seconds", 6)
    lab.inside("machine", "python3", "-c", MISBOUND)
    proof = ended(process)
    found = eventually(lambda: audit(lab)["found"], "the audit tells")

    assert "fail" == proof["verdict"]
    alpha = next(h for h in proof["hosts"] if h["name"] == "alpha.example")
    assert any("came from 10.77.0.1, the address of" in p for p in alpha["problems"])
    assert ("alpha.example", "10.77.0.1") == (found[0]["host"], found[0]["source"])
    assert 1 == lab.vnsmail("audit", check=False).returncode
    problems = dict(lab.json("status")["problems"])
    assert "came from 10.77.0.1" in problems["alpha.example"]
    metrics = lab.vnsmail("metrics").stdout
    assert "vnsmail_audit_wrong_connections_total 1" in metrics
    assert 'vnsmail_host_ok{host="alpha.example"} 0' in metrics
    log = lab.root / "log" / "events.jsonl"
    event = eventually(
        lambda: [e for e in log.read_text().splitlines() if "wrong_source" in e],
        "the event is written",
    )
    assert "10.77.0.1" in event[0]


def test_the_audit_has_no_privilege_and_comes_back(lab):
    """No capability, no network; what it found stays told when it ends and starts."""
    (process,) = [p for p in lab.json("status")["processes"] if p["name"] == "audit"]
    assert process["privileges"].endswith("no capabilities; a network namespace apart")
    lab.inside("machine", "kill", "-9", str(process["pid"]))

    def back():
        found = audit(lab)
        return found["state"] == "running" and found["pid"] != process["pid"]

    eventually(back, "another one watches")
    assert audit(lab)["found"]
    lab.vnsmail("audit", "stop")
    assert "off" == audit(lab)["state"]
    assert "alpha.example" not in dict(lab.json("status")["problems"])
