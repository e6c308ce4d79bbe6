"""From a capture file to the connections in it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from vnsmail.capture import pcap, pcapng
from vnsmail.capture.flows import SMTP_PORTS, Assembler, Flow
from vnsmail.capture.packets import LINK_TYPES, LINUX_SLL, LINUX_SLL2, parse
from vnsmail.errors import BadInput

_HEADERS = 128
"""Octets that hold all headers: Ethernet with a VLAN tag 18, IPv6 40, TCP 60 at most."""

_COOKED_HEADERS = {LINUX_SLL: 16, LINUX_SLL2: 20}

_TELL_EVERY = 4096


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a capture file shows."""

    flows: tuple[Flow, ...]
    """Connections to SMTP ports, in the order in which they began."""
    packets: int
    """Packets of all kinds in the file."""
    repeated: int
    """Packets left out because they had been seen at another place."""
    drops: int | None
    """Packets that the capture lost; None if the file does not say."""
    unreadable: int
    """Packets recorded so short that their headers are not whole."""
    cut_off: bool
    """The last packet is not whole: it is being written, or its writer died."""
    began: int = 0
    """When the first packet was captured, nanoseconds since the epoch; 0: none was."""
    ended: int = 0
    """And the last."""
    interfaces: tuple[str, ...] = ()
    """Where packets were captured, as the file calls it."""

    @property
    def damage(self) -> tuple[str, ...]:
        """What makes the capture incomplete, in sentences."""
        found = []
        if self.drops:
            found.append(f"the capture lost packets: {self.drops} were dropped")
        if self.unreadable:
            short = f"{self.unreadable} were recorded too short"
            found.append(f"the capture lacks the headers of packets: {short}")
        return tuple(found)


def read(
    path: Path,
    ports: Collection[int] = SMTP_PORTS,
    tell: Callable[[int], None] = lambda _: None,
) -> Evidence:
    """Return what a pcapng or pcap file shows; it may be growing.

    Args:
        path: the file.
        ports: the ports that count as SMTP.
        tell: told now and then how many octets have been read.

    Raises:
        BadInput: it cannot be read, or it is no capture that can be understood.
    """
    try:
        with path.open("rb") as file:
            return _read(path, file, ports, tell)
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
        raise BadInput("capture", str(path), f"cannot read it: {problem}") from None
    except pcapng.BrokenCapture as error:
        problem = f"{error.problem} (octet {error.offset})"
        raise BadInput("capture", str(path), f"it is damaged: {problem}") from None


def _read(
    path: Path, file: BinaryIO, ports: Collection[int], tell: Callable[[int], None]
) -> Evidence:
    reading = Reading(path, open_reader(path, file), ports)
    reading.take(lambda: tell(file.tell()))
    return reading.evidence()


@dataclass(slots=True)
class Reading:
    """A capture that is read, all at once or while it grows.

    Args:
        path: the file, for messages.
        reader: gives its packets.
        ports: the ports that count as SMTP.
    """

    path: Path
    reader: pcapng.PcapngReader | pcap.PcapReader
    ports: Collection[int] = SMTP_PORTS
    assembler: Assembler = field(init=False)
    packets: int = 0
    _unreadable: int = 0
    _began: int = 0
    _ended: int = 0

    def __post_init__(self) -> None:
        self.assembler = Assembler(self.ports)

    def take(self, tell: Callable[[], None] = lambda: None) -> None:
        """Read the packets that are there by now.

        Raises:
            BadInput: packets of a link that is none of Ethernet's.
            BrokenCapture: the file contradicts itself.
        """
        for captured in self.reader:
            self._one(captured)
            if self.packets % _TELL_EVERY == 0:
                tell()

    def _one(self, captured: pcapng.CapturedPacket) -> None:
        if captured.link_type not in LINK_TYPES:
            remedy = f"its link type {captured.link_type} is none of Ethernet's"
            text = f"{remedy}; capture on another link"
            raise BadInput("capture", str(self.path), text)
        self.packets += 1
        self._began = self._began or captured.time
        self._ended = max(self._ended, captured.time)
        packet = parse(captured.data, captured.link_type)
        if packet is not None:
            where = place(captured)
            self.assembler.add(packet, captured.time, where, self.packets)
        elif len(captured.data) < min(captured.length, _HEADERS):
            self._unreadable += 1

    def evidence(self) -> Evidence:
        """Return what it shows so far."""
        names = getattr(self.reader, "interfaces", ())
        return Evidence(
            flows=tuple(self.assembler.flows),
            packets=self.packets,
            repeated=self.assembler.repeated,
            drops=self.reader.drops,
            unreadable=self._unreadable,
            cut_off=self.reader.cut_off,
            began=self._began,
            ended=self._ended,
            interfaces=tuple(names),
        )


def place(captured: pcapng.CapturedPacket) -> object:
    """Return what tells apart the places at which one packet can be seen.

    A capture on all links ("any") has one interface; its header names the link.
    """
    header = captured.data[: _COOKED_HEADERS.get(captured.link_type, 0)]
    return captured.interface, captured.direction, header


def open_reader(path: Path, file: BinaryIO) -> pcapng.PcapngReader | pcap.PcapReader:
    """Return what reads a capture; BadInput if it is none."""
    magic = file.read(4)
    file.seek(0)
    if magic == pcapng.MAGIC:
        return pcapng.PcapngReader(file)
    if magic in pcap.MAGICS:
        return pcap.PcapReader(file)
    raise BadInput("capture", str(path), "it is no pcapng or pcap file")
