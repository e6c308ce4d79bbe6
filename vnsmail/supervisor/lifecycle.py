"""What becomes of a virtual host between its creation and its end.

Rules of this file: the directory is written first, in one transaction: whatever dies
then, the next start finishes. What fails is taken back, and the host is as it was. An
address that goes is first spoken from and to no more, then left alone until what is
being said there is finished, and then removed; nobody else waits for that.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from vnsmail.directory import Directory
from vnsmail.engines import protocol as engine
from vnsmail.errors import BadInput, NotFound, StateUnusable, VnsmailError
from vnsmail.log import logger
from vnsmail.model import (
    HostName,
    Owner,
    SourceAddress,
    VirtualHost,
    host_name,
    ip_address,
)
from vnsmail.net.guard_rules import desired as guarded
from vnsmail.settings import Layout
from vnsmail.supervisor import control, relay
from vnsmail.supervisor.altered import Value, altered
from vnsmail.supervisor.converge import Change, Tenant
from vnsmail.supervisor.drain import Drain
from vnsmail.supervisor.engines import check_installed
from vnsmail.supervisor.explaining import explained
from vnsmail.supervisor.folders import move_owner
from vnsmail.supervisor.hosts import Hosts
from vnsmail.supervisor.network import Network
from vnsmail.supervisor.services import Services

LONGEST_DRAIN = 3600.0
"""Seconds; a message of the largest size over the slowest line takes less."""

LifecycleRequest: TypeAlias = (
    control.ChangeHost
    | control.ChangeAddresses
    | control.RenameHost
    | control.GetTally
    | control.ExplainHost
)

log = logger("hosts")


class Lifecycle:
    """Changes hosts that exist."""

    def __init__(
        self,
        hosts: Hosts,
        layout: Layout,
        directory: Directory,
        services: Services,
        network: Network,
    ) -> None:
        self._hosts = hosts
        self._layout = layout
        self._directory = directory
        self._services = services
        self._network = network
        self._drain = Drain(directory, services, network, hosts.changing)
        self._draining: set[HostName] = set()

    # What can be asked -----------------------------------------------------------

    async def handle(self, request: LifecycleRequest) -> control.Answer:
        """Answer a request about a host that exists."""
        match request:
            case control.ChangeHost():
                return await self.change(request)
            case control.ChangeAddresses():
                return await self.change_addresses(request)
            case control.RenameHost():
                return await self.rename(request)
            case control.GetTally():
                return await self.tally(request)
            case control.ExplainHost():
                host = self._active(host_name(request.name))
                service = self._hosts.service(host)
                return await explained(host, service, request.address, self._services)

    async def change(self, request: control.ChangeHost) -> control.Changed:
        """Change facts of a host.

        Raises:
            NotFound: there is no such host.
            BadInput: there cannot be such a host; nothing is changed.
            VnsmailError: it cannot be had now; it is as it was.
        """
        if "addresses" in request.changes or "users" in request.changes:
            remedy = "use `vnsmail host address` and `vnsmail user` for these"
            raise BadInput("virtual host", request.name, remedy)
        name = host_name(request.name)
        if request.changes.get("suspended") is False and self._directory.move(name):
            return await self._stay(name, request)
        return await self._change(
            name,
            request.changes,
            dry_run=request.dry_run,
            password=request.relay_password,
        )

    async def _stay(
        self, name: HostName, request: control.ChangeHost
    ) -> control.Changed:
        """Have a host that was packed send and receive here again.

        Raises:
            BadInput: it was not said that it is nowhere else.
        """
        if not request.force:
            remedy = (
                "it was packed, and its mail would go twice if it was unpacked "
                f"somewhere; `vnsmail host resume --force {name}` if it never will be"
            )
            raise BadInput("virtual host", name, remedy)
        if request.dry_run:
            return control.Changed(("moved yes → no",), (), changed=False)
        self._directory.cancel_move(name)
        log.warning("host.move_taken_back", host=name)
        done = await self._change(name, request.changes, dry_run=False)
        await self._hosts.refresh(name)
        return control.Changed(("moved yes → no", *done.details), done.steps, True)

    async def change_addresses(
        self, request: control.ChangeAddresses
    ) -> control.Changed:
        """Add addresses to a host and take some from it, which are drained first.

        Raises: as ``change``.
        """
        if not 0 <= request.drain <= LONGEST_DRAIN:
            remedy = f"give 0 to {LONGEST_DRAIN:g} seconds"
            raise BadInput("drain", f"{request.drain:g}", remedy)
        name = host_name(request.name)
        if request.remove and name in self._draining:
            remedy = "an address of it is being drained; try again after that"
            raise BadInput("virtual host", name, remedy)
        host = self._active(name)
        wanted = _addresses(host, request)
        if request.dry_run or not request.remove:
            changes: dict[str, Value] = {"addresses": wanted}
            return await self._change(
                name, changes, dry_run=request.dry_run, probe=not request.no_probe
            )
        self._draining.add(name)
        try:
            done = await self._change(name, {"addresses": wanted}, dry_run=False)
            await self._drain.run(name, request.drain)
        finally:
            self._draining.discard(name)
        return done

    async def rename(self, request: control.RenameHost) -> control.Changed:
        """Give a host another name, and all that is its own.

        Raises: as ``change``.
        """
        old, new = host_name(request.name), host_name(request.new_name)
        async with self._hosts.changing:
            before = self._active(old)
            if old == new:
                return control.Changed((), (), changed=False)
            after = _renamed(before, new, keep=request.keep_domain)
            self._directory.check_claims(after, renamed_from=old)
            rest = [host for host in self._directory.hosts() if host.name != old]
            guarded([*rest, after], self._layout.instance)
            actual = await self._network.observe()
            steps = self._network.steps([*rest, after], actual)
            details: tuple[str, ...] = (f"name {old} → {new}",)
            if before.domains[1:] != after.domains[1:]:
                details += (f"domains {' '.join(after.domains[1:]) or 'none'}",)
            described = tuple(step.describe() for step in steps)
            if request.dry_run:
                return control.Changed(details, described, changed=False)
            await self._rename(before, after, rest)
        log.info("host.renamed", host=new, before=old)
        return control.Changed(details, described, changed=True)

    async def tally(self, request: control.GetTally) -> control.Told:
        """Return what has been counted for a host.

        Raises:
            NotFound: there is no such host, or nobody serves it.
        """
        name = self._active(host_name(request.name)).name
        answer = await self._services.asked(name, lambda n: engine.Tell(n, name))
        if not isinstance(answer, engine.Told):
            raise NotFound("virtual host", name, "nobody counts for it")
        return control.Told(answer.tally)

    # Within ------------------------------------------------------------------------

    def _active(self, name: HostName) -> VirtualHost:
        host = self._directory.host(name)
        if name in self._directory.unfinished():
            remedy = f"it is half made or destroyed; run `vnsmail host destroy {name}`"
            raise NotFound("virtual host", name, remedy)
        return host

    async def _change(
        self,
        name: HostName,
        changes: dict[str, Value],
        *,
        dry_run: bool,
        probe: bool = True,
        password: str = "",
    ) -> control.Changed:
        async with self._hosts.changing:
            users = tuple(u.local_part for u in self._directory.users(name))
            before = Tenant(self._active(name), users)
            actual = await self._network.observe(name)
            after = altered(before, changes, actual)
            change = Change(before, after)
            if password:
                checked_password(after.facts, password)
            if before == after:
                return await self._new_password(before.facts, password, dry_run=dry_run)
            self._directory.check_claims(after.facts)
            if before.facts.engine is not after.facts.engine:
                check_installed(after.facts.engine)
                if self._services.engines is not None:
                    await self._services.engines.refuse_if_queued(before.facts)
            had = {each.address for each in before.facts.addresses}
            new = tuple(a for a in after.facts.addresses if a.address not in had)
            if new and probe:
                await self._network.refuse_in_use(replace(after.facts, addresses=new))
            rest = [host for host in self._directory.hosts() if host.name != name]
            guarded([*rest, after.facts], self._layout.instance)
            steps = self._network.steps([*rest, after.facts], actual, name)
            said = control.Changed(
                change.details(), tuple(step.describe() for step in steps), changed=True
            )
            if dry_run:
                return control.Changed(said.details, said.steps, changed=False)
            await self._make_it_so(before, after, rest, password)
        log.info("host.changed", host=name, details=said.details)
        return said

    async def _make_it_so(
        self,
        before: Tenant,
        after: Tenant,
        rest: Sequence[VirtualHost],
        password: str,
    ) -> None:
        """Write down a change and bring it about; if that fails, all is as before."""
        name, wanted = after.facts.name, after.facts.relay
        had_password = relay.kept(self._layout, name)
        if password and wanted is not None:
            # It is told to nobody until the relay is the one that it is for.
            relay.put(self._layout, name, wanted, password)
        self._directory.change(after.facts)
        try:
            await self._carry_out(Change(before, after), rest)
        except BaseException:
            if password:
                relay.put_back(self._layout, name, had_password)
            await asyncio.shield(self._undo(Change(after, before), rest))
            raise
        if wanted is None:
            relay.forget(self._layout, name)

    async def _new_password(
        self, host: VirtualHost, password: str, *, dry_run: bool
    ) -> control.Changed:
        """Keep another password for the relay of a host that is as it is to be."""
        if not password or host.relay is None:
            return control.Changed((), (), changed=False)
        details = (f"relay {host.relay.server} another password",)
        if not dry_run:
            relay.put(self._layout, host.name, host.relay, password)
            await self._services.serve_or_note(self._hosts.service(host))
        return control.Changed(details, (), changed=not dry_run)

    async def _carry_out(
        self, change: Change, rest: Sequence[VirtualHost], *, linger: bool = True
    ) -> None:
        """Bring about what the directory says of one host.

        Raises:
            VnsmailError: the network or the worker cannot have it so.
        """
        assert change.before is not None  # noqa: S101  both are there, as it is a change
        assert change.after is not None  # noqa: S101
        before, host = change.before.facts, change.after.facts
        name = host.name
        if change.reopens or not linger:
            self._network.lingering.pop(name, None)
        else:
            self._linger(before, host)
        if change.reopens:
            await self._release(name)
        hosts = [*rest, host]
        await self._network.fence(hosts)
        actual = await self._network.observe(name)
        await self._network.apply(self._network.steps(hosts, actual, name))
        if before.addresses != host.addresses or change.reopens:
            await self._network.guard_host(host, hosts)
        self._network.remade(())
        await self._services.serve(self._hosts.service(host))

    def _linger(self, before: VirtualHost, host: VirtualHost) -> None:
        """Keep addresses that go until nothing is said there; see ``drain``."""
        kept = {each.address for each in host.addresses}
        earlier = (*self._network.lingering.get(host.name, ()), *before.addresses)
        gone = tuple(each for each in earlier if each.address not in kept)
        if gone:
            self._network.lingering[host.name] = gone
        else:
            self._network.lingering.pop(host.name, None)

    async def _undo(self, back: Change, rest: Sequence[VirtualHost]) -> None:
        """Make a host what it was; what fails now is tried again by whoever mends."""
        assert back.after is not None  # noqa: S101  both are there, as it is a change
        host = back.after.facts
        try:
            self._directory.change(host)
            await self._carry_out(back, rest, linger=False)
        except VnsmailError as error:
            self._hosts.broken[host.name] = f"half changed: {error}"
            await self._services.serve_or_note(self._hosts.service(host))
            log.warning("host.undo_failed", host=host.name, reason=str(error))

    async def _release(self, name: HostName) -> None:
        try:
            await self._services.release(name)
        except VnsmailError as error:
            log.warning("host.release_failed", host=name, reason=str(error))

    async def _rename(
        self, before: VirtualHost, after: VirtualHost, rest: Sequence[VirtualHost]
    ) -> None:
        """Rename: from the transaction on, what fails is finished later."""
        if self._layout.owner_folder(Owner(after.name)).exists():
            folder = self._layout.owner_folder(Owner(after.name))
            raise StateUnusable(str(folder), "it is there already", "move it away")
        self._network.lingering.pop(before.name, None)
        await self._release(before.name)
        try:
            self._directory.rename(before.name, after)
        except VnsmailError:
            await self._services.serve_or_note(self._hosts.service(before))
            raise
        try:
            await self._take_new_name(before.name, after, rest)
        except VnsmailError as error:
            self._hosts.broken[after.name] = f"half renamed: {error}"
            raise

    async def _take_new_name(
        self, old: HostName, host: VirtualHost, rest: Sequence[VirtualHost]
    ) -> None:
        await asyncio.to_thread(move_owner, self._layout, Owner(old), Owner(host.name))
        self._directory.finish_rename(host.name)
        # The old network first: the addresses are the same.
        for name, hosts in ((old, rest), (host.name, [*rest, host])):
            await self._network.fence(hosts)
            actual = await self._network.observe(name)
            await self._network.apply(self._network.steps(hosts, actual, name))
        await self._network.unguard(old, [*rest, host])
        await self._network.guard_host(host, [*rest, host])
        self._network.remade(())
        await self._services.serve(self._hosts.service(host))


def checked_password(host: VirtualHost, password: str) -> None:
    """Check that a password can be that of a host at its relay.

    Raises:
        BadInput: it cannot.
    """
    if host.relay is None:
        raise BadInput("virtual host", host.name, "it has no relay to sign in at")
    relay.check(host.relay, password)


def _renamed(host: VirtualHost, name: HostName, *, keep: bool) -> VirtualHost:
    others = [each for each in host.domains if each != name]
    if not keep:
        others = [each for each in others if each != host.name]
    return replace(host, name=name, domains=(name, *others))


def _addresses(host: VirtualHost, request: control.ChangeAddresses) -> tuple[str, ...]:
    """Return the addresses a host is to have.

    Raises:
        BadInput: one is not its own, or it would have none.
    """
    added = [SourceAddress.parse(text) for text in request.add]
    removed = {ip_address(text.partition("/")[0]) for text in request.remove}
    own = {each.address for each in host.addresses}
    for address in removed - own:
        raise NotFound("address", str(address), f"it is none of {host.name}")
    for each in added:
        if each.address in own - removed:
            raise BadInput("address", str(each), f"{host.name} has it")
    kept = [each for each in host.addresses if each.address not in removed]
    wanted = tuple(str(each) for each in (*kept, *added))
    if not wanted:
        remedy = "it is the last one; add another first, or destroy the host"
        raise BadInput("address", ", ".join(request.remove), remedy)
    return wanted
