"""Counts that fade: how often something happened lately. Pure.

A score is halved each ``half_life``; so it tells a burst from a habit, needs two numbers
a key, and forgets by itself.

Rules of this file: memory is bounded: the key that was touched the longest ago goes
first; time is what the caller says.
"""

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from vnsmail.model import IPAddress

KEYS = 10_000
"""Keys remembered; 2 MiB at most."""

Key = TypeVar("Key", bound=Hashable)


class Scores(Generic[Key]):
    """Fading counts by key.

    Args:
        half_life: seconds after which half of a count is left.
        keys: how many are remembered.
    """

    def __init__(self, half_life: float, keys: int = KEYS) -> None:
        self._half_life = half_life
        self._keys = keys
        self._scores: OrderedDict[Key, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._scores)

    def get(self, key: Key, now: float) -> float:
        """Return the count that is left of a key."""
        score, then = self._scores.get(key, (0.0, now))
        return score * math.exp2(min(0.0, then - now) / self._half_life)

    def add(self, key: Key, now: float, amount: float = 1.0) -> float:
        """Count something; return the count."""
        score = self.get(key, now) + amount
        self._scores[key] = (score, now)
        self._scores.move_to_end(key)
        if len(self._scores) > self._keys:
            self._scores.popitem(last=False)
        return score

    def wait(self, key: Key, now: float, limit: float) -> float:
        """Return the seconds until a count is below a limit."""
        score = self.get(key, now)
        return 0.0 if score < limit else self._half_life * math.log2(score / limit)

    def forget(self, key: Key) -> None:
        """Begin anew with a key."""
        self._scores.pop(key, None)


class Rates(Generic[Key]):
    """So many an hour for each key, and no more than that at once.

    A full allowance is there at the beginning; what is used comes back evenly.
    """

    def __init__(self, keys: int = KEYS) -> None:
        self._keys = keys
        self._used: OrderedDict[Key, tuple[float, float]] = OrderedDict()

    def take(self, key: Key, now: float, an_hour: int, amount: int = 1) -> bool:
        """Take some of an allowance; False, and nothing is taken, if it is not left."""
        used, then = self._used.get(key, (0.0, now))
        used = max(0.0, used - max(0.0, now - then) * an_hour / 3600)
        if used + amount > an_hour:
            return False
        self._used[key] = (used + amount, now)
        self._used.move_to_end(key)
        if len(self._used) > self._keys:
            self._used.popitem(last=False)
        return True


def network(address: IPAddress | None) -> str:
    """Return what stands for all addresses that one customer usually has.

    Of IPv6 that is a /64 (RFC 6177); whoever has one has 2**64 addresses to come from.
    """
    if address is None:
        return ""
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))
