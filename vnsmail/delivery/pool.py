"""The connections of one owner: kept for the next message, few to each site.

A site is the set of mail exchangers of a domain; whoever waits for one of them is served
by any. A hop that cannot be reached is left alone for a while, and whoever waits for it is
told at once: a list of what is down saves a connect timeout for each message
(RFC 5321 section 4.5.4.1). A hop that refuses a further connection while others work
gets half of those for a while, and then slowly more (limits.Throttle).

Rules of this file: a connection is in one pair of hands, or idle here, or ending; it
never serves another owner. Waiting for a hop takes up no other hop's room.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TypeAlias

from vnsmail.delivery.connection import Connection, ConnectionFailed
from vnsmail.delivery.limits import Allowed, Throttle
from vnsmail.delivery.room import Room
from vnsmail.delivery.route import Hop
from vnsmail.model import IPAddress, Outcome

IDLE_TIME = 10.0
"""Seconds a connection is kept for a next message; a server has better uses for it."""

USUAL = Allowed(
    connections=10,  # more look like an attack to many servers
    messages_per_connection=100,  # some servers refuse more
    messages_per_minute=0,
)
"""What is allowed where nothing is said."""

MAX_CONNECTIONS = 200
"""Connections of one owner, idle ones among them."""

COOLDOWN = 60.0
"""Seconds at most that a hop is left alone after a connection failed."""

MANY_SITES = 1000
"""Addresses remembered before those that are down no more are forgotten."""

Connect: TypeAlias = Callable[
    [Hop, Callable[[Connection], None]], Awaitable[Connection]
]
"""delivery.connection.connect, but for the facts of the owner."""


@dataclass(slots=True)
class _Site:
    """The exchangers of a domain, and the connections to them."""

    opening: int = 0
    live: int = 0
    idle: list[Connection] = field(default_factory=list)
    waiting: deque[asyncio.Future[Connection | None]] = field(default_factory=deque)
    throttle: Throttle = field(default_factory=Throttle)
    messages: int = USUAL.messages_per_connection
    """Taken on one connection; less than allowed where the site wants no more."""
    learned: int = 0
    """Messages after which it ended a connection with 421; 0: it never did."""
    in_use_at: Counter[IPAddress] = field(default_factory=Counter)
    down: dict[IPAddress, tuple[Outcome, float]] = field(default_factory=dict)
    """Addresses left alone: what was met, and until when."""

    @property
    def in_use(self) -> int:
        return self.opening + self.live

    def failure(self, address: IPAddress, now: float) -> Outcome | None:
        """Return what was met at an address that is left alone now."""
        found = self.down.get(address)
        if found is not None and found[1] <= now:
            del self.down[address]
            found = None
        return found[0] if found else None

    def take_idle(self, address: IPAddress) -> Connection:
        """Return an idle connection, to this address if there is one."""
        for connection in reversed(self.idle):
            if connection.hop.address == address:
                self.idle.remove(connection)
                return connection
        return self.idle.pop()


class Pool:
    """The connections of one owner.

    Args:
        connect: makes a connection to a hop.
        cooldown: seconds that a hop is left alone after a connection failed.
        max_connections: of this owner, idle ones among them.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        cooldown: float = COOLDOWN,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self._connect = connect
        self._cooldown = cooldown
        self._loop = asyncio.get_running_loop()
        self._most = max_connections
        self._room = Room(max_connections)
        self._left: set[str] = set()
        """Addresses that nothing more is begun from."""
        self._need_room = 0
        self._sites: dict[str, _Site] = {}
        self._live: dict[Connection, _Site] = {}
        self._idle: dict[Connection, float] = {}  # since when; the oldest first
        self._sweeper: asyncio.TimerHandle | None = None
        self._ending: set[Connection] = set()
        self._closing = False

    def leave(self, sources: Iterable[str], kept: Iterable[str] = ()) -> None:
        """Begin nothing more from these addresses, but from those that are kept."""
        self._left = (self._left | set(sources)) - set(kept)
        for connection in list(self._idle):
            if connection.source in self._left:
                self._end(connection)

    async def left(self, sources: AbstractSet[str]) -> None:
        """Wait until no connection has one of these sources; cancelled, cut them."""
        try:
            while waiting := [each.gone for each in self._from(sources)]:
                await asyncio.wait(waiting)
        except asyncio.CancelledError:
            for connection in self._from(sources):
                connection.abort()
            raise

    def _from(self, sources: AbstractSet[str]) -> list[Connection]:
        return [c for c in (*self._live, *self._ending) if c.source in sources]

    def allow(self, connections: int | None) -> None:
        """Have no more connections than that from now on; None: as many as fit.

        Those that are open stay until they are idle.
        """
        most = self._most if connections is None else min(connections, self._most)
        self._room.most = most
        for connection in list(self._idle):
            if self._room.taken <= most:
                break
            self._end(connection)

    async def take(
        self, hop: Hop, allowed: Allowed = USUAL, *, fresh: bool = False
    ) -> Connection:
        """Return a connection to a hop; give it back with ``release``.

        Args:
            hop: where to; where others of its site are idle, it may be one of those.
            allowed: how much the site may be asked.
            fresh: not one that was idle, as one of those turned out to be dead; unless
                the hop wants no more than those.

        Raises:
            ConnectionFailed: the hop does not answer or does not want us, now or a
                moment ago.
            SourceUnavailable, BrokerGone, BrokerRefused: there is no socket.
        """
        while True:
            site = self._site(hop)
            if failure := site.failure(hop.address, self._loop.time()):
                raise ConnectionFailed(failure)
            site.messages = allowed.messages_per_connection
            limit = site.throttle.limit(
                self._loop.time(), site.in_use, allowed.connections, self._cooldown
            )
            room = site.in_use < limit
            if site.idle and not (fresh and room):
                connection = site.take_idle(hop.address)
                del self._idle[connection]
                return connection
            if room:
                made = await self._open(site, hop)
            else:
                made = await self._wait(site)
            if made is not None:
                return made

    def pushed_back(self, connection: Connection) -> None:
        """Note that a server said 421 in the middle of a session.

        After the first message it is how many it takes on one connection; before, it
        is how many connections.
        """
        site = self._live.get(connection)
        if site is None:
            return
        if connection.transactions > 1:
            site.learned = connection.transactions - 1
        else:
            site.throttle.refused(self._loop.time(), site.in_use, self._cooldown)

    def release(self, connection: Connection) -> None:
        """Take a connection back, for the next who wants it."""
        site = self._live.get(connection)
        if site is None:
            return
        most = min(site.messages, site.learned or site.messages)
        spent = connection.transactions >= most
        if not connection.usable or spent or connection.source in self._left:
            self._end(connection)
            return
        while site.waiting:
            waiter = site.waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        if self._closing or self._need_room or self._room.taken > self._room.most:
            self._end(connection)
            return
        site.idle.append(connection)
        self._idle[connection] = self._loop.time()
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(IDLE_TIME, self._sweep)

    async def close(self, grace: float) -> None:
        """End all connections: with QUIT, and after ``grace`` seconds without."""
        self._closing = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._idle):
            self._end(connection)
        for patience in (grace, None):
            left = [*self._live, *self._ending]
            if patience is None:
                for connection in left:
                    connection.abort()
            if left:
                await asyncio.wait([each.gone for each in left], timeout=patience)
        self._closing = False

    # Sites ---------------------------------------------------------------------------

    def _site(self, hop: Hop) -> _Site:
        key = hop.pool
        site = self._sites.get(key)
        if site is None:
            if len(self._sites) >= MANY_SITES:
                self._forget()
            site = self._sites[key] = _Site()
        return site

    def _forget(self) -> None:
        now = self._loop.time()
        for key, site in list(self._sites.items()):
            down = any(until > now for _, until in site.down.values())
            if not (site.in_use or site.waiting or down):
                del self._sites[key]

    async def _wait(self, site: _Site) -> Connection | None:
        """Wait for a connection that becomes free, or None: look again."""
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        site.waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                # It was ours already: whoever is next must not miss it.
                if (connection := waiter.result()) is not None:
                    self.release(connection)
                else:
                    _wake_one(site)
            raise

    # Connections ---------------------------------------------------------------------

    async def _open(self, site: _Site, hop: Hop) -> Connection | None:
        """Return a new connection; None if the hop wants no more than it has."""
        address = hop.address
        site.opening += 1
        site.in_use_at[address] += 1
        try:
            connection = await self._connect_with_room(hop)
        except ConnectionFailed as error:
            now = self._loop.time()
            others = site.in_use_at[address] - 1
            if others:
                site.throttle.refused(now, site.in_use - 1, self._cooldown)
                return None
            site.down[address] = (error.outcome, now + self._cooldown)
            _wake_all(site)
            raise
        except BaseException:
            _wake_one(site)
            raise
        finally:
            site.opening -= 1
            site.in_use_at[address] -= 1
        if connection.gone.done():
            self._room.release()
            _wake_one(site)
            return connection  # whoever sends finds out, and says so
        site.live += 1
        site.in_use_at[address] += 1
        self._live[connection] = site
        return connection

    async def _connect_with_room(self, hop: Hop) -> Connection:
        if self._room.locked() and self._idle:
            self._end(next(iter(self._idle)))
        self._need_room += 1
        try:
            await self._room.acquire()
        finally:
            self._need_room -= 1
        try:
            return await self._connect(hop, self._gone)
        except BaseException:
            self._room.release()
            raise

    def _end(self, connection: Connection) -> None:
        self._drop(connection)
        if not connection.gone.done():
            self._ending.add(connection)
            connection.quit()

    def _gone(self, connection: Connection) -> None:
        self._ending.discard(connection)
        self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        """Count a connection no more; the next who waits may open one."""
        site = self._live.pop(connection, None)
        if site is None:
            return
        site.live -= 1
        site.in_use_at[connection.hop.address] -= 1
        if self._idle.pop(connection, None) is not None:
            site.idle.remove(connection)
        self._room.release()
        _wake_one(site)

    def _sweep(self) -> None:
        """End what was idle for long enough."""
        self._sweeper = None
        limit = self._loop.time() - IDLE_TIME
        for connection, since in list(self._idle.items()):
            if since > limit:
                self._sweeper = self._loop.call_at(since + IDLE_TIME, self._sweep)
                return
            self._end(connection)


def _wake_one(site: _Site) -> None:
    while site.waiting:
        waiter = site.waiting.popleft()
        if not waiter.done():
            waiter.set_result(None)
            return


def _wake_all(site: _Site) -> None:
    while site.waiting:
        _wake_one(site)
