"""What no message may have in it, whichever command brought it.

    a CR or LF alone         where servers disagree on line ends, what stands behind one
                             is a message of its own to some of them (SMTP smuggling)
    NUL                      RFC 5321 section 2.3.1 has text; programs in C end it there
    a line without an end    over 10,000 octets; RFC 5321 section 4.5.3.1.6 wants 1,000
                             to be taken, and many send more
    octets beyond ASCII      where the client said BODY=7BIT (RFC 6152)

Rules of this file: it looks, and changes nothing; what it finds does not depend on how
the octets were cut; the worst fault is the one to tell, wherever it was.
"""

from enum import IntEnum, auto

from vnsmail.smtp.body import has_bare_newline
from vnsmail.smtp.replies import Reply

MAX_LINE = 10_000
"""Octets of a line with its CRLF."""


class Fault(IntEnum):
    """What is wrong with a body, the worst first."""

    BARE_NEWLINE = auto()
    NUL = auto()
    TOO_BIG = auto()
    LONG_LINE = auto()
    EIGHT_BIT = auto()


_REPLIES = {
    # The code that Postfix and Sendmail use as well for this.
    Fault.BARE_NEWLINE: Reply(554, ("bare CR or LF in the message",), "5.6.11"),
    Fault.NUL: Reply(554, ("NUL in the message",), "5.6.0"),
    Fault.LONG_LINE: Reply(554, ("a line of the message is too long",), "5.6.0"),
    Fault.EIGHT_BIT: Reply(554, ("8-bit text without BODY=8BITMIME",), "5.6.3"),
    Fault.TOO_BIG: Reply(552, ("the message is too big",), "5.3.4"),
}
REPLIES = {fault: reply.encode() for fault, reply in _REPLIES.items()}


class ContentCheck:
    """Looks at one body, block by block. No block cuts a CRLF in two.

    Args:
        limit: octets a body may have.
        seven_bit: octets beyond ASCII are a fault.
    """

    def __init__(self, limit: int, *, seven_bit: bool) -> None:
        self.faults: set[Fault] = set()
        self.eight_bit = False
        """There was an octet beyond ASCII."""
        self.size = 0
        """Octets so far."""
        self._limit = limit
        self._seven_bit = seven_bit
        self._line = 0
        """Octets so far of the line that has no end yet."""

    @property
    def worst(self) -> Fault | None:
        """The fault to tell; None: the body is sound so far."""
        return min(self.faults) if self.faults else None

    def look(self, block: bytes) -> None:
        """Look at the next octets."""
        self.size += len(block)
        if self.size > self._limit:
            self.faults.add(Fault.TOO_BIG)
        if has_bare_newline(block):
            self.faults.add(Fault.BARE_NEWLINE)
        if b"\0" in block:
            self.faults.add(Fault.NUL)
        if not block.isascii():
            self.eight_bit = True
            if self._seven_bit:
                self.faults.add(Fault.EIGHT_BIT)
        self._measure(block)

    def _measure(self, block: bytes) -> None:
        """Find lines that are too long, without looking at each line."""
        start = -self._line
        while len(block) - start > MAX_LINE:
            end = block.rfind(b"\n", max(start, 0), max(start + MAX_LINE, 0))
            if end < 0:
                self.faults.add(Fault.LONG_LINE)
                end = block.find(b"\n", max(start, 0))
                if end < 0:
                    self._line = (
                        MAX_LINE  # it is a fault already; how long is no matter
                    )
                    return
            start = end + 1
        last = block.rfind(b"\n", max(start, 0))
        self._line = len(block) - (start if last < 0 else last + 1)
