"""Whether somebody has an address already: asked before it is taken. PRIVILEGED.

Two machines with one address take turns in losing their connections, and mail that
leaves from there may be the other's. So it is asked on the link before an address goes
there: an ARP probe (RFC 5227 section 2.1.1: from nobody, about the address) and a
neighbour solicitation as duplicate address detection sends it (RFC 4862 section 5.4.2).
Whoever has the address answers.

As it was asked before, an IPv6 address is there at once (requests.py): the kernel's own
detection would have the address refuse every bind for a second or more, and for ever on
a link without a carrier.

The RFCs wait for 1 to 7 seconds, for machines of 1985. Here it is asked three times
within ``SECONDS``, and for all addresses together: a thousand take as long as one.

Rules of this file: nothing is changed; what cannot be asked is no error: a link that is
down, or has no hardware addresses, has no neighbours.
"""

import contextlib
import ctypes
import select
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address
from typing import Self

from vnsmail.model import IPAddress
from vnsmail.net.announce import checksum, hardware_of

ROUNDS, SECONDS = 3, 0.6
"""How often each address is asked for, and in how many seconds altogether."""

_ARP, _IPV6 = 0x0806, 0x86DD
_SOLICITATION, _ADVERTISEMENT, _ICMP6 = 135, 136, 58
_NOBODY = IPv6Address(0)
_OUTGOING = 4  # PACKET_OUTGOING of packet(7)
_SO_ATTACH_FILTER = 26
_BUFFER = 4 << 20  # bytes; a thousand answers may come in a burst
_LARGEST = 128  # bytes of a frame that are looked at


def holders(asked: Iterable[tuple[str, IPAddress]]) -> dict[IPAddress, str]:
    """Return who has addresses, as hardware addresses such as 02:00:00:00:00:01.

    Args:
        asked: links of the namespace of the calling thread, and addresses.
    """
    wanted: dict[str, list[IPAddress]] = {}
    for link, address in asked:
        wanted.setdefault(link, []).append(address)
    found: dict[IPAddress, str] = {}
    with contextlib.ExitStack() as stack:
        ears: list[_Ear] = []
        for link, addresses in wanted.items():
            for version in (4, 6):
                mine = [each for each in addresses if each.version == version]
                with contextlib.suppress(OSError):
                    if mine and _is_ethernet(link):
                        ears.append(stack.enter_context(_Ear(link, version, mine)))
        _ask(ears, found)
    return found


def _ask(ears: list["_Ear"], found: dict[IPAddress, str]) -> None:
    if not ears:
        return
    begin = time.monotonic()
    for number in range(1, ROUNDS + 1):
        for ear in ears:
            ear.ask(found)
        _listen(ears, begin + SECONDS * number / ROUNDS, found)


def _listen(ears: list["_Ear"], until: float, found: dict[IPAddress, str]) -> None:
    poll = select.poll()
    by_number = {ear.socket.fileno(): ear for ear in ears}
    for number in by_number:
        poll.register(number, select.POLLIN)
    while (left := until - time.monotonic()) > 0:
        for number, _ in poll.poll(left * 1000):
            by_number[number].hear(found)


def _is_ethernet(link: str) -> bool:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        return bool(hardware_of(sock, link))


class _Ear:
    """A socket that asks on a link, and hears the answers."""

    def __init__(self, link: str, version: int, addresses: list[IPAddress]) -> None:
        self._link = link
        self._addresses = {each.packed: each for each in addresses}
        self._claim = claim_in_arp if version == 4 else claim_in_ipv6
        kind = _ARP if version == 4 else _IPV6
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            self._hardware = hardware_of(self.socket, link)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            if version == 6:
                _hear_neighbours_only(self.socket)
            self.socket.bind((link, kind))
            self.socket.setblocking(False)
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, found: Mapping[IPAddress, str]) -> None:
        for address in self._addresses.values():
            if address not in found:
                with contextlib.suppress(OSError):
                    self.socket.send(question(address, self._hardware))

    def hear(self, found: dict[IPAddress, str]) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            while True:
                frame, (_, _, kind, *_) = self.socket.recvfrom(_LARGEST)
                claim = None if kind == _OUTGOING else self._claim(frame)
                if claim is None or claim[1] == self._hardware:
                    continue
                if address := self._addresses.get(claim[0]):
                    found.setdefault(address, claim[1].hex(":"))


# Frames ----------------------------------------------------------------------------


def question(address: IPAddress, hardware: bytes) -> bytes:
    """Return the Ethernet frame that asks who has an address, in nobody's name."""
    if address.version == 4:
        arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
        arp += hardware + bytes(4) + bytes(6) + address.packed
        return b"\xff" * 6 + hardware + struct.pack("!H", _ARP) + arp
    # RFC 4291 section 2.7.1: the group of all who share the last three octets.
    group = bytes.fromhex("ff0200000000000000000001ff") + address.packed[-3:]
    asks = struct.pack("!BBHI", _SOLICITATION, 0, 0, 0) + address.packed
    pseudo = _NOBODY.packed + group + struct.pack("!II", len(asks), _ICMP6)
    asks = asks[:2] + struct.pack("!H", checksum(pseudo + asks)) + asks[4:]
    header = struct.pack("!IHBB", 6 << 28, len(asks), _ICMP6, 255)
    header += _NOBODY.packed + group
    to = b"\x33\x33" + group[-4:]
    return to + hardware + struct.pack("!H", _IPV6) + header + asks


def claim_in_arp(frame: bytes) -> tuple[bytes, bytes] | None:
    """Return which address somebody has, or is about to take, and who.

    None if the frame says nothing of the kind (RFC 5227 section 2.1.1).
    """
    if len(frame) < 42 or frame[12:14] != b"\x08\x06":
        return None
    kind, protocol, sizes = struct.unpack_from("!HHH", frame, 14)
    if (kind, protocol, sizes) != (1, 0x0800, 0x0604):
        return None
    who, sender, target = frame[22:28], frame[28:32], frame[38:42]
    if sender != bytes(4):
        return sender, who
    asks = struct.unpack_from("!H", frame, 20)[0] == 1
    return (target, who) if asks else None


def claim_in_ipv6(frame: bytes) -> tuple[bytes, bytes] | None:
    """Return which address somebody says it has, and who (RFC 4861 section 4.4).

    None if the frame says nothing of the kind.
    """
    if len(frame) < 78 or frame[12:14] != b"\x86\xdd" or frame[20] != _ICMP6:
        return None
    # From a router hop limits would be lower: only neighbours are believed.
    if frame[21] != 255 or frame[54] != _ADVERTISEMENT:
        return None
    return frame[62:78], frame[6:12]


def _hear_neighbours_only(sock: socket.socket) -> None:
    """Let the kernel drop all but neighbour advertisements: the link may be busy."""
    # BPF_LD+ABS+B, BPF_JEQ and BPF_RET of linux/filter.h; offsets from the frame on.
    program = [
        (0x30, 0, 0, 20),
        (0x15, 0, 3, _ICMP6),
        (0x30, 0, 0, 54),
        (0x15, 0, 1, _ADVERTISEMENT),
        (0x06, 0, 0, 0xFFFFFFFF),
        (0x06, 0, 0, 0),
    ]
    packed = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    wanted = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, wanted)
