"""What a process can do that was started as a worker is, and handed a worker's sockets.

The code run inside is what somebody could do who has taken a worker over.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import dns.message
import dns.rrset
import pytest

from integration.broker_network import (
    ALIAS,
    ONE,
    PATIENCE,
    THE_MACHINE,
    ConfinedWorker,
    Neighbour,
    eventually,
    situation,
    socket_of,
    status,
)
from integration.net_machine import alone, ip
from vnsmail.net import namespaces
from vnsmail.supervisor.launch import LAUNCH_FAILED

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

NOBODY = 65534


def state(folder):
    """Make a root's folders in a place that only root may pass; returns hosts/."""
    folder.chmod(0o700)
    hosts = folder / "state" / "hosts"
    hosts.mkdir(parents=True)
    os.chown(hosts, NOBODY, NOBODY)
    (folder / "state" / "machine").mkdir()
    (folder / "state" / "directory.db").write_text("secret")
    (folder / "beside").write_text("secret")
    return hosts


# Sockets ----------------------------------------------------------------------

SENDS = """
async def main(sockets):
    loop = asyncio.get_running_loop()
    for owner in ("one.example", "alias.example"):
        for version, server in ((4, "10.77.0.2"), (6, "fd77::2")):
            source = await sockets.connectable(owner, Family(version))
            await loop.sock_connect(source.sock, (server, 25))
            told([source.source, source.sock.getsockname()[0]])
            source.sock.close()
"""


@alone()
def test_a_worker_sends_over_the_sockets_it_is_handed(tmp_path):
    """Into an empty network namespace, from where it reaches nothing by itself."""
    with situation() as (neighbour, broker):
        channel = broker.channel("worker-0", ONE, ALIAS)
        worker = ConfinedWorker(channel, state(tmp_path), SENDS)
        for host in (ONE, ALIAS):
            for version, own in zip((4, 6), host.addresses, strict=True):
                assert own == neighbour.visitor(version)
                assert [own, own] == worker.told()

        assert 0 == worker.close()


BY_ITSELF = """
async def main(sockets):
    told([
        refused(socket.socket, family, kind)
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX,
                       socket.AF_PACKET, socket.AF_NETLINK)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW)
    ])
    told(os.listdir("/proc"))
"""


@alone()
def test_a_worker_makes_no_socket(tmp_path):
    with situation() as (_, broker):
        channel = broker.channel("worker-0", ONE)
        worker = ConfinedWorker(channel, state(tmp_path), BY_ITSELF)

        assert {"EPERM"} == set(worker.told())
        assert [] == worker.told()
        assert 0 == worker.close()


BENDS = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)

def disconnect(sock):
    assert libc.connect(sock.fileno(), bytes(16), 16) == 0

async def main(sockets):
    loop = asyncio.get_running_loop()

    async def arrive(sock, server):
        await loop.sock_connect(sock, (server, 25))
        told(sock.getsockname()[0])

    # The address of another host of the same namespace: the machine's and an alias.
    for version, server, others in (
        (4, "10.77.0.2", ("10.77.0.1", "10.77.0.22", "0.0.0.0")),
        (6, "fd77::2", ("fd77::1", "fd77::22", "::")),
    ):
        source = await sockets.connectable("alias.example", Family(version))
        sock = source.sock
        bends = [refused(sock.bind, (other, 0)) for other in others]
        for level, option in ((0, 24), (0, 15), (0, 19), (41, 26), (41, 75), (1, 25)):
            bends.append(refused(sock.setsockopt, level, option, 0))
        bends.append(refused(sock.listen))
        bends.append(refused(sock.sendto, b"x", 0x20000000, (server, 25)))
        told(bends)
        disconnect(sock)
        await arrive(sock, server)
        disconnect(sock)
        told([refused(sock.bind, (other, 0)) for other in others])
        await arrive(sock, server)
        sock.close()
    # Over IPv4, which IPV6_V6ONLY forbids; else it would be ECONNREFUSED.
    source = await sockets.connectable("alias.example", Family.IPV6)
    told(refused(source.sock.connect, ("::ffff:10.77.0.1", 9)))
    source.sock.close()
"""


@alone()
def test_a_bound_socket_keeps_its_address_whatever_its_holder_does(tmp_path):
    """Bound anew, disconnected, turned to IPv4, opened in a SYN, made to listen."""
    with situation() as (neighbour, broker):
        ip("addr add 10.77.0.22/32 dev br0")
        ip("addr add fd77::22/128 dev br0 nodad")
        channel = broker.channel("worker-0", ALIAS)
        worker = ConfinedWorker(channel, state(tmp_path), BENDS)
        for version, own in zip((4, 6), ALIAS.addresses, strict=True):
            assert ["EPERM"] * 11 == worker.told()
            assert own == neighbour.visitor(version)
            assert own == worker.told()
            assert ["EPERM"] * 3 == worker.told()
            assert own == neighbour.visitor(version)
            assert own == worker.told()

        assert "ENETUNREACH" == worker.told()
        assert 0 == worker.close()


RE_USES = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)

async def main(sockets):
    loop = asyncio.get_running_loop()
    listener = await sockets.listener("alias.example", sys.argv[3], 25)
    told("listening")
    accepted, _ = await loop.sock_accept(listener)
    libc.connect(accepted.fileno(), bytes(16), 16)
    told([refused(accepted.bind, (sys.argv[5], 0))])
    await loop.sock_connect(accepted, (sys.argv[4], 25))
    told(accepted.getsockname()[0])
"""


@alone()
@pytest.mark.parametrize("version", [4, 6])
def test_an_accepted_socket_connects_from_the_address_it_came_to(tmp_path, version):
    server = "10.77.0.2" if version == 4 else "fd77::2"
    own = ALIAS.addresses[version == 6]
    with situation() as (neighbour, broker):
        channel = broker.channel("worker-0", ALIAS)
        code = RE_USES.replace("sys.argv[3]", repr(own))
        code = code.replace("sys.argv[4]", repr(server))
        machine = "10.77.0.1" if version == 4 else "fd77::1"
        code = code.replace("sys.argv[5]", repr(machine))
        worker = ConfinedWorker(channel, state(tmp_path), code)
        assert "listening" == worker.told()
        with socket_of("neighbour", neighbour.sockets[version].family) as client:
            with contextlib.suppress(ConnectionResetError):  # disconnected at once
                client.connect((own, 25))
            assert ["EPERM"] == worker.told()
            assert own == neighbour.visitor(version)

        assert own == worker.told()
        assert 0 == worker.close()


TURNS = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)

async def main(sockets):
    loop = asyncio.get_running_loop()
    sock = await sockets.resolver("tcp", "10.77.0.2")
    libc.connect(sock.fileno(), bytes(16), 16)
    told("turned")
    try:
        async with asyncio.timeout(1.5):
            await loop.sock_connect(sock, ("10.77.0.2", 25))
    except TimeoutError:
        told("nothing")
    else:
        told("connected")
"""


@alone()
def test_a_resolvers_socket_is_no_way_to_send_mail_as_the_machine(tmp_path):
    with situation() as (neighbour, broker):
        name_server = Neighbour(port=53)
        channel = broker.channel("worker-0", ONE)
        worker = ConfinedWorker(channel, state(tmp_path), TURNS)
        assert "turned" == worker.told()

        assert "nothing" == worker.told()
        assert not neighbour.waiting()
        assert 0 == worker.close()
        name_server.close()


ASKS = """
from vnsmail.resolve.resolver import Resolver

async def main(sockets):
    resolver = Resolver(sockets.resolver, ["10.77.0.2"], 10.0)
    told([mx.name for mx in await resolver.mx("remote.example")])
    found = await resolver.addresses("large.example", Family.IPV4)
    told([str(address) for address in found])
"""


@alone()
def test_a_worker_asks_the_dns(tmp_path):
    """Over UDP, and over TCP where an answer is too long."""
    with situation() as (_, broker):
        server = NameServer()
        channel = broker.channel("worker-0", ONE)
        worker = ConfinedWorker(channel, state(tmp_path), ASKS)

        assert ["mx1.remote.example"] == worker.told()
        assert ["192.0.2.9"] == worker.told()
        assert 0 == worker.close()
        assert {("udp", "10.77.0.1"), ("tcp", "10.77.0.1")} == server.asked
        server.close()


class NameServer:
    """One on the neighbour; cuts off what is said of large.example over UDP."""

    def __init__(self):
        self.asked = set()
        self._udp = socket_of("neighbour", socket.AF_INET, socket.SOCK_DGRAM)
        self._tcp = socket_of("neighbour", socket.AF_INET)
        self._udp.bind(("10.77.0.2", 53))
        self._tcp.bind(("10.77.0.2", 53))
        self._tcp.listen()
        targets = (self._serve_udp, self._serve_tcp)
        self._threads = [threading.Thread(target=target) for target in targets]
        for thread in self._threads:
            thread.start()

    def _serve_udp(self):
        for _ in range(2):
            data, peer = self._udp.recvfrom(4096)
            self.asked.add(("udp", peer[0]))
            self._udp.sendto(answer(data, cut=True), peer)

    def _serve_tcp(self):
        connection, peer = self._tcp.accept()
        self.asked.add(("tcp", peer[0]))
        with connection:
            data = connection.recv(4096)[2:]
            said = answer(data, cut=False)
            connection.sendall(len(said).to_bytes(2, "big") + said)

    def close(self):
        for thread in self._threads:
            thread.join(PATIENCE)
        self._udp.close()
        self._tcp.close()


def answer(data, *, cut):
    query = dns.message.from_wire(data)
    response = dns.message.make_response(query)
    name = query.question[0].name
    if name.to_text() == "remote.example.":
        text = "10 mx1.remote.example."
        response.answer = [dns.rrset.from_text(name, 60, "IN", "MX", text)]
    elif cut:
        response.flags |= dns.flags.TC
    else:
        response.answer = [dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.9")]
    return response.to_wire()


# Privileges and files ---------------------------------------------------------

STAYS = """
async def main(sockets):
    told("here")
    sys.stdin.readline()
"""


@alone()
def test_a_worker_has_no_privilege_by_what_the_kernel_says(tmp_path):
    with situation() as (_, broker):
        channel = broker.channel("worker-0", ONE)
        worker = ConfinedWorker(channel, state(tmp_path), STAYS)
        assert "here" == worker.told()
        found = status(worker.pid)
        command = ["nsenter", "--net", f"--target={worker.pid}", "ip", "-o", "addr"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)

        for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
            assert 0 == int(found[f"Cap{kind}"], 16)
        assert ("1", "2") == (found["NoNewPrivs"], found["Seccomp"])
        assert ["65534"] * 4 == found["Uid"].split() == found["Gid"].split()
        assert "" == found["Groups"]
        assert "" == done.stdout
        assert str(os.getsid(worker.pid)) == str(worker.pid)
        worker.go_on()
        assert 0 == worker.close()


LOOKS = """
import apsw, pathlib

async def main(sockets):
    hosts = pathlib.Path(sys.argv[1])
    state, above = hosts.parent, hosts.parent.parent
    told([sorted(os.listdir(folder)) for folder in (hosts, state, above, "/proc")])
    told([refused(os.mkdir, folder / "new") for folder in (state, above)])
    told(refused(open, pathlib.Path(os.__file__).parent / "new", "w"))
    database = apsw.Connection(str(hosts / "queue.db"))
    database.execute("pragma journal_mode=wal; create table t(x); insert into t values(5)")
    (hosts / "alpha.example").mkdir()
    (hosts / "alpha.example" / "a").write_text("written")
    (hosts / "alpha.example" / "a").rename(hosts / "alpha.example" / "b")
    told("written")
    sys.stdin.readline()
    told((hosts / "beta.example" / "from-outside").read_text())
"""


@alone()
def test_a_worker_sees_its_folder_and_nothing_beside_it(tmp_path):
    """What it writes there is real, and what is made there later it sees."""
    hosts = state(tmp_path)
    with situation() as (_, broker):
        channel = broker.channel("worker-0", ONE)
        worker = ConfinedWorker(channel, hosts, LOOKS)

        # The test's own folder, which only root may pass, is covered with all in it.
        assert [[], ["hosts"], ["state"], []] == worker.told()
        assert ["EROFS", "EROFS"] == worker.told()
        # Mounted read-only, or root's, by where this Python lies.
        assert worker.told() in {"EROFS", "EACCES"}
        assert "written" == worker.told()
        assert "written" == (hosts / "alpha.example" / "b").read_text()
        assert NOBODY == (hosts / "alpha.example" / "b").stat().st_uid
        assert (hosts / "queue.db").exists()
        assert ["directory.db", "hosts", "machine"] == sorted(os.listdir(hosts.parent))
        (hosts / "beta.example").mkdir()
        (hosts / "beta.example" / "from-outside").write_text("seen")
        worker.go_on()
        assert "seen" == worker.told()
        assert 0 == worker.close()


REACHES = """
import ctypes, signal
libc = ctypes.CDLL(None, use_errno=True)

async def main(sockets):
    victim = int(sys.stdin.readline())
    told([
        refused(os.kill, victim, signal.SIGKILL),
        refused(os.kill, -1, signal.SIGKILL),
        refused(open, f"/proc/{victim}/mem"),
        *(refused(system, *call) for call in (
            (101, 16, victim, 0, 0),            # ptrace, PTRACE_ATTACH
            (310, victim, 0, 0, 0, 0, 0),       # process_vm_readv
            (438, 3, 0, 0),                     # pidfd_getfd
            (424, 3, 9, 0, 0),                  # pidfd_send_signal
            (272, 0x10000000),                  # unshare, CLONE_NEWUSER
            (56, 0x10000000 | 17, 0, 0, 0, 0),  # clone, CLONE_NEWUSER
        )),
    ])

def system(*words):
    if libc.syscall(*(ctypes.c_long(word) for word in words)) < 0:
        raise OSError(ctypes.get_errno(), "")
"""


@alone()
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers are of x86_64")
def test_a_worker_reaches_no_other_process_of_its_account(tmp_path):
    """Above all not the machine's worker, which holds unbound sockets."""
    with situation() as (_, broker):
        hosts = state(tmp_path)
        machine = broker.channel("worker-machine", THE_MACHINE)
        victim = ConfinedWorker(machine, hosts, STAYS)
        assert "here" == victim.told()
        worker = ConfinedWorker(broker.channel("worker-0", ONE), hosts, REACHES)
        worker.go_on(str(victim.pid))

        answers = worker.told()
        assert ["EPERM", "EPERM", "ENOENT"] == answers[:3]
        assert {"EPERM"} == set(answers[3:])
        victim.go_on()
        assert (0, 0) == (victim.close(), worker.close())


@alone()
def test_a_worker_keeps_no_namespace_that_is_removed(tmp_path):
    """Though its mounts are a copy, with those of namespaces in it.

    Not even where nobody made /run/netns a mount whose changes reach all copies.
    """
    with situation() as (_, broker):
        subprocess.run(["mount", "--make-rprivate", "/run/netns"], check=True)
        worker = ConfinedWorker(broker.channel("worker-0"), state(tmp_path), STAYS)
        assert "here" == worker.told()
        namespaces.make("later")
        ip("link add p-later type veth peer name eth0 netns later")
        for name in ("one", "later"):
            namespaces.remove(name)

            gone = f"/sys/class/net/p-{name}"
            eventually(lambda gone=gone: not os.path.exists(gone), f"{name} ended")
        worker.go_on()
        assert 0 == worker.close()


@alone(root=False)
def test_where_there_is_one_uid_a_worker_keeps_it_and_loses_the_rest(tmp_path):
    """In the user namespace of an ordinary user's lab."""
    hosts = tmp_path / "state" / "hosts"
    hosts.mkdir(parents=True)
    (hosts.parent / "directory.db").touch()
    with situation() as (neighbour, broker):
        channel = broker.channel("worker-0", ONE)
        worker = ConfinedWorker(channel, hosts, SENDS_AND_LOOKS, user=None)
        found = status(worker.pid) if worker.told() else {}

        assert {0} == {
            int(found[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")
        }
        assert ("1", "2") == (found["NoNewPrivs"], found["Seccomp"])
        assert [["hosts"], "EPERM"] == worker.told()
        assert "10.77.0.11" == neighbour.visitor()
        worker.go_on()
        assert 0 == worker.close()


SENDS_AND_LOOKS = """
async def main(sockets):
    told("here")
    told([os.listdir(os.path.dirname(sys.argv[1])), refused(socket.socket)])
    source = await sockets.connectable("one.example", Family.IPV4)
    await asyncio.get_running_loop().sock_connect(source.sock, ("10.77.0.2", 25))
    sys.stdin.readline()
"""


def test_only_the_channel_is_passed_on():
    """Not what whoever starts the launcher left open for all."""
    passed, left = os.pipe()
    command = [sys.executable, "-P", "-m", "vnsmail.supervisor.launch"]
    done = subprocess.run(
        [*command, "--pass-fd", str(passed), "--", "/bin/ls", "/proc/self/fd"],
        pass_fds=(passed, left),
        capture_output=True,
        text=True,
        check=True,
    )
    os.close(passed)
    os.close(left)

    own = "3" if passed != 3 else "4"  # that of ls(1)
    assert {"0", "1", "2", own, str(passed)} == set(done.stdout.split())


@alone()
def test_nothing_runs_with_more_than_it_should_have(tmp_path):
    """A folder that is not there: the command is not run instead without a view."""
    command = [sys.executable, "-P", "-m", "vnsmail.supervisor.launch"]
    done = subprocess.run(
        [
            *command,
            "--reveal",
            f"{tmp_path}/no:rw",
            "--",
            "/bin/touch",
            tmp_path / "ran",
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert LAUNCH_FAILED == done.returncode
    assert 1 == len(done.stderr.splitlines())
    assert not Path(tmp_path / "ran").exists()


@alone()
def test_python_may_lie_in_a_home_that_others_may_not_pass(tmp_path):
    """As with a clone in somebody's home, mode 0700, and ``sudo vnsmail``.

    A worker sees nothing of that home but Python. The broker, which is root without
    the right to pass, is left the right to read.
    """
    home, python = Path("/mnt"), Path("/mnt/python/bin/python3")
    options = ["-o", "mode=0700,uid=1000,gid=1000"]
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", home], check=True)
    (home / "python").mkdir()
    subprocess.run(["mount", "--bind", sys.base_prefix, home / "python"], check=True)
    (home / "letter").write_text("secret")
    hosts = state(tmp_path)
    look = "import os; print(os.getuid(), os.listdir('/mnt'))"
    work = ["--reveal", f"{hosts}:rw", "--empty-network", "--user", "65534"]
    bound = "print([x for x in open('/proc/self/status') if x.startswith('CapEff')])"

    said, wrong = launched(python, work, look)
    assert ("65534 ['python']\n", "") == (said, wrong)

    said, wrong = launched(python, ["--keep-capabilities", "net_raw"], bound)
    assert f"{1 << 13 | 1 << 2:016x}" in said
    assert "it may read all files, for Python lies below /mnt" in wrong


def launched(python, options, code):
    """Run code under the launcher, all by a Python that lies elsewhere."""
    launch = [python, "-P", "-m", "vnsmail.supervisor.launch", *options, "--"]
    done = subprocess.run(
        [*launch, python, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    return done.stdout, done.stderr
