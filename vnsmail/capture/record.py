"""Records SMTP packets of links into a pcapng file. PRIVILEGED: needs CAP_NET_RAW.

``python -m vnsmail.capture.record --file FILE (--link NAME | --places FILE)
[--port 25 …] [--older FILE] [--ready-fd N] [--until-fd N]`` records until SIGTERM or
SIGINT, or until the other end of a pipe is closed: on one link of the network namespace
that it runs in, or on those of a plan (places.py; ``-`` is standard input), wherever they
are. Each place is an interface of the file. ``--older`` gets the connections that were
there before.

A packet socket is bound to one link, so a bridge and its ports are not both heard; of a
loopback link, which shows every packet on its way out and on its way in, only the way in
is taken. Links are made promiscuous: a bridge then shows what it forwards between its
ports, each frame once.

Rules of this file: nothing of a packet is understood here; the kernel's filter chooses.
The file grows by whole blocks. How many packets the kernel had to drop is written once a
second and at the end, so that whoever reads the file, at whatever moment, knows.
"""

import argparse
import contextlib
import ipaddress
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from vnsmail import __version__
from vnsmail.capture import bpf, established, pcapng, places
from vnsmail.capture.flows import SMTP_PORTS
from vnsmail.capture.packets import ETHERNET
from vnsmail.capture.places import Place
from vnsmail.capture.ring import RETIRE, Tap, open_tap, share
from vnsmail.errors import BadInput, StateUnusable, VnsmailError

BUFFER = 64 * 1024 * 1024
"""Octets that the kernel keeps for us while we are busy, in all rings together: half a
second of a full gigabit a second."""

STATISTICS_EVERY = 1.0

LAST_WORDS = 2.0
"""Seconds that the kernel has at the end to hand over what it counted."""


class LinkGone(VnsmailError):
    """The link was removed while it was recorded."""

    def __init__(self, link: str) -> None:
        super().__init__(link)
        self.link = link

    def __str__(self) -> str:
        return f"cannot go on recording: the link {self.link} is gone"


class Recorder:
    """Takes packets off links and writes them into a file.

    Args:
        taps: the links, each with what it is called in the file.
        file: made anew.
        names: of addresses, for whoever looks at the file.

    Raises:
        BadInput: the file cannot be written.
    """

    def __init__(
        self,
        taps: Sequence[tuple[Place, Tap]],
        file: Path,
        names: dict[str, str] | None = None,
    ) -> None:
        self.taps = tuple(tap for _, tap in taps)
        self._numbers = {tap: number for number, tap in enumerate(self.taps)}
        self._blocks: list[bytes | memoryview] = []
        self._path = file
        self._size = 0
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._file = os.open(file, flags, 0o644)
        except OSError as error:
            problem = (error.strerror or str(error)).lower()
            raise BadInput("file", str(file), f"cannot write it: {problem}") from None
        self._blocks.append(pcapng.section_header(f"vnsmail {__version__}"))
        for place, _ in taps:
            self._blocks.append(
                pcapng.interface_description(
                    place.shown, ETHERNET, bpf.KEEP_ALL, place.description
                )
            )
        if names:
            known = {ipaddress.ip_address(a): name for a, name in names.items()}
            self._blocks.append(pcapng.name_resolution(known))
        self.count_drops()
        self.flush()

    def take(self, tap: Tap) -> None:
        """Write what has come on a link.

        Raises:
            StateUnusable: the file cannot be written.
        """
        number, packet, before = self._numbers[tap], pcapng.packet_parts, tap.taken
        for block in tap.blocks():
            parts = self._blocks
            for time_, length, outgoing, data in block:
                parts += packet(number, time_, length, data, 2 if outgoing else 1)
            # They lie in the ring, whose block goes back when the next is asked for.
            self.flush()
        if tap.taken == before:
            tap.is_gone()  # which hears what the kernel has to say, so that it is said

    def check_links(self, *, all_needed: bool) -> None:
        """See whether links are there still.

        Raises:
            LinkGone: the last of them is no more, or any, if all are needed.
        """
        gone = [tap.link for tap in self.taps if tap.is_gone()]
        if gone and (all_needed or len(gone) == len(self.taps)):
            raise LinkGone(gone[0])

    def count_drops(self) -> None:
        """Note how many packets the kernel had for us, and how many it dropped."""
        now = time.time_ns()
        for number, tap in enumerate(self.taps):
            counts = tap.count()
            self._blocks.append(
                pcapng.interface_statistics(
                    now, counts.received, counts.dropped, number
                )
            )

    def flush(self) -> None:
        """Write whole blocks.

        Raises:
            StateUnusable: the disk is full or broken; the file ends with a whole block.
        """
        data = b"".join(self._blocks)
        self._blocks.clear()
        done = 0
        try:
            while done < len(data):
                done += os.write(self._file, memoryview(data)[done:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size + pcapng.whole_blocks(data[:done]))
            problem = (error.strerror or str(error)).lower()
            raise StateUnusable(str(self._path), problem, "make room") from None
        self._size += done

    def finish(self) -> None:
        """Write what came until now, and how many packets were dropped."""
        for tap in self.taps:
            tap.mute()
        deadline = time.monotonic() + LAST_WORDS
        while True:
            self.count_drops()
            for tap in self.taps:
                self.take(tap)
            waiting = [tap for tap in self.taps if tap.waiting > 0]
            if not waiting or time.monotonic() > deadline:
                break
            with selectors.DefaultSelector() as selector:
                for tap in waiting:
                    selector.register(tap, selectors.EVENT_READ)
                selector.select(RETIRE)
        self.flush()

    def close(self) -> None:
        """Close the file and the rings."""
        os.close(self._file)
        for tap in self.taps:
            tap.close()


def record(
    recorder: Recorder,
    stop: socket.socket,
    *,
    until: int | None = None,
    all_needed: bool = True,
) -> None:
    """Record until something can be read from ``stop``, or ``until`` is closed."""
    with selectors.DefaultSelector() as selector:
        for tap in recorder.taps:
            selector.register(tap, selectors.EVENT_READ, tap)
        selector.register(stop, selectors.EVENT_READ)
        if until is not None:
            selector.register(until, selectors.EVENT_READ)
        due = time.monotonic() + STATISTICS_EVERY
        while True:
            # A link that goes says so once, as an event without packets.
            for key, _ in selector.select(max(0.0, due - time.monotonic())):
                if key.data is None:
                    return recorder.finish()
                recorder.take(key.data)
            if time.monotonic() >= due:
                due = time.monotonic() + STATISTICS_EVERY
                recorder.check_links(all_needed=all_needed)
                recorder.count_drops()
                recorder.flush()


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
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--link")
    where.add_argument("--places")
    parser.add_argument("--file", required=True, type=Path)
    parser.add_argument("--port", action="append", type=int)
    parser.add_argument("--buffer", type=int, default=BUFFER)
    parser.add_argument("--older", type=Path)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--until-fd", type=int)
    return parser.parse_args(words)


def _plan(arguments: argparse.Namespace) -> places.Plan:
    if arguments.link:
        ports = tuple(arguments.port or SMTP_PORTS)
        return places.Plan((Place(arguments.link),), ports)
    if arguments.places == "-":
        return places.decode(sys.stdin.buffer.read())
    return places.decode(Path(arguments.places).read_bytes())


def _open(plan: places.Plan, buffer: int) -> list[tuple[Place, Tap]]:
    """Open all places, or none."""
    size = share(buffer, len(plan.places))
    taps: list[tuple[Place, Tap]] = []
    try:
        for each in plan.places:
            tap = open_tap(each.link, plan.ports, size=size, namespace=each.namespace)
            taps.append((each, tap))
    except BaseException:
        for _, tap in taps:
            tap.close()
        raise
    return taps


def main(words: Sequence[str] | None = None) -> int:
    """Record until SIGTERM; return the exit code."""
    arguments = _arguments(words)
    stop = _until_signal()
    try:
        plan = _plan(arguments)
        recorder = Recorder(_open(plan, arguments.buffer), arguments.file, plan.names)
        with contextlib.closing(recorder):
            if arguments.older is not None:
                # Now that packets are heard: what begins meanwhile is seen to begin.
                spaces = {each.namespace for each in plan.places} | {""}
                rows = established.connections(spaces, plan.ports)
                arguments.older.write_text(json.dumps(rows))
            if arguments.ready_fd is not None:
                os.write(arguments.ready_fd, b"ready")
                os.close(arguments.ready_fd)
            one = len(plan.places) == 1
            record(recorder, stop, until=arguments.until_fd, all_needed=one)
    except VnsmailError as error:
        sys.stderr.write(f"vnsmail: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
