"""Queues, for operators: each request goes to the worker of one owner, and back.

Rules of this file: a request is one page; whoever wants more asks again. So no request
holds up the supervisor, and none loads a queue.
"""

import contextlib

from vnsmail.engines import protocol as engine
from vnsmail.errors import NotFound
from vnsmail.model import host_name
from vnsmail.supervisor import control
from vnsmail.supervisor.engines import EngineFailed
from vnsmail.supervisor.services import Services, WorkerRefused


class Desk:
    """Asks workers for operators.

    Args:
        services: who asks them.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    async def handle(
        self, request: control.FindQueue | control.WorkQueue | control.HoldPlace
    ) -> control.Answer:
        """Carry out a request.

        Raises:
            NotFound: there is no such host.
            WorkerRefused: its worker would not, or is being started.
        """
        owner = request.owner
        if owner not in self._services.owners():
            host_name(owner)
            raise NotFound("virtual host", owner, "see `vnsmail host list`")
        answer = await self._services.asked(owner, lambda n: _question(n, request))
        match answer:
            case engine.QueueFound(entries=entries, place=place, header=header):
                return control.QueuePage(
                    (*await self._of_engine(request), *entries), place, header
                )
            case engine.QueueWorked():
                await self._hurry_engine(request)
                return control.QueueWorked(
                    answer.messages, answer.recipients, answer.under_way, answer.place
                )
            case engine.PlaceHeld(changed=changed, holds=holds):
                return control.PlaceHeld(changed, holds)
            case _:
                text = f"unexpected answer {type(answer).__name__}"
                raise WorkerRefused(text, 1)

    async def _of_engine(
        self, request: control.FindQueue | control.WorkQueue | control.HoldPlace
    ) -> tuple[engine.QueueEntry, ...]:
        """Return what the host's engine has queued of that; all of it, on the first page."""
        engines = self._services.engines
        if engines is None or not isinstance(request, control.FindQueue):
            return ()
        meant = request.selection
        if request.after or meant.status not in {"", "deferred"} or meant.before:
            return ()
        found = await engines.entries(request.owner)
        return tuple(
            entry
            for entry in found
            if (not meant.ids or entry.envelope.id in meant.ids)
            and meant.sender in {None, entry.envelope.sender}
            and any(map(meant.means, entry.envelope.recipients))
        )

    async def _hurry_engine(
        self, request: control.FindQueue | control.WorkQueue | control.HoldPlace
    ) -> None:
        """Have the host's engine try again too, if all or a destination is meant."""
        if not isinstance(request, control.WorkQueue) or request.action != "retry":
            return
        engines = self._services.engines
        if engines is None or request.after or request.dry_run or request.selection.ids:
            return
        with contextlib.suppress(EngineFailed):  # it is told of in status
            await engines.flush(request.owner)


def _question(
    number: int, request: control.FindQueue | control.WorkQueue | control.HoldPlace
) -> engine.Request:
    match request:
        case control.FindQueue():
            return engine.FindQueue(
                number,
                request.owner,
                request.selection,
                request.after,
                request.limit,
                request.header,
            )
        case control.WorkQueue():
            return engine.WorkQueue(
                number,
                request.owner,
                request.action,
                request.selection,
                request.after,
                request.reason,
                request.dry_run,
            )
        case control.HoldPlace():
            return engine.HoldPlace(
                number,
                request.owner,
                request.place,
                request.reason,
                request.release,
                request.look_only,
            )
