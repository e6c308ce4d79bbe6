"""The body of one message on its way in.

A small one stays in memory. A large one is written to its file piece by piece, by the
executor, as the event loop must never wait for a disk.

Rules of this file: one piece is on its way to the disk at most; whoever feeds it stops
reading while ``busy``, so memory holds two pieces and one read of the transport; what
is discarded leaves no file, whatever is on its way.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import TypeVar

from vnsmail.errors import QueueUnavailable
from vnsmail.message.complete import Completion, HeaderTooLong
from vnsmail.queue.body import THRESHOLD, Body, BodyWriter

PIECE = THRESHOLD
"""Bytes that go to the disk at a time; a trip to the executor costs some 100 us."""

FRONT = 128 * 1024
"""Bytes of a message's front that are kept to look at: more than a header block may
have. Fifty trace headers have some 15 KiB, a thousand recipients in To some 40."""

T = TypeVar("T")


class Spool:
    """Takes one body.

    Args:
        folder: the owner's folder.
        executor: writes what does not stay in memory.
        on_idle: called when a piece is written, and more may come.
        completion: completes the message on its way.
    """

    def __init__(
        self,
        folder: Path,
        executor: Executor,
        on_idle: Callable[[], None],
        completion: Completion | None = None,
    ) -> None:
        self._completion = completion
        self.front = b""
        """The first bytes of the message, once it is finished."""
        self._folder = folder
        self._writer: BodyWriter | None = None
        """Of the file, once there is one."""
        self._executor = executor
        self._on_idle = on_idle
        self._loop = asyncio.get_running_loop()
        self._pieces: list[bytes] = []
        self._gathered = 0
        self._writing: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self._unwanted = False

    @property
    def busy(self) -> bool:
        """Whether a piece is on its way to the disk."""
        return self._writing is not None

    def add(self, data: bytes) -> None:
        """Take the next bytes; they are dropped if the disk failed before."""
        if self._error is not None or self._unwanted:
            return
        if self._completion is not None:
            try:
                data = self._completion.feed(data)
            except HeaderTooLong:  # whoever looks at the message refuses it
                data = self._completion.give_up()
        self._pieces.append(data)
        self._gathered += len(data)
        if self._gathered > PIECE and self._writing is None:
            self._write()

    def finish_at_once(self) -> Body | None:
        """Do as ``finish`` does where nothing is in a file; None: it is, ask ``finish``."""
        if (
            self._writer is not None
            or self._writing is not None
            or self._error is not None
        ):
            return None
        if self._completion is not None:
            self._pieces.append(self._completion.finish())
        data = self._gather()
        self.front = data if len(data) <= FRONT else data[:FRONT]
        return Body(data)

    async def finish(self) -> Body:
        """Return the body. It belongs to the caller; nothing may be added after it.

        Raises:
            QueueUnavailable: it could not be written; nothing of it is left.
        """
        while self._writing is not None:
            await asyncio.wait({self._writing})
        if self._error is not None:
            raise self._error
        if (body := self.finish_at_once()) is not None:
            return body
        if self._completion is not None:
            self._pieces.append(self._completion.finish())
        if self._writer is None:
            raise QueueUnavailable("incoming", "the body was thrown away")
        rest = self._gather()
        return await self._in_executor(partial(_complete, self._writer, rest))

    def discard(self) -> None:
        """Throw away what came."""
        self._unwanted = True
        self._pieces.clear()
        if self._writing is None and self._writer is not None:
            discard, self._writer = self._writer.discard, None
            self._in_executor(discard).add_done_callback(_look_at)

    def _gather(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._gathered = 0
        return data

    def _write(self) -> None:
        data = self._gather()
        if self._writer is None:
            self.front = data[:FRONT]
            self._writer = BodyWriter(self._folder, PIECE)
        self._writing = self._in_executor(partial(self._writer.write, data))
        self._writing.add_done_callback(self._written)

    def _written(self, done: asyncio.Future[None]) -> None:
        self._writing = None
        if error := done.exception():
            self._error = error
            self._pieces.clear()
        if self._unwanted:
            self.discard()
        elif self._gathered > PIECE and not error:
            self._write()
        else:
            self._on_idle()

    def _in_executor(self, function: Callable[[], T]) -> asyncio.Future[T]:
        try:
            return self._loop.run_in_executor(self._executor, function)
        except RuntimeError as error:  # it was shut down
            if self._writer is not None:
                self._writer.discard()
            failed: asyncio.Future[T] = self._loop.create_future()
            failed.set_exception(QueueUnavailable("incoming", str(error)))
            return failed


def _complete(writer: BodyWriter, rest: bytes) -> Body:
    writer.write(rest)
    return writer.finish()


def _look_at(done: asyncio.Future[None]) -> None:
    # An exception that nobody looks at is logged as a fault by asyncio.
    if not done.cancelled():
        done.exception()
