"""What is done about the outcomes of an attempt. Pure.

Rules of this file: values only; the clock and the dice are the caller's. Recipients
that were deferred together are due together again, so that they share a transaction.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from vnsmail.delivery import outcomes as say
from vnsmail.delivery.outcomes import Outcomes
from vnsmail.model import Envelope, Outcome, Verdict
from vnsmail.queue.envelope import QueuedMessage, QueuedRecipient
from vnsmail.queue.schedule import retry_at
from vnsmail.settings import QueueSettings

SOURCE_RETRY = 30.0
"""Seconds at most until the next try when only the source was missing: to ask the
broker costs nobody else anything, and mail should flow soon after a repair."""

MAX_RECIPIENTS = 100
"""Recipients a transaction; every server takes that many (RFC 5321 4.5.3.1.8)."""


@dataclass(frozen=True, slots=True)
class Group:
    """Recipients of one message that are attempted together."""

    domain: str
    """Where they are, in lower case; empty for recipients without a domain."""
    local: bool
    recipients: tuple[str, ...]


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


def domain_of(recipient: str) -> str:
    return recipient.rpartition("@")[2].lower() if "@" in recipient else ""


def due_groups(
    recipients: Iterable[QueuedRecipient], now: float, local_domains: AbstractSet[str]
) -> list[Group]:
    """Return the recipients that are due, grouped by domain.

    A recipient without a domain is here: only "postmaster" is written so (RFC 5321
    section 4.5.1).
    """
    by_domain: dict[str, list[str]] = {}
    for recipient in recipients:
        if recipient.next_attempt_at <= now:
            address = recipient.address
            by_domain.setdefault(domain_of(address), []).append(address)
    return [
        Group(domain, not domain or domain in local_domains, part)
        for domain, addresses in by_domain.items()
        for part in _parts(addresses)
    ]


def settlement(
    message: QueuedMessage,
    outcomes: Mapping[str, Outcome],
    now: float,
    rules: QueueSettings,
    jitter: float,
) -> Settlement:
    """Return what to tell the queue: deferred recipients get a time, or are given up.

    Args:
        message: how it stood before the attempt.
        outcomes: what the attempt came to, by address.
        now: seconds since the epoch.
        rules: waits and lifetime.
        jitter: 0 to 1, random.
    """
    attempted = {each.address: each.attempts for each in message.recipients}
    decided: Outcomes = {}
    times: dict[str, float] = {}
    for address, outcome in outcomes.items():
        decided[address] = outcome
        if outcome.verdict is not Verdict.DEFERRED:
            continue
        waits = (rules.first_retry, rules.longest_retry)
        attempts = attempted[address] + 1
        if outcome.not_an_attempt:
            attempts -= 1
            waits = (min(SOURCE_RETRY, waits[0]), min(SOURCE_RETRY, waits[1]))
        at = retry_at(
            attempts,
            now,
            message.envelope.received_at,
            first_retry=waits[0],
            longest_retry=waits[1],
            lifetime=rules.lifetime,
            jitter=jitter,
        )
        if at is None:
            decided[address] = say.expired(outcome, rules.lifetime)
        else:
            times[address] = at
    return Settlement(decided, times)


def _parts(addresses: Sequence[str]) -> Iterable[tuple[str, ...]]:
    for start in range(0, len(addresses), MAX_RECIPIENTS):
        yield tuple(addresses[start : start + MAX_RECIPIENTS])
