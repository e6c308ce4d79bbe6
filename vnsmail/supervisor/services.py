"""Broker and workers, kept running and kept informed of who owns what.

Rules of this file: a virtual host is assigned to one worker at a time; the broker is
told of an owner before the worker is, and told to forget it after the worker has let
go, so that a worker never holds a grant without the duty or the duty without a grant.
A process that does not answer what takes no time is ended, and started again; what one
worker does or fails to do is no reason to end the broker or another worker.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from vnsmail import channel
from vnsmail.broker import protocol as broker
from vnsmail.channel import ChannelClosed
from vnsmail.engines import protocol as engine
from vnsmail.errors import (
    BrokerGone,
    BrokerRefused,
    NotFound,
    StateUnusable,
    VnsmailError,
)
from vnsmail.log import logger
from vnsmail.model import MACHINE, VirtualHost
from vnsmail.settings import Settings, to_json
from vnsmail.supervisor.authorities import authorities
from vnsmail.supervisor.control import ProcessStatus
from vnsmail.supervisor.engines import Engines
from vnsmail.supervisor.peer import NoAnswer, Peer
from vnsmail.supervisor.plan import worker_for
from vnsmail.supervisor.privileges import describe
from vnsmail.supervisor.process import Child, State

BROKER_CAPABILITIES = "net_admin,sys_admin,net_bind_service,net_raw"
"""setns(2) wants CAP_SYS_ADMIN; binding port 25 CAP_NET_BIND_SERVICE."""

MACHINE_WORKER = "worker-machine"
"""The one worker whose sockets are unbound. It owns the machine and nothing else."""

RETRY_AFTER = 5.0
"""Seconds between attempts to serve an owner that could not be served."""

AT_ONCE = 10.0
"""Seconds for an answer that waits for nothing."""

LETTING_GO = 30.0
"""Seconds for a worker to let go of an owner: it finishes what is being said."""

BrokerPeer: TypeAlias = Peer[broker.SupervisorAnswer]
WorkerPeer: TypeAlias = Peer[engine.Answer]

log = logger("supervisor")


class WorkerRefused(VnsmailError):
    """A worker could not do what it was asked; the sentence is its own."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text, exit_code)
        self.text = text
        self.exit_code = exit_code  # type: ignore[misc]  # the worker knows the kind

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Service:
    """An owner to be served: what its worker must know, and where its sockets live."""

    facts: engine.OwnerFacts
    namespace: str
    """Name of its network namespace; empty for the machine's own."""
    mark: int = 0
    """Mark of its sockets, by which the guard knows them; 0: none."""
    identity: int = 0
    """Which namespace it is (net/namespaces.py): another of that name is not entered."""
    host: VirtualHost | None = None
    """What its engine is made of, if that is not its worker."""
    engine: str = ""
    """Where that engine takes mail."""


@dataclass(slots=True)
class _Worker:
    name: str
    child: Child[engine.Answer]
    """Its process, whichever it is now."""
    peer: WorkerPeer | None = None
    services: dict[str, Service] = field(default_factory=dict)


class Services:
    """Everything that runs below the supervisor."""

    def __init__(
        self,
        settings: Settings,
        resolvers: Sequence[str],
        worker_options: Callable[[str], Sequence[str]],
        event_pipe: Callable[[], int] | None = None,
        engines: Engines | None = None,
    ) -> None:
        """Make what runs below; nothing is started.

        Args:
            settings: vnsmail.toml.
            resolvers: name servers.
            worker_options: gives the launcher's options for the worker of that name.
            event_pipe: makes a pipe into the event log; None: there is no log.
            engines: keeps those that are not ours; None: there are none.
        """
        self.engines = engines
        self._event_pipe = event_pipe
        self._settings = settings
        self._resolvers = tuple(resolvers)
        self.problems: dict[str, str] = {}
        self._introducing = asyncio.Lock()
        self._broker_peer: BrokerPeer | None = None
        self._broker = Child[broker.SupervisorAnswer](
            "broker",
            "vnsmail.broker.server",
            ("--keep-capabilities", BROKER_CAPABILITIES),
            peer=lambda c: Peer(c, broker.encode, broker.decode_supervisor_answer),
            on_start=self._broker_started,
            on_exit=self._broker_ended,
        )
        names = [f"worker-{n}" for n in range(settings.worker.count)]
        self._workers = {
            name: self._worker(name, worker_options(name))
            for name in [MACHINE_WORKER, *names]
        }

    def _worker(self, name: str, options: Sequence[str]) -> _Worker:
        child = Child[engine.Answer](
            name,
            "vnsmail.engines.native",
            options,
            peer=lambda c: Peer(c, engine.encode, engine.decode_answer),
            on_start=lambda peer: self._worker_started(name, peer),
            on_stop=lambda peer: _done(peer.ask(engine.Stop, seconds=AT_ONCE)),
            on_exit=lambda: self._worker_ended(name),
        )
        return _Worker(name, child)

    # Running -----------------------------------------------------------------

    async def run(self) -> None:
        """Keep all children running until ``stop``, and the broker a little longer."""
        async with asyncio.TaskGroup() as tasks:
            broker_runs = tasks.create_task(self._broker.run())
            workers_run = [
                tasks.create_task(worker.child.run())
                for worker in self._workers.values()
            ]
            mending = tasks.create_task(self._mend())
            await asyncio.wait(workers_run)
            mending.cancel()
            if self.engines is not None:
                await self.engines.stop()
            self._broker.stop()
            await broker_runs

    def stop(self) -> None:
        """Let the workers finish, then end the broker; ``run`` returns after that."""
        for worker in self._workers.values():
            worker.child.stop()

    async def ready(self) -> None:
        """Wait until broker and workers run; each gets some seconds to start."""
        children: list[Child[Any]] = [self._broker]
        children += [worker.child for worker in self._workers.values()]
        for _ in range(600):
            if all(child.state is State.RUNNING for child in children):
                return
            failing = next((c for c in children if c.restarts > 2), None)
            if failing:
                raise StateUnusable(
                    failing.name, "it ends as soon as it starts", "see the log above"
                )
            await asyncio.sleep(0.05)
        raise StateUnusable("broker or worker", "not ready within 30 s", "see the log")

    async def _broker_started(self, peer: BrokerPeer) -> None:
        configure = broker.Configure
        ports, resolvers = self._settings.smtp.listening_ports, self._resolvers
        delivery = self._settings.delivery
        stores = tuple(broker.Store(owner, path) for owner, path in delivery.stores)
        await _granted(
            peer.ask(
                lambda n: configure(
                    id=n, ports=ports, resolvers=resolvers, stores=stores
                ),
                seconds=AT_ONCE,
            )
        )
        async with self._introducing:
            self._broker_peer = peer
            workers = [worker for worker in self._workers.values() if worker.peer]
            await asyncio.gather(*(self._introduce(worker) for worker in workers))

    def _broker_ended(self) -> None:
        self._broker_peer = None

    async def _worker_started(self, name: str, peer: WorkerPeer) -> None:
        text = to_json(self._settings)
        resolvers = self._resolvers
        file = self._settings.delivery.tls.ca_file
        trusted = await asyncio.to_thread(authorities, file)
        await _done(
            peer.ask(
                lambda n: engine.Configure(n, name, text, resolvers, trusted),
                seconds=AT_ONCE,
            )
        )
        await self._hand_pipe(peer)
        worker = self._workers[name]
        async with self._introducing:
            worker.peer = peer
            # Trouble with the broker is the broker's; the next is introduced anew.
            with contextlib.suppress(VnsmailError):
                await self._introduce(worker)
        for service in list(worker.services.values()):
            await self._try_assign(worker, service)

    async def _hand_pipe(self, peer: WorkerPeer) -> None:
        """Give a worker a pipe of its own into the event log."""
        if self._event_pipe is None:
            return
        fd = self._event_pipe()
        try:
            await _done(peer.ask(engine.UseEvents, (fd,), seconds=AT_ONCE))
        finally:
            os.close(fd)

    def _worker_ended(self, name: str) -> None:
        self._workers[name].peer = None

    async def _introduce(self, worker: _Worker) -> None:
        """Give the worker and the broker a channel to each other, and its grants.

        Raises:
            VnsmailError: the broker did not do its part. A worker that does not do its
                own is ended, and introduced when it starts again.
        """
        if self._broker_peer is None or worker.peer is None:
            return
        one, other = channel.pair()
        with one, other:
            name = worker.name
            await self._tell_broker(
                lambda n: broker.Attach(id=n, worker=name), (one.fileno(),)
            )
            await self._grant(name, list(worker.services.values()))
            try:
                await _done(
                    worker.peer.ask(
                        engine.UseBroker, (other.fileno(),), seconds=AT_ONCE
                    )
                )
            except VnsmailError as error:
                log.warning("worker.ended", worker=name, reason=str(error))
                await worker.child.kill()

    async def _mend(self) -> None:
        """Try again, now and then, what could not be served."""
        while True:
            await asyncio.sleep(RETRY_AFTER)
            with contextlib.suppress(VnsmailError):  # it is the broker's trouble
                await self._end_those_cut_off()
            await asyncio.gather(*map(self._mend_worker, self._workers.values()))

    async def _end_those_cut_off(self) -> None:
        """End workers that the broker does not listen to any more.

        It dropped them because they said what a worker does not say: they are not to
        be trusted further, and the next process of that name gets a new channel.
        """
        async with self._introducing:
            if self._broker_peer is None:
                return
            question = broker.ListAttached
            answer = await self._broker_peer.ask(question, seconds=AT_ONCE)
            if not isinstance(answer, broker.Attached):
                return
            for worker in self._workers.values():
                there = worker.peer and worker.child.state is State.RUNNING
                if there and worker.name not in answer.workers:
                    reason = "the broker has dropped it"
                    log.warning("worker.ended", worker=worker.name, reason=reason)
                    await worker.child.kill()

    async def _mend_worker(self, worker: _Worker) -> None:
        for owner, service in list(worker.services.items()):
            if owner in self.problems and worker.peer:
                await self._try_assign(worker, service)

    # Owners ------------------------------------------------------------------

    async def serve(self, service: Service) -> None:
        """Assign an owner to a worker, or give its worker the owner's changed facts.

        Raises:
            WorkerRefused: the worker cannot serve it; it is not assigned any more.
        """
        owner = service.facts.owner
        worker = self._holder(owner) or self._choose(owner)
        earlier = worker.services.get(owner)
        worker.services[owner] = service
        try:
            await self._grant(worker.name, [service])
            await self._assign(worker, service)
        except VnsmailError:
            if earlier is not None:
                worker.services[owner] = earlier
                raise
            with contextlib.suppress(VnsmailError):  # the first is the one to tell
                await self.release(owner)
            raise
        self.problems.pop(owner, None)
        await self._keep_engine(service)

    async def _keep_engine(self, service: Service) -> None:
        if self.engines is None or service.facts.owner == MACHINE:
            return
        if service.host is None:
            await self.engines.let_go(service.facts.owner)
        else:
            suspended = service.facts.suspended
            await self.engines.keep(service.host, suspended=suspended)

    async def serve_or_note(self, service: Service) -> None:
        """Serve an owner; if that fails, keep trying and tell the reason in status."""
        owner = service.facts.owner
        try:
            await self.serve(service)
        except VnsmailError as error:
            worker = self._holder(owner) or self._choose(owner)
            worker.services[owner] = service
            self.problems[owner] = str(error)
            log.warning("owner.unserved", owner=owner, reason=str(error))

    async def release(self, owner: str) -> None:
        """Take an owner from its worker and make the broker forget it.

        Raises:
            WorkerRefused: the worker did not close its files cleanly; it has let go.
        """
        worker = self._holder(owner)
        if worker is None:
            return
        worker.services.pop(owner, None)
        self.problems.pop(owner, None)
        if self.engines is not None:
            await self.engines.let_go(owner)
        try:
            if worker.peer:
                asking = worker.peer.ask(
                    lambda n: engine.Release(n, owner), seconds=LETTING_GO
                )
                await _done(asking)
        except ChannelClosed:
            pass  # it has ended, and with it whatever it held
        except NoAnswer as error:
            log.warning("worker.ended", worker=worker.name, reason=str(error))
            await worker.child.kill()
        finally:
            name = worker.name
            with contextlib.suppress(BrokerGone):  # the next knows nothing of it
                await self._tell_broker(
                    lambda n: broker.Revoke(id=n, worker=name, host=owner)
                )

    def service(self, owner: str) -> Service:
        """Return what an owner is served as.

        Raises:
            NotFound: nobody serves it.
        """
        worker = self._holder(owner)
        if worker is None:
            raise NotFound(
                "virtual host", owner, "it is not served; see `vnsmail status`"
            )
        return worker.services[owner]

    async def take(self, mail: engine.LocalMail, fd: int) -> str:
        """Hand a message to its owner's worker; returns its queue id.

        Raises:
            NotFound: nobody serves the owner.
            WorkerRefused: the message or an address is not acceptable.
        """
        answer = await self.asked(mail.owner, lambda n: engine.Inject(n, mail), (fd,))
        if not isinstance(answer, engine.Injected):
            raise WorkerRefused(_failure(answer), 1)
        return answer.queue_id

    async def give_back(self, mail: engine.LocalMail, reason: str, fd: int) -> None:
        """Have the sender of a message told that it was refused.

        Raises:
            NotFound: nobody serves the owner.
            WorkerRefused: not now.
        """
        await self.asked(mail.owner, lambda n: engine.GiveBack(n, mail, reason), (fd,))

    async def list_queue(self, owner: str, limit: int) -> tuple[engine.QueueEntry, ...]:
        """Return the oldest queued messages of an owner."""
        answer = await self.asked(owner, lambda n: engine.ListQueue(n, owner, limit))
        if not isinstance(answer, engine.QueueListed):
            raise WorkerRefused(_failure(answer), 1)
        return answer.entries

    async def asked(
        self,
        owner: str,
        question: Callable[[int], engine.Request],
        fds: Sequence[int] = (),
    ) -> engine.Answer:
        """Ask the worker of an owner; returns its answer, which is no failure.

        Raises:
            NotFound: nobody serves the owner.
            WorkerRefused: the worker would not, or is being started.
            ChannelClosed: it ended meanwhile.
        """
        worker = self._holder(owner)
        if worker is None:
            raise NotFound(
                "virtual host", owner, "it is not served; see `vnsmail status`"
            )
        if worker.peer is None:
            msg = f"{worker.name} is being started; try again"
            raise WorkerRefused(msg, 1)
        answer = await worker.peer.ask(question, fds)
        if isinstance(answer, engine.Failed):
            raise WorkerRefused(answer.text, answer.exit_code)
        return answer

    def owners(self) -> list[str]:
        """Return everyone who is served, the machine first."""
        return [o for w in self._workers.values() for o in w.services]

    # Reports -----------------------------------------------------------------

    async def reports(self) -> tuple[engine.OwnerReport, ...]:
        """Return how every owner is doing; those of a dead worker are missing."""
        found = await asyncio.gather(*map(self._report, self._workers.values()))
        told = tuple(report for reports in found for report in reports)
        if self.engines is None:
            return told
        return tuple(await asyncio.gather(*map(self.engines.report, told)))

    async def _report(self, worker: _Worker) -> tuple[engine.OwnerReport, ...]:
        if worker.peer is None:
            return ()
        try:
            answer = await worker.peer.ask(engine.Report, seconds=AT_ONCE)
        except VnsmailError as error:
            log.warning("worker.silent", worker=worker.name, reason=str(error))
            return ()
        return answer.owners if isinstance(answer, engine.Reported) else ()

    async def socket_counts(self) -> dict[str, int]:
        """Return how many requests of workers the broker has answered, by outcome.

        Raises:
            BrokerGone: it is not there.
        """
        if self._broker_peer is None:
            raise BrokerGone
        answer = await self._broker_peer.ask(broker.ListAttached, seconds=AT_ONCE)
        if not isinstance(answer, broker.Attached):
            raise BrokerGone
        return {
            "opened": answer.opened,
            "unavailable": answer.unavailable,
            "refused": answer.refused,
        }

    def troubles(self, reported: Collection[str]) -> dict[str, str]:
        """Return who is not served, and why: also those whose worker did not report."""
        found = dict(self.problems)
        if self.engines is not None:
            for owner, text in self.engines.problems().items():
                found.setdefault(owner, text)
        for worker in self._workers.values():
            state = worker.child.state.value
            for owner in worker.services:
                if owner not in reported:
                    found.setdefault(owner, f"{worker.name} is {state}, and silent")
        return found

    def processes(self) -> tuple[ProcessStatus, ...]:
        """Return the state and the privileges of each child."""
        rows: list[tuple[Child[Any], tuple[str, ...]]] = [(self._broker, ())]
        rows += [(w.child, tuple(w.services)) for w in self._workers.values()]
        kept = self.engines.processes() if self.engines is not None else ()
        return kept + tuple(
            ProcessStatus(
                name=child.name,
                state=child.state.value,
                pid=child.pid,
                restarts=child.restarts,
                privileges=describe(child.pid) if child.pid else "",
                owners=owners,
            )
            for child, owners in rows
        )

    # Within ------------------------------------------------------------------

    def _holder(self, owner: str) -> _Worker | None:
        holders = (w for w in self._workers.values() if owner in w.services)
        return next(holders, None)

    def _choose(self, owner: str) -> _Worker:
        if owner == MACHINE:
            return self._workers[MACHINE_WORKER]
        loads = {
            w.name: len(w.services)
            for w in self._workers.values()
            if w.name != MACHINE_WORKER
        }
        return self._workers[worker_for(loads)]

    async def _grant(self, worker: str, services: Sequence[Service]) -> None:
        """Tell the broker what a worker owns.

        Raises:
            BrokerGone: it is not there.
            BrokerRefused: it knows better.
        """
        grants = tuple(
            broker.HostGrant(
                name=service.facts.owner,
                namespace=service.namespace,
                addresses=service.facts.addresses,
                mark=service.mark,
                identity=service.identity,
                resolvers=service.facts.resolvers,
                engine=service.engine,
            )
            for service in services
        )
        for start in range(0, len(grants), broker.MAX_HOSTS):
            hosts = grants[start : start + broker.MAX_HOSTS]
            await self._tell_broker(_granting(worker, hosts))

    async def _tell_broker(
        self,
        question: Callable[[int], broker.SupervisorRequest],
        fds: Sequence[int] = (),
    ) -> None:
        """Tell the broker something, which it does at once or never.

        Raises:
            BrokerGone: it is not there; one that does not answer is ended.
            BrokerRefused: it would not.
        """
        if self._broker_peer is None:
            raise BrokerGone
        try:
            await _granted(self._broker_peer.ask(question, fds, seconds=AT_ONCE))
        except ChannelClosed:
            raise BrokerGone from None
        except NoAnswer as error:
            log.warning("broker.ended", reason=str(error))
            await self._broker.kill()
            raise BrokerGone from None

    async def _assign(self, worker: _Worker, service: Service) -> None:
        if worker.peer is None:
            msg = f"{worker.name} is being started"
            raise WorkerRefused(msg, 1)
        await _done(worker.peer.ask(lambda n: engine.Assign(n, service.facts)))

    async def _try_assign(self, worker: _Worker, service: Service) -> None:
        """Serve an owner that its worker has not, or not any more."""
        owner = service.facts.owner
        try:
            # It may have failed before the broker knew, or been taken back.
            await self._grant(worker.name, [service])
            await self._assign(worker, service)
        except VnsmailError as error:
            self.problems[owner] = str(error)
            log.warning("owner.unserved", owner=owner, reason=str(error))
        else:
            self.problems.pop(owner, None)
            await self._keep_engine(service)


def _granting(
    worker: str, hosts: tuple[broker.HostGrant, ...]
) -> Callable[[int], broker.Grant]:
    return lambda n: broker.Grant(id=n, worker=worker, hosts=hosts)


async def _done(asking: Awaitable[engine.Answer]) -> None:
    answer = await asking
    if not isinstance(answer, engine.Done):
        raise WorkerRefused(_failure(answer), getattr(answer, "exit_code", 1))


def _failure(answer: engine.Answer) -> str:
    if isinstance(answer, engine.Failed):
        return answer.text
    return f"unexpected answer {type(answer).__name__}"


async def _granted(asking: Awaitable[broker.SupervisorAnswer]) -> None:
    answer = await asking
    if isinstance(answer, broker.Refused):
        raise BrokerRefused(answer.kind, answer.text)
