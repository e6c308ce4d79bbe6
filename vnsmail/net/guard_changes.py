"""How a guard's table, as the kernel has it, becomes the one that is wanted. Pure.

Rules of this file: one transaction does it, from whatever is there; a counter that stays
is never made anew, so it keeps its count; a table is ours if it has the chain that says
what state it is in, and one that is not is not touched.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from vnsmail.net.guard_rules import LAYOUT, Command, Table

_STATE = re.compile(r"vnsmail-(\d+)-[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Found:
    """A table as the kernel has it."""

    exists: bool = False
    state: str = ""
    """Name of the chain that says what is in it; empty if it is not ours."""
    counters: frozenset[str] = frozenset()

    @property
    def foreign(self) -> bool:
        return self.exists and not self.state


def found(name: str, listed: Iterable[Command]) -> Found:
    """Return what a listing of chains, and maybe of counters, says of a table."""
    exists, state, counters = False, "", set()
    for each in listed:
        for kind, facts in each.items():
            if kind not in {"chain", "counter"}:
                continue
            if (facts["family"], facts["table"]) != ("inet", name):
                continue
            exists = True
            if kind == "counter":
                counters.add(facts["name"])
            elif _STATE.fullmatch(facts["name"]):
                state = facts["name"]
    return Found(exists, state, frozenset(counters))


def removal(name: str) -> list[Command]:
    """Return the transaction after which a table is gone."""
    return [{"delete": {"table": {"family": "inet", "name": name}}}]


def transaction(wanted: Table, state: str, there: Found) -> list[Command]:
    """Return the transaction from a table as it is, if it is, to the one wanted.

    Args:
        wanted: the table.
        state: its state, which takes its time to find.
        there: what was found of it; never one that is foreign.
    """
    commands: list[Command] = []
    if not _is_layout(there.state):
        commands += removal(wanted.name) if there.exists else []
        # Not "add", which would take over a table of somebody else.
        commands.append({"create": {"table": {"family": "inet", "name": wanted.name}}})
        there = Found()
    make = _Maker(wanted.name)
    wanted_counters = [c for c in wanted.counters if c not in there.counters]
    commands += [make.add("counter", name=name) for name in wanted_counters]
    for each in wanted.sets:
        commands.append(make.add(each.kind, **each.definition))
        if there.exists:
            commands.append(make.flush(each.kind, each.name))
        if each.elements:
            elements = list(each.elements)
            commands.append(make.add("element", name=each.name, elem=elements))
    for chain in wanted.chains:
        commands.append(make.add("chain", name=chain.name, **chain.properties))
        if there.exists:
            commands.append(make.flush("chain", chain.name))
    for chain in wanted.chains:
        commands += [make.add("rule", chain=chain.name, **each) for each in chain.rules]
    surplus = sorted(there.counters - set(wanted.counters))
    commands += [make.delete("counter", name) for name in surplus]
    if there.state:
        commands.append(make.delete("chain", there.state))
    commands.append(make.add("chain", name=state))
    return commands


def _is_layout(state: str) -> bool:
    match = _STATE.fullmatch(state)
    return match is not None and int(match[1]) == LAYOUT


class _Maker:
    """Makes commands on what is in one table."""

    def __init__(self, table: str) -> None:
        self._table = {"family": "inet", "table": table}

    def add(self, kind: str, **facts: object) -> Command:
        return {"add": {kind: self._table | facts}}

    def flush(self, kind: str, name: str) -> Command:
        return {"flush": {kind: self._table | {"name": name}}}

    def delete(self, kind: str, name: str) -> Command:
        return {"delete": {kind: self._table | {"name": name}}}
