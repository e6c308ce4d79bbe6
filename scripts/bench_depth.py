#!/usr/bin/env python3
"""How a queue of many messages answers: count, list, search, what is due, hold, retry.

Builds a queue file of --messages in --folder with the product's own tables, opens it
as a worker does, and prints seconds and memory of each question. The first line of a
question is its first page; "all pages" goes through the queue page by page.
"""

import argparse
import asyncio
import math
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vnsmail.delivery import outcomes as say
from vnsmail.model import Envelope, Owner
from vnsmail.queue.body import Body
from vnsmail.queue.envelope import START, new_id
from vnsmail.queue.queue import Queue
from vnsmail.queue.selection import Selection
from vnsmail.queue.store import Accept, QueueStore, Settle

BODY = b"Subject: hello\r\n\r\n" + b"text of some length\r\n" * 10
BATCH = 2000
DESTINATIONS = 1000
LATER = say.deferred(451, "4.7.1", "greylisted, come back later")


def build(folder: Path, messages: int, now: float) -> None:
    """Fill a queue: 1,000 destinations, half of it to the first; a tenth deferred."""
    store = QueueStore(folder)
    for start in range(0, messages, BATCH):
        accepts = [message(n, now) for n in range(start, min(start + BATCH, messages))]
        store.commit(accepts)
        store.commit(
            [
                Settle(
                    a.envelope.id, dict.fromkeys(a.envelope.recipients, LATER), later
                )
                for a in accepts[::10]
                for later in [dict.fromkeys(a.envelope.recipients, now + 600.0)]
            ]
        )
    store.close()


def message(number: int, now: float) -> Accept:
    place = 0 if number % 2 else number // 2 % DESTINATIONS
    envelope = Envelope(
        id=new_id(now - 86400 + number / 100, number.to_bytes(6, "big")),
        owner=Owner("alpha.example"),
        sender=f"user{number % 500}@alpha.example",
        recipients=(f"r{number}@d{place}.example",),
        received_at=now - 86400 + number / 100,
    )
    return Accept(envelope, Body(BODY))


def memory() -> float:
    """Return the resident memory of this process, MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return math.nan


async def timed(what: str, question: Callable[[], Awaitable[object]]) -> None:
    begun = time.perf_counter()
    found = await question()
    took = time.perf_counter() - begun
    print(f"{what:44} {1000 * took:10.1f} ms {memory():8.0f} MiB  {found}")


async def measure(  # noqa: C901, PLR0915  one question after the other
    folder: Path, messages: int, now: float
) -> None:
    with ThreadPoolExecutor(1) as executor:
        queue: list[Queue] = []

        async def opened() -> str:
            queue.append(await Queue.open(folder, executor))
            return ""

        async def counted() -> int:
            return (await queue[0].counts()).messages

        def page(**wanted: object) -> Callable[[], Awaitable[str]]:
            async def ask() -> str:
                found, place = await queue[0].find(
                    Selection(**wanted),  # type: ignore[arg-type]
                    now=now,
                )
                return f"{len(found)} found, {'more' if place else 'all'}"

            return ask

        def every(**wanted: object) -> Callable[[], Awaitable[str]]:
            async def ask() -> str:
                found, pages, place = 0, 0, ""
                while True:
                    more, place = await queue[0].find(
                        Selection(**wanted),  # type: ignore[arg-type]
                        place,
                        now=now,
                    )
                    found, pages = found + len(more), pages + 1
                    if not place:
                        return f"{found} found on {pages} pages"

            return ask

        async def walk() -> str:
            found = await queue[0].walk(now, START, lambda _: 100, {})
            return f"{len(found.due)} due"

        async def due_in() -> str:
            found, _ = await queue[0].due_in("d0.example", now, 100, frozenset())
            return f"{len(found)} due"

        async def hold() -> str:
            await queue[0].alter(lambda t: t.hold_place("d0.example", "busy", now))
            return f"about {messages // 2} messages held"

        async def first_hold() -> str:
            found, _ = await queue[0].find(Selection(), "", 200, now=now)
            ids = [each.envelope.id for each in found]
            await queue[0].alter(lambda t: [t.hold(i, "x") for i in ids] and None)
            return f"{len(ids)} messages held one by one"

        last = message(messages - 1, now).envelope
        await timed("open", opened)
        await timed("count, the first time", counted)
        await timed("count, from then on", counted)
        await timed("list, first page of 100", page())
        await timed("list --domain (half of the queue)", page(domain="d0.example"))
        await timed("list --domain (one in 2,000)", page(domain="d7.example"))
        await timed("list --recipient", page(recipient=last.recipients[0]))
        await timed("list --sender (one in 500)", page(sender="user7@alpha.example"))
        await timed("list --sender nobody, all pages", every(sender="no@alpha.example"))
        await timed("list --status deferred", page(status="deferred"))
        await timed("list --older 12h", page(before=new_id(now - 43200, bytes(6))))
        await timed("show ID", page(ids=(last.id,)))
        await timed("due: a walk over destinations", walk)
        await timed("due: one destination", due_in)
        await timed("hold of a page of messages", first_hold)
        await timed("hold of a destination", hold)
        await timed("list --status held", page(status="held"))
        await queue[0].close()


def main() -> None:
    """Build and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, help="where the queue is made")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vnsmail-depth-", dir=options.folder))
    now = time.time()
    try:
        begun = time.perf_counter()
        build(folder / "host", options.messages, now)
        took = time.perf_counter() - begun
        size = sum(each.stat().st_size for each in (folder / "host").glob("queue.db*"))
        print(f"{options.messages} messages, {size >> 20} MiB, made in {took:.1f} s")
        asyncio.run(measure(folder / "host", options.messages, now))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"peak of this process {peak:.0f} MiB (it has built the queue too)")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
