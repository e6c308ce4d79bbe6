"""How much of a destination one owner asks, by the settings. Pure.

From the general to the particular: all destinations, the exchangers' site, the
recipients' domain; and for each, what is said of one virtual host goes before what is
said of all.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from vnsmail.settings import DeliverySettings, HostDeliverySettings, LimitSettings

MANY_KEYS = 10_000
"""Destinations whose rate is remembered; beyond, those that are free again go."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What one owner may ask of one destination."""

    connections: int
    """At a time."""
    messages_per_connection: int
    messages_per_minute: int
    """0: as many as there are."""


def allowed(
    settings: DeliverySettings,
    owner: str,
    domain: str,
    exchangers: Collection[str] = (),
) -> Allowed:
    """Return what an owner may ask of a domain.

    Args:
        settings: of the whole system.
        owner: a virtual host, or the machine.
        domain: of the recipients, in lower case.
        exchangers: names of its mail exchangers, where they are known.
    """
    said = [*_said(settings, owner, domain, exchangers)]

    def last(name: str) -> int:
        values = [getattr(each, name) for each in said]
        return int(next(value for value in values if value is not None))

    return Allowed(
        last("connections"),
        last("messages_per_connection"),
        last("messages_per_minute"),
    )


def _said(
    settings: DeliverySettings, owner: str, domain: str, exchangers: Collection[str]
) -> Iterator[LimitSettings | DeliverySettings]:
    """Return what was said, the most particular first."""
    host = settings.host.get(owner)
    tables: list[HostDeliverySettings | DeliverySettings] = [settings]
    if host is not None:
        tables.insert(0, host)
    for table in tables:
        if domain in table.destination:
            yield table.destination[domain]
    for table in tables:
        for name, limits in table.site.items():
            if exchangers and all(_within(each, name) for each in exchangers):
                yield limits
    yield from tables


def _within(name: str, site: str) -> bool:
    return name == site or name.endswith(f".{site}")


class Rates:
    """When the next message to a destination may go. Times are of one clock."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def wait(self, key: str, per_minute: int, now: float) -> float:
        """Return the seconds that one more message has to wait, and count it."""
        if not per_minute:
            return 0.0
        at = max(self._next.get(key, now), now)
        if len(self._next) >= MANY_KEYS:
            self._next = {k: t for k, t in self._next.items() if t > now}
        self._next[key] = at + 60.0 / per_minute
        return at - now


@dataclass(slots=True)
class Throttle:
    """What a site showed that it wants less: half of it, a pause, and slowly more."""

    most: int | None = None
    """Connections at a time; None: as many as are allowed."""
    paused_until: float = 0.0
    grows_at: float = 0.0

    def refused(self, now: float, in_use: int, pause: float) -> None:
        """Note that it said that it has enough (421, or no further connection).

        Args:
            now: seconds.
            in_use: connections that work.
            pause: seconds until one more is tried, and between further ones.
        """
        self.most = max(min(self.most or in_use, in_use) // 2, 1)
        self.paused_until = self.grows_at = now + pause

    def limit(self, now: float, in_use: int, allowed: int, pause: float) -> int:
        """Return how many connections there may be now, one at least."""
        while self.most is not None and now >= self.grows_at:
            self.most += 1
            self.grows_at += pause
            if self.most >= allowed:
                self.most = None
        limit = allowed if self.most is None else min(self.most, allowed)
        if now < self.paused_until:
            limit = min(limit, in_use)
        return max(limit, 1)
