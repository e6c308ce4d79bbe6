"""Messages on their way into a queue file: a batch of them is one statement.

Each statement that runs lets go of the interpreter and asks for it back, and in a thread
beside a busy event loop that costs more than what it does. So a batch goes through a
view, whose trigger puts each row where it belongs; and where nothing else is to be done
with it, that one statement is the transaction too.

Rules of this file: messages get their numbers here, always rising; no transaction begins
or ends here. View and trigger are the connection's own, and stand in no file.
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
"""Rows of one statement at most. It is kept prepared, some 30 KiB of memory."""

_RECIPIENT = (
    "message",
    "position",
    "address",
    "attempts",
    "next_attempt_at",
    "destination",
    "priority",
    "notify",
    "orcpt",
)
_MESSAGE = (
    "number",
    "id",
    "owner",
    "sender",
    "received_at",
    "eight_bit",
    "smtputf8",
    "size",
    "file_size",
    "m_priority",
    "ret",
    "envid",
    "tls",
)
_COLUMNS = (*_RECIPIENT, *_MESSAGE, "head")
_NO_MESSAGE = (None,) * (len(_MESSAGE) + 1)
"""Behind the second recipient of a message and all that follow."""

_NEW = {
    name: ", ".join(f"NEW.{column}" for column in columns)
    for name, columns in (("recipient", _RECIPIENT), ("message", _MESSAGE))
}
_VIEW = f"""
CREATE TEMP VIEW arriving AS SELECT {", ".join(f"NULL AS {c}" for c in _COLUMNS)};
CREATE TEMP TRIGGER arrives INSTEAD OF INSERT ON arriving BEGIN
    INSERT INTO message (
        {", ".join(_MESSAGE).replace("m_priority", "priority")}
    ) SELECT {_NEW["message"]} WHERE NEW.number IS NOT NULL;
    INSERT INTO head (message, data)
        SELECT NEW.number, NEW.head WHERE NEW.number IS NOT NULL;
    INSERT INTO recipient ({", ".join(_RECIPIENT)}) VALUES ({_NEW["recipient"]});
END;
"""

Row: TypeAlias = tuple[Any, ...]


class Arrivals:
    """Adds messages to the tables of one open queue file."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(_VIEW)
        self._last: int | None = None
        """The highest number that was given out; None: not known yet. One that was rolled
        back stays unused."""

    def rows(self, arriving: Sequence[tuple[Envelope, Body]]) -> list[Row]:
        """Return what is to be inserted for messages: a row for each recipient.

        Every recipient is due at once. One given twice is kept once (RFC 5321 section
        4.1.1.3 lets us).
        """
        first = self._numbers(len(arriving))
        rows: list[Row] = []
        for number, (envelope, body) in enumerate(arriving, first):
            behind = _message_row(number, envelope, body)
            for recipient in _recipient_rows(number, envelope):
                rows.append(recipient + behind)
                behind = _NO_MESSAGE
        return rows

    def insert(self, rows: Sequence[Row]) -> None:
        """Insert rows, by one statement if there are no more than TOGETHER.

        Raises:
            apsw.ConstraintError: an id is in the queue already.
            UnicodeEncodeError: an address is no text.
        """
        for start in range(0, len(rows), TOGETHER):
            together = rows[start : start + TOGETHER]
            count = 1 << (len(together) - 1).bit_length()
            given = [*chain.from_iterable(together)]
            given += [None] * (len(_COLUMNS) * (count - len(together)))
            self._connection.execute(_statement(count), given)

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


@lru_cache(maxsize=16)
def _statement(rows: int) -> str:
    """Return what adds up to so many rows; those that begin with NULL are none."""
    marks = f"({', '.join('?' * len(_COLUMNS))})"
    if rows == 1:
        return f"INSERT INTO arriving VALUES {marks}"
    values = ", ".join([marks] * rows)
    return (
        f"INSERT INTO arriving SELECT * FROM (VALUES {values})"
        " WHERE column1 IS NOT NULL"
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
        envelope.tls.value,
        body.head,
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
