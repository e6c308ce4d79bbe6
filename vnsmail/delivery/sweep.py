"""What time alone does to messages: a warning when they are late, and the end.

A message whose destination is down is not attempted, so no attempt would notice its
age. Ids sort by time: what is old stands at the front of the queue, and is looked at
only when the oldest that is not dealt with comes of age.

Rules of this file: what is in flight is left to its attempt; so is what may be
attempted now.
"""

import math
from collections.abc import Callable
from typing import Protocol

from vnsmail.delivery import outcomes as say
from vnsmail.delivery.lanes import Record
from vnsmail.delivery.outcomes import Outcomes
from vnsmail.delivery.settling import Settler
from vnsmail.errors import NotFound
from vnsmail.model import Outcome
from vnsmail.queue.envelope import (
    ENTROPY_BYTES,
    QueuedMessage,
    destination,
    new_id,
)
from vnsmail.queue.queue import Queue
from vnsmail.settings import QueueSettings

PAGE = 100
"""Messages looked at in one go."""

AGAIN = 60.0
"""Seconds until old messages that are still there are looked at again."""


class Waits(Protocol):
    """What the agent knows of those that wait."""

    def is_flying(self, name: str, message_id: str) -> bool:
        """Say whether a message is in flight at a destination."""

    def why(self, name: str) -> Outcome | None:
        """Return why nothing is tried at a destination now; None if it may be."""


class Sweeper:
    """Looks at old messages of one owner."""

    def __init__(
        self,
        queue: Queue,
        settler: Settler,
        rules: QueueSettings,
        waits: Waits,
        clock: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._settler = settler
        self._rules = rules
        self._waits = waits
        self._clock = clock
        self._warned_to = ""
        self.next = -math.inf
        """When there is something to look at, seconds since the epoch."""

    def arrived(self, at: float) -> None:
        """A message came; it will come of age."""
        self.next = min(self.next, at + self._often)

    @property
    def _often(self) -> float:
        return min(AGAIN, self._rules.delay_warning or AGAIN, self._rules.lifetime)

    async def sweep(self) -> None:
        """Look at what has come of age, and set ``next``.

        Raises:
            QueueUnavailable: not now.
        """
        now = self._clock()
        self.next = math.inf
        await self._end(_id_at(now - self._rules.lifetime))
        if self._rules.delay_warning:
            await self._warn(_id_at(now - self._rules.delay_warning))
        if await self._queue.aged(_LAST, "", 1):
            self.next = min(self.next, now + self._often)

    async def _end(self, before: str) -> None:
        """Give up what has been here for its lifetime."""
        place = ""
        while page := await self._queue.aged(before, place, PAGE):
            for message_id, _ in page:
                place = message_id
                if message := await self._message(message_id):
                    await self._give_up(message)

    async def _give_up(self, message: QueuedMessage) -> None:
        outcomes: Outcomes = {}
        if message.held:
            return
        for each in message.recipients:
            name = destination(each.address)
            why = self._waits.why(name)
            if why is not None and not self._waits.is_flying(name, message.envelope.id):
                outcomes[each.address] = say.expired(
                    each.last or why, self._rules.lifetime
                )
        if outcomes:
            record = Record(message.envelope.id, None)
            await self._settler.settle(record, message, outcomes)

    async def _warn(self, before: str) -> None:
        """Tell senders of what is late."""
        while page := await self._queue.aged(before, self._warned_to, PAGE):
            for message_id, warned in page:
                if not warned and (message := await self._message(message_id)):
                    await self._settler.warn(message, self._reasons(message))
                self._warned_to = message_id

    def _reasons(self, message: QueuedMessage) -> Outcomes:
        found: Outcomes = {}
        for each in message.recipients:
            why = each.last or self._waits.why(destination(each.address))
            found[each.address] = why or _UNTRIED
        return found

    async def _message(self, message_id: str) -> QueuedMessage | None:
        try:
            message, _ = await self._queue.load(message_id)
        except NotFound:
            return None
        return message


_LAST = "~"  # sorts after every id

_UNTRIED = say.deferred(451, "4.4.5", "it has not come to its turn yet")


def _id_at(seconds: float) -> str:
    return new_id(max(seconds, 0.0), bytes(ENTROPY_BYTES))
