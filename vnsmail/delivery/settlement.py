"""What is done about the outcomes of an attempt. Pure.

Rules of this file: values only; the clock and the dice are the caller's. Recipients
that were deferred together are due together again, so that they share a transaction.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from vnsmail.delivery import outcomes as say
from vnsmail.delivery.outcomes import Outcomes
from vnsmail.model import Envelope, Outcome, Verdict
from vnsmail.queue.envelope import QueuedMessage, QueuedRecipient, destination
from vnsmail.queue.schedule import retry_at
from vnsmail.settings import QueueSettings

MAX_RECIPIENTS = 100
"""Recipients a transaction; every server takes that many (RFC 5321 4.5.3.1.8)."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """What the queue is told."""

    outcomes: Outcomes
    retry_at: dict[str, float]


def fresh(envelope: Envelope, size: int) -> QueuedMessage:
    """Return how a message stands in the queue that was just accepted into it."""
    recipients = tuple(
        QueuedRecipient(address, 0, envelope.received_at, None)
        for address in envelope.recipients
    )
    return QueuedMessage(envelope, size, recipients)


def due_at(message: QueuedMessage, name: str, now: float) -> list[tuple[str, ...]]:
    """Return the recipients at a destination that are due, a transaction each."""
    addresses = [
        each.address
        for each in message.recipients
        if each.next_attempt_at <= now and destination(each.address) == name
    ]
    return [
        tuple(addresses[start : start + MAX_RECIPIENTS])
        for start in range(0, len(addresses), MAX_RECIPIENTS)
    ]


def settlement(
    message: QueuedMessage,
    outcomes: Mapping[str, Outcome],
    now: float,
    rules: QueueSettings,
    jitter: float,
    down_until: float = 0.0,
) -> Settlement:
    """Return what to tell the queue: deferred recipients get a time, or are given up.

    Args:
        message: how it stood before the attempt.
        outcomes: what the attempt came to, by address.
        now: seconds since the epoch.
        rules: waits and lifetime.
        jitter: 0 to 1, random.
        down_until: when the destination is asked again, where it is what failed; the
            wait is that of the destination then, and not the message's own.
    """
    attempted = {each.address: each.attempts for each in message.recipients}
    decided: Outcomes = {}
    times: dict[str, float] = {}
    for address, outcome in outcomes.items():
        decided[address] = outcome
        if outcome.verdict is not Verdict.DEFERRED:
            continue
        at = retry_at(
            attempted[address] + 1,
            now,
            message.envelope.received_at,
            first_retry=rules.first_retry,
            longest_retry=rules.longest_retry,
            lifetime=rules.lifetime,
            jitter=jitter,
        )
        if at is not None and outcome.unreachable and down_until > now:
            at = min(down_until, message.envelope.received_at + rules.lifetime)
        if at is None:
            decided[address] = say.expired(outcome, rules.lifetime)
        else:
            times[address] = at
    return Settlement(decided, times)
