"""Records SMTP packets of one link into a pcapng file. PRIVILEGED: needs CAP_NET_RAW.

``python -m vnsmail.capture.record --link NAME --file FILE [--port 25 …] [--ready-fd N]``
records on a link of the network namespace that it runs in, until SIGTERM or SIGINT.

A packet socket (packet(7)) is bound to the one link, so a bridge and its ports are not
both heard; of a loopback link, which shows every packet on its way out and on its way
in, only the way in is taken. The link is made promiscuous: a bridge then shows what it
forwards between its ports, each frame once.

Rules of this file: nothing of a packet is understood here; the kernel's filter chooses.
The file grows by whole blocks. How many packets the kernel had to drop is written once a
second and at the end, so that whoever reads the file, at whatever moment, knows.
"""

import argparse
import contextlib
import ctypes
import os
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from vnsmail import __version__
from vnsmail.capture import bpf, pcapng
from vnsmail.capture.flows import SMTP_PORTS
from vnsmail.capture.packets import ETHERNET
from vnsmail.capture.pcapng import CapturedPacket, Direction
from vnsmail.errors import BadInput, NotPrivileged, StateUnusable, VnsmailError

BUFFER = 64 * 1024 * 1024
"""Octets that the kernel keeps for us while we are busy: half a second of a full
gigabit a second."""

BATCH = 512
"""Packets written at a time. 512 KiB of the usual kind; a kill loses at most these."""

STATISTICS_EVERY = 1.0

_ETH_P_ALL = 0x0003
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP, _PACKET_STATISTICS = 1, 6
_PACKET_MR_PROMISC = 1
_PACKET_OUTGOING = 4
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_SO_TIMESTAMPNS_NEW = 64
"""With seconds of 64 bits on every architecture (Linux 5.1)."""
_TIMESPEC = struct.Struct("qq")


class LinkGone(VnsmailError):
    """The link was removed while it was recorded."""

    def __init__(self, link: str) -> None:
        super().__init__(link)
        self.link = link

    def __str__(self) -> str:
        return f"cannot go on recording: the link {self.link} is gone"


def open_socket(link: str, ports: Sequence[int]) -> socket.socket:
    """Return a packet socket that hears SMTP on a link from now on.

    Raises:
        NotPrivileged: no CAP_NET_RAW in this network namespace.
        BadInput: there is no such link, or it is none of Ethernet's kind.
    """
    try:
        # Protocol 0 hears nothing: the filter is there before the first packet is.
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except PermissionError:
        raise NotPrivileged("record packets", "run it as root") from None
    try:
        _set_up(sock, link, ports)
    except OSError as error:
        sock.close()
        problem = (error.strerror or str(error)).lower()
        raise BadInput("link", link, f"cannot record there: {problem}") from None
    except BaseException:
        sock.close()
        raise
    return sock


def _set_up(sock: socket.socket, link: str, ports: Sequence[int]) -> None:
    with contextlib.suppress(PermissionError):  # Else the system's limit holds.
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS_NEW, 1)
    attach(sock, bpf.smtp_filter(ports))
    index = socket.if_nametoindex(link)
    sock.bind((link, _ETH_P_ALL))
    if sock.getsockname()[3] not in {_ARPHRD_ETHER, _ARPHRD_LOOPBACK}:
        raise BadInput("link", link, "it carries no Ethernet frames")
    request = struct.pack("iHH8s", index, _PACKET_MR_PROMISC, 0, b"")
    sock.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)
    sock.setblocking(False)


def attach(sock: socket.socket, program: Sequence[bpf.Instruction]) -> None:
    """Put a filter on a socket, in place of any earlier one."""
    code = ctypes.create_string_buffer(b"".join(i.packed() for i in program))
    pointer = struct.pack("HP", len(program), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)


class Recorder:
    """Takes packets off a socket and writes them into a file."""

    def __init__(self, sock: socket.socket, file: Path, link: str) -> None:
        self._socket = sock
        self._link = link
        self._index = socket.if_nametoindex(link)
        self._loops = sock.getsockname()[3] == _ARPHRD_LOOPBACK
        self._buffer = bytearray(bpf.KEEP_ALL)
        self._view = memoryview(self._buffer)
        self._received = self._dropped = 0
        self._is_down = False
        self._blocks: list[bytes] = []
        self._path = file
        self._size = 0
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._file = os.open(file, flags, 0o644)
        except OSError as error:
            problem = (error.strerror or str(error)).lower()
            raise BadInput("file", str(file), f"cannot write it: {problem}") from None
        self._blocks.append(pcapng.section_header(f"vnsmail {__version__}"))
        self._blocks.append(pcapng.interface_description(link, ETHERNET, bpf.KEEP_ALL))
        self.count_drops()
        self.flush()

    def take(self) -> bool:
        """Write what has come; return whether there may be more.

        Raises:
            StateUnusable: the file cannot be written.
        """
        more = True
        try:
            for _ in range(BATCH):
                self._one()
        except BlockingIOError:
            more = False
        except OSError:  # Said once: the link went down.
            self._is_down = True
        self.flush()
        return more

    def _one(self) -> None:
        length, ancillary, _, address = self._socket.recvmsg_into(
            [self._buffer], 64, socket.MSG_TRUNC
        )
        self._is_down = False
        outgoing = address[2] == _PACKET_OUTGOING
        if outgoing and self._loops:
            return
        seconds, nanoseconds = _TIMESPEC.unpack_from(ancillary[0][2])
        packet = CapturedPacket(
            data=bytes(self._view[: min(length, len(self._buffer))]),
            length=length,
            time=seconds * 10**9 + nanoseconds,
            link_type=ETHERNET,
            direction=Direction.OUTGOING if outgoing else Direction.INCOMING,
        )
        self._blocks.append(pcapng.enhanced_packet(packet))

    def link_is_down(self) -> bool:
        """Say whether the link went down and has been silent since.

        Raises:
            LinkGone: it is no more, and will not be heard again under its old name.
        """
        if not self._is_down:
            return False
        try:
            there = socket.if_nametoindex(self._link) == self._index
        except OSError:
            there = False
        if not there:
            raise LinkGone(self._link)
        return True

    def count_drops(self) -> None:
        """Note how many packets the kernel had for us, and how many it dropped."""
        # Reading sets the kernel's counters back to zero (packet(7)).
        counters = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        received, dropped = struct.unpack("II", counters)
        self._received += received
        self._dropped += dropped
        self._blocks.append(
            pcapng.interface_statistics(time.time_ns(), self._received, self._dropped)
        )

    def flush(self) -> None:
        """Write whole blocks.

        Raises:
            StateUnusable: the disk is full or broken; the file ends with a whole block.
        """
        data = memoryview(b"".join(self._blocks))
        self._blocks.clear()
        end = self._size + len(data)
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            problem = (error.strerror or str(error)).lower()
            raise StateUnusable(str(self._path), problem, "make room") from None
        self._size = end

    def finish(self) -> None:
        """Write what came until now, and how many packets were dropped; close."""
        attach(self._socket, bpf.NOTHING)
        while self.take():
            pass
        self.count_drops()
        self.flush()

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def record(sock: socket.socket, recorder: Recorder, stop: socket.socket) -> None:
    """Record until something can be read from ``stop``."""
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        selector.register(stop, selectors.EVENT_READ)
        due = float("inf")
        while True:
            timeout = max(0.0, due - time.monotonic()) if due < float("inf") else None
            ready = {key.fileobj for key, _ in selector.select(timeout)}
            if stop in ready:
                return recorder.finish()
            if sock in ready:
                recorder.take()
                due = min(due, time.monotonic() + STATISTICS_EVERY)
            if time.monotonic() >= due:
                due = float("inf")
                recorder.count_drops()
                recorder.flush()
                if recorder.link_is_down():
                    due = time.monotonic() + STATISTICS_EVERY


def _until_signal() -> socket.socket:
    """Return a socket that becomes readable when this process is to end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def end(_number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            theirs.send(b"\0")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    return ours


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m vnsmail.capture.record")
    parser.add_argument("--link", required=True)
    parser.add_argument("--file", required=True, type=Path)
    parser.add_argument("--port", action="append", type=int)
    parser.add_argument("--ready-fd", type=int)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Record until SIGTERM; return the exit code."""
    arguments = _arguments(words)
    stop = _until_signal()
    try:
        with open_socket(arguments.link, arguments.port or SMTP_PORTS) as sock:
            recorder = Recorder(sock, arguments.file, arguments.link)
            with contextlib.closing(recorder):
                if arguments.ready_fd is not None:
                    os.write(arguments.ready_fd, b"ready")
                    os.close(arguments.ready_fd)
                record(sock, recorder, stop)
    except VnsmailError as error:
        sys.stderr.write(f"vnsmail: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
