"""The message that tells an account why one of its own was not sent. Pure.

For mail that was left while nobody ran who could say no: what was not accepted by
anybody is no subject of a delivery status notification (RFC 3464).

Rules of this file: what the message had is quoted, and never becomes structure.
"""

import textwrap

from vnsmail.message.trace import date

MAX_LINES = 40
"""Lines of the message that are quoted, so that one sees which it was."""

_WIDTH = 76


def refusal(
    *, notice_id: str, host: str, to: str, at: float, reason: str, front: bytes
) -> bytes:
    """Return the message, with CRLF; its reverse-path must be the null one.

    Args:
        notice_id: its queue id.
        host: name of the host that refused.
        to: address of whoever sent.
        at: seconds since the epoch.
        reason: why, in a line.
        front: the first bytes of what was not sent.
    """
    quoted = front.decode("utf-8", "replace").splitlines()[:MAX_LINES]
    lines = [
        f"Date: {date(at)}",
        f"From: Mail Delivery <postmaster@{host}>",
        f"To: <{to}>",
        "Subject: Your message was not sent",
        f"Message-ID: <{notice_id}@{host}>",
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: 8bit",
        "",
        f"This is the mail system at {host}.",
        "",
        "A message that was handed over with the sendmail command could not be sent:",
        "",
        *textwrap.wrap(reason, _WIDTH, initial_indent="  ", subsequent_indent="  "),
        "",
        "It is thrown away. It began with:",
        "",
        *(f"| {line}"[:_WIDTH] for line in quoted),
    ]
    return "".join(f"{_clean(line)}\r\n" for line in lines).encode()


def _clean(line: str) -> str:
    return "".join(c if c.isprintable() or c == "\t" else " " for c in line)
