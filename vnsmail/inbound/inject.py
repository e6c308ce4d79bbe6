"""A message that a local command hands over: checked, completed, ready for the queue.

What a mail program would have put there is added if it is missing (Date, From,
Message-ID), Bcc goes, line ends become those of SMTP. Everything else stays as it is,
byte for byte.

Rules of this file: blocking, so it runs in the executor; at most one piece and the
header block are in memory; what is wrong is BadInput, and leaves nothing behind.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from vnsmail.errors import BadInput
from vnsmail.inbound.accept import Taken
from vnsmail.inbound.session import ReceiverFacts
from vnsmail.message.headers import MAX_HOPS, Header, parse_header
from vnsmail.message.trace import date, received_locally
from vnsmail.model import Envelope
from vnsmail.queue.body import Body, BodyWriter
from vnsmail.smtp.address import Mailbox, parse_mailbox
from vnsmail.smtp.errors import SmtpSyntaxError

PIECE = 256 * 1024
"""Bytes read at a time."""

MAX_HEADER = 1024 * 1024
"""Bytes of a header block, ten times what Postfix takes (header_size_limit)."""

LEFT_OUT = {"bcc", "resent-bcc"}
"""Fields that name recipients the others must not see (RFC 5322 section 3.6.3)."""


@dataclass(frozen=True, slots=True)
class InjectRequest:
    """What the command says of a message."""

    sender: str
    recipients: tuple[str, ...]
    uid: int
    """Who ran the command, as the kernel says."""


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
        BadInput: the sender is not the owner's, an address is none, or the message
            cannot be sent as it is.
        QueueUnavailable: there is no room for it.
    """
    sender = _sender(request.sender, facts)
    recipients = _recipients(request.recipients, facts)
    pieces = _canonical(_read(fd, facts.max_message_size))
    header = _header(pieces)
    head = received_locally(facts.name, queue_id, now, request.uid)
    head += _missing(header, sender, queue_id, facts.name, now)
    head += b"".join(f.raw for f in header.fields if f.name not in LEFT_OUT)
    eight_bit = not head.isascii()
    with BodyWriter(facts.folder) as writer:
        writer.write(head)
        for piece in chain((_rest(header),), pieces):
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
    )
    return Prepared(envelope, body)


# Addresses -------------------------------------------------------------------------


def _sender(text: str, facts: ReceiverFacts) -> str:
    """Return the sender, who must be somebody here: nobody sends as another host."""
    decision = facts.policy.decide(_mailbox(text, "sender"))
    if isinstance(decision, Taken):
        return decision.address
    raise BadInput("sender", text, f"{facts.name} has no such user")


def _recipients(texts: tuple[str, ...], facts: ReceiverFacts) -> tuple[str, ...]:
    if not texts:
        raise BadInput("recipient", "", "give at least one")
    if len(texts) > facts.max_recipients:
        remedy = f"a message has {facts.max_recipients} at most; send it several times"
        raise BadInput("recipients", str(len(texts)), remedy)
    mailboxes = (_mailbox(text, "recipient") for text in texts)
    return tuple(dict.fromkeys(map(facts.policy.spelled, mailboxes)))


def _mailbox(text: str, what: str) -> Mailbox:
    try:
        return parse_mailbox(text, smtputf8=True)
    except SmtpSyntaxError as error:
        raise BadInput(what, text, error.reply.text) from None


# The message -------------------------------------------------------------------------


def _read(fd: int, limit: int) -> Iterator[bytes]:
    """Return the file in pieces, wherever it was left by whoever wrote it."""
    try:
        facts = os.fstat(fd)
        # Anything else may keep a thread waiting for ever.
        if not stat.S_ISREG(facts.st_mode):
            raise _bad("it must come in a file")
        if facts.st_size > limit:
            raise _too_big(limit)
        at = 0
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
        raise _bare_cr()


def _crlf(data: bytes) -> bytes:
    if b"\0" in data:
        # RFC 5322 section 4: NUL is not even obsolete.
        raise _bad("it has a NUL byte, so it is no text; encode it (MIME)")
    data = data.replace(b"\r\n", b"\n")
    if b"\r" in data:
        raise _bare_cr()
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


def _missing(
    header: Header, sender: str, queue_id: str, name: str, now: float
) -> bytes:
    """Return the fields that every message must have (RFC 5322 section 3.6), if missing."""
    fields = {
        "Date": date(now),
        "From": sender,
        "Message-ID": f"<{queue_id}@{name}>",
    }
    lines = [
        f"{field}: {value}\r\n"
        for field, value in fields.items()
        if not header.has(field.lower())
    ]
    return "".join(lines).encode()


def _rest(header: Header) -> bytes:
    """Return what follows the fields, with the empty line between them and the text."""
    between = b"" if header.rest.startswith(b"\r\n") else b"\r\n"
    return between + header.rest


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


def _bare_cr() -> BadInput:
    return _bad("it has a CR without LF; end its lines with LF or CRLF")


def _too_big(limit: int) -> BadInput:
    return _bad(
        f"it is larger than {limit} bytes, the limit in [smtp] max_message_size"
    )
