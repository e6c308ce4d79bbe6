import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.errors import LimitReached
from vnsmail.inbound.allowance import FULL, TOO_FAST, HostAllowance, Hour, reply
from vnsmail.model import Limits

NOW = 1_800_000_000.0


def allowance(queued=0, hour=None, **limits):
    hour = Hour() if hour is None else hour
    return HostAllowance("alpha.example", Limits(**limits), hour, queued)


def test_no_limits():
    """As much as there is."""
    free = allowance(queued=10**15)
    for _ in range(1000):
        free.take(10**9, NOW, for_sending=True)

    assert None is free.may_begin(10**12)


def test_a_full_queue():
    """What is on its way into the queue counts; what was not kept is given back."""
    small = allowance(queued=600, queue_bytes=1000)
    small.take(300, NOW, for_sending=False)
    with pytest.raises(LimitReached, match="may have 1000 octets") as caught:
        small.take(200, NOW, for_sending=False)
    assert FULL is reply(caught.value)
    small.done(300, NOW, for_sending=False, kept=False)
    small.take(400, NOW, for_sending=False)
    small.done(400, NOW, for_sending=False, kept=True)
    assert not small.fits(1)
    small.recount(0)
    assert small.fits(1000)


def test_what_can_never_fit():
    """It is turned away before its body comes; the rest may fit by then."""
    small = allowance(queued=1000, queue_bytes=1000)

    assert FULL is small.may_begin(1001)
    assert None is small.may_begin(1000)


def test_messages_per_hour():
    """The last one allowed goes through; an hour later there is room again."""
    slow = allowance(messages_per_hour=2)
    slow.take(1, NOW, for_sending=True)
    slow.take(1, NOW + 10, for_sending=True)
    with pytest.raises(LimitReached, match="the 2 messages that it may send") as caught:
        slow.take(1, NOW + 3599, for_sending=True)
    assert TOO_FAST is reply(caught.value)
    assert caught.value.wait > 0
    slow.take(1, NOW + 3599, for_sending=False)
    slow.take(1, NOW + 3660, for_sending=True)


def test_given_back():
    """A message that was not kept was not sent."""
    slow = allowance(messages_per_hour=1)
    slow.take(1, NOW, for_sending=True)
    slow.done(1, NOW, for_sending=True, kept=False)

    slow.take(1, NOW, for_sending=True)


def test_a_clock_that_was_wrong():
    """What was counted in a far future locks nobody out."""
    slow = allowance(messages_per_hour=1, hour=Hour({int(NOW // 60) + 10_000: 9}))

    slow.take(1, NOW, for_sending=True)


@given(
    st.integers(1, 5),
    st.lists(st.floats(0, 4000, allow_nan=False), max_size=60),
)
def test_no_hour_has_more(most, pauses):
    """Whenever they come: of those taken, no more than that are within one hour."""
    slow, now = allowance(messages_per_hour=most), NOW
    taken: list[float] = []
    waits: list[float] = []
    for pause in pauses:
        now += pause
        try:
            slow.take(1, now, for_sending=True)
        except LimitReached as error:
            waits.append(error.wait)
        else:
            taken.append(now)

    assert all(0 < wait <= 3660 for wait in waits)
    for moment in taken:
        assert most >= sum(1 for each in taken if moment - 3600 < each <= moment)
