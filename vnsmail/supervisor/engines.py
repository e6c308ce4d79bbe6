"""The engines of virtual hosts that are not ours: each has a keeper, kept running.

Rules of this file: an engine runs while its host is served and not suspended, with the
facts that the host has now; when these change it is ended and started anew; it has ended
before anything of its host is taken away.
"""

import asyncio
import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from msgspec import structs

from vnsmail.engines.mta import missing
from vnsmail.engines.mtas import mta_of
from vnsmail.engines.protocol import OwnerReport, QueueEntry
from vnsmail.errors import BadInput, VnsmailError
from vnsmail.log import logger
from vnsmail.model import Context, Engine, Envelope, Owner, VirtualHost
from vnsmail.net import cgroups
from vnsmail.settings import Layout
from vnsmail.supervisor import engine_protocol as protocol
from vnsmail.supervisor.control import ProcessStatus
from vnsmail.supervisor.peer import Peer
from vnsmail.supervisor.privileges import describe
from vnsmail.supervisor.process import Child, State

KEEPER = "vnsmail.supervisor.engine_keeper"
BEGINS_WITHIN = 60.0
"""Seconds until a server runs that is being started, on a busy machine."""
LISTS_WITHIN = 40.0

log = logger("engines")


def folder_of(layout: Layout, owner: Owner, engine: Engine) -> Path:
    """Return where an engine keeps a host's queue."""
    return layout.engines / owner / engine.value


def socket_of(layout: Layout, owner: str) -> Path:
    """Return the socket at which an engine takes mail: short, as it has to be."""
    name = hashlib.sha256(owner.encode()).hexdigest()[:24]
    return layout.run / "engines" / name


def check_installed(engine: Engine) -> None:
    """Make sure that an engine can be run here.

    Raises:
        BadInput: its programs are missing; it says what to install.
    """
    mta = mta_of(engine)
    if mta is not None and (remedy := missing(mta, os.path.exists)):
        raise BadInput("engine", engine.value, remedy)


class EngineFailed(VnsmailError):
    """A host's engine does not do what it is asked; the sentence is its keeper's."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return self.text


@dataclass(slots=True)
class _Kept:
    host: VirtualHost
    child: Child[protocol.Answer]
    task: "asyncio.Task[None]"
    peer: Peer[protocol.Answer] | None = None
    problem: str = ""


class Engines:
    """All engines of one root that are not ours."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._kept: dict[str, _Kept] = {}

    async def keep(self, host: VirtualHost, *, suspended: bool) -> None:
        """Have the engine of a host run as the host is now; or not run."""
        wanted = host.engine is not Engine.NATIVE and not suspended
        kept = self._kept.get(host.name)
        if kept is not None and wanted and kept.host == host:
            return
        await self.let_go(host.name)
        if wanted:
            self._kept[host.name] = self._start(host)

    async def let_go(self, owner: str) -> None:
        """End the engine of a host, if it has one; its queue stays."""
        kept = self._kept.pop(owner, None)
        if kept is not None:
            kept.child.stop()
            await kept.task
            if kept.host.context is Context.ALIAS:
                with contextlib.suppress(OSError, VnsmailError):
                    await asyncio.to_thread(
                        cgroups.remove, self._layout.instance, owner
                    )

    async def stop(self) -> None:
        """End all."""
        await asyncio.gather(*(self.let_go(owner) for owner in list(self._kept)))

    def _start(self, host: VirtualHost) -> _Kept:
        name = host.name
        options = ("--root", str(self._layout.state), "--host", name)
        child = Child[protocol.Answer](
            f"engine-{name}",
            KEEPER,
            options,
            peer=lambda c: Peer(c, protocol.encode, protocol.decode_answer),
            on_start=lambda peer: self._started(name, peer),
            on_exit=lambda: self._ended(name),
            launched=False,
        )
        return _Kept(host, child, asyncio.ensure_future(child.run()))

    async def _started(self, name: str, peer: Peer[protocol.Answer]) -> None:
        kept = self._kept.get(name)
        try:
            answer = await peer.ask(protocol.Begin, seconds=BEGINS_WITHIN)
            if isinstance(answer, protocol.Failed):
                raise EngineFailed(answer.text)
        except VnsmailError as error:
            if kept is not None:
                kept.problem = f"its engine does not start: {error}"
            raise
        if kept is not None:
            kept.peer, kept.problem = peer, ""

    def _ended(self, name: str) -> None:
        kept = self._kept.get(name)
        if kept is not None:
            kept.peer = None

    # What is asked --------------------------------------------------------------------

    def engine(self, owner: str) -> Engine:
        """Return the engine that is kept for a host; NATIVE: none is."""
        kept = self._kept.get(owner)
        return kept.host.engine if kept else Engine.NATIVE

    async def mail(self, owner: str) -> tuple[protocol.Mail, ...]:
        """Return what the engine of a host has queued; nothing if it has none.

        Raises:
            EngineFailed: it cannot be asked now.
        """
        if owner not in self._kept:
            return ()
        answer = await self._asked(owner, protocol.ListMail)
        return answer.mail if isinstance(answer, protocol.Listed) else ()

    async def flush(self, owner: str) -> None:
        """Have the engine of a host try all that it has queued.

        Raises:
            EngineFailed: it cannot be asked now.
        """
        if owner in self._kept:
            await self._asked(owner, protocol.Flush)

    async def _asked(
        self, owner: str, question: type[protocol.ListMail] | type[protocol.Flush]
    ) -> protocol.Answer:
        kept = self._kept[owner]
        engine = kept.host.engine.value
        if kept.peer is None:
            raise EngineFailed(kept.problem or f"{engine} of {owner} is being started")
        try:
            answer = await kept.peer.ask(question, seconds=LISTS_WITHIN)
        except VnsmailError as error:
            msg = f"{engine} of {owner}: {error}"
            raise EngineFailed(msg) from None
        if isinstance(answer, protocol.Failed):
            msg = f"{engine} of {owner}: {answer.text}"
            raise EngineFailed(msg)
        return answer

    def problems(self) -> dict[str, str]:
        """Return whose engine does not run, and why."""
        return {
            owner: kept.problem or f"its engine is {kept.child.state.value}"
            for owner, kept in self._kept.items()
            if kept.problem or kept.child.state is State.BACKOFF
        }

    def processes(self) -> tuple[ProcessStatus, ...]:
        """Return the state of each keeper."""
        return tuple(
            ProcessStatus(
                name=kept.child.name,
                state=kept.child.state.value,
                pid=kept.child.pid,
                restarts=kept.child.restarts,
                privileges=_privileges(kept.child.pid),
                owners=(owner,),
            )
            for owner, kept in self._kept.items()
        )

    async def report(self, told: OwnerReport) -> OwnerReport:
        """Return how an owner is doing, with what is known of its engine."""
        if told.owner not in self._kept:
            return told
        try:
            number = len(await self.mail(told.owner))
        except EngineFailed:
            number = 0
        engine = self.engine(told.owner).value
        return structs.replace(told, engine=engine, engine_messages=number)

    async def entries(self, owner: str) -> tuple[QueueEntry, ...]:
        """Return what the engine of a host has queued, as ours is told of; never fails."""
        try:
            mail = await self.mail(owner)
        except EngineFailed as error:
            log.warning("engine.silent", owner=owner, reason=str(error))
            return ()
        engine = self.engine(owner).value
        return tuple(
            QueueEntry(
                Envelope(
                    id=f"{engine}:{each.id}",
                    owner=Owner(owner),
                    sender=each.sender,
                    recipients=tuple(to for to, _ in each.recipients),
                    received_at=each.received_at,
                ),
                each.size,
                # How often, and when next, only the server knows.
                tuple((to, 0, each.received_at, why) for to, why in each.recipients),
                each.held,
            )
            for each in mail
        )

    async def refuse_if_queued(self, host: VirtualHost) -> None:
        """Refuse to take the engine of a host away that still has mail, or may have.

        Raises:
            BadInput: it has, or cannot be asked.
        """
        if host.engine is Engine.NATIVE:
            return
        try:
            number = len(await self.mail(host.name))
        except EngineFailed as error:
            remedy = f"its engine cannot be asked whether it has mail ({error})"
            raise BadInput("virtual host", host.name, remedy) from None
        number = number or await asyncio.to_thread(self._lying, host)
        if number:
            remedy = (
                f"{host.engine.value} has {number} of its messages queued (`vnsmail "
                "queue list`); wait for them"
            )
            raise BadInput("virtual host", host.name, remedy)

    def _lying(self, host: VirtualHost) -> int:
        """Return how many messages lie in the spool of an engine that does not run."""
        mta = mta_of(host.engine)
        folder = folder_of(self._layout, Owner(host.name), host.engine)
        patterns = mta.queued if mta is not None else ()
        found = (path for pattern in patterns for path in folder.glob(pattern))
        return sum(1 for path in found if path.is_file() and not path.is_symlink())


def _privileges(pid: int | None) -> str:
    """Return what the first process of an engine's namespaces may do."""
    if pid is None:
        return ""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return ""
    return describe(int(children[0])) if children else ""
