"""How many packets a second the recorder takes on one core, and what it loses.

``scripts/bench capture [--rates 50000,100000,…] [--seconds S] [--size OCTETS]``. In
network namespaces of its own, frames of SMTP are put on a veth pair at a rate, and
vnsmail's recorder writes them into a file in memory. The sender has one core, the
recorder the other. A rate is held where the sender reached it and nothing was dropped.
"""

import argparse
import ctypes
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SENDER, RECORDER = 0, 1
"""Cores."""
TOGETHER = 64
"""Frames of one system call."""


def frame(size: int) -> bytes:
    """Return a data segment to port 25 with an EHLO in it."""
    payload = (b"EHLO alpha.example\r\n" * (size // 20 + 1))[: max(0, size - 54)]
    tcp = struct.pack("!HHIIBBHHH", 40000, 25, 1, 1, 0x50, 0x18, 64240, 0, 0)
    total = 20 + len(tcp) + len(payload)
    addresses = socket.inet_aton("10.77.0.11") + socket.inet_aton("10.77.0.3")
    head = struct.pack("!BBHHHBBH", 0x45, 0, total, 0, 0x4000, 64, 6, 0)
    return b"\2" * 6 + b"\4" * 6 + b"\x08\0" + head + addresses + tcp + payload


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):  # struct mmsghdr
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vectors", ctypes.POINTER(_Vector)),
        ("count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint),
    )


def send(link: str, rate: int, seconds: float, size: int) -> tuple[int, float]:
    """Put frames on a link at a rate; return how many, and within how many seconds."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(frame(size), size)
    vector = _Vector(ctypes.addressof(buffer), size)
    messages = (_Message * TOGETHER)()
    for each in messages:
        each.vectors, each.count = ctypes.pointer(vector), 1
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((link, 0))
        began = now = time.monotonic()
        sent = 0
        while now - began < seconds:
            if sent < (now - began) * rate:
                done = libc.sendmmsg(sock.fileno(), messages, TOGETHER, 0)
                sent += max(done, 0)
            now = time.monotonic()
    return sent, now - began


def run(rate: int, seconds: float, size: int, folder: Path) -> None:
    """Measure one rate, and print a line."""
    file = folder / "capture.pcapng"
    ours, theirs = os.pipe()
    recorder = subprocess.Popen(  # noqa: S603  our own module
        [
            *(sys.executable, "-P", "-m", "vnsmail.capture.record", "--link", "in0"),
            *("--file", str(file), "--ready-fd", str(theirs)),
        ],
        pass_fds=(theirs,),
        preexec_fn=lambda: os.sched_setaffinity(0, {RECORDER}),  # noqa: PLW1509
    )
    os.close(theirs)
    with open(ours, "rb") as pipe:
        if pipe.read() != b"ready":
            sys.exit("the recorder did not start")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = _cpu(recorder.pid)
    os.sched_setaffinity(0, {SENDER})
    sent, took = send("out0", rate, seconds, size)
    os.sched_setaffinity(0, {SENDER, RECORDER})
    busy = _cpu(recorder.pid) - start
    recorder.send_signal(signal.SIGTERM)
    recorder.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    from vnsmail.capture.pcapng import PcapngReader  # noqa: PLC0415

    with file.open("rb") as opened:
        reader = PcapngReader(opened)
        written = sum(1 for _ in reader)
    sys.stdout.write(
        f"{size:5} octets: sent {sent / took:9,.0f}/s, written {written / took:9,.0f}/s, "
        f"dropped {reader.drops} of {sent}, unaccounted {sent - written - (reader.drops or 0)}; "
        f"recorder {busy / took * 100:3.0f} % of a core while it came, "
        f"{(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / max(sent, 1) * 1e6:.2f} us a packet\n"
    )
    sys.stdout.flush()
    file.unlink()


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Make the namespaces, and measure within."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", default="50000,100000,200000,1000000")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--size", default="66,1514")
    parser.add_argument("--inside", action="store_true")
    arguments = parser.parse_args()
    if not arguments.inside:
        inside = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
        command = [*inside, "--mount-proc", "--", sys.executable, *sys.argv, "--inside"]
        sys.exit(subprocess.run(command, check=False).returncode)  # noqa: S603
    for words in (
        "link add out0 type veth peer name in0",
        "link set out0 up",
        "link set in0 up",
    ):
        subprocess.run(["ip", *words.split()], check=True)  # noqa: S603, S607
    # In memory: it is the recorder that is measured, and not the disk.
    folder = Path(tempfile.mkdtemp())
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)  # noqa: S603, S607
    try:
        for size in map(int, arguments.size.split(",")):
            for rate in map(int, arguments.rates.split(",")):
                run(rate, arguments.seconds, size, folder)
    finally:
        subprocess.run(["umount", folder], check=True)  # noqa: S603, S607
        folder.rmdir()


if __name__ == "__main__":
    main()
