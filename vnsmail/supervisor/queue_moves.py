"""Queued messages that move from one host to another: the way between two workers.

Rules of this file: the bytes of a message pass by in a file in memory, and are not looked
at. What was begun is finished, also what somebody else began before a crash: the source
knows what goes where, the target takes each once (engines/moving.py).
"""

import asyncio
import os

from vnsmail.engines import protocol as engine
from vnsmail.errors import BadInput, NotFound, VnsmailError
from vnsmail.log import logger
from vnsmail.model import MACHINE, host_name
from vnsmail.supervisor import control
from vnsmail.supervisor.services import Services, WorkerRefused

FINISH_EVERY = 15.0
"""Seconds between tries to finish what was cut off."""

log = logger("queue")


class QueueMoves:
    """Moves queued messages between hosts.

    Args:
        services: who asks the workers.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = asyncio.Lock()
        self._unfinished = True
        """Something may be half moved: so it is at the start, nobody knows better."""

    async def move(self, request: control.MoveQueue) -> control.QueueMoved:
        """Move a page of messages.

        Raises:
            NotFound, BadInput: there are no such hosts, or mail cannot move so.
            WorkerRefused: not now; what was begun is finished later, by itself.
        """
        source, target = self._host(request.owner), self._host(request.target)
        if source == target:
            raise BadInput("host", target, "it is there already; give another --to")
        if target == MACHINE:
            remedy = "what a host sends never leaves as the machine's own; give a host"
            raise BadInput("host", target, remedy)
        facts = self._services.service(target).facts
        if facts.suspended:
            remedy = f"it sends nothing; `vnsmail host resume {target}` first"
            raise BadInput("virtual host", target, remedy)
        async with self._lock:
            begun = await self._begin(
                engine.BeginMove(
                    0,
                    source,
                    target,
                    facts.domains,
                    request.selection,
                    request.after,
                    request.force,
                    request.dry_run,
                )
            )
            if not request.dry_run:
                await self._carry(source, begun.leaving)
        return control.QueueMoved(
            len(begun.leaving),
            sum(each.recipients for each in begun.leaving),
            begun.under_way,
            begun.refused,
            begun.place,
        )

    async def finish(self) -> None:
        """Finish, again and again, what was cut off."""
        while True:
            if self._unfinished:
                try:
                    await self._finish()
                except VnsmailError as error:
                    log.warning("move.unfinished", reason=str(error))
            await asyncio.sleep(FINISH_EVERY)

    async def _finish(self) -> None:
        reports = await self._services.reports()
        missing = set(self._services.owners()) - {each.owner for each in reports}
        async with self._lock:
            self._unfinished = bool(missing)
            for owner in (each.owner for each in reports if each.moving):
                try:
                    while leaving := (await self._begin(_rest_of(owner))).leaving:
                        await self._carry(owner, leaving)
                except VnsmailError as error:
                    log.warning("move.unfinished", owner=owner, reason=str(error))
                    self._unfinished = True

    # Within ------------------------------------------------------------------

    def _host(self, name: str) -> str:
        if name in self._services.owners():
            return name
        raise NotFound("virtual host", host_name(name), "see `vnsmail host list`")

    async def _begin(self, request: engine.BeginMove) -> engine.MoveBegun:
        answer = await self._services.asked(
            request.owner, lambda n: _numbered(request, n)
        )
        if not isinstance(answer, engine.MoveBegun):
            raise _unexpected(answer)
        return answer

    async def _carry(self, source: str, leaving: tuple[engine.Leaving, ...]) -> None:
        for each in leaving:
            try:
                await self._carry_one(source, each)
            except VnsmailError as error:
                self._unfinished = True
                text = (
                    f"{each.queue_id} is held on its way to {each.target}, and goes on "
                    f"by itself when it can: {error}"
                )
                raise WorkerRefused(text, 1) from None

    async def _carry_one(self, source: str, leaving: engine.Leaving) -> None:
        fd = os.memfd_create("vnsmail-move", os.MFD_CLOEXEC)
        try:
            copied = await self._services.asked(
                source, lambda n: engine.CopyOut(n, source, leaving.queue_id), (fd,)
            )
            if not isinstance(copied, engine.CopiedOut):
                raise _unexpected(copied)
            if (envelope := copied.envelope) is not None:
                adopted = await self._services.asked(
                    leaving.target,
                    lambda n: engine.Adopt(
                        n, leaving.target, envelope, source, leaving.nonce
                    ),
                    (fd,),
                )
                if not isinstance(adopted, engine.Injected):
                    raise _unexpected(adopted)
                log.info(
                    "message.moved",
                    owner=source,
                    id=leaving.queue_id,
                    to=leaving.target,
                    as_id=adopted.queue_id,
                )
        finally:
            os.close(fd)
        await self._services.asked(
            source, lambda n: engine.EndMove(n, source, leaving.queue_id)
        )


def _rest_of(owner: str) -> engine.BeginMove:
    return engine.BeginMove(0, owner)


def _numbered(request: engine.BeginMove, number: int) -> engine.BeginMove:
    return engine.BeginMove(
        number,
        request.owner,
        request.target,
        request.domains,
        request.selection,
        request.after,
        request.force,
        request.dry_run,
    )


def _unexpected(answer: engine.Answer) -> WorkerRefused:
    return WorkerRefused(f"unexpected answer {type(answer).__name__}", 1)
