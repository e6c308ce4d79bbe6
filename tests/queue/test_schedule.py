import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.queue.schedule import retry_at

USUAL = {"first_retry": 300.0, "longest_retry": 14400.0, "lifetime": 432000.0}


@pytest.mark.parametrize(
    ("attempts", "wait"),
    [(1, 300), (2, 600), (3, 1200), (6, 9600), (7, 14400), (8, 14400), (10**9, 14400)],
)
def test_each_wait_is_twice_the_one_before(attempts, wait):
    """Waits double up to the longest, however many there were."""
    found = retry_at(attempts, 1000.0, 500.0, **USUAL, jitter=0.5)

    assert 1000.0 + wait == found


def test_no_attempt_waits_like_the_first():
    """A message whose source was missing comes back after the first wait."""
    assert retry_at(0, 1000.0, 500.0, **USUAL, jitter=0.5) == 1300.0


def test_jitter_spreads_by_a_tenth():
    """The jitter moves a wait by a tenth either way."""
    found = [retry_at(1, 0.0, 0.0, **USUAL, jitter=j) for j in (0.0, 1.0)]

    assert pytest.approx([270.0, 330.0]) == found


def test_last_attempt_at_the_end_of_the_lifetime():
    """The last wait is cut so that the last attempt falls on the end."""
    assert retry_at(20, 431000.0, 0.0, **USUAL, jitter=0.5) == 432000.0


def test_given_up_after_the_lifetime():
    """At the end of its lifetime a message is given up."""
    assert None is retry_at(20, 432000.0, 0.0, **USUAL, jitter=0.5)


POSITIVE = st.floats(0.01, 1e6)


@given(
    attempts=st.integers(0, 2000),
    age=st.floats(0, 1e6),
    settings=st.fixed_dictionaries(dict.fromkeys(USUAL, POSITIVE)),
    jitter=st.floats(0, 1),
)
def test_always_ahead_and_never_beyond_the_lifetime(attempts, age, settings, jitter):
    """Whatever the settings, a retry lies in the future and within the lifetime."""
    received_at = 1_800_000_000.0
    now, end = received_at + age, received_at + settings["lifetime"]
    found = retry_at(attempts, now, received_at, **settings, jitter=jitter)

    assert (found is None) == (now >= end)
    assert found is None or now < found <= end
