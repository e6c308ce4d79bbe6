"""A message that a local command hands over: checked, completed, ready for the queue.

What a mail program would have put there is added if it is missing (Date, From,
Message-ID), Bcc goes, line ends become those of SMTP. Everything else stays as it is,
byte for byte; but a From without a domain, as cron writes it, is nobody's address and
gives way to the sender's own.

Rules of this file: blocking, so it runs in the executor; at most one piece and the
header block are in memory; what is wrong is BadInput, and leaves nothing behind; a
user sends as itself, in the envelope and in From (RFC 6409 section 6.1).
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from vnsmail.errors import BadInput, NotAllowed
from vnsmail.inbound.accept import AcceptPolicy, Taken
from vnsmail.inbound.session import ReceiverFacts
from vnsmail.message.addresses import Address, NoAddressList
from vnsmail.message.complete import (
    MAX_HEADER,
    Missing,
    authors,
    completed,
    mailbox,
    separated,
)
from vnsmail.message.headers import MAX_HOPS, Header, parse_header, tls_wish
from vnsmail.message.trace import received_locally
from vnsmail.model import Envelope
from vnsmail.queue.body import Body, BodyWriter
from vnsmail.smtp.address import Mailbox, parse_mailbox
from vnsmail.smtp.errors import SmtpSyntaxError

PIECE = 256 * 1024
"""Bytes read at a time."""

NAMED_RECIPIENTS = ("to", "cc", "bcc")
"""Fields whose addresses ``sendmail -t`` sends to; with Resent- where there are such."""


@dataclass(frozen=True, slots=True)
class InjectRequest:
    """What the command says of a message."""

    sender: str
    """Reverse-path; empty for the null one."""
    recipients: tuple[str, ...]
    uid: int
    """Who ran the command, as the kernel says."""
    user: str = ""
    """Local part of the user who sends; empty if it may be any of the owner's."""
    may_send_as: Callable[[Mailbox], bool] | None = None
    """Says whether an address is that user's to send as; None: only its own is."""
    name: str = ""
    """Stands beside the address in a From that is added."""
    take_recipients: bool = False
    """Those that the message names are recipients too."""
    logins: tuple[tuple[str, str], ...] = ()
    """Names of local accounts with the users they are: who is meant without a domain."""
    offset: int = 0
    """Bytes of the file that stand in front of the message."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A message that can be queued."""

    envelope: Envelope
    body: Body


def prepare(
    fd: int, request: InjectRequest, facts: ReceiverFacts, queue_id: str, now: float
) -> Prepared:
    """Return a message that was handed over as the queue wants it.

    Args:
        fd: an open file with the message; it is read from its start, and stays open.
        request: sender, recipients, and who asks.
        facts: of the owner who sends.
        queue_id: a new id.
        now: seconds since the epoch.

    Raises:
        NotAllowed: the sender, or the From of the message, is not the user's.
        BadInput: an address is none, or the message cannot be sent as it is.
        QueueUnavailable: there is no room for it.
    """
    sender = _sender(request, facts)
    pieces = _canonical(_read(fd, facts.max_message_size, request.offset))
    header = _header(pieces)
    named = _named(header) if request.take_recipients else ()
    recipients = _recipients((*request.recipients, *named), request, facts)
    header = _with_author(header, request, facts)
    head = received_locally(facts.name, queue_id, now, request.uid)
    author = mailbox(_author(sender, request, facts), request.name)
    head += completed(header, Missing.of(now, queue_id, facts.name, author))
    eight_bit = not head.isascii()
    with BodyWriter(facts.folder) as writer:
        writer.write(head)
        for piece in chain((separated(header.rest),), pieces):
            eight_bit = eight_bit or not piece.isascii()
            writer.write(piece)
            if writer.size > facts.max_message_size:
                raise _too_big(facts.max_message_size)
        body = writer.finish()
    addresses = (sender, *recipients)
    envelope = Envelope(
        id=queue_id,
        owner=facts.owner,
        sender=sender,
        recipients=recipients,
        received_at=now,
        eight_bit=eight_bit,
        smtputf8=not all(map(str.isascii, addresses)) or _is_beyond_ascii(head),
        tls=tls_wish(head),
    )
    return Prepared(envelope, body)


# Addresses -------------------------------------------------------------------------


def _sender(request: InjectRequest, facts: ReceiverFacts) -> str:
    """Return the sender, who must be somebody here: nobody sends as another host."""
    if not request.sender:
        return ""
    mailbox = _mailbox(request.sender, "sender", request, facts)
    decision = facts.policy.decide(mailbox)
    if request.user:
        if not belongs(mailbox, request, facts.policy):
            raise NotAllowed("sender", request.sender, _own(request, facts))
    elif not isinstance(decision, Taken):
        raise NotAllowed("sender", request.sender, f"{facts.name} has no such user")
    return decision.address if isinstance(decision, Taken) else str(mailbox)


def _recipients(
    texts: tuple[str, ...], request: InjectRequest, facts: ReceiverFacts
) -> tuple[str, ...]:
    if not texts:
        raise BadInput("recipient", "", "give at least one")
    mailboxes = (_mailbox(text, "recipient", request, facts) for text in texts)
    found = tuple(
        dict.fromkeys(chain.from_iterable(map(facts.policy.meant, mailboxes)))
    )
    if len(found) > facts.max_recipients:
        remedy = f"a message has {facts.max_recipients} at most; send it several times"
        raise BadInput("recipients", str(len(found)), remedy)
    return found


def _named(header: Header) -> tuple[str, ...]:
    """Return the recipients that a message names (sendmail -t)."""
    resent = any(header.has(f"resent-{name}") for name in NAMED_RECIPIENTS)
    prefix = "resent-" if resent else ""
    try:
        return tuple(
            address.text
            for name in NAMED_RECIPIENTS
            for address in authors(header, prefix + name)
            if address.text
        )
    except NoAddressList as error:
        raise _bad(str(error)) from None


def _mailbox(
    text: str, what: str, request: InjectRequest, facts: ReceiverFacts
) -> Mailbox:
    """Return an address; one without a domain is somebody here."""
    if "@" not in text and text:
        text = f"{dict(request.logins).get(text, text)}@{facts.policy.domains[0]}"
    try:
        return parse_mailbox(text, smtputf8=True)
    except SmtpSyntaxError as error:
        raise BadInput(what, text, error.reply.text) from None


def _author(sender: str, request: InjectRequest, facts: ReceiverFacts) -> str:
    """Return the address of a From that is added."""
    return sender or f"{request.user or 'postmaster'}@{facts.policy.domains[0]}"


def _own(request: InjectRequest, facts: ReceiverFacts) -> str:
    return f"this account sends as {request.user}@{facts.policy.domains[0]} only"


# Whose message it is -----------------------------------------------------------------


def _with_author(
    header: Header, request: InjectRequest, facts: ReceiverFacts
) -> Header:
    """Return a header whose From and Sender are the user's own.

    Raises:
        NotAllowed: they name somebody else.
        BadInput: nobody can tell whom they name.
    """
    try:
        found = authors(header)
        if request.user:
            _check_authors((*found, *authors(header, "sender")), header, request, facts)
    except NoAddressList as error:
        if not request.user:
            return header  # whoever may send as anybody knows
        problem = f"{error}; others may read it as somebody else's"
        raise _bad(problem) from None
    if not found or any("@" in address.text for address in found):
        return header
    address = _author(request.sender and _sender(request, facts), request, facts)
    author = mailbox(address, found[0].name or request.name)
    fields = tuple(
        replace(f, raw=f"From: {author}\r\n".encode()) if f.name == "from" else f
        for f in header.fields
    )
    return replace(header, fields=fields)


def _check_authors(
    found: Iterable[Address],
    header: Header,
    request: InjectRequest,
    facts: ReceiverFacts,
) -> None:
    if sum(field.name == "from" for field in header.fields) > 1:
        raise _bad("it has several From fields; RFC 5322 section 3.6 allows one")
    for address in found:
        if "@" not in address.text:
            continue
        mailbox = _mailbox(address.text, "From", request, facts)
        if not belongs(mailbox, request, facts.policy):
            raise NotAllowed("From", address.text, _own(request, facts))


def belongs(mailbox: Mailbox, request: InjectRequest, policy: AcceptPolicy) -> bool:
    """Say whether an address is the user's to send as."""
    if request.may_send_as is not None:
        return request.may_send_as(mailbox)
    decision = policy.decide(mailbox)
    return isinstance(decision, Taken) and decision.user == request.user


# The message -------------------------------------------------------------------------


def _read(fd: int, limit: int, offset: int) -> Iterator[bytes]:
    """Return the file in pieces, wherever it was left by whoever wrote it."""
    try:
        facts = os.fstat(fd)
        # Anything else may keep a thread waiting for ever.
        if not stat.S_ISREG(facts.st_mode):
            raise _bad("it must come in a file")
        if facts.st_size - offset > limit:
            raise _too_big(limit)
        at = offset
        while piece := os.pread(fd, PIECE, at):
            at += len(piece)
            yield piece
    except OSError as error:
        problem = f"it cannot be read: {error.strerror}"
        raise _bad(problem) from None


def _canonical(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Return the same text with lines that end as they do in SMTP."""
    held = b""
    for piece in pieces:
        data, held = held + piece, b""
        if data.endswith(b"\r"):
            data, held = data[:-1], b"\r"
        if data:
            yield _crlf(data)
    if held:
        yield b"\r\n"


def _crlf(data: bytes) -> bytes:
    if b"\0" in data:
        # RFC 5322 section 4: NUL is not even obsolete.
        raise _bad("it has a NUL byte, so it is no text; encode it (MIME)")
    # A CR of its own begins a line anew on a screen (progress that a command shows); no
    # message can have one.
    data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return data.replace(b"\n", b"\r\n")


def _header(pieces: Iterable[bytes]) -> Header:
    """Take the header block, and what was read with it, from the front of a message."""
    front = b""
    for piece in pieces:
        front += piece
        header = parse_header(front)
        if header.whole:
            break
        if len(front) > MAX_HEADER:
            problem = f"its header block is longer than {MAX_HEADER} bytes"
            raise _bad(problem)
    else:
        # The last line of a header block without a body may lack its end.
        header = parse_header(front + b"\r\n")
        if header.rest:
            header = parse_header(front)
    if sum(field.name == "received" for field in header.fields) > MAX_HOPS:
        raise _bad("it went through too many hosts, and seems to go in a circle")
    return header


def _is_beyond_ascii(head: bytes) -> bool:
    """Say whether a header block is one of RFC 6532, which only SMTPUTF8 can carry.

    Bytes beyond ASCII that are not UTF-8 are a mistake of long ago, and no such block.
    """
    try:
        return not head.decode().isascii()
    except UnicodeDecodeError:
        return False


def _bad(problem: str) -> BadInput:
    return BadInput("message", "", problem)


def _too_big(limit: int) -> BadInput:
    return _bad(
        f"it is larger than {limit} bytes, the limit in [smtp] max_message_size"
    )
