"""A broker process as the supervisor starts it, and hosts whose sockets it opens.

Built on the machine of net_machine.py, in namespaces that end with the test:

    one  10.77.0.11  fd77::11 ──┐
    two  10.77.0.12  fd77::12 ──┤ br0 ── neighbour  10.77.0.2  fd77::2, ports 25 and 53
    alias 10.77.0.21 fd77::21 ──┘  machine  10.77.0.1  fd77::1
"""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

from integration.net_machine import build, inside, ip
from vnsmail import channel
from vnsmail.broker import protocol
from vnsmail.broker.client import SocketClient
from vnsmail.broker.protocol import HostGrant
from vnsmail.model import MACHINE, Family
from vnsmail.net import namespaces
from vnsmail.supervisor.process import launch_command
from vnsmail.supervisor.services import BROKER_CAPABILITIES

ONE = HostGrant("one.example", "one", ("10.77.0.11", "fd77::11"))
TWO = HostGrant("two.example", "two", ("10.77.0.12", "fd77::12"))
ALIAS = HostGrant("alias.example", "", ("10.77.0.21", "fd77::21"))
THE_MACHINE = HostGrant(MACHINE, "", ())
NEIGHBOUR = {4: "10.77.0.2", 6: "fd77::2"}

PATIENCE = 20.0
"""Seconds until what is waited for counts as never."""


def build_hosts():
    """Make the network of the picture."""
    build()
    for host in (ONE, TWO):
        make_namespace(host)
    ip("addr add 10.77.0.21/32 dev br0")
    # Deprecated, as the product adds it: no choice of the kernel for the machine's own.
    ip("addr add fd77::21/128 dev br0 nodad preferred_lft 0")


def make_namespace(host):
    """Make the namespace of a host, with a cable to the bridge."""
    name = host.namespace
    namespaces.make(name)
    ip(f"link add p-{name} type veth peer name eth0 netns {name}")
    for address, length in zip(host.addresses, ("24", "64"), strict=True):
        nodad = " nodad" if ":" in address else ""
        inside(name, f"addr add {address}/{length} dev eth0{nodad}")
    inside(name, "link set eth0 up")
    ip(f"link set p-{name} master br0")
    ip(f"link set p-{name} up")


def socket_of(namespace, family, kind=socket.SOCK_STREAM):
    """Return a socket that lives in a namespace."""
    sock = namespaces.inside(namespace, lambda: socket.socket(family, kind))
    sock.settimeout(PATIENCE)
    return sock


class Neighbour:
    """A server next door: says who comes."""

    def __init__(self, port=25):
        self.sockets = {}
        for version, address in NEIGHBOUR.items():
            family = socket.AF_INET if version == 4 else socket.AF_INET6
            sock = socket_of("neighbour", family)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
            sock.listen(100)
            self.sockets[version] = sock

    def visitor(self, version=4):
        """Return the address of the next client."""
        connection, peer = self.sockets[version].accept()
        connection.close()
        return peer[0]

    def waiting(self, version=4):
        """Return whether anybody has come that was not asked for yet."""
        self.sockets[version].setblocking(False)
        try:
            connection, _ = self.sockets[version].accept()
        except BlockingIOError:
            return False
        connection.close()
        return True

    def close(self):
        for sock in self.sockets.values():
            sock.close()


class RunningBroker:
    """A broker, started by the launcher, of which this process is the supervisor."""

    def __init__(self):
        self._supervisor, theirs = channel.pair()
        fd = theirs.fileno()
        options = ("--keep-capabilities", BROKER_CAPABILITIES)
        self.process = subprocess.Popen(
            launch_command("vnsmail.broker.server", fd, options),
            pass_fds=(fd,),
            cwd="/",
        )
        theirs.close()
        self._last_id = 0
        self._workers = []
        self._supervisor.settimeout(PATIENCE)
        self.ask(protocol.Configure, (25,), tuple(NEIGHBOUR.values()))

    def ask(self, kind, *arguments, fds=()):
        self._last_id += 1
        request = kind(self._last_id, *arguments)
        channel.send_now(self._supervisor, protocol.encode(request), fds)
        payload, _ = channel.receive_now(self._supervisor)
        answer = protocol.decode_supervisor_answer(payload)
        assert isinstance(answer, protocol.Done), answer

    def attach(self, name, *hosts):
        """Return a worker that owns these hosts."""
        worker = Worker(self.channel(name, *hosts))
        self._workers.append(worker)
        return worker

    def channel(self, name, *hosts):
        """Return the channel of a worker that owns these hosts."""
        ours, theirs = channel.pair()
        with theirs:
            self.ask(protocol.Attach, name, fds=[theirs.fileno()])
        self.ask(protocol.Grant, name, hosts)
        return ours

    def close(self):
        """End as a supervisor ends that is killed: the channel closes."""
        self._supervisor.close()
        assert self.process.wait(PATIENCE) == 0
        for worker in self._workers:
            worker.close()


@contextlib.contextmanager
def situation():
    """The network, the neighbour's port 25, and the broker; all end with the block."""
    build_hosts()
    neighbour, broker = Neighbour(), RunningBroker()
    try:
        yield neighbour, broker
    finally:
        broker.close()
        neighbour.close()


class Worker:
    """A worker in this process: a client of the broker, used from outside a loop."""

    def __init__(self, sock):
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._start(sock))

    async def _start(self, sock):
        client = SocketClient()
        client.replace_channel(channel.Channel(sock))
        return client

    def connectable(self, host, version=4):
        return self._ask(self._client.connectable(host.name, Family(version)))

    def connectables(self, hosts, version=4):
        """Ask for many at once."""

        async def ask():
            family = Family(version)
            asking = (self._client.connectable(host.name, family) for host in hosts)
            return await asyncio.gather(*asking)

        return self._ask(ask())

    def listener(self, host, address, port=25):
        return self._ask(self._client.listener(host.name, address, port))

    def resolver(self, transport, server):
        return self._ask(self._client.resolver(transport, server))

    def _ask(self, question):
        return self._runner.run(question)

    def close(self):
        self._client.close()
        self._runner.close()


def connected(source, version=4, port=25):
    """Connect a socket to the neighbour and wait until it is."""
    source.sock.settimeout(PATIENCE)
    source.sock.connect((NEIGHBOUR[version], port))
    return source.sock


def status(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (x.partition(":") for x in lines)}


def eventually(look, what):
    """Wait until ``look`` returns something true."""
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)
    return found


WORKER = """
import asyncio, errno, json, os, socket, sys
import uvloop
from vnsmail import channel
from vnsmail.broker.client import SocketClient
from vnsmail.errors import VnsmailError
from vnsmail.model import Family

def told(value):
    sys.stdout.write(json.dumps(value) + "\\n")
    sys.stdout.flush()

def refused(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "allowed"

async def _main():
    sockets = SocketClient()
    sockets.replace_channel(channel.Channel(socket.socket(fileno=int(sys.argv[2]))))
    await main(sockets)
    sockets.close()
"""
"""What the code of a ``ConfinedWorker`` may use; it defines ``main(sockets)``."""


class ConfinedWorker:
    """A process under the launcher as a worker is, that does what a test wants."""

    def __init__(self, sock, hosts, code, *, user=65534):
        fd = sock.fileno()
        run = "\nwith asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:"
        script = WORKER + code + run + "\n    runner.run(_main())\n"
        options = ["--empty-network", "--reveal", f"{hosts}:rw"]
        options += ["--user", str(user)] if user is not None else []
        command = launch_command("MODULE", fd, options)
        at = command.index("--")
        self.process = subprocess.Popen(
            [
                *command[: at + 1],
                sys.executable,
                "-P",
                "-c",
                script,
                str(hosts),
                str(fd),
            ],
            pass_fds=(fd,),
            # Something to lose; a user namespace of one uid has no other groups.
            extra_groups=None if user is None else [4, 27],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            text=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._heard, self._said = self.process.stdin, self.process.stdout
        sock.close()

    @property
    def pid(self):
        return self.process.pid

    def told(self):
        """Return the next thing it tells."""
        line = self._said.readline()
        assert line, f"it ended: {self.process.wait(PATIENCE)}"
        return json.loads(line)

    def go_on(self, text=""):
        """Let it return from ``sys.stdin.readline()``."""
        self._heard.write(f"{text}\n")
        self._heard.flush()

    def close(self):
        self._heard.close()
        self._said.close()
        return self.process.wait(PATIENCE)
