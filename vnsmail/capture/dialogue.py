"""What was said in an SMTP connection, read from the bytes of both sides. Pure.

A reader of its own, apart from vnsmail/smtp: a proof must not lean on the code whose
behaviour it proves.

Rules of this file: whatever the bytes, it reads as far as it understands and never
raises. Message bodies are stepped over, so that a name in one is not taken for a
command. Text is made printable, as it comes from anywhere and ends on terminals.
"""

import re
from dataclasses import dataclass, field

from vnsmail.capture.fields import Origin, origins, printable

_LAST_LINE = re.compile(rb"^([2-5][0-9]{2})(?: [^\r\n]*)?\r?\n", re.MULTILINE)
_END_OF_BODY = b"\r\n.\r\n"
_HEADER = 8192
"""Octets in which a message's first trace field ends."""
_PATH = re.compile(r"FROM:\s*<([^>]*)>", re.IGNORECASE)


@dataclass(slots=True)
class Transaction:
    """One message in a connection, as far as it can be read."""

    sender: str
    """Reverse-path, without brackets."""
    at: int
    """Where its MAIL command begins in what the client said."""
    taken: bool | None = None
    """The server took the message, or refused it; None where nothing shows it."""
    origin: Origin | None = None
    """Who had the message before, and by which id: its topmost Received field."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """The part of an SMTP connection that says who is speaking."""

    greeting: int
    """Code of the server's greeting; 0 if there was none."""
    helo: tuple[str, ...]
    """Names given in EHLO or HELO: lower case, each once, in order."""
    senders: tuple[str, ...]
    """Reverse-paths of MAIL commands, without brackets."""
    encrypted: bool
    """TLS began; nothing behind it can be read."""
    transactions: tuple[Transaction, ...] = field(default=(), compare=False)
    """What ``senders`` are the senders of."""
    tls_at: int | None = field(default=None, compare=False)
    """Where STARTTLS stands in what the client said, if TLS began."""

    @property
    def has_mail(self) -> bool:
        """Mail was sent, or may have been: behind STARTTLS nobody can see."""
        return bool(self.senders) or self.encrypted


def read(said: bytes, answered: bytes) -> Dialogue:
    """Return what was said.

    Args:
        said: the client's bytes, from the first on.
        answered: the server's bytes, from the first on.
    """
    reader = _Reader(said, [int(code) for code in _LAST_LINE.findall(answered)])
    greeting = reader.reply()
    while reader.command():
        pass
    return Dialogue(
        greeting,
        tuple(reader.helo),
        tuple(each.sender for each in reader.transactions),
        reader.encrypted,
        tuple(reader.transactions),
        reader.tls_at if reader.encrypted else None,
    )


class _Reader:
    def __init__(self, said: bytes, codes: list[int]) -> None:
        self.helo: dict[str, None] = {}
        self.transactions: list[Transaction] = []
        self.encrypted = False
        self.tls_at = 0
        self._length = len(said)
        self._said = said
        self._codes = iter(codes)

    def reply(self) -> int:
        return next(self._codes, 0)

    def command(self) -> bool:
        """Read a command; return whether another can be read behind it."""
        begins = self._length - len(self._said)
        line = self._line()
        if line is None:
            return False
        verb, _, argument = line.partition(" ")
        match verb.upper():
            case "EHLO" | "HELO":
                name = argument.strip().rstrip(".").lower()
                self.helo.setdefault(name)
            case "MAIL":
                path = _PATH.search(argument)
                sender = path.group(1) if path else argument
                self.transactions.append(Transaction(sender, begins))
            case "BDAT":
                return self._chunk(argument)
            case "DATA":
                return self._body()
            case "STARTTLS":
                self.tls_at = begins
                self.encrypted = 200 <= self.reply() <= 299
                return not self.encrypted
            case _:
                pass
        # 334 asks for one more line of an AUTH dialogue (RFC 4954 section 4).
        while self.reply() == 334:
            if self._line() is None:
                return False
        return True

    def _line(self) -> str | None:
        line, newline, rest = self._said.partition(b"\n")
        if not newline:
            return None
        self._said = rest
        return printable(line.decode("utf-8", "replace").rstrip("\r"))

    def _chunk(self, argument: str) -> bool:
        size, _, last = argument.partition(" ")
        if size.isascii() and size.isdigit() and len(size) <= 20:
            self._note_header(self._said[: int(size)])
            self._said = self._said[int(size) :]
        code = self.reply()
        if last.strip().upper() == "LAST" or code >= 400:
            self._note_end(code)
        return True

    def _body(self) -> bool:
        code = self.reply()
        if code != 354:
            self._note_end(code)
            return code != 0
        self._note_header(self._said)
        # The CRLF of the DATA command is the one in front of the first line.
        at = (b"\r\n" + self._said).find(_END_OF_BODY)
        if at < 0:
            return False
        self._said = self._said[at + len(_END_OF_BODY) - 2 :]
        self._note_end(self.reply())
        return True

    def _note_header(self, body: bytes) -> None:
        """Note who had the message before, as its first octets say."""
        if self.transactions and self.transactions[-1].origin is None:
            found = origins(body[:_HEADER].partition(b"\r\n\r\n")[0], 1)
            self.transactions[-1].origin = found[0] if found else None

    def _note_end(self, code: int) -> None:
        if self.transactions and self.transactions[-1].taken is None and code:
            self.transactions[-1].taken = 200 <= code <= 299
