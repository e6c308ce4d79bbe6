"""A host with a namespace: nothing leaves that but from an address of the host's."""

import contextlib
import socket
import struct

import pytest

from integration.guard_network import (
    FAMILIES,
    NEIGHBOUR,
    SIZE_OF_SYN,
    Wire,
    add_address,
    begin,
    listening,
    rules,
)
from integration.net_machine import INSTANCE, alone, build, host, make, namespace
from vnsmail.net import guard, namespaces
from vnsmail.net.guard import GuardCounter, Guarded

pytestmark = pytest.mark.root

OWN = {4: "10.77.0.11", 6: "fd77::11"}
WRONG = {4: "10.77.0.99", 6: "fd77::99"}


@contextlib.contextmanager
def situation(*, wrong=True):
    """A guarded host, whose namespace has addresses that are not the host's."""
    build()
    alpha = host("alpha.example", "10.77.0.11/24", "10.77.0.12/24", "fd77::11/64")
    make(alpha)
    if wrong:
        add_address("alpha.example", "10.77.0.99/24", "fd77::99/64")
    assert Guarded(changed=True, unguarded={}) == guard.apply([alpha], INSTANCE)
    with contextlib.closing(Wire()) as wire:
        yield alpha, wire


def counter(host):
    return guard.counters([host], INSTANCE)[host.name]


@alone()
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("port", [25, 465, 587])
def test_source(version, port):
    """From the host's address it arrives; from another it does not, and is counted."""
    with situation() as (alpha, wire):
        begin(version, OWN[version], port=port, where=namespace())
        assert [(OWN[version], port)] == wire.arrived(namespace())
        assert GuardCounter() == counter(alpha)
        for _ in range(3):
            begin(version, WRONG[version], port=port, where=namespace())

        assert [] == wire.arrived(namespace())
        assert GuardCounter(3, 3 * SIZE_OF_SYN[version], 0) == counter(alpha)


@alone()
def test_all_addresses_of_the_host():
    """Also one that is not the first of its family, and the kernel's own choice."""
    with situation(wrong=False) as (alpha, wire):
        begin(4, "10.77.0.12", where=namespace())
        begin(4, where=namespace())
        begin(6, where=namespace())
        expected = ["10.77.0.12", "10.77.0.11", "fd77::11"]

        assert expected == [who for who, _ in wire.arrived(namespace())]
        assert GuardCounter() == counter(alpha)


@alone()
@pytest.mark.parametrize("version", [4, 6])
def test_other_ports_and_protocols(version):
    """What is not mail is none of our business."""

    def hear():
        sock = socket.socket(FAMILIES[version], socket.SOCK_DGRAM)
        sock.settimeout(20)
        sock.bind((NEIGHBOUR[version], 25))
        return sock

    def say():
        with socket.socket(FAMILIES[version], socket.SOCK_DGRAM) as sock:
            sock.bind((WRONG[version], 0))
            sock.sendto(b"x", (NEIGHBOUR[version], 25))

    ports = (24, 26, 80)
    with (
        situation() as (alpha, wire),
        namespaces.inside("neighbour", hear) as datagrams,
    ):
        for port in ports:
            begin(version, WRONG[version], port=port, where=namespace())
        namespaces.inside(namespace(), say)

        assert [(WRONG[version], port) for port in ports] == wire.arrived(namespace())
        assert WRONG[version] == datagrams.recvfrom(9)[1][0]
        assert GuardCounter() == counter(alpha)


@alone()
@pytest.mark.parametrize("version", [4, 6])
def test_loopback(version):
    """Within the host, mail may come from 127.0.0.1."""
    with situation() as (alpha, _):
        loopback = {4: "127.0.0.1", 6: "::1"}[version]
        with (
            listening(version, loopback, where=namespace()) as listener,
            namespaces.inside(
                namespace(), lambda: socket.socket(FAMILIES[version])
            ) as out,
        ):
            out.settimeout(20)
            out.connect((loopback, 25))
            seen = listener.accept()
            seen[0].close()

        assert loopback == seen[1][0]
        assert GuardCounter() == counter(alpha)


@alone()
def test_forged_packets():
    """Also what root makes by hand, from an address that is nobody's here."""
    with situation() as (alpha, wire):
        header = struct.pack("!HHIIBBHHH", 4321, 25, 1, 0, 5 << 4, 2, 999, 0, 0)

        def forge(source):
            with socket.socket(
                socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW
            ) as sock:
                ends = socket.inet_aton(source) + socket.inet_aton(NEIGHBOUR[4])
                begin = struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0, 64, 6, 0)
                try:
                    sock.sendto(begin + ends + header, (NEIGHBOUR[4], 0))
                except PermissionError:
                    return False
            return True

        sent = [
            namespaces.inside(namespace(), lambda: forge(source))  # noqa: B023
            for source in ("10.77.0.1", "203.0.113.7", OWN[4])
        ]

        assert [False, False, True] == sent
        assert [(OWN[4], 25)] == wire.arrived(namespace())
        assert GuardCounter(2, 80, 0) == counter(alpha)


@alone()
def test_nothing_in_the_machines_network():
    """The rules are inside the namespace; the machine, which may be a router, has none."""
    with situation():
        assert "" == rules()
        assert "vnsmail_1a2b3c" in rules(namespace())
