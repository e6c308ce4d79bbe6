"""Putting back what others took away: from an event to a network as it should be.

    events ─► doubts (drift.py) ─► a look ─► nothing to do: it was ours, or is right
                                     │
                                     └─► drift: told, put back, sockets opened anew

Rules of this file: a look at the network decides, never an event by itself; what is put
back is what the plan says, in its order; a host that is not put back stands in nobody's
way, and why it is not is told; with ``mend`` off everything is told and nothing done.
"""

import asyncio
import contextlib
import os
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from vnsmail.directory import Directory
from vnsmail.errors import VnsmailError
from vnsmail.log import logger
from vnsmail.model import MACHINE, Context, HostName, VirtualHost
from vnsmail.net.plan import Step
from vnsmail.net.watch import Heard, Lost, Watch
from vnsmail.settings import NetworkSettings
from vnsmail.supervisor import control
from vnsmail.supervisor.drift import Doubts, Interest, Patience
from vnsmail.supervisor.network import Network

SETTLE = 0.1
"""Seconds after the first event of a deed in which the others of it come."""

ONE_BY_ONE = 8
"""Hosts that are looked at each for itself; with more of them all are."""

REST = 9
"""How much longer than a look at everything the pause after it is, unless the looks
are known to be for certain hosts: a link that flaps must not keep us busy."""

MOST_HEARD = 20_000
"""Events kept until there is time for them; with more, everything is looked at."""

BLIND = 10.0
"""Seconds after which it is tried again to look at a network that could not be seen."""

REMEMBERED = 50
"""Drifts told in status."""

NOBODY = "no host"
"""Stands for what is left over, in what is told."""

log = logger("network")


@dataclass(frozen=True, slots=True)
class Ward:
    """What mending needs of the hosts of a root (supervisor/hosts.py)."""

    directory: Directory
    network: Network
    changing: asyncio.Lock
    """Held by whoever changes hosts."""
    broken: Callable[[], dict[HostName, str]]
    """Hosts whose network could not be made: tried again by themselves."""
    try_again: Callable[[], Awaitable[None]]
    """Try those; the lock is held."""
    reopen: Callable[[], Awaitable[None]]
    """Open sockets anew where a namespace was made anew; the lock is held."""


class Mending:
    """Watches the network of one root, and puts it back."""

    def __init__(self, ward: Ward, instance: str, settings: NetworkSettings) -> None:
        self._ward = ward
        self._network = ward.network
        self._instance = instance
        self._settings = settings
        self._patience = Patience()
        self._heard: deque[Heard] = deque()
        self._pending = Doubts(everything=True)
        self._woken = asyncio.Event()
        self._states: dict[str, tuple[object, ...]] = {}
        self._rested_at = 0.0
        self._waiting: dict[str, float] = {}
        """What is held back, and until when: hosts, the guard of the machine."""
        self._told: dict[str, tuple[str, ...]] = {}
        """What was told and not put back, not to be told again and again."""
        self._watch: Watch | None = None
        self.watching = "not watched yet"
        """How much is heard of at once, for people."""
        self.drifts: deque[control.Drift] = deque(maxlen=REMEMBERED)
        self.counts: Counter[str] = Counter()
        """Drifts by host since the start."""

    async def run(self) -> None:
        """Watch and mend until cancelled."""
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            self._begin(loop, stack)
            sweep_at = time.monotonic() + self._settings.sweep
            while True:
                await self._wait(sweep_at)
                sweep = time.monotonic() >= sweep_at
                self._pending.everything |= sweep
                await self._look_soon(sweep=sweep)
                if sweep:
                    sweep_at = time.monotonic() + self._settings.sweep

    def _begin(
        self, loop: asyncio.AbstractEventLoop, stack: contextlib.ExitStack
    ) -> None:
        try:
            watch = stack.enter_context(Watch())
        except OSError as error:
            self.watching = (
                f"looked at every {self._settings.sweep:.0f} s only: {error}"
            )
            log.warning("network.unwatched", reason=str(error))
            return
        self._watch = watch
        self.watching = "watched, with all namespaces"
        if not watch.everywhere:
            self.watching = (
                "watched, but within namespaces (it takes CAP_NET_BROADCAST)"
            )
        for number in watch.filenos():
            loop.add_reader(number, self._hear)
            stack.callback(loop.remove_reader, number)

    def _hear(self) -> None:
        if self._watch is None:
            return
        for each in self._watch.read():
            if isinstance(each, Lost) or len(self._heard) >= MOST_HEARD:
                self._pending.everything = self._pending.lost = True
                self._heard.clear()
            else:
                self._heard.append(each)
        if self._heard or self._pending:
            self._woken.set()

    async def _wait(self, sweep_at: float) -> None:
        until = min([sweep_at, *self._waiting.values()])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                await self._woken.wait()

    # A look ----------------------------------------------------------------------

    async def _look_soon(self, *, sweep: bool) -> None:
        await asyncio.sleep(SETTLE)
        async with self._ward.changing:
            try:
                await self._look(sweep=sweep)
            except (VnsmailError, OSError) as error:
                log.warning("network.not_looked_at", reason=str(error))
                self._pending.everything = True
                self._waiting[NOBODY] = time.monotonic() + BLIND

    async def _look(self, *, sweep: bool) -> None:
        """Find what is not as it should be, and put it back; the lock is held."""
        hosts = {host.name: host for host in self._ward.directory.hosts()}
        doubts = await self._doubts(hosts, sweep=sweep)
        if not doubts:
            return
        broken = self._ward.broken()
        if broken and doubts.links:
            await self._ward.try_again()
            broken = self._ward.broken()
        steps = await self._steps(hosts, doubts)
        drifted: dict[str, list[Step]] = {}
        for step, meant in self._network.meant(steps, hosts.values()):
            if meant not in broken:
                drifted.setdefault(meant or NOBODY, []).append(step)
        for name in self._told.keys() - drifted.keys():
            if doubts.everything or name in doubts.hosts:
                del self._told[name]
        if drifted:
            await self._mend(hosts, steps, drifted)
        await self._mend_guards(hosts, doubts, sweep=sweep)
        known = (*hosts, MACHINE, NOBODY)
        self._patience.forget([*known, *map(_guard_of, known)])

    async def _doubts(
        self, hosts: dict[HostName, VirtualHost], *, sweep: bool
    ) -> Doubts:
        """Take what is in doubt by now."""
        interest = Interest(hosts.values(), self._instance, os.getpid())
        watch = self._watch
        fresh: set[str] = set()
        if watch is not None and watch.everywhere:
            fresh = await asyncio.to_thread(watch.follow, list(interest.spaces))
        self._woken.clear()
        doubts, self._pending = self._pending, Doubts()
        heard, self._heard = self._heard, deque()
        for each in heard:
            interest.judge(each.place, each.event, self._states, doubts)
        doubts.hosts |= {interest.spaces[name] for name in fresh}
        now = time.monotonic()
        for name in [n for n, when in self._waiting.items() if when <= now]:
            del self._waiting[name]
            if name in hosts:
                doubts.hosts.add(HostName(name))
            elif name == NOBODY:
                doubts.everything = True
        if doubts.everything and not sweep and now < self._rested_at:
            doubts.everything, self._pending.everything = False, True
            self._waiting[NOBODY] = self._rested_at
        return doubts

    async def _steps(
        self, hosts: dict[HostName, VirtualHost], doubts: Doubts
    ) -> tuple[Step, ...]:
        wanted = list(hosts.values())
        if doubts.everything or len(doubts.hosts) > ONE_BY_ONE:
            doubts.everything = True
            begin = time.monotonic()
            steps = self._network.steps(wanted, await self._network.observe())
            now = time.monotonic()
            self._rested_at = now + REST * (now - begin)
            return steps
        found: list[Step] = []
        for name in sorted(doubts.hosts & hosts.keys()):
            actual = await self._network.observe(name)
            found += self._network.steps(wanted, actual, name)
        return tuple(found)

    # Putting back ----------------------------------------------------------------

    async def _mend(
        self,
        hosts: dict[HostName, VirtualHost],
        steps: Sequence[Step],
        drifted: dict[str, list[Step]],
    ) -> None:
        now = time.monotonic()
        if not self._settings.mend:
            for name, missing in drifted.items():
                self._tell_once(
                    name, _words(missing), "not mended: network.mend is off"
                )
            return
        held = {name for name in drifted if self._patience.ready_at(name) > now}
        for name in held:
            self._waiting[name] = self._patience.ready_at(name)
            text = "held back: it was taken away again and again"
            self._tell_once(name, _words(drifted[name]), text)
        todo = [s for name in drifted if name not in held for s in drifted[name]]
        chosen = {id(step) for step in todo}
        problems = await self._network.mend(
            hosts.values(), [step for step in steps if id(step) in chosen]
        )
        for name in [name for name in drifted if name not in held]:
            self._patience.mended(name, time.monotonic())
            problem = problems.get(HostName(name), "")
            self._told.pop(name, None)
            self._tell(
                name, _words(drifted[name]), f"not mended: {problem}" if problem else ""
            )
        self._ward.broken().update(problems)
        await self._ward.reopen()

    async def _mend_guards(
        self, hosts: dict[HostName, VirtualHost], doubts: Doubts, *, sweep: bool
    ) -> None:
        for name, process in doubts.guards.items():
            by = f" by {process}" if process else ""
            what = (f"rules of the guard changed{by}",)
            if not self._settings.mend:
                self._tell(name, what, "not mended: network.mend is off")
            elif self._patience.ready_at(_guard_of(name)) > time.monotonic():
                self._pending.guards[name] = process
                self._waiting[name] = self._patience.ready_at(_guard_of(name))
            else:
                await self._guard_anew(name, hosts)
                self._patience.mended(_guard_of(name), time.monotonic())
                self._tell(name, what, "")
        if self._settings.mend and (sweep or doubts.lost):
            good = [h for h in hosts.values() if h.name not in self._ward.broken()]
            for name in await self._network.guard(good, anew=doubts.lost):
                if not doubts.lost:
                    self._tell(name, ("rules of the guard were missing",), "")

    async def _guard_anew(self, name: str, hosts: dict[HostName, VirtualHost]) -> None:
        for host in hosts.values():
            aliased = name == MACHINE and host.context is Context.ALIAS
            if host.name == name or aliased:
                await self._network.guard_host(host, hosts.values(), anew=True)
                return

    # Telling ---------------------------------------------------------------------

    def _tell_once(self, name: str, what: tuple[str, ...], problem: str) -> None:
        if self._told.get(name) != what:
            self._told[name] = what
            self._tell(name, what, problem)

    def _tell(self, name: str, what: tuple[str, ...], problem: str) -> None:
        self.counts[name] += 1
        self.drifts.append(control.Drift(time.time(), name, what, problem))
        log.warning(
            "network.drift",
            host=name,
            missing=list(what),
            mended=not problem,
            **({"reason": problem} if problem else {}),
        )


def _guard_of(name: str) -> str:
    """Return what the rules of a host are called where patience is counted."""
    return f"guard {name}"


def _words(steps: Sequence[Step]) -> tuple[str, ...]:
    return tuple(step.describe() for step in steps)
