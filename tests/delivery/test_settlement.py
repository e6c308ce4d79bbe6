from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.delivery.helpers import NOW, envelope
from vnsmail.delivery import outcomes as say
from vnsmail.delivery.settlement import (
    MAX_RECIPIENTS,
    due_at,
    fresh,
    settlement,
)
from vnsmail.model import Outcome, Verdict
from vnsmail.queue.envelope import QueuedMessage, QueuedRecipient, destination
from vnsmail.settings import QueueSettings

RULES = QueueSettings(first_retry=300, longest_retry=3600, lifetime=86400)
DELIVERED = Outcome(Verdict.DELIVERED, 250, "2.0.0", "ok")
DEFERRED = say.deferred(451, "4.3.0", "later")
FAILED = say.failed(550, "5.1.1", "no such user")
UNREACHABLE = say.connection_failed("refused", "mx.b.example")


def message(attempts=0, at=NOW, to="bob@b.example"):
    """Return a message that was attempted so many times."""
    one = QueuedRecipient(to, attempts, at, None)
    return QueuedMessage(envelope(to, at=at), 10, (one,))


def waits(outcome, attempts, now=NOW, at=NOW):
    """Return how long a recipient waits with this outcome."""
    found = settlement(
        message(attempts, at), {"bob@b.example": outcome}, now, RULES, jitter=0.5
    )
    return found.retry_at["bob@b.example"] - now


def test_a_fresh_message_is_due_at_once():
    """What was just accepted is due when it arrived, and was never attempted."""
    sent = envelope("a@b.example", "c@d.example")
    found = fresh(sent, 7)

    assert (sent, 7) == (found.envelope, found.size)
    assert sent.recipients == tuple(each.address for each in found.recipients)
    assert {(0, NOW)} == {(r.attempts, r.next_attempt_at) for r in found.recipients}


@pytest.mark.parametrize(
    ("recipient", "domain"),
    [
        ("bob@B.Example", "b.example"),
        ('"a@b"@c.example', "c.example"),
        ("bob@[IPv6:fd00::2]", "[ipv6:fd00::2]"),
        ("Postmaster", ""),
    ],
)
def test_destination(recipient, domain):
    """The domain is behind the last @; "postmaster" alone has none."""
    assert domain == destination(recipient)


def several(*recipients):
    return QueuedMessage(envelope(*(r.address for r in recipients)), 10, recipients)


def test_those_at_one_destination():
    """Those at one destination go together; those not due, or elsewhere, stay."""
    found = several(
        QueuedRecipient("a@b.example", 0, NOW, None),
        QueuedRecipient("x@alpha.example", 0, NOW - 1, None),
        QueuedRecipient("c@B.example", 3, NOW, None),
        QueuedRecipient("d@b.example", 1, NOW + 1, None),
        QueuedRecipient("postmaster", 0, NOW, None),
    )

    assert [("a@b.example", "c@B.example")] == due_at(found, "b.example", NOW)
    assert [("postmaster",)] == due_at(found, "", NOW)


@given(
    st.lists(
        st.tuples(st.sampled_from(["a.example", "B.example"]), st.booleans()),
        max_size=3 * MAX_RECIPIENTS,
    )
)
def test_every_due_recipient_is_in_one_transaction(chosen):
    """No transaction is too large, and nobody due is left out."""
    found = several(
        *(
            QueuedRecipient(f"{n}@{domain}", 0, NOW if due else NOW + 1, None)
            for n, (domain, due) in enumerate(chosen)
        )
    )
    parts = due_at(found, "a.example", NOW) + due_at(found, "b.example", NOW)

    due = [r.address for r in found.recipients if r.next_attempt_at <= NOW]
    assert sorted(due) == sorted(each for part in parts for each in part)
    assert all(0 < len(part) <= MAX_RECIPIENTS for part in parts)


def test_delivered_and_failed_are_final():
    """They get no time."""
    both = QueuedMessage(
        envelope("a@b.example", "c@b.example"),
        1,
        tuple(QueuedRecipient(f"{x}@b.example", 0, NOW, None) for x in "ac"),
    )
    outcomes = {"a@b.example": DELIVERED, "c@b.example": FAILED}
    found = settlement(both, outcomes, NOW, RULES, jitter=0.5)

    assert (outcomes, {}) == (found.outcomes, found.retry_at)


@pytest.mark.parametrize(
    ("attempts", "wait"), [(0, 300), (1, 600), (2, 1200), (5, 3600), (99, 3600)]
)
def test_backoff(attempts, wait):
    """Each wait is twice the one before, up to the longest."""
    assert pytest.approx(wait) == waits(DEFERRED, attempts)


def test_who_waits_for_a_destination_comes_back_with_it():
    """The wait is the destination's, however often the message itself was tried."""
    found = settlement(
        message(9), {"bob@b.example": UNREACHABLE}, NOW, RULES, 0.5, NOW + 77
    )
    other = settlement(
        message(9), {"bob@b.example": DEFERRED}, NOW, RULES, 0.5, NOW + 77
    )

    assert {"bob@b.example": NOW + 77} == found.retry_at
    assert {"bob@b.example": NOW + 3600} == other.retry_at


def test_the_last_attempt_is_at_the_end_of_the_lifetime():
    """A remote that comes back on the last day still gets the message."""
    at = NOW - RULES.lifetime + 100

    assert pytest.approx(100) == waits(DEFERRED, 9, at=at)


@pytest.mark.parametrize("outcome", [DEFERRED, UNREACHABLE])
def test_given_up(outcome):
    """After its lifetime a message has failed, with what was met last."""
    old = message(9, NOW - RULES.lifetime)
    found = settlement(old, {"bob@b.example": outcome}, NOW, RULES, jitter=0.5)

    assert {} == found.retry_at
    assert say.expired(outcome, RULES.lifetime) == found.outcomes["bob@b.example"]


@given(
    st.sampled_from([DELIVERED, DEFERRED, FAILED, UNREACHABLE]),
    st.integers(0, 100),
    st.floats(0, 2 * RULES.lifetime),
    st.floats(0, 1),
)
def test_whatever_comes_is_decided(outcome, attempts, age, jitter):
    """Deferred recipients, and they alone, get a time within the lifetime."""
    old = message(attempts, NOW - age)
    found = settlement(old, {"bob@b.example": outcome}, NOW, RULES, jitter=jitter)

    decided = found.outcomes["bob@b.example"]
    deferred = decided.verdict is Verdict.DEFERRED
    assert ({"bob@b.example"} if deferred else set()) == set(found.retry_at)
    assert all(NOW < at <= NOW - age + RULES.lifetime for at in found.retry_at.values())
    if outcome.verdict is not Verdict.DEFERRED:
        assert outcome == decided
    elif not deferred:
        assert age >= RULES.lifetime
    else:
        assert replace(outcome) == decided
