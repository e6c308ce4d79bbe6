"""Trace fields of a header block, as bytes that anybody may have written. Pure.

Rules of this file: whatever the bytes, it reads as far as it understands and never
raises; the work is in proportion to the header.
"""

import re
from typing import NamedTuple

_FIELD = re.compile(rb"^received:((?:.*\n[ \t])*.*)$", re.IGNORECASE | re.MULTILINE)
_BY = re.compile(r"(?:^|\s)by\s+([A-Za-z0-9_.-]{1,255})", re.IGNORECASE)
_ID = re.compile(r"\sid\s+<?([A-Za-z0-9_.@+-]{1,128})>?(?=[\s;]|$)", re.IGNORECASE)


class Origin(NamedTuple):
    """Who took a message, and what it called it (RFC 5321 section 4.4)."""

    host: str
    """The name behind ``by``: lower case."""
    id: str
    """What stands behind ``id``."""


def received(header: bytes, limit: int = 100) -> list[str]:
    """Return the values of a header block's Received fields, each as one line.

    Args:
        header: the block; bare line feeds are taken for ends of lines, too.
        limit: how many at most, from the top.
    """
    found = []
    for match in _FIELD.finditer(header.replace(b"\r\n", b"\n")):
        text = " ".join(match.group(1).decode("utf-8", "replace").split())
        found.append(printable(text))
        if len(found) >= limit:
            break
    return found


def origins(header: bytes, limit: int = 100) -> list[Origin]:
    """Return who took a message on its way, from the last on, as far as they say."""
    found = (origin(text) for text in received(header, limit))
    return [each for each in found if each is not None]


def origin(text: str) -> Origin | None:
    """Return who wrote a Received field and the id in it; None if it has not both."""
    # Comments may have anything in them, another field even.
    bare = _without_comments(text)
    by, number = _BY.search(bare), _ID.search(bare)
    if by is None or number is None:
        return None
    return Origin(by.group(1).lower().rstrip("."), number.group(1))


def _without_comments(text: str) -> str:
    depth, kept = 0, []
    for character in text:
        depth += character == "("
        if not depth:
            kept.append(character)
        depth -= character == ")" and depth > 0
    return "".join(kept)


def printable(text: str) -> str:
    """Return text with ``?`` for what does not print."""
    return text if text.isprintable() else "".join(map(_printable, text))


def _printable(character: str) -> str:
    return character if character.isprintable() else "?"
