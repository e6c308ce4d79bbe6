"""Classic pcap files, read (draft-ietf-opsawg-pcap).

Rules of this file: those of pcapng.py. The format does not say how many packets a
capture lost, nor which way one went.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from vnsmail.capture.pcapng import MAX_BLOCK, BrokenCapture, CapturedPacket

# Magic number, byte order, and nanoseconds in a unit of the second half of times.
_KINDS = {
    struct.pack(order + "I", magic): (order, scale)
    for order in "<>"
    for magic, scale in ((0xA1B2C3D4, 1000), (0xA1B23C4D, 1))
}
MAGICS = frozenset(_KINDS)


class PcapReader:
    """Reads a file; iterate over it for its packets.

    Iterating raises BrokenCapture where the file contradicts itself.
    """

    drops = None
    """Packets that the capture lost: the format does not say."""

    def __init__(self, file: BinaryIO) -> None:
        self.cut_off = False
        """The last packet is not whole: it is being written, or its writer died."""
        self._file = file

    def __iter__(self) -> Iterator[CapturedPacket]:
        header = self._file.read(24)
        if len(header) < 24 or header[:4] not in _KINDS:
            raise BrokenCapture(0, "there is no pcap header")
        order, scale = _KINDS[header[:4]]
        # The upper half of the word says how long a frame check sequence is.
        link_type = struct.unpack(order + "I", header[20:24])[0] & 0xFFFF
        offset = 24
        while start := self._file.read(16):
            if len(start) < 16:
                self.cut_off = True
                return
            seconds, part, captured, length = struct.unpack(order + "IIII", start)
            if captured > MAX_BLOCK:
                raise BrokenCapture(
                    offset, f"a packet has the impossible size {captured}"
                )
            data = self._file.read(captured)
            if len(data) < captured:
                self.cut_off = True
                return
            time = seconds * 10**9 + part * scale
            yield CapturedPacket(data, length, time, link_type)
            offset += 16 + captured
