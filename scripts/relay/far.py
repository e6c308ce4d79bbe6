"""The world outside the measured machine: a sink, a name server, sources of mail.

``python far.py sink|dns|flood|pace …``, each a process in the outer namespace. The sink
counts what it took for each destination, and looks at whose address each message came
from; it writes into a file that others map. Standard library only, and as little work a
message as Python allows, for it takes CPU from whoever is measured.

Destination N is dN.example at 10.9.254.N; its mail has to come from 10.9.1.H, where H
is ``host_of(N, hosts)``.
"""

import argparse
import asyncio
import contextlib
import mmap
import os
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

MOST = 250
"""Destinations at most; each has an address in a /24."""

MESSAGES, SESSIONS, WRONG, FIRST, LAST, PROBES = range(6)
PLACES = 8
"""Where the counts of the destinations begin, and behind them the latencies."""

MOST_PROBES = 20_000
WORDS = PLACES + MOST + MOST_PROBES
MARK = b"X-Sent: "

GREETING = b"220 mx.example ESMTP\r\n"
EXTENSIONS = (
    b"250-mx.example\r\n250-PIPELINING\r\n250-SIZE 52428800\r\n250-8BITMIME\r\n"
    b"250-ENHANCEDSTATUSCODES\r\n250-DSN\r\n250-SMTPUTF8\r\n250 CHUNKING\r\n"
)
ONLY_ONE = b"421 4.7.0 one message a session\r\n"


def host_of(destination: int, hosts: int) -> int:
    """Return the number of the host whose mail goes to a destination."""
    return (destination - 1) % hosts + 1


def shared(path: Path) -> "memoryview[int]":
    """Return the counters in a file, made if it is new."""
    with path.open("a+b") as file:
        file.truncate(WORDS * 8)
        return memoryview(mmap.mmap(file.fileno(), WORDS * 8)).cast("Q")


class Sink:
    """Takes all mail at port 25."""

    def __init__(self, counts: "memoryview[int]", hosts: int) -> None:
        self._counts = counts
        self._expected = [
            f"10.9.1.{host_of(n, hosts)}" if n else "" for n in range(MOST)
        ]
        self._states: dict[int, list[object]] = {}
        self._poll = select.epoll()
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._listener.bind(("", 25))
        self._listener.listen(4096)
        self._listener.setblocking(False)

    def run(self) -> None:
        """Take mail until the end of the process."""
        own = self._listener.fileno()
        self._poll.register(own, select.EPOLLIN)
        while True:
            for fd, _ in self._poll.poll():
                if fd == own:
                    self._accept()
                else:
                    try:
                        self._read(fd)
                    except OSError:
                        self._close(fd)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(16):
                fd, peer = self._listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001  no object is wanted
                self._counts[SESSIONS] += 1
                self._states[fd] = [b"", None, 0, peer[0]]
                self._poll.register(fd, select.EPOLLIN)
                os.write(fd, GREETING)

    def _close(self, fd: int) -> None:
        if self._states.pop(fd, None) is not None:
            os.close(fd)

    def _read(self, fd: int) -> None:  # noqa: C901, PLR0912, PLR0915  calls cost
        data = os.read(fd, 262144)
        if not data:
            self._close(fd)
            return
        state = self._states[fd]
        rest: bytes = state[0] + data if state[0] else data  # type: ignore[operator,assignment]
        out = []
        left = state[1]
        while rest:
            if left is None:
                line, newline, behind = rest.partition(b"\n")
                if not newline:
                    break
                rest = behind
                verb = line[:4].upper()
                if verb == b"RCPT":
                    at = line.index(b"@d")
                    state[2] = int(line[at + 2 : line.index(b".", at)])
                    out.append(b"250 2.1.5 ok\r\n")
                elif verb in {b"MAIL", b"RSET"}:
                    out.append(b"250 2.1.0 ok\r\n")
                elif verb == b"BDAT":
                    words = line.split()
                    left = (int(words[1]), len(words) > 2)
                elif verb == b"DATA":
                    left = (-1, True)
                    out.append(b"354 go on\r\n")
                elif verb in {b"EHLO", b"HELO"}:
                    out.append(EXTENSIONS if verb == b"EHLO" else b"250 mx.example\r\n")
                elif verb == b"QUIT":
                    os.write(fd, b"".join([*out, b"221 2.0.0 bye\r\n"]))
                    self._close(fd)
                    return
                else:
                    out.append(b"502 5.5.2 what?\r\n")
                continue
            size, last = left  # type: ignore[misc]
            if size < 0:
                end = rest.find(b"\r\n.\r\n")
                if end < 0:
                    break
                size, behind = end, rest[end + 5 :]
            elif len(rest) < size:
                break
            else:
                behind = rest[size:]
            if last:
                self._took(rest, size, state)
            out.append(b"250 2.0.0 taken\r\n")
            rest, left = behind, None
        state[0], state[1] = rest, left
        if out:
            os.write(fd, b"".join(out))

    def _took(self, data: bytes, size: int, state: list[object]) -> None:
        counts = self._counts
        now = time.monotonic_ns()
        counts[MESSAGES] += 1
        if not counts[FIRST]:
            counts[FIRST] = now
        counts[LAST] = now
        place: int = state[2]  # type: ignore[assignment]
        counts[PLACES + place] += 1
        if self._expected[place] != state[3]:
            counts[WRONG] += 1
        found = data.find(MARK, 0, min(size, 3000))
        if found >= 0:
            sent = int(data[found + len(MARK) : data.index(b"\r", found)])
            number = counts[PROBES]
            counts[PLACES + MOST + number % MOST_PROBES] = now - sent
            counts[PROBES] = number + 1


# DNS ------------------------------------------------------------------------------------

_MX, _A = 15, 1


def _answer(question: bytes) -> bytes:
    """Return an answer but for its first two octets (RFC 1035 section 4.1)."""
    at, labels = 12, []
    while question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]].lower())
        at += question[at] + 1
    (kind,) = struct.unpack_from("!H", question, at + 1)
    asked = question[12 : at + 5]
    records = b""
    known = labels[-1:] == [b"example"] and len(labels) <= 3
    name = labels[-2].decode() if len(labels) > 1 else ""
    numbered = name[1:].isdecimal() and name[0] in "dh"
    if known and numbered and len(labels) == 2 and kind == _MX:
        exchange = b"\x02mx\xc0\x0c"
        records = struct.pack("!HHHIHH", 0xC00C, _MX, 1, 3600, 2 + len(exchange), 10)
        records += exchange
    elif known and numbered and kind == _A and labels[0] in {b"mx", labels[-2]}:
        net = 254 if name[0] == "d" else 1
        address = bytes((10, 9, net, int(name[1:])))
        records = struct.pack("!HHHIH", 0xC00C, _A, 1, 3600, 4) + address
    exists = known and (numbered or len(labels) == 2) and labels[0] != b"_mta-sts"
    soa = b""
    if not records:
        text = b"\x00\x00" + struct.pack("!5I", 1, 3600, 3600, 3600, 3600)
        soa = b"\x00" + struct.pack("!HHIH", 6, 1, 3600, len(text)) + text
    flags = 0x8580 | (0 if exists else 3)
    counts = (1, 1 if records else 0, 1 if soa else 0, 0)
    return struct.pack("!5H", flags, *counts) + asked + records + soa


def name_server(address: str) -> None:
    """Answer questions over UDP."""
    known: dict[bytes, bytes] = {}
    sock = socket.socket(type=socket.SOCK_DGRAM)
    sock.bind((address, 53))
    while True:
        question, peer = sock.recvfrom(4096)
        key = question[12:]
        answer = known.get(key)
        if answer is None:
            answer = known[key] = _answer(question)
        sock.sendto(question[:2] + answer, peer)


# Sources --------------------------------------------------------------------------------


def flood(options: argparse.Namespace) -> int:
    """Send with one smtp-source for each destination; return what failed."""
    running = []
    for n in range(1, options.destinations + 1):
        host = host_of(n, options.hosts)
        command = [options.source, "-s", str(options.sessions), "-l", str(options.size)]
        command += ["-m", str(options.messages), *(["-d"] if options.many else [])]
        command += ["-f", options.sender.format(host=host), "-M", "source.example"]
        command += ["-t", options.recipient.format(host=host, n=n)]
        running.append(
            subprocess.Popen([*command, f"10.9.1.{host}:25"])  # noqa: S603
        )
    return sum(process.wait() != 0 for process in running)


async def pace(options: argparse.Namespace) -> None:
    """Send so many messages a second, one a session, each with the time it set out."""
    total = int(options.rate * options.seconds)
    began = time.monotonic()
    tasks = []
    for number in range(total):
        wait = began + number / options.rate - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        n = number % options.destinations + 1
        tasks.append(asyncio.ensure_future(_probe(options, n)))
    await asyncio.gather(*tasks)


async def _probe(options: argparse.Namespace, n: int) -> None:
    host = host_of(n, options.hosts)
    sent = time.monotonic_ns()
    reader, writer = await asyncio.open_connection(  # noqa: TID251  a client
        f"10.9.1.{host}", 25
    )
    body = MARK + b"%d\r\nSubject: probe\r\n\r\n" % sent
    body += b"a line of text, as there are many in mail\r\n" * (options.size // 43)
    for command in (
        b"",
        b"EHLO source.example\r\n",
        f"MAIL FROM:<{options.sender.format(host=host)}>\r\n".encode(),
        f"RCPT TO:<{options.recipient.format(host=host, n=n)}>\r\n".encode(),
        b"DATA\r\n",
        body + b".\r\n",
        b"QUIT\r\n",
    ):
        if command:
            writer.write(command)
        while (line := await reader.readline())[3:4] == b"-":
            pass
        if line[:1] not in {b"2", b"3"}:
            sys.exit(f"refused: {command[:60]!r}: {line!r}")
    writer.close()


def main() -> None:
    """Be one of these."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("sink", "dns", "flood", "pace"))
    parser.add_argument("--counts", type=Path)
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--destinations", type=int, default=1)
    parser.add_argument("--address", default="")
    parser.add_argument("--source", default="")
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--messages", type=int, default=1)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--sender", default="")
    parser.add_argument("--recipient", default="")
    parser.add_argument("--many", action="store_true")
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    if options.what == "sink":
        Sink(shared(options.counts), options.hosts).run()
    elif options.what == "dns":
        name_server(options.address)
    elif options.what == "flood":
        sys.exit(flood(options))
    else:
        asyncio.run(pace(options))


if __name__ == "__main__":
    main()
