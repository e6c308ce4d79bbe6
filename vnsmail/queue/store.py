"""The queue on disk: the only reader and writer of an owner's queue files.

    FOLDER/queue.db          envelopes, recipients, bodies up to a threshold
    FOLDER/body/ID           the rest of the body of message ID, where it is large
    FOLDER/incoming/RANDOM   bodies that nobody has accepted yet

One transaction a batch; when ``commit`` returns, the batch is on disk. States of one
message after a crash at any instant (r: its row, with recipients; b: body/ID;
i: incoming/RANDOM), and what opening the queue makes of them:

    -r -b -i   not here, or not any more                             nothing to do
    -r -b +i   arriving; nobody was told 250                         removes i
    -r +b ?i   being moved, and its transaction is not committed,    removes b, i
               so nobody was told 250; or it left, and b had not yet
    +r -b -i   a small message, durable                              nothing to do
    +r +b -i   a large message, durable                              nothing to do

A row whose body/ID is missing comes from none of our steps. The row stays; ``load``
and the log say what is missing.

The order that makes it so: the file is synced (``sync_body``), gets its name body/ID,
the folder body/ is synced, the row is committed. Removal goes backwards: the commit first,
the file after it. So a row never waits for its file. Opening does the same: the log is
synced before a file without row is removed, because after ``kill -9`` the log may hold
a COMMIT that no sync has followed.

A COMMIT that failed may yet come true. Its pages may be whole in the write-ahead log,
and be found there if the machine goes down before the next COMMIT writes over them. So
the body files of a failed batch are kept until a later COMMIT succeeds. Only a full
disk is known to have committed nothing, and is when the space is needed.

SQLite sets some 200 KiB aside for each open file. So a queue in which nothing happens is
put to rest (``rest``): its file is closed, what it holds is remembered as numbers, and
the first that needs more opens it again. It stays ours all the while: the lock is on
the folder, not on the file.

Rules of this file: synchronous, and used by one thread at a time; only VnsmailErrors
leave it; one process at a time has a queue open, by a lock that dies with the process.
"""

import contextlib
import fcntl
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import apsw

from vnsmail import database, log
from vnsmail.errors import QueueUnavailable, VnsmailError
from vnsmail.model import Envelope, Outcome, Verdict
from vnsmail.queue.arrival import TOGETHER
from vnsmail.queue.body import INCOMING, Body
from vnsmail.queue.envelope import Move, Place, QueueCounts, QueuedMessage, Walk
from vnsmail.queue.selection import Selection
from vnsmail.queue.tables import MIGRATIONS, SCHEMA, VERSION, Refused, Tables

DATABASE = "queue.db"
LOG = "queue.db-wal"
BODIES = "body"

RESERVE = 32 * 1024 * 1024
"""Bytes of the disk that no arriving message may take (Exim's check_spool_space: 10M).
On a disk that is full to the last byte no outcome could be written down, and mail
already delivered would be sent again and again."""

LOG_PAGES = 1000
"""Pages of 4 KiB in the write-ahead log before it is brought into the file: SQLite's
own number. More pages would save syncs and cost every host its own larger log."""

FEW = 2
"""Messages that leave one by one."""

logger = log.logger("queue")


@dataclass(frozen=True, slots=True)
class Accept:
    """Add a message. Its body file, if it has one, went through ``sync_body``."""

    envelope: Envelope
    body: Body
    token: str = ""
    """Whoever hands the message over may do it again after a crash: it is added once."""
    at: float | None = None
    """When it is handed over, seconds since the epoch; None: when it arrived."""


@dataclass(frozen=True, slots=True)
class Settle:
    """Record what became of recipients, and add messages in the same transaction."""

    message_id: str
    outcomes: Mapping[str, Outcome]
    retry_at: Mapping[str, float]
    """Seconds since the epoch, for every recipient that is deferred."""
    accept: tuple[Accept, ...] = ()
    warned: bool = False
    """One of the messages added tells the sender that this one is late."""


@dataclass(frozen=True, slots=True)
class Alter:
    """What an operator wants changed of messages that stay."""

    act: Callable[[Tables], None]


Change = Accept | Settle | Alter


def sync_body(body: Body) -> None:
    """Bring a body's file to the disk, before it is accepted.

    Raises:
        QueueUnavailable: the disk did not take it.
    """
    if body.file is None:
        return
    try:
        # A new descriptor still learns of a write-back that failed before it was
        # opened, unless somebody has been told of it (Linux errseq_t, since 4.17).
        _sync(body.file)
    except OSError as error:
        raise QueueUnavailable(str(body.file), database.reason(error)) from None


class QueueStore:
    """The queue files of one owner, open and locked.

    Args:
        folder: the owner's folder; made if it is missing.

    Raises:
        QueueUnavailable: not usable, damaged, or open elsewhere. Nothing is removed
            or repaired then.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / DATABASE
        self._bodies = folder / BODIES
        self._incoming = folder / INCOMING
        self._taken: set[Path] = set()
        """Body files that got their names in the commit that is under way."""
        self._unsure: set[Path] = set()
        """Body files of a COMMIT that failed, and may yet come true."""
        self._open: apsw.Connection | None = None
        self._rested = QueueCounts(0, 0, 0, 0, None)
        """What it holds while it rests: nobody else can have changed it."""
        self._resting_counts = False
        self._lock = -1
        with self._in_our_words():
            self._make_folders()
            self._lock = self._locked()
            try:
                self._awake()
                self._clean_up()
            except BaseException:
                self.close()
                raise

    def _locked(self) -> int:
        """Take the lock of the folder, which lasts from here to ``close``."""
        lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            problem = "another process has it open"
            raise QueueUnavailable(str(self._path), problem) from None
        except BaseException:
            os.close(lock)
            raise
        return lock

    @property
    def _connection(self) -> apsw.Connection:
        """The open file; one that rests is opened.

        Raises:
            apsw.Error, OSError: it cannot be opened.
        """
        if self._open is None:
            connection = database.open_file(
                self._path, SCHEMA, VERSION, exclusive=True, migrations=MIGRATIONS
            )
            # A log that cannot be brought into the file is no message that cannot be
            # accepted: not within COMMIT, but by _checkpoint.
            connection.wal_autocheckpoint(0)
            self._tables = Tables(connection)
            if self._resting_counts:
                self._tables.knows(self._rested)
            self._open = connection
        return self._open

    @property
    def resting(self) -> bool:
        """Whether the file is closed for now."""
        return self._open is None

    def rest(self) -> None:
        """Close the file until something needs it; what it holds stays known.

        Raises:
            QueueUnavailable: the log could not be brought into the file. Nothing is
                lost by it, and the queue can be used.
        """
        if self._open is None or self._taken or self._unsure:
            return
        with self._in_our_words():
            self._rested = self._tables.counts()
            self._resting_counts = True
            self._let_go()

    def _let_go(self) -> None:
        connection, self._open = self._open, None
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Bring the write-ahead log into the file, and let go of it."""
        try:
            with self._in_our_words():
                self._let_go()
        finally:
            lock, self._lock = self._lock, -1
            if lock >= 0:
                os.close(lock)

    # Changes --------------------------------------------------------------------

    def commit(self, changes: Sequence[Change]) -> list[VnsmailError | None]:
        """Make changes durable, all in one transaction.

        Returns what went wrong with each: None, and it is on disk. A change that
        cannot be made does not keep the others from being made; an error of disk or
        file is the same for all. The bodies belong to the store from here on: those of
        changes that failed are thrown away.
        """
        errors = self._take_in(changes)
        ready = [i for i, error in enumerate(errors) if error is None]
        if ready:
            outcome = self._commit([changes[i] for i in ready])
            for i, error in zip(ready, outcome, strict=True):
                errors[i] = error
        return errors

    def _commit(self, changes: Sequence[Change]) -> list[VnsmailError | None]:
        try:
            leaving = self._transact(changes)
        except Refused as refused:
            if len(changes) > 1:
                return [self._commit([change])[0] for change in changes]
            self._drop(changes[0])
            return [refused.error]
        except (apsw.Error, OSError) as error:
            return [self._unavailable(error) for _ in changes]
        for path in leaving:
            _remove(path)
        if self._written() >= LOG_PAGES:
            self._checkpoint()
        return [None] * len(changes)

    def _transact(self, changes: Sequence[Change]) -> list[Path]:
        """Make changes or none; returns files to remove, now that no row has them."""
        arriving = {f for a in accepts(changes) if (f := a.body.file)} & self._taken
        before = 0
        committing = False
        try:
            before = self._connection.total_changes()
            self._tables.begun()
            messages = [(each.envelope, each.body) for each in accepts(changes)]
            rows = self._tables.arrivals(messages)
            if len(rows) <= TOGETHER and all(map(_only_adds, changes)):
                leaving: list[Path] = []
                committing = True
                self._tables.insert(messages, rows)
            else:
                self._connection.execute("BEGIN IMMEDIATE")
                leaving, others = self._departures(changes)
                leaving += [path for change in others for path in self._apply(change)]
                self._tables.insert(messages, rows)
                committing = True
                self._connection.execute("COMMIT")
            self._tables.committed()
        except Refused:
            database.roll_back(self._connection)
            raise
        except BaseException as error:
            if self._open is not None:
                database.roll_back(self._open)
            if committing:
                self._tables.unsure()
            if committing and not isinstance(error, apsw.FullError):
                self._unsure |= arriving
                self._taken -= arriving
            for change in changes:
                self._drop(change)
            raise
        self._taken -= arriving
        # A transaction that changed nothing wrote nothing over the failed one's pages.
        if self._connection.total_changes() > before:
            leaving += self._unsure
            self._unsure.clear()
        return leaving

    def _written(self, *, forget: bool = False) -> int:
        """Return how many pages went to the write-ahead log since it was last brought in.

        Not by SQLite's hook: that would ask for the interpreter within each COMMIT.
        """
        status = self._connection.status
        return status(apsw.SQLITE_DBSTATUS_CACHE_WRITE, forget)[0]

    def _checkpoint(self) -> None:
        try:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            self._written(forget=True)
        except apsw.Error as error:
            reason = database.reason(error)
            logger.warning("queue.log_grows", file=str(self._path), reason=reason)

    # Body files -----------------------------------------------------------------

    def _take_in(self, changes: Sequence[Change]) -> list[VnsmailError | None]:
        """Give every body file its durable name; returns the error of each change."""
        errors: list[VnsmailError | None] = [None] * len(changes)
        room = self._room(changes)
        enough = isinstance(room, int) and room >= RESERVE
        if enough and not any(accept.body.file for accept in accepts(changes)):
            return errors
        for i, change in enumerate(changes):
            try:
                self._keep_reserve(change, room)
                for accept in accepts([change]):
                    self._move_in(accept)
            except Refused as refused:
                errors[i] = refused.error
            except OSError as error:
                errors[i] = self._unavailable(error)
        try:
            if self._taken:
                database.sync_folder(self._bodies)
        except OSError as error:
            errors = [each or self._unavailable(error) for each in errors]
        for change, failed in zip(changes, errors, strict=True):
            if failed:
                self._drop(change)
        return errors

    def _room(self, changes: Sequence[Change]) -> int | OSError:
        """Return the bytes that the disk has left, asked once for all changes.

        What one batch may add is less than the reserve (BATCH_BYTES in queue.py).
        """
        if not any(isinstance(change, Accept) for change in changes):
            return RESERVE
        try:
            disk = os.statvfs(self._folder)
        except OSError as error:
            return error
        return disk.f_bavail * disk.f_frsize

    def _keep_reserve(self, change: Change, room: int | OSError) -> None:
        if not isinstance(change, Accept):
            return
        if isinstance(room, OSError):
            raise room
        if room < RESERVE:
            problem = f"its disk has less than {RESERVE >> 20} MiB left"
            raise Refused(QueueUnavailable(str(self._folder), problem))

    def _move_in(self, accept: Accept) -> None:
        body = accept.body
        if body.file is None:
            return
        home = self._bodies / accept.envelope.id
        if body.queued or home.parent != self._bodies:
            problem = "the body is in a queue already, or the id is no file name"
            raise Refused(QueueUnavailable(str(home), problem))
        try:
            # Not rename(2): that would put this body in the place of another.
            os.link(body.file, home)
        except (FileExistsError, FileNotFoundError) as error:
            problem = f"the body cannot be kept ({database.reason(error)})"
            raise Refused(QueueUnavailable(str(home), problem)) from None
        incoming = body.file
        body.file, body.queued = home, True
        self._taken.add(home)
        os.unlink(incoming)

    def _drop(self, change: Change) -> None:
        """Throw away the bodies of a change that was not made."""
        for accept in accepts([change]):
            file = accept.body.file
            if file in self._taken:
                _remove(file)
                self._taken.discard(file)
            else:
                accept.body.discard()

    def _departures(self, changes: Sequence[Change]) -> tuple[list[Path], list[Change]]:
        """Take out together what leaves whole; return files to remove, and what is left.

        What an operator does is done in its order, so nothing is brought forward then.
        """
        over: dict[str, AbstractSet[str]] = {}
        twice: set[str] = set()
        for change in changes:
            if isinstance(change, Alter):
                return [], list(changes)
            if isinstance(change, Settle):
                if change.message_id in over:
                    twice.add(change.message_id)
                over[change.message_id] = change.outcomes.keys()
        for change in changes:
            if isinstance(change, Settle) and (change.warned or _defers(change)):
                twice.add(change.message_id)
        for message_id in twice:
            over.pop(message_id, None)
        if len(over) < FEW:
            return [], list(changes)
        left = self._tables.depart(over)
        others = [
            change
            for change in changes
            if not isinstance(change, Settle) or change.message_id not in left.ids
        ]
        return [self._bodies / each for each in left.with_files], others

    def _apply(self, change: Change) -> Iterator[Path]:
        """Make a change, but for the messages that it adds."""
        if isinstance(change, Accept):
            if change.token:
                self._tables.take(change.token, change.envelope, change.at)
            return
        if isinstance(change, Alter):
            change.act(self._tables)
            return
        if self._tables.settle(change.message_id, change.outcomes, change.retry_at):
            yield self._bodies / change.message_id
        if change.warned:
            self._tables.set_warned(change.message_id)

    # Questions ------------------------------------------------------------------

    def walk(
        self,
        now: float,
        after: Place,
        room: Callable[[str], int],
        excluding: Mapping[str, AbstractSet[str]],
        limits: tuple[int, int],
    ) -> Walk:
        """Return what is due by ``now``; see Queue.walk."""
        with self._in_our_words():
            if self._is_empty():
                return Walk([], math.inf, frozenset(), None, 0)
            return self._awake().walk(now, after, room, excluding, limits)

    def due_in(
        self, destination: str, now: float, limit: int, excluding: AbstractSet[str]
    ) -> tuple[list[QueuedMessage], float]:
        """Return what is due at a destination; see Queue.due_in."""
        with self._in_our_words():
            if self._is_empty():
                return [], math.inf
            return self._awake().due_in(destination, now, limit, excluding)

    def aged(self, before: str, after: str, limit: int) -> list[tuple[str, bool]]:
        """Return ids between two, and whether the sender was warned."""
        with self._in_our_words():
            if self._is_empty():
                return []
            return self._awake().aged(before, after, limit)

    def load(self, message_id: str) -> tuple[QueuedMessage, Body]:
        """Return a message with its body.

        Raises:
            NotFound: it is not in the queue.
            QueueUnavailable: it is, and its body cannot be read.
        """
        with self._in_our_words():
            message, head, file_size = self._awake().load(message_id)
            if not file_size:
                return message, Body(head)
            file = self._bodies / message_id
            found = file.stat().st_size
            if found != file_size:
                problem = f"{found} bytes are there where {file_size} were accepted"
                raise QueueUnavailable(str(file), problem)
            return message, Body(head, file, file_size, queued=True)

    def counts(self) -> QueueCounts:
        """Count what is in the queue."""
        with self._in_our_words():
            return self._rested if self._open is None else self._tables.counts()

    def page(self, limit: int, after: str = "") -> list[QueuedMessage]:
        """Return messages with ids beyond ``after``, oldest first."""
        with self._in_our_words():
            return [] if self._is_empty() else self._awake().page(limit, after)

    def find(
        self, wanted: Selection, after: str, limit: int, now: float, scan: int
    ) -> tuple[list[QueuedMessage], str]:
        """Return messages that are meant; see Queue.find."""
        with self._in_our_words():
            if self._is_empty():
                return [], ""
            return self._awake().find(wanted, after, limit, now, scan)

    def holds(self) -> dict[str, str]:
        """Return the destinations that are held, with the reason."""
        with self._in_our_words():
            return self._awake().holds()

    def moves(self) -> dict[str, Move]:
        """Return what is on its way to other queues, by queue id."""
        with self._in_our_words():
            return self._awake().moves()

    def _awake(self) -> Tables:
        """Return the tables of a file that is open."""
        _ = self._connection
        return self._tables

    def _is_empty(self) -> bool:
        """Return whether it rests and is known to hold nothing."""
        return self._open is None and not self._rested.messages

    # Opening --------------------------------------------------------------------

    def _make_folders(self) -> None:
        for folder in (self._folder, self._bodies, self._incoming):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        database.sync_folder(self._folder)
        # The folder above may be one that we can enter and not read.
        with contextlib.suppress(PermissionError):
            database.sync_folder(self._folder.parent)

    def _sync_log(self) -> None:
        # Not by a checkpoint, which needs room in the file: on a full disk the queue
        # must open, or it could never be emptied.
        with contextlib.suppress(FileNotFoundError):
            _sync(self._path.with_name(LOG))

    def _clean_up(self) -> None:
        self._sync_log()
        rows = set(self._tables.with_files())
        files = {path.name for path in self._bodies.iterdir()}
        refuse = [self._bodies / name for name in files - rows]
        refuse += self._incoming.iterdir()
        for path in refuse:
            _remove(path)
        if refuse:
            logger.info("queue.cleaned", folder=str(self._folder), files=len(refuse))
        if missing := rows - files:
            logger.error(
                "queue.bodies_missing",
                folder=str(self._bodies),
                messages=sorted(missing)[:10],
                count=len(missing),
            )

    # Errors ---------------------------------------------------------------------

    @contextlib.contextmanager
    def _in_our_words(self) -> Iterator[None]:
        try:
            yield
        except Refused as refused:
            raise refused.error from None
        except (apsw.Error, OSError) as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: apsw.Error | OSError) -> QueueUnavailable:
        file = getattr(error, "filename", None) or self._path
        return QueueUnavailable(str(file), database.reason(error))


def _only_adds(change: Change) -> bool:
    """Say whether a change is nothing but a message more."""
    return isinstance(change, Accept) and not change.token


def _defers(change: Settle) -> bool:
    """Say whether a recipient stays."""
    return any(o.verdict is Verdict.DEFERRED for o in change.outcomes.values())


def accepts(changes: Sequence[Change]) -> Iterator[Accept]:
    """Return all messages that changes would add."""
    for change in changes:
        if isinstance(change, Accept):
            yield change
        elif isinstance(change, Settle):
            yield from change.accept


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    # What cannot be removed now is removed when the queue is opened the next time.
    with contextlib.suppress(OSError):
        path.unlink()
