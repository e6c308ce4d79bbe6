import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.queue.envelope import ENTROPY_BYTES, is_id, new_id

TIMES = st.floats(min_value=0, max_value=30_000_000_000)
ENTROPY = st.binary(min_size=ENTROPY_BYTES, max_size=ENTROPY_BYTES)


@given(TIMES, ENTROPY)
def test_form(now, entropy):
    """An id is 20 characters that survive being upper-cased and stand in a path."""
    found = new_id(now, entropy)

    assert len(found) == 20
    assert found.isalnum()
    assert found.isascii()
    assert found == found.lower()
    assert is_id(found)


@given(TIMES, TIMES, ENTROPY, ENTROPY)
def test_sorts_by_time(first, second, one, other):
    """Ids sort by time of arrival, to the microsecond."""
    micros = [int(first * 1_000_000), int(second * 1_000_000)]

    if micros[0] != micros[1]:
        assert (micros[0] < micros[1]) == (new_id(first, one) < new_id(second, other))


@given(TIMES, ENTROPY, ENTROPY)
def test_entropy_tells_apart(now, one, other):
    """Two messages of one microsecond differ if 45 of their random bits do."""
    first_bits, second_bits = (int.from_bytes(e, "big") >> 3 for e in (one, other))

    assert (first_bits == second_bits) == (new_id(now, one) == new_id(now, other))


@pytest.mark.parametrize(
    ("now", "entropy"), [(-1.0, bytes(6)), (4e10, bytes(6)), (1.0, bytes(5))]
)
def test_refuses_what_would_not_sort_or_not_be_unique(now, entropy):
    """A time out of range or too few random bytes is a fault of the caller."""
    with pytest.raises(ValueError, match="no queue id"):
        new_id(now, entropy)


@pytest.mark.parametrize("text", ["", "../../etc/passwd0000", "i" * 20, "A" * 20])
def test_not_an_id(text):
    """What new_id never makes is no id."""
    assert not is_id(text)
