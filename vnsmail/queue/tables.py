"""The tables of a queue file, and the statements on them.

Rules of this file: every statement of the queue stands here, but those that search it
(selection.py); transactions and files
are those of queue/store.py; errors are apsw's, and ``Refused`` for one change that
cannot be made while the others of its batch can.
"""

# ruff: noqa: S608  what is put into statements is all ours

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import apsw
import msgspec

from vnsmail.errors import AlreadyQueued, NotFound, QueueUnavailable, VnsmailError
from vnsmail.model import (
    DsnRequest,
    Envelope,
    Notify,
    Outcome,
    Owner,
    Priority,
    Ret,
    TlsWish,
    Verdict,
)
from vnsmail.queue import selection
from vnsmail.queue.arrival import Arrivals, Row
from vnsmail.queue.body import Body
from vnsmail.queue.departure import Departed, depart
from vnsmail.queue.envelope import (
    Due,
    Move,
    Place,
    QueueCounts,
    QueuedMessage,
    QueuedRecipient,
    Walk,
)
from vnsmail.queue.selection import HELD_UNTIL, Selection

VERSION = 4

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
    priority INTEGER NOT NULL DEFAULT 1,
    ret TEXT NOT NULL DEFAULT '',
    envid TEXT NOT NULL DEFAULT '',
    warned INTEGER NOT NULL DEFAULT 0,  -- the sender knows that it is late
    held TEXT NOT NULL DEFAULT '',      -- why an operator holds it
    tls TEXT NOT NULL DEFAULT ''        -- what its sender wants (RFC 8689)
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
    destination TEXT NOT NULL DEFAULT '',   -- domain of the address, in lower case
    priority INTEGER NOT NULL DEFAULT 1,    -- that of the message
    notify TEXT NOT NULL DEFAULT '',        -- words with commas (RFC 3461 4.1)
    orcpt TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (message, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX due ON recipient (destination, priority, next_attempt_at, message);
"""

SINCE_2 = """
CREATE TABLE taken (                -- messages that are handed over until they are taken
    token TEXT PRIMARY KEY,
    id TEXT NOT NULL,
    at REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX taken_at ON taken (at);
"""

SINCE_3 = """
CREATE TABLE hold (                 -- destinations that an operator holds
    destination TEXT PRIMARY KEY,   -- * is all
    reason TEXT NOT NULL,
    at REAL NOT NULL
) STRICT, WITHOUT ROWID;
"""

SINCE_4 = """
CREATE TABLE moving (               -- messages on their way to another host's queue
    id TEXT PRIMARY KEY,
    target TEXT NOT NULL,
    nonce TEXT NOT NULL,            -- of this move and no other
    recipients TEXT NOT NULL        -- those that move, as JSON
) STRICT, WITHOUT ROWID;
"""

REMEMBERED = 30 * 86400.0
"""Seconds that a token is known. Whoever hands a message over lets go of it at once, or
when it runs again."""

# The domain is what stands behind the last @: a quoted local part may have others.
MIGRATIONS = {
    1: """
ALTER TABLE message ADD COLUMN priority INTEGER NOT NULL DEFAULT 1;
ALTER TABLE message ADD COLUMN ret TEXT NOT NULL DEFAULT '';
ALTER TABLE message ADD COLUMN envid TEXT NOT NULL DEFAULT '';
ALTER TABLE message ADD COLUMN warned INTEGER NOT NULL DEFAULT 0;
ALTER TABLE recipient ADD COLUMN destination TEXT NOT NULL DEFAULT '';
ALTER TABLE recipient ADD COLUMN priority INTEGER NOT NULL DEFAULT 1;
ALTER TABLE recipient ADD COLUMN notify TEXT NOT NULL DEFAULT '';
ALTER TABLE recipient ADD COLUMN orcpt TEXT NOT NULL DEFAULT '';
UPDATE recipient SET destination =
    lower(substr(address, length(rtrim(address, replace(address, '@', ''))) + 1))
    WHERE instr(address, '@') > 0;
DROP INDEX due;
CREATE INDEX due ON recipient (destination, priority, next_attempt_at, message);
"""
    + SINCE_2,
    2: "ALTER TABLE message ADD COLUMN held TEXT NOT NULL DEFAULT '';" + SINCE_3,
    3: "ALTER TABLE message ADD COLUMN tls TEXT NOT NULL DEFAULT '';" + SINCE_4,
}
"""By version, what turns its tables into those of the next one."""

SCHEMA += SINCE_2 + SINCE_3 + SINCE_4

_MESSAGES = (
    "SELECT number, id, owner, sender, received_at, eight_bit, smtputf8, size,"
    " file_size, priority, ret, envid, held, tls FROM message "
)
_RECIPIENTS = (
    "SELECT address, attempts, next_attempt_at, last, notify, orcpt FROM recipient"
    " WHERE message = ? ORDER BY position"
)
_DEFER = (
    "UPDATE recipient SET attempts = attempts + ?, last = ?, next_attempt_at ="
    f" CASE WHEN next_attempt_at >= {HELD_UNTIL} THEN next_attempt_at ELSE ? END"
    " WHERE message = ? AND address = ?"
)

_SEEK = (
    "SELECT destination, priority, next_attempt_at FROM recipient"
    " WHERE (destination, priority) > (?, ?)"
    " ORDER BY destination, priority, next_attempt_at LIMIT 1"
)
_DUE = (
    "SELECT id FROM recipient AS r JOIN message ON r.message = number"
    " WHERE r.destination = ? AND r.priority = ? AND next_attempt_at <= ?"
    " ORDER BY next_attempt_at, r.message"
)
_NEXT = (
    "SELECT next_attempt_at FROM recipient"
    " WHERE destination = ? AND priority = ? AND next_attempt_at > ?"
    " ORDER BY next_attempt_at LIMIT 1"
)

_addresses = msgspec.json.Encoder().encode
_read_addresses = msgspec.json.Decoder(tuple[str, ...]).decode
_to_json = msgspec.json.Encoder().encode
_from_json = msgspec.json.Decoder(Outcome).decode


class Refused(Exception):
    """One change cannot be made; the others of its batch can."""

    def __init__(self, error: VnsmailError) -> None:
        super().__init__(error)
        self.error = error


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
    priority: int
    ret: str
    envid: str
    held: str
    tls: str


class Tables:
    """The tables of one open queue file."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._arrivals = Arrivals(connection)
        self._path = connection.db_filename("main") or ""
        self._counted: list[int] | None = None
        """Messages, recipients, deferred, octets; None: to be counted."""
        self._change = [0, 0, 0, 0]
        """What the transaction that is under way adds to those."""

    # Changes: to be called within a transaction ---------------------------------

    def arrivals(self, arriving: Sequence[tuple[Envelope, Body]]) -> list[Row]:
        """Return the rows of messages that are to be added."""
        return self._arrivals.rows(arriving)

    def insert(
        self, arriving: Sequence[tuple[Envelope, Body]], rows: Sequence[Row]
    ) -> None:
        """Add messages, all or none, with their rows.

        Up to arrival.TOGETHER rows are one statement, and so a transaction, unless this
        is called within one.

        Raises:
            Refused: an id is in the queue already, or an address is no text.
        """
        try:
            self._arrivals.insert(rows)
        except (apsw.ConstraintError, UnicodeEncodeError) as error:
            ids = ", ".join(envelope.id for envelope, _ in arriving)
            problem = f"message {ids} cannot be added: {error}"
            raise Refused(QueueUnavailable(self._path, problem)) from None
        size = sum(body.size for _, body in arriving)
        self._count(len(arriving), len(rows), 0, size)

    def take(self, token: str, envelope: Envelope, at: float | None = None) -> None:
        """Note that a message was taken that somebody may hand over again.

        Args:
            token: of whoever hands it over.
            envelope: the message.
            at: now, seconds since the epoch; None: it has just arrived.

        Raises:
            Refused: it was taken before.
        """
        execute = self._connection.execute
        for (queue_id,) in execute("SELECT id FROM taken WHERE token = ?", (token,)):
            raise Refused(AlreadyQueued(queue_id))
        at = envelope.received_at if at is None else at
        old = at - REMEMBERED
        execute("DELETE FROM taken WHERE at < ?", (old,))
        execute(
            "INSERT INTO taken VALUES (?, ?, ?)",
            (token, envelope.id, at),
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
        rows = self._recipients(row.number)
        known = {address for (address, *_) in rows}
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
        tried = {address for address, _, _, last, _, _ in rows if last is not None}
        self._count(0, -len(gone), len(deferred - tried) - len(gone & tried), 0)
        if gone != known:
            self._connection.executemany(
                "DELETE FROM recipient WHERE message = ? AND address = ?",
                ((row.number, address) for address in gone),
            )
            return False
        self._count(-1, 0, 0, -row.size)
        self._connection.execute("DELETE FROM moving WHERE id = ?", (message_id,))
        for statement in (
            "DELETE FROM recipient WHERE message = ?",
            "DELETE FROM head WHERE message = ?",
            "DELETE FROM message WHERE number = ?",
        ):
            self._connection.execute(statement, (row.number,))
        return row.file_size > 0

    def depart(self, over: Mapping[str, AbstractSet[str]]) -> Departed:
        """Take messages out whose recipients are all over; see departure.py."""
        left = depart(self._connection, over)
        self._count(-len(left.ids), -left.recipients, -left.deferred, -left.octets)
        return left

    def _defer(self, number: int, address: str, outcome: Outcome, at: float) -> None:
        attempts = 0 if outcome.not_an_attempt else 1
        last = _to_json(outcome).decode()
        self._connection.execute(_DEFER, (attempts, last, at, number, address))

    # Questions ------------------------------------------------------------------

    def walk(
        self,
        now: float,
        after: Place,
        room: Callable[[str], int],
        excluding: Mapping[str, AbstractSet[str]],
        limits: tuple[int, int],
    ) -> Walk:
        """Return what is due, destination by destination; each costs a seek or two.

        So a destination with any number of messages hides no other.
        """
        messages, visits = limits
        due: list[Due] = []
        more: set[str] = set()
        next_due = math.inf
        visited = 0
        for place, first in self._places(after):
            visited += 1
            name = place[0]
            wanted = room(name)
            if wanted > 0 and first > now:
                next_due = min(next_due, first)
            elif wanted > 0:
                taken = {d.message.envelope.id for d in due if d.destination == name}
                kept_out = excluding.get(name, frozenset[str]()) | taken
                found = self._due_at(place, now, wanted - len(taken), kept_out)
                due += (Due(name, self._queued(self._row(each))) for each in found)
                if len(found) + len(taken) >= wanted:
                    more.add(name)
                next_due = min(next_due, self._next_at(place, now))
            after = place
            if len(due) >= messages or visited >= visits:
                return Walk(due, next_due, frozenset(more), after, visited)
        return Walk(due, next_due, frozenset(more), None, visited)

    def due_in(
        self, name: str, now: float, limit: int, excluding: AbstractSet[str]
    ) -> tuple[list[QueuedMessage], float]:
        """Return what is due at one destination, and when something more is due."""
        found: list[str] = []
        next_due = math.inf
        for priority in Priority:
            place = (name, int(priority))
            kept_out = excluding | frozenset(found)
            found += self._due_at(place, now, limit - len(found), kept_out)
            next_due = min(next_due, self._next_at(place, now))
        return [self._queued(self._row(each)) for each in found], next_due

    def _places(self, after: Place) -> Iterator[tuple[Place, float]]:
        """Return each destination and priority, with when its first is due."""
        while True:
            row: Any = self._connection.execute(_SEEK, after).fetchone()
            if row is None:
                return
            after = (row[0], row[1])
            yield after, row[2]

    def _due_at(
        self, place: Place, now: float, limit: int, excluding: AbstractSet[str]
    ) -> list[str]:
        found: dict[str, None] = {}
        if limit <= 0:
            return []
        for (message_id,) in self._connection.execute(_DUE, (*place, now)):
            if message_id not in excluding:
                found[message_id] = None
                if len(found) >= limit:
                    break
        return list(found)

    def _next_at(self, place: Place, now: float) -> float:
        row: Any = self._connection.execute(_NEXT, (*place, now)).fetchone()
        return float(row[0]) if row else math.inf

    def aged(self, before: str, after: str, limit: int) -> list[tuple[str, bool]]:
        """Return ids between two, oldest first, and whether the sender was warned."""
        return [
            (message_id, bool(warned))
            for message_id, warned in self._connection.execute(
                "SELECT id, warned FROM message WHERE id > ? AND id < ? ORDER BY id"
                " LIMIT ?",
                (after, before, limit),
            )
        ]

    def set_warned(self, message_id: str) -> None:
        """Note that the sender knows that the message is late."""
        self._connection.execute(
            "UPDATE message SET warned = 1 WHERE id = ?", (message_id,)
        )

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
        """Return how full the queue is: counted once, and kept up to date from then on."""
        if self._counted is None:
            self._counted = self._count_all()
        messages, recipients, deferred, size = self._counted
        oldest = self._connection.execute(
            "SELECT received_at FROM message ORDER BY id LIMIT 1"
        ).fetchone()
        return QueueCounts(
            messages, recipients, deferred, size, oldest[0] if oldest else None
        )

    def knows(self, counts: QueueCounts) -> None:
        """Take over what was counted before the file was closed for a while."""
        self._counted = [
            counts.messages,
            counts.recipients,
            counts.deferred,
            counts.bytes,
        ]

    def begun(self) -> None:
        """A transaction begins."""
        self._change = [0, 0, 0, 0]

    def committed(self) -> None:
        """It is on disk."""
        if self._counted is not None:
            changes = zip(self._counted, self._change, strict=True)
            self._counted = [old + new for old, new in changes]

    def unsure(self) -> None:
        """Nobody knows what of the last transaction came true."""
        self._counted = None

    def _count(self, *changes: int) -> None:
        self._change = [a + b for a, b in zip(self._change, changes, strict=True)]

    def _count_all(self) -> list[int]:
        (row,) = self._connection.execute(
            "SELECT count(*), coalesce(sum(size), 0) FROM message"
        )
        messages, size = row
        (row,) = self._connection.execute("SELECT count(*), count(last) FROM recipient")
        return [messages, row[0], row[1], size]

    # What an operator wants -------------------------------------------------------

    def find(
        self, wanted: Selection, after: str, limit: int, now: float, scan: int
    ) -> tuple[list[QueuedMessage], str]:
        """Return messages that are meant, and where the search goes on; empty: ended.

        No more than ``scan`` rows are looked at, so there may be none on a page though
        there are some further on.
        """
        statement, given = selection.search(wanted, after, limit, scan, now)
        rows: list[Any] = self._connection.execute(statement, given).fetchall()
        numbers = list(dict.fromkeys(number for number, _ in rows))
        found = [self._queued(self._numbered(number)) for number in numbers]
        if len(rows) >= limit:
            return found, str(rows[-1][1])
        if wanted.ids:
            left = selection.ids_beyond(wanted, after)
            return found, left[scan - 1] if len(left) > scan else ""
        statement, given = selection.edge(wanted, after, scan)
        last: Any = self._connection.execute(statement, given).fetchone()
        return found, str(last[0]) if last else ""

    def holds(self) -> dict[str, str]:
        """Return the destinations that are held, with the reason."""
        found: list[Any] = self._connection.execute(
            "SELECT destination, reason FROM hold"
        ).fetchall()
        return dict(found)

    def hold_place(self, destination: str, reason: str, now: float) -> None:
        """Hold a destination, or all (within a transaction)."""
        self._connection.execute(
            "INSERT OR REPLACE INTO hold VALUES (?, ?, ?)", (destination, reason, now)
        )

    def release_place(self, destination: str) -> None:
        """Hold it no more (within a transaction)."""
        self._connection.execute(
            "DELETE FROM hold WHERE destination = ?", (destination,)
        )

    def hold(self, message_id: str, reason: str) -> None:
        """Hold a message (within a transaction); one that is gone is left alone."""
        self._connection.execute(
            "UPDATE recipient SET next_attempt_at = ? WHERE message ="
            " (SELECT number FROM message WHERE id = ?)",
            (HELD_UNTIL, message_id),
        )
        self._connection.execute(
            "UPDATE message SET held = ? WHERE id = ?", (reason, message_id)
        )

    def release(self, message_id: str, now: float) -> None:
        """Let a message be due that is held (within a transaction)."""
        self._connection.execute(
            "UPDATE recipient SET next_attempt_at = ? WHERE next_attempt_at >= ?"
            " AND message = (SELECT number FROM message WHERE id = ?)",
            (now, HELD_UNTIL, message_id),
        )
        self._connection.execute(
            "UPDATE message SET held = '' WHERE id = ?", (message_id,)
        )

    def begin_move(self, message_id: str, move: Move) -> None:
        """Hold a message as it goes elsewhere (within a transaction); again is the same."""
        self._connection.execute(
            "INSERT OR IGNORE INTO moving SELECT id, ?, ?, ? FROM message WHERE id = ?",
            (move.target, move.nonce, _addresses(move.recipients).decode(), message_id),
        )
        self.hold(message_id, f"on its way to {move.target}")

    def end_move(self, message_id: str, now: float) -> None:
        """Have it go nowhere any more; what is left of it is due."""
        self._connection.execute("DELETE FROM moving WHERE id = ?", (message_id,))
        self.release(message_id, now)

    def moves(self) -> dict[str, Move]:
        """Return what is on its way to other queues, by queue id."""
        rows: list[Any] = self._connection.execute(
            "SELECT id, target, nonce, recipients FROM moving"
        ).fetchall()
        return {
            message_id: Move(target, nonce, _read_addresses(recipients))
            for message_id, target, nonce, recipients in rows
        }

    def hasten(self, message_id: str, address: str, now: float) -> None:
        """Let a recipient be due now, unless held (within a transaction)."""
        self._connection.execute(
            "UPDATE recipient SET next_attempt_at = ? WHERE address = ?"
            f" AND next_attempt_at > ? AND next_attempt_at < {HELD_UNTIL}"
            " AND message = (SELECT number FROM message WHERE id = ?)",
            (now, address, now, message_id),
        )

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

    def _numbered(self, number: int) -> _Row:
        for row in self._connection.execute(_MESSAGES + "WHERE number = ?", (number,)):
            return _Row(*row)
        raise Refused(NotFound("message", str(number), "it has left the queue"))

    def _row(self, message_id: str) -> _Row:
        for row in self._connection.execute(_MESSAGES + "WHERE id = ?", (message_id,)):
            return _Row(*row)
        raise Refused(
            NotFound("queue id", message_id, "no message in this queue has it")
        )

    def _recipients(
        self, number: int
    ) -> list[tuple[str, int, float, str | None, str, str]]:
        rows: list[Any] = self._connection.execute(_RECIPIENTS, (number,)).fetchall()
        return rows

    def _queued(self, row: _Row) -> QueuedMessage:
        rows = self._recipients(row.number)
        recipients = tuple(
            QueuedRecipient(address, attempts, at, _from_json(last) if last else None)
            for address, attempts, at, last, _, _ in rows
        )
        envelope = Envelope(
            id=row.id,
            owner=Owner(row.owner),
            sender=row.sender,
            recipients=tuple(recipient.address for recipient in recipients),
            received_at=row.received_at,
            eight_bit=bool(row.eight_bit),
            smtputf8=bool(row.smtputf8),
            priority=Priority(row.priority),
            ret=Ret(row.ret) if row.ret else None,
            envid=row.envid,
            tls=TlsWish(row.tls),
            requests=tuple(
                DsnRequest(address, _words(notify), orcpt)
                for address, _, _, _, notify, orcpt in rows
                if notify or orcpt
            ),
        )
        return QueuedMessage(envelope, row.size, recipients, row.held)


def _words(notify: str) -> tuple[Notify, ...]:
    return tuple(map(Notify, notify.split(","))) if notify else ()
