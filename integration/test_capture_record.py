"""Recording on a bridge, next to tshark: nothing missed, nothing twice, nothing else.

Each test runs in network, mount and process namespaces of its own, which end with it.
"""

import ipaddress
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from vnsmail.capture import evidence
from vnsmail.capture.packets import SYN, Packet, parse
from vnsmail.capture.pcapng import CapturedPacket, Direction, PcapngReader

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

COMMON = """
import os, signal, socket, subprocess, sys, time
from pathlib import Path
from vnsmail.capture.packets import FIN, parse
from vnsmail.capture.pcapng import PcapngReader

folder = Path(sys.argv[1])
CLIENTS = {"client": ("10.77.0.11", "fd77::11"), "server": ("10.77.0.3", "fd77::3")}

def run(*words, netns=None):
    inside = ["ip", "netns", "exec", netns] if netns else []
    return subprocess.run([*inside, *words], check=True, capture_output=True, text=True)

def network():
    Path("/run/netns").mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "tmpfs", "/run/netns")
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "lan0", "type", "bridge")
    run("ip", "link", "set", "lan0", "up")
    addresses("lan0", ("10.77.0.1", "fd77::1"))
    for name in CLIENTS:
        run("ip", "netns", "add", name)
        run("ip", "link", "add", "p-" + name, "type", "veth",
            "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", "p-" + name, "master", "lan0", "up")
        run("ip", "link", "set", "eth0", "up", netns=name)
        addresses("eth0", CLIENTS[name], netns=name)

def addresses(link, both, netns=None):
    run("ip", "addr", "add", both[0] + "/24", "dev", link, netns=netns)
    run("ip", "addr", "add", both[1] + "/64", "dev", link, "nodad", netns=netns)

def record(link, file, *options, netns=None):
    ours, theirs = os.pipe()
    inside = ["ip", "netns", "exec", netns] if netns else []
    process = subprocess.Popen(
        [*inside, sys.executable, "-P", "-m", "vnsmail.capture.record", "--link", link,
         "--file", str(folder / file), "--ready-fd", str(theirs), *options],
        pass_fds=(theirs,), stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    with open(ours, "rb") as pipe:
        assert pipe.read() == b"ready", process.communicate()
    return process

def stop(process):
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 0, errors

SERVER = '''
import socket, sys
def serve(connection):
    with connection, connection.makefile("rwb") as both:
        both.write(b"220 mx1.north.example ESMTP\\\\r\\\\n"); both.flush()
        for line in both:
            both.write(b"354 go\\\\r\\\\n" if line.startswith(b"DATA") else b"250 ok\\\\r\\\\n")
            both.flush()
            if line.startswith(b"DATA"):
                while both.readline() != b".\\\\r\\\\n": pass
                both.write(b"250 ok\\\\r\\\\n"); both.flush()
            if line.startswith(b"QUIT"): return
listener = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6,
    dualstack_ipv6=True, backlog=1024)
print("ready", flush=True)
while True: serve(listener.accept()[0])
'''

CLIENT = '''
import socket, sys
target, name, count, port, size = sys.argv[1:]
for _ in range(int(count)):
    with socket.create_connection((target, int(port))) as s, s.makefile("rwb") as both:
        both.readline()
        for line in ("EHLO " + name, "MAIL FROM:<ann@" + name + ">", "DATA"):
            both.write(line.encode() + b"\\\\r\\\\n"); both.flush(); both.readline()
        both.write(b"x" * int(size) + b"\\\\r\\\\n.\\\\r\\\\n"); both.flush(); both.readline()
        both.write(b"QUIT\\\\r\\\\n"); both.flush(); both.readline()
'''

def server(netns="server", port=25):
    inside = ["ip", "netns", "exec", netns] if netns else []
    process = subprocess.Popen([*inside, sys.executable, "-c", SERVER, str(port)],
        stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\\n"
    return process

def mail(target, name, netns=None, count=1, port=25, size=100):
    run(sys.executable, "-c", CLIENT, target, name, str(count), str(port), str(size),
        netns=netns)

def ends(file):
    with open(folder / file, "rb") as opened:
        packets = [parse(each.data) for each in PcapngReader(opened)]
    return sum(packet.has(FIN) for packet in packets if packet is not None)

def eventually(what):
    for _ in range(200):
        if what(): return
        time.sleep(0.05)
    raise AssertionError("it did not happen")
"""


def inside(tmp_path: Path, script: str) -> str:
    """Run a script in namespaces of its own; return what it printed."""
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
    done = subprocess.run(
        [
            *command,
            "--mount-proc",
            "--",
            sys.executable,
            "-c",
            COMMON + script,
            tmp_path,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def tshark(file: Path, wanted: str, *fields: str) -> list[tuple[str, ...]]:
    """Return fields of the packets that tshark finds, and complain if it does."""
    if shutil.which("tshark") is None:
        pytest.fail("tshark is missing: apt-get install tshark")
    done = subprocess.run(
        [
            *("tshark", "-n", "-r", str(file), "-Y", wanted, "-T", "fields"),
            *(word for field in fields for word in ("-e", field)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(line.split("\t")) for line in done.stdout.splitlines()]


def packets(file: Path) -> list[tuple[CapturedPacket, Packet]]:
    """Return the TCP packets of a file, as captured and as understood."""
    with file.open("rb") as opened:
        found = [(each, parse(each.data)) for each in PcapngReader(opened)]
    return [(each, packet) for each, packet in found if packet is not None]


MESSAGES = """
network()
server()
bridge, port = record("lan0", "bridge"), record("p-client", "port")
mail("10.77.0.3", "alpha.example", netns="client")
mail("fd77::3", "alpha.example", netns="client", size=200_000)
mail("10.77.0.3", "machine.example", size=200_000)
mail("fd77::3", "machine.example")
server(port=80)
mail("10.77.0.3", "alpha.example", netns="client", port=80)
eventually(lambda: ends("bridge") == 8 and ends("port") == 4)
stop(bridge), stop(port)
"""


@pytest.fixture(scope="module")
def messages(tmp_path_factory):
    """A folder with what the bridge and the client's port showed of four messages."""
    folder = tmp_path_factory.mktemp("messages")
    inside(folder, MESSAGES)
    return folder


def test_what_tshark_sees(messages):
    """The same connection requests, the same packets, in both families; none lost."""
    file = messages / "bridge"
    found = evidence.read(file)
    ours = Counter(str(flow.client) for flow in found.flows if flow.initial is not None)
    requests = tshark(
        file, "tcp.flags.syn==1 && tcp.flags.ack==0", "ip.src", "ipv6.src"
    )
    theirs = Counter(v4 or v6 for v4, v6 in requests)

    assert Counter(("10.77.0.11", "fd77::11", "10.77.0.1", "fd77::1")) == ours == theirs
    sources = tshark(file, "tcp.dstport==25", "ip.src", "ipv6.src")
    assert Counter(v4 or v6 for v4, v6 in sources) == {
        str(flow.client): flow.packets for flow in found.flows
    }
    assert sum(flow.answers for flow in found.flows) == len(
        tshark(file, "tcp.srcport==25", "frame.number")
    )
    assert all(flow.accepted for flow in found.flows)
    assert 0 == found.drops == found.repeated == found.unreadable
    assert [] == tshark(file, "tcp.port==80 || arp", "frame.number")


def test_no_packet_twice(messages):
    """The bridge shows what crosses it as often as the client's own port does."""
    bridge = evidence.read(messages / "bridge").flows
    port = evidence.read(messages / "port").flows
    clients = {ipaddress.ip_address(a) for a in ("10.77.0.11", "fd77::11")}

    assert [
        (flow.client, flow.packets, flow.answers, flow.said)
        for flow in bridge
        if flow.client in clients
    ] == [(flow.client, flow.packets, flow.answers, flow.said) for flow in port]
    assert b"EHLO alpha.example\r\n" == port[0].said[:20]


def test_times_and_directions(messages):
    """tshark reads the times, the link's name and the directions that were written."""
    file = messages / "bridge"
    seen = tshark(file, "tcp", "frame.time_epoch", "frame.interface_name")
    taken = packets(file)

    assert [
        (f"{each.time // 10**9}.{each.time % 10**9:09}", "lan0") for each, _ in taken
    ] == seen
    ways = {(str(packet.source), each.direction) for each, packet in taken}
    assert ("10.77.0.1", Direction.OUTGOING) in ways
    assert ("fd77::11", Direction.INCOMING) in ways
    assert len({source for source, _ in ways}) == len(ways)


def test_loopback_shows_each_packet_once(tmp_path):
    inside(
        tmp_path,
        """
run("ip", "link", "set", "lo", "up")
server(netns=None)
recorder = record("lo", "lo")
mail("127.0.0.1", "alpha.example")
mail("::1", "alpha.example")
eventually(lambda: ends("lo") == 4)
stop(recorder)
""",
    )
    found = evidence.read(tmp_path / "lo")

    assert 4 == sum(packet.has(SYN) for _, packet in packets(tmp_path / "lo"))
    assert 2 == len(found.flows)
    assert 0 == found.repeated


def test_the_file_can_be_read_while_it_grows(tmp_path):
    """A message is in the file soon, and with it how many packets were lost so far."""
    inside(
        tmp_path,
        """
from vnsmail.capture import evidence
network()
server()
recorder = record("lan0", "live")
before = evidence.read(folder / "live")
assert before.drops == 0 and not before.flows and not before.cut_off
mail("10.77.0.3", "alpha.example", netns="client")
eventually(lambda: b"QUIT" in b"".join(f.said for f in evidence.read(folder / "live").flows))
assert evidence.read(folder / "live").drops == 0
stop(recorder)
""",
    )


def test_killed(tmp_path):
    """kill -9 in the middle of traffic leaves what tshark and we read alike."""
    inside(
        tmp_path,
        """
import threading
network()
server()
recorder = record("lan0", "killed")
send = lambda: mail("10.77.0.3", "alpha.example", netns="client", count=300, size=9000)
sender = threading.Thread(target=send)
sender.start()
eventually(lambda: (folder / "killed").stat().st_size > 1_000_000)
recorder.kill()
recorder.communicate()
sender.join()
""",
    )
    file = tmp_path / "killed"
    found = evidence.read(file)
    done = subprocess.run(
        ["tshark", "-n", "-r", file, "-T", "fields", "-e", "frame.number"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert found.packets == len(done.stdout.splitlines()) > 1000
    assert found.cut_off == ("cut short" in done.stderr)
    assert 0 == found.drops


def test_drops_are_counted(tmp_path):
    """What did not fit into the kernel's buffer is in the file as a number."""
    inside(
        tmp_path,
        """
from vnsmail.capture.places import Place
from vnsmail.capture.record import Recorder
from vnsmail.capture.ring import open_tap
network()
server()
other = record("lan0", "all")
tap = open_tap("lan0", (25,), size=0)
recorder = Recorder([(Place("lan0"), tap)], folder / "drops")
mail("10.77.0.3", "alpha.example", netns="client", count=20, size=200_000)
eventually(lambda: ends("all") == 40)
recorder.finish()
recorder.close()
stop(other)
""",
    )
    found, complete = (evidence.read(tmp_path / name) for name in ("drops", "all"))

    assert 0 == complete.drops
    assert found.drops is not None
    assert 100 < found.drops
    # What is no TCP, such as multicast listener reports, may come at any time.
    sent = sum(flow.packets + flow.answers for flow in complete.flows)
    assert sent <= found.packets + found.drops <= complete.packets
    assert (f"the capture lost packets: {found.drops} were dropped",) == found.damage


def test_the_link_goes(tmp_path):
    """The recorder says so and ends; what it had is in the file."""
    out = inside(
        tmp_path,
        """
network()
server()
recorder = record("p-client", "gone")
mail("10.77.0.3", "alpha.example", netns="client")
run("ip", "link", "del", "p-client")
print(recorder.communicate(timeout=20)[1], recorder.returncode)
""",
    )

    assert "vnsmail: cannot go on recording: the link p-client is gone\n 1\n" == out
    assert 1 == len(evidence.read(tmp_path / "gone").flows)


def test_the_link_goes_down_and_comes_back(tmp_path):
    """That ends nothing."""
    inside(
        tmp_path,
        """
network()
server()
recorder = record("p-client", "down")
run("ip", "link", "set", "p-client", "down")
time.sleep(1.5)
run("ip", "link", "set", "p-client", "up")
mail("10.77.0.3", "alpha.example", netns="client")
stop(recorder)
""",
    )

    assert 1 == len(evidence.read(tmp_path / "down").flows)


def test_the_disk_is_full(tmp_path):
    """It says so and ends; the file ends with a whole packet."""
    out = inside(
        tmp_path,
        """
network()
server()
disk = folder / "disk"
disk.mkdir()
run("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk)
recorder = record("lan0", "disk/full")
mail("10.77.0.3", "alpha.example", netns="client", count=30, size=20_000)
print(recorder.communicate(timeout=20)[1], recorder.returncode)
from vnsmail.capture import evidence
found = evidence.read(disk / "full")
assert found.packets > 10 and not found.cut_off, found
""",
    )

    assert out.endswith("disk/full: no space left on device; make room\n 1\n")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--link", "none", "--file", "x"), 2, "link 'none': cannot record there: no"),
        (("--link", "lo", "--file", "/none/x"), 2, "file '/none/x': cannot write it"),
    ],
)
def test_what_cannot_be_recorded(tmp_path, words, code, says):
    """One line says what and why."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "vnsmail.capture.record", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert code == done.returncode
    assert done.stderr.startswith(f"vnsmail: {says}")
    assert 1 == done.stderr.count("\n")


def test_without_privilege():
    done = subprocess.run(
        [
            *("setpriv", "--reuid", "65534", "--clear-groups", "--bounding-set=-all"),
            *(sys.executable, "-P", "-m", "vnsmail.capture.record"),
            *("--link", "lo", "--file", "/dev/null"),
        ],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert 4 == done.returncode, done.stderr
    assert (
        "vnsmail: cannot record packets without privilege: run it as root\n"
        == done.stderr
    )
