"""The header block of a message, as the bytes it is made of. Pure.

Rules of this file: nothing is decoded, unfolded or repaired; the fields and what stands
behind them, put together again, are the bytes that were given. Lines end with CRLF.
"""

import re
from dataclasses import dataclass

from vnsmail.model import TlsWish

MAX_HOPS = 50
"""Received fields that a message may have; more mean that it goes in a circle (RFC 5321
section 6.3). Postfix, too, has 50 (hopcount_limit)."""

MAX_OWN_HOPS = 5
"""Received fields of one host that a message may have. An alias that forwards to a list
that sends back is two; more than this is a circle with another host in it."""

# RFC 5322 section 3.6.8; white space before the colon is the obsolete form (4.5).
FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:")
"""The name of a field and its colon, at the start of a line."""
_TLS_REQUIRED = re.compile(rb"(?:^|\n)tls-required[ \t]*:", re.IGNORECASE)
_RECEIVED = re.compile(rb"(?:^|\n)received[ \t]*:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Field:
    """One header field."""

    name: str
    """In lower case."""
    raw: bytes
    """All its lines, with their ends."""


@dataclass(frozen=True, slots=True)
class Header:
    """The fields at the front of some bytes."""

    fields: tuple[Field, ...]
    rest: bytes
    """What stands behind the last field, with the empty line if there is one."""

    @property
    def whole(self) -> bool:
        """Whether a line that is no field follows, so that no field can be missing."""
        return b"\r\n" in self.rest

    def has(self, name: str) -> bool:
        """Say whether there is a field of that name, given in lower case."""
        return any(field.name == name for field in self.fields)


def parse_header(front: bytes) -> Header:
    """Return the fields at the front of a message.

    The header block ends at the first line that is neither a field nor the
    continuation of one, be it empty or not. An unfinished line belongs to the rest.
    """
    names: list[str] = []
    starts: list[int] = []
    at = 0
    while (end := front.find(b"\r\n", at)) >= 0:
        if front[at : at + 1] in {b" ", b"\t"} and names:
            at = end + 2
            continue
        match = FIELD.match(front, at, end)
        if match is None:
            break
        names.append(match[1].decode("ascii").lower())
        starts.append(at)
        at = end + 2
    # A field whose continuation may still come is not finished, but is taken.
    ends = [*starts, at][1:]
    fields = tuple(
        Field(name, front[start:stop])
        for name, start, stop in zip(names, starts, ends, strict=True)
    )
    return Header(fields, front[at:])


def tls_wish(front: bytes) -> TlsWish:
    """Return what the header field TLS-Required says (RFC 8689 section 5).

    Args:
        front: the message, or so much of its front as is to be looked at.
    """
    if _TLS_REQUIRED.search(front) is None:
        return TlsWish.USUAL  # as a rule
    found = [f.raw for f in parse_header(front).fields if f.name == "tls-required"]
    values = [raw.partition(b":")[2].strip().lower() for raw in found]
    return TlsWish.OPTIONAL if values == [b"no"] else TlsWish.USUAL


def count_received(front: bytes) -> int:
    """Return how many Received fields stand in the header block of a message.

    Args:
        front: the message, or so much of its front as is to be looked at: each host
            puts its field in front of the others.
    """
    if front.startswith(b"\r\n"):
        return 0
    end = front.find(b"\r\n\r\n")
    return len(_RECEIVED.findall(front, 0, end if end >= 0 else len(front)))


def count_received_by(front: bytes, name: str) -> int:
    """Return how many Received fields at the front of a message a host put there.

    Args:
        front: as above.
        name: the host's, as it writes it behind ``by``.
    """
    by = re.compile(rb"\sby\s+" + re.escape(name.encode()) + rb"[\s(;]", re.IGNORECASE)
    fields = parse_header(front).fields
    return sum(
        field.name == "received" and by.search(field.raw) is not None
        for field in fields
    )
