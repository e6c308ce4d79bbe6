"""One host with some of its facts changed. Pure.

Rules of this file: a change is what a file with another value would ask for, so that
the command line and the file mean the same and refuse the same.
"""

from collections.abc import Mapping
from typing import TypeAlias

from vnsmail.directory import declaration as file
from vnsmail.directory.declaration import Misfits
from vnsmail.errors import BadInput
from vnsmail.model import HostName
from vnsmail.net.plan import Actual
from vnsmail.supervisor.converge import Tenant, decide

Value: TypeAlias = str | int | bool | tuple[str, ...] | None
"""Of a key of the hosts file; None takes the fact away."""

CHOSEN = ("link", "uplink", "gateways")
"""What is chosen where nobody says it, and so may have to change with the addresses."""


def altered(before: Tenant, changes: Mapping[str, Value], actual: Actual) -> Tenant:
    """Return a host with other facts.

    Args:
        before: the host as it is.
        changes: keys of the hosts file, and what they should have.
        actual: the network as observed.

    Raises:
        BadInput: there cannot be such a host.
    """
    name = before.facts.name
    table: dict[str, object] = dict(file.entries(before.facts, before.users))
    table["suspended"] = before.facts.suspended
    for key in CHOSEN:
        table.pop(key, None)
    for key, value in changes.items():
        outer, _, inner = key.partition(".")
        if not inner:
            _put(table, key, value)
            continue
        found = table.get(outer)
        within = dict(found) if isinstance(found, dict) else {}
        _put(within, inner, value)
        table[outer] = within
    _fit(table, before, changes)
    try:
        declared = file.understood({"host": {name: table}}, {})
        (after,) = decide(declared, {name: before}, actual).hosts
    except Misfits as error:
        raise _in_a_line(name, error) from None
    return after


def _put(table: dict[str, object], key: str, value: Value) -> None:
    if value is None:
        table.pop(key, None)
    else:
        table[key] = list(value) if isinstance(value, tuple) else value


def _fit(
    table: dict[str, object], before: Tenant, changes: Mapping[str, Value]
) -> None:
    """Drop what only makes sense with a fact that was changed just now."""
    if "public_addresses" in changes and "source_check" not in changes:
        table["source_check"] = "nat" if changes["public_addresses"] else "strict"
    if "public_addresses" not in changes and table.get("source_check") != "nat":
        table.pop("public_addresses", None)
    if changes.get("context", before.facts.context) == "alias":
        for key in ("mtu", "vlan"):
            if key not in changes:
                table.pop(key, None)
        if before.facts.context == "alias" and "gateways" not in changes:
            table["gateways"] = [str(each) for each in before.facts.gateways]


def _in_a_line(name: HostName, error: Misfits) -> BadInput:
    """Return what is wrong, without the place in a file that there is not."""
    prefix = f'host."{name}".'
    words = "; ".join(f"{p.key.removeprefix(prefix)}: {p.text}" for p in error.problems)
    return BadInput("virtual host", name, words)
