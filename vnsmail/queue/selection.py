"""Which messages of a queue are meant. Pure: values, and the SQL that they come to.

Rules of this file: a search never looks at more than so many rows at a time, and says
where it goes on; what it looks at follows an index. So a question costs a queue of a
million messages no more than one of a hundred, for as long as anybody waits.
"""

# ruff: noqa: S608  what is put into statements is all ours

import json
from dataclasses import dataclass
from typing import Literal, TypeAlias

from vnsmail.queue.envelope import destination

HELD_UNTIL = 1e12
"""When a message is due that an operator holds: seconds since the epoch, never."""

ALL = "*"
"""In place of a destination: all that a host sends."""

Status: TypeAlias = Literal["", "deferred", "held", "active", "due"]

Parameters: TypeAlias = list[str | float | int]


@dataclass(frozen=True, slots=True)
class Selection:
    """Messages of one queue; each thing that is given must be so."""

    ids: tuple[str, ...] = ()
    """Queue ids; none: any."""
    domain: str = ""
    """Of a recipient, in lower case."""
    sender: str | None = None
    """Empty: the null reverse-path."""
    recipient: str = ""
    before: str = ""
    """Queue ids below this one: those that came earlier."""
    status: Status = ""

    @property
    def destination(self) -> str:
        """The domain that recipients are at, if only one can be."""
        return self.domain or (destination(self.recipient) if self.recipient else "")

    def means(self, address: str) -> bool:
        """Say whether a recipient of such a message is meant."""
        if self.domain and destination(address) != self.domain:
            return False
        return not self.recipient or address.lower() == self.recipient.lower()


_HELD_PLACE = (
    "EXISTS (SELECT 1 FROM hold WHERE destination = '*') OR EXISTS (SELECT 1 FROM"
    " recipient AS d JOIN hold ON hold.destination = d.destination"
    " WHERE d.message = m.number)"
)
_STATUS: dict[str, str] = {
    "": "1",
    "active": "1",  # whoever knows gives the ids
    "deferred": "EXISTS (SELECT 1 FROM recipient AS d WHERE d.message = m.number"
    " AND d.last IS NOT NULL)",
    "held": f"(m.held != '' OR {_HELD_PLACE})",
    "due": "m.held = '' AND NOT EXISTS (SELECT 1 FROM hold WHERE destination = '*')"
    " AND EXISTS (SELECT 1 FROM recipient AS d WHERE d.message = m.number"
    " AND d.next_attempt_at <= ? AND d.destination NOT IN"
    " (SELECT destination FROM hold))",
}
_COLUMNS = "number, id, sender, held"

LAST = "~"
"""Sorts after every queue id."""


def search(
    wanted: Selection, after: str, limit: int, scan: int, now: float
) -> tuple[str, Parameters]:
    """Return a statement that finds messages: number, and place to go on from.

    The place is text; ``after`` is the place of the last message of the page before.
    """
    conditions, given = _conditions(wanted, now)
    before = wanted.before or LAST
    if wanted.ids:
        ids = ids_beyond(wanted, after)[:scan]
        marks = ",".join("?" * len(ids))
        inner = f"SELECT {_COLUMNS} FROM message WHERE id IN ({marks}) ORDER BY id"
        base: Parameters = [*ids]
    elif wanted.destination:
        return _at_destination(wanted, after, limit, scan, now)
    else:
        inner = (
            f"SELECT {_COLUMNS} FROM message WHERE id > ? AND id < ?"
            " ORDER BY id LIMIT ?"
        )
        base = [after, before, scan]
    statement = f"SELECT number, id FROM ({inner}) AS m WHERE {conditions} LIMIT ?"
    return statement, [*base, *given, limit]


def ids_beyond(wanted: Selection, after: str) -> list[str]:
    """Return the ids that are asked for and were not on a page before, in order."""
    before = wanted.before or LAST
    return sorted(each for each in set(wanted.ids) if after < each < before)


def edge(wanted: Selection, after: str, scan: int) -> tuple[str, Parameters]:
    """Return a statement for the place where a search of so many rows ended."""
    if wanted.destination and not wanted.ids:
        statement = (
            f"SELECT {_PLACE} FROM recipient AS r WHERE {_FURTHER}"
            f" ORDER BY {_ORDER} LIMIT 1 OFFSET ?"
        )
        return statement, [wanted.destination, *_place(after), scan - 1]
    statement = (
        "SELECT id FROM message WHERE id > ? AND id < ? ORDER BY id LIMIT 1 OFFSET ?"
    )
    return statement, [after, wanted.before or LAST, scan - 1]


_ORDER = "r.priority, r.next_attempt_at, r.message"
_FURTHER = f"r.destination = ? AND ({_ORDER}) > (?, ?, ?)"
_PLACE = "json_array(r.priority, r.next_attempt_at, r.message)"


def _at_destination(
    wanted: Selection, after: str, limit: int, scan: int, now: float
) -> tuple[str, Parameters]:
    conditions, given = _conditions(wanted, now)
    inner = (
        f"SELECT number, id, sender, held, address, {_PLACE} AS place"
        " FROM recipient AS r JOIN message ON number = r.message"
        f" WHERE {_FURTHER} ORDER BY {_ORDER} LIMIT ?"
    )
    base: Parameters = [wanted.destination, *_place(after), scan]
    if wanted.recipient:
        conditions += " AND m.address = ? COLLATE NOCASE"
        given.append(wanted.recipient)
    conditions += " AND m.id < ?"
    given.append(wanted.before or LAST)
    statement = f"SELECT number, place FROM ({inner}) AS m WHERE {conditions} LIMIT ?"
    return statement, [*base, *given, limit]


def _place(after: str) -> Parameters:
    return [*json.loads(after)] if after else [-1, 0, 0]


def _conditions(wanted: Selection, now: float) -> tuple[str, Parameters]:
    conditions = [_STATUS[wanted.status]]
    given: Parameters = []
    if wanted.status == "due":
        given.append(now)
    if wanted.sender is not None:
        conditions.append("m.sender = ? COLLATE NOCASE")
        given.append(wanted.sender)
    if wanted.ids and wanted.destination:
        conditions.append(
            "EXISTS (SELECT 1 FROM recipient AS d WHERE d.message = m.number"
            " AND d.destination = ?)"
        )
        given.append(wanted.destination)
    return " AND ".join(conditions), given
