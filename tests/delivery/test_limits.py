import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.delivery.limits import Allowed, Rates, Throttle, allowed
from vnsmail.errors import SettingsError
from vnsmail.settings import DeliverySettings, checked

SETTINGS = checked(
    DeliverySettings,
    {
        "connections": 9,
        "destination": {"B.example": {"connections": 2}},
        "site": {"big.example": {"connections": 30, "messages_per_minute": 60}},
        "host": {
            "alpha.example": {
                "messages_per_connection": 7,
                "destination": {"b.example": {"connections": 1}},
            }
        },
    },
)
BIG = ["one.big.example", "two.big.example"]


@pytest.mark.parametrize(
    ("owner", "domain", "exchangers", "expected"),
    [
        ("beta.example", "c.example", [], (9, 100, 0)),
        ("beta.example", "c.example", BIG, (30, 100, 60)),
        ("beta.example", "c.example", [*BIG, "mx.notbig.example"], (9, 100, 0)),
        ("beta.example", "b.example", BIG, (2, 100, 60)),
        ("alpha.example", "b.example", BIG, (1, 7, 60)),
        ("alpha.example", "c.example", ["big.example"], (30, 7, 60)),
    ],
)
def test_the_particular_goes_first(owner, domain, exchangers, expected):
    """What is said of domain, site and host goes before what is said of all."""
    assert Allowed(*expected) == allowed(SETTINGS, owner, domain, exchangers)


@pytest.mark.parametrize(
    "table",
    [
        {"connections": 0},
        {"destination": {"b.example": {"conections": 2}}},
        {"destination": {"not a domain": {}}},
        {"route": {"b.example": "relay.example:0"}},
        {"route": {"b.example": "relay.example:x"}},
        {"route": {"b.example": "[10.0.0.300]"}},
        {"route": {"b.example": ""}},
        {"host": {"alpha": {}}},
    ],
)
def test_bad_settings(table):
    """What cannot be is refused, not ignored."""
    with pytest.raises(SettingsError):
        checked(DeliverySettings, table)


def test_a_rate():
    """Messages go one by one, as many a minute as are allowed."""
    rates = Rates()

    assert [0, 2, 4] == [rates.wait("b", 30, 100.0) for _ in range(3)]
    assert 0 == rates.wait("c", 30, 100.0)
    assert 0 == rates.wait("b", 0, 100.0)
    assert 1 == rates.wait("b", 30, 105.0)
    assert 0 == rates.wait("b", 30, 200.0)


def test_a_throttle():
    """Half of it, then nothing new for a while, then one more at a time."""
    throttle = Throttle()
    assert 10 == throttle.limit(0, 8, 10, 60)
    throttle.refused(0, 8, 60)

    assert 2 == throttle.limit(30, 2, 10, 60)
    assert 5 == throttle.limit(61, 2, 10, 60)
    assert 7 == throttle.limit(181, 2, 10, 60)
    assert 10 == throttle.limit(1000, 2, 10, 60)
    assert None is throttle.most


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 1000), st.integers(0, 50))),
    st.integers(1, 100),
)
def test_never_none_at_all(steps, most):
    """Whatever a site says, one connection is tried, and never more than allowed."""
    throttle, now = Throttle(), 0.0
    for refused, later, in_use in steps:
        now += later
        if refused:
            throttle.refused(now, in_use, 60)
        assert 1 <= throttle.limit(now, in_use, most, 60) <= most


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("LMTP:Store.Example:24", "lmtp:store.example:24"),
        ("lmtp:[10.0.7.9]:2424", "lmtp:[10.0.7.9]:2424"),
        ("lmtp:[fd00::1]:2424", "lmtp:[fd00::1]:2424"),
    ],
)
def test_a_store_as_a_route(written, expected):
    assert {"b.example": expected} == checked(
        DeliverySettings, {"route": {"b.example": written}}
    ).route


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("lmtp:store.example", "give a port too"),
        ("lmtp:[10.0.7.9]", "give a port too"),
        ("lmtp:store.example:25", "port 25 is for SMTP"),
        ("lmtp:/run/store", "the absolute path of a socket as lmtp:unix:/PATH"),
        ("lmtp:store.example:0", "a number from 1 to 65535"),
        ("lmtp:under_score.example:24", "use labels of letters"),
    ],
)
def test_what_is_no_store(written, words):
    with pytest.raises(SettingsError, match=words):
        checked(DeliverySettings, {"route": {"b.example": written}})
