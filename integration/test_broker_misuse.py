"""Workers that misbehave or die, next to one that does not."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from integration.broker_network import (
    ALIAS,
    ONE,
    PATIENCE,
    TWO,
    RunningBroker,
    eventually,
    situation,
)
from integration.net_machine import alone
from vnsmail import channel
from vnsmail.broker import protocol
from vnsmail.channel import MAX_MESSAGE

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


def is_served(worker):
    """Return whether this worker of TWO gets a socket of it."""
    source = worker.connectable(TWO)
    source.sock.close()
    return source.source == TWO.addresses[0]


def request(number):
    return protocol.encode_batch([protocol.OpenConnectable(number, ONE.name, 4)])


@alone()
def test_nonsense_costs_the_worker_that_says_it_and_nobody_else():
    """Malformed, oversized, said twice, meant for a supervisor."""
    with situation() as (_, broker):
        grant = protocol.encode(protocol.Grant(1, "worker-0", (TWO,)))
        for number, messages in enumerate(
            [[b"\xc1"], [b"x" * (MAX_MESSAGE + 1)], [request(1), request(1)], [grant]]
        ):
            bad = broker.channel("worker-0", ONE)
            good = broker.attach(f"good-{number}", TWO)
            bad.settimeout(PATIENCE)
            for message in messages[:-1]:
                bad.send(message)
                channel.close_all(channel.receive_now(bad)[1])
            bad.send(messages[-1])

            with pytest.raises(channel.ChannelClosed):
                channel.receive_now(bad)
            assert is_served(good)
            assert broker.process.poll() is None
            bad.close()


FLOOD = """
import socket, sys
from vnsmail import channel
from vnsmail.broker import protocol
sock, number = socket.socket(fileno=int(sys.argv[1])), 0
sys.stdout.write("begun\\n")
sys.stdout.flush()
while True:
    batch = [protocol.OpenConnectable(number + i, "one.example", 4) for i in range(64)]
    number += 64
    channel.send_now(sock, protocol.encode_batch(batch))
    if sys.argv[2] == "reads":
        channel.close_all(channel.receive_now(sock)[1])
"""


@alone()
@pytest.mark.parametrize("manner", ["reads", "does not read"])
def test_a_worker_killed_while_it_asks_leaves_nothing(manner):
    """Others are served before and after; the broker has no descriptor more."""
    with situation() as (_, broker):
        good = broker.attach("worker-1", TWO)
        assert is_served(good)
        before = descriptors(broker)
        for _ in range(5):
            bad = broker.channel("worker-0", ONE)
            with subprocess.Popen(
                [sys.executable, "-P", "-c", FLOOD, str(bad.fileno()), manner],
                pass_fds=(bad.fileno(),),
                stdout=subprocess.PIPE,
            ) as process:
                bad.close()
                assert process.stdout is not None
                process.stdout.readline()
                for _ in range(50):
                    assert is_served(good)
                os.kill(process.pid, signal.SIGKILL)

        assert is_served(good)
        eventually(lambda: descriptors(broker) <= before, "no descriptor more")


def descriptors(broker):
    return len(os.listdir(f"/proc/{broker.process.pid}/fd"))


@alone()
def test_a_worker_that_does_not_read_holds_a_bounded_number_of_sockets():
    with situation() as (_, broker):
        bad = broker.channel("worker-0", ONE)
        bad.setblocking(False)
        asked_for = got = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                numbers = range(asked_for, asked_for + 64)
                batch = [protocol.OpenConnectable(n, ONE.name, 4) for n in numbers]
                channel.send_now(bad, protocol.encode_batch(batch))
                asked_for += 64
        good = broker.attach("worker-1", TWO)
        for _ in range(100):
            assert is_served(good)
        held = descriptors(broker)
        with contextlib.suppress(BlockingIOError):
            while True:
                fds = channel.receive_now(bad)[1]
                got += len(fds)
                channel.close_all(fds)

        assert held < 100
        assert 64 <= got <= 1024
        bad.close()


@alone()
def test_thousands_at_once_are_all_served_each_once():
    """Far more than fit one message, from three contexts in turn."""
    with situation() as (_, broker):
        hosts = [ONE, TWO, ALIAS]
        worker = broker.attach("worker-0", *hosts)

        wanted = [hosts[i % 3] for i in range(3000)]
        found = worker.connectables(wanted, 6)

        assert [h.addresses[1] for h in wanted] == [
            source.sock.getsockname()[0] for source in found
        ]
        assert 3000 == len({source.sock.fileno() for source in found})
        for source in found:
            source.sock.close()


@alone()
def test_the_broker_ends_with_its_supervisor():
    """Also when the supervisor is killed: then the kernel closes the channel."""
    broker = RunningBroker()
    worker = broker.channel("worker-0")
    worker.settimeout(PATIENCE)
    broker.close()

    with pytest.raises(channel.ChannelClosed):
        channel.receive_now(worker)
    worker.close()
