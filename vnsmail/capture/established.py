"""Connections that the kernel has already, by namespace.

A capture that begins cannot show how they began. Read from /proc/net/tcp and tcp6
(proc(5)): addresses as words in the machine's byte order, ports as numbers.
"""

import contextlib
import ipaddress
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from vnsmail.model import IPAddress
from vnsmail.net.namespaces import Visitor

Row = tuple[str, int, str, int]
"""Client, its port, server, its port."""

_LISTENING = "0A"


def connections(namespaces: Iterable[str], ports: Collection[int]) -> list[Row]:
    """Return the connections to these ports; those that come in as well.

    Args:
        namespaces: names; the empty one is our own.
        ports: those of the servers.
    """
    found: list[Row] = []
    names = set(namespaces)
    if "" in names:
        found += _here(ports)
    with Visitor() as visitor:
        for name in sorted(names - {""}):
            with contextlib.suppress(OSError):  # it is gone, and its connections too
                found += visitor.run(name, lambda: list(_here(ports)))
    return found


def _here(ports: Collection[int]) -> Iterator[Row]:
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):
            text = Path(f"/proc/thread-self/net/{name}").read_text()
            yield from rows(text, ports)


def rows(text: str, ports: Collection[int]) -> Iterator[Row]:
    """Give the connections in the text of such a file."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 4 or fields[3] == _LISTENING:
            continue
        (own, own_port), (other, other_port) = map(_end, fields[1:3])
        if other_port in ports:
            yield str(own), own_port, str(other), other_port
        elif own_port in ports:
            yield str(other), other_port, str(own), own_port


def _end(text: str) -> tuple[IPAddress, int]:
    address, _, port = text.partition(":")
    words = [bytes.fromhex(address[at : at + 8]) for at in range(0, len(address), 8)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    found = ipaddress.ip_address(b"".join(words))
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
        return found.ipv4_mapped, int(port, 16)
    return found, int(port, 16)
