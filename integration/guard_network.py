"""What a guard lets through, seen by a neighbour; on the machine of net_machine.py."""

import os
import socket
import struct
import subprocess

from integration.net_machine import INSTANCE, inside
from vnsmail.net import guard_rules, names, namespaces

NEIGHBOUR = {4: "10.77.0.2", 6: "fd77::2"}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
SYN = 2
SIZE_OF_SYN = {4: 60, 6: 80}
"""Bytes, IP header included, with the options that Linux sends."""

_END = b"that was all"
_END_PORT = 9
_ALL_PROTOCOLS = 3
_TCP, _UDP = 6, 17


class Wire:
    """Everything that reaches the neighbour."""

    def __init__(self):
        # What leaves from one processor arrives in the order in which it left.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        self._sock = namespaces.inside(
            "neighbour",
            lambda: socket.socket(socket.AF_PACKET, kind, socket.htons(_ALL_PROTOCOLS)),
        )
        self._sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
        self._sock.settimeout(20)

    def segments(self, where=""):
        """Return the TCP segments that came so far: (source, port, flags).

        Args:
            where: from which namespace they came.
        """
        for version in (4, 6):
            _within(where, lambda: _say_end(version))  # noqa: B023
        found, ends = [], 0
        while ends < 2:
            packet, (_, _, direction, *_) = self._sock.recvfrom(65536)
            if direction == socket.PACKET_OUTGOING:
                continue
            ends += packet.endswith(_END)
            if segment := _segment(packet):
                found.append(segment)
        return found

    def arrived(self, where=""):
        """Return who has begun a connection to which port since the last time."""
        segments = self.segments(where)
        return [(who, port) for who, port, flags in segments if flags == SYN]

    def close(self):
        self._sock.close()


def _say_end(version):
    with socket.socket(FAMILIES[version], socket.SOCK_DGRAM) as sock:
        sock.sendto(_END, (NEIGHBOUR[version], _END_PORT))


def _segment(packet):
    if packet[0] >> 4 == 4:
        protocol, start = packet[9], (packet[0] & 15) * 4
        source = socket.inet_ntop(socket.AF_INET, packet[12:16])
    elif packet[0] >> 4 == 6:
        protocol, start = packet[6], 40
        source = socket.inet_ntop(socket.AF_INET6, packet[8:24])
    else:  # ARP
        return None
    if protocol != _TCP:
        return None
    (port,) = struct.unpack_from("!H", packet, start + 2)
    return source, port, packet[start + 13] & 0x17


def begin(version, source="", *, port=25, mark="", where="", target=None):
    """Begin a connection and drop it: exactly one SYN is sent.

    Args:
        version: of IP.
        source: what is bound; empty leaves the choice to the kernel.
        port: of the neighbour.
        mark: whose socket it is.
        where: the namespace of the socket.
        target: where to, if not the neighbour.
    """

    def connect():
        with socket.socket(FAMILIES[version]) as sock:
            prepare(sock, source, mark)
            sock.setblocking(False)
            sock.connect_ex((target or NEIGHBOUR[version], port))

    _within(where, connect)


def prepare(sock, source="", mark=""):
    """Bind a socket, and mark it as that of a host."""
    if mark:
        sock.setsockopt(
            socket.SOL_SOCKET,
            guard_rules.MARK_OPTION,
            guard_rules.socket_mark(INSTANCE, mark),
        )
    if source:
        sock.setsockopt(socket.SOL_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        sock.bind((source, 0))


def _within(where, function):
    return namespaces.inside(where, function) if where else function()


def listening(version, address, port=25, where=""):
    """Return a socket that listens in a namespace."""
    sock = _within(
        where,
        lambda: socket.create_server((address, port), family=FAMILIES[version]),
    )
    sock.settimeout(20)
    return sock


def add_address(host, *addresses):
    """Give the namespace of a host addresses that are not the host's."""
    for address in addresses:
        nodad = " nodad" if ":" in address else ""
        name = names.namespace(INSTANCE, host)
        inside(name, f"addr add {address} dev eth0{nodad}")


def nft(words, namespace=""):
    """Run nft(8), somebody else's tool; returns what it prints."""
    within = ["ip", "netns", "exec", namespace] if namespace else []
    done = subprocess.run(
        [*within, "nft", *words.split(" ")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def rules(namespace=""):
    """Return all rules there are, with the kernel's own number of each thing."""
    return nft("-a list ruleset", namespace)
