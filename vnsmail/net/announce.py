"""Telling neighbours where an address is now. PRIVILEGED.

A neighbour that has talked to an address keeps its hardware address for a while. When
the address moves, say from a namespace to an alias, it would go on talking to where it
was, for tens of seconds. A gratuitous ARP request (RFC 5227 section 3) and an
unsolicited neighbour advertisement (RFC 4861 section 7.2.6) tell it at once.

For the links of our namespaces, which have arp_notify and ndisc_notify, the kernel says
both (apply.py). The machine's own links are not ours to set; so this is for aliases.

Rules of this file: nobody waits for an answer, and what cannot be said is no error: a
link that is down has no neighbours.
"""

import contextlib
import fcntl
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv6Address

from vnsmail.model import IPAddress

_SIOCGIFHWADDR = 0x8927
_ETHERNET = 1  # ARPHRD_ETHER
_ARP, _IPV6 = 0x0806, 0x86DD
_ALL_NODES = IPv6Address("ff02::1")
_ALL_NODES_HARDWARE = bytes.fromhex("333300000001")
_OVERRIDE = 0x20000000
_ICMP6, _ADVERTISEMENT = 58, 136


def announce(addresses: Iterable[tuple[str, IPAddress]]) -> None:
    """Announce addresses, each on its link, in the namespace of the calling thread."""
    # Protocol zero: a socket that hears nothing.
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        for link, address in addresses:
            with contextlib.suppress(OSError):
                hardware = hardware_of(sock, link)
                if hardware:
                    frame = announcement(address, hardware)
                    sock.sendto(frame, (link, 0))


def announcement(address: IPAddress, hardware: bytes) -> bytes:
    """Return the Ethernet frame that says an address is at a hardware address."""
    if address.version == 4:
        arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
        arp += hardware + address.packed + bytes(6) + address.packed
        return b"\xff" * 6 + hardware + struct.pack("!H", _ARP) + arp
    said = struct.pack("!BBHI", _ADVERTISEMENT, 0, 0, _OVERRIDE) + address.packed
    said += struct.pack("!BB", 2, 1) + hardware
    pseudo = address.packed + _ALL_NODES.packed + struct.pack("!II", len(said), _ICMP6)
    said = said[:2] + struct.pack("!H", checksum(pseudo + said)) + said[4:]
    header = struct.pack("!IHBB", 6 << 28, len(said), _ICMP6, 255)
    header += address.packed + _ALL_NODES.packed
    return _ALL_NODES_HARDWARE + hardware + struct.pack("!H", _IPV6) + header + said


def hardware_of(sock: socket.socket, link: str) -> bytes:
    """Return the hardware address of a link, empty if it is not of Ethernet's kind."""
    request = struct.pack("16s24x", link.encode()[:15])
    answer = fcntl.ioctl(sock, _SIOCGIFHWADDR, request)
    kind, hardware = struct.unpack_from("=16xH6s", answer)
    return hardware if kind == _ETHERNET else b""


def checksum(octets: bytes) -> int:
    """Return the checksum of an even number of octets (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
