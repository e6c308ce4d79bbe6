"""What others did to the network: whose it is, and how often it is put back. Pure.

Rules of this file: an event says where to look and never what is there, so that what we
did ourselves costs a look and is no drift; what cannot be told to be of no host is
looked for everywhere; whoever keeps fighting over a host is answered less and less
often, and nobody else waits for it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from vnsmail.model import MACHINE, Context, HostName, VirtualHost
from vnsmail.net import guard_rules, names
from vnsmail.net.events import Event, Kind

AT_ONCE = 3
"""How often a host is mended without a pause."""

LONGEST_PAUSE = 60.0
"""Seconds between two mendings of one host, at most."""

QUIET = 120.0
"""Seconds without drift after which a host counts as left in peace."""

_USUAL_TABLES = frozenset({0, 253, 254, 255})
"""Tables of routes that the machine has by itself (linux/rtnetlink.h)."""


@dataclass(slots=True)
class Doubts:
    """Where something may be otherwise than it should."""

    everything: bool = False
    hosts: set[HostName] = field(default_factory=set)
    guards: dict[str, str] = field(default_factory=dict)
    """Hosts, or MACHINE for all with aliases, whose rules somebody changed, with what
    that process calls itself."""
    lost: bool = False
    """Something was not heard."""
    links: bool = False
    """A link that hosts use has come, gone or changed: what could not be may be now."""

    def __bool__(self) -> bool:
        return bool(self.everything or self.hosts or self.guards or self.links)


class Interest:
    """Which events matter, with these hosts.

    Args:
        hosts: all of them.
        instance: whose they are.
        own: number of this process; what it asked of nftables is no drift.
    """

    def __init__(self, hosts: Iterable[VirtualHost], instance: str, own: int) -> None:
        self._own = own
        self._filter = guard_rules.table_name(instance)
        self.spaces: dict[str, HostName] = {}
        self._ports: dict[str, HostName] = {}
        self._addresses: dict[object, HostName] = {}
        self._links: set[str] = set()
        for host in hosts:
            if host.context is Context.NAMESPACE:
                self.spaces[names.namespace(instance, host.name)] = host.name
                self._ports[names.link(instance, host.name)] = host.name
            self._links.add(host.link)
            self._addresses |= dict.fromkeys(
                (each.address for each in host.addresses), host.name
            )

    def judge(
        self,
        place: str | None,
        event: Event,
        states: dict[str, tuple[object, ...]],
        doubts: Doubts,
    ) -> None:
        """Note what an event puts in doubt.

        Args:
            place: namespace; empty for the machine's; None for one that is nobody's.
            event: what was heard.
            states: what is known of the machine's links; kept up to date.
            doubts: where it is noted.
        """
        if place is None:
            return
        if place:
            self._judge_inside(place, event, doubts)
        elif event.kind is Kind.LINK:
            self._judge_link(event, states, doubts)
        elif event.kind is Kind.FILTER:
            self._judge_filter(MACHINE, event, doubts)
        elif event.kind is not Kind.NAMESPACE:
            found = {
                self._addresses[each]
                for each in event.addresses
                if each in self._addresses
            }
            doubts.hosts |= found
            if not found and event.gone and event.table not in _USUAL_TABLES:
                doubts.everything = True

    def _judge_inside(self, place: str, event: Event, doubts: Doubts) -> None:
        host = self.spaces.get(place)
        if host is None:
            return
        if event.kind is not Kind.FILTER:
            doubts.hosts.add(host)
        else:
            self._judge_filter(host, event, doubts)

    def _judge_filter(self, whose: str, event: Event, doubts: Doubts) -> None:
        if event.sender == self._own:
            return
        if event.name == self._filter:
            doubts.guards.setdefault(whose, "")
        elif not event.name and doubts.guards.get(whose) == "":
            # The generation comes after what it is of.
            doubts.guards[whose] = event.process

    def _judge_link(
        self, event: Event, states: dict[str, tuple[object, ...]], doubts: Doubts
    ) -> None:
        host = self._ports.get(event.name)
        if host is not None:
            doubts.hosts.add(host)
        elif event.name in self._links:
            state = (event.gone, *event.state)
            if states.get(event.name) != state:
                states[event.name] = state
                doubts.everything = doubts.links = True


@dataclass(slots=True)
class _Fight:
    times: int
    last: float
    next: float


class Patience:
    """How long a host waits until it is mended again."""

    def __init__(self) -> None:
        self._fights: dict[str, _Fight] = {}

    def ready_at(self, host: str) -> float:
        """Return the moment from which a host may be mended."""
        fight = self._fights.get(host)
        return fight.next if fight else 0.0

    def mended(self, host: str, now: float) -> float:
        """Note that a host was mended; returns the pause before the next time."""
        fight = self._fights.get(host)
        if fight is None or now - fight.last > QUIET:
            fight = self._fights[host] = _Fight(0, now, now)
        fight.times += 1
        fight.last = now
        pause = 0.0
        if fight.times >= AT_ONCE:
            # Not 2 ** times, which grows beyond what a float holds.
            pause = min(2.0 ** min(fight.times - AT_ONCE, 10), LONGEST_PAUSE)
        fight.next = now + pause
        return pause

    def forget(self, hosts: Iterable[str]) -> None:
        """Keep nothing of hosts that are no more; ``hosts`` are those that are."""
        kept = set(hosts)
        self._fights = {h: fight for h, fight in self._fights.items() if h in kept}
