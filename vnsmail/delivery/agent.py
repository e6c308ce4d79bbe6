"""Delivery for one owner: from the queue to remotes and to mailboxes here.

A message comes by ``hand_over`` straight after it was accepted, or from the queue when
it is due. It is in flight until all its due recipients have an outcome that is on disk;
nothing in flight is taken from the queue again, so no message is attempted twice at
once. What is delivered or deferred is settled as soon as it is known, so that a crash
sends little again; what failed waits for the others, so that one attempt makes one
notice.

Rules of this file: it starts, waits and settles; what is decided is decided in
settlement.py, outcomes.py and message/dsn.py. A message leaves flight whatever
happens: a fault of ours is logged and defers it, so that it can neither be lost nor
be tried in a circle.
"""

import asyncio
import math
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from vnsmail.delivery import outcomes as say
from vnsmail.delivery.attempt import Attempts
from vnsmail.delivery.connection import Sockets, connect
from vnsmail.delivery.facts import AgentFacts
from vnsmail.delivery.outcomes import Outcomes
from vnsmail.delivery.pool import COOLDOWN, Pool
from vnsmail.delivery.route import Questions
from vnsmail.delivery.settlement import (
    Group,
    Settlement,
    due_groups,
    fresh,
    settlement,
)
from vnsmail.errors import NotFound, QueueUnavailable, VnsmailError
from vnsmail.log import logger
from vnsmail.message.dsn import failure_notice, header_block
from vnsmail.model import Envelope, Outcome, Verdict
from vnsmail.queue.body import Body
from vnsmail.queue.envelope import ENTROPY_BYTES, QueuedMessage, new_id
from vnsmail.queue.queue import Queue
from vnsmail.settings import Settings

__all__ = ["AgentFacts", "DeliveryAgent", "LocalDelivery"]

MAX_FROM_QUEUE = 1000
"""Messages in flight up to which the queue is asked for more."""

MAX_IN_FLIGHT = 2000
"""Messages in flight in all. The difference is kept for messages that just came, so
that a backlog for a slow remote does not hold them up."""

MAX_HELD = 32 * 1024 * 1024
"""Bytes of handed over bodies kept in memory; beyond, they are read when needed."""

BATCH = 200
"""Messages asked of the queue at a time."""

LONGEST_LOOK_AWAY = 60.0
"""Seconds after which the queue is looked at in any case: the clock may be set."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds to wait, twice as long each time, when the queue cannot be used."""

QUIT_GRACE = 1.0
"""Seconds for remotes to answer QUIT when all connections are ended."""

LocalDelivery: TypeAlias = Callable[[str, Body, Envelope], Awaitable[Outcome]]
"""Puts a message into a mailbox: recipient, body, envelope. May raise VnsmailError,
which defers the recipient."""

_EVENTS = {
    Verdict.DELIVERED: "message.delivered",
    Verdict.DEFERRED: "message.deferred",
    Verdict.FAILED: "message.failed",
}

log = logger("delivery")


def _uncounted(_outcome: Outcome, _octets: int) -> None:
    return None


@dataclass(slots=True)
class _Flight:
    """A message in flight."""

    message: QueuedMessage
    body: Body | None
    """None if it is to be read when it is needed."""
    held: int = 0
    """Bytes of the body that count as held in memory."""
    groups_left: int = 0
    failures: Outcomes = field(default_factory=dict)
    """Not settled yet."""
    due_again: float = math.inf
    """When the next recipient that stays in the queue is due."""
    task: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        return self.message.envelope.id


class DeliveryAgent:
    """Delivers the mail of one owner while ``run`` runs.

    Args:
        facts: who sends.
        queue: the owner's queue; the agent is the only one who settles in it.
        sockets: where bound sockets come from.
        resolver: who knows where mail goes.
        local_delivery: puts a message into a mailbox here.
        settings: of the whole system.
        count: told each outcome, with the octets of the message.
        clock: seconds since the epoch.
        chance: 0 to 1, for the jitter of retries.
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
        count: Callable[[Outcome, int], None] = _uncounted,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._facts = facts
        self._queue = queue
        self._local_delivery = local_delivery
        self._rules = settings.queue
        self._clock = clock
        self._chance = chance
        self._pool = Pool(
            lambda hop, gone: connect(hop, self._facts, sockets, settings.smtp, gone),
            cooldown=min(COOLDOWN, settings.queue.first_retry / 2),
        )
        self._pool.allow(facts.connections)
        self._count = count
        self._attempts = Attempts(facts, self._pool, resolver)
        self._flights: dict[str, _Flight] = {}
        self._held = 0
        self._tasks: asyncio.TaskGroup | None = None
        self._draining = False
        self._landed = asyncio.Event()
        self._ended = asyncio.Event()
        self._look = asyncio.Event()
        self._looks_at = math.inf
        self._more_in_queue = False
        self._source_problem = ""
        self._queue_problem = ""

    @property
    def problem(self) -> str:
        """Why mail does not flow now, for people; empty if it does."""
        return self._queue_problem or self._source_problem

    @property
    def in_flight(self) -> int:
        """Messages being attempted."""
        return len(self._flights)

    def update(self, facts: AgentFacts) -> None:
        """Use changed facts from the next attempt on.

        Connections outlive an attempt: those from an address that mail does not leave
        from any more finish their message and end.
        """
        sources = facts.sources or facts.addresses
        gone = (self._facts.addresses | facts.addresses) - sources
        self._facts = facts
        self._pool.leave(map(str, gone), map(str, sources))
        self._attempts.update(facts)
        self._pool.allow(facts.connections)

    def hand_over(self, envelope: Envelope, body: Body) -> None:
        """Deliver a message that the queue has just accepted, without reading it again.

        If there is too much to do, the queue keeps it until its turn comes.
        """
        if self._tasks is None or self._draining or envelope.id in self._flights:
            return
        if len(self._flights) >= MAX_IN_FLIGHT:
            self._more_in_queue = True
            return
        self._start(fresh(envelope, body.size), body)

    async def run(self) -> None:
        """Deliver until ``drain`` is called.

        Cancelling it cuts off what is in flight; the queue has it all.
        """
        self._ended.clear()
        try:
            async with asyncio.TaskGroup() as self._tasks:
                await self._watch_queue()
        finally:
            self._tasks = None
            await self._pool.close(QUIT_GRACE if self._draining else 0)
            self._ended.set()

    async def left(self, addresses: AbstractSet[str]) -> None:
        """Wait until no connection has one of these sources; cancelled, cut them."""
        await self._pool.left(addresses)

    async def drain(self, grace: float) -> None:
        """Take nothing up any more, and end ``run``.

        Args:
            grace: seconds for what is in flight to finish; then it is cut off, and the
                queue keeps it.
        """
        self._draining = True
        self._look.set()
        if self._tasks is None:
            return
        try:
            async with asyncio.timeout(grace):
                while self._flights:
                    self._landed.clear()
                    await self._landed.wait()
        except TimeoutError:
            for flight in list(self._flights.values()):
                if flight.task is not None:
                    flight.task.cancel()
        await self._ended.wait()

    # The queue -----------------------------------------------------------------------

    async def _watch_queue(self) -> None:
        pause = FIRST_PAUSE
        while not self._draining:
            self._look.clear()
            # Until the answers are there, whatever becomes due is a reason to look.
            self._looks_at = math.inf
            try:
                self._looks_at = await self._take_due()
                self._queue_problem, pause = "", FIRST_PAUSE
            except QueueUnavailable as error:
                self._queue_trouble(error)
                self._looks_at = self._clock() + pause
                pause = min(2 * pause, LONGEST_PAUSE)
            wait = min(self._looks_at - self._clock(), LONGEST_LOOK_AWAY)
            try:
                async with asyncio.timeout(wait):
                    await self._look.wait()
            except TimeoutError:
                pass

    async def _take_due(self) -> float:
        """Start what is due, as far as there is room; return when to look again."""
        room = min(MAX_FROM_QUEUE - len(self._flights), BATCH)
        self._more_in_queue = room <= 0
        if room <= 0:
            return math.inf
        now = self._clock()
        found = await self._queue.due(now, room, self._flights.keys())
        for message in found:
            # It may have been handed over since the question was asked.
            if message.envelope.id not in self._flights and not self._draining:
                self._start(message, None)
        if len(found) == room:
            return now
        next_due = await self._queue.next_due(self._flights.keys())
        return math.inf if next_due is None else next_due

    def _queue_trouble(self, error: QueueUnavailable) -> None:
        self._queue_problem = str(error)
        log.error("queue.unavailable", owner=self._facts.owner, problem=str(error))

    # One message ---------------------------------------------------------------------

    def _start(self, message: QueuedMessage, body: Body | None) -> None:
        if self._tasks is None:
            return
        flight = _Flight(message, body)
        if body is not None:
            flight.held = len(body.head)
            if self._held + flight.held > MAX_HELD:
                flight.body, flight.held = None, 0
            self._held += flight.held
        self._flights[flight.id] = flight
        flight.task = self._tasks.create_task(self._fly(flight))

    async def _fly(self, flight: _Flight) -> None:
        try:
            await self._deliver(flight)
        except Exception:  # a fault of ours with one message must not stop the others
            log.exception("delivery.fault", owner=self._facts.owner, id=flight.id)
            # Nothing is settled, so it is due: without a pause it would go in a circle.
            await asyncio.sleep(LONGEST_PAUSE)
        finally:
            self._land(flight)

    def _land(self, flight: _Flight) -> None:
        del self._flights[flight.id]
        self._held -= flight.held
        room = len(self._flights) < MAX_FROM_QUEUE * 3 // 4
        if flight.due_again < self._looks_at or (self._more_in_queue and room):
            self._look.set()
        self._landed.set()

    async def _deliver(self, flight: _Flight) -> None:
        now = self._clock()
        recipients = flight.message.recipients
        groups = due_groups(recipients, now, self._facts.domains)
        later = [r.next_attempt_at for r in recipients if r.next_attempt_at > now]
        flight.due_again = min(later, default=math.inf)
        flight.groups_left = len(groups)
        if len(groups) == 1:
            await self._deliver_group(flight, groups[0])
            return
        async with asyncio.TaskGroup() as tasks:
            for group in groups:
                tasks.create_task(self._deliver_group(flight, group))

    async def _deliver_group(self, flight: _Flight, group: Group) -> None:
        deliver = self._deliver_here if group.local else self._send
        try:
            outcomes = await deliver(flight, group)
        except NotFound:
            log.info("message.withdrawn", owner=self._facts.owner, id=flight.id)
            return
        except QueueUnavailable as error:
            outcomes = say.for_all(group.recipients, say.trouble_here(error))
        except Exception as error:  # deferred, it is tried again with growing waits
            log.exception("delivery.fault", owner=self._facts.owner, id=flight.id)
            outcomes = say.for_all(group.recipients, say.trouble_here(repr(error)))
        flight.groups_left -= 1
        await self._settle(flight, outcomes)

    async def _body(self, flight: _Flight) -> Body:
        if flight.body is not None:
            return flight.body
        _, body = await self._queue.load(flight.id)
        return body

    async def _send(self, flight: _Flight, group: Group) -> Outcomes:
        outcomes = await self._attempts.attempt(
            group.domain,
            flight.message.envelope,
            group.recipients,
            partial(self._body, flight),
        )
        for outcome in outcomes.values():
            if outcome.not_an_attempt:
                self._source_problem = outcome.text
            elif outcome.source:
                self._source_problem = ""
        return outcomes

    async def _deliver_here(self, flight: _Flight, group: Group) -> Outcomes:
        body = await self._body(flight)
        outcomes: Outcomes = {}
        for recipient in group.recipients:
            try:
                outcomes[recipient] = await self._local_delivery(
                    recipient, body, flight.message.envelope
                )
            except VnsmailError as error:
                outcomes[recipient] = say.trouble_here(error)
        return outcomes

    # What became of it ---------------------------------------------------------------

    async def _settle(self, flight: _Flight, outcomes: Outcomes) -> None:
        """Put on disk what is known: failures with the last group, the rest now."""
        decided = settlement(
            flight.message, outcomes, self._clock(), self._rules, self._chance()
        )
        self._tell(flight, decided)
        flight.due_again = min(flight.due_again, *decided.retry_at.values(), math.inf)
        flight.failures |= say.of(decided.outcomes, Verdict.FAILED)
        settled = say.of(decided.outcomes, Verdict.DELIVERED, Verdict.DEFERRED)
        failures: Outcomes = {}
        if not flight.groups_left:
            failures = flight.failures
            settled |= failures
        if settled:
            await self._record(flight, Settlement(settled, decided.retry_at), failures)

    async def _record(
        self, flight: _Flight, settled: Settlement, failures: Outcomes
    ) -> None:
        """Settle, whatever it takes: what was delivered must not be sent again."""
        pause = FIRST_PAUSE
        while True:
            notices = await self._notices(flight, failures)
            try:
                await self._queue.settle(
                    flight.id, settled.outcomes, settled.retry_at, notices
                )
                break
            except NotFound:
                log.info("message.withdrawn", owner=self._facts.owner, id=flight.id)
                return
            except QueueUnavailable as error:
                self._queue_trouble(error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        for envelope, body in notices:
            self.hand_over(envelope, body)

    async def _notices(
        self, flight: _Flight, failures: Outcomes
    ) -> Sequence[tuple[Envelope, Body]]:
        """Return the notice for the sender, none if there is nobody to tell.

        A message with the null reverse-path is such a notice itself (RFC 5321 section
        4.5.5).
        """
        original = flight.message.envelope
        if not failures or not original.sender:
            return ()
        now = self._clock()
        notice_id = new_id(now, os.urandom(ENTROPY_BYTES))
        notice = failure_notice(
            notice_id=notice_id,
            host=self._facts.name,
            now=now,
            original=original,
            headers=await self._headers(flight),
            failures=failures,
        )
        envelope = Envelope(
            id=notice_id,
            owner=original.owner,
            sender="",
            recipients=(original.sender,),
            received_at=now,
            eight_bit=notice.smtputf8,
            smtputf8=notice.smtputf8,
        )
        return ((envelope, Body(notice.content)),)

    async def _headers(self, flight: _Flight) -> bytes:
        """Return the message's header block; nothing if it cannot be read now."""
        try:
            body = await self._body(flight)
            if body.file is None:
                return header_block(body.chunks())
            return await asyncio.to_thread(lambda: header_block(body.chunks()))
        except (QueueUnavailable, NotFound):
            return b""

    def _tell(self, flight: _Flight, decided: Settlement) -> None:
        for recipient, outcome in decided.outcomes.items():
            self._count(outcome, flight.message.size)
            log.info(
                _EVENTS[outcome.verdict],
                owner=self._facts.owner,
                id=flight.id,
                recipient=recipient,
                reply=f"{outcome.reply_code} {outcome.enhanced} {outcome.text}",
                remote=outcome.remote,
                source=outcome.source,
                next_attempt_at=decided.retry_at.get(recipient),
            )
