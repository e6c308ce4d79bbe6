"""The owner's addresses to send from: there, or missing, which is a state.

An address that is missing (an interface taken down, an address removed, a broker that
restarts) says nothing of any message. So the first who finds out puts that family on
hold; until it is back nobody asks for it, nothing is tried, no retry is used up. It is
asked for again with growing waits, at no cost to anyone but the broker.

Rules of this file: what is on hold is refused here, with the reason; no other family
and no other address is offered instead. One event on entering, one on leaving.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from vnsmail.broker.client import SourceSocket
from vnsmail.delivery.connection import Sockets
from vnsmail.errors import (
    BrokerGone,
    BrokerRefused,
    SourceUnavailable,
    VnsmailError,
)
from vnsmail.events.record import SourceBack, SourceMissing, Tell, at, untold
from vnsmail.log import logger
from vnsmail.model import Family, Owner

FIRST_PROBE, LONGEST_PROBE = 1.0, 15.0
"""Seconds until a missing address is asked for again; each wait is twice as long."""

SETTLED_AFTER = 60.0
"""Seconds after which a return counts; before, the waits go on where they were."""

MISSING = (SourceUnavailable, BrokerGone, BrokerRefused)
"""What means that there is nothing to send from."""

log = logger("delivery")


@dataclass(slots=True)
class _Hold:
    error: VnsmailError
    since: float
    task: asyncio.Task[None] | None = None


class Sources:
    """Sockets to send from, of one owner.

    Args:
        owner: whose.
        sockets: where they come from.
        on_return: called when a missing address is back.
        pause: waits so many seconds; for tests.
        tell: takes what is to stand in the event log.
    """

    def __init__(
        self,
        owner: Owner,
        sockets: Sockets,
        on_return: Callable[[], None],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        tell: Tell = untold,
    ) -> None:
        self._owner = owner
        self._sockets = sockets
        self._on_return = on_return
        self._pause = pause
        self._tell = tell
        self._holds: dict[Family, _Hold] = {}
        self._waits: dict[Family, float] = {}
        self._back: dict[Family, float] = {}
        self._hurry = asyncio.Event()

    @property
    def held(self) -> dict[Family, str]:
        """Families on hold, with the reason."""
        return {family: str(hold.error) for family, hold in self._holds.items()}

    @property
    def held_since(self) -> float | None:
        """Since when an address is missing, seconds since the epoch."""
        return min((hold.since for hold in self._holds.values()), default=None)

    async def connectable(self, owner: str, family: Family) -> SourceSocket:
        """Return a bound socket, as the broker's client does.

        Raises:
            SourceUnavailable, BrokerGone, BrokerRefused: there is none, or there was
                none a moment ago.
        """
        if hold := self._holds.get(family):
            raise hold.error
        return await self._sockets.connectable(owner, family)

    async def engine(self, owner: str) -> SourceSocket:
        """Return a socket on which the owner's engine speaks SMTP.

        Raises:
            SourceUnavailable, BrokerGone, BrokerRefused: there is none.
        """
        return await self._sockets.engine(owner)

    async def store(self, owner: str, path: str) -> SourceSocket:
        """Return a socket connected to a store, as the broker's client does."""
        return await self._sockets.store(owner, path)

    def lost(self, family: Family, error: VnsmailError) -> None:
        """Put a family on hold; one that is needs no second event."""
        if family in self._holds:
            return
        hold = self._holds[family] = _Hold(error, time.time())
        log.warning(
            "delivery.held",
            owner=self._owner,
            family=int(family),
            reason=str(error),
        )
        self._tell(
            SourceMissing(
                time=at(hold.since),
                host=self._owner,
                family=int(family),
                reason=str(error),
            )
        )
        hold.task = asyncio.ensure_future(self._probe(family, hold))

    def hurry(self) -> None:
        """Ask now: something has changed."""
        self._hurry.set()

    def close(self) -> None:
        """Ask no more."""
        for hold in self._holds.values():
            if hold.task is not None:
                hold.task.cancel()
        self._holds.clear()

    async def _probe(self, family: Family, hold: _Hold) -> None:
        now = asyncio.get_running_loop().time
        if now() - self._back.get(family, -SETTLED_AFTER) >= SETTLED_AFTER:
            self._waits[family] = FIRST_PROBE
        while True:
            wait = self._waits[family]
            self._waits[family] = min(2 * wait, LONGEST_PROBE)
            await self._wait(wait)
            try:
                source = await self._sockets.connectable(self._owner, family)
            except MISSING as error:
                hold.error = error
                continue
            except Exception as error:  # a fault of ours must not end the asking
                log.exception("delivery.fault", owner=self._owner, problem=repr(error))
                continue
            source.sock.close()
            break
        del self._holds[family]
        self._back[family] = now()
        back = time.time()
        held_seconds = round(back - hold.since, 1)
        log.info(
            "delivery.resumed",
            owner=self._owner,
            family=int(family),
            held_seconds=held_seconds,
        )
        self._tell(
            SourceBack(
                time=at(back),
                host=self._owner,
                family=int(family),
                held_seconds=held_seconds,
            )
        )
        self._on_return()

    async def _wait(self, seconds: float) -> None:
        pausing = asyncio.ensure_future(self._pause(seconds))
        hurrying = asyncio.ensure_future(self._hurry.wait())
        try:
            await asyncio.wait((pausing, hurrying), return_when=asyncio.FIRST_COMPLETED)
        finally:
            pausing.cancel()
            hurrying.cancel()
            self._hurry.clear()
