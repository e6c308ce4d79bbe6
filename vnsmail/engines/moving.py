"""Messages that an operator moves to another host's queue, at both ends.

    source   held and written down as moving, with a nonce     (durable)
    target   queued under that nonce, once                     (durable)
    source   forgotten

Rules of this file: a message is forgotten only when the target has said that it is on its
disk; whatever dies in between, the same is done again with the same nonce, and the target
takes it once. What is under way to a remote does not move.
"""

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

from vnsmail.delivery import outcomes as say
from vnsmail.delivery.agent import DeliveryAgent
from vnsmail.engines.desk import Desk
from vnsmail.engines.protocol import Adopt, BeginMove, CopyOut, Leaving, MoveBegun
from vnsmail.errors import NotFound
from vnsmail.events import record as events
from vnsmail.events.record import Tell
from vnsmail.model import Envelope
from vnsmail.queue.body import CHUNK, Body, BodyWriter
from vnsmail.queue.envelope import Move, QueuedMessage, destination
from vnsmail.queue.queue import Queue
from vnsmail.queue.tables import Tables

PAGE = 50
"""Messages that are held at a time until they are at the other host."""


class Mover:
    """Moves messages out of the queue of one owner.

    Args:
        owner: whose.
        queue: the owner's.
        agent: who delivers from it; None: nobody does now.
        desk: finds messages.
        tell: takes what is to stand in the event log.
        executor: does what waits for a disk.
    """

    def __init__(
        self,
        owner: str,
        queue: Queue,
        agent: DeliveryAgent | None,
        desk: Desk,
        tell: Tell,
        executor: Executor,
    ) -> None:
        self._owner = owner
        self._queue = queue
        self._agent = agent
        self._desk = desk
        self._tell = tell
        self._executor = executor

    async def begin(self, request: BeginMove) -> MoveBegun:
        """Hold a page of messages that go; answer with all that is to be copied now.

        Raises:
            QueueUnavailable: nothing of the page is changed.
        """
        moving = await self._queue.moves()
        if not request.target:
            left = [_leaving(i, move) for i, move in list(moving.items())[:PAGE]]
            return MoveBegun(request.id, tuple(left), 0, (), "")
        found, place = await self._desk.page(request.selection, request.after, PAGE)
        leaving: dict[str, Move] = {}
        refused: list[str] = []
        under_way = 0
        for message in found:
            message_id = message.envelope.id
            known = moving.get(message_id)
            addresses = _meant(message, request)
            if known is not None and known.target == request.target:
                leaving[message_id] = known
            elif known is not None:
                under_way += 1
            elif not addresses:
                continue
            elif not _may_go(message.envelope, request):
                refused.append(message_id)
            else:
                nonce = secrets.token_hex(16)
                leaving[message_id] = Move(request.target, nonce, tuple(addresses))
        flying: set[str] = set()
        if not request.dry_run:
            new = {i: move for i, move in leaving.items() if i not in moving}
            flying = await self._hold(new)
        left = [_leaving(i, m) for i, m in leaving.items() if i not in flying]
        alone = under_way + len(flying)
        return MoveBegun(request.id, tuple(left), alone, tuple(refused), place)

    async def _hold(self, moves: dict[str, Move]) -> set[str]:
        """Hold messages durably; return those that are being sent, which stay."""
        await self._queue.alter(lambda tables: _begin(tables, moves))
        if self._agent is None:
            return set()
        # Not before: what is taken up meanwhile is found under way.
        flying = self._agent.withdraw(moves.keys())
        if flying:
            now = time.time()
            await self._queue.alter(lambda tables: _end(tables, flying, now))
        return flying

    async def copy(self, request: CopyOut, fd: int) -> Envelope | None:
        """Write a message that moves into a file; return its envelope, as it goes on.

        None: it, or all recipients that were to move, left meanwhile.

        Raises:
            QueueUnavailable: it cannot be read.
        """
        move = (await self._queue.moves()).get(request.queue_id)
        if move is None:
            return None
        try:
            message, body = await self._queue.load(request.queue_id)
        except NotFound:
            return None
        there = set(message.envelope.recipients)
        going = tuple(to for to in move.recipients if to in there)
        if not going:
            return None
        copying = asyncio.get_running_loop().run_in_executor(
            self._executor, _write_out, body, os.dup(fd)
        )
        await copying
        asked = message.envelope.requests
        return replace(
            message.envelope,
            recipients=going,
            requests=tuple(each for each in asked if each.recipient in going),
        )

    async def end(self, queue_id: str) -> None:
        """Forget what the other host has; again is the same.

        Raises:
            QueueUnavailable: nothing is changed.
        """
        move = (await self._queue.moves()).get(queue_id)
        if move is None:
            return
        with contextlib.suppress(NotFound):  # all of it went before a crash
            message, _ = await self._queue.load(queue_id)
            there = set(message.envelope.recipients)
            going = [to for to in move.recipients if to in there]
            if going:
                gone = say.for_all(going, say.delivered(f"moved to {move.target}"))
                await self._queue.settle(queue_id, gone, {})
                self._tell_of(message.envelope, move.target, going)
        now = time.time()
        # Others of its recipients stay, and are due.
        await self._queue.alter(lambda tables: tables.end_move(queue_id, now))
        if self._agent is not None:
            self._agent.look_again()

    def _tell_of(
        self, envelope: Envelope, target: str, recipients: Sequence[str]
    ) -> None:
        moved = events.Moved(
            time=events.at(time.time()),
            host=self._owner,
            id=envelope.id,
            to=target,
            sender=envelope.sender,
            recipients=events.named(recipients),
            recipient_count=len(recipients),
        )
        self._tell(moved)


def token_of(asked: Adopt) -> str:
    """Return what a message is taken under, so that it is taken once."""
    return f"move {asked.nonce} {asked.source} {asked.envelope.id}"


def read_in(fd: int, folder: Path) -> Body:
    """Return the message of another host, in the folder of its new one; closes ``fd``.

    Raises:
        QueueUnavailable: there is no room for it.
    """
    with open(fd, "rb", buffering=0) as file, BodyWriter(folder) as writer:
        file.seek(0)  # the offset is shared with whoever wrote it
        while chunk := file.read(CHUNK):
            writer.write(chunk)
        return writer.finish()


def _write_out(body: Body, fd: int) -> None:
    with open(fd, "wb") as file:
        file.writelines(body.chunks())


def _meant(message: QueuedMessage, request: BeginMove) -> list[str]:
    wanted = request.selection
    return [r.address for r in message.recipients if wanted.means(r.address)]


def _may_go(envelope: Envelope, request: BeginMove) -> bool:
    """Say whether the target sends for the sender: what is nobody's may go anywhere."""
    if request.force or not envelope.sender:
        return True
    return destination(envelope.sender) in request.domains


def _leaving(queue_id: str, move: Move) -> Leaving:
    return Leaving(queue_id, move.target, move.nonce, len(move.recipients))


def _begin(tables: Tables, moves: dict[str, Move]) -> None:
    for queue_id, move in moves.items():
        tables.begin_move(queue_id, move)


def _end(tables: Tables, ids: set[str], now: float) -> None:
    for queue_id in ids:
        tables.end_move(queue_id, now)
