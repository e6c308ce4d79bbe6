"""Real mail servers that send for virtual hosts, judged by packets and remotes.

In a namespace and in an alias context each; the remotes are servers that others wrote.
"""

import re
import subprocess

import pytest

from integration import mtas
from integration.labs import Lab, eventually

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
REMOTE = "opensmtpd"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    prefix = mtas.installed(ENGINES)
    found = Lab(tmp_path_factory.mktemp("lab") / "root", hosts=9, prefix=prefix)
    try:
        for (engine, _), (host, _) in HOSTS.items():
            found.vnsmail("host", "set-engine", host, engine)
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def remote(lab):
    with mtas.running(lab, [REMOTE]) as found:
        for host, _ in HOSTS.values():
            to = [f"ann@{found[REMOTE].domain_of(version)}" for version in (4, 6)]
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
    assert set(done.stdout.split()) == own
