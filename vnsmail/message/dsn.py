"""Delivery status notifications: the message that says what could not be delivered.

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

from vnsmail.model import Envelope, Outcome

MAX_HEADERS = 64 * 1024
"""Bytes of the original's header block that are returned, at most."""

MAX_SAID = 2000
"""Characters quoted of one answer; a remote may send 512 lines."""

_WIDTH = 76

_SEVEN_BIT = re.compile(rb"(?:[\t\x20-\x7e]{0,998}\r\n)*")
"""RFC 2045 section 2.7, with the line length of RFC 5322 section 2.1.1."""

_MESSAGE_ID = re.compile(
    rb"^message-id:[ \t]*(?:\r\n[ \t]+)?(<[!-;=?-~]{1,250}>)[ \t]*\r$",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Notice:
    """A delivery status notification, and what its own envelope must say."""

    content: bytes
    smtputf8: bool
    """An address in it needs SMTPUTF8 (RFC 6531)."""


def failure_notice(
    *,
    notice_id: str,
    host: str,
    now: float,
    original: Envelope,
    headers: bytes,
    failures: Mapping[str, Outcome],
) -> Notice:
    """Return the notice that recipients could not be reached, for the sender.

    Its reverse-path must be the null one (RFC 3464 section 2), so that it is never
    answered by another notice.

    Args:
        notice_id: queue id of the notice.
        host: name of the host that reports, in whose domain the Message-ID lies.
        now: seconds since the epoch.
        original: envelope of the message that failed; its sender is not empty.
        headers: header block of that message, as ``header_block`` returns it.
        failures: what was said, by recipient.
    """
    utf8 = not all(map(str.isascii, (original.sender, *failures)))
    text, status = (
        _text(host, original, failures),
        _status(host, now, original, failures),
    )
    parts = [
        _head(notice_id, host, now, original, headers, utf8=utf8),
        _part("text/plain; charset=utf-8", text, utf8=utf8),
        _part(f"message/{_kind(utf8=utf8)}", status, utf8=utf8),
        _returned(headers, utf8=utf8),
    ]
    opening = f"\r\n--{_boundary(notice_id)}\r\n".encode()
    content = opening.join(parts) + f"\r\n--{_boundary(notice_id)}--\r\n".encode()
    return Notice(content, utf8)


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


def _head(
    notice_id: str,
    host: str,
    now: float,
    original: Envelope,
    headers: bytes,
    *,
    utf8: bool,
) -> bytes:
    lines = [
        f"Date: {_date(now)}",
        f"From: Mail Delivery <postmaster@{host}>",
        f"To: <{original.sender}>",
        "Subject: Your message could not be delivered",
        f"Message-ID: <{notice_id}@{host}>",
    ]
    if message_id := _message_id(headers):
        # RFC 3834 section 3.1.6.
        lines += [f"In-Reply-To: {message_id}", f"References: {message_id}"]
    lines += [
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        f"Content-Type: multipart/report; report-type={_kind(utf8=utf8)};",
        f'\tboundary="{_boundary(notice_id)}"',
    ]
    if utf8:
        lines.append("Content-Transfer-Encoding: 8bit")
    return _lines(lines, utf8=utf8)


def _boundary(notice_id: str) -> str:
    # The id is new and random: nobody could write it into a message before.
    return f"=_{notice_id}"


def _kind(*, utf8: bool) -> str:
    return "global-delivery-status" if utf8 else "delivery-status"


def _text(
    host: str, original: Envelope, failures: Mapping[str, Outcome]
) -> Sequence[str]:
    whom = "one recipient" if len(failures) == 1 else f"{len(failures)} recipients"
    lines = [
        f"This is the mail system at {host}.",
        "",
        f"Your message of {_date(original.received_at)}",
        f"could not be delivered to {whom}. It will not be tried again.",
    ]
    for recipient, outcome in failures.items():
        lines += ["", f"<{recipient}>"]
        if outcome.remote:
            lines.append(f"  {outcome.remote} answered:")
        lines += textwrap.wrap(
            _said(outcome), _WIDTH, initial_indent="    ", subsequent_indent="    "
        )
    lines += ["", "The header of your message is attached."]
    return lines


def _status(
    host: str, now: float, original: Envelope, failures: Mapping[str, Outcome]
) -> Sequence[str]:
    """Return the fields of RFC 3464 sections 2.2 and 2.3."""
    lines = [
        f"Reporting-MTA: dns; {host}",
        f"Arrival-Date: {_date(original.received_at)}",
    ]
    for recipient, outcome in failures.items():
        # RFC 6533 section 3: the type utf-8 is for addresses that are not ASCII.
        kind = "rfc822" if recipient.isascii() else "utf-8"
        lines += [
            "",
            f"Final-Recipient: {kind}; {recipient}",
            "Action: failed",
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
        lines.append(f"Last-Attempt-Date: {_date(now)}")
    return lines


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
