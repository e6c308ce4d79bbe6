from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.delivery.helpers import NOW, envelope
from vnsmail.delivery import outcomes as say
from vnsmail.delivery.settlement import (
    MAX_RECIPIENTS,
    SOURCE_RETRY,
    Group,
    domain_of,
    due_groups,
    fresh,
    settlement,
)
from vnsmail.errors import BrokerGone
from vnsmail.model import Outcome, Verdict
from vnsmail.queue.envelope import QueuedMessage, QueuedRecipient
from vnsmail.settings import QueueSettings

RULES = QueueSettings(first_retry=300, longest_retry=3600, lifetime=86400)
DELIVERED = Outcome(Verdict.DELIVERED, 250, "2.0.0", "ok")
DEFERRED = say.deferred(451, "4.3.0", "later")
FAILED = say.failed(550, "5.1.1", "no such user")
NO_SOURCE = say.no_source(BrokerGone())


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
def test_domain_of(recipient, domain):
    """The domain is behind the last @; "postmaster" alone has none."""
    assert domain == domain_of(recipient)


def test_groups_by_domain():
    """Those at one domain go together; those not due stay."""
    recipients = [
        QueuedRecipient("a@b.example", 0, NOW, None),
        QueuedRecipient("x@alpha.example", 0, NOW - 1, None),
        QueuedRecipient("c@B.example", 3, NOW, None),
        QueuedRecipient("d@b.example", 1, NOW + 1, None),
        QueuedRecipient("postmaster", 0, NOW, None),
    ]
    found = due_groups(recipients, NOW, {"alpha.example"})

    assert [
        Group("b.example", local=False, recipients=("a@b.example", "c@B.example")),
        Group("alpha.example", local=True, recipients=("x@alpha.example",)),
        Group("", local=True, recipients=("postmaster",)),
    ] == found


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a.example", "B.example", "alpha.example"]),
            st.booleans(),
        ),
        max_size=3 * MAX_RECIPIENTS,
    )
)
def test_every_due_recipient_is_in_one_group(chosen):
    """No group is too large, none mixes domains, and nobody due is left out."""
    recipients = [
        QueuedRecipient(f"{n}@{domain}", 0, NOW if due else NOW + 1, None)
        for n, (domain, due) in enumerate(chosen)
    ]
    groups = due_groups(recipients, NOW, {"alpha.example"})

    grouped = [each for group in groups for each in group.recipients]
    due = [r.address for r in recipients if r.next_attempt_at <= NOW]
    assert sorted(due) == sorted(grouped)
    for group in groups:
        assert 0 < len(group.recipients) <= MAX_RECIPIENTS
        assert {group.domain} == {domain_of(each) for each in group.recipients}
        assert group.local is (group.domain == "alpha.example")


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


@pytest.mark.parametrize("attempts", [0, 1, 20])
def test_a_missing_source_is_asked_for_soon(attempts):
    """Mail flows soon after a repair, however often it was tried before."""
    assert pytest.approx(SOURCE_RETRY) == waits(NO_SOURCE, attempts)


@pytest.mark.parametrize(("attempts", "wait"), [(0, 4.0), (1, 4.0), (2, 8.0)])
def test_a_missing_source_keeps_shorter_waits(attempts, wait):
    """Where retries are quicker than that anyway, they stay so, and no longer."""
    rules = RULES.model_copy(update={"first_retry": 4.0, "longest_retry": 8.0})
    found = settlement(
        message(attempts), {"bob@b.example": NO_SOURCE}, NOW, rules, jitter=0.5
    )

    assert pytest.approx(wait) == found.retry_at["bob@b.example"] - NOW


def test_the_last_attempt_is_at_the_end_of_the_lifetime():
    """A remote that comes back on the last day still gets the message."""
    at = NOW - RULES.lifetime + 100

    assert pytest.approx(100) == waits(DEFERRED, 9, at=at)


@pytest.mark.parametrize("outcome", [DEFERRED, NO_SOURCE])
def test_given_up(outcome):
    """After its lifetime a message has failed, with what was met last."""
    old = message(9, NOW - RULES.lifetime)
    found = settlement(old, {"bob@b.example": outcome}, NOW, RULES, jitter=0.5)

    assert {} == found.retry_at
    assert say.expired(outcome, RULES.lifetime) == found.outcomes["bob@b.example"]


@given(
    st.sampled_from([DELIVERED, DEFERRED, FAILED, NO_SOURCE]),
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
