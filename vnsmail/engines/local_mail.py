"""What local commands hand over, as a worker turns it into messages of a queue.

Rules of this file: blocking, so it runs in the executor; the descriptor is a copy that
is closed here, for whoever waits may be cancelled while the thread goes on.
"""

import os

from vnsmail.engines.protocol import LocalMail
from vnsmail.inbound.inject import InjectRequest, Prepared, prepare
from vnsmail.inbound.session import ReceiverFacts
from vnsmail.message.refusal import refusal
from vnsmail.message.trace import received_locally
from vnsmail.model import Envelope
from vnsmail.queue.body import Body

FRONT = 4096
"""Bytes of a refused message that its sender is shown."""


def taken_in(
    fd: int, mail: LocalMail, facts: ReceiverFacts, queue_id: str, now: float
) -> Prepared:
    """Return a message that was handed over, ready for the queue.

    Raises:
        BadInput: it cannot be sent; see inbound/inject.py.
        QueueUnavailable: there is no room for it.
    """
    request = InjectRequest(
        sender=mail.sender,
        recipients=mail.recipients,
        uid=mail.uid,
        user=mail.user,
        name=mail.name,
        take_recipients=mail.take_recipients,
        logins=mail.logins,
        offset=mail.offset,
    )
    try:
        return prepare(fd, request, facts, queue_id, now)
    finally:
        os.close(fd)


def given_back(
    fd: int,
    mail: LocalMail,
    reason: str,
    facts: ReceiverFacts,
    queue_id: str,
    now: float,
) -> Prepared:
    """Return the message that tells a sender of a refusal."""
    try:
        front = os.pread(fd, FRONT, mail.offset)
    finally:
        os.close(fd)
    to = f"{mail.user or 'root'}@{facts.policy.domains[0]}"
    content = refusal(
        notice_id=queue_id, host=facts.name, to=to, at=now, reason=reason, front=front
    )
    trace = received_locally(facts.name, queue_id, now, mail.uid)
    envelope = Envelope(
        id=queue_id,
        owner=facts.owner,
        sender="",
        recipients=(to,),
        received_at=now,
        eight_bit=not content.isascii(),
    )
    return Prepared(envelope, Body(trace + content))
