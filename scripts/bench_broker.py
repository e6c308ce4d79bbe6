#!/usr/bin/env python3
"""How many bound sockets a second the broker hands to one worker, many asked at once.

Starts a real broker process and is its supervisor and its worker. Sockets are bound to
127.0.0.1: in this machine's own network namespace, as for alias contexts, or, with
--namespaces, in turn in as many namespaces, which are made in private for this run and
end with it (needs root). Each socket is closed as soon as it is there; nothing is sent.
"""

import argparse
import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

import uvloop

from vnsmail import channel
from vnsmail.broker import protocol
from vnsmail.broker.client import SocketClient
from vnsmail.model import Family
from vnsmail.net import namespaces


class Supervisor:
    """What a supervisor says to a broker."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def ask(self, request: protocol.SupervisorRequest, *fds: int) -> None:
        """Ask, and see that it was done."""
        channel.send_now(self._socket, protocol.encode(request), fds)
        answer, _ = channel.receive_now(self._socket)
        if not isinstance(protocol.decode_supervisor_answer(answer), protocol.Done):
            raise SystemExit(repr(answer))


@contextlib.contextmanager
def broker(hosts: tuple[protocol.HostGrant, ...]) -> Iterator[socket.socket]:
    """Run a broker process; gives a worker's channel to it."""
    ours, theirs = channel.pair()
    one, other = channel.pair()
    command = [sys.executable, "-m", "vnsmail.broker.server", "--channel-fd"]
    fd = theirs.fileno()
    with subprocess.Popen([*command, str(fd)], pass_fds=[fd]) as process:  # noqa: S603
        theirs.close()
        supervisor = Supervisor(ours)
        supervisor.ask(protocol.Configure(1, (25,), ()))
        supervisor.ask(protocol.Attach(2, "worker-0"), other.fileno())
        other.close()
        for number, host in enumerate(hosts, 3):
            supervisor.ask(protocol.Grant(number, "worker-0", (host,)))
        yield one
        ours.close()
        process.wait()


async def measure(
    sock: socket.socket, owners: list[str], callers: int, seconds: float
) -> float:
    """Return the sockets received a second."""
    client = SocketClient()
    client.replace_channel(channel.Channel(sock))
    done = 0
    deadline = time.perf_counter() + seconds

    async def call(first: int) -> None:
        nonlocal done
        turn = first
        while time.perf_counter() < deadline:
            owner = owners[turn % len(owners)]
            got = await client.connectable(owner, Family.IPV4)
            got.sock.close()
            done += 1
            turn += callers

    start = time.perf_counter()
    await asyncio.gather(*(call(i) for i in range(callers)))
    rate = done / (time.perf_counter() - start)
    client.close()
    return rate


def loopback_up() -> None:
    """Set IFF_UP on lo in the namespace of this thread (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS


def grants(count: int) -> tuple[protocol.HostGrant, ...]:
    """Return the hosts to open sockets for, and make their namespaces."""
    if not count:
        return (protocol.HostGrant("h0.example", "", ("127.0.0.1",)),)
    names = [f"bench{os.getpid()}-{i}" for i in range(count)]
    for name in names:
        namespaces.make(name, loopback_up)
    return tuple(
        protocol.HostGrant(f"h{i}.example", name, ("127.0.0.1",))
        for i, name in enumerate(names)
    )


def main() -> None:
    """Measure, and print a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--namespaces", type=int, default=0, help="0: none, an alias")
    parser.add_argument(
        "--callers", type=int, default=256, help="sockets asked at once"
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--private", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.namespaces and not options.private:
        private = ["unshare", "--net", "--mount", "--propagation", "private"]
        mounted = ["sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh"]
        again = [sys.executable, *sys.argv, "--private"]
        os.execvp(private[0], [*private, *mounted, *again])  # noqa: S606  as told
    hosts = grants(options.namespaces)
    with (
        broker(hosts) as sock,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        owners = [host.name for host in hosts]
        work = measure(sock, owners, options.callers, options.seconds)
        rate = runner.run(work)
    where = f"{options.namespaces} namespaces" if options.namespaces else "alias"
    print(f"{rate:,.0f} bound sockets/s ({where}, {options.callers} asked at once)")


if __name__ == "__main__":
    main()
