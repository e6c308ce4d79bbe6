"""Queued messages as they are listed. Values only."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import msgspec

from vnsmail.delivery.agent import DeliveryAgent
from vnsmail.engines.protocol import QueueEntry
from vnsmail.packets import MAX_MESSAGE
from vnsmail.queue.envelope import QueuedMessage, QueuedRecipient, destination
from vnsmail.queue.selection import ALL

LISTED_BYTES = MAX_MESSAGE * 3 // 4
"""Bytes of a list of queued messages; it goes to the supervisor in one message."""

LISTED_RECIPIENTS = 100
"""Recipients listed of one message. A thousand would not fit one message of ours."""


def fitting(
    messages: Sequence[QueuedMessage],
    agent: DeliveryAgent | None,
    holds: Mapping[str, str],
) -> Iterator[QueueEntry]:
    """Return entries, the first ones, that fit in one message to the supervisor."""
    room = LISTED_BYTES
    flying = frozenset(agent.in_memory()) if agent else frozenset[str]()
    for message in messages:
        shown = message.recipients[:LISTED_RECIPIENTS]
        entry = QueueEntry(
            replace(message.envelope, recipients=tuple(r.address for r in shown)),
            message.size,
            tuple(_shown(r, agent) for r in shown),
            message.held or _held_place(message, holds),
            active=agent is not None and message.envelope.id in flying,
        )
        room -= len(msgspec.msgpack.encode(entry))
        if room < 0:
            return
        yield entry


def _held_place(message: QueuedMessage, holds: Mapping[str, str]) -> str:
    """Return why all destinations of a message are held, or those that are."""
    if not holds:
        return ""
    names = dict.fromkeys(destination(each.address) for each in message.recipients)
    found = [holds.get(ALL) or holds.get(name, "") for name in names]
    return "; ".join(dict.fromkeys(filter(None, found)))


def _shown(
    recipient: QueuedRecipient, agent: DeliveryAgent | None
) -> tuple[str, int, float, str]:
    """Return a recipient as it is listed: what keeps all like it back goes first."""
    waits = agent.waits(destination(recipient.address)) if agent else None
    last = recipient.last.text if recipient.last else ""
    at = recipient.next_attempt_at
    if waits is not None:
        at, last = (
            max(at, waits.until),
            waits.reason if waits.held or not last else last,
        )
    return recipient.address, recipient.attempts, at, last
