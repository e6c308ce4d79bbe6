"""Keeps the kernel from sending mail from another host's address. PRIVILEGED.

guard_rules.py says what the kernel is told and why, guard_changes.py how; this file finds
out what it was told already, and tells it the rest. Mail works without a guard: who calls goes on when there
is none, and says so.

Rules of this file: a table is changed in one transaction, so that whoever is killed in
the middle has changed all of it or nothing; a table that is not ours, or one in a
namespace that is not ours, is never touched; what cannot be done for one host stands in
no other's way; no thread of the caller changes its namespace.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from vnsmail.errors import GuardUnavailable
from vnsmail.model import MACHINE, Context, HostName, Uplink, VirtualHost
from vnsmail.net import (
    fence_rules,
    guard_changes,
    guard_rules,
    names,
    namespaces,
    nftables,
    sysctl,
)
from vnsmail.net.guard_changes import Found
from vnsmail.net.guard_rules import SMTP_PORTS, Table
from vnsmail.net.observe import is_ours

_ALL = "ipv{}/conf/all/forwarding"


@dataclass(frozen=True, slots=True)
class Guarded:
    """What ``apply`` came to."""

    changed: bool
    unguarded: Mapping[str, str]
    """Hosts without a guard, and why. MACHINE stands for a table of the machine that
    should go and does not."""
    renewed: frozenset[str] = field(default=frozenset(), compare=False)
    """Hosts whose rules were not as wanted; those with aliases share one table."""


@dataclass(frozen=True, slots=True)
class GuardCounter:
    """What was stopped of a host, since its guard was first set up."""

    dropped_packets: int = 0
    """Of the host's own sockets, from an address that is not the host's."""
    dropped_bytes: int = 0
    borrowed_packets: int = 0
    """Of others' sockets, from an address of the host."""
    forged_packets: int = 0
    """Out of its namespace to the machine, from an address that is not the host's."""


def apply(
    hosts: Iterable[VirtualHost],
    instance: str,
    ports: Sequence[int] = SMTP_PORTS,
    *,
    anew: bool = False,
) -> Guarded:
    """Guard these hosts and no others.

    Namespaces of other hosts are not visited: their tables go with them.

    Args:
        hosts: all that are to be guarded.
        instance: whose.
        ports: of mail.
        anew: rules are written again even where they look as wanted, for somebody may
            have taken some out.

    Raises:
        GuardUnavailable: nothing can be guarded here.
        Taken: the hosts cannot be told apart (``guard_rules.desired``).
    """
    plan = guard_rules.desired(hosts, instance, ports)
    nftables.check()
    unguarded: dict[str, str] = {}
    name = guard_rules.table_name(instance)
    change = partial(_bring, plan.machine, name, anew=anew)
    outcomes: dict[tuple[str, ...], bool | str | OSError] = {
        plan.machine.hosts if plan.machine else (MACHINE,): _outcome(change)
    }
    if plan.inside:
        with namespaces.Visitor() as visitor:
            visited = visitor.run_each(
                plan.inside,
                lambda name: _outcome(
                    lambda: _enclose(plan.inside[name], instance, anew=anew)
                ),
            )
        outcomes |= {plan.inside[name].hosts: done for name, done in visited.items()}
    for who, outcome in outcomes.items():
        if not isinstance(outcome, bool):
            unguarded |= dict.fromkeys(who, _said(outcome))
    renewed = [who for who, outcome in outcomes.items() if outcome is True]
    names_of = frozenset(name for who in renewed for name in who)
    return Guarded(bool(renewed), unguarded, names_of)


def fence(hosts: Iterable[VirtualHost], instance: str, *, anew: bool = False) -> bool:
    """Let pass what is routed for these hosts, and nothing else (fence_rules.py).

    Returns whether anything was changed. To be called before they are routed, and with
    those that cease to be until they do. With ``anew`` the rules are written again.

    Raises:
        GuardUnavailable: it cannot be; nobody must be routed then.
    """
    forwards = [v for v in (4, 6) if sysctl.read(_ALL.format(v)) == "1"]
    wanted = fence_rules.fence(hosts, instance, forwards)
    nftables.check()
    return _bring(wanted, fence_rules.fence_name(instance), anew=anew)


def apply_host(
    host: VirtualHost,
    instance: str,
    ports: Sequence[int] = SMTP_PORTS,
    *,
    anew: bool = False,
) -> bool:
    """Guard one host that has a namespace; returns whether anything was changed.

    With ``anew`` its rules are written again even where they look as wanted.

    Raises:
        GuardUnavailable: it cannot be guarded.
    """
    ((where, table),) = guard_rules.desired([host], instance, ports).inside.items()
    try:
        return namespaces.inside(where, lambda: _enclose(table, instance, anew=anew))
    except OSError as error:
        raise GuardUnavailable(_said(error)) from None


def remove_all(instance: str) -> bool:
    """Remove every table of this instance; returns whether there was any.

    Raises:
        GuardUnavailable: one cannot be removed; the others are.
    """
    nftables.check()
    change = partial(_bring, None, guard_rules.table_name(instance))
    ours = [n for n in namespaces.existing() if names.is_namespace(instance, n)]
    outcomes: list[bool | str | OSError] = [_outcome(change)]
    if ours:
        with namespaces.Visitor() as visitor:
            outcomes += visitor.run_each(ours, lambda _: _outcome(change)).values()
    for outcome in outcomes:
        # A half-made namespace, or one that went meanwhile, has no table.
        if not isinstance(outcome, bool | FileNotFoundError):
            raise GuardUnavailable(_said(outcome))
    return any(outcome is True for outcome in outcomes)


def counters(
    hosts: Iterable[VirtualHost], instance: str
) -> dict[HostName, GuardCounter]:
    """Return what was stopped, by host; a host without a guard is missing.

    Raises:
        GuardUnavailable: nothing can be guarded here.
    """
    nftables.check()
    hosts = tuple(hosts)
    read = partial(_read_counters, guard_rules.table_name(instance))
    inside = {
        names.namespace(instance, host.name): host.name
        for host in hosts
        if host.context is Context.NAMESPACE
    }
    here = {} if len(inside) == len(hosts) else read()
    found = {
        h.name: _counter(h.name, here) for h in hosts if h.context is Context.ALIAS
    }
    if inside:
        with namespaces.Visitor() as visitor:
            visited = visitor.run_each(inside, lambda _: read())
        for where, facts in visited.items():
            if not isinstance(facts, OSError):
                found[inside[where]] = _counter(inside[where], facts)
    forged = _forged(hosts, instance)
    return {
        name: replace(each, forged_packets=forged.get(name, 0))
        for name, each in found.items()
        if each is not None
    }


def _forged(hosts: Iterable[VirtualHost], instance: str) -> dict[HostName, int]:
    """Return what a fence stopped, by host."""
    routed = [host.name for host in hosts if host.uplink is Uplink.ROUTED]
    if not routed:
        return {}
    facts = _read_counters(fence_rules.fence_name(instance))
    found = {name: facts.get(guard_rules.forged_counter(name)) for name in routed}
    return {name: each["packets"] for name, each in found.items() if each}


# In the namespace of the calling thread --------------------------------------------


def _bring(wanted: Table | None, name: str, *, anew: bool = False) -> bool:
    """Make a table as wanted, or gone; returns whether it was not."""
    there = _look(name)
    if wanted is None:
        if there.state:
            nftables.commit(guard_changes.removal(name))
        return bool(there.state)
    if there.foreign:
        raise _not_ours(name)
    state = wanted.state
    if there.state == state and not anew:
        return False
    if there.exists:
        listed = nftables.query("counters", family="inet", table=name)
        there = replace(there, counters=guard_changes.found(name, listed).counters)
    try:
        nftables.commit(guard_changes.transaction(wanted, state, there))
    except nftables.Refused as error:
        # It has no chains, or has come this moment.
        if error.is_there and not there.exists:
            raise _not_ours(name) from None
        raise
    return True


def _look(name: str) -> Found:
    """Return what is found of a table, but for its counters.

    Names of chains are all that is asked for, which costs the same whatever is in them.
    """
    return guard_changes.found(name, nftables.query("chains", family="inet"))


def _enclose(table: Table, instance: str, *, anew: bool = False) -> bool:
    """Make a table as wanted inside a namespace, if that is ours."""
    if _look(table.name).state == table.state and not anew:
        return False
    if not is_ours(instance):
        raise GuardUnavailable("its namespace is not ours")
    return _bring(table, table.name, anew=anew)


def _read_counters(name: str) -> dict[str, Mapping[str, Any]]:
    """Return the counters of a table by name; none if it is not there, or not ours."""
    try:
        if not _look(name).state:
            return {}
        listed = nftables.query("counters", family="inet", table=name)
    except GuardUnavailable:
        return {}
    found = [each["counter"] for each in listed if "counter" in each]
    return {each["name"]: each for each in found}


def _counter(host: str, facts: Mapping[str, Mapping[str, Any]]) -> GuardCounter | None:
    dropped = facts.get(guard_rules.dropped_counter(host))
    if dropped is None:
        return None
    borrowed = facts.get(guard_rules.borrowed_counter(host), {"packets": 0})
    return GuardCounter(dropped["packets"], dropped["bytes"], borrowed["packets"])


def _outcome(change: Callable[[], bool]) -> bool | str:
    """Return whether a change was needed, or why it cannot be made."""
    try:
        return change()
    except GuardUnavailable as error:
        return error.reason


def _said(problem: str | OSError) -> str:
    if isinstance(problem, FileNotFoundError):
        return "its namespace does not exist"
    if isinstance(problem, OSError):
        return f"its namespace cannot be entered ({problem.strerror})"
    return problem


def _not_ours(name: str) -> GuardUnavailable:
    return GuardUnavailable(f"a table inet {name} is there and is not ours")
