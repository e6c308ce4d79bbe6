#!/usr/bin/env python3
"""How many messages a second one worker makes durable: a queue file a host, or one.

Runs the product's own queue, group commit and all, on the file system of --folder, and
prints one line a case. Nothing is sent anywhere. For docs/decisions/0002.
"""

import argparse
import asyncio
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from vnsmail.model import Envelope, Outcome, Owner, Verdict
from vnsmail.queue.body import Body
from vnsmail.queue.envelope import ENTROPY_BYTES, new_id
from vnsmail.queue.queue import Queue

DELIVERED = Outcome(Verdict.DELIVERED, 250, "2.0.0", "ok")
RECIPIENT = "bob@remote.example"


@dataclass
class Case:
    """One measurement: how it is set up, and what came of it."""

    hosts: int
    shared_file: bool
    callers: int
    size: int
    seconds: float
    threads: int
    settle: bool
    waits: list[float] = field(default_factory=list)
    elapsed: float = 0.0
    cpu: float = 0.0
    opening: float = 0.0

    def line(self) -> str:
        """Return what came of it: rate, waits in milliseconds, CPU a message."""
        done, waits = len(self.waits), sorted(self.waits)
        return (
            f"{self.hosts:5} {'one file' if self.shared_file else 'file a host':12}"
            f"{self.callers:8}{'accept+settle' if self.settle else 'accept':>14}"
            f"{done / self.elapsed:9.0f}{waits[done // 2] * 1000:9.1f}"
            f"{waits[done * 99 // 100] * 1000:9.1f}{self.cpu / done * 1e6:9.0f}"
            f"{self.opening * 1000:9.1f}"
        )


HEADING = (
    f"{'hosts':>5} {'layout':12}{'callers':>8}{'work':>14}{'msg/s':>9}{'p50 ms':>9}"
    f"{'p99 ms':>9}{'cpu µs':>9}{'open ms':>9}"
)


async def measure(case: Case, folder: Path) -> None:
    """Queue messages from many callers at once until the time is over."""
    with ThreadPoolExecutor(case.threads) as executor:
        count = 1 if case.shared_file else case.hosts
        start = time.perf_counter()
        queues = [await Queue.open(folder / str(i), executor) for i in range(count)]
        case.opening = (time.perf_counter() - start) / count
        body = Body(os.urandom(case.size))
        start, used = time.perf_counter(), _cpu()
        await asyncio.gather(
            *(
                _call(case, queues[i % count], f"host{i % case.hosts}.example", body)
                for i in range(case.callers)
            )
        )
        case.elapsed = time.perf_counter() - start
        case.cpu = _cpu() - used
        await asyncio.gather(*(queue.close() for queue in queues))


async def _call(case: Case, queue: Queue, owner: str, body: Body) -> None:
    deadline = time.perf_counter() + case.seconds
    while (start := time.perf_counter()) < deadline:
        now = time.time()
        envelope = Envelope(
            id=new_id(now, os.urandom(ENTROPY_BYTES)),
            owner=Owner(owner),
            sender=f"ann@{owner}",
            recipients=(RECIPIENT,),
            received_at=now,
        )
        await queue.accept(envelope, body)
        case.waits.append(time.perf_counter() - start)
        if case.settle:
            await queue.settle(envelope.id, {RECIPIENT: DELIVERED}, {})


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Return every combination asked for, the two layouts side by side."""
    for settle in (False, True):
        for hosts in options.hosts:
            for callers in options.callers:
                for shared_file in (False, True) if hosts > 1 else (False,):
                    yield Case(
                        hosts,
                        shared_file,
                        max(callers, hosts),
                        options.size,
                        options.seconds,
                        options.threads,
                        settle,
                    )


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=_numbers, default=[1, 20, 50])
    parser.add_argument("--callers", type=_numbers, default=[50, 500])
    parser.add_argument("--size", type=int, default=4096, help="bytes of a body")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each case")
    parser.add_argument("--threads", type=int, default=4, help="that commit")
    parser.add_argument("--folder", type=Path, default=Path())
    options = parser.parse_args()
    print(HEADING)
    for case in cases(options):
        folder = Path(tempfile.mkdtemp(prefix="bench-queue-", dir=options.folder))
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(measure(case, folder))
        finally:
            shutil.rmtree(folder)
        print(case.line(), flush=True)


if __name__ == "__main__":
    main()
