"""Messages that leave a queue file whole: a batch of them is four statements.

Most mail leaves at the first attempt, with all its recipients at once. As with those that
arrive (arrival.py), what costs is the number of statements: one at a time it took five a
message, so here one asks for what is known of all, and three delete.

Rules of this file: no transaction begins or ends here; a message goes only if every
recipient that the file has is among those that are over; whatever else there is to be
done with a message is left to others.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import apsw
import msgspec

_ASK = (
    "SELECT json_group_array(json_array(m.number, m.id, m.size, m.file_size, address,"
    " last IS NOT NULL)) FROM json_each(?) AS wanted"
    " CROSS JOIN message AS m ON m.id = wanted.value"
    " CROSS JOIN recipient AS r ON r.message = m.number"
)
_DELETE = (
    "DELETE FROM recipient WHERE message IN (SELECT value FROM json_each(?))",
    "DELETE FROM head WHERE message IN (SELECT value FROM json_each(?))",
    "DELETE FROM message WHERE number IN (SELECT value FROM json_each(?))",
)

_Rows = list[tuple[int, str, int, int, str, int]]
_to_json = msgspec.json.Encoder().encode
_from_json = msgspec.json.Decoder(_Rows).decode


@dataclass(slots=True)
class _Known:
    """What a file has of a message."""

    number: int
    size: int
    file_size: int
    addresses: set[str] = field(default_factory=set)
    deferred: int = 0


@dataclass(slots=True)
class Departed:
    """What left."""

    ids: set[str] = field(default_factory=set)
    with_files: list[str] = field(default_factory=list)
    """Ids of those that have a body file."""
    recipients: int = 0
    deferred: int = 0
    """Recipients that had been tried before."""
    octets: int = 0


def depart(
    connection: apsw.Connection, over: Mapping[str, AbstractSet[str]]
) -> Departed:
    """Take messages out whose recipients are all over; those of others stay.

    Args:
        connection: within a transaction.
        over: by queue id, the addresses of recipients that were delivered or failed.
    """
    left = Departed()
    numbers: list[int] = []
    for message_id, known in _known(connection, list(over)).items():
        if known.addresses != over[message_id]:
            continue
        numbers.append(known.number)
        left.ids.add(message_id)
        left.recipients += len(known.addresses)
        left.deferred += known.deferred
        left.octets += known.size
        if known.file_size:
            left.with_files.append(message_id)
    if numbers:
        given = (_to_json(numbers).decode(),)
        for statement in _DELETE:
            connection.execute(statement, given)
    return left


def _known(connection: apsw.Connection, ids: list[str]) -> dict[str, _Known]:
    found: dict[str, _Known] = {}
    # One row of JSON: the interpreter changes hands for each row.
    ((text,),) = connection.execute(_ASK, (_to_json(ids).decode(),))
    for number, message_id, size, file_size, address, tried in _from_json(text):
        known = found.get(message_id)
        if known is None:
            known = found[message_id] = _Known(number, size, file_size)
        known.addresses.add(address)
        known.deferred += tried
    return found
