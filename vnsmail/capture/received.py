"""The topmost Received field of a message: what the remote says of who came. Pure.

RFC 5321 section 4.4 wants ``from NAME (REVERSE [ADDRESS]) by …``. Mail systems differ:

    vnsmail, Postfix, Sendmail, OpenSMTPD   from NAME (REVERSE [ADDRESS])
    the same without a reverse name         from NAME ([ADDRESS])
    Exim                                    from [ADDRESS] (helo=NAME)
    qmail                                   from REVERSE (HELO NAME) (ADDRESS)

Rules of this file: whatever the text, it reads as far as it understands and never
raises.
"""

import contextlib
import ipaddress
import re
from dataclasses import dataclass

from vnsmail.capture.fields import Origin, received
from vnsmail.model import IPAddress

_LITERAL = re.compile(r"\[(?:IPv6:)?([0-9a-fA-F.:]+)\]")
_BARE = re.compile(r"\(([0-9a-fA-F.:]+)\)")
_HELO = re.compile(r"\((?:HELO |EHLO |[^()]*\bhelo=)([^\s()]+)\)", re.IGNORECASE)
_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Received:
    """What one remote wrote of the client that brought a message."""

    remote: str
    """Who wrote it: the name behind ``by``."""
    text: str
    """The field's value as one line."""
    names: frozenset[str]
    """The name the client gave, and the one its address has: lower case."""
    addresses: frozenset[IPAddress]
    """The client's address as the remote's kernel gave it."""
    origin: Origin | None = None
    """Who had the message before, and by which id, as that host wrote it down."""


def topmost(header: bytes) -> str | None:
    """Return the value of a header block's first Received field as one line."""
    return next(iter(received(header, 1)), None)


def parse(text: str, remote: str = "", origin: Origin | None = None) -> Received:
    """Return what a Received field says.

    Args:
        text: its value as one line.
        remote: who wrote it, where the field does not say.
        origin: what the field below it says.
    """
    clause, rest = _from_clause(text)
    by = _NAME.match(rest)
    names = {match.group(1).lower() for match in _HELO.finditer(clause)}
    first, _, comments = clause.partition(" ")
    names.add(first.lower())
    reverse = re.search(r"\(([^\s()\[\]=]+) ?\[", comments)
    if reverse:
        names.add(reverse.group(1).lower())
    # A client may give an address as its name; the kernel's word is in the comment.
    literals = _LITERAL.findall(comments) or _BARE.findall(comments)
    return Received(
        remote=by.group() if by else remote,
        text=text,
        names=frozenset(name.rstrip(".") for name in names if _NAME.match(name)),
        addresses=_addresses(literals or _LITERAL.findall(first)),
        origin=origin,
    )


def _from_clause(text: str) -> tuple[str, str]:
    """Return what stands behind ``from``, and what stands behind ``by``."""
    if not text.lower().startswith("from "):
        return "", text[3:] if text.lower().startswith("by ") else ""
    depth = 0
    for at, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth <= 0 and text[at : at + 4].lower() == " by ":
            return text[5:at], text[at + 4 :]
    return text[5:].partition(";")[0], ""


def _addresses(found: list[str]) -> frozenset[IPAddress]:
    addresses = set()
    for each in found:
        with contextlib.suppress(ValueError):
            addresses.add(ipaddress.ip_address(each))
    return frozenset(addresses)
