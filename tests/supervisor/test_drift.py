"""Which events matter, and how often a host is put back."""

from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from tests.net.networks import INSTANCE, host
from vnsmail.model import MACHINE
from vnsmail.net import guard_rules, names
from vnsmail.net.events import Event, Kind
from vnsmail.supervisor.drift import (
    LONGEST_PAUSE,
    QUIET,
    Doubts,
    Interest,
    Patience,
)

ALPHA = host("alpha.example", "10.77.0.11/24")
DELTA = host("delta.example", "10.77.0.14/24", uplink="")
OWN = 4711
SPACE = names.namespace(INSTANCE, ALPHA.name)
TABLE = guard_rules.table_name(INSTANCE)


def doubts(*heard, states=None):
    found = Doubts()
    interest = Interest([ALPHA, DELTA], INSTANCE, OWN)
    for place, event in heard:
        interest.judge(place, event, {} if states is None else states, found)
    return found


def test_inside():
    """Whatever happens in a host's namespace is the host's; elsewhere it is nobody's."""
    event = Event(Kind.ROUTE, gone=True)

    assert Doubts(hosts={ALPHA.name}) == doubts((SPACE, event))
    assert not doubts(("docker", event), (None, event))


def test_the_machine():
    """A port, and an alias; not the machine's own addresses and routes."""
    port = Event(Kind.LINK, name=names.link(INSTANCE, ALPHA.name))
    alias = Event(Kind.ADDRESS, addresses=(DELTA.addresses[0].address,))
    other = Event(Kind.ADDRESS, gone=True, addresses=(ip_address("192.0.2.9"),))
    route = Event(Kind.ROUTE, gone=True, table=254)

    assert {ALPHA.name} == doubts(("", port)).hosts
    assert {DELTA.name} == doubts(("", alias)).hosts
    assert not doubts(("", other), ("", route))
    assert doubts(("", Event(Kind.RULE, gone=True, table=7000))).everything


def test_a_link_that_hosts_use():
    """Only if it is not as before: a bridge speaks whenever a port comes or goes."""
    states: dict[str, tuple[object, ...]] = {}
    up = Event(Kind.LINK, name=ALPHA.link, state=(True, 1500, 0))
    down = replace(up, state=(False, 1500, 0))

    assert doubts(("", up), states=states).everything
    assert not doubts(("", up), states=states)
    assert doubts(("", down), states=states).links
    assert doubts(("", replace(down, gone=True)), states=states).links
    assert not doubts(("", replace(up, name="eth7")), states=states)


def test_the_guard():
    """Others' changes of our table, with the name of who made them; not our own."""
    change = Event(Kind.FILTER, name=TABLE, sender=9)
    made = Event(Kind.FILTER, sender=9, process="nft")

    assert {MACHINE: "nft"} == doubts(("", change), ("", made)).guards
    assert {ALPHA.name: ""} == doubts((SPACE, change)).guards
    assert not doubts(("", replace(change, sender=OWN)), ("", made))
    assert not doubts(("", replace(change, name="theirs")), ("", made))


def test_patience():
    """At once for some times, then later and later; peace makes it forget."""
    patience, now, pauses = Patience(), 1000.0, []
    for _ in range(12):
        assert patience.ready_at("a") <= now
        pauses.append(patience.mended("a", now))
        now += pauses[-1]

    assert [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60] == pauses
    assert 0.0 == patience.ready_at("b")
    assert 0.0 == patience.mended("a", now + QUIET + 1)
    patience.forget(["b"])
    assert 0.0 == patience.ready_at("a")


@given(st.lists(st.floats(0, 1000)))
def test_patience_has_bounds(gaps):
    """Nobody waits longer than the longest pause, however long the fight."""
    patience, now = Patience(), 0.0
    for gap in gaps:
        now += gap
        patience.mended("a", now)
        assert now <= patience.ready_at("a") <= now + LONGEST_PAUSE
