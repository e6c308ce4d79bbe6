"""Lists of tags as DKIM, ARC and DMARC write them (RFC 6376 section 3.2). Pure.

Rules of this file: a list that is not well formed is None; nothing is guessed. Time is
linear: text is split, and no pattern runs over white space twice.
"""

import base64
import binascii
import re

MAX_TAGS = 100

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_VALUE = re.compile(r"[\x21-\x3a\x3c-\x7e \t\r\n]*")
_WHITE = str.maketrans("", "", " \t\r\n")


def parse_tags(text: str) -> dict[str, str] | None:
    """Return the tags with their values; None if it is no list of tags.

    A tag that is given twice makes the list invalid (section 3.2).
    """
    tags: dict[str, str] = {}
    parts = text.split(";", MAX_TAGS + 1)
    if not parts[-1].strip(" \t\r\n"):
        parts.pop()
    if len(parts) > MAX_TAGS:
        return None
    for part in parts:
        name, equals, value = part.partition("=")
        name, value = name.strip(" \t\r\n"), value.strip(" \t\r\n")
        if not equals or not _NAME.fullmatch(name) or name in tags:
            return None
        if not _VALUE.fullmatch(value):
            return None
        tags[name] = value
    return tags


def without_white(value: str) -> str:
    """Return a value without its white space, which folding may put anywhere."""
    return value.translate(_WHITE)


def listed(value: str) -> tuple[str, ...]:
    """Return the parts of a list with colons, in lower case, none empty."""
    return tuple(filter(None, without_white(value).lower().split(":")))


def decoded(value: str) -> bytes | None:
    """Return what a base64 value says; None if it is none."""
    try:
        return base64.b64decode(without_white(value), validate=True)
    except (binascii.Error, ValueError):
        return None


def number(value: str | None) -> int | None:
    """Return a number of at most twelve digits (section 3.5, t= and x=)."""
    if value is None or not re.fullmatch(r"[0-9]{1,12}", value):
        return None
    return int(value)
