"""Packets of a link, through memory shared with the kernel. PRIVILEGED: CAP_NET_RAW.

A packet socket with a ring of blocks (packet(7), TPACKET_V3): the kernel fills a block
with packets and gives it to us when it is full, or after RETIRE; we read it where it
lies, and give it back. So a burst costs no system call a packet, and what does not fit
is counted by the kernel, never silently missing.

    block    version 4  private 4 | status 4  packets 4  first 4  …
    packet   next 4  seconds 4  nanoseconds 4  kept 4  length 4  status 4  mac 2  net 2
             hash 4  VLAN tag 4  VLAN type 2 … | sockaddr_ll: … hardware type 2  kind 1

Rules of this file: nothing of a packet is understood here, the kernel's filter chooses;
a block is given back only after all of it was copied.
"""

import contextlib
import ctypes
import mmap
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vnsmail.capture import bpf
from vnsmail.errors import BadInput, NotPrivileged
from vnsmail.net.namespaces import Visitor

RETIRE = 0.05
"""Seconds after which the kernel hands a block over that is not full."""

BLOCK = 1024 * 1024
"""Octets of a block of a large ring. The largest packet must fit."""
SMALL_BLOCK = 128 * 1024
"""Of a small one: the largest packet that segmentation offload makes is 64 KiB."""

SMALLEST = 4 * SMALL_BLOCK
"""Octets of the smallest ring that is of use."""

_ETH_P_ALL = 0x0003
_SOL_PACKET = 263
_ADD_MEMBERSHIP, _RX_RING, _STATISTICS, _VERSION = 1, 5, 6, 10
_TPACKET_V3 = 2
_MR_PROMISC = 1
_OUTGOING = 4
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_SO_ATTACH_FILTER, _SO_LOCK_FILTER = 26, 44

_KERNEL, _USER = b"\0\0\0\0", 1
_STATUS, _CONTENTS = 8, 12
_U32 = struct.Struct("=I")
_PAIR = struct.Struct("=II")
_PACKET = struct.Struct("=IIIIIIH32xB")
_TAG = struct.Struct("=32xIH")
_HAS_TAG, _HAS_TAG_TYPE = 0x10, 0x40
_8021Q = 0x8100


class Taken(NamedTuple):
    """A packet as the ring has it."""

    time: int
    """Nanoseconds since the epoch."""
    length: int
    """Octets it had on the link."""
    outgoing: bool
    data: bytes | memoryview
    """As far as it is kept. Good until the next block is asked for."""


@dataclass(slots=True)
class Counts:
    """What the kernel counted since the ring was made."""

    received: int = 0
    """Packets that passed the filter, the dropped ones too."""
    dropped: int = 0
    """Those of them for which there was no room."""


class Tap:
    """A ring on one link.

    Args:
        sock: what ``open_tap`` made; received from another process, maybe.
        link: name of the link.
        size: octets of the ring that it was made with.
    """

    def __init__(self, sock: socket.socket, link: str, size: int) -> None:
        self.link = link
        self.counts = Counts()
        self.taken = 0
        """Packets that were read."""
        self._socket = sock
        self._block, self._blocks = _shape(size)
        self._next = 0
        self._loops = sock.getsockname()[3] == _ARPHRD_LOOPBACK
        self._memory = mmap.mmap(sock.fileno(), self._block * self._blocks)
        self._view = memoryview(self._memory)

    def fileno(self) -> int:
        """Return what to wait on for blocks."""
        return self._socket.fileno()

    def blocks(self) -> Iterator[list[Taken]]:
        """Give the packets of each block that is ready.

        A block is the kernel's again, and the data of its packets no more, as soon as
        the next is asked for.
        """
        view, size = self._view, self._block
        for _ in range(self._blocks):
            base = self._next * size
            if not _U32.unpack_from(view, base + _STATUS)[0] & _USER:
                return
            yield self._block_at(base)
            view[base + _STATUS : base + _CONTENTS] = _KERNEL
            self._next = (self._next + 1) % self._blocks

    def _block_at(self, base: int) -> list[Taken]:
        view, unpack, loops = self._view, _PACKET.unpack_from, self._loops
        count, at = _PAIR.unpack_from(view, base + _CONTENTS)
        at += base
        self.taken += count
        found = []
        for _ in range(count):
            step, seconds, part, kept, length, status, mac, kind = unpack(view, at)
            outgoing = kind == _OUTGOING
            # A loopback link shows each packet on its way out, and on its way in.
            if not (outgoing and loops):
                start = at + mac
                data: bytes | memoryview = view[start : start + kept]
                if status & _HAS_TAG:
                    data, length = self._tagged(at, start, kept), length + 4
                found.append(
                    Taken(seconds * 1_000_000_000 + part, length, outgoing, data)
                )
            at += step
        return found

    def _tagged(self, at: int, start: int, kept: int) -> bytes:
        """Put a VLAN tag back where the kernel took it out of the frame."""
        tag, kind = _TAG.unpack_from(self._view, at)
        status = _U32.unpack_from(self._view, at + 20)[0]
        kind = kind if status & _HAS_TAG_TYPE else _8021Q
        frame = bytes(self._view[start : start + kept])
        return frame[:12] + struct.pack("!HH", kind, tag & 0xFFFF) + frame[12:]

    def count(self) -> Counts:
        """Ask the kernel what it received and dropped since the ring was made."""
        # Reading sets the kernel's counters back to zero (packet(7)).
        raw = self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 12)
        received, dropped = _PAIR.unpack_from(raw)
        self.counts.received += received
        self.counts.dropped += dropped
        return self.counts

    @property
    def waiting(self) -> int:
        """Packets that the kernel has for us and has not handed over, as last counted."""
        return self.counts.received - self.counts.dropped - self.taken

    def is_gone(self) -> bool:
        """Say whether the link is no more; one that is down may come back."""
        self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # said once
        name: str = self._socket.getsockname()[0]
        return name != self.link

    def mute(self) -> None:
        """Hear nothing from now on; what came until now can still be read."""
        attach(self._socket, bpf.NOTHING)

    def close(self) -> None:
        """Give the ring back to the kernel."""
        # Whoever failed may hold packets still; then it goes when they do.
        with contextlib.suppress(BufferError):
            self._view.release()
            self._memory.close()
        self._socket.close()


def open_tap(
    link: str,
    ports: Sequence[int],
    *,
    size: int,
    namespace: str = "",
    program: Sequence[bpf.Instruction] = (),
    lock: bool = False,
) -> Tap:
    """Return a ring that hears SMTP on a link from now on.

    Args:
        link: its name.
        ports: what counts as SMTP.
        size: octets of the ring.
        namespace: name of the network namespace that has the link; empty: our own.
        program: the kernel's filter, in place of the one for all of the ports.
        lock: nobody who gets hold of the socket can change its filter.

    Raises:
        NotPrivileged: no CAP_NET_RAW there.
        BadInput: there is no such link or namespace, or it is none of Ethernet's kind.
    """

    def opened() -> Tap:
        return _opened(link, program or bpf.smtp_filter(ports), size, lock=lock)

    where = f"{link} in {namespace}" if namespace else link
    try:
        if not namespace:
            return opened()
        with Visitor() as visitor:
            return visitor.run(namespace, opened)
    except PermissionError:
        raise NotPrivileged("record packets", "run it as root") from None
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
        raise BadInput("link", where, f"cannot record there: {problem}") from None


def _opened(
    link: str, program: Sequence[bpf.Instruction], size: int, *, lock: bool
) -> Tap:
    # Protocol 0 hears nothing: the filter is there before the first packet is.
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        attach(sock, program)
        if lock:
            sock.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)
        _set_up(sock, link, size)
        return Tap(sock, link, size)
    except BaseException:
        sock.close()
        raise


def _shape(size: int) -> tuple[int, int]:
    """Return the octets of a block, and how many blocks a ring of this size has."""
    block = BLOCK if size >= 4 * BLOCK else SMALL_BLOCK
    return block, max(size, SMALLEST) // block


def _set_up(sock: socket.socket, link: str, size: int) -> None:
    sock.setsockopt(_SOL_PACKET, _VERSION, _TPACKET_V3)
    block, blocks = _shape(size)
    frame = 2048  # of no meaning in version 3, but checked
    sizes = (block, blocks, frame, block // frame * blocks, int(RETIRE * 1000), 0, 0)
    sock.setsockopt(_SOL_PACKET, _RX_RING, struct.pack("=7I", *sizes))
    index = socket.if_nametoindex(link)
    sock.bind((link, _ETH_P_ALL))
    if sock.getsockname()[3] not in {_ARPHRD_ETHER, _ARPHRD_LOOPBACK}:
        raise BadInput("link", link, "it carries no Ethernet frames")
    request = struct.pack("iHH8s", index, _MR_PROMISC, 0, b"")
    sock.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, request)
    sock.setblocking(False)


def attach(sock: socket.socket, program: Sequence[bpf.Instruction]) -> None:
    """Put a filter on a socket, in place of any earlier one."""
    code = ctypes.create_string_buffer(b"".join(i.packed() for i in program))
    pointer = struct.pack("HP", len(program), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)


def share(buffer: int, places: int) -> int:
    """Return how many octets each of so many rings gets of a memory for all of them."""
    return max(SMALLEST, buffer // max(places, 1))
