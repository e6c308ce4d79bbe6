from hypothesis import given
from hypothesis import strategies as st

from vnsmail.inbound.admission import TOO_MANY, TOO_MANY_OF_YOURS, Admission


def test_limit_of_a_peer():
    """One address fills its own share, and others still come in."""
    admission = Admission[str]()

    assert [None, None, TOO_MANY_OF_YOURS] == [
        admission.admit("a", 10, 2) for _ in range(3)
    ]
    assert admission.admit("b", 10, 2) is None


def test_limit_of_all():
    """When all places are taken nobody comes in; who leaves makes room."""
    admission = Admission[str]()
    for peer in "ab":
        admission.admit(peer, 2, 2)

    assert TOO_MANY == admission.admit("c", 2, 2)
    admission.leave("a")
    assert admission.admit("c", 2, 2) is None
    assert 2 == admission.sessions


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"))))
def test_counts(steps):
    """Whatever comes and goes, limits hold and nothing is counted that left."""
    admission = Admission[str]()
    inside: list[str] = []
    for comes, peer in steps:
        if comes:
            refused = admission.admit(peer, 5, 3)
            assert (refused is None) == (len(inside) < 5 and inside.count(peer) < 3)
            if refused is None:
                inside.append(peer)
        elif peer in inside:
            inside.remove(peer)
            admission.leave(peer)
        assert len(inside) == admission.sessions
