"""Making the hosts of a file all there are.

    read, decide ─► refuse what cannot be ─► directory ─► let go ─► network ─► files ─► serve
                    (nothing is changed)     (one transaction)

Rules of this file: the transaction is the point of no return: before it nothing is
changed, after it the directory says what should be, and whatever is cut off or fails
then is finished by the next start, by the next try of the supervisor, or by applying
the file again. One host's failure is told, and stops no other.
"""

import asyncio
from collections.abc import (
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import replace
from typing import TypeVar

from vnsmail.directory import Directory
from vnsmail.directory.declaration import Declaration, Misfits, parse
from vnsmail.errors import BadInput, VnsmailError
from vnsmail.log import logger
from vnsmail.model import HostName, Owner, VirtualHost
from vnsmail.net.plan import Actual
from vnsmail.settings import Layout
from vnsmail.supervisor import control
from vnsmail.supervisor.converge import Change, Decision, Tenant, decide
from vnsmail.supervisor.engines import check_installed
from vnsmail.supervisor.folders import remove_owner
from vnsmail.supervisor.network import Network, taken_by
from vnsmail.supervisor.services import Services

AT_ONCE = 32
"""Hosts being served, let go or asked for their queues at a time."""

NAMED = 20
"""Hosts that a refusal names."""

Thing = TypeVar("Thing")

log = logger("hosts")


class Applying:
    """The way from a file to the hosts of one root.

    Args:
        serve: serves a host, or notes in ``services.problems`` why it is not served.
        release: takes a host from its worker.
        drain: removes addresses that linger, once nothing is said there.
    """

    def __init__(
        self,
        layout: Layout,
        directory: Directory,
        services: Services,
        network: Network,
        serve: Callable[[VirtualHost], Awaitable[None]],
        release: Callable[[HostName], Awaitable[None]],
        drain: Callable[[HostName], Coroutine[None, None, None]],
    ) -> None:
        self._layout = layout
        self._directory = directory
        self._services = services
        self._network = network
        self._serve = serve
        self._release = release
        self._drain = drain
        self._drains: set[asyncio.Task[None]] = set()
        self.progress = control.Progress()

    async def decided(
        self, request: control.ApplyHosts, actual: Actual
    ) -> tuple[Decision, control.Applied]:
        """Return what a file asks for, and that in words; nothing is changed.

        Raises:
            Misfits: what it says cannot be.
            BadInput: mail is queued for a host that is to go.
        """
        declaration = await asyncio.to_thread(parse, request.text)
        existing = self._existing()
        decision = decide(declaration, existing, actual)
        if not request.no_probe:
            await self._refuse_in_use(declaration, decision, existing)
        going = [c.name for c in decision.changes if c.after is None]
        if not request.discard_queue:
            await self._refuse_if_queued(going)
        for change in decision.changes:
            await self._check_engine(change)
        if self._existing() != existing:  # a user came or went meanwhile
            return await self.decided(request, actual)
        wanted = {tenant.facts.name for tenant in decision.hosts}
        leftovers = [
            Change(Tenant(self._directory.host(name), ()), None)
            for name in self._directory.unfinished()
            if name not in wanted
        ]
        decision = Decision(decision.hosts, (*decision.changes, *leftovers))
        return decision, self._described(decision, actual)

    async def _check_engine(self, change: Change) -> None:
        """Check that the engine that a host is to have is here, and the other empty.

        Raises:
            BadInput: it is not.
        """
        before = change.before.facts if change.before else None
        after = change.after.facts if change.after else None
        if after is None or (before is not None and before.engine is after.engine):
            return
        check_installed(after.engine)
        if before is not None and self._services.engines is not None:
            await self._services.engines.refuse_if_queued(before)

    async def carry_out(
        self, decision: Decision, planned: control.Applied
    ) -> tuple[control.Applied, dict[HostName, str]]:
        """Do it; returns what was done, and what could not be brought about.

        Raises:
            StateUnusable: the directory cannot be written; no host is changed.
        """
        problems = await self._clear(decision)
        hosts = [t.facts for t in decision.hosts if t.facts.name not in problems]
        coming = [c.after for c in decision.changes if c.after]
        going = [c.before.facts for c in decision.changes if c.before and not c.after]
        self._directory.declare(
            [(t.facts, t.users) for t in coming if t.facts.name not in problems],
            [*problems, *(host.name for host in going)],
        )
        try:
            moved = [c.name for c in decision.changes if _reopens(c, decision)]
            leaving = [*moved, *(host.name for host in going)]
            await self._each("hosts let go", leaving, self._release)
            lingering = self._linger(decision)
            self.progress = control.Progress("network", 0, len(planned.steps))
            problems |= await self._network.converge(hosts, going)
            await self._remove([h.name for h in going], problems)
            remade = self._network.remade(self._services.owners())
            await self._each("hosts let go", remade, self._release)
            touched = {*remade, *(change.name for change in planned.changes)}
            served = [host for host in hosts if host.name in touched]
            await self._each("hosts served", served, self._serve)
            self._drain_later(lingering)
        finally:
            self.progress = control.Progress()
        done = _with_problems(planned, self._services.problems | problems)
        failed = sum(1 for change in done.changes if change.problem)
        log.info("hosts.applied", changes=len(done.changes), failed=failed)
        return done, problems

    async def _refuse_in_use(
        self,
        declaration: Declaration,
        decision: Decision,
        existing: Mapping[HostName, Tenant],
    ) -> None:
        """Refuse addresses that none of our hosts had, and that somebody has.

        Raises:
            Misfits: somebody has; it says who, with the line of each.
        """
        ours = {a.address for t in existing.values() for a in t.facts.addresses}
        new = [
            replace(
                t.facts,
                addresses=tuple(a for a in t.facts.addresses if a.address not in ours),
            )
            for t in decision.hosts
        ]
        found = await self._network.in_use(new)
        links = {host.name: host.link for host in new}
        problems = [
            declaration.problem(
                host,
                f"'{each}': {taken_by(found[each.address], links[host.name])}",
                "addresses",
                number,
            )
            for host in declaration.hosts
            for number, each in enumerate(host.table.addresses)
            if each.address in found
        ]
        if problems:
            raise Misfits(tuple(sorted(problems, key=lambda each: each.line)))

    # Within ------------------------------------------------------------------

    def _linger(self, decision: Decision) -> list[HostName]:
        """Keep addresses that go until nothing is said there; returns whose they are."""
        found: list[HostName] = []
        held = {a.address for tenant in decision.hosts for a in tenant.facts.addresses}
        for change in decision.changes:
            self._network.lingering.pop(change.name, None)
            if change.before is None or _reopens(change, decision):
                continue
            gone = (
                ()
                if change.after is None
                else tuple(
                    each
                    for each in change.before.facts.addresses
                    if each.address not in held
                )
            )
            if gone:
                self._network.lingering[change.name] = gone
                found.append(change.name)
        return found

    def _drain_later(self, names: Iterable[HostName]) -> None:
        for name in names:
            task = asyncio.ensure_future(self._drain(name))
            self._drains.add(task)
            task.add_done_callback(self._drained)

    def _drained(self, task: asyncio.Task[None]) -> None:
        self._drains.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.warning("host.not_drained", reason=str(error))

    def _existing(self) -> dict[HostName, Tenant]:
        listed = self._directory.users
        return {
            host.name: Tenant(host, tuple(u.local_part for u in listed(host.name)))
            for host in self._directory.hosts()
        }

    def _described(self, decision: Decision, actual: Actual) -> control.Applied:
        hosts = [tenant.facts for tenant in decision.hosts]
        steps = self._network.steps(hosts, actual)
        changes = [_in_words(change) for change in decision.changes]
        named = {change.name for change in decision.changes}
        drifted = self._network.concerned(steps, hosts)
        served = set(self._services.owners())
        for host in hosts:
            details = tuple(drifted.get(host.name, ()))
            if host.name in self._services.problems or host.name not in served:
                details += ("serve it",)
            if details and host.name not in named:
                changes.append(control.HostChange(host.name, "mend", details))
                named.add(host.name)
        return control.Applied(
            changes=tuple(changes),
            steps=tuple(step.describe() for step in steps),
            unchanged=sum(1 for host in hosts if host.name not in named),
        )

    async def _refuse_if_queued(self, names: Iterable[HostName]) -> None:
        queued: list[str] = []
        unread: list[str] = []

        async def look(name: HostName) -> None:
            try:
                if await self._services.list_queue(name, 1):
                    queued.append(name)
            except VnsmailError:
                unread.append(name)

        await self._each("queues looked at", list(names), look)
        self.progress = control.Progress()
        for found, what in (
            (queued, "not in the file, and mail is still in the queue"),
            (unread, "not in the file, and the queue cannot be read"),
        ):
            if found:
                more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
                raise BadInput(
                    "virtual hosts" if len(found) > 1 else "virtual host",
                    ", ".join(sorted(found)[:NAMED]) + more,
                    f"{what}; wait for it, or give --discard-queue",
                )

    async def _clear(self, decision: Decision) -> dict[HostName, str]:
        """Remove what is left of the files of hosts that went before, and come again.

        What is not told apart from the files of the new one would become its own.
        """
        problems: dict[HostName, str] = {}
        wanted = {tenant.facts.name for tenant in decision.hosts}
        await self._remove_files(
            [name for name in self._directory.unfinished() if name in wanted], problems
        )
        return problems

    async def _remove(
        self, names: Iterable[HostName], problems: dict[HostName, str]
    ) -> None:
        """Remove the files of hosts that have no network any more, and their names."""
        gone = [name for name in names if name not in problems]
        await self._remove_files(gone, problems)
        self._directory.remove_hosts(name for name in gone if name not in problems)

    async def _remove_files(
        self, names: Sequence[HostName], problems: dict[HostName, str]
    ) -> None:

        async def remove(name: HostName) -> None:
            try:
                await asyncio.to_thread(remove_owner, self._layout, Owner(name))
            except VnsmailError as error:
                problems[name] = str(error)

        await self._each("hosts removed", names, remove)

    async def _each(
        self,
        what: str,
        things: Sequence[Thing],
        function: Callable[[Thing], Awaitable[None]],
    ) -> None:
        """Call a function for each, some at a time, and keep count."""
        waiting = iter(things)
        self.progress = control.Progress(what, 0, len(things))

        async def take() -> None:
            for thing in waiting:
                await function(thing)
                done = self.progress.done + 1
                self.progress = control.Progress(what, done, len(things))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(AT_ONCE, len(things))):
                tasks.create_task(take())


def _reopens(change: Change, decision: Decision) -> bool:
    """Say whether a host's sockets have to be closed before others' are opened.

    That is so where an address passes from one host to another.
    """
    if change.before is None or change.after is None:
        return False
    mine = change.before.facts.addresses + change.after.facts.addresses
    own = {each.address for each in mine}
    others = {
        address.address
        for other in decision.changes
        if other is not change
        for tenant in (other.before, other.after)
        if tenant is not None
        for address in tenant.facts.addresses
    }
    return change.reopens or bool(own & others)


def misfit(error: Misfits) -> control.Applied:
    """Return the answer to a file that says what cannot be."""
    problems = tuple(
        control.FileProblem(each.line, each.key, each.text) for each in error.problems
    )
    return control.Applied(problems=problems)


def _in_words(change: Change) -> control.HostChange:
    return control.HostChange(change.name, change.action, change.details())


def _with_problems(
    planned: control.Applied, problems: Mapping[str, str]
) -> control.Applied:
    changes = tuple(
        control.HostChange(c.name, c.action, c.details, problems.get(c.name, ""))
        for c in planned.changes
    )
    return control.Applied(changes, planned.steps, planned.unchanged)
