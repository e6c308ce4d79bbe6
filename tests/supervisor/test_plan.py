from hypothesis import given
from hypothesis import strategies as st

from vnsmail.supervisor.plan import worker_for


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 9), min_size=1))
def test_the_least_loaded(loads):
    """A host goes to a worker with the fewest; always the same one of several."""
    chosen = worker_for(loads)

    assert min(loads.values()) == loads[chosen]
    assert chosen == min(name for name in loads if loads[name] == loads[chosen])
    assert chosen == worker_for(dict(reversed(loads.items())))
