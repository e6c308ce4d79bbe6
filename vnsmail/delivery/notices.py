"""Which notices a sender gets of what became of a message (RFC 3461 section 5). Pure.

Rules of this file: nothing is sent to the null reverse-path, and everything that is
sent has it: a notice is never answered by a notice (RFC 5321 section 4.5.5).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from vnsmail.delivery.outcomes import Outcomes
from vnsmail.message.dsn import Action, header_block, report
from vnsmail.model import DsnRequest, Envelope, Notify, Outcome, TlsWish, Verdict
from vnsmail.queue.body import Body


@dataclass(frozen=True, slots=True)
class Notified:
    """Recipients of whom the sender is told, by what became of them."""

    by_action: dict[Action, Outcomes]

    @classmethod
    def of(cls, original: Envelope, outcomes: Outcomes) -> Self:
        """Choose from outcomes those that the sender wants to know of."""
        chosen: dict[Action, Outcomes] = {}
        if original.sender:
            for recipient, outcome in outcomes.items():
                asked = original.request(recipient).notify
                action = _action(outcome, asked)
                if action is not None:
                    chosen.setdefault(action, {})[recipient] = outcome
        return cls(chosen)

    def __bool__(self) -> bool:
        return bool(self.by_action)


def notices(
    original: Envelope,
    notified: Notified,
    *,
    host: str,
    now: float,
    until: float,
    new_id: Callable[[], str],
    returned: bytes,
    full: bool,
) -> Sequence[tuple[Envelope, Body]]:
    """Return the notices, one for each kind of outcome, with their own envelopes.

    Args:
        original: envelope of the message they are about.
        notified: whom to tell of.
        host: name of the host that reports.
        now: seconds since the epoch.
        until: when the message is given up, seconds since the epoch.
        new_id: makes a queue id.
        returned: the message's header block, or all of it.
        full: it is all of it; only notices of failure return that (RFC 3461 4.3).
    """
    made = []
    for action, outcomes in notified.by_action.items():
        notice_id = new_id()
        # What is for protected ways only does not go back in full on another.
        required = original.tls is TlsWish.REQUIRED
        whole = full and action is Action.FAILED and not required
        notice = report(
            notice_id=notice_id,
            host=host,
            now=now,
            original=original,
            returned=returned if whole or not full else header_block([returned]),
            told=outcomes,
            action=action,
            full=whole,
            until=until,
        )
        envelope = Envelope(
            id=notice_id,
            owner=original.owner,
            sender="",
            recipients=(original.sender,),
            received_at=now,
            eight_bit=notice.eight_bit,
            smtputf8=notice.smtputf8,
            # RFC 3461 section 6.1.
            requests=(DsnRequest(original.sender, (Notify.NEVER,)),),
            tls=TlsWish.REQUIRED if required else TlsWish.USUAL,
        )
        made.append((envelope, Body(notice.content)))
    return made


def _action(outcome: Outcome, asked: tuple[Notify, ...]) -> Action | None:
    """Return what a notice calls an outcome; None if nobody wants to know.

    Without NOTIFY, failures and delays are told (RFC 3461 section 5.2.6 leaves delays
    to us). Success is told when asked for, unless the next server took that over.
    """
    if outcome.verdict is Verdict.FAILED:
        return Action.FAILED if not asked or Notify.FAILURE in asked else None
    if outcome.verdict is Verdict.DEFERRED:
        return Action.DELAYED if not asked or Notify.DELAY in asked else None
    if Notify.SUCCESS not in asked:
        return None
    if not outcome.remote:
        return Action.DELIVERED
    taken_over = outcome.contact is not None and outcome.contact.dsn
    return None if taken_over else Action.RELAYED
