"""Packets of a running system, recorded for ``vnsmail prove`` while it looks on.

The recorder (capture/record.py) is a process of its own: the command line never opens a
packet socket, and in a lab the recorder runs inside.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vnsmail.capture import dialogue, evidence, places
from vnsmail.capture.evidence import Evidence, Reading
from vnsmail.capture.proof import End
from vnsmail.cli.prove_ground import Ground
from vnsmail.errors import BadInput, StateUnusable, VnsmailError
from vnsmail.lab import start as lab
from vnsmail.model import ip_address

LOOK_EVERY = 0.25
"""Seconds between looks at what was captured."""

READY = b"ready"

SETTLE = 1.5
"""Seconds after the last message in which the event log and remotes have it, too."""


class CannotRecord(VnsmailError):
    """The recorder did not start, or ended; the sentence is its own."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text, exit_code)
        self.text = text
        self.exit_code = exit_code  # type: ignore[misc]  # the recorder knows the kind

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Wanted:
    """How long to record."""

    seconds: float | None
    messages: int | None
    """Until so many were taken by their servers."""
    timeout: float


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was captured."""

    evidence: Evidence
    older: frozenset[End]
    """Connections that were there before."""
    began: int
    """When recording began and ended: nanoseconds since the epoch."""
    ended: int


def record(
    ground: Ground, file: Path, wanted: Wanted, tell: Callable[[float, int], None]
) -> Recorded:
    """Record packets of all contexts into a file.

    Args:
        ground: whose packets, and where.
        file: made anew.
        wanted: how long.
        tell: told now and then how many seconds have passed, and messages were seen.

    Raises:
        CannotRecord: a privilege is missing, or a link.
        BadInput: there is nothing to record on.
    """
    plan = places.Plan(
        places.of_hosts(ground.hosts, ground.layout.instance, ground.links),
        tuple(sorted(ground.ports)),
        {str(address): name for address, name in ground.names.items()},
    )
    if not plan.places:
        raise BadInput("link", "", "no link has an address; nothing can be recorded")
    older = file.with_suffix(".older")
    with _recorder(ground, plan, file, older) as recorder:
        began = time.time_ns()
        with file.open("rb") as opened:
            reader = evidence.open_reader(file, opened)
            reading = Reading(file, reader, ground.ports)
            _watch(reading, recorder.process, wanted, tell)
            ended = time.time_ns()
            recorder.stop()
            reading.take()
            found = reading.evidence()
    return Recorded(found, _older(older), began, ended)


@dataclass(frozen=True, slots=True)
class _Recorder:
    process: "subprocess.Popen[bytes]"
    until: BinaryIO
    """It ends when this is closed, and the kernel closes it if we are killed."""

    def stop(self) -> None:
        """Have it write what it has, and end.

        Raises:
            CannotRecord: it failed.
        """
        self.until.close()
        if self.process.wait() != 0:
            raise _failure(self.process)


@contextlib.contextmanager
def _recorder(
    ground: Ground, plan: places.Plan, file: Path, older: Path
) -> Iterator[_Recorder]:
    """Run the recorder; it ends when its end of a pipe does, however we end."""
    ready, ready_theirs = os.pipe()
    until_theirs, until = os.pipe()
    command = [
        *(lab.enter_command(ground.lab, "") if ground.lab else ()),
        *(sys.executable, "-P", "-m", "vnsmail.capture.record"),
        *(
            "--places",
            "-",
            "--file",
            str(file.resolve()),
            "--older",
            str(older.resolve()),
        ),
        *("--ready-fd", str(ready_theirs), "--until-fd", str(until_theirs)),
    ]
    process = subprocess.Popen(  # noqa: S603  our own module
        command,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(ready_theirs, until_theirs),
    )
    os.close(ready_theirs)
    os.close(until_theirs)
    with os.fdopen(until, "wb") as kept, process:
        try:
            with contextlib.suppress(BrokenPipeError):
                _input(process).write(places.encode(plan))
                _input(process).close()
            with open(ready, "rb") as pipe:
                # No more than that: nsenter(1) between us keeps its end open.
                if pipe.read(len(READY)) != READY:
                    raise _failure(process)
            yield _Recorder(process, kept)
        finally:
            kept.close()


def _input(process: "subprocess.Popen[bytes]") -> BinaryIO:
    return process.stdin  # type: ignore[return-value]  # it is a pipe


def _failure(process: "subprocess.Popen[bytes]") -> CannotRecord:
    said = process.stderr.read().decode(errors="replace") if process.stderr else ""
    code = process.wait()
    words = said.strip().splitlines()[-1:] or ["the recorder ended at once"]
    return CannotRecord(words[0].removeprefix("vnsmail: "), max(code, 1))


def _watch(
    reading: Reading,
    process: "subprocess.Popen[bytes]",
    wanted: Wanted,
    tell: Callable[[float, int], None],
) -> None:
    """Look on until there is enough."""
    began = time.monotonic()
    limit = wanted.seconds if wanted.seconds is not None else wanted.timeout
    counter = _Messages()
    while True:
        passed = time.monotonic() - began
        if passed >= limit:
            return
        if process.poll() is not None:
            raise _failure(process)
        reading.take()
        seen = counter.count(reading)
        tell(passed, seen)
        if wanted.messages is not None and seen >= wanted.messages:
            time.sleep(SETTLE)
            return
        time.sleep(min(LOOK_EVERY, max(0.0, limit - passed)))


class _Messages:
    """Counts messages that servers took, and reads no connection twice for nothing."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int]] = {}

    def count(self, reading: Reading) -> int:
        for at, flow in enumerate(reading.assembler.flows):
            size = flow.packets + flow.answers
            if self._known.get(at, (0, 0))[0] != size:
                said = dialogue.read(flow.said, flow.answered)
                taken = sum(bool(each.taken) for each in said.transactions)
                self._known[at] = (size, taken + said.encrypted)
        return sum(taken for _, taken in self._known.values())


def _older(file: Path) -> frozenset[End]:
    try:
        rows = json.loads(file.read_bytes())
        file.unlink()
    except (OSError, ValueError) as error:
        raise StateUnusable(str(file), str(error), "try again") from None
    return frozenset(
        (ip_address(client), int(one), ip_address(server), int(other))
        for client, one, server, other in rows
    )
