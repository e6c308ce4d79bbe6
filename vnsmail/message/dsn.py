"""Delivery status notifications: the message that says what became of another.

RFC 3464 in the multipart/report of RFC 6522; RFC 6533 where an address needs
SMTPUTF8. Pure: the same facts, time and id give the same bytes.

Rules of this file: what a remote said is quoted, and never becomes structure: no line
break, no control character, no byte beyond 7 bits unless the whole message is
SMTPUTF8. The text is for people who do not know what a status code is.
"""

import binascii
import email.utils
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from vnsmail.model import Envelope, Outcome

MAX_HEADERS = 64 * 1024
"""Bytes of the original's header block that are returned, at most."""

MAX_FULL = 1024 * 1024
"""Bytes of a message that is returned whole; of a larger one, the header block is."""

MAX_SAID = 2000
"""Characters quoted of one answer; a remote may send 512 lines."""

_WIDTH = 76

_SEVEN_BIT = re.compile(rb"(?:[\t\x20-\x7e]{0,998}\r\n)*")
"""RFC 2045 section 2.7, with the line length of RFC 5322 section 2.1.1."""

_HEX_CHAR = re.compile(r"\+([0-9A-F]{2})")

_MESSAGE_ID = re.compile(
    rb"^message-id:[ \t]*(?:\r\n[ \t]+)?(<[!-;=?-~]{1,250}>)[ \t]*\r$",
    re.IGNORECASE | re.MULTILINE,
)


class Action(StrEnum):
    """What became of a recipient (RFC 3464 section 2.3.3)."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"
    """Given to a server that tells nobody of success."""


_SUBJECTS = {
    Action.FAILED: "Your message could not be delivered",
    Action.DELAYED: "Your message is late",
    Action.DELIVERED: "Your message was delivered",
    Action.RELAYED: "Your message was passed on",
}

_SENTENCES = {
    Action.FAILED: "could not be delivered to {whom}. It will not be tried again.",
    Action.DELAYED: "could not be delivered to {whom} yet. It is tried again until\n"
    "{until}; you need not send it again.",
    Action.DELIVERED: "was delivered to {whom}.",
    Action.RELAYED: "was passed on to the mail system of {whom},\n"
    "which does not say whether it has been delivered.",
}


@dataclass(frozen=True, slots=True)
class Notice:
    """A delivery status notification, and what its own envelope must say."""

    content: bytes
    smtputf8: bool
    """An address in it needs SMTPUTF8 (RFC 6531)."""
    eight_bit: bool = False
    """It has octets beyond 7 bits (RFC 6152)."""


def report(
    *,
    notice_id: str,
    host: str,
    now: float,
    original: Envelope,
    returned: bytes,
    told: Mapping[str, Outcome],
    action: Action,
    full: bool = False,
    until: float = 0.0,
) -> Notice:
    """Return the notice of what became of recipients, for the sender.

    Its reverse-path must be the null one (RFC 3464 section 2), so that it is never
    answered by another notice.

    Args:
        notice_id: queue id of the notice.
        host: name of the host that reports, in whose domain the Message-ID lies.
        now: seconds since the epoch.
        original: envelope of the message it is about; its sender is not empty.
        returned: header block of that message, as ``header_block`` returns it.
        told: what was said, by recipient.
        action: what became of all of them.
        full: ``returned`` is the whole message (RET=FULL, RFC 3461 section 4.3).
        until: when it is given up, seconds since the epoch; of delayed ones only.
    """
    addresses = (original.sender, *told, *(_orcpt(original, to)[1] for to in told))
    utf8 = not all(map(str.isascii, addresses))
    facts = _Facts(notice_id, host, now, original, told, action, until)
    parts = [
        _head(facts, returned, utf8=utf8),
        _part("text/plain; charset=utf-8", _text(facts, full=full), utf8=utf8),
        _part(f"message/{_kind(utf8=utf8)}", _status(facts), utf8=utf8),
        _whole(returned, utf8=utf8) if full else _returned(returned, utf8=utf8),
    ]
    opening = f"\r\n--{_boundary(notice_id)}\r\n".encode()
    content = opening.join(parts) + f"\r\n--{_boundary(notice_id)}--\r\n".encode()
    return Notice(content, utf8, eight_bit=not content.isascii())


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a notice says."""

    notice_id: str
    host: str
    now: float
    original: Envelope
    told: Mapping[str, Outcome]
    action: Action
    until: float


def header_block(chunks: Iterable[bytes]) -> bytes:
    """Return the header block at the front of a message, at most MAX_HEADERS bytes.

    Reads no more chunks than it needs. A block that is longer is cut after a line.
    """
    found = b""
    for chunk in chunks:
        start = max(len(found) - 3, 0)
        found += chunk
        if found.startswith(b"\r\n"):
            return b""
        end = found.find(b"\r\n\r\n", start)
        if 0 <= end < MAX_HEADERS:
            return found[: end + 2]
        if len(found) >= MAX_HEADERS:
            break
    found = found[:MAX_HEADERS]
    return found[: found.rfind(b"\r\n") + 2] if b"\r\n" in found else b""


def _head(facts: _Facts, returned: bytes, *, utf8: bool) -> bytes:
    lines = [
        f"Date: {_date(facts.now)}",
        f"From: Mail Delivery <postmaster@{facts.host}>",
        f"To: <{facts.original.sender}>",
        f"Subject: {_SUBJECTS[facts.action]}",
        f"Message-ID: <{facts.notice_id}@{facts.host}>",
    ]
    if message_id := _message_id(returned):
        # RFC 3834 section 3.1.6.
        lines += [f"In-Reply-To: {message_id}", f"References: {message_id}"]
    lines += [
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        f"Content-Type: multipart/report; report-type={_kind(utf8=utf8)};",
        f'\tboundary="{_boundary(facts.notice_id)}"',
    ]
    if utf8:
        lines.append("Content-Transfer-Encoding: 8bit")
    return _lines(lines, utf8=utf8)


def _boundary(notice_id: str) -> str:
    # The id is new and random: nobody could write it into a message before.
    return f"=_{notice_id}"


def _kind(*, utf8: bool) -> str:
    return "global-delivery-status" if utf8 else "delivery-status"


def _text(facts: _Facts, *, full: bool) -> Sequence[str]:
    count = len(facts.told)
    whom = "one recipient" if count == 1 else f"{count} recipients"
    sentence = _SENTENCES[facts.action].format(whom=whom, until=_date(facts.until))
    lines = [
        f"This is the mail system at {facts.host}.",
        "",
        f"Your message of {_date(facts.original.received_at)}",
        *sentence.split("\n"),
    ]
    for recipient, outcome in facts.told.items():
        lines += ["", f"<{recipient}>"]
        if outcome.remote:
            lines.append(f"  {outcome.remote} answered:")
        lines += textwrap.wrap(
            _said(outcome), _WIDTH, initial_indent="    ", subsequent_indent="    "
        )
    attached = "Your message" if full else "The header of your message"
    return [*lines, "", f"{attached} is attached."]


def _status(facts: _Facts) -> Sequence[str]:
    """Return the fields of RFC 3464 sections 2.2 and 2.3."""
    lines = []
    if facts.original.envid:
        lines.append(f"Original-Envelope-Id: {_from_xtext(facts.original.envid)}")
    lines += [
        f"Reporting-MTA: dns; {facts.host}",
        f"Arrival-Date: {_date(facts.original.received_at)}",
    ]
    for recipient, outcome in facts.told.items():
        kind, address = _orcpt(facts.original, recipient)
        lines.append("")
        if address:
            lines.append(f"Original-Recipient: {kind}; {address}")
        lines += [
            f"Final-Recipient: {_type_of(recipient)}; {recipient}",
            f"Action: {facts.action}",
            f"Status: {outcome.enhanced}",
        ]
        if outcome.remote:
            lines.append(f"Remote-MTA: dns; {outcome.remote.split()[0]}")
        # RFC 3464 section 2.3.6: the type says whose answer it is.
        whose = "smtp" if outcome.remote else "x-vnsmail"
        lines += textwrap.wrap(
            f"Diagnostic-Code: {whose}; {_said(outcome)}",
            _WIDTH,
            subsequent_indent="\t",
            break_on_hyphens=False,
        )
        lines.append(f"Last-Attempt-Date: {_date(facts.now)}")
        if facts.action is Action.DELAYED:
            lines.append(f"Will-Retry-Until: {_date(facts.until)}")
    return lines


def _type_of(address: str) -> str:
    # RFC 6533 section 3: the type utf-8 is for addresses that are not ASCII.
    return "rfc822" if address.isascii() else "utf-8"


def _orcpt(original: Envelope, recipient: str) -> tuple[str, str]:
    """Return type and address of the original recipient; empty if none was given."""
    kind, _, text = original.request(recipient).orcpt.partition(";")
    # What is not printed must not make a notice international that shows nothing of it.
    address = "".join(filter(str.isprintable, _from_xtext(text))).strip()
    return (kind, address) if kind.strip() else ("", "")


def _from_xtext(text: str) -> str:
    """Return what xtext stands for (RFC 3461 section 4); what is none stays as it is."""
    return _HEX_CHAR.sub(lambda found: chr(int(found[1], 16)), text)


def _said(outcome: Outcome) -> str:
    text = outcome.text.removeprefix(outcome.enhanced).strip()
    return f"{outcome.reply_code} {outcome.enhanced} {text}"[:MAX_SAID]


def _part(kind: str, lines: Sequence[str], *, utf8: bool) -> bytes:
    head = [f"Content-Type: {kind}"]
    if utf8:
        head.append("Content-Transfer-Encoding: 8bit")
    return _lines((*head, "", *lines), utf8=utf8)


def _returned(headers: bytes, *, utf8: bool) -> bytes:
    """Return the part with the original's header block (RFC 6522 section 4)."""
    kind = "message/global-headers" if utf8 else "text/rfc822-headers"
    if _SEVEN_BIT.fullmatch(headers):
        return f"Content-Type: {kind}\r\n\r\n".encode() + headers
    return (
        f"Content-Type: {kind}\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    ).encode() + b"\r\n".join(map(_quoted_printable, headers.split(b"\r\n")))


def _whole(message: bytes, *, utf8: bool) -> bytes:
    """Return the part with the original message, byte for byte."""
    kind = "message/global" if utf8 else "message/rfc822"
    encoding = "" if message.isascii() else "Content-Transfer-Encoding: 8bit\r\n"
    return f"Content-Type: {kind}\r\n{encoding}\r\n".encode() + message


def _quoted_printable(line: bytes) -> bytes:
    # A CR or LF that stands alone is no line end, so it is written as =0D or =0A.
    return binascii.b2a_qp(line, istext=False).replace(b"=\n", b"=\r\n")


def _message_id(headers: bytes) -> str:
    found = _MESSAGE_ID.search(headers)
    return found[1].decode("ascii") if found else ""


def _lines(lines: Iterable[str], *, utf8: bool) -> bytes:
    """Return lines as bytes, with nothing in them that could start another."""
    charset = "utf-8" if utf8 else "ascii"
    return b"".join(_clean(line).encode(charset, "replace") + b"\r\n" for line in lines)


def _clean(line: str) -> str:
    return "".join(c if c.isprintable() or c == "\t" else " " for c in line)


def _date(seconds: float) -> str:
    return email.utils.format_datetime(datetime.fromtimestamp(int(seconds), UTC))
