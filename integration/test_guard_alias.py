"""Hosts with aliases: whose socket a packet comes from decides, not only its address."""

import contextlib
import socket
import subprocess
import sys

import pytest

from integration.guard_network import (
    FAMILIES,
    NEIGHBOUR,
    SIZE_OF_SYN,
    SYN,
    Wire,
    begin,
    listening,
    nft,
    prepare,
)
from integration.net_machine import INSTANCE, alone, build, host, ip, make
from vnsmail.net import guard, guard_rules, namespaces
from vnsmail.net.guard import GuardCounter, Guarded

pytestmark = pytest.mark.root

DELTA, EPSILON = "delta.example", "epsilon.example"
OF_DELTA = {4: "10.77.0.14", 6: "fd77::14"}
OF_EPSILON = {4: "10.77.0.15", 6: "fd77::15"}
OF_MACHINE = {4: "10.77.0.1", 6: "fd77::1"}

MARK_OF_DELTA = guard_rules.socket_mark(INSTANCE, DELTA)

RST, SYN_ACK = 4, 18

each_version = pytest.mark.parametrize("version", [4, 6])


@contextlib.contextmanager
def situation():
    """Two guarded hosts with aliases."""
    build()
    hosts = (
        host(DELTA, "10.77.0.14/24", "fd77::14/64", context="alias"),
        host(EPSILON, "10.77.0.15/24", "fd77::15/64", context="alias"),
    )
    make(*hosts)
    assert Guarded(changed=True, unguarded={}) == guard.apply(hosts, INSTANCE)
    with contextlib.closing(Wire()) as wire:
        yield hosts, wire


def counted(hosts):
    """Return what was counted; hosts of which nothing was are left out."""
    found = guard.counters(hosts, INSTANCE)
    assert len(found) == len(hosts)
    return {name: each for name, each in found.items() if each != GuardCounter()}


@alone()
@each_version
def test_own_address(version):
    """A host's socket with the host's address: as if there were no guard."""
    with situation() as (hosts, wire):
        for port in (25, 465, 587):
            begin(version, OF_DELTA[version], mark=DELTA, port=port)
            begin(version, OF_EPSILON[version], mark=EPSILON, port=port)

        expected = [
            (address[version], port)
            for port in (25, 465, 587)
            for address in (OF_DELTA, OF_EPSILON)
        ]
        assert expected == wire.arrived()
        assert {} == counted(hosts)


@alone()
@each_version
@pytest.mark.parametrize("source", [OF_EPSILON, OF_MACHINE, {4: "", 6: ""}])
def test_address_of_another(version, source):
    """A host's socket with another's address, the machine's, or none."""
    with situation() as (hosts, wire):
        for port in (25, 465, 587):
            begin(version, source[version], mark=DELTA, port=port)
        begin(version, source[version], mark=DELTA, port=80)

        assert [80] == [port for _, port in wire.arrived()]
        dropped = GuardCounter(3, 3 * SIZE_OF_SYN[version], 0)
        assert {DELTA: dropped} == counted(hosts)


@alone()
@each_version
def test_borrowed_address(version):
    """Anybody else's socket with the address of a host, and it is said whose."""
    with situation() as (hosts, wire):
        for port in (25, 465, 587, 587):
            begin(version, OF_EPSILON[version], port=port)
        begin(version, OF_EPSILON[version], port=80)

        assert [(OF_EPSILON[version], 80)] == wire.arrived()
        assert {EPSILON: GuardCounter(0, 0, 4)} == counted(hosts)


@alone()
@each_version
def test_machine(version):
    """What has nothing to do with virtual hosts is not looked at."""
    with situation() as (hosts, wire):
        begin(version)
        begin(version, OF_MACHINE[version])

        assert [(OF_MACHINE[version], 25)] * 2 == wire.arrived()
        assert {} == counted(hosts)


@alone()
@each_version
def test_conversation(version):
    """From the first segment to the last, and what the kernel says when it is over."""
    with (
        situation() as (hosts, wire),
        listening(version, NEIGHBOUR[version], where="neighbour") as listener,
        socket.socket(FAMILIES[version]) as sock,
    ):
        prepare(sock, OF_DELTA[version], DELTA)
        sock.settimeout(20)
        sock.connect((NEIGHBOUR[version], 25))
        connection, (seen, *_) = listener.accept()
        with connection:
            connection.settimeout(20)
            for _ in range(20):
                sock.sendall(b"x" * 5000)
                assert connection.recv(5000, socket.MSG_WAITALL) == b"x" * 5000
            sock.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
            connection.sendall(b"last words")
            assert sock.recv(99) == b"last words"
            sock.close()
            connection.close()

        assert OF_DELTA[version] == seen
        assert {OF_DELTA[version]} == {who for who, _, _ in wire.segments()}
        assert {} == counted(hosts)


@alone()
@each_version
def test_within_the_machine(version):
    """To a host here: from the machine, which gets that host's address, and from hosts."""
    with (
        situation() as (hosts, _),
        listening(version, OF_DELTA[version]) as listener,
    ):
        visitors = []
        for source, mark in (
            ("", ""),
            (OF_MACHINE[version], ""),
            (OF_EPSILON[version], EPSILON),
            (OF_DELTA[version], DELTA),
        ):
            with socket.socket(FAMILIES[version]) as sock:
                prepare(sock, source, mark)
                sock.settimeout(20)
                sock.connect((OF_DELTA[version], 25))
                connection, (seen, *_) = listener.accept()
                connection.close()
                visitors.append(seen)
        assert {} == counted(hosts)
        begin(version, OF_EPSILON[version], target=OF_DELTA[version])
        begin(version, OF_EPSILON[version], mark=DELTA, target=OF_DELTA[version])

        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        dropped = GuardCounter(1, SIZE_OF_SYN[version], 0)
        assert {DELTA: dropped, EPSILON: GuardCounter(0, 0, 1)} == counted(hosts)
        expected = [OF_DELTA, OF_MACHINE, OF_EPSILON, OF_DELTA]
        assert [address[version] for address in expected] == visitors


@alone()
@each_version
def test_strangers_who_send_from_port_25(version):
    """What the kernel answers them is no mail, though it goes to port 25."""
    with (
        situation() as (hosts, wire),
        listening(version, OF_DELTA[version]),
    ):
        for port in (25, 26):

            def knock():
                with socket.socket(FAMILIES[version]) as sock:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind((NEIGHBOUR[version], 25))
                    sock.settimeout(20)
                    return sock.connect_ex((OF_DELTA[version], port))  # noqa: B023

            namespaces.inside("neighbour", knock)

        answers = [flags for _, port, flags in wire.segments() if port == 25]
        assert answers[0] == SYN_ACK
        assert RST in {flags & 7 for flags in answers}
        assert {} == counted(hosts)


@alone()
@each_version
def test_rules_of_the_operator(version):
    """Who masquerades, routes or marks by SO_MARK does not move a host's mail."""
    name = next(
        f"h{number}.example"
        for number in range(1000)
        if guard_rules.socket_mark(INSTANCE, f"h{number}.example") & 0x4000
    )
    with situation() as (_, wire):
        own = host(name, "10.77.0.16/24", "fd77::16/64", context="alias")
        make(own)
        guard.apply([own], INSTANCE)
        nft("add table inet theirs")
        nft("add chain inet theirs nat { type nat hook postrouting priority 100 ; }")
        nft("add rule inet theirs nat mark & 0x4000 == 0x4000 masquerade")
        nft("add chain inet theirs out { type route hook output priority -150 ; }")
        nft("add rule inet theirs out meta mark set 7")
        nft("add rule inet theirs out meta priority set 1:5")
        for word in ("", "-6 "):
            ip(f"{word}rule add fwmark 0x4000/0x4000 blackhole")
        begin(version, {4: "10.77.0.16", 6: "fd77::16"}[version], mark=name)
        begin(version, OF_MACHINE[version], mark=name)

        assert [{4: "10.77.0.16", 6: "fd77::16"}[version]] == [
            who for who, _, flags in wire.segments() if flags == SYN
        ]
        dropped = GuardCounter(1, SIZE_OF_SYN[version], 0)
        assert {own.name: dropped} == counted([own])


@alone()
def test_mark_needs_privilege():
    """Whoever has none cannot make a socket pass as that of a host."""
    with situation() as (hosts, wire):
        code = f"""
import socket
sock = socket.socket()
try:
    sock.setsockopt(socket.SOL_SOCKET, {guard_rules.MARK_OPTION}, {MARK_OF_DELTA})
except PermissionError:
    pass
sock.bind(({OF_DELTA[4]!r}, 0))
sock.setblocking(False)
sock.connect_ex(({NEIGHBOUR[4]!r}, 25))
print(sock.getsockopt(socket.SOL_SOCKET, {guard_rules.MARK_OPTION}))
"""
        unprivileged = ["setpriv", "--bounding-set=-all", sys.executable, "-I", "-c"]
        done = subprocess.check_output([*unprivileged, code])

        assert b"0" == done.strip()
        assert [] == wire.arrived()
        assert {DELTA: GuardCounter(0, 0, 1)} == counted(hosts)
