"""Ten thousand messages of twenty virtual hosts and the machine at once.

Every message is named after who sends it, so that whose a packet should be is known
from what it carries: the sender in its MAIL command. Then, on purpose, wrong sources.
"""

import collections
import email
import email.policy
import json
import os
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from integration.claims.scene import packets
from integration.labs import Lab
from vnsmail.cli import client
from vnsmail.settings import layout
from vnsmail.supervisor import control

HOSTS = 20
MESSAGES = 10_000
MACHINE = "machine"
REMOTES = {
    *("10.77.0.3", "fd77::3", "10.77.0.4"),
}
PATIENCE = 420.0

MISBOUND = (
    "import socket, sys; s = socket.socket(); s.settimeout(2); "
    "s.setsockopt(0, 19, 1); "  # IP_TRANSPARENT: any address may be the source
    "s.bind((sys.argv[1], 0)); s.connect(('10.77.0.4', 25)); "
    "s.recv(99); s.sendall(b'EHLO x\\r\\n'); s.recv(999); "
    "s.sendall(b'MAIL FROM:<user@' + sys.argv[2].encode() + b'>\\r\\n'); s.recv(99)"
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    found = Lab(tmp_path_factory.mktemp("mixed") / "root", hosts=HOSTS)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def addresses(lab):
    """The addresses of each sender, the machine among them."""
    found = {
        host["name"]: {each.partition("/")[0] for each in host["addresses"]}
        for host in lab.json("host", "list")
    }
    assert HOSTS == len(found)
    found[MACHINE] = {"10.77.0.1", "fd77::1"}
    return found


@pytest.fixture(scope="module")
def sent(lab, addresses):
    """All have sent; returns how many messages each."""
    where = layout(lab.root)
    senders = list(addresses)
    shares = collections.Counter(senders[n % len(senders)] for n in range(MESSAGES))

    def send(sender):
        machine = sender == MACHINE
        who = "" if machine else f"user@{sender}"
        for number in range(shares[sender]):
            domain = "north.example" if number % 2 else "south.example"
            with tempfile.TemporaryFile() as message:
                text = f"Subject: {sender}\nX-Number: {number}\n\nhello\n"
                message.write(text.encode())
                message.seek(0)
                request = control.Send(who, (f"bob@{domain}",), machine=machine)
                fds = (message.fileno(),)
                client.ask(where, request, control.Queued, fds)

    with ThreadPoolExecutor(len(senders)) as threads:
        list(threads.map(send, senders))
    lab.vnsmail("queue", "wait", "--timeout", str(int(PATIENCE)))
    return shares


@pytest.fixture(scope="module")
def letters(lab, sent):
    """What the remotes have: who it says it is of, and what they wrote of who came."""
    found = []
    for remote in lab.facts["remotes"]:
        with os.scandir(Path(remote["mail"]) / "bob" / "new") as files:
            for file in files:
                head = Path(file.path).read_bytes().partition(b"\r\n\r\n")[0]
                message = email.message_from_bytes(head, policy=email.policy.compat32)
                received = " ".join(str(message["Received"]).split())
                peer = re.match(r"from (\S+) .*?\[(?:IPv6:)?([0-9a-f.:]+)\]", received)
                assert peer, received
                found.append((message["Subject"], message["X-Number"], *peer.groups()))
    return found


@pytest.mark.timeout(900)
def test_claim_33_every_message_came_from_its_sender(sent, letters, addresses, shows):
    """The remotes wrote the name and an address of the sender, of each of them."""
    came = collections.Counter(subject for subject, *_ in letters)

    assert MESSAGES == len({(s, n) for s, n, *_ in letters}) == len(letters)
    assert sent == came
    for sender, _, helo, address in letters:
        assert helo == ("machine.example" if sender == MACHINE else sender)
        assert address in addresses[sender]
    shows(f"{len(letters)} messages of {len(came)} senders, each named by the remote")


@pytest.mark.timeout(900)
def test_claim_33_not_one_packet_from_a_wrong_address(lab, sent, addresses, shows):
    """Each packet is of a flow whose MAIL commands are its owner's."""
    capture = Path(lab.facts["capture"])
    owner = {address: name for name, own in addresses.items() for address in own}
    seen = collections.Counter(
        p.source if p.target in REMOTES else p.target for p in packets(capture)
    )
    said = list(mail_commands(capture))

    assert {address: n for address, n in seen.items() if address not in owner} == {}
    assert len(said) >= MESSAGES
    assert [] == [(s, sender) for s, sender in said if owner[s] != sender]
    shows(
        f"{sum(seen.values())} packets of {len(seen)} addresses, each attributed; "
        f"{len(said)} MAIL commands, none from another's address"
    )


@pytest.mark.timeout(900)
def test_claim_33_proof(lab, sent, shows):
    """The product's own proof of the same packets agrees."""
    done = lab.vnsmail("prove", "--json", check=False)

    assert 0 == done.returncode, done.stdout[-3000:] + done.stderr
    shows(f"vnsmail prove: {HOSTS} hosts and the machine, exit status 0")


@pytest.mark.timeout(900)
def test_claim_33_wrong_on_purpose(lab, sent, addresses, shows):
    """A socket bound to another address: it is dropped and counted; the proof says so."""
    alpha = "alpha.example"
    other = min(a for a in addresses["beta.example"] if "." in a)
    before = lab.json("host", "show", alpha)["guard"]["dropped_packets"]
    done = misbound(lab, alpha, other)
    after = lab.json("host", "show", alpha)["guard"]["dropped_packets"]
    proof = json.loads(lab.vnsmail("prove", "--json", check=False).stdout)
    told = [s for s in proof["hosts"] if s["name"] == alpha]

    assert 0 != done.returncode
    assert after > before
    assert [after] == [sender["dropped_packets"] for sender in told]
    shows(f"guard of {alpha}: {before} packets dropped before, {after} after")


@pytest.mark.timeout(900)
def test_claim_33_wrong_and_unguarded(lab, sent, addresses, shows):
    """With the guard taken away too, the packets tell, whoever looks."""
    capture = Path(lab.facts["capture"])
    owner = {address: name for name, own in addresses.items() for address in own}
    lab.inside("alpha.example", "nft", "flush", "ruleset")
    misbound(lab, "alpha.example", "10.77.0.99")
    proof = lab.vnsmail("prove", "--json", check=False)
    found = {p.source for p in packets(capture) if p.target in REMOTES}

    assert "10.77.0.99" in found
    assert "10.77.0.99" not in owner
    assert 0 != proof.returncode
    shows("10.77.0.99 > 10.77.0.4:25: nobody's address, and the proof fails")


def misbound(lab, host, address):
    """Connect in a host's namespace from an address that is not its own."""
    return lab.inside(
        *(host, "/usr/bin/python3", "-c", MISBOUND, address, host), check=False
    )


def mail_commands(capture):
    """Return source and sender of each MAIL command on the wire."""
    fields = ("tcp.stream", "ip.src", "ipv6.src", "tcp.payload")
    done = subprocess.run(
        [
            *("tshark", "-r", str(capture), "-Y", "tcp.dstport == 25 && tcp.len > 0"),
            *("-T", "fields", *(word for field in fields for word in ("-e", field))),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    said: dict[tuple[str, str], bytearray] = collections.defaultdict(bytearray)
    for line in done.stdout.splitlines():
        stream, four, six, payload = line.split("\t")
        said[stream, four or six] += bytes.fromhex(payload.replace(":", ""))
    for (_, source), octets in said.items():
        for domain in re.findall(rb"MAIL FROM:<[^@>]*@([^>]*)>", octets):
            name = domain.decode()
            yield source, MACHINE if name == "machine.example" else name
