"""Changes of a guard: whatever is there, one transaction makes it what is wanted."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.net.guard_hosts import alias_hosts
from tests.net.networks import INSTANCE, host
from vnsmail.net import guard_changes, guard_rules
from vnsmail.net.guard_changes import Found, transaction
from vnsmail.net.guard_rules import desired


class Kernel:
    """Tables, as strict as the real ones where a transaction could go wrong."""

    def __init__(self):
        self.tables = {}

    def commit(self, commands):
        json.dumps(commands)
        for command in commands:
            ((verb, what),) = command.items()
            ((kind, facts),) = what.items()
            assert facts["family"] == "inet"
            getattr(self, f"_{verb}")(kind, dict(facts))
        for table in self.tables.values():
            table["counters"] = dict.fromkeys(table["counters"], "old")

    def _create(self, kind, facts):
        assert kind == "table"
        assert facts["name"] not in self.tables
        self.tables[facts["name"]] = {"counters": {}, "sets": {}, "chains": {}}

    def _add(self, kind, facts):
        table = self.tables[facts.pop("table")]
        facts.pop("family")
        if kind == "counter":
            assert facts["name"] not in table["counters"]
            table["counters"][facts["name"]] = "new"
        elif kind in {"set", "map"}:
            there = table["sets"].setdefault(facts["name"], (facts, []))
            assert there[0] == facts
        elif kind == "element":
            assert facts["elem"]
            table["sets"][facts["name"]][1].extend(facts["elem"])
        elif kind == "chain":
            there = table["chains"].setdefault(facts["name"], (facts, []))
            assert there[0] == facts
        else:
            assert kind == "rule"
            table["chains"][facts["chain"]][1].append(facts["expr"])

    def _flush(self, kind, facts):
        part = "chains" if kind == "chain" else "sets"
        self.tables[facts["table"]][part][facts["name"]][1].clear()

    def _delete(self, kind, facts):
        if kind == "table":
            del self.tables[facts["name"]]
            return
        table = self.tables[facts["table"]]
        if kind == "counter":
            assert facts["name"] not in self._used(table)
            del table["counters"][facts["name"]]
        else:
            assert not table["chains"].pop(facts["name"])[1]

    def _used(self, table):
        return json.dumps([table["sets"], table["chains"]])

    def listed(self):
        for name, table in self.tables.items():
            facts = {"family": "inet", "table": name}
            for chain in table["chains"]:
                yield {"chain": facts | {"name": chain}}
            for counter in table["counters"]:
                yield {"counter": facts | {"name": counter}}


@given(st.lists(alias_hosts(), min_size=1, max_size=4))
def test_transactions(variants):
    """Whatever was there, after one there is what is wanted, and counters stay."""
    kernel = Kernel()
    before: set[str] = set()
    name = guard_rules.table_name(INSTANCE)
    for variant in variants:
        wanted = desired(variant, INSTANCE).machine
        there = guard_changes.found(name, kernel.listed())
        if wanted is None:
            kernel.commit(guard_changes.removal(name) if there.exists else [])
            before = set()
            assert {} == kernel.tables
            continue
        commands = transaction(wanted, wanted.state, there)
        if there.state != wanted.state:
            kernel.commit(commands)
        fresh = Kernel()
        fresh.commit(transaction(wanted, wanted.state, Found()))
        assert fresh.tables == kernel.tables
        made = {
            c["add"]["counter"]["name"]
            for c in commands
            if "counter" in c.get("add", {})
        }
        assert not made & before
        before = set(wanted.counters)
        found = guard_changes.found(name, kernel.listed())
        assert Found(True, wanted.state, frozenset(wanted.counters)) == found


def test_another_layout():
    """A table of ours with another layout goes in the same transaction."""
    wanted = desired([host(uplink="")], INSTANCE).machine
    assert wanted is not None
    old = f"vnsmail-{guard_rules.LAYOUT + 1}-{'0' * 32}"
    there = Found(True, old, frozenset(wanted.counters))
    commands = transaction(wanted, wanted.state, there)

    assert guard_changes.removal(wanted.name) == commands[:1]
    assert transaction(wanted, wanted.state, Found()) == commands[1:]


def listing(*things):
    return [{kind: facts} for kind, facts in things]


CHAIN = {"family": "inet", "table": "vnsmail"}
STATE = f"vnsmail-1-{'0f' * 16}"


@pytest.mark.parametrize(
    ("things", "expected"),
    [
        ([], Found()),
        ([("metainfo", {"version": "1.0.6"})], Found()),
        ([("chain", {**CHAIN, "family": "ip", "name": STATE})], Found()),
        ([("chain", {**CHAIN, "table": "vnsmail_x", "name": STATE})], Found()),
        ([("chain", {**CHAIN, "name": "output"})], Found(exists=True)),
        ([("chain", {**CHAIN, "name": STATE[:-1]})], Found(exists=True)),
        ([("chain", {**CHAIN, "name": STATE})], Found(exists=True, state=STATE)),
        (
            [
                ("chain", {**CHAIN, "name": "output"}),
                ("chain", {**CHAIN, "name": STATE}),
                ("counter", {**CHAIN, "name": "c", "packets": 1}),
                ("counter", {**CHAIN, "table": "other", "name": "d"}),
            ],
            Found(exists=True, state=STATE, counters=frozenset("c")),
        ),
    ],
)
def test_found(things, expected):
    """Only a table of that family and name counts, and only ours have a state."""
    for order in (things, things[::-1]):
        assert expected == guard_changes.found("vnsmail", listing(*order))
    assert expected.foreign == (expected.exists and not expected.state)
