#!/usr/bin/env python3
"""What a neighbour's backlog costs: the way of one host's mail, with and without it.

Two hosts are delivered for in one event loop, as in a worker, each from a queue of its
own on disk. One sends --rate messages a second to a remote that answers at once; each is
timed from the moment its queue has it to the remote's reply. First alone; then while
the other host has --backlog messages queued, half for a tarpit that never answers and
half for --slow destinations that take their time. All of it is on loopback addresses.
"""

import argparse
import asyncio
import os
import shutil
import socket
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvloop

from vnsmail.broker.client import SourceSocket
from vnsmail.delivery.agent import AgentFacts, DeliveryAgent
from vnsmail.delivery.shares import Shares
from vnsmail.events.record import Event
from vnsmail.events.record import line as line_of
from vnsmail.model import Envelope, Family, IPAddress, Outcome, Owner, ip_address
from vnsmail.queue.body import Body
from vnsmail.queue.envelope import ENTROPY_BYTES, new_id
from vnsmail.queue.queue import Queue
from vnsmail.queue.store import Accept, QueueStore
from vnsmail.resolve.resolver import MailExchanger
from vnsmail.settings import DeliverySettings, Settings, SmtpSettings

QUICK, TARPIT, SLOW = "127.0.0.2", "127.0.0.3", "127.0.0.4"
PAUSE = 0.5
"""Seconds that a slow remote takes for each reply."""
BODY = b"Subject: x\r\n\r\n" + b"a line of text, as there are many in mail\r\n" * 95
BATCH = 5000


class Sockets:
    """Bound sockets, without the broker between."""

    def __init__(self, source: str) -> None:
        self._source = source

    async def connectable(self, owner: str, _: Family) -> SourceSocket:
        sock = socket.socket()
        sock.setblocking(False)
        sock.bind((self._source, 0))
        return SourceSocket(sock, owner, self._source)


class Names:
    """Where mail goes: the first label of a domain says to whom."""

    async def mx(self, domain: str) -> tuple[MailExchanger, ...]:
        return (MailExchanger(10, f"mx.{domain}"),)

    async def addresses(self, name: str, family: Family) -> tuple[IPAddress, ...]:
        if family is Family.IPV6:
            return ()
        kind = name.split(".")[1]
        where = {"quick": QUICK, "tarpit": TARPIT}.get(kind, SLOW)
        return (ip_address(where),)


async def remote(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take mail: at once, slowly or never, by the address that was asked."""
    address = writer.get_extra_info("sockname")[0]
    body = False
    try:
        if address == TARPIT:
            await reader.read()
            return
        writer.write(b"220 remote.example\r\n")
        while line := await reader.readline():
            if body and line != b".\r\n":
                continue
            if address == SLOW:
                await asyncio.sleep(PAUSE)
            verb, body = line[:4].upper(), line[:4].upper() == b"DATA"
            writer.write(b"354 go on\r\n" if body else b"250 2.0.0 ok\r\n")
            if verb == b"QUIT":
                return
    except (ConnectionError, asyncio.CancelledError):  # the end is the end
        pass
    finally:
        writer.close()


def message(host: str, domain: str) -> Envelope:
    now = time.time()
    return Envelope(
        id=new_id(now, os.urandom(ENTROPY_BYTES)),
        owner=Owner(host),
        sender=f"ann@{host}",
        recipients=(f"bob@{domain}",),
        received_at=now,
    )


def fill(folder: Path, messages: int, slow: int) -> None:
    """Make the neighbour's backlog."""
    store = QueueStore(folder)
    for start in range(0, messages, BATCH):
        store.commit(
            [
                Accept(
                    message(
                        "busy.example",
                        f"slow{n // 2 % slow}.example" if n % 2 else "tarpit.example",
                    ),
                    Body(b"Subject: x\r\n\r\n"),
                )
                for n in range(start, min(start + BATCH, messages))
            ]
        )
    store.close()


class Host:
    """One host: its queue and what delivers from it."""

    def __init__(
        self, name: str, queue: Queue, source: str, settings: Settings, shares: Shares
    ) -> None:
        self.name = name
        self.queue = queue
        self.done: asyncio.Queue[float] = asyncio.Queue()
        self.agent = DeliveryAgent(
            facts=AgentFacts(
                owner=Owner(name),
                name=name,
                addresses=frozenset({ip_address(source)}),
                domains=frozenset({name}),
            ),
            queue=queue,
            sockets=Sockets(source),
            resolver=Names(),
            local_delivery=_nobody,
            settings=settings,
            shares=shares,
            count=self._count,
            tell=_unread,
        )
        self.running = asyncio.ensure_future(self.agent.run())

    def _count(self, outcome: Outcome, _: int) -> None:
        if outcome.reply_code == 250:
            self.done.put_nowait(time.perf_counter())

    async def close(self) -> None:
        await self.agent.drain(0)
        await self.running
        await self.queue.close()


def _unread(event: Event) -> None:
    """Be the event log, but for the disk."""
    line_of(event)


async def _nobody(*_: object) -> Outcome:
    raise AssertionError


async def paced(host: Host, rate: float, seconds: float) -> list[float]:
    """Return the milliseconds that messages took, in order."""
    found = []
    began = time.perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(began + number / rate - time.perf_counter(), 0))
        envelope, body = message(host.name, "quick.example"), Body(BODY)
        sent = time.perf_counter()
        await host.queue.accept(envelope, body)
        host.agent.hand_over(envelope, body)
        async with asyncio.timeout(60):
            found.append(1000 * (await host.done.get() - sent))
    return sorted(found)


def line(what: str, found: list[float]) -> str:
    return (
        f"{what:40}{len(found):9,}{found[len(found) // 2]:10.2f}"
        f"{found[len(found) * 99 // 100]:10.2f}{found[-1]:10.2f}"
    )


async def measure(options: argparse.Namespace, folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind((QUICK, 0))
        port = probe.getsockname()[1]
    servers = [
        await asyncio.start_server(remote, address, port, backlog=4096)
        for address in (QUICK, TARPIT, SLOW)
    ]
    settings = Settings(
        smtp=SmtpSettings(port=port, submission_port=0, submissions_port=0),
        delivery=DeliverySettings(loopback=True),
    )
    shares = Shares()
    with ThreadPoolExecutor(4) as executor:
        print(f"{'':40}{'messages':>9}{'p50 ms':>10}{'p99 ms':>10}{'most ms':>10}")
        quiet = Host(
            *("quiet.example", await Queue.open(folder / "quiet", executor)),
            *("127.0.0.9", settings, shares),
        )
        await paced(quiet, options.rate, 1)
        found = await paced(quiet, options.rate, options.seconds)
        print(line("alone", found), flush=True)
        busy = Host(
            *("busy.example", await Queue.open(folder / "busy", executor)),
            *("127.0.0.10", settings, shares),
        )
        await asyncio.sleep(2)
        found = await paced(quiet, options.rate, options.seconds)
        left = (await busy.queue.counts()).messages
        print(line(f"beside a backlog of {left:,}", found))
        print(
            f"of the backlog {busy.agent.in_flight} are in memory, "
            f"{busy.done.qsize()} were delivered meanwhile"
        )
        await asyncio.gather(quiet.close(), busy.close())
    for server in servers:
        server.close()


def main() -> None:
    """Build the backlog and measure."""
    parser = argparse.ArgumentParser(prog="scripts/bench fair", description=__doc__)
    parser.add_argument("--backlog", type=int, default=100_000)
    parser.add_argument("--slow", type=int, default=100, help="slow destinations")
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--folder", type=Path, help="where the queues are made")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vnsmail-fair-", dir=options.folder))
    try:
        began = time.monotonic()
        fill(folder / "busy", options.backlog, options.slow)
        took = time.monotonic() - began
        print(f"{options.backlog:,} messages queued in {took:.1f} s", file=sys.stderr)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(measure(options, folder))
        print("load of the machine:", *(f"{x:.1f}" for x in os.getloadavg()))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
