"""Messages on their way into a queue file: their rows, many in one statement.

Each statement that runs lets go of the interpreter and asks for it back, and in a thread
beside a busy event loop that costs more than the row. So a batch of any size is three
statements for each 64 rows, one for each table.

Rules of this file: rows get their numbers here, always rising; no transaction begins or
ends here.
"""

# ruff: noqa: S608  what is put into statements is all ours

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, TypeAlias

import apsw

from vnsmail.model import Envelope
from vnsmail.queue.body import Body
from vnsmail.queue.envelope import destination

TOGETHER = 64
"""Rows of one statement at most. It is kept prepared, some 20 KiB of memory."""

_MESSAGE = (
    "message (number, id, owner, sender, received_at, eight_bit, smtputf8, size,"
    " file_size, priority, ret, envid)"
)
_HEAD = "head (message, data)"
_RECIPIENT = (
    "recipient (message, position, address, attempts, next_attempt_at, destination,"
    " priority, notify, orcpt)"
)

Row: TypeAlias = tuple[Any, ...]


class Arrivals:
    """Adds messages to the tables of one open queue file."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._last: int | None = None
        """The highest number that was given out; None: not known yet. One that was rolled
        back stays unused."""

    def insert(self, arriving: Sequence[tuple[Envelope, Body]]) -> int:
        """Add messages; every recipient is due at once. Returns how many recipients.

        A recipient given twice is kept once (RFC 5321 section 4.1.1.3 lets us).

        Raises:
            apsw.ConstraintError: an id is in the queue already.
            UnicodeEncodeError: an address is no text.
        """
        first = self._numbers(len(arriving))
        messages: list[Row] = []
        heads: list[Row] = []
        recipients: list[Row] = []
        for number, (envelope, body) in enumerate(arriving, first):
            messages.append(_message_row(number, envelope, body))
            heads.append((number, body.head))
            recipients.extend(_recipient_rows(number, envelope))
        self._add(_MESSAGE, messages)
        self._add(_HEAD, heads)
        self._add(_RECIPIENT, recipients)
        return len(recipients)

    def _numbers(self, count: int) -> int:
        """Return the first of so many numbers that nothing has."""
        if self._last is None:
            (row,) = self._connection.execute(
                "SELECT coalesce(max(number), 0) FROM message"
            )
            self._last = int(row[0])
        first = self._last + 1
        self._last += count
        return first

    def _add(self, table: str, rows: Sequence[Row]) -> None:
        for start in range(0, len(rows), TOGETHER):
            together = rows[start : start + TOGETHER]
            count = 1 << (len(together) - 1).bit_length()
            columns = len(together[0])
            given = [*chain.from_iterable(together)]
            given += [None] * (columns * (count - len(together)))
            self._connection.execute(_statement(table, columns, count), given)


@lru_cache(maxsize=64)
def _statement(table: str, columns: int, rows: int) -> str:
    """Return what adds up to so many rows; those that begin with NULL are none."""
    marks = f"({', '.join('?' * columns)})"
    if rows == 1:
        return f"INSERT INTO {table} VALUES {marks}"
    values = ", ".join([marks] * rows)
    return (
        f"INSERT INTO {table} SELECT * FROM (VALUES {values}) WHERE column1 IS NOT NULL"
    )


def _message_row(number: int, envelope: Envelope, body: Body) -> Row:
    return (
        number,
        envelope.id,
        envelope.owner,
        envelope.sender,
        envelope.received_at,
        int(envelope.eight_bit),
        int(envelope.smtputf8),
        body.size,
        body.file_size,
        int(envelope.priority),
        envelope.ret or "",
        envelope.envid,
    )


def _recipient_rows(number: int, envelope: Envelope) -> Iterator[Row]:
    requests = {request.recipient: request for request in envelope.requests}
    for position, address in enumerate(dict.fromkeys(envelope.recipients)):
        asked = requests.get(address)
        yield (
            number,
            position,
            address,
            0,
            envelope.received_at,
            destination(address),
            int(envelope.priority),
            ",".join(asked.notify) if asked else "",
            asked.orcpt if asked else "",
        )
