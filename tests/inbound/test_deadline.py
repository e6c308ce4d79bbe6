import asyncio
import heapq
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.inbound.deadline import MIN_RATE, Deadline


class FakeLoop:
    """Time goes on only when told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, int, FakeTimer]] = []

    def time(self):
        return self.now

    def call_at(self, when, callback):
        timer = FakeTimer(callback)
        heapq.heappush(self.timers, (when, id(timer), timer))
        return timer

    def go_to(self, when):
        while self.timers and self.timers[0][0] <= when:
            self.now, _, timer = heapq.heappop(self.timers)
            if not timer.cancelled:
                timer.callback()
        self.now = when


class FakeTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self):
        self.cancelled = True


@pytest.fixture
def loop(monkeypatch):
    loop = FakeLoop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    return loop


@pytest.fixture
def late():
    return []


@pytest.fixture
def deadline(loop, late):
    return Deadline(lambda: late.append(loop.now))


def test_it_rings_once(deadline, loop, late):
    """It calls back when the time is over, and not again."""
    deadline.restart(10)
    loop.go_to(9.9)
    assert [] == late
    assert deadline.running
    loop.go_to(100)

    assert [10] == late
    assert not deadline.running


def test_restart_moves_it(deadline, loop, late):
    """What is done moves it on, or brings it nearer."""
    deadline.restart(10)
    loop.go_to(5)
    deadline.restart(10)
    loop.go_to(14)
    deadline.restart(2)
    loop.go_to(100)

    assert [16] == late


def test_stop(deadline, loop, late):
    """While the client is not waited for, nothing rings; then it gets all its time."""
    deadline.restart(10)
    deadline.stop()
    loop.go_to(50)
    deadline.restart(10)
    loop.go_to(100)

    assert [60] == late


def test_end(deadline, loop, late):
    """Of a session that is over nothing is left."""
    deadline.restart(10)
    deadline.end()
    loop.go_to(100)

    assert [] == late
    assert all(timer.cancelled for _, _, timer in loop.timers)


def test_bytes_give_the_time_they_may_take(deadline, loop, late):
    """A body that comes at the least rate goes on, one that is slower does not."""
    deadline.restart(10)
    for second in range(1, 101):
        loop.go_to(second)
        deadline.came(MIN_RATE)
    assert [] == late
    for second in range(101, 200):
        loop.go_to(second)
        deadline.came(MIN_RATE // 2)

    assert late
    assert late[0] < 125


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 10**9))))
def test_bytes_never_give_more_than_the_limit(steps):
    """However much comes, the next byte may not take longer than a command."""
    loop = FakeLoop()
    late: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "get_running_loop", lambda: loop)
        deadline = Deadline(lambda: late.append(loop.now))
    deadline.restart(10)
    for pause, count in steps:
        loop.go_to(loop.now + pause)
        deadline.came(count)
    loop.go_to(loop.now + 10)

    assert late
