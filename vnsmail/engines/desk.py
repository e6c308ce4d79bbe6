"""What an operator wants of one owner's queue, done a page at a time.

Rules of this file: nothing loads a queue whole; a page is one transaction. What is
under way to a remote is not called back: it can be in the remote's hands already, and
whoever gave it back to its sender meanwhile would lie.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

from vnsmail.delivery import outcomes as say
from vnsmail.delivery.agent import DeliveryAgent
from vnsmail.engines.listing import fitting
from vnsmail.engines.protocol import Action, FindQueue, QueueEntry, WorkQueue
from vnsmail.errors import NotFound, Suspended
from vnsmail.events import record as events
from vnsmail.events.record import Tell
from vnsmail.message.dsn import header_block
from vnsmail.queue.envelope import QueuedMessage, destination
from vnsmail.queue.queue import Queue
from vnsmail.queue.selection import Selection
from vnsmail.queue.tables import Tables

PAGE = 200
"""Messages changed in one transaction."""

LONGEST_HEADER = 32 * 1024
"""Bytes of a header that are shown."""


class Desk:
    """The queue of one owner, for operators.

    Args:
        owner: whose.
        queue: the owner's.
        agent: who delivers from it; None: nobody does now.
        tell: takes what is to stand in the event log.
    """

    def __init__(
        self, owner: str, queue: Queue, agent: DeliveryAgent | None, tell: Tell
    ) -> None:
        self._owner = owner
        self._queue = queue
        self._agent = agent
        self._tell = tell

    # Looking --------------------------------------------------------------------------

    async def find(self, request: FindQueue) -> tuple[tuple[QueueEntry, ...], str]:
        """Return a page of entries, and where the next one begins; empty: nowhere.

        Raises:
            QueueUnavailable: the queue cannot be read.
        """
        found, place = await self.page(
            request.selection, request.after, min(request.limit, PAGE)
        )
        holds = await self._queue.holds()
        entries = tuple(fitting(found, self._agent, holds))
        if len(entries) < len(found) and entries:
            # Too much for one message of ours: a shorter page, to know its place.
            _, place = await self.page(request.selection, request.after, len(entries))
        return entries, place

    async def header(self, message_id: str) -> str:
        """Return the header block of a message, as far as it is shown.

        Raises:
            NotFound, QueueUnavailable: it is not there, or cannot be read.
        """
        _, body = await self._queue.load(message_id)
        block = await asyncio.to_thread(lambda: header_block(body.chunks()))
        return block[:LONGEST_HEADER].decode(errors="replace")

    async def page(
        self, wanted: Selection, after: str, limit: int
    ) -> tuple[list[QueuedMessage], str]:
        """Return messages that are meant, and where the search goes on."""
        if wanted.status == "active":
            flying = self._agent.in_memory() if self._agent else []
            ids = set(wanted.ids) & set(flying) if wanted.ids else flying
            if not ids:
                return [], ""
            wanted = Selection(
                tuple(ids),
                wanted.domain,
                wanted.sender,
                wanted.recipient,
                wanted.before,
                "active",
            )
        return await self._queue.find(wanted, after, limit, now=time.time())

    # Changing -------------------------------------------------------------------------

    async def hold_place(self, place: str, reason: str) -> bool:
        """Hold a destination, or all with ``*``; return whether that is new."""
        holds = await self._queue.holds()
        now = time.time()
        await self._queue.alter(lambda tables: tables.hold_place(place, reason, now))
        self._hold(holds | {place: reason})
        held = events.Held(
            time=events.at(now),
            host=self._owner,
            destination="" if place == "*" else place,
            reason=reason,
        )
        self._tell(held)
        return place not in holds

    async def release_place(self, place: str) -> bool:
        """Hold it no more; return whether it was held."""
        holds = await self._queue.holds()
        if place not in holds:
            return False
        await self._queue.alter(lambda tables: tables.release_place(place))
        del holds[place]
        self._hold(holds)
        name = "" if place == "*" else place
        now = events.at(time.time())
        self._tell(events.Released(time=now, host=self._owner, destination=name))
        return True

    async def holds(self) -> dict[str, str]:
        """Return what is held besides messages, with the reason."""
        return await self._queue.holds()

    def _hold(self, holds: dict[str, str]) -> None:
        if self._agent is not None:
            self._agent.hold(holds)

    async def work(self, request: WorkQueue) -> tuple[int, int, int, str]:
        """Do something to a page of messages.

        Returns messages, recipients, messages left alone as they are under way, and
        where the next page begins; empty: nowhere.

        Raises:
            Suspended: nobody can be told now that mail comes back.
            QueueUnavailable: nothing of the page is changed.
        """
        wanted = request.selection
        found, place = await self.page(wanted, request.after, PAGE)
        meant = [
            (each, [r.address for r in each.recipients if wanted.means(r.address)])
            for each in found
        ]
        meant = [(each, addresses) for each, addresses in meant if addresses]
        moving = await self._queue.moves()
        if moving and request.action != "delete":
            # The other host may have it already.
            elsewhere = len(meant)
            meant = [pair for pair in meant if pair[0].envelope.id not in moving]
            elsewhere -= len(meant)
        else:
            elsewhere = 0
        if request.action == "hold":
            meant = [(each, to) for each, to in meant if not each.held]
        flying: set[str] = set()
        if not request.dry_run:
            flying = await self._act(request.action, meant, request.reason)
        done = [pair for pair in meant if pair[0].envelope.id not in flying]
        recipients = sum(len(addresses) for _, addresses in done)
        alone = len(meant) - len(done) + elsewhere
        return len(done), recipients, alone, place

    async def _act(self, action: Action, meant: "Meant", reason: str) -> set[str]:
        """Return the messages that were left alone."""
        now = time.time()
        ids = {message.envelope.id for message, _ in meant}
        flying: set[str] = set()
        if self._agent is not None and action in {"hold", "delete", "bounce"}:
            flying = self._agent.withdraw(ids)
        if action == "hold":
            await self._queue.alter(_each(ids, lambda t, i: t.hold(i, reason)))
            self._tell_each(ids, lambda i: self._held(i, now, reason))
            return set()
        if action == "release":
            await self._queue.alter(_each(ids, lambda t, i: t.release(i, now)))
            self._tell_each(ids, lambda i: self._released(i, now))
            self._look(())
            return set()
        if action == "retry":
            await self._queue.alter(_hastened(meant, now))
            self._look({destination(to) for _, addresses in meant for to in addresses})
            return set()
        left = [pair for pair in meant if pair[0].envelope.id not in flying]
        if action == "delete":
            await asyncio.gather(*(self._delete(*pair) for pair in left))
        else:
            await self._give_back(left, reason)
        return flying

    async def _delete(self, message: QueuedMessage, addresses: Sequence[str]) -> None:
        envelope = message.envelope
        gone = say.for_all(addresses, say.delivered("deleted"))
        try:
            await self._queue.settle(envelope.id, gone, {})
        except NotFound:
            return
        deleted = events.Deleted(
            time=events.at(time.time()),
            host=self._owner,
            id=envelope.id,
            sender=envelope.sender,
            recipients=events.named(addresses),
            recipient_count=len(addresses),
        )
        self._tell(deleted)

    async def _give_back(self, left: "Meant", reason: str) -> None:
        if self._agent is None:
            raise Suspended(self._owner)
        text = reason or "the postmaster has returned the message"
        for message, addresses in left:
            outcomes = say.for_all(addresses, say.failed(554, "5.0.0", text))
            await self._agent.give_back(message, outcomes)

    def _look(self, names: Iterable[str]) -> None:
        if self._agent is not None:
            self._agent.look_again(names)

    def _tell_each(
        self, ids: Iterable[str], event: Callable[[str], events.Event]
    ) -> None:
        for each in sorted(ids):
            self._tell(event(each))

    def _held(self, message_id: str, now: float, reason: str) -> events.Event:
        at = events.at(now)
        return events.Held(time=at, host=self._owner, id=message_id, reason=reason)

    def _released(self, message_id: str, now: float) -> events.Event:
        return events.Released(time=events.at(now), host=self._owner, id=message_id)


Meant = list[tuple[QueuedMessage, list[str]]]


def _each(
    ids: Iterable[str], act: Callable[[Tables, str], None]
) -> Callable[[Tables], None]:
    def all_of_them(tables: Tables) -> None:
        for each in ids:
            act(tables, each)

    return all_of_them


def _hastened(meant: Meant, now: float) -> Callable[[Tables], None]:
    def hasten(tables: Tables) -> None:
        for message, addresses in meant:
            for address in addresses:
                tables.hasten(message.envelope.id, address, now)

    return hasten
