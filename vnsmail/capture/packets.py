"""What a captured frame says: the link's header, IPv4 or IPv6, TCP. Pure.

Rules of this file: whatever the bytes, the answer is a packet or None, never an
exception. Nothing is guessed: a field that was not captured makes no packet. Checksums
are not looked at, because a sender that leaves them to its network card shows wrong
ones in a capture of its own link.
"""

import ipaddress
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from vnsmail.model import IPAddress

# Link types of a capture file (tcpdump.org/linktypes.html).
ETHERNET = 1
RAW_IP = 101
LINUX_SLL = 113
LINUX_SLL2 = 276
LINK_TYPES = {ETHERNET, RAW_IP, LINUX_SLL, LINUX_SLL2}

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

_IPV4, _IPV6 = 0x0800, 0x86DD
_VLAN_TAGS = {0x8100, 0x88A8, 0x9100}  # IEEE 802.1Q, 802.1ad, and a vendor's older 1ad
_MAX_TAGS = 4

_TCP = 6
_FRAGMENT, _AUTHENTICATION = 44, 51
# IPv6 extension headers with a length in units of 8 octets (RFC 8200, 6275, 7401, 5533).
_EXTENSIONS = {0, 43, 60, 135, 139, 140}
_MAX_EXTENSIONS = 16
"""RFC 8200 section 4.1 has each at most once or twice; no loop outlives this many."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A TCP segment, with the addresses of the IP packet that carried it."""

    source: IPAddress
    source_port: int
    destination: IPAddress
    destination_port: int
    sequence: int = 0
    acknowledgement: int = 0
    flags: int = 0
    payload: bytes = b""
    """As far as it was captured."""
    length: int = 0
    """Octets of payload that were sent."""
    is_fragment: bool = False
    """The first fragment of several: only the ports are known for sure."""
    fingerprint: int = 0
    """The same for one packet seen at two places, even if a router was between."""

    def has(self, flags: int) -> bool:
        """Say whether all of these flags are set."""
        return self.flags & flags == flags


class _Datagram(NamedTuple):
    source: IPAddress
    destination: IPAddress
    identity: bytes
    """What else tells it from others, and no router changes."""
    segment: bytes
    length: int
    """Octets of the segment that were sent."""
    more: bool
    """Further fragments follow."""


def parse(frame: bytes, link_type: int = ETHERNET) -> Packet | None:
    """Return the TCP segment in a frame; None if it holds none that can be read."""
    at = _network_header(frame, link_type)
    if at is None or at >= len(frame):
        return None
    data = frame[at:]
    version = data[0] >> 4
    if version == 4:
        datagram = _ipv4(data)
    elif version == 6:
        datagram = _ipv6(data)
    else:
        return None
    return _tcp(datagram) if datagram else None


def _network_header(frame: bytes, link_type: int) -> int | None:
    """Return where the IP header begins; None where the frame carries no IP."""
    if link_type == RAW_IP:
        return 0
    if link_type == ETHERNET:
        at, after = 12, 2
    elif link_type == LINUX_SLL:
        at, after = 14, 2
    elif link_type == LINUX_SLL2:
        at, after = 0, 20
    else:
        return None
    kind = int.from_bytes(frame[at : at + 2])
    at += after
    for _ in range(_MAX_TAGS):
        if kind not in _VLAN_TAGS:
            break
        kind = int.from_bytes(frame[at + 2 : at + 4])
        at += 4
    return at if kind in {_IPV4, _IPV6} else None


def _ipv4(data: bytes) -> _Datagram | None:
    header = (data[0] & 0x0F) * 4
    if len(data) < 20 or header < 20 or data[9] != _TCP:
        return None
    # Zero: the kernel cuts it into packets later and fills the length in then.
    total = int.from_bytes(data[2:4]) or len(data)
    fragment = int.from_bytes(data[6:8])
    if total < header or len(data) < header or fragment & 0x1FFF:
        return None
    return _Datagram(
        source=_address(data[12:16]),
        destination=_address(data[16:20]),
        identity=data[4:6] + data[12:20],
        segment=data[header:total],
        length=total - header,
        more=bool(fragment & 0x2000),
    )


def _ipv6(data: bytes) -> _Datagram | None:
    if len(data) < 40:
        return None
    # Zero: a jumbogram (RFC 2675), or cut into packets later like an IPv4 one.
    end = 40 + int.from_bytes(data[4:6]) if data[4:6] != b"\0\0" else len(data)
    kind, at, more = data[6], 40, False
    for _ in range(_MAX_EXTENSIONS):
        if kind == _TCP or at + 8 > min(end, len(data)):
            break
        if kind in _EXTENSIONS:
            size = (data[at + 1] + 1) * 8
        elif kind == _AUTHENTICATION:
            size = (data[at + 1] + 2) * 4
        elif kind == _FRAGMENT:
            size = 8
            field = int.from_bytes(data[at + 2 : at + 4])
            if field >> 3:
                return None
            more = more or bool(field & 1)
        else:
            return None
        kind, at = data[at], at + size
    if kind != _TCP or at > end:
        return None
    return _Datagram(
        source=_address(data[8:24]),
        destination=_address(data[24:40]),
        identity=data[8:40],
        segment=data[at:end],
        length=end - at,
        more=more,
    )


def _tcp(datagram: _Datagram) -> Packet | None:
    segment = datagram.segment
    source_port = int.from_bytes(segment[0:2])
    destination_port = int.from_bytes(segment[2:4])
    ends = (datagram.source, source_port, datagram.destination, destination_port)
    if datagram.more:
        return Packet(*ends, is_fragment=True) if len(segment) >= 4 else None
    if len(segment) < 20:
        return None
    header = (segment[12] >> 4) * 4
    if header < 20 or header > datagram.length:
        return None
    return Packet(
        *ends,
        sequence=int.from_bytes(segment[4:8]),
        acknowledgement=int.from_bytes(segment[8:12]),
        flags=segment[13],
        payload=segment[header:],
        length=datagram.length - header,
        # Without hop limit and checksums, which change on the way.
        fingerprint=hash((datagram.identity, segment[:16], segment[18:])),
    )


@lru_cache(maxsize=4096)
def _address(octets: bytes) -> IPAddress:
    return ipaddress.ip_address(octets)
