"""The queue of one owner for coroutines, with group commit.

While one batch commits in a thread, further changes gather; they are the next batch. A
queue has one batch on its way at most, so its store is used by one thread at a time,
and many queues share one executor.

Rules of this file: what was handed over is carried out, whether or not the coroutine
that waits for it is cancelled: a message may then be in the queue though nobody was
told, which SMTP allows (RFC 1047), and ``due`` finds it. Nothing here waits for a disk
in the event loop.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeAlias, TypeVar

from vnsmail import database, log
from vnsmail.errors import QueueUnavailable
from vnsmail.model import Envelope, Outcome, Verdict
from vnsmail.queue.body import Body
from vnsmail.queue.envelope import (
    Move,
    Place,
    QueueCounts,
    QueuedMessage,
    QueuedRecipient,
    Walk,
)
from vnsmail.queue.selection import Selection
from vnsmail.queue.store import (
    Accept,
    Alter,
    Change,
    QueueStore,
    Settle,
    accepts,
    sync_body,
)
from vnsmail.queue.tables import Tables

__all__ = ["Queue", "QueueCounts", "QueuedMessage", "QueuedRecipient"]

BATCH_CHANGES = 128
"""Changes a transaction; beyond it the first to wait gain less than the last lose."""

REST_AFTER = 30.0
"""Seconds in which nothing happens before the queue's file is closed for now."""

GIVE_BACK_AFTER = 2.0
"""Seconds in which others begin to rest too."""

BATCH_BYTES = 8 * 1024 * 1024
"""Bytes of bodies in rows a transaction, so that the write-ahead log stays small."""

WALK_MESSAGES, WALK_PLACES = 200, 2000
"""Messages found, or destinations seen, after which a walk lets others have the file."""

SCAN = 20_000
"""Rows that a search looks at before others have the file."""

Messages: TypeAlias = list[QueuedMessage]

T = TypeVar("T")

logger = log.logger("queue")


Waiting: TypeAlias = tuple[Change, asyncio.Future[None]]
Batch: TypeAlias = list[Waiting]
Question: TypeAlias = tuple[Callable[[], Any], asyncio.Future[Any]]


@dataclass(frozen=True, slots=True)
class _Trip:
    """What one visit to the executor does: the changes, then the questions."""

    changes: Batch
    questions: list[Question]

    @property
    def waiters(self) -> list[asyncio.Future[Any]]:
        return [waiter for _, waiter in (*self.changes, *self.questions)]


Results: TypeAlias = list[tuple[Any, BaseException | None]]


class Queue:
    """The queue of one owner. Made by ``open``; belongs to the loop it was made in."""

    def __init__(self, store: QueueStore, folder: Path, executor: Executor) -> None:
        self._store = store
        self._folder = folder
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._changes: deque[Waiting] = deque()
        self._questions: list[Question] = []
        self._away = False
        self._closed: asyncio.Future[None] | None = None
        self._resting: asyncio.TimerHandle | None = None
        self._rest_later()

    @classmethod
    async def open(cls, folder: Path, executor: Executor) -> Self:
        """Open the queue in an owner's folder, making it if there is none.

        Raises:
            QueueUnavailable: not usable, damaged, or open in another process. A
                damaged file is left as it is.
        """
        loop = asyncio.get_running_loop()
        opening = loop.run_in_executor(executor, QueueStore, folder)
        try:
            store = await asyncio.shield(opening)
        except asyncio.CancelledError:
            # Nobody would ever close it, and it holds the lock.
            opening.add_done_callback(partial(_close_unwanted, executor))
            raise
        return cls(store, folder, executor)

    # Changes --------------------------------------------------------------------

    async def accept(
        self,
        envelope: Envelope,
        body: Body,
        token: str = "",
        at: float | None = None,
    ) -> None:
        """Add a message; on return it is on disk, and 250 may be said.

        The body belongs to the queue from here on, also if this fails. A message with
        the same token as an earlier one is not added again.

        Raises:
            AlreadyQueued: so it was.
            QueueUnavailable: it is not in the queue; the disk is full, say.
        """
        if body.file is not None:
            await self._sync_bodies([body])
        await self._change(Accept(envelope, body, token, at))

    def accept_soon(self, envelope: Envelope, body: Body) -> "asyncio.Future[None]":
        """Add a message whose body is in memory; the future is done as ``accept`` is.

        Raises:
            QueueUnavailable: it is being closed.
            ValueError: a part of the body is in a file.
        """
        if body.file is not None:
            raise ValueError("a file has to be synced before")
        return self._change(Accept(envelope, body))

    async def settle(
        self,
        message_id: str,
        outcomes: Mapping[str, Outcome],
        retry_at: Mapping[str, float],
        accept: Sequence[tuple[Envelope, Body]] = (),
        *,
        warned: bool = False,
    ) -> None:
        """Record what became of recipients, and add messages, in one transaction.

        Delivered and failed recipients leave; a message without recipients leaves with
        its body. Deferred ones stay, with one attempt more unless there was no attempt.

        Args:
            message_id: queue id.
            outcomes: by recipient; recipients not named stay as they are.
            retry_at: for every deferred recipient, seconds since the epoch.
            accept: messages to add, such as a delivery status notification. Their
                bodies belong to the queue from here on, also if this fails.
            warned: one of those tells the sender that the message is late.

        Raises:
            NotFound: no such message or recipient; nothing is changed.
            QueueUnavailable: nothing is changed.
        """
        for address, outcome in outcomes.items():
            if outcome.verdict is Verdict.DEFERRED and address not in retry_at:
                message = f"{address} is deferred, and no time is given"
                raise ValueError(message)
        await self._sync_bodies([body for _, body in accept])
        added = tuple(Accept(envelope, body) for envelope, body in accept)
        await self._change(
            Settle(message_id, dict(outcomes), dict(retry_at), added, warned),
        )

    async def alter(self, act: Callable[[Tables], None]) -> None:
        """Change what an operator wants changed of messages that stay.

        Raises:
            QueueUnavailable: nothing is changed.
        """
        await self._change(Alter(act))

    async def _sync_bodies(self, bodies: Sequence[Body]) -> None:
        """Sync large bodies before they join a batch, which would wait for them."""
        try:
            self._refuse_if_closed()
            for body in bodies:
                if body.file is not None:
                    await self._loop.run_in_executor(self._executor, sync_body, body)
        except BaseException:
            for body in bodies:
                body.discard()
            raise

    def _change(self, change: Change) -> "asyncio.Future[None]":
        try:
            self._refuse_if_closed()
        except QueueUnavailable:
            for accept in accepts([change]):
                accept.body.discard()
            raise
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._changes.append((change, waiter))
        self._send_soon()
        return waiter

    # Questions ------------------------------------------------------------------

    async def walk(
        self,
        now: float,
        after: Place,
        room: Callable[[str], int],
        excluding: Mapping[str, AbstractSet[str]],
        limits: tuple[int, int] = (WALK_MESSAGES, WALK_PLACES),
    ) -> Walk:
        """Return messages that are due, some of each destination.

        Within a destination high priority comes first, then the longest due. A message
        comes with all recipients that are left, also those not due yet.

        Args:
            now: seconds since the epoch.
            after: where the last walk went on, or START.
            room: how many messages of a destination are wanted; called in a thread.
            excluding: queue ids to leave out, by destination: those in flight.
            limits: messages and places after which the walk pauses.
        """
        return await self._ask(
            lambda: self._store.walk(now, after, room, excluding, limits)
        )

    async def due_in(
        self, destination: str, now: float, limit: int, excluding: AbstractSet[str]
    ) -> tuple[Messages, float]:
        """Return messages due at one destination, and when something more is due.

        The time is infinity if nothing waits for one later than ``now``.
        """
        kept_out = frozenset(excluding)
        return await self._ask(
            lambda: self._store.due_in(destination, now, limit, kept_out)
        )

    async def aged(self, before: str, after: str, limit: int) -> list[tuple[str, bool]]:
        """Return queue ids between two, oldest first, and if the sender was warned."""
        return await self._ask(lambda: self._store.aged(before, after, limit))

    async def load(self, message_id: str) -> tuple[QueuedMessage, Body]:
        """Return a message with its body.

        Raises:
            NotFound: it is not in the queue (any more).
            QueueUnavailable: it is, and its body cannot be read.
        """
        return await self._ask(lambda: self._store.load(message_id))

    async def counts(self) -> QueueCounts:
        """Count what is in the queue."""
        return await self._ask(self._store.counts)

    async def find(
        self,
        wanted: Selection,
        after: str = "",
        limit: int = 100,
        *,
        now: float,
        scan: int = SCAN,
    ) -> tuple[Messages, str]:
        """Return messages that are meant, and where the search goes on; empty: it ended.

        A page may be empty though the search has not ended: no more than ``scan`` rows
        are looked at in one go.
        """
        return await self._ask(
            lambda: self._store.find(wanted, after, limit, now, scan)
        )

    async def holds(self) -> dict[str, str]:
        """Return the destinations that an operator holds, with the reason."""
        return await self._ask(self._store.holds)

    async def moves(self) -> dict[str, Move]:
        """Return what is on its way to other queues, by queue id."""
        return await self._ask(self._store.moves)

    async def list(self, limit: int, after: str = "") -> Messages:
        """Return messages with queue ids beyond ``after``, oldest first."""
        return await self._ask(lambda: self._store.page(limit, after))

    def _ask(self, question: Callable[[], T]) -> Awaitable[T]:
        self._refuse_if_closed()
        waiter: asyncio.Future[T] = self._loop.create_future()
        self._questions.append((question, waiter))
        self._send_soon()
        return waiter

    # Closing --------------------------------------------------------------------

    async def close(self) -> None:
        """Finish what was handed over, and close the files.

        Raises:
            QueueUnavailable: the log could not be brought into the file; everything
                acknowledged is on disk all the same.
        """
        if self._closed is None:
            self._closed = self._loop.create_future()
            self._send_soon()
        await asyncio.shield(self._closed)

    def _refuse_if_closed(self) -> None:
        if self._closed is not None:
            raise QueueUnavailable(str(self._folder), "it is being closed")

    # Trips to the executor --------------------------------------------------------

    def _send_soon(self) -> None:
        # Not at once: whoever is ready in this turn of the loop shares the trip.
        if not self._away:
            self._away = True
            self._loop.call_soon(self._send)

    def _rest_later(self) -> None:
        """Begin to count the time in which nothing happens."""
        if self._resting is not None:
            self._resting.cancel()
        self._resting = self._loop.call_later(REST_AFTER, self._rest)

    def _rest(self) -> None:
        """Close the file until something happens, if nothing does now."""
        self._resting = None
        if self._away or self._closed is not None:
            return
        self._away = True
        going = self._in_executor(self._store.rest)
        going.add_done_callback(self._rested)

    def _rested(self, done: asyncio.Future[None]) -> None:
        if error := done.exception():
            logger.warning("queue.no_rest", reason=str(error))
        _give_back_soon(self._loop, self._executor)
        self._away = False
        if self._changes or self._questions or self._closed is not None:
            self._send_soon()

    def _send(self) -> None:
        trip = _Trip(self._next_batch(), self._questions)
        self._questions = []
        if trip.waiters:
            going = self._in_executor(partial(self._carry_out, trip))
            going.add_done_callback(partial(self._returned, trip))
        elif self._closed is not None:
            if self._resting is not None:
                self._resting.cancel()
            closing = self._in_executor(self._store.close)
            closing.add_done_callback(partial(_pass_on, self._closed))
        else:
            self._away = False

    def _in_executor(self, function: Callable[[], T]) -> asyncio.Future[T]:
        try:
            return self._loop.run_in_executor(self._executor, function)
        except RuntimeError as error:  # it was shut down; nobody may wait for ever
            failed: asyncio.Future[T] = self._loop.create_future()
            failed.set_exception(QueueUnavailable(str(self._folder), str(error)))
            return failed

    def _next_batch(self) -> Batch:
        batch: Batch = []
        size = 0
        while self._changes and len(batch) < BATCH_CHANGES and size < BATCH_BYTES:
            change, waiter = self._changes.popleft()
            batch.append((change, waiter))
            size += _octets(change)
        return batch

    def _carry_out(self, trip: _Trip) -> Results:
        """In the executor: the changes first, so that questions see them."""
        results: Results = []
        if trip.changes:
            errors = self._store.commit([change for change, _ in trip.changes])
            results += [(None, error) for error in errors]
        for question, _ in trip.questions:
            try:
                results.append((question(), None))
            except Exception as error:  # noqa: BLE001  it goes to whoever asked
                results.append((None, error))
        return results

    def _returned(self, trip: _Trip, done: asyncio.Future[Results]) -> None:
        fault = done.exception()
        if fault is None:
            results = done.result()
        else:  # a fault of this program; nobody may wait for ever
            results = [(None, fault)] * len(trip.waiters)
        for waiter, (value, error) in zip(trip.waiters, results, strict=True):
            if waiter.done():
                continue  # whoever waited was cancelled
            if error is None:
                waiter.set_result(value)
            else:
                waiter.set_exception(error)
        self._away = False
        # Whoever only counts, now and then for ever, keeps no file open.
        used = trip.changes or any(q != self._store.counts for q, _ in trip.questions)
        if not self._store.resting and (used or self._resting is None):
            self._rest_later()
        if self._changes or self._questions or self._closed is not None:
            self._send_soon()


_giving_back: tuple[asyncio.AbstractEventLoop, asyncio.TimerHandle] | None = None


def _give_back_soon(loop: asyncio.AbstractEventLoop, executor: Executor) -> None:
    """Give the system the memory of closed files, once for many that rest together."""
    global _giving_back  # noqa: PLW0603  memory is the process's
    if _giving_back is not None and _giving_back[0] is loop:
        return

    def give_back() -> None:
        global _giving_back  # noqa: PLW0603
        _giving_back = None
        with contextlib.suppress(RuntimeError):  # the executor was shut down
            _ = loop.run_in_executor(executor, database.give_back_memory)

    _giving_back = loop, loop.call_later(GIVE_BACK_AFTER, give_back)


def _octets(change: Change) -> int:
    """Return the octets of bodies in rows that a change adds."""
    if isinstance(change, Accept):
        return len(change.body.head)
    return sum(len(accept.body.head) for accept in accepts([change]))


def _pass_on(waiter: asyncio.Future[None], done: asyncio.Future[None]) -> None:
    if error := done.exception():
        waiter.set_exception(error)
    else:
        waiter.set_result(None)


def _close_unwanted(executor: Executor, opening: asyncio.Future[QueueStore]) -> None:
    if not opening.exception():
        executor.submit(opening.result().close)
