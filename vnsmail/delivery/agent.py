"""Delivery for one owner: from the queue to remotes and to mailboxes here.

A message comes by ``hand_over`` straight after it was accepted, or from the queue when
it is due. Each destination has a lane (lanes.py): a few messages under way, some ready,
the rest on disk. What is delivered or deferred is settled as soon as it is known, so
that a crash sends little again.

Two things are no attempts, and use up no retry: an address to send from that is
missing (sources.py), and a destination that is down (pace.py), which one message asks
for all.

Rules of this file: it starts, waits and tells others; what is decided is decided in
pace.py, settlement.py and notices.py. A message leaves flight whatever happens: a
fault of ours is logged and defers it, so that it can neither be lost nor be tried in a
circle.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from vnsmail.broker.client import SourceSocket
from vnsmail.delivery import outcomes as say
from vnsmail.delivery.attempt import Attempts
from vnsmail.delivery.connection import (
    Connection,
    SignInFailed,
    Sockets,
    Told,
    connect,
)
from vnsmail.delivery.facts import AgentFacts
from vnsmail.delivery.lanes import Flight, Record
from vnsmail.delivery.limits import allowed
from vnsmail.delivery.outcomes import Outcomes
from vnsmail.delivery.pool import COOLDOWN, Pool
from vnsmail.delivery.route import Hop, Questions
from vnsmail.delivery.security import Security
from vnsmail.delivery.settlement import due_at
from vnsmail.delivery.settling import (
    FIRST_PAUSE,
    LONGEST_PAUSE,
    Settler,
    Sign,
    unsigned,
)
from vnsmail.delivery.shares import Shares
from vnsmail.delivery.sources import MISSING, Sources
from vnsmail.delivery.sweep import Sweeper
from vnsmail.delivery.traffic import Traffic
from vnsmail.errors import NotFound, QueueUnavailable, VnsmailError
from vnsmail.events.record import Tell, untold
from vnsmail.log import logger
from vnsmail.model import Envelope, Family, Outcome
from vnsmail.queue.body import Body
from vnsmail.queue.envelope import QueuedMessage
from vnsmail.queue.queue import Queue
from vnsmail.settings import Settings
from vnsmail.tls.client import ClientTls

__all__ = ["AgentFacts", "DeliveryAgent", "LocalDelivery"]

LONGEST_LOOK_AWAY = 60.0
"""Seconds after which the queue is looked at in any case: the clock may be set."""

QUIT_GRACE = 1.0
"""Seconds for remotes to answer QUIT when all connections are ended."""

LocalDelivery: TypeAlias = Callable[[str, Body, Envelope, bool], Awaitable[Outcome]]
"""Puts a message into a mailbox: recipient, body, envelope, and whether that may have
been done before. May raise VnsmailError, which defers the recipient."""

log = logger("delivery")


def _uncounted(_outcome: Outcome, _octets: int) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Waits:
    """Why nothing is tried at a destination for now."""

    reason: str
    until: float = 0.0
    """When it is tried again, seconds since the epoch; 0: nobody knows."""
    held: bool = False
    """The address to send from is missing, or an operator holds it."""
    wanted: bool = False
    """It is an operator who holds it."""


class DeliveryAgent:
    """Delivers the mail of one owner while ``run`` runs.

    Args:
        facts: who sends.
        queue: the owner's queue; the agent is the only one who settles in it.
        sockets: where bound sockets come from.
        resolver: who knows where mail goes.
        local_delivery: puts a message into a mailbox here.
        settings: of the whole system.
        shares: of all owners of this worker.
        count: told each outcome, with the octets of the message.
        sign: signs notices.
        tell: takes what is to stand in the event log.
        clock: seconds since the epoch.
        chance: 0 to 1, for the jitter of retries.
        security: how servers are to be spoken to; None: in plain.
        tls: what TLS is made with.
        told: how each connection with TLS went.
    """

    def __init__(
        self,
        *,
        facts: AgentFacts,
        queue: Queue,
        sockets: Sockets,
        resolver: Questions,
        local_delivery: LocalDelivery,
        settings: Settings,
        shares: Shares | None = None,
        count: Callable[[Outcome, int], None] = _uncounted,
        sign: Sign = unsigned,
        tell: Tell = untold,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        security: Security | None = None,
        tls: ClientTls | None = None,
        told: Told | None = None,
    ) -> None:
        self._facts = facts
        self.tls = tls or ClientTls()
        self._told = told
        self._local_delivery = local_delivery
        self._settings = settings
        self._rules = settings.queue
        self._clock = clock
        self._chance = chance
        self._sources = Sources(facts.owner, sockets, self._sources_returned, tell=tell)
        self._pool = Pool(
            self._connect,
            cooldown=min(COOLDOWN, settings.queue.first_retry / 2),
            max_connections=settings.delivery.connections_per_host,
        )
        self._pool.allow(facts.connections)
        self._attempts = Attempts(
            facts, self._pool, resolver, settings.delivery, security=security
        )
        self._settler = Settler(
            facts,
            queue,
            settings.queue,
            clock,
            chance,
            self.hand_over,
            self._queue_trouble,
            count,
            sign,
            tell,
        )
        self._sweeper = Sweeper(queue, self._settler, settings.queue, self, clock)
        self._traffic = Traffic(
            facts=facts,
            queue=queue,
            sources=self._sources,
            shares=shares or Shares(),
            clock=clock,
            window=self._window,
            fly=self._fly,
            settle_failures=self._settler.settle_failures,
        )
        self._running = False
        self._ended = asyncio.Event()
        self._queue_problem = ""
        self._relay_problem = facts.relay.problem if facts.relay else ""
        """Why a relay takes nothing of the owner, which is for people to mend."""
        self._queue = queue

    # What others ask -------------------------------------------------------------------

    @property
    def problem(self) -> str:
        """Why mail does not flow now, for people; empty if it does."""
        return self._queue_problem or self.held or self._relay_problem

    @property
    def held(self) -> str:
        """Which address to send from is missing, for people; empty if none is."""
        return "; ".join(dict.fromkeys(self._sources.held.values()))

    @property
    def held_since(self) -> float | None:
        """Since when, seconds since the epoch."""
        return self._sources.held_since

    def resting(self) -> list[tuple[str, float, str]]:
        """Return destinations that are down: name, until when, what was met."""
        now = self._clock()
        return sorted(
            (lane.name, lane.pace.down_until, lane.pace.why.text)
            for lane in self._traffic.lanes
            if lane.pace.why is not None and lane.pace.down_until > now
        )

    @property
    def in_flight(self) -> int:
        """Messages in memory, ready or under way, once for each destination."""
        return self._traffic.count

    def is_flying(self, name: str, message_id: str) -> bool:
        """Say whether a message is in flight at a destination."""
        lane = self._traffic.lanes.find(name)
        return lane is not None and message_id in lane.ids

    def waits(self, name: str) -> Waits | None:
        """Return why nothing is tried at a destination now; None if it may be."""
        lane = self._traffic.lanes.find(name)
        if reason := self._traffic.hold_of(name):
            return Waits(reason, held=True, wanted=True)
        if self._traffic.is_local(name):
            return None
        if self._traffic.all_held() or (lane is not None and lane.held):
            return Waits(self.held, held=True)
        if lane is not None and lane.closed(self._clock()) and lane.pace.why:
            return Waits(lane.pace.why.text, lane.pace.down_until)
        return None

    def why(self, name: str) -> Outcome | None:
        """Return the same as an outcome; None where an operator holds it.

        What is held on purpose does not grow too old.
        """
        waits = self.waits(name)
        lane = self._traffic.lanes.find(name)
        if waits is None or waits.wanted:
            return None
        if waits.held or lane is None:
            return say.deferred(451, "4.4.0", waits.reason)
        return lane.pace.why

    # What an operator asks for -----------------------------------------------------

    def hold(self, holds: Mapping[str, str]) -> None:
        """Hold these destinations and no others."""
        self._traffic.hold(holds)

    def withdraw(self, ids: AbstractSet[str]) -> set[str]:
        """Leave messages to the queue; return those that are under way."""
        return self._traffic.withdraw(ids)

    def in_memory(self) -> list[str]:
        """Return the queue ids of messages in flight."""
        return self._traffic.ids

    def look_again(self, names: Iterable[str] = ()) -> None:
        """Look for what is due now; ask these destinations though they are down."""
        self._traffic.ask_again(names)

    async def give_back(self, message: QueuedMessage, outcomes: Outcomes) -> None:
        """Settle outcomes that an operator decided, with notices to the sender.

        Raises:
            QueueUnavailable: not now.
        """
        await self._settler.settle(Record(message.envelope.id, None), message, outcomes)

    # From others -----------------------------------------------------------------------

    def update(self, facts: AgentFacts) -> None:
        """Use changed facts from the next attempt on.

        Connections outlive an attempt: those from an address that mail does not leave
        from any more finish their message and end.
        """
        sources = facts.sources or facts.addresses
        gone = (self._facts.addresses | facts.addresses) - sources
        other_way = facts.relay != self._facts.relay
        self._facts = facts
        self._settler.facts = facts
        self._traffic.facts = facts
        self._pool.leave(map(str, gone), map(str, sources))
        self._attempts.update(facts)
        self._pool.allow(facts.connections)
        if other_way:
            self._relay_problem = facts.relay.problem if facts.relay else ""
            self.look_again([lane.name for lane in self._traffic.lanes])
        self._sources.hurry()

    async def left(self, addresses: AbstractSet[str]) -> None:
        """Wait until no connection has one of these sources; cancelled, cut them."""
        await self._pool.left(addresses)

    def hand_over(self, envelope: Envelope, body: Body) -> None:
        """Deliver a message that the queue has just accepted, without reading it again.

        If there is too much to do, the queue keeps it until its turn comes.
        """
        self._sweeper.arrived(envelope.received_at)
        self._traffic.hand_over(envelope, body)

    # From the beginning to the end -----------------------------------------------------

    async def run(self) -> None:
        """Deliver until ``drain`` is called.

        Cancelling it cuts off what is in flight; the queue has it all.
        """
        self._ended.clear()
        self._running = True
        try:
            async with asyncio.TaskGroup() as tasks:
                self._traffic.hold(await self._held_before())
                self._traffic.begin(tasks)
                try:
                    await self._watch_queue()
                finally:
                    self._traffic.end()
        finally:
            self._running = False
            self._sources.close()
            await self._pool.close(QUIT_GRACE if self._traffic.stopping else 0)
            self._ended.set()

    async def _held_before(self) -> dict[str, str]:
        """Return what an operator held before this process began."""
        pause = FIRST_PAUSE
        while not self._traffic.stopping:
            try:
                return await self._queue.holds()
            except QueueUnavailable as error:
                # What may not be sent is not known, so nothing is.
                self._queue_trouble(error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        return {}

    async def drain(self, grace: float) -> None:
        """Take nothing up any more, and end ``run``.

        Args:
            grace: seconds for what is under way to finish; then it is cut off, and the
                queue keeps it.
        """
        traffic = self._traffic
        traffic.stop()
        if not self._running:
            return
        try:
            async with asyncio.timeout(grace):
                while traffic.flying:
                    traffic.something_landed.clear()
                    await traffic.something_landed.wait()
        except TimeoutError:
            for task in list(traffic.flying):
                task.cancel()
        await self._ended.wait()

    # The queue -----------------------------------------------------------------------

    async def _watch_queue(self) -> None:
        pause = FIRST_PAUSE
        look = self._traffic.look
        while not self._traffic.stopping:
            look.clear()
            try:
                wakes_at = await self._look_at_queue()
                self._queue_problem, pause = "", FIRST_PAUSE
            except QueueUnavailable as error:
                self._queue_trouble(error)
                self._traffic.begin_again()
                wakes_at = self._clock() + pause
                pause = min(2 * pause, LONGEST_PAUSE)
            wait = min(wakes_at - self._clock(), LONGEST_LOOK_AWAY)
            try:
                async with asyncio.timeout(wait):
                    await look.wait()
            except TimeoutError:
                pass

    async def _look_at_queue(self) -> float:
        """Do what there is to do; return when there is something again."""
        wakes_at = await self._traffic.take_up()
        if self._sweeper.next <= self._clock():
            await self._sweeper.sweep()
        return min(wakes_at, self._sweeper.next)

    def _window(self, name: str) -> int:
        """Return how many messages to a destination may be under way at once."""
        return allowed(self._settings.delivery, self._facts.owner, name).connections

    def _sources_returned(self) -> None:
        self._traffic.sources_returned()

    def _queue_trouble(self, error: QueueUnavailable) -> None:
        self._queue_problem = str(error)
        log.error("queue.unavailable", owner=self._facts.owner, problem=str(error))

    # One flight ----------------------------------------------------------------------

    async def _fly(self, flight: Flight) -> None:
        try:
            await self._deliver(flight)
        except Exception:  # a fault of ours with one message must not stop the others
            log.exception("delivery.fault", owner=self._facts.owner, id=flight.id)
            # Nothing is settled, so it is due: without a pause it would go in a circle.
            await asyncio.sleep(LONGEST_PAUSE)
            flight.lane.more = True
        finally:
            self._traffic.landed(flight)

    async def _deliver(self, flight: Flight) -> None:
        deliver = self._deliver_here if flight.lane.local else self._send
        parts = due_at(flight.message, flight.lane.name, self._clock())
        record = flight.record
        for number, recipients in enumerate(parts, 1):
            last = number == len(parts)
            try:
                outcomes = await deliver(flight, recipients)
            except NotFound:
                self._settler.withdrawn(flight.id)
                outcomes, last = {}, True
            except QueueUnavailable as error:
                outcomes = say.for_all(recipients, say.trouble_here(error))
            except Exception as error:  # deferred, it is tried again, ever more slowly
                log.exception("delivery.fault", owner=self._facts.owner, id=flight.id)
                outcomes = say.for_all(recipients, say.trouble_here(repr(error)))
            down_until = self._learn(flight, outcomes)
            held = any(each.not_an_attempt for each in outcomes.values())
            if last or held:
                record.flying -= 1
            await self._settle(flight, outcomes, down_until)
            if last or held:
                return
        record.flying -= 1

    async def _settle(
        self, flight: Flight, outcomes: Outcomes, down_until: float
    ) -> None:
        tried = {to: o for to, o in outcomes.items() if not o.not_an_attempt}
        retry_at = await self._settler.settle(
            flight.record, flight.message, tried, down_until
        )
        if not flight.lane.closed(self._clock()):
            for at in retry_at.values():
                self._traffic.due_again(at)

    def _learn(self, flight: Flight, outcomes: Outcomes) -> float:
        """Note what an attempt says of the destination; return until when it is down."""
        lane = flight.lane
        if lane.local or not outcomes:
            return 0.0
        if any(each.not_an_attempt for each in outcomes.values()):
            lane.held = lane.more = True
            self._traffic.unload(lane)
            return 0.0
        down = next((each for each in outcomes.values() if each.unreachable), None)
        if down is None:
            lane.pace.reached()
            return 0.0
        waits = (self._rules.first_retry, self._rules.longest_retry)
        now, chance = self._clock(), self._chance()
        if lane.pace.unreachable(flight.started_in, now, down, waits, chance):
            log.info(
                "destination.down",
                owner=self._facts.owner,
                destination=lane.name,
                reason=down.text,
                until=lane.pace.down_until,
                failures=lane.pace.failures,
            )
            lane.more = True
            self._traffic.unload(lane)
            self._traffic.lanes.reopens(lane)
            self._traffic.look.set()
        return lane.pace.down_until

    async def _send(self, flight: Flight, recipients: tuple[str, ...]) -> Outcomes:
        return await self._attempts.attempt(
            flight.lane.name,
            flight.message.envelope,
            recipients,
            partial(self._settler.body, flight.record),
        )

    async def _deliver_here(
        self, flight: Flight, recipients: tuple[str, ...]
    ) -> Outcomes:
        # Who died between mailbox and queue has left a message in both.
        tried = any(each.attempts for each in flight.message.recipients)
        again = tried or flight.record.body is None
        body = await self._settler.body(flight.record)
        outcomes: Outcomes = {}
        for recipient in recipients:
            try:
                outcomes[recipient] = await self._local_delivery(
                    recipient, body, flight.message.envelope, again
                )
            except VnsmailError as error:
                outcomes[recipient] = say.trouble_here(error)
        return outcomes

    async def connectable(self, owner: str, family: Family) -> SourceSocket:
        """Return a socket to ask for what delivery needs to know, bound as for mail.

        Raises:
            SourceUnavailable, BrokerGone, BrokerRefused: the address is missing; that
                family is on hold then.
        """
        try:
            return await self._sources.connectable(owner, family)
        except MISSING as error:
            self._sources.lost(family, error)
            raise

    async def _connect(
        self, hop: Hop, on_gone: Callable[[Connection], None]
    ) -> Connection:
        try:
            made = await connect(
                hop,
                self._facts,
                self._sources,
                self._settings.smtp,
                on_gone,
                self.tls,
                self._told,
            )
        except SignInFailed as error:
            self._relay_problem = str(error)
            raise
        except MISSING as error:
            self._sources.lost(hop.family, error)
            raise
        if hop.login is not None:
            self._relay_problem = ""
        return made


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
