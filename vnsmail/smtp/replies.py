"""Replies: their form on the wire, both ways (RFC 5321 section 4.2, RFC 2034).

Rules of this file: a reply that we write is ASCII without control characters, whatever
its text came from. A reply that we read fits the grammar, or the connection is over:
guessing at a damaged reply would put later replies to the wrong commands.
"""

import re
from dataclasses import dataclass

from vnsmail.smtp.errors import SmtpProtocolError

MAX_REPLY_LINE = 512
"""Octets of a line that we write, with CRLF (RFC 5321 section 4.5.3.1.5)."""

MAX_LINE_READ = 2048
"""Octets of a line that we read, with CRLF. Some servers put links and explanations
into a refusal and pass 512; Postfix, too, reads 2048 (line_length_limit)."""

_LONGEST = MAX_LINE_READ - len(b"\r\n")

MAX_LINES_READ = 512
"""Lines of one reply. A peer that never sends the last one would hold our memory;
a long EHLO reply has some twenty."""

_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |$)")
_UNSENDABLE = re.compile(r"[\x00-\x1f\x7f]")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LINE = re.compile(rb"([2-5][0-9]{2})(?:([ -])([^\r\n]*+))?")


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply, without the form it has on the wire."""

    code: int
    """200 to 599; the first digit says what it means (RFC 5321 section 4.2.1)."""
    lines: tuple[str, ...]
    """The text, without codes."""
    enhanced: str = ""
    """Enhanced status code such as 5.1.1 (RFC 3463); empty where there is none."""

    @property
    def text(self) -> str:
        """The text as one line."""
        return " ".join(self.lines)

    @property
    def is_positive(self) -> bool:
        """It is done (2yz)."""
        return 200 <= self.code <= 299

    @property
    def is_transient(self) -> bool:
        """Not now, but the same may work later (4yz)."""
        return 400 <= self.code <= 499

    @property
    def is_permanent(self) -> bool:
        """Not now, and the same will not work later (5yz)."""
        return 500 <= self.code <= 599

    def encode(self) -> bytes:
        """Return the reply as it is sent.

        The enhanced code stands on every line (RFC 2034 section 4). Control characters
        become ``?``, other characters than ASCII an escape; text that is too long for
        a line goes on in the next.
        """
        start = f"{self.enhanced} " if self.enhanced else ""
        room = MAX_REPLY_LINE - len("250 \r\n") - len(start)
        if len(self.lines) == 1:
            line = self.lines[0]
            if len(line) <= room and line.isascii() and line.isprintable():
                return f"{self.code} {start}{line}\r\n".encode("ascii")
        lines = [
            start + part for line in self.lines or ("",) for part in _parts(line, room)
        ]
        last = len(lines) - 1
        return "".join(
            # The space is sent even if no text follows: RFC 5321 section 4.2.1.
            f"{self.code}{' ' if number == last else '-'}{line}\r\n"
            for number, line in enumerate(lines)
        ).encode("ascii")


def _parts(line: str, room: int) -> list[str]:
    if not line.isascii():
        line = line.encode("ascii", "backslashreplace").decode("ascii")
    line = _UNSENDABLE.sub("?", line)
    return [line[at : at + room] for at in range(0, len(line), room)] or [""]


class ReplyParser:
    """Makes replies out of what a server sends, however it is cut into pieces."""

    def __init__(self) -> None:
        self._input = b""
        self._code = b""
        self._lines: list[str] = []
        self._broken: SmtpProtocolError | None = None

    def feed(self, data: bytes) -> list[Reply]:
        """Return the replies that are complete now.

        Nonsense behind a complete reply does not take that reply away, as it may be
        the one that says the message was accepted: the error comes with the next call
        (which may have no data).

        Raises:
            SmtpProtocolError: what came is not a reply. Every later call raises it too.
        """
        if self._broken is not None:
            raise self._broken
        *lines, self._input = (self._input + data).split(b"\r\n")
        replies: list[Reply] = []
        try:
            for line in lines:
                reply = self._line(line)
                if reply is not None:
                    replies.append(reply)
            if self._input:
                _check_line(self._input.removesuffix(b"\r"))
        except SmtpProtocolError as error:
            self._broken = error
            if not replies:
                raise
        return replies

    def _line(self, line: bytes) -> Reply | None:
        match = _LINE.fullmatch(line)
        if match is None or len(line) > _LONGEST:
            _check_line(line)
            raise SmtpProtocolError("the server sent a line that is not a reply")
        code, mark, text = match.groups(b"")
        if self._code and code != self._code:
            raise SmtpProtocolError("the lines of one reply have different codes")
        if len(self._lines) == MAX_LINES_READ:
            raise SmtpProtocolError("a reply of the server never ends")
        self._code = code
        words = text.decode("utf-8", "replace")
        if not words.isprintable():
            words = _UNPRINTABLE.sub("?", words)
        self._lines.append(words)
        if mark == b"-":
            return None
        reply = _reply(int(code), self._lines)
        self._code, self._lines = b"", []
        return reply


def _check_line(line: bytes) -> None:
    """Refuse what no reply has, also while the end of the line is still to come."""
    if len(line) > _LONGEST:
        raise SmtpProtocolError("a reply line of the server is too long")
    # A line feed alone ends a line for some programs and not for others; whoever sends
    # one may be hiding a reply from one of them.
    if b"\n" in line or b"\r" in line:
        raise SmtpProtocolError("a reply of the server has a bare CR or LF")


def _reply(code: int, lines: list[str]) -> Reply:
    found = _ENHANCED.match(lines[0])
    # RFC 2034 section 4: the class agrees with the code; otherwise it is just text.
    if found is None or lines[0][0] != str(code)[0]:
        return Reply(code, tuple(lines))
    enhanced = found[1]
    if len(lines) == 1:
        return Reply(code, (lines[0][found.end() :],), enhanced)
    start = len(enhanced)
    return Reply(
        code,
        tuple(
            line[start + 1 :]
            if line == enhanced or line.startswith(enhanced + " ")
            else line
            for line in lines
        ),
        enhanced,
    )
