"""The network of a root, brought from what it is to what it should be.

Rules of this file: it decides nothing but in what order things are tried (net/plan.py
decides). Netlink is spoken in threads, as pyroute2 blocks; a change that was begun is
waited for, also by one who is cancelled: two at once would see each other half done.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TypeVar

from vnsmail.errors import GuardUnavailable, NetworkStepFailed, Taken
from vnsmail.log import logger
from vnsmail.model import (
    Context,
    HostName,
    IPAddress,
    SourceAddress,
    Uplink,
    VirtualHost,
)
from vnsmail.net import cgroups, guard, in_use, names
from vnsmail.net.apply import apply
from vnsmail.net.guard_rules import SMTP_PORTS
from vnsmail.net.observe import observe
from vnsmail.net.plan import Actual, Desired, Step, plan
from vnsmail.net.steps import MakeNamespace
from vnsmail.supervisor import control

T = TypeVar("T")

log = logger("network")

NO_NAMESPACE = 2**63 - 1
"""An identity that no namespace has: they are counted from 1."""


class Network:
    """The network of one root, as the kernel has it."""

    def __init__(self, instance: str, port: int = SMTP_PORTS[0]) -> None:
        """``port`` is the one mail is sent to, which is guarded as well."""
        self._instance = instance
        self._ports = tuple(dict.fromkeys((*SMTP_PORTS, port)))
        self._unguarded: dict[str, str] = {}
        """Hosts without a guard, and why: told when asked, and no reason to stop."""
        self.made: set[HostName] = set()
        """Hosts whose namespace was made: sockets in an earlier one reach nothing."""
        self.lingering: dict[HostName, tuple[SourceAddress, ...]] = {}
        """Addresses that hosts have no more, and that stay until nothing is said from
        or to them. In no file: a supervisor that starts anew removes them at once."""
        self._identities: dict[str, int] = {}
        """Which the namespaces are that carry our mark, as last seen or made."""
        self._fenced = True
        """There may be a fence; it is not known before it was asked for."""

    async def observe(self, only: HostName | None = None) -> Actual:
        """Return the network as it is.

        Args:
            only: look into no other host's namespace: with a thousand hosts that is
                what takes its time. Plan then for this host only.

        Raises:
            NetworkStepFailed: the kernel does not let us look.
        """
        try:
            actual = await _to_the_end(lambda: observe(self._instance, only))
        except OSError as error:
            detail = error.strerror or str(error)
            raise NetworkStepFailed(
                "look at the network", error.errno or 0, detail
            ) from None
        seen = {each.name: each.identity for each in actual.namespaces}
        if only is None:
            self._identities = seen
        else:
            # One that carries our mark no more is not ours, whatever its name is.
            self._identities.pop(names.namespace(self._instance, only), None)
            self._identities |= seen
        return actual

    def identity(self, host: HostName) -> int:
        """Return which the namespace of a host is: none other will do for it."""
        name = names.namespace(self._instance, host)
        return self._identities.get(name, 0) or NO_NAMESPACE

    def steps(
        self,
        hosts: Iterable[VirtualHost],
        actual: Actual,
        only: HostName | None = None,
    ) -> tuple[Step, ...]:
        """Return what has to be done so that there are these hosts and no others.

        With ``only``, what has to be done for that host, which may be one that goes.
        """
        lasting = tuple(self._with_lingering(hosts))
        return plan(Desired(lasting), actual, self._instance, only)

    def _with_lingering(self, hosts: Iterable[VirtualHost]) -> list[VirtualHost]:
        """Return hosts with the addresses that still linger, but for what others have."""
        listed = list(hosts)
        if not self.lingering:
            return listed
        held = {each.address for host in listed for each in host.addresses}
        return [
            replace(
                host,
                addresses=(
                    *host.addresses,
                    *(a for a in self.lingering[host.name] if a.address not in held),
                ),
            )
            if host.name in self.lingering
            else host
            for host in listed
        ]

    async def apply(self, steps: Sequence[Step]) -> None:
        """Do it.

        Raises:
            NetworkStepFailed: the kernel refused a step. Of those after it, some that
                went to the kernel together with it may be done.
        """
        if steps:
            self.made |= {s.host for s in steps if isinstance(s, MakeNamespace)}
            made = await _to_the_end(lambda: apply(steps, self._instance))
            self._identities |= made

    async def in_use(self, new: Iterable[VirtualHost]) -> dict[IPAddress, str]:
        """Return those of these hosts' addresses that somebody has, and who.

        Asked on the links that the hosts will use; takes half a second or so, however
        many they are, and none if there is nobody to ask for. A tagged network is not
        asked, for there may be no link to it yet.
        """
        asked = [(h.link, a.address) for h in new if not h.vlan for a in h.addresses]
        if not asked:
            return {}
        return await _to_the_end(lambda: in_use.holders(asked))

    async def refuse_in_use(self, new: VirtualHost) -> None:
        """Refuse a host if somebody has one of its addresses.

        Raises:
            Taken: somebody has; it says who.
        """
        for address, hardware in (await self.in_use([new])).items():
            remedy = taken_by(hardware, new.link)
            raise Taken("address", str(address), remedy)

    def concerned(
        self, steps: Iterable[Step], hosts: Iterable[VirtualHost]
    ) -> dict[HostName, list[str]]:
        """Return what has to be done for each of these hosts, in words."""
        holders = self._holders(hosts)
        found: dict[HostName, list[str]] = {}
        for step in steps:
            name = _meant(step, holders)
            if name is not None:
                found.setdefault(name, []).append(step.describe())
        return found

    async def converge(
        self,
        hosts: Sequence[VirtualHost],
        going: Sequence[VirtualHost] = (),
        only: Collection[HostName] | None = None,
    ) -> dict[HostName, str]:
        """Bring the network to these hosts; returns who cannot be had, and why.

        One whose network cannot be made stands in nobody else's way, nor does what
        should go and cannot. What was half made for one who cannot be had goes again.

        Args:
            hosts: all there should be.
            going: those that should not be any more, to be told which of them stay.
            only: leave alone what is not of these hosts.
        """
        problems: dict[HostName, str] = {}
        try:
            await self._do_what_can_be_done(hosts, going, problems, only)
            if problems:
                good = [host for host in hosts if host.name not in problems]
                await self._do_what_can_be_done(good, going, problems, only)
        except NetworkStepFailed as error:
            log.warning("network.unseen", reason=str(error))
            everyone = (host.name for host in (*hosts, *going))
            return dict.fromkeys(everyone, str(error)) | problems
        good = [host for host in hosts if host.name not in problems]
        if only is None:
            self._unguarded.clear()
            await self.guard(good)
        else:
            for host in good:
                if host.name in only:
                    await self.guard_host(host, hosts)
        return problems

    async def mend(
        self, hosts: Iterable[VirtualHost], steps: Sequence[Step]
    ) -> dict[HostName, str]:
        """Perform steps; returns whose could not be performed, and why.

        Args:
            hosts: whose steps they are.
            steps: in the order of the plan.
        """
        everyone = list(hosts)
        holders = self._holders(everyone)
        problems: dict[HostName, str] = {}
        try:
            # Nobody is routed, for a moment either, without the fence.
            await self.fence(everyone)
        except GuardUnavailable as error:
            unfenced = {h.name for h in everyone if h.uplink is Uplink.ROUTED}
            problems |= {
                name: str(error)
                for step in steps
                if (name := _meant(step, holders)) in unfenced
            }
            steps = [s for s in steps if _meant(s, holders) not in unfenced]
        await self._perform(steps, holders, problems)
        return problems

    def meant(
        self, steps: Iterable[Step], hosts: Iterable[VirtualHost]
    ) -> list[tuple[Step, HostName | None]]:
        """Return steps with the host of these for which each is; None: for none."""
        holders = self._holders(hosts)
        return [(step, _meant(step, holders)) for step in steps]

    def remade(self, served: Collection[str]) -> list[HostName]:
        """Return those of the served whose namespace was made since this was asked."""
        made, self.made = self.made, set()
        return sorted(made.intersection(served))

    # The guard ---------------------------------------------------------------

    async def guard(
        self, hosts: Sequence[VirtualHost], *, anew: bool = False
    ) -> frozenset[str]:
        """Let the kernel guard the sources of all hosts.

        Returns those whose rules were not as wanted. With ``anew`` all are written
        again, for somebody may have taken some out.
        """
        lasting = self._with_lingering(hosts)
        renewed = await self._guard(
            hosts, lambda: guard.apply(lasting, self._instance, self._ports, anew=anew)
        )
        routed = [host for host in hosts if host.uplink is Uplink.ROUTED]
        try:
            if await self.fence(hosts, anew=anew):
                renewed |= {host.name for host in routed}
        except GuardUnavailable as error:
            self._unguarded |= {host.name: str(error) for host in routed}
            log.warning("fence.unavailable", reason=str(error))
        return renewed

    async def fence(self, hosts: Sequence[VirtualHost], *, anew: bool = False) -> bool:
        """Let the machine forward only what is of these hosts, or for them.

        Whoever is routed is fenced first. Returns whether the fence was not as wanted;
        with ``anew`` it is written again.

        Raises:
            GuardUnavailable: it cannot be; none of them must be routed.
        """
        lasting = self._with_lingering(hosts)
        routed = [host for host in lasting if host.uplink is Uplink.ROUTED]
        if not routed and not self._fenced:
            return False
        self._fenced = True
        try:
            changed = await _to_the_end(
                lambda: guard.fence(routed, self._instance, anew=anew)
            )
        except GuardUnavailable:
            if routed:
                raise
            return False
        self._fenced = bool(routed)
        return changed

    async def guard_host(
        self,
        host: VirtualHost,
        hosts: Iterable[VirtualHost],
        *,
        anew: bool = False,
    ) -> None:
        """Let the kernel guard the sources of one host, one of all ``hosts``.

        With ``anew`` its rules are written again, as for ``guard``.
        """
        if host.uplink is Uplink.ROUTED:
            with contextlib.suppress(GuardUnavailable):
                await self.fence(list(hosts), anew=anew)
        if host.context is Context.NAMESPACE:
            (host,) = self._with_lingering([host])
            instance, ports = self._instance, self._ports
            await self._guard(
                [host], lambda: guard.apply_host(host, instance, ports, anew=anew)
            )
        else:
            await self._guard_aliases(hosts, anew=anew)

    async def unguard(self, name: HostName, hosts: Iterable[VirtualHost]) -> None:
        """Forget the guard of a host that is gone; ``hosts`` are those that are left."""
        self._unguarded.pop(name, None)
        with contextlib.suppress(OSError):
            # Programs that run in it still keep it, and its hooks stay in force.
            await _to_the_end(lambda: cgroups.remove(self._instance, name))
        # That of a namespace went with it.
        await self._guard_aliases(hosts)
        with contextlib.suppress(GuardUnavailable):
            await self.fence(list(hosts))

    async def guarded(self, host: VirtualHost) -> control.Guarded:
        """Return how a host is guarded, and what was stopped."""
        name = names.namespace(self._instance, host.name)
        identity = self._identities.get(name, 0)
        try:
            found = await _to_the_end(lambda: guard.counters([host], self._instance))
        except GuardUnavailable as error:
            return control.Guarded(str(error), identity=identity)
        counter = found.get(host.name)
        if counter is None:
            reason = self._unguarded.get(host.name, "it has no guard")
            return control.Guarded(reason, identity=identity)
        return control.Guarded(
            self._unguarded.get(host.name, ""),
            counter.dropped_packets,
            counter.dropped_bytes,
            counter.borrowed_packets,
            counter.forged_packets,
            identity,
        )

    async def counters(
        self, hosts: Iterable[VirtualHost]
    ) -> Mapping[HostName, control.Guarded] | None:
        """Return what was stopped of each host; None where nothing can be guarded."""
        wanted = tuple(hosts)
        try:
            found = await _to_the_end(lambda: guard.counters(wanted, self._instance))
        except GuardUnavailable:
            return None
        return {
            name: control.Guarded(
                self._unguarded.get(name, ""),
                each.dropped_packets,
                each.dropped_bytes,
                each.borrowed_packets,
            )
            for name, each in found.items()
        }

    async def _guard_aliases(
        self, hosts: Iterable[VirtualHost], *, anew: bool = False
    ) -> None:
        lasting = self._with_lingering(hosts)
        aliases = [host for host in lasting if host.context is Context.ALIAS]
        await self._guard(
            aliases,
            lambda: guard.apply(aliases, self._instance, self._ports, anew=anew),
        )

    async def _guard(
        self, hosts: Iterable[VirtualHost], change: Callable[[], object]
    ) -> frozenset[str]:
        for host in hosts:
            self._unguarded.pop(host.name, None)
        try:
            done = await _to_the_end(change)
        except (GuardUnavailable, Taken) as error:
            self._unguarded |= {host.name: str(error) for host in hosts}
            log.warning("guard.unavailable", reason=str(error))
            return frozenset()
        if isinstance(done, guard.Guarded):
            self._unguarded |= done.unguarded
            for name, reason in done.unguarded.items():
                log.warning("guard.unavailable", host=name, reason=reason)
            return done.renewed
        return frozenset()

    async def _do_what_can_be_done(
        self,
        hosts: Sequence[VirtualHost],
        going: Sequence[VirtualHost],
        problems: dict[HostName, str],
        only: Collection[HostName] | None,
    ) -> None:
        try:
            await self.fence([*hosts, *going])
        except GuardUnavailable as error:
            unfenced = {h.name for h in hosts if h.uplink is Uplink.ROUTED}
            problems |= dict.fromkeys(unfenced, str(error))
            hosts = [host for host in hosts if host.name not in unfenced]
        steps = self.steps(hosts, await self.observe())
        holders = self._holders((*going, *hosts))
        # What was half made for one that cannot be had is of none of these hosts.
        mine = [s for s in steps if only is None or _meant(s, holders) in {*only, None}]
        await self._perform(mine, holders, problems)

    async def _perform(
        self,
        steps: Sequence[Step],
        holders: Mapping[object, HostName],
        problems: dict[HostName, str],
    ) -> None:
        while steps:
            try:
                await self.apply(steps)
                break
            except NetworkStepFailed as error:
                said = [step.describe() for step in steps]
                failed = said.index(error.step)
                name = _meant(steps[failed], holders)
                log.warning("network.step_failed", host=name, reason=str(error))
                if name is not None:
                    problems[name] = str(error)
                steps = [
                    step
                    for step in steps[failed + 1 :]
                    if name is None or _meant(step, holders) != name
                ]

    def _holders(self, hosts: Iterable[VirtualHost]) -> dict[object, HostName]:
        return {
            thing: host.name
            for host in hosts
            for thing in _things(self._instance, host)
        }


def taken_by(hardware: str, link: str) -> str:
    """Return what to do about an address that somebody has."""
    return (
        f"{hardware} has it on {link}; choose another, or give --no-probe if that one "
        "answers for all addresses"
    )


def _things(instance: str, host: VirtualHost) -> Iterator[object]:
    """Give the words by which a step can name what is a host's."""
    yield host.name
    yield names.namespace(instance, host.name)
    yield names.link(instance, host.name)
    if host.context is Context.ALIAS or host.uplink is Uplink.ROUTED:
        yield from (each.address for each in host.addresses)


def _meant(step: Step, holders: Mapping[object, HostName]) -> HostName | None:
    """Return the host for which a step is; None if it is for none of these."""
    words = [getattr(step, each.name) for each in fields(step)]
    return next((holders[word] for word in words if word in holders), None)


async def _to_the_end(function: Callable[[], T]) -> T:
    """Run a function in a thread, and wait for its end whatever happens here."""
    running = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        if not running.cancelled() and (error := running.exception()):
            log.warning("network.interrupted", reason=str(error))
        raise
