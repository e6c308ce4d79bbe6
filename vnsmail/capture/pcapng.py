"""pcapng files, written and read (draft-ietf-opsawg-pcapng).

Rules of this file: what is written is whole blocks, so that a file can be read while it
grows. The reader is strict: a block that contradicts itself makes the file unusable,
as a packet in it may be the one that matters. Only the last block may be cut off. No
block makes it hold more than MAX_BLOCK octets.
"""

import ipaddress
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache, partial
from typing import BinaryIO

from vnsmail.errors import VnsmailError
from vnsmail.model import IPAddress

MAX_BLOCK = 16 * 1024 * 1024
"""Octets of a block; Wireshark, too, refuses longer ones."""

MAGIC = b"\x0a\x0d\x0d\x0a"
"""What a file begins with: the same in both byte orders."""

_BYTE_ORDER = 0x1A2B3C4D


class _Kind(IntEnum):
    """Types of blocks."""

    SECTION = 0x0A0D0D0A
    INTERFACE = 1
    OBSOLETE_PACKET = 2
    SIMPLE_PACKET = 3
    NAMES = 4
    STATISTICS = 5
    PACKET = 6
    SECRETS = 10


_COMMENT, _SHB_USERAPPL = 1, 4
_IF_NAME, _IF_DESCRIPTION, _IF_TSRESOL, _IF_TSOFFSET = 2, 3, 9, 14
_EPB_FLAGS = 2
_ISB_IFRECV, _ISB_IFDROP, _ISB_OSDROP = 4, 5, 7
_NRB_IPV4, _NRB_IPV6 = 1, 2
_MAX_OPTION = 65000
"""Octets of a text in an option. Its length is a number of 16 bits."""

TLS_KEY_LOG = 0x544C534B
"""Kind of secrets: lines of SSLKEYLOGFILE (draft-ietf-tls-keylogfile)."""


class Direction(IntEnum):
    """Which way a packet crossed the link that was captured on (epb_flags)."""

    UNKNOWN = 0
    INCOMING = 1
    OUTGOING = 2


class BrokenCapture(VnsmailError):
    """A capture file contradicts itself or its format."""

    exit_code = 2

    def __init__(self, offset: int, problem: str) -> None:
        super().__init__(offset, problem)
        self.offset, self.problem = offset, problem

    def __str__(self) -> str:
        return f"cannot read the capture: {self.problem} at octet {self.offset}"


@dataclass(frozen=True, slots=True)
class CapturedPacket:
    """A packet as a capture file has it."""

    data: bytes
    length: int
    """Octets it had on the link."""
    time: int
    """Nanoseconds since the epoch."""
    link_type: int
    interface: int = 0
    """Counts from 0 in the order of the file."""
    direction: Direction = Direction.UNKNOWN
    comment: str = ""


# Writing ------------------------------------------------------------------------


def section_header(program: str) -> bytes:
    """Return the block that a file begins with."""
    # Byte order, version 1.0, unknown length.
    body = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1)
    options = _option(_SHB_USERAPPL, program.encode()) + _END_OF_OPTIONS
    return _block(_Kind.SECTION, body + options)


def interface_description(
    name: str, link_type: int, snap_length: int = 0, description: str = ""
) -> bytes:
    """Return the block that describes the next interface; times are nanoseconds.

    Args:
        name: what it is called, as in a column of Wireshark.
        link_type: kind of its frames (packets.py).
        snap_length: octets that are kept of a packet; 0: all.
        description: what it is, for people.
    """
    body = struct.pack("<HHI", link_type, 0, snap_length)
    options = _option(_IF_NAME, _octets(name))
    if description:
        options += _option(_IF_DESCRIPTION, _octets(description))
    options += _option(_IF_TSRESOL, b"\x09")
    return _block(_Kind.INTERFACE, body + options + _END_OF_OPTIONS)


def enhanced_packet(packet: CapturedPacket) -> bytes:
    """Return the block of a packet."""
    parts = packet_parts(
        packet.interface,
        packet.time,
        packet.length,
        packet.data,
        packet.direction,
        packet.comment,
    )
    return b"".join(parts)


def packet_parts(
    interface: int,
    time: int,
    length: int,
    data: bytes | memoryview,
    direction: int,
    comment: str = "",
) -> tuple[bytes, bytes | memoryview, bytes]:
    """Return the block of a packet in pieces, for who writes many and copies few.

    Args:
        interface: its number.
        time: nanoseconds since the epoch.
        length: octets it had on the link.
        data: as captured.
        direction: a Direction.
        comment: for people; empty: none.
    """
    kept = len(data)
    if comment:
        size, tail = _tail(kept, direction, comment)
    else:
        size, tail = _plain_tail(kept, direction)
    high, low = time >> 32, time & 0xFFFFFFFF
    return _packet_head(_PACKET, size, interface, high, low, kept, length), data, tail


def _tail(kept: int, direction: int, comment: str) -> tuple[int, bytes]:
    """Return the size of a block, and what stands in it behind the packet."""
    options = _option(_EPB_FLAGS, struct.pack("<I", direction))
    if comment:
        options += _option(_COMMENT, _octets(comment))
    tail = b"\0" * (-kept % 4) + options + _END_OF_OPTIONS
    size = 32 + kept + len(tail)
    return size, tail + struct.pack("<I", size)


_plain_tail = lru_cache(maxsize=16384)(partial(_tail, comment=""))
"""There are few lengths, and most packets have one of them."""

_packet_head = struct.Struct("<IIIIIII").pack
_PACKET = int(_Kind.PACKET)


def decryption_secrets(key_log: bytes) -> bytes:
    """Return the block with keys of TLS sessions, in the format of SSLKEYLOGFILE.

    With it Wireshark shows what was said, so it stands before the packets.
    """
    body = struct.pack("<II", TLS_KEY_LOG, len(key_log)) + _padded(key_log)
    return _block(_Kind.SECRETS, body)


def name_resolution(names: Mapping[IPAddress, str]) -> bytes:
    """Return the block that gives addresses names, for Wireshark to show."""
    records = b"".join(
        _option(
            _NRB_IPV4 if address.version == 4 else _NRB_IPV6,
            address.packed + _octets(name) + b"\0",
        )
        for address, name in names.items()
    )
    return _block(_Kind.NAMES, records + _END_OF_OPTIONS)


def interface_statistics(
    time: int, received: int, dropped: int, interface: int = 0
) -> bytes:
    """Return the block that says how many packets the capture got and lost so far."""
    body = struct.pack("<III", interface, time >> 32, time & 0xFFFFFFFF)
    options = _option(_ISB_IFRECV, struct.pack("<Q", received))
    options += _option(_ISB_IFDROP, struct.pack("<Q", dropped))
    return _block(_Kind.STATISTICS, body + options + _END_OF_OPTIONS)


def whole_blocks(data: bytes) -> int:
    """Return how many octets of what was written here are whole blocks."""
    at = 0
    while at + 8 <= len(data):
        (size,) = struct.unpack_from("<I", data, at + 4)
        if at + size > len(data):
            break
        at += size
    return at


_END_OF_OPTIONS = b"\0\0\0\0"


def _octets(text: str) -> bytes:
    """Return a text as an option has it: no longer than its length can say."""
    octets = text.encode("utf-8", "replace")[:_MAX_OPTION]
    return octets.decode("utf-8", "ignore").encode()


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _block(kind: int, body: bytes) -> bytes:
    size = struct.pack("<I", len(body) + 12)
    return struct.pack("<I", kind) + size + body + size


# Reading ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Interface:
    number: int
    """Over all sections."""
    link_type: int
    snap_length: int
    units: int
    """Of time in a second."""
    offset: int
    """Seconds to add to a time."""

    def time(self, high: int, low: int) -> int:
        return ((high << 32 | low) * 10**9) // self.units + self.offset * 10**9


class PcapngReader:
    """Reads a file; iterate over it for its packets, then ask what else it said.

    A file that has grown since can be iterated over again, for what is new. Iterating
    raises BrokenCapture where the file contradicts itself.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.interfaces: list[str] = []
        """Names of the links captured on, over all sections."""
        self.descriptions: list[str] = []
        """What those are, for people; empty where the file does not say."""
        self.key_log = b""
        """Keys of TLS sessions, as lines of SSLKEYLOGFILE."""
        self.names: dict[IPAddress, str] = {}
        """Names that the file gives addresses."""
        self.cut_off = False
        """The last block is not whole: it is being written, or its writer died."""
        self._file = file
        self._offset = 0
        self._order = "<"
        self._section: list[_Interface] = []
        self.lost: dict[int, int] = {}
        """Packets that the capture lost, by interface, of those that say it."""

    @property
    def drops(self) -> int | None:
        """Packets that the capture lost; None if the file does not say it of all."""
        if not self.interfaces or len(self.lost) < len(self.interfaces):
            return None
        return sum(self.lost.values())

    def __iter__(self) -> Iterator[CapturedPacket]:
        if self._offset:
            self._file.seek(self._offset)
        self.cut_off = False
        while (found := self._next_block()) is not None:
            packet = self._understood(*found)
            self._offset += len(found[1]) + 12
            if packet is not None:
                yield packet

    def _next_block(self) -> tuple[int, bytes] | None:
        """Return type and body of the next whole block; None at the end."""
        start = self._file.read(12)
        if self._offset == 0 and (len(start) < 12 or start[:4] != MAGIC):
            raise self._broken("there is no section header")
        if len(start) < 12:
            self.cut_off = bool(start)
            return None
        if start[:4] == MAGIC:
            self._begin_section(start[8:12])
        kind, size = struct.unpack(self._order + "II", start[:8])
        if size % 4 or not 12 <= size <= MAX_BLOCK:
            problem = f"a block has the impossible size {size}"
            raise self._broken(problem)
        rest = self._file.read(size - 12) if size > 12 else b""
        if len(rest) < size - 12:
            self.cut_off = True
            return None
        block = start[8:12] + rest
        if block[-4:] != start[4:8]:
            raise self._broken("a block has two different sizes")
        return kind, block[:-4]

    def _begin_section(self, magic: bytes) -> None:
        for order in "<>":
            if struct.pack(order + "I", _BYTE_ORDER) == magic:
                self._order = order
                self._section = []
                return
        raise self._broken("a section has no byte order")

    def _understood(self, kind: int, body: bytes) -> CapturedPacket | None:
        try:
            match kind:
                case _Kind.PACKET:
                    return self._packet(body)
                case _Kind.SIMPLE_PACKET:
                    return self._simple_packet(body)
                case _Kind.OBSOLETE_PACKET:
                    raise self._broken("there is a packet block of an obsolete kind")
                case _Kind.SECTION:
                    self._check_section(body)
                case _Kind.INTERFACE:
                    self._take_interface(body)
                case _Kind.NAMES:
                    self._take_names(body)
                case _Kind.STATISTICS:
                    self._take_statistics(body)
                case _Kind.SECRETS:
                    self._take_secrets(body)
                case _:
                    pass  # No other kind has packets, or says how many are missing.
        except struct.error:
            raise self._broken("a block is too short for its kind") from None
        return None

    def _check_section(self, body: bytes) -> None:
        _, major, _, _ = struct.unpack_from(self._order + "IHHq", body)
        if major != 1:
            problem = f"a section is of version {major}, not 1"
            raise self._broken(problem)

    def _take_interface(self, body: bytes) -> None:
        link_type, _, snap_length = struct.unpack_from(self._order + "HHI", body)
        options = self._options(body[8:])
        (resolution,) = struct.unpack("B", options.get(_IF_TSRESOL, b"\x06"))
        power = resolution & 0x7F
        (offset,) = struct.unpack(
            self._order + "q", options.get(_IF_TSOFFSET, b"\0" * 8)
        )
        interface = _Interface(
            number=len(self.interfaces),
            link_type=link_type,
            snap_length=snap_length,
            units=2**power if resolution & 0x80 else 10**power,
            offset=offset,
        )
        self._section.append(interface)
        self.interfaces.append(_text(options.get(_IF_NAME, b"")))
        self.descriptions.append(_text(options.get(_IF_DESCRIPTION, b"")))

    def _packet(self, body: bytes) -> CapturedPacket:
        number, high, low, captured, length = struct.unpack_from(
            self._order + "IIIII", body
        )
        interface = self._interface(number)
        end = 20 + captured
        if end > len(body):
            raise self._broken("a packet is longer than its block")
        options = self._options(body[end + -end % 4 :])
        flags = options.get(_EPB_FLAGS, b"\0\0\0\0")
        (word,) = struct.unpack(self._order + "I", flags)
        return CapturedPacket(
            data=body[20:end],
            length=length,
            time=interface.time(high, low),
            link_type=interface.link_type,
            interface=interface.number,
            direction=_DIRECTIONS[word & 3],
            comment=_text(options.get(_COMMENT, b"")),
        )

    def _simple_packet(self, body: bytes) -> CapturedPacket:
        interface = self._interface(0)
        (length,) = struct.unpack_from(self._order + "I", body)
        captured = min(length, interface.snap_length or length)
        if 4 + captured > len(body):
            raise self._broken("a packet is longer than its block")
        data = body[4 : 4 + captured]
        return CapturedPacket(
            data, length, 0, interface.link_type, interface=interface.number
        )

    def _take_names(self, body: bytes) -> None:
        for kind, value in self._records(body):
            size = {_NRB_IPV4: 4, _NRB_IPV6: 16}.get(kind)
            if size is None or len(value) <= size:
                continue
            name = value[size:].split(b"\0")[0]
            self.names[ipaddress.ip_address(value[:size])] = _text(name)

    def _take_statistics(self, body: bytes) -> None:
        (number,) = struct.unpack_from(self._order + "I", body)
        interface = self._interface(number)
        options = self._options(body[12:])
        counts = [
            struct.unpack(self._order + "Q", options[code])[0]
            for code in (_ISB_IFDROP, _ISB_OSDROP)
            if code in options
        ]
        if counts:
            self.lost[interface.number] = sum(counts)

    def _take_secrets(self, body: bytes) -> None:
        kind, size = struct.unpack_from(self._order + "II", body)
        if 8 + size > len(body):
            raise self._broken("secrets are longer than their block")
        if kind == TLS_KEY_LOG and len(self.key_log) + size <= MAX_BLOCK:
            self.key_log += body[8 : 8 + size]

    def _interface(self, number: int) -> _Interface:
        if number >= len(self._section):
            problem = f"interface {number} is not described"
            raise self._broken(problem)
        return self._section[number]

    def _options(self, data: bytes) -> dict[int, bytes]:
        """Return a block's options; of one given twice, the first."""
        options: dict[int, bytes] = {}
        for code, value in self._records(data):
            options.setdefault(code, value)
        return options

    def _records(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        at = 0
        while at < len(data):
            code, size = struct.unpack_from(self._order + "HH", data, at)
            if code == 0:
                return
            value = data[at + 4 : at + 4 + size]
            if len(value) < size:
                raise self._broken("an option is longer than its block")
            yield code, value
            at += 4 + size + -size % 4

    def _broken(self, problem: str) -> BrokenCapture:
        return BrokenCapture(self._offset, problem)


# The fourth value is not defined.
_DIRECTIONS = (
    Direction.UNKNOWN,
    Direction.INCOMING,
    Direction.OUTGOING,
    Direction.UNKNOWN,
)


def _text(value: bytes) -> str:
    if not value:
        return ""
    text = value.decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)
