"""Frames, connections and capture files made from nothing."""

import ipaddress
import struct
from dataclasses import dataclass, field

from vnsmail.capture import pcapng
from vnsmail.capture.flows import Assembler, Flow
from vnsmail.capture.packets import ACK, ETHERNET, FIN, RST, SYN, Packet, parse
from vnsmail.capture.pcapng import CapturedPacket

ALPHA4, ALPHA6 = "10.77.0.11", "fd77::11"
BETA4 = "10.77.0.12"
MACHINE4 = "10.77.0.1"
NORTH4, NORTH6 = "10.77.0.3", "fd77::3"
NOBODY4 = "10.77.0.99"

PUSH = 0x08


def tcp(
    source=40000,
    destination=25,
    *,
    sequence=0,
    acknowledgement=0,
    flags=ACK,
    payload=b"",
    options=b"",
):
    offset = (20 + len(options)) // 4 << 4
    numbers = (sequence % 2**32, acknowledgement % 2**32)
    header = struct.pack(
        "!HHIIBBHHH", source, destination, *numbers, offset, flags, 64240, 0, 0
    )
    return header + options + payload


def ipv4(
    segment,
    source=ALPHA4,
    destination=NORTH4,
    *,
    protocol=6,
    fragment=0x4000,
    options=b"",
    identification=0,
    hops=64,
    total=None,
):
    header = 20 + len(options)
    total = header + len(segment) if total is None else total
    return (
        struct.pack(
            "!BBHHHBBH4s4s",
            0x40 | header // 4,
            0,
            total,
            identification,
            fragment,
            hops,
            protocol,
            0,
            ipaddress.ip_address(source).packed,
            ipaddress.ip_address(destination).packed,
        )
        + options
        + segment
    )


def ipv6(segment, source=ALPHA6, destination=NORTH6, *, kind=6, length=None, hops=64):
    return (
        struct.pack(
            "!IHBB",
            0x60000000,
            len(segment) if length is None else length,
            kind,
            hops,
        )
        + ipaddress.ip_address(source).packed
        + ipaddress.ip_address(destination).packed
        + segment
    )


def ip(segment, source, destination):
    """Return the packet in the family of the addresses."""
    build = ipv6 if ":" in source else ipv4
    return build(segment, source, destination)


def ethernet(packet, *, kind=None, tags=b""):
    if kind is None:
        kind = 0x86DD if packet[:1] >= b"\x60" else 0x0800
    return b"\2" * 6 + b"\4" * 6 + tags + struct.pack("!H", kind) + packet


@dataclass
class Connection:
    """A TCP connection, as the frames that it makes."""

    client: str = ALPHA4
    server: str = NORTH4
    client_port: int = 40000
    server_port: int = 25
    at_client: int = 1000
    at_server: int = 7000
    frames: list[bytes] = field(default_factory=list)

    def from_client(self, flags, payload=b""):
        segment = tcp(
            self.client_port,
            self.server_port,
            sequence=self.at_client,
            acknowledgement=self.at_server if flags & ACK else 0,
            flags=flags,
            payload=payload,
        )
        self.at_client += len(payload) + bool(flags & (SYN | FIN))
        self.frames.append(ethernet(ip(segment, self.client, self.server)))

    def from_server(self, flags, payload=b""):
        segment = tcp(
            self.server_port,
            self.client_port,
            sequence=self.at_server,
            acknowledgement=self.at_client,
            flags=flags,
            payload=payload,
        )
        self.at_server += len(payload) + bool(flags & (SYN | FIN))
        self.frames.append(ethernet(ip(segment, self.server, self.client)))

    def open(self):
        self.from_client(SYN)
        self.from_server(SYN | ACK)
        self.from_client(ACK)
        return self

    def says(self, text):
        self.from_client(ACK | PUSH, text.replace("\n", "\r\n").encode())
        return self

    def answers(self, text):
        self.from_server(ACK | PUSH, text.replace("\n", "\r\n").encode())
        return self

    def close(self):
        self.from_client(FIN | ACK)
        self.from_server(FIN | ACK)
        self.from_client(ACK)
        return self

    def reset(self):
        self.from_server(RST | ACK)
        return self


FROM_CLIENT = 8
"""Packets from the client in the connection that ``mail`` makes."""


def mail(
    client=ALPHA4,
    name="alpha.example",
    server=NORTH4,
    sender=None,
    body_id="",
    **ends,
):
    """Return a connection that brings one message."""
    trace = f"Received: by {name} (local, uid 0) with local id {body_id};\n\ttoday\n"
    trace = trace if body_id else ""
    sender = f"ann@{name}" if sender is None else sender
    return (
        Connection(client, server, **ends)
        .open()
        .answers("220 mx1.north.example ESMTP\n")
        .says(f"EHLO {name}\n")
        .answers("250-mx1.north.example\n250 SIZE 1000\n")
        .says(f"MAIL FROM:<{sender}>\nRCPT TO:<bob@north.example>\nDATA\n")
        .answers("250 ok\n250 ok\n354 go on\n")
        .says(f"{trace}Subject: EHLO\n\nEHLO beta.example\n.\n")
        .answers("250 taken\n")
        .says("QUIT\n")
        .answers("221 bye\n")
        .close()
    )


def parsed(frame: bytes) -> Packet:
    packet = parse(frame)
    assert packet is not None
    return packet


def flows(*connections: Connection) -> list[Flow]:
    assembler = Assembler()
    for connection in connections:
        for number, frame in enumerate(connection.frames):
            assembler.add(parsed(frame), number)
    return assembler.flows


def capture(*connections: Connection, drops: int | None = 0) -> bytes:
    """Return a pcapng file."""
    blocks = [
        pcapng.section_header("tests"),
        pcapng.interface_description("lan0", ETHERNET),
    ]
    frames = [frame for connection in connections for frame in connection.frames]
    for number, frame in enumerate(frames):
        time = 1_800_000_000_000_000_000 + number * 1000
        packet = CapturedPacket(frame, len(frame), time, ETHERNET)
        blocks.append(pcapng.enhanced_packet(packet))
    if drops is not None:
        blocks.append(pcapng.interface_statistics(1, len(frames) + drops, drops))
    return b"".join(blocks)
