"""What local commands hand over, as a worker turns it into messages of a queue.

Rules of this file: blocking, so it runs in the executor; the descriptor is a copy that
is closed here, for whoever waits may be cancelled while the thread goes on.
"""

import os
from collections.abc import Callable
from dataclasses import replace

from vnsmail.engines.protocol import LocalMail
from vnsmail.errors import BadInput
from vnsmail.inbound.accounts import Accounts
from vnsmail.inbound.inject import InjectRequest, Prepared, prepare
from vnsmail.inbound.session import ReceiverFacts
from vnsmail.message.refusal import refusal
from vnsmail.message.trace import received_locally
from vnsmail.model import DsnRequest, Envelope
from vnsmail.queue.body import Body
from vnsmail.smtp import parameters
from vnsmail.smtp.address import Mailbox
from vnsmail.smtp.errors import SmtpSyntaxError

FRONT = 4096
"""Bytes of a refused message that its sender is shown."""


def taken_in(
    fd: int,
    mail: LocalMail,
    accounts: Accounts,
    facts: ReceiverFacts,
    queue_id: str,
    now: float,
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
        may_send_as=_owner_of(mail, accounts),
        name=mail.name,
        take_recipients=mail.take_recipients,
        logins=mail.logins,
        offset=mail.offset,
    )
    try:
        wishes = _wishes(mail)
        prepared = prepare(fd, request, facts, queue_id, now)
    finally:
        os.close(fd)
    return Prepared(wishes(prepared.envelope), prepared.body)


def _owner_of(mail: LocalMail, accounts: Accounts) -> Callable[[Mailbox], bool] | None:
    account = accounts.of_user(mail.user) if mail.user else None
    if account is None:  # nobody's, or of whoever may be anybody
        return None
    return lambda mailbox: accounts.may_send_as(account, mailbox)


def _wishes(mail: LocalMail) -> Callable[[Envelope], Envelope]:
    """Return what gives an envelope what the sender wants to be told (RFC 3461).

    Raises:
        BadInput: what it wants is none of it.
    """
    try:
        notify = parameters.notify(mail.notify) if mail.notify else ()
        ret = parameters.ret(mail.returned) if mail.returned else None
        envid = mail.envelope_id and parameters.envid(
            parameters.to_xtext(mail.envelope_id)
        )
    except SmtpSyntaxError as error:
        raise BadInput("option", "-N, -R or -V", error.reply.text) from None

    def wished(envelope: Envelope) -> Envelope:
        requests = tuple(DsnRequest(each, notify) for each in envelope.recipients)
        requests = requests if notify else ()
        return replace(envelope, ret=ret, envid=envid, requests=requests)

    return wished


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
