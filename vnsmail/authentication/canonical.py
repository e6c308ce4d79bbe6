"""Canonical forms of fields and bodies (RFC 6376 section 3.4). Pure.

A body comes in pieces of any size and goes into a hash at once, so that one of 50 MiB
takes no memory.

Rules of this file: any cut of a body into pieces gives the same hash; time is linear,
whatever the white space (no pattern here can try again what it has passed).
"""

import hashlib
import re
from typing import Literal, TypeAlias

from vnsmail.message.headers import Field

Form: TypeAlias = Literal["simple", "relaxed"]

_BLANKS = re.compile(rb"  +")


def canonical_field(field: Field, form: Form) -> bytes:
    """Return a field in canonical form, with its CRLF."""
    if form == "simple":
        return field.raw
    value = field.raw.partition(b":")[2].replace(b"\r\n", b"").replace(b"\t", b" ")
    words = b" ".join(filter(None, value.split(b" ")))
    return field.name.encode("ascii") + b":" + words + b"\r\n"


class BodyHash:
    """Takes a body in pieces, and says its hash at the end.

    Args:
        form: the canonical form.
    """

    def __init__(self, form: Form) -> None:
        self._hash = hashlib.sha256()
        self._relaxed = form == "relaxed"
        self._held = b""
        """A CR whose LF may come with the next piece."""
        self._lines = 0
        """Line ends that count only if something follows them."""
        self._blank = False
        """White space, behind them, that counts only if its line goes on."""
        self.size = 0
        """Octets of the canonical form, complete after ``finish``."""

    def update(self, piece: bytes) -> None:
        """Take the next piece."""
        data, self._held = self._held + piece, b""
        if data.endswith(b"\r"):
            data, self._held = data[:-1], b"\r"
        if data:
            self._take(data)

    def finish(self) -> bytes:
        """Return the hash of all that was taken."""
        if self._held:
            held, self._held = self._held, b""
            self._take(held)
        # RFC 6376 section 3.4.3: an empty body is one empty line; in the relaxed form
        # (3.4.4, erratum 1384) it stays empty.
        if self.size or not self._relaxed:
            self._add(b"\r\n")
        return self._hash.digest()

    def _take(self, data: bytes) -> None:
        if self._relaxed:
            data = self._collapsed(data)
        rest = data.rstrip(b"\r\n")
        lines, at = 0, len(data)
        while at - 2 >= len(rest) and data.startswith(b"\r\n", at - 2):
            lines, at = lines + 1, at - 2
        if at:
            # Line ends before white space that is held here belong to earlier lines.
            self._add(b"\r\n" * self._lines + data[:at])
            self._lines = 0
        self._lines += lines

    def _collapsed(self, data: bytes) -> bytes:
        """Return data with white space as the relaxed form has it."""
        if self._blank:
            data, self._blank = b" " + data, False
        data = data.replace(b"\t", b" ")
        if b"  " in data:
            data = _BLANKS.sub(b" ", data)
        data = data.replace(b" \r\n", b"\r\n")
        if data.endswith(b" "):
            data, self._blank = data[:-1], True
        return data

    def _add(self, data: bytes) -> None:
        self._hash.update(data)
        self.size += len(data)
