"""What an attempt came to, brought to the disk, told in the log and to the sender.

Rules of this file: what was delivered is settled whatever it takes, for it must not be
sent again; failures wait for the other flights of their message, so that one attempt
makes one notice. What is decided is decided in settlement.py and notices.py.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from vnsmail.delivery import outcomes as say
from vnsmail.delivery.facts import AgentFacts
from vnsmail.delivery.lanes import Record
from vnsmail.delivery.notices import Notified, notices
from vnsmail.delivery.outcomes import Outcomes
from vnsmail.delivery.settlement import Settlement, settlement
from vnsmail.errors import NotFound, QueueUnavailable
from vnsmail.events import record as events
from vnsmail.events.record import Tell, untold
from vnsmail.log import logger
from vnsmail.message.dsn import MAX_FULL, header_block
from vnsmail.model import Envelope, Outcome, Ret, Verdict
from vnsmail.queue.body import Body
from vnsmail.queue.envelope import ENTROPY_BYTES, QueuedMessage, new_id
from vnsmail.queue.queue import Queue
from vnsmail.settings import QueueSettings

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds to wait, twice as long each time, when the queue cannot be used."""

EVENTS = {
    Verdict.DELIVERED: "message.delivered",
    Verdict.DEFERRED: "message.deferred",
    Verdict.FAILED: "message.failed",
}

Sign: TypeAlias = Callable[[Body], Awaitable[Body]]
"""Returns a message with the owner's signatures in front."""

Accepted: TypeAlias = Sequence[tuple[Envelope, Body]]

log = logger("delivery")


async def unsigned(body: Body) -> Body:
    """Return a message as it is."""
    return body


class Settler:
    """Settles the attempts of one owner.

    Args:
        facts: who sends; to be changed with ``update``.
        queue: the owner's.
        rules: waits and lifetime.
        clock: seconds since the epoch.
        chance: 0 to 1.
        hand_over: takes notices that are in the queue now.
        trouble: told when the queue cannot be used.
        count: told each outcome, with the octets of the message.
        sign: signs notices.
        tell: takes what is to stand in the event log.
    """

    def __init__(
        self,
        facts: AgentFacts,
        queue: Queue,
        rules: QueueSettings,
        clock: Callable[[], float],
        chance: Callable[[], float],
        hand_over: Callable[[Envelope, Body], None],
        trouble: Callable[[QueueUnavailable], None],
        count: Callable[[Outcome, int], None],
        sign: Sign = unsigned,
        tell: Tell = untold,
    ) -> None:
        self.facts = facts
        self._queue = queue
        self._rules = rules
        self._clock = clock
        self._chance = chance
        self._hand_over = hand_over
        self._trouble = trouble
        self._count = count
        self._sign = sign
        self._tell_event = tell

    async def settle(
        self,
        record: Record,
        message: QueuedMessage,
        outcomes: Outcomes,
        down_until: float = 0.0,
    ) -> dict[str, float]:
        """Put on disk what is known: failures with the last flight, the rest now.

        Returns when recipients that stay are due again.

        Args:
            record: the message in flight.
            message: how it stood before the attempt.
            outcomes: of some of its recipients.
            down_until: when the destination is asked again, if it could not be reached.
        """
        decided = settlement(
            message, outcomes, self._clock(), self._rules, self._chance(), down_until
        )
        self._tell(message, decided)
        record.failures |= say.of(decided.outcomes, Verdict.FAILED)
        settled = say.of(decided.outcomes, Verdict.DELIVERED, Verdict.DEFERRED)
        told = say.of(decided.outcomes, Verdict.DELIVERED)
        if not record.flying:
            settled |= record.failures
            told |= record.failures
            record.failures = {}
        if settled:
            await self._record(
                record, message, Settlement(settled, decided.retry_at), told
            )
        return decided.retry_at

    async def settle_failures(self, record: Record) -> None:
        """Settle failures that waited for a flight that did not set out."""
        failures, record.failures = record.failures, {}
        if failures and record.message is not None:
            await self._record(
                record, record.message, Settlement(failures, {}), failures
            )

    async def warn(self, message: QueuedMessage, reasons: Outcomes) -> None:
        """Tell the sender that a message is late, if that is wanted.

        Raises:
            QueueUnavailable: not now.
        """
        record = Record(message.envelope.id, None)
        added = await self._notices(record, message, reasons)
        try:
            await self._queue.settle(record.id, {}, {}, added, warned=True)
        except NotFound:
            return
        if added:
            now = self._clock()
            age = round(now - message.envelope.received_at, 3)
            log.info(
                "message.late", owner=self.facts.owner, id=record.id, queue_age=age
            )
            self._tell_event(
                events.Delayed(
                    time=events.at(now),
                    host=self.facts.owner,
                    id=record.id,
                    queue_seconds=age,
                )
            )
        self._pass_on(record, added)

    async def body(self, record: Record) -> Body:
        """Return the body of a message in flight.

        Raises:
            NotFound, QueueUnavailable: it is not in the queue, or cannot be read.
        """
        if record.body is not None:
            return record.body
        _, body = await self._queue.load(record.id)
        return body

    async def _record(
        self,
        record: Record,
        message: QueuedMessage,
        settled: Settlement,
        told: Outcomes,
    ) -> None:
        pause = FIRST_PAUSE
        while True:
            added = await self._notices(record, message, told)
            try:
                await self._queue.settle(
                    record.id, settled.outcomes, settled.retry_at, added
                )
                break
            except NotFound:
                self.withdrawn(record.id)
                return
            except QueueUnavailable as error:
                self._trouble(error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        self._pass_on(record, added)

    def withdrawn(self, message_id: str) -> None:
        """Tell that a message has left the queue while it was under way."""
        log.info("message.withdrawn", owner=self.facts.owner, id=message_id)
        now = events.at(self._clock())
        self._tell_event(
            events.Withdrawn(time=now, host=self.facts.owner, id=message_id)
        )

    def _pass_on(self, record: Record, added: Accepted) -> None:
        """Tell of notices that are in the queue, and have them delivered."""
        for envelope, body in added:
            self._tell_event(
                events.Accepted(
                    time=events.at(envelope.received_at),
                    host=envelope.owner,
                    id=envelope.id,
                    via="notice",
                    sender=envelope.sender,
                    recipients=envelope.recipients,
                    recipient_count=len(envelope.recipients),
                    size=body.size,
                    about=record.id,
                )
            )
            self._hand_over(envelope, body)

    async def _notices(
        self, record: Record, message: QueuedMessage, told: Outcomes
    ) -> Accepted:
        """Return the notices that the sender is to have of these outcomes."""
        original = message.envelope
        notified = Notified.of(original, told)
        if not notified:
            self._tell_of_silence(original, told)
            return ()
        now = self._clock()
        full = original.ret is Ret.FULL and message.size <= MAX_FULL
        returned = await self._returned(record, full=full)
        made = notices(
            original,
            notified,
            host=self.facts.name,
            now=now,
            until=original.received_at + self._rules.lifetime,
            new_id=lambda: new_id(now, os.urandom(ENTROPY_BYTES)),
            returned=returned,
            full=full and bool(returned),
        )
        return [(envelope, await self._sign(body)) for envelope, body in made]

    def _tell_of_silence(self, original: Envelope, told: Outcomes) -> None:
        """A notice that cannot be delivered is answered by none: the log has it."""
        failed = say.of(told, Verdict.FAILED)
        if failed and not original.sender:
            log.warning(
                "notice.undeliverable",
                owner=self.facts.owner,
                id=original.id,
                recipients=sorted(failed),
            )

    async def _returned(self, record: Record, *, full: bool) -> bytes:
        """Return the header block, or all; nothing if it cannot be read now."""

        def read() -> bytes:
            chunks = body.chunks()
            return b"".join(chunks) if full else header_block(chunks)

        try:
            body = await self.body(record)
            return read() if body.file is None else await asyncio.to_thread(read)
        except (QueueUnavailable, NotFound):
            return b""

    def _tell(self, message: QueuedMessage, decided: Settlement) -> None:
        if self._tell_event is not untold:
            self._tell_of_events(message, decided)
            return
        age = round(self._clock() - message.envelope.received_at, 3)
        attempts = {each.address: each.attempts for each in message.recipients}
        for recipient, outcome in decided.outcomes.items():
            self._count(outcome, message.size)
            log.info(
                EVENTS[outcome.verdict],
                owner=self.facts.owner,
                id=message.envelope.id,
                recipient=recipient,
                reply=f"{outcome.reply_code} {outcome.enhanced} {outcome.text}",
                remote=outcome.remote,
                source=outcome.source,
                next_attempt_at=decided.retry_at.get(recipient),
                attempt=attempts.get(recipient, 0) + 1,
                queue_age=age,
                **_contact(outcome),
            )

    def _tell_of_events(self, message: QueuedMessage, decided: Settlement) -> None:
        now = self._clock()
        attempts = {each.address: each.attempts for each in message.recipients}
        for recipient, outcome in decided.outcomes.items():
            self._count(outcome, message.size)
            attempt = attempts.get(recipient, 0) + 1
            tried = events.Tried(message.envelope, message.size, recipient, attempt)
            event: events.Event
            if outcome.verdict is Verdict.DEFERRED:
                next_attempt = decided.retry_at.get(recipient)
                event = events.deferral(tried, outcome, now, next_attempt)
            else:
                event = events.outcome(_event_of(outcome), tried, outcome, now)
            self._tell_event(event)


def _event_of(outcome: Outcome) -> events.Ended:
    if outcome.verdict is Verdict.DELIVERED:
        return events.Delivered
    return events.Expired if say.is_expired(outcome) else events.Bounced


def _contact(outcome: Outcome) -> dict[str, object]:
    """Return the facts of the connection as fields of an event; seconds to the microsecond."""
    contact = outcome.contact
    if contact is None:
        return {}
    return {
        "source_port": contact.source_port,
        "helo": contact.helo,
        "remote_name": contact.remote,
        "remote_address": contact.remote_address,
        "remote_port": contact.remote_port,
        "tls": contact.tls or "none",
        "tls_verified": contact.tls_verified or None,
        "connect": round(contact.connect, 6),
        "hello": round(contact.hello, 6),
        "data": round(contact.data, 6),
        "total": round(contact.total, 6),
    }
