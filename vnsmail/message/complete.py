"""What a host adds to a message of its own users: the fields each message must have.

RFC 6409 section 8: Date, Message-ID and From are added where they are missing. Bcc
goes, for it names recipients that the others must not see (RFC 5322 section 3.6.3).
Nothing else is touched: what is not added or left out comes out as it went in.

Pure. ``Completion`` takes the bytes of a message as they arrive and holds no more of
them than the header block.
"""

import base64
import re
from dataclasses import dataclass
from typing import Self

from vnsmail.message.addresses import Address, NoAddressList, parse_addresses
from vnsmail.message.headers import FIELD, Header, parse_header
from vnsmail.message.trace import date

LEFT_OUT = frozenset({"bcc", "resent-bcc"})

MAX_HEADER = 1024 * 1024
"""Bytes of a header block, ten times what Postfix takes (header_size_limit)."""

_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/^_`{|}~ -]+")
_ENCODED_BYTES = 39
"""Octets of UTF-8 that an encoded word of 75 characters has room for (RFC 2047)."""


class HeaderTooLong(ValueError):
    """The header block is longer than MAX_HEADER."""


@dataclass(frozen=True, slots=True)
class Missing:
    """The fields to be added, where the message has none of that name."""

    date: str
    message_id: str
    """With angle brackets."""
    sender: str
    """What From says; as ``mailbox`` writes it."""

    @classmethod
    def of(cls, at: float, unique: str, name: str, sender: str) -> Self:
        """Return the fields of a message that came at a time.

        Args:
            at: seconds since the epoch.
            unique: an id that no other message has; a queue id.
            name: name of the host, the right half of the Message-ID.
            sender: the value of From.
        """
        return cls(date(at), f"<{unique}@{name}>", sender)

    def fields(self, header: Header) -> bytes:
        """Return the fields that a header block lacks, each on its line."""
        wanted = (
            ("Date", self.date),
            ("From", self.sender),
            ("Message-ID", self.message_id),
        )
        return b"".join(
            f"{name}: {value}\r\n".encode()
            for name, value in wanted
            if not header.has(name.lower())
        )


def completed(header: Header, missing: Missing) -> bytes:
    """Return a header block, complete: what was missing, then what there was."""
    kept = b"".join(f.raw for f in header.fields if f.name not in LEFT_OUT)
    return missing.fields(header) + kept


def separated(rest: bytes) -> bytes:
    """Return what follows the fields, with the empty line between them and the text."""
    return rest if rest.startswith(b"\r\n") else b"\r\n" + rest


class Completion:
    """A message on its way in, completed as it comes.

    Args:
        missing: what to add where it is missing.
    """

    def __init__(self, missing: Missing) -> None:
        self._missing = missing
        self._front = bytearray()
        self._line = 0
        """Where the line begins that is not whole yet."""
        self.header: Header | None = None
        """The fields as they came, once the header block is whole."""

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes; return those that are ready, perhaps none.

        Raises:
            HeaderTooLong: the header block has no end within MAX_HEADER bytes.
        """
        if self.header is not None:
            return data
        self._front += data
        if self._ended():
            return self._completed(parse_header(bytes(self._front)))
        if len(self._front) > MAX_HEADER:
            raise HeaderTooLong
        return b""

    def give_up(self) -> bytes:
        """Return what was held back as it came; nothing is completed any more."""
        self.header = self.header or Header((), b"")
        front = bytes(self._front)
        self._front.clear()
        return front

    def finish(self) -> bytes:
        """Return what was held back, at the end of the message."""
        if self.header is not None:
            return b""
        front = bytes(self._front)
        # The last line of a header block without a body may lack its end.
        header = parse_header(front + b"\r\n")
        if header.rest:
            header = parse_header(front)
        return self._completed(header)

    def _ended(self) -> bool:
        """Say whether a line has come that belongs to no field; each is seen once."""
        while (end := self._front.find(b"\r\n", self._line)) >= 0:
            folded = self._line > 0 and self._front[self._line] in b" \t"
            if not folded and not FIELD.match(self._front, self._line, end):
                return True
            self._line = end + 2
        return False

    def _completed(self, header: Header) -> bytes:
        self.header = header
        self._front.clear()
        return completed(header, self._missing) + separated(header.rest)


def authors(header: Header, name: str = "from") -> tuple[Address, ...]:
    """Return the mailboxes of all fields of a name.

    Raises:
        NoAddressList: one of them is no address list.
    """
    found: tuple[Address, ...] = ()
    for each in header.fields:
        if each.name == name:
            try:
                found += parse_addresses(each.raw.partition(b":")[2])
            except NoAddressList as error:
                message = f"{name.title()}: {error}"
                raise NoAddressList(message) from None
    return found


def mailbox(address: str, name: str = "") -> str:
    """Return an address with a name beside it, as a field says it.

    A name beyond ASCII is encoded (RFC 2047); control characters are left out.
    """
    name = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    if not name:
        return address
    if not name.isascii():
        return f"{_encoded(name)} <{address}>"
    if not _ATOMS.fullmatch(name):
        quoted = name.replace("\\", "\\\\").replace('"', '\\"')
        name = f'"{quoted}"'
    return f"{name} <{address}>"


def _encoded(text: str) -> str:
    words, word = [], b""
    for character in text:
        octets = character.encode("utf-8", "replace")
        if len(word) + len(octets) > _ENCODED_BYTES:
            words.append(word)
            word = b""
        word += octets
    words.append(word)
    return "\r\n ".join(f"=?utf-8?b?{base64.b64encode(w).decode()}?=" for w in words)
