"""TCP connections to SMTP ports, put together from packets. Pure.

A connection is known by its two ends. A further SYN between the same two ends begins a
new one, unless it is a retransmission: the same sequence number, and no data yet.

Rules of this file: packets come in the order in which they were captured, and may be
repeated, out of order or missing. Every packet counts in exactly one connection, and one
seen at two places counts once. What is kept of a connection is bounded, whatever is
sent.
"""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

from vnsmail.capture.packets import ACK, RST, SYN, Packet
from vnsmail.model import IPAddress

SMTP_PORTS = (25,)

KEEP = 16 * 1024
"""Octets kept of what each side says. EHLO, MAIL and some hundred RCPT commands of 60
octets fit; ten thousand connections take 320 MiB at worst."""

RECENT = 16384
"""Packets in which a second sight of one is looked for. Between two links of a machine
lie microseconds, and between two blocks of a recorder some thousand packets."""

_SEQUENCE = 2**32  # RFC 9293 section 3.4: sequence numbers count modulo 2**32


class Stream:
    """What one side said, from its first octet on, as far as it is kept.

    Where octets come twice, the ones in order win.
    """

    def __init__(self, first: int) -> None:
        self.length = 0
        """Octets up to the last one that was seen."""
        self._first = first
        self._head = bytearray()
        # What came before its turn, and which octets of it are there. Made when needed.
        self._early = bytearray()
        self._there = bytearray()
        self._pieces: list[tuple[int, int]] = []

    def packet_of(self, offset: int) -> int:
        """Return the number of the packet that brought an octet of ``head``."""
        return max((p for p in self._pieces if p[0] <= offset), default=(0, 0))[1]

    @property
    def head(self) -> bytes:
        """The octets from the first on to the first missing one, KEEP at most."""
        return bytes(self._head)

    @property
    def has_hole(self) -> bool:
        """Octets are missing in the part that is kept."""
        return len(self._head) < min(self.length, KEEP)

    def add(self, sequence: int, payload: bytes, length: int, number: int = 0) -> None:
        """Take a segment: its sequence number, and its octets as far as captured.

        ``number`` is that of the packet in its file.
        """
        offset = (sequence - self._first) % _SEQUENCE
        if offset >= _SEQUENCE // 2:
            offset -= _SEQUENCE
        self.length = max(self.length, offset + length)
        start = max(offset, len(self._head))
        piece = payload[start - offset : max(0, KEEP - offset)]
        if not piece:
            return
        self._pieces.append((start, number))
        if start == len(self._head):
            self._head += piece
        else:
            self._put_aside(start, piece)
        if self._there:
            self._catch_up()

    def _put_aside(self, start: int, piece: bytes) -> None:
        if not self._there:
            self._early, self._there = bytearray(KEEP), bytearray(KEEP)
        end = start + len(piece)
        self._early[start:end] = piece
        self._there[start:end] = b"\1" * len(piece)

    def _catch_up(self) -> None:
        start = len(self._head)
        end = self._there.find(0, start)
        self._head += self._early[start : KEEP if end < 0 else end]


@dataclass(slots=True)
class Flow:
    """One TCP connection, or an attempt at one."""

    client: IPAddress
    client_port: int
    server: IPAddress
    server_port: int
    began: int
    """When its first packet was captured, nanoseconds since the epoch."""
    ended: int = 0
    """When its last packet was captured."""
    first: int = 0
    """Number of its first packet in the file: its SYN, where one was captured."""
    packets: int = 0
    """From client to server: SYN, data, acknowledgements, FIN, all."""
    answers: int = 0
    """Packets from server to client."""
    initial: int | None = None
    """Sequence number of the client's SYN; None where no SYN was captured."""
    accepted: bool = False
    """The server answered that SYN with a SYN-ACK to the client's address."""
    refused: bool = False
    """The server sent RST."""
    fragments: int = 0
    """Packets that came in pieces. They are counted, and their data is not read."""
    sent: Stream | None = field(default=None, repr=False)
    received: Stream | None = field(default=None, repr=False)

    @property
    def said(self) -> bytes:
        """What the client said, as far as it is kept."""
        return self.sent.head if self.sent else b""

    @property
    def answered(self) -> bytes:
        """What the server said, as far as it is kept."""
        return self.received.head if self.received else b""

    def from_client(self, packet: Packet, number: int = 0) -> None:
        """Take a packet that the client sent, and its number in the file."""
        self.packets += 1
        if packet.is_fragment:
            self.fragments += 1
            return
        first = packet.sequence
        if packet.has(SYN):
            self.initial = packet.sequence
            first += 1
        if self.sent is None and (packet.has(SYN) or packet.length):
            self.sent = Stream(first)
        if self.sent is not None and packet.length:
            self.sent.add(first, packet.payload, packet.length, number)

    def from_server(self, packet: Packet) -> None:
        """Take a packet that the server sent."""
        self.answers += 1
        if packet.is_fragment:
            self.fragments += 1
            return
        first = packet.sequence
        if packet.has(SYN | ACK):
            first += 1
            if self.initial is not None:
                expected = (self.initial + 1) % _SEQUENCE
                self.accepted |= packet.acknowledgement == expected
        if packet.has(RST):
            self.refused = True
        if self.received is None and (packet.has(SYN) or packet.length):
            self.received = Stream(first)
        if self.received is not None and packet.length:
            self.received.add(first, packet.payload, packet.length)


_Key = tuple[IPAddress, int, IPAddress, int]


class Assembler:
    """Puts packets together to connections.

    Args:
        ports: the ports that count as SMTP.
    """

    def __init__(self, ports: Collection[int] = SMTP_PORTS) -> None:
        self.flows: list[Flow] = []
        """In the order in which they began."""
        self.repeated = 0
        """Packets left out because they had been seen at another place."""
        self._ports = frozenset(ports)
        self._open: dict[_Key, Flow] = {}
        self._recent: OrderedDict[int, object] = OrderedDict()

    def add(
        self, packet: Packet, time: int = 0, place: object = None, number: int = 0
    ) -> Flow | None:
        """Take the next packet; return its connection, or None if it is left out.

        Args:
            packet: any TCP packet; one without an SMTP port is left out.
            time: when it was captured, nanoseconds since the epoch.
            place: link and direction of its capture. The same packet at another place
                is left out; at the same place it was sent twice, and counts twice.
            number: which packet of the file it is, from 1.
        """
        to_server = packet.destination_port in self._ports
        if not to_server and packet.source_port not in self._ports:
            return None
        if self._seen_elsewhere(packet, place):
            self.repeated += 1
            return None
        client = (packet.source, packet.source_port)
        server = (packet.destination, packet.destination_port)
        if to_server and packet.source_port in self._ports:
            to_server = self._is_client((*client, *server), packet)
        if not to_server:
            client, server = server, client
        key: _Key = (*client, *server)
        flow = self._open.get(key)
        if flow is None or (to_server and _begins_anew(flow, packet)):
            flow = Flow(*key, began=time, first=number)
            self._open[key] = flow
            self.flows.append(flow)
        flow.ended = max(flow.ended, time)
        if to_server:
            flow.from_client(packet, number)
        else:
            flow.from_server(packet)
        return flow

    def _is_client(self, key: _Key, packet: Packet) -> bool:
        """Say which side sent a packet between two SMTP ports."""
        if packet.has(SYN):
            return not packet.has(ACK)
        return key in self._open or (*key[2:], *key[:2]) not in self._open

    def _seen_elsewhere(self, packet: Packet, place: object) -> bool:
        if packet.is_fragment:
            return False
        first = self._recent.setdefault(packet.fingerprint, place)
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        return first != place


def _begins_anew(flow: Flow, packet: Packet) -> bool:
    """Say whether a client's packet is the first of a new connection.

    A SYN is repeated only while none of the client's data has been sent.
    """
    if not packet.has(SYN) or packet.has(ACK) or packet.is_fragment:
        return False
    has_data = flow.sent is not None and flow.sent.length > 0
    return has_data or packet.sequence != flow.initial
