"""Sockets of a real broker process, as the network and other processes see them."""

import ctypes
import errno
import os
import socket
import subprocess

import msgspec
import pytest

from integration.broker_network import (
    ALIAS,
    NEIGHBOUR,
    ONE,
    THE_MACHINE,
    TWO,
    Neighbour,
    connected,
    eventually,
    make_namespace,
    situation,
    socket_of,
    status,
)
from integration.net_machine import alone, inside, ip
from vnsmail.broker import protocol
from vnsmail.errors import BrokerRefused, SourceUnavailable
from vnsmail.net import namespaces

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


def ss(namespace, *options):
    """Return the local addresses with port that ss(8) shows in a namespace."""
    where = ["ip", "netns", "exec", namespace] if namespace else []
    done = subprocess.run(
        [*where, "ss", "-Htn", *options], capture_output=True, text=True, check=True
    )
    return [line.split()[3] for line in done.stdout.splitlines()]


@alone()
def test_each_host_is_seen_with_its_own_address():
    """By the server, by getsockname(2) and by ss(8) in the host's namespace."""
    with situation() as (neighbour, broker):
        worker = broker.attach("worker-0", ONE, TWO, ALIAS)
        for version in (4, 6):
            for host in (ONE, TWO, ALIAS):
                own = host.addresses[version == 6]
                source = worker.connectable(host, version)
                assert (own, 0) == source.sock.getsockname()[:2]
                assert own == source.source
                sock = connected(source, version)

                assert own == neighbour.visitor(version)
                name, port = sock.getsockname()[:2]
                shown = f"[{name}]:{port}" if version == 6 else f"{name}:{port}"
                assert own == name
                assert shown in ss(host.namespace)
                sock.close()


@alone()
def test_the_machine_is_seen_with_the_address_the_kernel_chooses():
    """Never with an alias of a virtual host."""
    with situation() as (neighbour, broker):
        worker = broker.attach("worker-machine", THE_MACHINE)
        for version, address in ((4, "10.77.0.1"), (6, "fd77::1")):
            source = worker.connectable(THE_MACHINE, version)
            assert source.source is None
            assert source.sock.getsockname()[:2] == (
                "0.0.0.0" if version == 4 else "::",
                0,
            )
            connected(source, version).close()

            assert address == neighbour.visitor(version)


@alone()
def test_listeners_are_heard_from_outside():
    with situation() as (_, broker):
        worker = broker.attach("worker-0", ONE, ALIAS)
        for host, where in ((ONE, "one"), (ALIAS, "")):
            for address in host.addresses:
                with worker.listener(host, address) as sock:
                    shown = f"[{address}]:25" if ":" in address else f"{address}:25"
                    assert [shown] == ss(where, "-l")
                    with socket_of("neighbour", sock.family) as client:
                        client.connect((address, 25))
                        sock.settimeout(20)
                        accepted, peer = sock.accept()
                        with accepted:
                            assert peer[0] == NEIGHBOUR[6 if ":" in address else 4]


@alone()
def test_another_namespace_of_the_same_name_is_not_entered():
    """Somebody removed it and made one of that name, with the same addresses even."""
    with situation() as (neighbour, broker):
        which = namespaces.inside("one", namespaces.identity)
        made = msgspec.structs.replace(ONE, identity=which)
        worker = broker.attach("worker-0", made)
        connected(worker.connectable(made)).close()
        assert "10.77.0.11" == neighbour.visitor(4)
        ip("netns del one")
        ip("netns add one")
        inside("one", "link set lo up")
        for address in made.addresses:
            nodad = " nodad" if ":" in address else ""
            inside("one", f"addr add {address} dev lo{nodad}")

        for version in (4, 6):
            with pytest.raises(SourceUnavailable, match="not the one that was made"):
                worker.connectable(made, version)
        with pytest.raises(
            (OSError, SourceUnavailable), match="not the one that was made"
        ):
            worker.listener(made, "10.77.0.11")
        assert [] == ss("one", "-l")
        again = msgspec.structs.replace(
            made, identity=namespaces.inside("one", namespaces.identity)
        )
        worker = broker.attach("worker-1", again)
        worker.connectable(again).sock.close()


@alone()
def test_a_port_in_use_is_told_from_an_address_that_is_gone():
    with situation() as (_, broker):
        worker = broker.attach("worker-0", ONE)
        first = worker.listener(ONE, "10.77.0.11")
        with first, pytest.raises(OSError, match="in use") as raised:
            worker.listener(ONE, "10.77.0.11")
        assert raised.value.errno == errno.EADDRINUSE

        inside("one", "addr del 10.77.0.11/24 dev eth0")
        with pytest.raises(SourceUnavailable) as gone:
            worker.listener(ONE, "10.77.0.11")
        assert gone.value.errno == errno.EADDRNOTAVAIL


@alone()
def test_an_address_that_is_gone_is_replaced_by_no_other():
    """Neither the machine's, nor the host's other family."""
    with situation() as (neighbour, broker):
        worker = broker.attach("worker-0", ONE, ALIAS)
        inside("one", "addr del 10.77.0.11/24 dev eth0")
        ip("addr del 10.77.0.21/32 dev br0")
        for host in (ONE, ALIAS):
            with pytest.raises(SourceUnavailable) as raised:
                worker.connectable(host, 4)
            assert (host.name, host.addresses[0], errno.EADDRNOTAVAIL) == (
                raised.value.owner,
                raised.value.address,
                raised.value.errno,
            )

        inside("one", "addr add 10.77.0.11/24 dev eth0")
        connected(worker.connectable(ONE, 4)).close()
        assert "10.77.0.11" == neighbour.visitor()


@alone()
def test_a_namespace_made_again_under_its_name_is_the_new_one():
    """And while there is none, there is no socket."""
    with situation() as (neighbour, broker):
        worker = broker.attach("worker-0", ONE)
        worker.connectable(ONE, 4).sock.close()
        ip("link del p-one")
        namespaces.remove("one")
        with pytest.raises(SourceUnavailable, match="namespace one does not exist"):
            worker.connectable(ONE, 4)
        assert not os.path.exists("/run/netns/one")

        make_namespace(ONE)
        connected(worker.connectable(ONE, 4)).close()
        assert "10.77.0.11" == neighbour.visitor()


@alone()
def test_a_removed_namespace_really_ends():
    """The broker, which was in it, does not keep it: its cable is gone."""
    with situation() as (_, broker):
        worker = broker.attach("worker-0", ONE)
        worker.connectable(ONE, 4).sock.close()
        namespaces.remove("one")

        eventually(lambda: not os.path.exists("/sys/class/net/p-one"), "p-one gone")
        links = [link["ifname"] for link in ip("link show")]
        assert "p-one" not in links


@alone()
def test_what_a_worker_does_not_own_is_refused():
    with situation() as (_, broker):
        worker = broker.attach("worker-0", ONE)
        broker.attach("worker-1", TWO)
        for host in (TWO, ALIAS, THE_MACHINE):
            with pytest.raises(BrokerRefused) as raised:
                worker.connectable(host, 4)
            assert "not_owned" == raised.value.kind
        broker.ask(protocol.Revoke, "worker-0", ONE.name)
        with pytest.raises(BrokerRefused):
            worker.connectable(ONE, 4)


@alone()
def test_a_resolvers_socket_asks_from_the_machine_and_hears_its_server_only():
    """A TCP socket of the machine cannot be turned to another server or port."""
    with situation() as (neighbour, broker):
        worker = broker.attach("worker-0", ONE)
        dns = Neighbour(port=53)
        for version, machine in ((4, "10.77.0.1"), (6, "fd77::1")):
            server = NEIGHBOUR[version]
            sock = worker.resolver("tcp", server)
            assert machine == dns.visitor(version)
            sock.settimeout(20)
            assert sock.recv(1) == b""  # connected, and heard it closing

            # Free it as a holder could: connect(2) to AF_UNSPEC.
            disconnect(sock)
            sock.settimeout(1.5)
            with pytest.raises(TimeoutError):
                sock.connect((server, 25))
            assert not neighbour.waiting(version)
            with pytest.raises(PermissionError):
                sock.setsockopt(socket.SOL_SOCKET, 27, 0)  # SO_DETACH_FILTER
            sock.close()
        dns.close()


@alone()
def test_a_resolvers_datagrams_come_from_its_server_only():
    with situation() as (_, broker):
        worker = broker.attach("worker-0", ONE)
        with (
            worker.resolver("udp", "10.77.0.2") as sock,
            udp("10.77.0.2", 53) as server,
            udp("10.77.0.2", 54) as other,
        ):
            sock.send(b"question")
            question, peer = server.recvfrom(99)
            assert (b"question", "10.77.0.1") == (question, peer[0])
            # Connected to nobody, it would hear anybody, were it not for the filter.
            disconnect(sock)
            sock.sendto(b"elsewhere", ("10.77.0.2", 54))
            _, peer = other.recvfrom(99)
            other.sendto(b"forged", peer)
            server.sendto(b"answer", peer)
            sock.settimeout(20)
            assert b"answer" == sock.recv(99)


def udp(address, port):
    sock = socket_of("neighbour", socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((address, port))
    return sock


def disconnect(sock):
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(sock.fileno(), bytes(16), 16) == 0


@alone()
def test_the_broker_has_what_it_needs_and_no_more():
    with situation() as (_, broker):
        found = status(broker.process.pid)
        needed = sum(1 << number for number in (10, 12, 13, 21))
        sets = {found[f"Cap{kind}"] for kind in ("Eff", "Prm", "Bnd", "Inh", "Amb")}

        assert {needed} == {int(text, 16) for text in sets}
        assert ("1", "2") == (found["NoNewPrivs"], found["Seccomp"])
