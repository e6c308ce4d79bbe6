import asyncio
import ipaddress
from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vnsmail.delivery import outcomes as say
from vnsmail.delivery import pool as pool_module
from vnsmail.delivery.connection import ConnectionFailed
from vnsmail.delivery.limits import Allowed
from vnsmail.delivery.pool import USUAL, Pool
from vnsmail.delivery.route import Hop
from vnsmail.errors import SourceUnavailable

B = Hop("mx.b.example", ipaddress.ip_address("10.0.0.2"))
C = Hop("mx.c.example", ipaddress.ip_address("10.0.0.3"))
DOWN = say.connection_failed("connection refused", str(B))


class FakeConnection:
    """What a pool sees of a connection."""

    def __init__(self, hop: Hop, on_gone: Any) -> None:
        self.hop = hop
        self.gone = asyncio.get_running_loop().create_future()
        self.usable = True
        self.transactions = 0
        self.source = "10.77.0.11"
        self.said: list[str] = []
        self._on_gone = on_gone

    def quit(self):
        self.said.append("quit")

    def abort(self):
        self.said.append("abort")
        self.go()

    def go(self):
        """Be gone."""
        if not self.gone.done():
            self.usable = False
            self.gone.set_result(None)
            self._on_gone(self)


class Hops:
    """Makes connections, or fails to, as it was told; ``held`` makes it wait."""

    def __init__(self):
        self.made: list[Any] = []
        self.source = "10.77.0.11"
        self.results: deque[Exception | None] = deque()
        self.tried = 0
        self.held: asyncio.Event | None = None

    async def connect(self, hop: Hop, on_gone: Any) -> Any:
        self.tried += 1
        if self.held is not None:
            await self.held.wait()
        if self.results and (error := self.results.popleft()):
            raise error
        self.made.append(FakeConnection(hop, on_gone))
        self.made[-1].source = self.source
        return self.made[-1]


class Clock:
    """A loop's time that moves when told to; timers fire by the real loop no more."""

    def __init__(self, monkeypatch):
        self.ahead = 0.0
        loop = asyncio.get_running_loop()
        real = loop.time
        monkeypatch.setattr(loop, "time", lambda: real() + self.ahead)

    def forward(self, seconds):
        self.ahead += seconds


@pytest.fixture
def hops():
    return Hops()


@pytest.fixture
async def pool(hops):
    pool: Any = Pool(hops.connect, cooldown=60)
    yield pool
    for connection in hops.made:
        connection.go()
    await pool.close(0)


@pytest.fixture
async def clock(monkeypatch):
    return Clock(monkeypatch)


async def turn():
    """Let everything that is ready happen."""
    for _ in range(20):
        await asyncio.sleep(0)


def start(*coroutines):
    return [asyncio.ensure_future(each) for each in coroutines]


def stop(*tasks):
    for task in tasks:
        task.cancel()


async def test_a_connection_is_used_again(pool, hops):
    """What was given back serves the next message to the same hop, and no other."""
    first = await pool.take(B)
    pool.release(first)
    second = await pool.take(B)
    other = await pool.take(C)

    assert first is second
    assert other is not first
    assert [B, C] == [each.hop for each in hops.made]


async def test_fresh(pool, hops):
    """Who met a dead connection is not given another idle one."""
    first = await pool.take(B)
    pool.release(first)

    assert await pool.take(B, fresh=True) is not first
    assert len(hops.made) == 2


@pytest.mark.parametrize("worn", ["unusable", "used up"])
async def test_not_used_again(pool, hops, worn):
    """One that can serve no more, or served enough, is ended with QUIT."""
    first = await pool.take(B)
    if worn == "unusable":
        first.usable = False
    else:
        first.transactions = USUAL.messages_per_connection
    pool.release(first)

    assert ["quit"] == first.said
    assert await pool.take(B) is not first


async def test_no_more_than_the_limit(pool, hops):
    """A hop gets so many connections; who comes later waits for one of them."""
    taken = [await pool.take(B) for _ in range(USUAL.connections)]
    (waiting,) = start(pool.take(B))
    await turn()

    assert USUAL.connections == hops.tried
    assert not waiting.done()
    pool.release(taken[3])
    assert taken[3] is await waiting


async def test_one_who_waits_opens_when_one_has_gone(pool, hops):
    """A connection that ended makes room for a new one."""
    taken = [await pool.take(B) for _ in range(USUAL.connections)]
    (waiting,) = start(pool.take(B))
    await turn()
    taken[0].go()

    assert await waiting not in taken


async def test_those_who_wait_are_served_in_order(pool):
    """First come, first served."""
    taken = [await pool.take(B) for _ in range(USUAL.connections)]
    one, two = start(pool.take(B), pool.take(B))
    await turn()
    pool.release(taken[0])
    await turn()

    assert (one.done(), two.done()) == (True, False)
    pool.release(await one)
    assert taken[0] is await two


async def test_who_is_cancelled_while_waiting_costs_nothing(pool):
    """A connection given to one who has gone away goes to the next."""
    taken = [await pool.take(B) for _ in range(USUAL.connections)]
    one, two = start(pool.take(B), pool.take(B))
    await turn()
    pool.release(taken[0])
    one.cancel()

    assert taken[0] is await two
    assert one.cancelled()


async def test_a_hop_that_is_down_is_left_alone(pool, hops, clock):
    """Whoever wants it is told at once, until the cooldown is over."""
    hops.results.append(ConnectionFailed(DOWN))
    for _ in range(3):
        with pytest.raises(ConnectionFailed) as caught:
            await pool.take(B)
        assert DOWN == caught.value.outcome

    assert 1 == hops.tried
    await pool.take(C)
    clock.forward(61)
    assert B == (await pool.take(B)).hop


async def test_a_burst_to_a_hop_that_is_down(pool, hops):
    """All who wait for it are told when it is known to be down."""
    hops.held = asyncio.Event()
    hops.results.extend([ConnectionFailed(DOWN)] * USUAL.connections)
    wanting: list[Any] = start(*(pool.take(B) for _ in range(30)))
    await turn()
    hops.held.set()
    found: Any = await asyncio.gather(*wanting, return_exceptions=True)

    assert USUAL.connections == hops.tried
    assert {DOWN} == {error.outcome for error in found}


async def test_a_hop_that_wants_no_more(pool, hops):
    """Refusing a second connection while one works means: one is enough."""
    first = await pool.take(B)
    hops.results.append(ConnectionFailed(DOWN))
    (waiting,) = start(pool.take(B))
    await turn()

    assert not waiting.done()
    pool.release(first)
    assert first is await waiting


async def test_a_hop_wants_more_later(pool, hops, clock):
    """After the cooldown it is asked again whether it takes more."""
    await pool.take(B)
    hops.results.append(ConnectionFailed(DOWN))
    (waiting,) = start(pool.take(B))
    await turn()
    clock.forward(61)
    second = await pool.take(B)

    assert 3 == hops.tried
    pool.release(second)
    await waiting


async def test_fresh_from_a_hop_that_wants_no_more(pool, hops):
    """If nothing fresh is to be had, an idle connection is better than waiting."""
    one, two = [await pool.take(B) for _ in range(2)]
    pool.release(one)
    pool.release(two)
    hops.results.append(ConnectionFailed(DOWN))
    (taking,) = start(pool.take(B, fresh=True))
    await turn()

    assert taking.done()
    assert taking.result() in {one, two}


async def test_no_source(pool, hops):
    """Without a source nothing is said of the hop, and it is not held against it."""
    error = SourceUnavailable("alpha.example", "10.0.0.1", 99)
    hops.results.append(error)
    with pytest.raises(SourceUnavailable):
        await pool.take(B)

    assert B == (await pool.take(B)).hop


async def test_no_source_for_one_of_many(pool, hops):
    """One who failed so lets the next try for itself."""
    taken = [await pool.take(B) for _ in range(USUAL.connections - 1)]
    hops.held = asyncio.Event()
    hops.results.append(SourceUnavailable("alpha.example", "10.0.0.1", 99))
    one, two = start(pool.take(B), pool.take(B))
    await turn()
    hops.held.set()

    with pytest.raises(SourceUnavailable):
        await one
    assert await two not in taken


async def test_one_that_is_gone_at_once(pool, hops):
    """A connection that ended while it was made is handed out, and counts no more."""

    async def connect(hop, on_gone):
        connection = FakeConnection(hop, on_gone)
        connection.go()
        return connection

    small = Pool(connect, max_connections=1)
    for _ in range(3):
        gone = await small.take(B)
        assert gone.gone.done()
        small.release(gone)
    await small.close(0)


async def test_room_for_all_is_limited(hops):
    """An owner has so many connections in all; an idle one makes room."""
    pool: Any = Pool(hops.connect, max_connections=2)
    one, two = [await pool.take(B) for _ in range(2)]
    pool.release(one)
    (other,) = start(pool.take(C))
    await turn()

    assert ["quit"] == one.said
    assert C == (await other).hop
    (more,) = start(pool.take(C))
    await turn()
    assert not more.done()
    pool.release(two)
    assert ["quit"] == two.said
    assert C == (await more).hop
    for each in hops.made:
        each.go()
    await pool.close(0)


async def test_waiting_for_room_may_be_given_up(hops):
    """Who is cancelled while it waits for room leaves no trace."""
    pool: Any = Pool(hops.connect, max_connections=1)
    one = await pool.take(B)
    (other,) = start(pool.take(C))
    await turn()
    stop(other)
    await turn()
    pool.release(one)

    assert [] == one.said
    assert one is await pool.take(B)
    one.go()
    await pool.close(0)


async def test_idle_connections_are_ended(pool, clock, monkeypatch):
    """A server has better uses for a connection than to keep it for us."""
    monkeypatch.setattr(pool_module, "IDLE_TIME", 0.01)
    one, two = [await pool.take(B) for _ in range(2)]
    pool.release(one)
    clock.forward(0.005)
    pool.release(two)
    clock.forward(0.006)
    while not one.said:
        await asyncio.sleep(0)

    while not two.said:
        await asyncio.sleep(0)
    assert [["quit"], ["quit"]] == [one.said, two.said]
    assert await pool.take(B) not in {one, two}


async def test_one_that_goes_while_idle_is_forgotten(pool):
    """The remote may end it first."""
    first = await pool.take(B)
    pool.release(first)
    first.go()

    assert first is not await pool.take(B)


async def test_close_waits_for_goodbyes(pool, hops):
    """Idle connections are ended with QUIT, and time is given for the answer."""
    one, two = await pool.take(B), await pool.take(C)
    pool.release(one)
    pool.release(two)
    (closing,) = start(pool.close(60))
    await turn()

    assert [["quit"], ["quit"]] == [one.said, two.said]
    one.go()
    await turn()
    assert not closing.done()
    two.go()
    await closing


async def test_close_cuts_what_does_not_go(pool):
    """After the grace everything is cut, also what somebody uses still."""
    used, idle = await pool.take(B), await pool.take(C)
    pool.release(idle)
    await pool.close(0)

    assert (["abort"], ["quit", "abort"]) == (used.said, idle.said)


async def test_usable_after_close(pool):
    """A pool that was closed opens new connections for whoever goes on."""
    pool.release(await pool.take(B))
    await pool.close(0)

    again = await pool.take(B)
    pool.release(again)
    assert again is await pool.take(B)


async def test_sites_are_forgotten(hops, monkeypatch, clock):
    """What was learnt of thousands of addresses does not stay for ever."""
    monkeypatch.setattr(pool_module, "MANY_SITES", 3)
    pool: Any = Pool(hops.connect, cooldown=60)
    hops.results.append(ConnectionFailed(DOWN))
    with pytest.raises(ConnectionFailed):
        await pool.take(B)
    for n in range(10, 20):
        connection = await pool.take(Hop("x", ipaddress.ip_address(f"10.0.0.{n}")))
        connection.go()

    assert len(pool._sites) <= 3
    with pytest.raises(ConnectionFailed):
        await pool.take(B)


class Players:
    """People who take connections, use them and give them back, or do not."""

    def __init__(self):
        self.hops = Hops()
        self.pool = Pool(self.hops.connect, cooldown=0.0, max_connections=3)
        self.held: list[Any] = []
        self.tasks: list[asyncio.Task[Any]] = []

    async def take(self, hop, fresh):
        self.tasks += start(self.pool.take(hop, fresh=fresh))

    async def release(self, number, usable):
        if number < len(self.held):
            connection = self.held.pop(number)
            connection.usable = connection.usable and usable
            self.pool.release(connection)

    async def go(self, number, _):
        if number < len(self.hops.made):
            self.hops.made[number].go()

    async def cancel(self, number, _):
        if number < len(self.tasks):
            self.tasks[number].cancel()

    async def fail(self, error, _):
        self.hops.results.append(error)

    async def look(self):
        """Let things happen; nothing may be in two hands, or beyond the limit."""
        await turn()
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.remove(task)
            if not task.cancelled() and not task.exception():
                assert task.result() not in self.held
                self.held.append(task.result())
        live = [c for c in self.hops.made if not c.gone.done()]
        assert len([c for c in live if not c.said]) <= 3
        for connection in live:
            if connection.said:
                connection.go()

    async def finish(self):
        """Give everything back until nobody waits."""
        self.hops.results.clear()
        for _ in range(100):
            for connection in self.held:
                self.pool.release(connection)
            self.held.clear()
            await self.look()
            if not self.tasks and not self.held:
                break


_ERRORS = [
    ConnectionFailed(DOWN),
    SourceUnavailable("alpha.example", "10.0.0.1", 99),
]
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.sampled_from([B, C]), st.booleans()),
        st.tuples(st.just("release"), st.integers(0, 9), st.booleans()),
        st.tuples(st.sampled_from(["go", "cancel"]), st.integers(0, 9), st.none()),
        st.tuples(st.just("fail"), st.sampled_from(_ERRORS), st.none()),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(_STEPS)
async def test_whatever_happens(steps):
    """No connection is in two hands, no limit is passed, nobody waits for ever."""
    players = Players()
    for step, what, how in steps:
        await getattr(players, step)(what, how)
        await players.look()
    await players.finish()

    assert [] == players.tasks
    for connection in players.hops.made:
        connection.go()
    await players.pool.close(0)
    assert 3 == players.pool._room.most - players.pool._room.taken


# Limits and addresses that change -------------------------------------------------------


async def test_fewer_at_a_time(pool, hops):
    """With less room, idle ones end at once, and others when they are given back."""
    first, second = await pool.take(B), await pool.take(C)
    pool.release(first)
    pool.allow(1)
    assert (["quit"], []) == (first.said, second.said)
    (waiting,) = start(pool.take(B))
    await turn()
    assert not waiting.done()
    first.go()
    await turn()
    assert not waiting.done()
    pool.release(second)
    second.go()
    assert B == (await waiting).hop
    pool.allow(None)
    await pool.take(C)


async def test_leaving_an_address(pool, hops):
    """Nothing more is begun from it; what is being said there is finished first."""
    idle, busy = await pool.take(B), await pool.take(C)
    pool.release(idle)
    pool.leave(["10.77.0.11"], ["10.77.0.14"])
    assert (["quit"], []) == (idle.said, busy.said)
    (leaving,) = start(pool.left({"10.77.0.11"}))
    idle.go()
    await turn()
    assert not leaving.done()
    pool.release(busy)
    assert ["quit"] == busy.said
    busy.go()
    await leaving
    hops.source = "10.77.0.14"
    new = await pool.take(C)
    pool.release(new)
    assert [] == new.said


async def test_left_too_late(pool, hops):
    """What does not end in time is cut off."""
    busy = await pool.take(B)
    pool.leave(["10.77.0.11"])
    (leaving,) = start(pool.left({"10.77.0.11"}))
    await turn()
    leaving.cancel()
    await turn()

    assert ["abort"] == busy.said


async def test_an_address_that_comes_back(pool, hops):
    """It is used like any other."""
    pool.leave(["10.77.0.11"])
    pool.leave([], ["10.77.0.11"])
    first = await pool.take(B)
    pool.release(first)

    assert [] == first.said


ONE, TWO = (
    Hop(f"{name}.big.example", ipaddress.ip_address(address), site="big")
    for name, address in (("one", "10.0.0.4"), ("two", "10.0.0.5"))
)


async def test_a_site_has_one_limit(pool, hops):
    """Two exchangers of one domain get together what is allowed; any serves who waits."""
    two = Allowed(2, 100, 0)
    first, _ = [await pool.take(hop, two) for hop in (ONE, TWO)]
    (waiting,) = start(pool.take(TWO, two))
    await turn()

    assert 2 == hops.tried
    pool.release(first)
    assert first is await waiting


async def test_messages_on_a_connection(pool, hops):
    """After as many as are allowed, a connection is ended."""
    first = await pool.take(B, Allowed(10, 3, 0))
    first.transactions = 3
    pool.release(first)

    assert ["quit"] == first.said


async def test_421_after_some_messages(pool, hops):
    """A server that ends connections after N messages is given no more on one."""
    first = await pool.take(B)
    first.transactions = 6
    pool.pushed_back(first)
    first.usable = False
    pool.release(first)
    second = await pool.take(B)
    second.transactions = 4
    pool.release(second)
    assert second is await pool.take(B)
    second.transactions = 5
    pool.release(second)

    assert ["quit"] == second.said


async def test_421_at_once(pool, hops, clock):
    """A server that says 421 to a first message gets half the connections, for a while."""
    taken = [await pool.take(B) for _ in range(8)]
    taken[0].transactions = 1
    pool.pushed_back(taken[0])
    for connection in taken:
        connection.go()
    await turn()
    first = await pool.take(B)
    (waiting,) = start(pool.take(B))
    await turn()
    assert not waiting.done()
    clock.forward(61)
    more = [await pool.take(B) for _ in range(4)]
    (further,) = start(pool.take(B))
    await turn()

    assert first not in more
    assert not further.done()
    stop(waiting, further)
