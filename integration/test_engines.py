"""Real mail servers that send for virtual hosts, judged by packets and remotes.

In a namespace and in an alias context each; the remotes are servers that others wrote.
"""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from integration import mtas
from integration.labs import Lab, eventually

pytestmark = pytest.mark.timeout(600)

ENGINES = ("sendmail", "postfix", "exim")
HOSTS = {
    ("sendmail", "namespace"): ("alpha.example", 11),
    ("postfix", "namespace"): ("beta.example", 12),
    ("exim", "namespace"): ("gamma.example", 13),
    ("sendmail", "alias"): ("delta.example", 14),
    ("postfix", "alias"): ("epsilon.example", 15),
    ("exim", "alias"): ("iota.example", 19),
}
BY = {
    "sendmail": rb"by \S+ \(8\.17[^)]*\) with ",
    "postfix": rb"by \S+ \(Postfix[^)]*\) with ",
    "exim": rb"by \S+ with (?:local-)?e?smtp \(Exim 4\.96\)",
}
CASES = [*HOSTS]
ZONE = """\
dead.example MX 10 mx.dead.example.
mx.dead.example A 10.77.0.240
"""
"""Nobody has that address."""
REMOTE = "opensmtpd"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    prefix = mtas.installed(ENGINES)
    found = Lab(tmp_path_factory.mktemp("lab") / "root", hosts=9, prefix=prefix)
    try:
        (found.root / "lab.zone").write_text(ZONE)
        found.restart("[network]\nmend = false\n")
        found.vnsmail("host", "set-engine", "alpha.example", "sendmail")
        found.vnsmail("apply", "-", stdin=declared(found))
        yield found
    finally:
        # What was started anew is no child of the lab, and would be killed: it is to
        # end in order, as nobody else removes the cgroups of its aliases.
        found.vnsmail("down", check=False)
        found.stop()


def declared(lab):
    """Return the hosts file that gives each of them its engine."""
    text = lab.vnsmail("export").stdout
    for (engine, _), (host, _) in HOSTS.items():
        head = f'[host."{host}"]\n'
        assert head in text
        if host != "alpha.example":
            text = text.replace(head, f'{head}engine = "{engine}"\n')
    return text


@pytest.fixture(scope="module")
def remote(lab):
    with mtas.running(lab, [REMOTE]) as found:
        for host, _ in HOSTS.values():
            to = [f"ann@{found[REMOTE].domain_of(version)}" for version in (4, 6)]
            # A name that there is not, and an address that nobody has.
            to += ["x@nowhere.example", "x@dead.example"]
            lab.send(f"user@{host}", *to, subject=f"from {host}")
        yield found[REMOTE]


def mails_of(remote, host):
    return [m for m in remote.mails() if f"Subject: from {host}\n".encode() in m]


@pytest.mark.parametrize(("engine", "context"), CASES)
def test_it_sends(lab, remote, engine, context):
    """The server's own trace header is there, and the remote saw the host's addresses."""
    host, number = HOSTS[engine, context]
    eventually(lambda: len(mails_of(remote, host)) >= 2, f"mail of {host}", 90)
    seen = set()
    for mail in mails_of(remote, host):
        head = re.sub(rb"\r?\n[ \t]+", b" ", mail)
        assert re.search(BY[engine], head), head
        top = re.search(rb"^Received: from (\S+) \((.*?)\)", head, re.MULTILINE)
        assert top, head
        assert host.encode() == top[1]
        seen |= set(re.findall(r"\[(?:IPv6:)?([^\]]+)\]", top[2].decode()))
    assert seen == {f"10.77.0.{number}", f"fd77::{number}"}
    assert len(mails_of(remote, host)) == 2


@pytest.mark.parametrize("context", ["namespace", "alias"])
def test_claim_05(lab, remote, context, shows):
    """A running Sendmail did the sending, from the virtual host's address."""
    test_it_sends(lab, remote, "sendmail", context)
    host, _ = HOSTS["sendmail", context]
    fields = re.sub(rb"\r?\n[ \t]+", b" ", mails_of(remote, host)[0]).decode()
    shows(*re.findall(r"^Received: (.*)$", fields, re.MULTILINE)[:2])


@pytest.mark.parametrize(("engine", "context"), CASES)
@pytest.mark.usefixtures("remote")
def test_it_tells_the_sender(lab, engine, context):
    """What the server gives up comes back to the host, and lies in the mailbox."""
    host, _ = HOSTS[engine, context]

    def notice():
        return [m for m in lab.mail("user", host) if b"x@nowhere.example" in m]

    eventually(notice, f"the notice of {engine}", 90)
    assert len(notice()) == 1


@pytest.mark.usefixtures("remote")
def test_queues_are_listed(lab):
    """With ours; and an engine that has mail is not taken away."""

    def waiting():
        entries = lab.json("queue", "list")
        return {
            (e["envelope"]["owner"], e["envelope"]["id"].partition(":")[0])
            for e in entries
            if e["envelope"]["recipients"] == ["x@dead.example"]
        }

    wanted = {(host, engine) for (engine, _), (host, _) in HOSTS.items()}
    eventually(lambda: wanted <= waiting(), "mail in all queues", 90)
    done = lab.vnsmail("host", "set-engine", "beta.example", "native", check=False)
    assert done.returncode != 0
    assert "postfix has 1 of its messages queued" in done.stderr
    assert lab.json("host", "show", "beta.example")["engine"] == "postfix"


def test_privileges(lab):
    """Sendmail and Exim have none; Postfix has what its first program needs."""
    rows = {p["name"]: p["privileges"] for p in lab.json("status")["processes"]}
    for (engine, context), (host, _) in HOSTS.items():
        said = rows[f"engine-{host}"]
        if engine == "postfix":
            wanted = "uid 0; chown, dac_override, fowner, kill, setgid, setuid; "
        else:
            wanted = "uid 65534; no capabilities; "
        assert said.startswith(wanted)
        assert ("apart" in said) == (context == "namespace")


def first_process(lab, host):
    """Return the pid here of the first process of an engine's namespaces."""
    keeper = lab.outer_pid(f"engine-{host}")
    return int(Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_it_sees_nothing_else(lab, engine):
    """No state of anybody but its own queue."""
    root = Path(f"/proc/{first_process(lab, HOSTS[engine, 'alias'][0])}/root")
    there = {path.name for path in root.iterdir()}
    assert there <= {
        *("bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run"),
        *("sbin", "tmp", "usr", "var"),
    }
    assert {path.name for path in (root / "var").iterdir()} <= {"lib", "spool"}
    assert not (root / str(lab.root).lstrip("/")).exists()
    assert len([*(root / "proc").glob("[0-9]*")]) < 20


def test_killed(lab, remote):
    """It comes back, and sends what comes then."""
    engine = "postfix"
    host = HOSTS[engine, "namespace"][0]
    before = first_process(lab, host)
    os.kill(before, signal.SIGKILL)
    lab.send(f"user@{host}", f"ann@{remote.domain_of(4)}", subject=f"after {engine}")
    wanted = f"Subject: after {engine}\n".encode()
    eventually(lambda: any(wanted in m for m in remote.mails()), "mail after it", 90)
    assert first_process(lab, host) != before


def test_another_address(lab, remote):
    """Where it is an alias, the server is told; so it is when its host is suspended."""
    host, number = HOSTS["sendmail", "alias"]
    new = f"10.77.0.{number + 50}"
    lab.vnsmail("host", "address", "add", host, f"{new}/24", "--no-probe")
    lab.vnsmail("host", "address", "remove", host, f"10.77.0.{number}", "--drain", "0")
    lab.vnsmail("host", "suspend", host)
    assert f"engine-{host}" not in {p["name"] for p in lab.json("status")["processes"]}
    lab.vnsmail("host", "resume", host)
    lab.send(f"user@{host}", f"ann@{remote.domain_of(4)}", subject="moved")
    found = eventually(
        lambda: [m for m in remote.mails() if b"Subject: moved\n" in m],
        "mail from there",
        90,
    )
    assert f"[{new}]".encode() in found[0].partition(b" by ")[0]


def test_without_its_address(lab, remote):
    """Nothing leaves from another one: the mail waits, wherever it has got to."""
    to = f"bob@{remote.domain_of(4)}"
    hosts = [host for (_, context), (host, _) in HOSTS.items() if context == "alias"]
    for number in (64, 15, 19):
        gone = f"10.77.0.{number}/32"
        lab.inside("machine", "ip", "addr", "del", gone, "dev", "lan0")
    for host in hosts:
        lab.send(f"user@{host}", to, subject="never")

    def held():
        found = lab.json("queue", "list")
        return {
            e["envelope"]["owner"]
            for e in found
            # Exim does not say why in its list.
            if [
                r for r in e["recipients"] if r[0] == to and (r[3] or "exim:" in str(e))
            ]
        }

    eventually(lambda: held() == set(hosts), "the reasons", 90)
    assert not [m for m in remote.mails() if b"Subject: never\n" in m]


def test_packets(lab, remote):
    """Nothing asked that remote for a connection but the hosts, from their addresses."""
    ipv4, ipv6 = remote.addresses
    wanted = (
        "tcp.flags.syn==1 && tcp.flags.ack==0 && tcp.dstport==25 "
        f"&& (ip.dst=={ipv4} || ipv6.dst=={ipv6})"
    )
    command = ["tshark", "-r", lab.facts["capture"], "-Y", wanted, "-T", "fields"]
    done = subprocess.run(
        [*command, "-e", "ip.src", "-e", "ipv6.src"],
        capture_output=True,
        text=True,
        check=False,
    )
    own = {a for _, n in HOSTS.values() for a in (f"10.77.0.{n}", f"fd77::{n}")}
    seen = set(done.stdout.split())
    # The last one was given to a host in between.
    assert own <= seen <= own | {"10.77.0.64"}
