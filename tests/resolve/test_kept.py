"""What DNS said is known for as long as it said, and no longer."""

import pytest

from vnsmail.resolve.kept import LONGEST, Kept

MX = ("b.example", "MX")


@pytest.mark.parametrize(
    ("until", "known_at", "gone_at"),
    [(160.0, 159.9, 160.0), (1e9, 99.9 + LONGEST, 100.0 + LONGEST)],
)
def test_an_answer_has_its_time(until, known_at, gone_at):
    kept = Kept[str](10)
    kept.keep(MX, "mx1", until, 100.0)

    assert "mx1" == kept.find(MX, known_at)
    assert kept.find(("b.example", "A"), known_at) is None
    assert kept.find(MX, gone_at) is None


def test_what_is_good_for_no_time_is_not_kept():
    """A TTL of 0 (RFC 1035 section 3.2.1)."""
    kept = Kept[str](10)
    kept.keep(MX, "mx1", 100.0, 100.0)

    assert kept.find(MX, 99.0) is None


def test_those_nobody_asks_for_make_room():
    kept = Kept[int](3)
    for number in range(3):
        kept.keep((f"{number}.example", "A"), number, 200.0, 100.0)
    kept.find(("0.example", "A"), 100.0)
    kept.keep(("3.example", "A"), 3, 200.0, 100.0)

    names = [f"{number}.example" for number in range(4)]
    assert [0, None, 2, 3] == [kept.find((name, "A"), 100.0) for name in names]
