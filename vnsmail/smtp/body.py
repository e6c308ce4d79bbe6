"""The message body on the wire: where it ends, and dot-stuffing (RFC 5321 4.5.2).

Rules of this file. A body ends at CRLF "." CRLF and nowhere else. A bare CR or LF is
never taken for a line end, and never passed on: where two servers disagree on line
ends, the text behind one of them is a message to the other (SMTP smuggling). Nothing
here depends on how the bytes are cut into pieces.
"""

from collections.abc import Iterable, Iterator

from vnsmail.smtp.errors import SmtpProtocolError

_END = b"\r\n.\r\n"


class BodyDecoder:
    """Finds the end of a body and undoes dot-stuffing, block by block.

    Args:
        looked_at: somebody else looks for bare newlines in what is given out.
    """

    def __init__(self, *, looked_at: bool = False) -> None:
        self.bare_newline = False
        """Whether there was a CR or LF alone so far; not set if looked at elsewhere."""
        self._looked_at = looked_at
        # The CRLF of the DATA command is the one in front of the first line. It is not
        # part of the body: the first two bytes are not given out.
        self._held = b"\r\n"
        self._virtual = 2

    def feed(self, data: bytes) -> tuple[bytes, bool, bytes]:
        """Take the next bytes.

        Returns:
            the next bytes of the body; whether it ended; and what came behind its end,
            which is the next command. The decoder is used up when it ended.
        """
        data = self._held + data
        at = data.find(_END)
        if at >= 0:
            rest = data[at + len(_END) :]
            block = data[: at + 2]
        else:
            rest = b""
            held = _unfinished(data)
            block = data[: len(data) - held]
            self._held = data[len(data) - held :]
        if not block:
            return b"", False, b""
        if not self._looked_at and has_bare_newline(block):
            self.bare_newline = True
        block = block.replace(b"\r\n.", b"\r\n")
        if self._virtual:
            block = block[self._virtual :]
            self._virtual = 0
        return block, at >= 0, rest


def _unfinished(data: bytes) -> int:
    """Return how many bytes at the end of data may be the start of the end."""
    for length in (4, 3, 2, 1):
        if data.endswith(_END[:length]):
            return length
    return 0


def has_bare_newline(block: bytes) -> bool:
    """Say whether a CR or LF stands alone in a block that cuts no CRLF in two."""
    # Four times as fast as to count them, and this is done with every octet of mail.
    alone = block.replace(b"\r\n", b"")
    return b"\r" in alone or b"\n" in alone


class BodyEncoder:
    """Does dot-stuffing, block by block, and ends the body."""

    def __init__(self) -> None:
        self._held = b""
        self._at_line_start = True

    def encode(self, data: bytes) -> bytes:
        """Return the next bytes as they are sent.

        Raises:
            SmtpProtocolError: a CR or LF stands alone. A canonical body has none (RFC
                5321 section 2.3.8), and to change it here would break signatures.
        """
        data = self._held + data
        self._held = b""
        if data.endswith(b"\r"):
            data, self._held = data[:-1], b"\r"
        if not data:
            return b""
        if has_bare_newline(data):
            raise SmtpProtocolError("the message has a bare CR or LF, and is not sent")
        stuffed = data.replace(b"\r\n.", b"\r\n..")
        if self._at_line_start and data.startswith(b"."):
            stuffed = b"." + stuffed
        self._at_line_start = data.endswith(b"\r\n")
        return stuffed

    def finish(self) -> bytes:
        """Return the end: the last line's CRLF if it is missing, and the final dot.

        Raises:
            SmtpProtocolError: the last byte was a CR.
        """
        if self._held:
            raise SmtpProtocolError("the message ends in a bare CR, and is not sent")
        return b".\r\n" if self._at_line_start else _END


class ChunkEncoder:
    """Puts a body in chunks (RFC 3030), without dots; as BodyEncoder, block by block.

    A chunk waits until it is known whether it is the last one.
    """

    def __init__(self) -> None:
        self._waiting = b""
        self._held = b""

    def encode(self, data: bytes) -> bytes:
        """Take the next bytes, and return the BDAT before them; empty if there is none.

        Raises:
            SmtpProtocolError: a CR or LF stands alone; without BINARYMIME that is no
                better in a chunk.
        """
        data = self._held + data
        self._held = b""
        if data.endswith(b"\r"):
            data, self._held = data[:-1], b"\r"
        if not data:
            return b""
        if has_bare_newline(data):
            raise SmtpProtocolError("the message has a bare CR or LF, and is not sent")
        before, self._waiting = self._waiting, data
        return b"BDAT %d\r\n%b" % (len(before), before) if before else b""

    def finish(self) -> bytes:
        """Return the last BDAT, with the last line's CRLF if it is missing.

        Raises:
            SmtpProtocolError: the last byte was a CR.
        """
        if self._held:
            raise SmtpProtocolError("the message ends in a bare CR, and is not sent")
        data = self._waiting
        if data and not data.endswith(b"\r\n"):
            data += b"\r\n"
        return b"BDAT %d LAST\r\n%b" % (len(data), data)


def dot_stuff(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Return a body as it is sent, with its end.

    Raises:
        SmtpProtocolError: a CR or LF stands alone (see BodyEncoder).
    """
    encoder = BodyEncoder()
    for chunk in chunks:
        if stuffed := encoder.encode(chunk):
            yield stuffed
    yield encoder.finish()
