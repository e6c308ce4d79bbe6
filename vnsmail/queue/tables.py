"""The tables of a queue file, and the statements on them.

Rules of this file: every statement of the queue stands here; transactions and files
are those of queue/store.py; errors are apsw's, and ``Refused`` for one change that
cannot be made while the others of its batch can.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, TypeAlias

import apsw
import msgspec

from vnsmail.errors import AlreadyQueued, NotFound, QueueUnavailable, VnsmailError
from vnsmail.model import DsnRequest, Envelope, Notify, Outcome, Owner, Ret, Verdict
from vnsmail.queue.body import Body
from vnsmail.queue.envelope import QueueCounts, QueuedMessage, QueuedRecipient

VERSION = 2

# Bodies lie in a table of their own, so that a walk over envelopes does not read them.
SCHEMA = """
CREATE TABLE message (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    sender TEXT NOT NULL,
    received_at REAL NOT NULL,
    eight_bit INTEGER NOT NULL,
    smtputf8 INTEGER NOT NULL,
    size INTEGER NOT NULL,
    file_size INTEGER NOT NULL,     -- bytes in body/ID; 0 means there is none
    ret TEXT NOT NULL DEFAULT '',   -- RFC 3461: FULL, HDRS, or empty
    envid TEXT NOT NULL DEFAULT ''  -- RFC 3461, as xtext
) STRICT;
CREATE TABLE head (                 -- the body, or what stands before body/ID
    message INTEGER PRIMARY KEY,
    data BLOB NOT NULL
) STRICT;
CREATE TABLE recipient (
    message INTEGER NOT NULL,
    position INTEGER NOT NULL,
    address TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    next_attempt_at REAL NOT NULL,
    last TEXT,                      -- the last outcome as JSON
    notify TEXT NOT NULL DEFAULT '',-- RFC 3461: words with commas between, or empty
    orcpt TEXT NOT NULL DEFAULT '', -- RFC 3461: type;xtext, or empty
    PRIMARY KEY (message, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX due ON recipient (next_attempt_at, message);
"""

SINCE_2 = """
CREATE TABLE taken (                -- messages that are handed over until they are taken
    token TEXT PRIMARY KEY,
    id TEXT NOT NULL,
    at REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX taken_at ON taken (at);
"""

REMEMBERED = 30 * 86400.0
"""Seconds that a token is known. Whoever hands a message over lets go of it at once, or
when it runs again."""

MIGRATIONS = {
    1: """
ALTER TABLE message ADD COLUMN ret TEXT NOT NULL DEFAULT '';
ALTER TABLE message ADD COLUMN envid TEXT NOT NULL DEFAULT '';
ALTER TABLE recipient ADD COLUMN notify TEXT NOT NULL DEFAULT '';
ALTER TABLE recipient ADD COLUMN orcpt TEXT NOT NULL DEFAULT '';
"""
    + SINCE_2
}
"""By version, what turns its tables into the next one's."""

SCHEMA += SINCE_2

_MESSAGES = (
    "SELECT number, id, owner, sender, received_at, eight_bit, smtputf8, size,"
    " file_size, ret, envid FROM message "
)
_RECIPIENTS = (
    "SELECT address, attempts, next_attempt_at, last, notify, orcpt FROM recipient"
    " WHERE message = ? ORDER BY position"
)
_DEFER = (
    "UPDATE recipient SET attempts = attempts + ?, next_attempt_at = ?, last = ?"
    " WHERE message = ? AND address = ?"
)

_to_json = msgspec.json.Encoder().encode
_from_json = msgspec.json.Decoder(Outcome).decode


class Refused(Exception):
    """One change cannot be made; the others of its batch can."""

    def __init__(self, error: VnsmailError) -> None:
        super().__init__(error)
        self.error = error


_Recipient: TypeAlias = tuple[str, int, float, str | None, str, str]
"""What _RECIPIENTS selects."""


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    id: str
    owner: str
    sender: str
    received_at: float
    eight_bit: int
    smtputf8: int
    size: int
    file_size: int
    ret: str
    envid: str


class Tables:
    """The tables of one open queue file."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._path = connection.db_filename("main") or ""

    # Changes: to be called within a transaction ---------------------------------

    def insert(self, envelope: Envelope, body: Body) -> None:
        """Add a message; every recipient is due at once.

        A recipient given twice is kept once (RFC 5321 section 4.1.1.3 lets us).

        Raises:
            Refused: the id is in the queue already, or an address is no text.
        """
        execute = self._connection.execute
        try:
            execute(
                "INSERT INTO message (id, owner, sender, received_at, eight_bit,"
                " smtputf8, size, file_size, ret, envid)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    envelope.id,
                    envelope.owner,
                    envelope.sender,
                    envelope.received_at,
                    int(envelope.eight_bit),
                    int(envelope.smtputf8),
                    body.size,
                    body.file_size,
                    envelope.ret or "",
                    envelope.envid,
                ),
            )
            number = self._connection.last_insert_rowid()
            execute("INSERT INTO head VALUES (?, ?)", (number, body.head))
            self._connection.executemany(
                "INSERT INTO recipient VALUES (?, ?, ?, 0, ?, NULL, ?, ?)",
                _recipient_rows(number, envelope),
            )
        except (apsw.ConstraintError, UnicodeEncodeError) as error:
            problem = f"message {envelope.id} cannot be added: {error}"
            raise Refused(QueueUnavailable(self._path, problem)) from None

    def take(self, token: str, envelope: Envelope) -> None:
        """Note that a message was taken that somebody may hand over again.

        Raises:
            Refused: it was taken before.
        """
        execute = self._connection.execute
        for (queue_id,) in execute("SELECT id FROM taken WHERE token = ?", (token,)):
            raise Refused(AlreadyQueued(queue_id))
        old = envelope.received_at - REMEMBERED
        execute("DELETE FROM taken WHERE at < ?", (old,))
        execute(
            "INSERT INTO taken VALUES (?, ?, ?)",
            (token, envelope.id, envelope.received_at),
        )

    def settle(
        self,
        message_id: str,
        outcomes: Mapping[str, Outcome],
        retry_at: Mapping[str, float],
    ) -> bool:
        """Record outcomes; return whether the message left and had a body file.

        Raises:
            Refused: no such message in the queue, or it has no such recipient.
        """
        row = self._row(message_id)
        known = {recipient[0] for recipient in self._recipients(row.number)}
        if unknown := outcomes.keys() - known:
            raise Refused(
                NotFound(
                    "recipient", min(unknown), f"message {message_id} has none such"
                )
            )
        deferred = {a for a, o in outcomes.items() if o.verdict is Verdict.DEFERRED}
        for address in deferred:
            self._defer(row.number, address, outcomes[address], retry_at[address])
        gone = outcomes.keys() - deferred
        if gone != known:
            self._connection.executemany(
                "DELETE FROM recipient WHERE message = ? AND address = ?",
                ((row.number, address) for address in gone),
            )
            return False
        for statement in (
            "DELETE FROM recipient WHERE message = ?",
            "DELETE FROM head WHERE message = ?",
            "DELETE FROM message WHERE number = ?",
        ):
            self._connection.execute(statement, (row.number,))
        return row.file_size > 0

    def _defer(self, number: int, address: str, outcome: Outcome, at: float) -> None:
        attempts = 0 if outcome.not_an_attempt else 1
        last = _to_json(outcome).decode()
        self._connection.execute(_DEFER, (attempts, at, last, number, address))

    # Questions ------------------------------------------------------------------

    def due(
        self, now: float, limit: int, excluding: AbstractSet[str]
    ) -> list[QueuedMessage]:
        """Return messages with a recipient due, the longest due first."""
        found: dict[str, None] = {}
        for (message_id,) in self._connection.execute(
            "SELECT id FROM recipient JOIN message ON message = number"
            " WHERE next_attempt_at <= ? ORDER BY next_attempt_at, message",
            (now,),
        ):
            if len(found) >= limit:
                break
            if message_id not in excluding:
                found[message_id] = None
        return [self._queued(self._row(message_id)) for message_id in found]

    def next_due(self, excluding: AbstractSet[str]) -> float | None:
        """Return the earliest time a recipient is due."""
        for message_id, at in self._connection.execute(
            "SELECT id, next_attempt_at FROM recipient JOIN message ON message = number"
            " ORDER BY next_attempt_at, message"
        ):
            if message_id not in excluding:
                return float(at)
        return None

    def load(self, message_id: str) -> tuple[QueuedMessage, bytes, int]:
        """Return a message, the head of its body, and the size of its body file.

        Raises:
            Refused: no such message in the queue.
        """
        row = self._row(message_id)
        for (head,) in self._connection.execute(
            "SELECT data FROM head WHERE message = ?", (row.number,)
        ):
            return self._queued(row), head, row.file_size
        problem = f"message {message_id} has lost its body"
        raise Refused(QueueUnavailable(self._path, problem))

    def counts(self) -> QueueCounts:
        """Count what is in the queue."""
        (row,) = self._connection.execute(
            "SELECT count(*), coalesce(sum(size), 0), min(received_at) FROM message"
        )
        messages, size, oldest = row
        (row,) = self._connection.execute("SELECT count(*), count(last) FROM recipient")
        recipients, deferred = row
        return QueueCounts(messages, recipients, deferred, size, oldest)

    def page(self, limit: int, after: str) -> list[QueuedMessage]:
        """Return messages in order of id, which is that of arrival."""
        rows: list[Any] = self._connection.execute(
            _MESSAGES + "WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
        ).fetchall()
        return [self._queued(_Row(*row)) for row in rows]

    def with_files(self) -> Iterator[str]:
        """Return the ids of messages with a body file."""
        for (message_id,) in self._connection.execute(
            "SELECT id FROM message WHERE file_size > 0"
        ):
            yield str(message_id)

    # Rows -----------------------------------------------------------------------

    def _row(self, message_id: str) -> _Row:
        for row in self._connection.execute(_MESSAGES + "WHERE id = ?", (message_id,)):
            return _Row(*row)
        raise Refused(
            NotFound("queue id", message_id, "no message in this queue has it")
        )

    def _recipients(self, number: int) -> list[_Recipient]:
        rows: list[Any] = self._connection.execute(_RECIPIENTS, (number,)).fetchall()
        return rows

    def _queued(self, row: _Row) -> QueuedMessage:
        rows = self._recipients(row.number)
        recipients = tuple(
            QueuedRecipient(address, attempts, at, _from_json(last) if last else None)
            for address, attempts, at, last, *_ in rows
        )
        envelope = Envelope(
            id=row.id,
            owner=Owner(row.owner),
            sender=row.sender,
            recipients=tuple(recipient.address for recipient in recipients),
            received_at=row.received_at,
            eight_bit=bool(row.eight_bit),
            smtputf8=bool(row.smtputf8),
            ret=Ret(row.ret) if row.ret else None,
            envid=row.envid,
            requests=tuple(
                DsnRequest(address, _words(notify), orcpt)
                for address, _, _, _, notify, orcpt in rows
                if notify or orcpt
            ),
        )
        return QueuedMessage(envelope, row.size, recipients)


def _recipient_rows(
    number: int, envelope: Envelope
) -> Iterator[tuple[int, int, str, float, str, str]]:
    asked = {request.recipient: request for request in envelope.requests}
    for position, address in enumerate(dict.fromkeys(envelope.recipients)):
        request = asked.get(address)
        notify = ",".join(request.notify) if request else ""
        orcpt = request.orcpt if request else ""
        yield number, position, address, envelope.received_at, notify, orcpt


def _words(notify: str) -> tuple[Notify, ...]:
    return tuple(map(Notify, notify.split(","))) if notify else ()
