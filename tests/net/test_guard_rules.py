"""Guard rules: nobody shares a mark or an address, and every host is guarded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.net.guard_hosts import alias_hosts
from tests.net.networks import INSTANCE, host, hosts
from vnsmail.errors import Taken
from vnsmail.net import guard_rules, names
from vnsmail.net.guard_rules import desired, socket_mark

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?\.example", fullmatch=True)


def sets(table):
    return {each.name: each.elements for each in table.sets}


# Marks ------------------------------------------------------------------------------


@given(st.sampled_from(["", INSTANCE, "lab"]), NAMES)
def test_mark(instance, name):
    """An int that no ordinary priority or class of a queue is, and the same each time."""
    mark = socket_mark(instance, name)

    assert mark == socket_mark(instance, name)
    assert 1 << 30 <= mark < 1 << 31
    assert 0 == mark & 15


def test_marks_stay_what_they_are():
    """Sockets outlive a restart of who made the rules."""
    assert 0x62189570 == socket_mark(INSTANCE, "h0.example")
    assert socket_mark("", "h0.example") != socket_mark(INSTANCE, "h0.example")


def test_marks_are_spread():
    """A thousand hosts in one of two hundred machines get by without a refusal."""
    marks = {socket_mark(INSTANCE, f"host{n}.example") for n in range(10_000)}

    # 10,000 of 2**26 share 0.75 on average; ten would be a bad hash.
    assert len(marks) > 10_000 - 10


def _same_mark():
    """Return two names whose sockets would have the same mark."""
    holders: dict[int, str] = {}
    for number in range(10**6):
        name = f"h{number}.example"
        other = holders.setdefault(socket_mark(INSTANCE, name), name)
        if other != name:
            return other, name
    raise AssertionError


def test_same_mark():
    """Two hosts with aliases cannot have it; in a namespace nobody needs one."""
    one, other = _same_mark()
    first = host(one, "10.77.0.11/24", uplink="")
    with pytest.raises(Taken, match=rf"{other}.*{one}.*--context namespace"):
        desired([first, host(other, "10.77.0.12/24", uplink="")], INSTANCE)
    plan = desired([first, host(other, "10.77.0.12/24")], INSTANCE)

    assert plan.machine is not None
    assert (one,) == plan.machine.hosts
    assert (other,) == plan.inside[names.namespace(INSTANCE, other)].hosts


# Tables -----------------------------------------------------------------------------


def test_table_names():
    assert "vnsmail" == guard_rules.table_name("")
    assert "vnsmail_1a2b3c" == guard_rules.table_name("1a2b3c")


@given(hosts())
def test_every_host_is_guarded_once(found):
    """With aliases in the machine's table, else in the one of its namespace."""
    plan = desired(found, INSTANCE)
    tables = [*([plan.machine] if plan.machine else []), *plan.inside.values()]

    assert sorted(h.name for h in found) == sorted(
        name for table in tables for name in table.hosts
    )
    for each in found:
        where = names.namespace(INSTANCE, each.name)
        assert (where in plan.inside) == bool(each.uplink)


@given(alias_hosts())
def test_every_address_is_in_one_element(found):
    """Of each set; own and borrowed addresses lead to the host that has them."""
    plan = desired(found, INSTANCE)
    if plan.machine is None:
        assert () == found
        return
    content = sets(plan.machine)
    for version in (4, 6):
        addresses = {
            str(a.address): h.name
            for h in found
            for a in h.addresses
            if a.family == version
        }
        borrowed = {a: guard_rules.borrowed_counter(n) for a, n in addresses.items()}
        assert borrowed == dict(content[f"aliases{version}"])
        assert len(addresses) == len(content[f"aliases{version}"])
        marks = {a: _class(n) for a, n in addresses.items()}
        own = [each["concat"] for each in content[f"own{version}"]]
        assert sorted([mark, a] for a, mark in marks.items()) == sorted(own)
        itself = [each["concat"] for each in content[f"self{version}"]]
        assert sorted([a, a] for a in addresses) == sorted(itself)
    dropped = {_class(h.name): guard_rules.dropped_counter(h.name) for h in found}
    assert dropped == dict(content["hosts"])
    assert len(found) == len(content["hosts"])


def _class(name):
    mark = socket_mark(INSTANCE, name)
    return f"{mark >> 16:x}:{mark & 0xFFFF:x}"


@given(hosts())
def test_inside_a_namespace(found):
    """Its own addresses, all of them, and no others."""
    for each in found:
        if each.uplink is None:
            continue
        table = desired([each], INSTANCE).inside[names.namespace(INSTANCE, each.name)]
        content = sets(table)
        own = {str(a.address) for a in each.addresses}
        assert own == {*content["own4"], *content["own6"]}
        assert (guard_rules.dropped_counter(each.name),) == table.counters


def test_shared_address():
    with pytest.raises(Taken, match=r"10\.77\.0\.11.*beta\.example"):
        desired([host(uplink=""), host("beta.example", uplink="")], INSTANCE)


@given(NAMES.map(lambda name: f"{'a.' * 119}{name}"[-253:].strip(".-")), NAMES)
def test_counter_names(long, name):
    """The kernel takes them, and each belongs to one host."""
    found = {
        counter(each)
        for each in (long, name)
        for counter in (guard_rules.dropped_counter, guard_rules.borrowed_counter)
    }

    assert len(found) == 2 * len({long, name})
    assert all(len(each.encode()) <= 255 for each in found)


@given(alias_hosts(), alias_hosts())
def test_state(one, other):
    """It says what is in the table, not in which order; the kernel takes 127 bytes."""
    plans = [desired(each, INSTANCE).machine for each in (one, other, one)]
    states = [plan.state if plan else "" for plan in plans]

    assert states[0] == states[2]
    facts = [{(h.name, frozenset(h.addresses)) for h in each} for each in (one, other)]
    assert (states[0] == states[1]) == (facts[0] == facts[1])
    assert all(len(state) < 128 for state in states)


def test_ports():
    plans = [
        desired([host(uplink="")], INSTANCE, p) for p in ((25,), (25, 26), (26, 25))
    ]
    states = [plan.machine.state for plan in plans if plan.machine]

    assert states[0] != states[1] == states[2]
