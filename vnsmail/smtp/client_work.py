"""A transaction under way at the client's side: what is said, and what was answered.

Rules of this file: what this server cannot take, by what it said of itself, is refused
here, and never sent. What was said of a recipient for good is never replaced.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from vnsmail.smtp.address import Mailbox, parse_forward_path, parse_reverse_path
from vnsmail.smtp.client_events import Transaction
from vnsmail.smtp.commands import Mail, Rcpt, encode
from vnsmail.smtp.errors import SmtpSyntaxError
from vnsmail.smtp.replies import Reply

_NO_8BITMIME = Reply(554, ("the remote server takes no 8-bit messages",), "5.6.3")
_REQUIRETLS = "REQUIRETLS"
NO_REQUIRETLS = "5.7.30"
"""Status where a server does not ask the next one for TLS (RFC 8689 section 7)."""

_NO_REQUIRETLS = Reply(
    550,
    ("the message is only for servers with REQUIRETLS, and the remote one has none",),
    NO_REQUIRETLS,
)
_NO_SMTPUTF8 = Reply(550, ("the remote server knows no SMTPUTF8",), "5.6.7")


@dataclass(slots=True)
class Work:
    """A transaction under way."""

    recipients: tuple[str, ...]
    body_size: int
    mail: bytes
    """The MAIL command."""
    rcpts: deque[tuple[str, bytes]]
    """Recipients not answered yet, with their RCPT commands."""
    final: dict[str, Reply]
    """What was said for good of recipients; a refusal, before the body is sent."""
    accepted: list[str] = field(default_factory=list)
    mail_refusal: Reply | None = None
    chunk_refusal: Reply | None = None
    """The first refusal of a piece of the body."""
    answered: bool = False
    """There was a reply to MAIL."""
    body_sent: bool = False

    def replies(self, last: Reply) -> dict[str, Reply]:
        """Return one reply for each recipient, ``last`` for those still open."""
        rest = self.mail_refusal or last
        return {to: self.final.get(to, rest) for to in self.recipients}


def prepare(transaction: Transaction, extensions: Mapping[str, str]) -> Work:
    """Return the work for a transaction with a server that has these extensions.

    Who cannot be sent to is in ``final`` already; there is nothing to say if all are.
    """
    recipients = tuple(dict.fromkeys(transaction.recipients))
    work = Work(recipients, transaction.body_size, b"", deque(), {})
    refusal = _cannot(transaction, extensions)
    if refusal is None:
        try:
            work.mail = _mail(transaction, extensions)
        except SmtpSyntaxError as error:
            refusal = error.reply
    for to in recipients:
        if refusal is not None:
            work.final[to] = refusal
            continue
        try:
            work.rcpts.append((to, _rcpt(to, transaction, extensions)))
        except SmtpSyntaxError as error:
            work.final[to] = error.reply
    return work


def _cannot(transaction: Transaction, extensions: Mapping[str, str]) -> Reply | None:
    """Return why this server cannot take the message; None if it may."""
    if transaction.eight_bit and "8BITMIME" not in extensions:
        return _NO_8BITMIME
    if transaction.smtputf8 and "SMTPUTF8" not in extensions:
        return _NO_SMTPUTF8
    if transaction.require_tls and transaction.sender and _REQUIRETLS not in extensions:
        return _NO_REQUIRETLS
    limit = _size_limit(extensions)
    if limit and transaction.body_size > limit:
        text = f"the remote server takes no more than {limit} octets"
        return Reply(552, (text,), "5.3.4")
    return None


def _size_limit(extensions: Mapping[str, str]) -> int:
    """Return octets the server takes; 0 if it does not say (RFC 1870 section 4)."""
    limit = extensions.get("SIZE", "")
    return int(limit) if limit.isascii() and limit.isdecimal() else 0


def _mail(transaction: Transaction, extensions: Mapping[str, str]) -> bytes:
    sender: Mailbox | None = parse_reverse_path(
        f"<{transaction.sender}>", smtputf8=transaction.smtputf8
    )
    dsn = "DSN" in extensions
    return encode(
        Mail(
            sender,
            transaction.body_size if "SIZE" in extensions else None,
            "8BITMIME" if transaction.eight_bit else None,
            transaction.smtputf8,
            transaction.ret if dsn else None,
            transaction.envid if dsn else "",
            require_tls=transaction.require_tls and _REQUIRETLS in extensions,
        )
    )


def _rcpt(
    address: str, transaction: Transaction, extensions: Mapping[str, str]
) -> bytes:
    to = parse_forward_path(f"<{address}>", smtputf8=transaction.smtputf8)
    if "DSN" in extensions:
        for asked in transaction.requests:
            if asked.recipient == address:
                return encode(Rcpt(to, asked.notify, asked.orcpt))
    return encode(Rcpt(to))
