"""The audit: a process that looks at how connections begin, told who may send whence.

    off ──[audit] enabled, `vnsmail audit start`──► watching ──first wrong one──► event,
    problem in status, metrics; it goes on watching. `vnsmail audit stop` forgets both.

Rules of this file: the supervisor opens the packet sockets, for it knows the links and
has the capability; the process that looks at what strangers send has none. What was
found stays a problem until somebody ends the audit: it was seen once, and once is wrong.
Before an address is called nobody's, the machine's own are looked up anew.
"""

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Sequence

from vnsmail import packets
from vnsmail.capture import audit_protocol as protocol
from vnsmail.capture import bpf, senders
from vnsmail.capture.flows import SMTP_PORTS
from vnsmail.capture.proof import Sender
from vnsmail.capture.ring import Tap, open_tap
from vnsmail.directory import Directory
from vnsmail.errors import BadInput, VnsmailError
from vnsmail.events import record
from vnsmail.log import logger
from vnsmail.model import MACHINE, IPAddress
from vnsmail.net.observe import observe
from vnsmail.settings import Settings
from vnsmail.supervisor import control
from vnsmail.supervisor.peer import Peer
from vnsmail.supervisor.privileges import describe
from vnsmail.supervisor.process import Child, State

LOOK_EVERY = 1.0
"""Seconds between looks at what was found."""

REFRESH_EVERY = 60.0
"""Seconds after which the machine's addresses and links are looked up again."""

RING = 2 * 1024 * 1024
"""Octets of the ring of a link: some 10,000 beginnings of connections."""

MAX_LINKS = 16

KEPT = 50
"""Findings kept for who asks."""

AT_ONCE = 10.0

AuditPeer = Peer[protocol.Answer]

log = logger("audit")


class Auditing:
    """The audit of one root.

    Args:
        directory: its hosts.
        instance: what tells it from others.
        settings: vnsmail.toml.
        options: the launcher's, for the process.
        event_pipe: makes a pipe into the event log; None: there is no log.
    """

    def __init__(
        self,
        directory: Directory,
        instance: str,
        settings: Settings,
        options: Sequence[str],
        event_pipe: Callable[[], int] | None,
    ) -> None:
        self._directory = directory
        self._instance = instance
        self._settings = settings
        self._options = tuple(options)
        self._event_pipe = event_pipe
        self._peer: AuditPeer | None = None
        self._child: Child[protocol.Answer] | None = None
        self._wanted = asyncio.Event()
        if settings.audit.enabled:
            self._wanted.set()
        self._found: deque[protocol.Found] = deque(maxlen=KEPT)
        self._report: protocol.Reported | None = None
        self._links: tuple[str, ...] = ()
        self._senders: tuple[Sender, ...] = ()
        self._own: frozenset[IPAddress] = frozenset()
        self._looked_at = 0.0
        self._since = 0.0
        self._problem = ""

    # Running -----------------------------------------------------------------

    async def run(self) -> None:
        """Keep the process running while it is wanted, until cancelled."""
        while True:
            await self._wanted.wait()
            self._since = time.time()
            child = self._child = self._new_child()
            running = asyncio.ensure_future(child.run())
            try:
                while self._wanted.is_set():
                    await asyncio.sleep(LOOK_EVERY)
                    await self._look()
            finally:
                child.stop()
                with contextlib.suppress(asyncio.CancelledError):
                    await running
                self._child = self._peer = self._report = None

    def _new_child(self) -> Child[protocol.Answer]:
        return Child[protocol.Answer](
            "audit",
            "vnsmail.capture.watcher",
            self._options,
            peer=lambda c: Peer(c, protocol.encode, protocol.decode_answer),
            on_start=self._started,
            on_exit=self._ended,
        )

    async def _started(self, peer: AuditPeer) -> None:
        self._links = ()
        await self._refresh(peer)
        self._peer = peer

    def _ended(self) -> None:
        self._peer = None

    async def _look(self) -> None:
        peer = self._peer
        if peer is None:
            return
        try:
            if time.monotonic() - self._looked_at > REFRESH_EVERY or self._changed():
                await self._refresh(peer)
            answer = await peer.ask(protocol.Report, seconds=AT_ONCE)
            if isinstance(answer, protocol.Reported):
                self._report = answer
                await self._judge(peer, answer)
        except VnsmailError as error:
            self._problem = str(error)

    async def _judge(self, peer: AuditPeer, report: protocol.Reported) -> None:
        found = report.found
        if found:
            # The machine may have got that address meanwhile.
            await self._refresh(peer)
            own = {str(address) for address in self._own}
            found = tuple(f for f in found if f.host or f.source not in own)
        for each in found:
            if not self._found:
                log.error("audit.wrong", source=each.source, reason=each.reason)
            self._found.append(each)
        self._tell(found)
        if report.gone:
            self._links = ()
            await self._refresh(peer)

    # What is known --------------------------------------------------------------

    def _changed(self) -> bool:
        return self._of_hosts() != tuple(
            s for s in self._senders if s.context != MACHINE
        )

    def _of_hosts(self) -> tuple[Sender, ...]:
        return tuple(map(senders.of_host, self._directory.hosts()))

    async def _refresh(self, peer: AuditPeer) -> None:
        """Tell the process who may send from where, and what links there are."""
        self._looked_at = time.monotonic()
        hosts = tuple(self._directory.hosts())
        links = (await asyncio.to_thread(observe, self._instance)).links
        named = [link for link in links if link.addresses and not link.loopback]
        self._own = frozenset(a.address for link in named for a in link.addresses)
        own = senders.of_machine(self._settings.machine.name, self._own, hosts)
        self._senders = (own, *map(senders.of_host, hosts))
        facts = tuple(map(_facts, self._senders))
        await peer.ask(lambda n: protocol.Know(n, facts), seconds=AT_ONCE)
        there = {link.name for link in links}
        wanted = dict.fromkeys(
            [*(link.name for link in named if link.up), *(h.link for h in hosts)]
        )
        chosen = tuple(name for name in wanted if name in there)
        if chosen != self._links:
            await self._watch(peer, chosen)

    async def _watch(self, peer: AuditPeer, links: tuple[str, ...]) -> None:
        ports = tuple(sorted({*SMTP_PORTS, self._settings.smtp.port}))
        self._problem = ""
        if len(links) > MAX_LINKS:
            self._problem = f"only {MAX_LINKS} of {len(links)} links are watched"
        taps: dict[str, Tap] = {}
        try:
            for link in links[:MAX_LINKS]:
                try:
                    taps[link] = await asyncio.to_thread(_open, link, ports)
                except BadInput as error:
                    self._problem = str(error)
            ignore = tuple(map(str, self._settings.audit.ignore))
            await peer.ask(
                lambda n: protocol.Watch(n, tuple(taps), RING, ports, ignore),
                [tap.fileno() for tap in taps.values()],
                seconds=AT_ONCE,
            )
        finally:
            for tap in taps.values():
                tap.close()
        self._links = links

    # What is told -----------------------------------------------------------------

    def _tell(self, found: Sequence[protocol.Found]) -> None:
        if not found or self._event_pipe is None:
            return
        lines = b"".join(map(_line, found))
        fd = self._event_pipe()
        try:
            with contextlib.suppress(BlockingIOError):
                os.write(fd, lines[: packets.MAX_MESSAGE])
        finally:
            os.close(fd)

    def handle(self, request: control.WatchMail) -> control.Watched:
        """Start or end the audit, or neither; return how it is."""
        if request.on is not None:
            if request.on:
                self._wanted.set()
            else:
                self._wanted.clear()
                self._found.clear()
        return self.state()

    def state(self) -> control.Watched:
        """Return how it is."""
        child, report = self._child, self._report
        state = child.state.value if child else State.STOPPED.value
        return control.Watched(
            state=state if self._wanted.is_set() else "off",
            pid=child.pid if child else None,
            since=self._since,
            links=self._links,
            packets=report.packets if report else 0,
            connections=report.connections if report else 0,
            right=report.right if report else 0,
            wrong=report.wrong if report else 0,
            given_up=report.given_up if report else 0,
            dropped=report.dropped if report else 0,
            problem=self._problem,
            found=tuple(self._found),
        )

    def problems(self) -> dict[str, str]:
        """Return what is wrong, by whom it is about, for status and metrics."""
        if not self._wanted.is_set():
            return {}
        found: dict[str, str] = {}
        for each in self._found:
            owner = self._owner(each.host)
            found[owner] = (
                f"audit: a connection to {each.remote} came from {each.source}: "
                f"{each.reason}; see `vnsmail audit`"
            )
        return found

    def _owner(self, name: str) -> str:
        machine = self._settings.machine.name.lower()
        return (MACHINE if name == machine else name) or "audit"

    def processes(self) -> tuple[control.ProcessStatus, ...]:
        """Return the state and the privileges of the process; nothing if it is off."""
        child = self._child
        if child is None:
            return ()
        return (
            control.ProcessStatus(
                name=child.name,
                state=child.state.value,
                pid=child.pid,
                restarts=child.restarts,
                privileges=describe(child.pid) if child.pid else "",
                owners=(),
            ),
        )


def _open(link: str, ports: tuple[int, ...]) -> Tap:
    return open_tap(link, ports, size=RING, program=bpf.audit_filter(ports), lock=True)


def _facts(sender: Sender) -> protocol.SenderFacts:
    return protocol.SenderFacts(
        name=sender.name,
        context=sender.context,
        helo=sender.helo,
        expected=tuple(map(str, sender.expected)),
        addresses=tuple(map(str, sorted(sender.addresses, key=str))),
        check=sender.check,
    )


def _line(found: protocol.Found) -> bytes:
    return record.line(
        record.WrongSource(
            time=record.at(found.time),
            host=found.host,
            source=found.source,
            source_port=found.source_port,
            remote_address=found.remote,
            remote_port=found.remote_port,
            helo=found.helo,
            reason=found.reason,
        )
    )
