import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.inbound.guesses import (
    AT_OWNER,
    AT_USER,
    FADING,
    FROM_NETWORK,
    SLOWEST,
    STRIKES,
    TOO_MANY,
    Guesses,
)
from vnsmail.inbound.scores import Rates, Scores, network


def address(number):
    return ipaddress.ip_address(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")


HOME = address(1)


class TestScores:
    """Counts that fade."""

    def test_fade(self):
        """Half is left after each half-life; time that stands still takes nothing."""
        scores: Scores[str] = Scores(10)
        assert [1, 2] == [scores.add("a", 0), scores.add("a", 0)]

        assert [2, 1, 0.5, 0] == [
            *(scores.get("a", 0), scores.get("a", 10), scores.get("a", 20)),
            scores.get("b", 0),
        ]
        assert scores.wait("a", 0, 1) == pytest.approx(10)
        assert 0 == scores.wait("a", 0, 3)
        scores.forget("a")
        assert 0 == scores.get("a", 0)

    @given(st.lists(st.tuples(st.integers(0, 50), st.floats(-10, 1e9))))
    def test_bounded(self, touched):
        """However many keys there are, memory has its limit, and no count is less than 0."""
        scores: Scores[int] = Scores(10, 8)
        rates: Rates[int] = Rates(8)
        for key, when in touched:
            assert scores.add(key, when) >= 1
            rates.take(key, when, 5)

        assert len(scores) <= 8


class TestRates:
    """So many an hour."""

    def test_used_up_and_back(self):
        """All at once, then one as often as the hour gives; refusals cost nothing."""
        rates: Rates[str] = Rates()
        assert [True] * 6 == [rates.take("a", 0, 6) for _ in range(6)]
        assert [False] * 3 == [rates.take("a", 599, 6) for _ in range(3)]
        assert rates.take("a", 600, 6)
        assert not rates.take("a", 601, 6)
        assert rates.take("b", 601, 6)

        assert rates.take("a", 10_000, 6, 6)
        assert not rates.take("a", 10_000, 6)

    def test_never_more_than_all(self):
        """What is more than an hour's allowance is never granted."""
        rates: Rates[str] = Rates()

        assert not rates.take("a", 0, 5, 6)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
    ],
)
def test_networks(text, whole):
    """A customer has one IPv4 address, and 2**64 of IPv6."""
    assert whole == network(ipaddress.ip_address(text))
    assert "" == network(None)


class TestGuesses:
    """Failed sign-ins."""

    def test_get_slower(self):
        """Each failure from one place waits twice as long, up to a limit."""
        guesses = Guesses()
        waits = [guesses.failed(HOME, f"u{n}", 0) for n in range(8)]

        assert [1, 2, 4, 8, 16, SLOWEST, SLOWEST, SLOWEST] == waits
        assert 8 == guesses.total

    def test_from_one_place(self):
        """Then nothing from there is looked at; others sign in; and it passes."""
        guesses = Guesses()
        for n in range(FROM_NETWORK):
            assert guesses.refusal(HOME, "ann", 0) is None
            guesses.failed(HOME, f"u{n}", 0)

        assert TOO_MANY == guesses.refusal(HOME, "ann", 0)
        assert guesses.refusal(address(2), "ann", 0) is None
        assert guesses.refusal(HOME, "ann", FADING) is None

    def test_at_one_user(self):
        """A name that is tried from everywhere is refused, but where its user was."""
        guesses = Guesses()
        guesses.succeeded(HOME, "ann")
        for n in range(AT_USER):
            guesses.failed(address(100 + n), "ann", 0)

        assert TOO_MANY == guesses.refusal(address(2), "ann", 0)
        assert guesses.refusal(HOME, "ann", 0) is None
        assert guesses.refusal(address(2), "bob", 0) is None

    def test_at_the_owner(self):
        """So it is when all names are tried."""
        guesses = Guesses()
        guesses.succeeded(HOME, "ann")
        for n in range(AT_OWNER):
            guesses.failed(address(100 + n), f"u{n}", 0)

        assert TOO_MANY == guesses.refusal(address(2), "new", 0)
        assert guesses.refusal(HOME, "ann", 0) is None

    def test_a_place_that_fails(self):
        """Where a user was is as any other after some failures of that user there."""
        guesses = Guesses()
        guesses.succeeded(HOME, "ann")
        for _ in range(STRIKES):
            guesses.failed(HOME, "ann", 0)
        for n in range(FROM_NETWORK):
            guesses.failed(HOME, f"u{n}", 0)

        assert TOO_MANY == guesses.refusal(HOME, "ann", 0)
