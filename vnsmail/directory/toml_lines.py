"""On which line of a TOML document a key stands. Pure.

tomllib reads a document and forgets where it read what; this finds it again, for a
message that says where to look. It walks over keys, strings, arrays and inline tables,
and takes everything else as it comes.

Rules of this file: it judges nothing: the document is one that tomllib accepts. For any
other text it ends all the same, and what it says of that means nothing.
"""

import bisect
import re
import tomllib
from collections.abc import Mapping
from typing import TypeAlias

Path: TypeAlias = tuple[str | int, ...]
"""Keys from the root of a document, with the number of an element of an array."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})'  # quotes before the last three are its own
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE_KEY = re.compile(r"[^\s.=\[\]#\"']+")
_PLAIN = re.compile(r"[^,\]}#\n]+")
"""A number, a date or a truth value."""


def find_lines(document: str) -> dict[Path, int]:
    """Return the line of each key and element of a document; the first line is 1.

    A table that is only implied, as is ``host`` by ``[host."alpha.example"]``, stands
    where it is first implied.
    """
    walk = _Walk(document)
    walk.document()
    breaks = [match.start() for match in re.finditer("\n", document)]
    return {
        path: bisect.bisect_left(breaks, offset) + 1
        for path, offset in walk.found.items()
    }


def nearest(lines: Mapping[Path, int], path: Path) -> int:
    """Return the line of a key, or of the closest table around one that is not there."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return 1


def dotted(path: Path) -> str:
    """Return a path as one writes it: ``host."alpha.example".addresses[1]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = re.fullmatch("[A-Za-z0-9_-]+", part)
            text += ("." if text else "") + (part if bare else quoted(part))
    return text


def quoted(text: str) -> str:
    """Return a text as a basic string (toml.io, "String")."""
    escapes = {'"': '\\"', "\\": "\\\\"}
    return '"' + "".join(escapes.get(c) or _visible(c) for c in text) + '"'


def _visible(character: str) -> str:
    number = ord(character)
    control = number < 0x20 or number == 0x7F
    return f"\\u{number:04x}" if control else character


class _Walk:
    """A way through a document, and the offsets of what was passed."""

    def __init__(self, text: str) -> None:
        self.found: dict[Path, int] = {}
        self._text = text
        self._at = 0
        self._lengths: dict[Path, int] = {}
        """Of the arrays of tables so far."""

    def document(self) -> None:
        table: Path = ()
        while self._next():
            start = self._at
            if self._next() == "[":
                table = self._header()
            else:
                self._pair(table)
            self._at = max(self._at, start + 1)

    def _header(self) -> Path:
        start = self._at
        many = self._text.startswith("[[", start)
        self._at += 2 if many else 1
        path: Path = ()
        keys = self._keys()
        for number, key in enumerate(keys, start=1):
            path = (*path, key)
            if many and number == len(keys):
                self._lengths[path] = self._lengths.get(path, 0) + 1
            # What follows belongs to the last table of an array.
            self._note(path, start)
            if path in self._lengths:
                path = (*path, self._lengths[path] - 1)
                self._note(path, start)
        self._skip("]")
        self._skip("]")
        return path

    def _pair(self, table: Path) -> None:
        start = self._at
        for key in self._keys():
            table = (*table, key)
            self._note(table, start)
        self._skip("=")
        self._value(table)

    def _value(self, path: Path) -> None:
        first = self._next()
        if first == "[":
            self._array(path)
        elif first == "{":
            self._inline_table(path)
        elif not self._take(_STRING):
            self._take(_PLAIN)

    def _array(self, path: Path) -> None:
        self._at += 1
        number = 0
        while self._next() not in {"]", ""}:
            start = self._at
            self._note((*path, number), start)
            self._value((*path, number))
            self._skip(",")
            self._at = max(self._at, start + 1)
            number += 1
        self._at += 1

    def _inline_table(self, path: Path) -> None:
        self._at += 1
        while self._next() not in {"}", ""}:
            start = self._at
            self._pair(path)
            self._skip(",")
            self._at = max(self._at, start + 1)
        self._at += 1

    def _keys(self) -> list[str]:
        keys = []
        while self._next():
            if string := self._take(_STRING):
                keys.append(_meant(string))
            elif bare := self._take(_BARE_KEY):
                keys.append(bare)
            if not self._skip("."):
                break
        return keys

    # Small steps ---------------------------------------------------------------

    def _note(self, path: Path, offset: int) -> None:
        self.found.setdefault(path, offset)

    def _next(self) -> str:
        """Pass what means nothing; return the character after it, none at the end."""
        self._take(_BLANK)
        return self._text[self._at : self._at + 1]

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            return ""
        self._at = match.end()
        return match[0]

    def _skip(self, character: str) -> bool:
        if self._next() != character:
            return False
        self._at += 1
        return True


def _meant(string: str) -> str:
    """Return the key that a quoted key stands for."""
    if "\\" not in string:
        return string[1:-1]
    try:
        return next(iter(tomllib.loads(f"{string} = 0")))
    except tomllib.TOMLDecodeError:
        return string[1:-1]
