"""The trace header: what a host writes on a message that it takes. Pure.

RFC 5321 section 4.4, with the transmission types of RFC 3848 and RFC 6531.

Rules of this file: nothing that a client says becomes structure. Whatever it calls
itself, the field has one name, one client, one date, and ends where it should.
"""

import email.utils
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from vnsmail.model import IPAddress

WIDTH = 78
"""Octets of a line without its CRLF (RFC 5322 section 2.1.1)."""

MAX_NAME = 255
"""Octets of a client's name. DNS has none longer; EHLO takes none."""

MAX_PATH = 256
"""Octets of a recipient with angle brackets (RFC 5321 section 4.5.3.1.3)."""

_IN_COMMENT = re.compile(r"[^A-Za-z0-9._@,+ -]")
"""What stands in a comment only in another form; one for all is enough."""

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._:\[\]-]")


@dataclass(frozen=True, slots=True)
class Arrival:
    """How a message came in over SMTP."""

    by: str
    """Name of the host that takes it."""
    queue_id: str
    at: float
    """Seconds since the epoch."""
    helo: str
    """What the client calls itself."""
    address: IPAddress | None
    """Where it connects from; None over a Unix socket."""
    reverse_name: str | None
    """Name of that address in DNS, if the name has that address too."""
    extended: bool
    """The client said EHLO."""
    smtputf8: bool
    tls: str = ""
    """Version and cipher of the TLS that it came through, as ``TLSv1.3,
    TLS_AES_256_GCM_SHA384``; empty without TLS."""
    authenticated: bool = False
    """The client had signed in."""
    user: str = ""
    """Who signed in, where that is to be told."""
    hide_client: bool = False
    """Neither name nor address of the client is told."""
    recipient: str = ""
    """The recipient if there is only one: several must not learn of each other (RFC
    5321 section 7.2)."""


def received(arrival: Arrival) -> bytes:
    """Return the Received field of a message that came over SMTP."""
    queue_id = _name(arrival.queue_id)
    # A client brings many messages to a host: only id and date differ, and have lengths
    # that do not, so where lines are folded is found out once.
    field = _without_id_and_date(
        *(arrival.by, len(queue_id), arrival.helo, arrival.address),
        *(arrival.reverse_name, arrival.extended, arrival.smtputf8, arrival.tls),
        *(arrival.authenticated, arrival.user, arrival.hide_client, arrival.recipient),
    )
    field = field.replace(_ID * len(queue_id), queue_id, 1)
    field = field.replace(_DATE, date(arrival.at), 1)
    return field.encode("utf-8" if arrival.smtputf8 else "ascii", "replace")


_ID, _DATE = "\x01", "\x02" * len("Thu, 01 Jan 1970 00:00:00 +0000")
"""What stands for id and date; nothing else in a field is a control character."""


@lru_cache(maxsize=1024)
def _without_id_and_date(
    by: str,
    id_length: int,
    helo: str,
    address: IPAddress | None,
    reverse_name: str | None,
    extended: bool,
    smtputf8: bool,
    tls: str,
    authenticated: bool,
    user: str,
    hide_client: bool,
    recipient: str,
) -> str:
    arrival = Arrival(
        by=by,
        queue_id="",
        at=0.0,
        helo=helo,
        address=address,
        reverse_name=reverse_name,
        extended=extended,
        smtputf8=smtputf8,
        tls=tls,
        authenticated=authenticated,
        user=user,
        hide_client=hide_client,
        recipient=recipient,
    )
    clauses = [] if arrival.hide_client else [f"from {_client(arrival)}"]
    clauses.append(
        f"by {_name(arrival.by)} with {_protocol(arrival)} id {_ID * id_length}"
    )
    path = f"<{_printable(arrival.recipient)}>"
    if arrival.recipient and len(path.encode()) <= MAX_PATH:
        clauses.append(f"for {path}")
    return _folded(clauses, _DATE)


def _protocol(arrival: Arrival) -> str:
    """Return the transmission type (RFC 3848, RFC 6531), and in a comment its TLS."""
    if arrival.smtputf8:
        protocol = "UTF8SMTP"
    elif arrival.extended:
        protocol = "ESMTP"
    else:
        return "SMTP"  # TLS and AUTH need EHLO
    protocol += "S" if arrival.tls else ""
    protocol += "A" if arrival.authenticated else ""
    told = [_IN_COMMENT.sub("?", each) for each in (arrival.tls, arrival.user) if each]
    return f"{protocol} ({', '.join(told)})" if told else protocol


def received_locally(by: str, queue_id: str, at: float, uid: int) -> bytes:
    """Return the Received field of a message that a local command handed over.

    RFC 5321 section 4.4 wants "from" only of what came over a connection.

    Args:
        by: name of the host that takes it.
        queue_id: its id in the queue.
        at: seconds since the epoch.
        uid: who handed it over, as the kernel says.
    """
    clauses = [
        f"by {_name(by)} (local, uid {uid})",
        f"with local id {_name(queue_id)}",
    ]
    return _folded(clauses, date(at)).encode("ascii", "replace")


def date(seconds: float) -> str:
    """Return a time as RFC 5322 section 3.3 writes it, in UTC."""
    return _date(int(seconds))


@lru_cache(maxsize=16)
def _date(seconds: int) -> str:
    # Thousands of messages have the same second, and this is half the cost of a field.
    return email.utils.format_datetime(datetime.fromtimestamp(seconds, UTC))


@lru_cache(maxsize=1024)
def address_literal(address: IPAddress) -> str:
    """Return an address as address literal (RFC 5321 section 4.1.3)."""
    return f"[{'IPv6:' if address.version == 6 else ''}{address}]"


def _client(arrival: Arrival) -> str:
    helo = _name(arrival.helo)
    address = arrival.address
    if address is None:
        return helo
    literal = address_literal(address)
    if arrival.reverse_name:
        return f"{helo} ({_name(arrival.reverse_name)} {literal})"
    return f"{helo} ({literal})"


def _name(text: str) -> str:
    return _NOT_IN_A_NAME.sub("?", text)[:MAX_NAME] or "unknown"


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "?" for c in text)


def _folded(clauses: Iterable[str], when: str) -> str:
    """Return a field of these clauses in lines that are not too long."""
    *others, last = clauses
    lines = ["Received:"]
    for clause in (*others, f"{last};", when):
        if _fits(f"{lines[-1]} {clause}"):
            lines[-1] += f" {clause}"
        elif _fits(f"\t{clause}") and len(lines[-1]) > len("Received:"):
            lines.append(f"\t{clause}")
        else:
            _append_words(lines, clause)
    return "".join(f"{line}\r\n" for line in lines)


def _append_words(lines: list[str], clause: str) -> None:
    """Put a clause that is too long for a line into several, between its words."""
    word, _, path = clause.partition(" <")
    # A path may have spaces within quotes, where no line may be folded.
    for part in (word, f"<{path}") if path else clause.split(" "):
        # A line with the name of the field alone is obsolete (RFC 5322 section 4.2).
        if _fits(f"{lines[-1]} {part}") or lines[-1] == "Received:":
            lines[-1] += f" {part}"
        else:
            lines.append(f"\t{part}")


def _fits(line: str) -> bool:
    octets = line if line.isascii() else line.encode("utf-8", "replace")
    return len(octets) <= WIDTH
