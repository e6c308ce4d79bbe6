"""What is watched while a server runs: its CPU and memory, and its packets."""

import contextlib
import ctypes
import os
import signal
import socket
import struct
import subprocess
from collections import Counter
from pathlib import Path

_SO_ATTACH_FILTER = 26
_PACKET_STATISTICS = 6
_SO_RCVBUFFORCE = 33
_SOL_PACKET = 263


def pids(root: int) -> list[int]:
    """Return a process and all that it has started."""
    found = [root]
    for pid in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def cpu(root: int) -> float:
    """Return the seconds of CPU that all these have used, dead ones too."""
    total = 0.0
    for pid in pids(root):
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                total += int((task / "schedstat").read_text().split()[0]) / 1e9
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks = int(stat[13]) + int(stat[14])  # cutime, cstime
            total += ticks / os.sysconf("SC_CLK_TCK")
    return total


def memory(root: int) -> int:
    """Return the KiB that all these have for themselves, shares included (PSS)."""
    total = 0
    for pid in pids(root)[1:]:  # the first is the reaper, which is ours
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total


def end(process: "subprocess.Popen[bytes]", patience: float = 10.0) -> None:
    """End a server with what it started, by process id; the reaper goes last."""
    process.terminate()
    for _ in range(2):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            return
        for pid in reversed(pids(process.pid)[1:]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()


class Connections:
    """Every connection that begins on a link towards port 25, as its packets say.

    The kernel keeps the first segment of each (SYN without ACK) and drops all else.
    """

    def __init__(self, link: str) -> None:
        # Offsets are those of an Ethernet frame with an IPv4 header of 20 octets.
        load_half, load_byte, equal, test, give = 0x28, 0x30, 0x15, 0x45, 0x06
        program = [
            (load_half, 0, 0, 12), (equal, 0, 8, 0x0800),  # IPv4
            (load_byte, 0, 0, 23), (equal, 0, 6, 6),  # TCP
            (load_half, 0, 0, 36), (equal, 0, 4, 25),  # to port 25
            (load_byte, 0, 0, 47), (test, 0, 2, 0x02), (test, 1, 0, 0x10),
            (give, 0, 0, 64), (give, 0, 0, 0),
        ]  # fmt: skip
        code = b"".join(struct.pack("=HBBI", *line) for line in program)
        buffer = ctypes.create_string_buffer(code, len(code))
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._sock.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("@HP", len(program), ctypes.addressof(buffer)),
        )
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        self._sock.bind((link, 0x0003))  # ETH_P_ALL
        self._sock.setblocking(False)

    def seen(self) -> tuple[Counter[tuple[str, str]], int]:
        """Return connections by source and destination, and packets that were missed."""
        found: Counter[tuple[str, str]] = Counter()
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = self._sock.recv(64)
                found[
                    socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34])
                ] += 1
        statistics = self._sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        return found, struct.unpack("II", statistics)[1]

    def close(self) -> None:
        """Watch no more."""
        self._sock.close()
