"""The body of one message on its way in, by DATA or by BDAT (RFC 3030): octets and faults.

Rules of this file: what is given out cuts no CRLF in two, and is what the client meant:
dot-stuffing is undone for DATA, and there is none in BDAT. A fault is one from where it
is found on; the worst of all, wherever it was, is the one that is told in the end.
"""

from vnsmail.smtp.body import BodyDecoder
from vnsmail.smtp.content import REPLIES, ContentCheck, Fault


class BodyIntake:
    """Takes one body.

    Args:
        limit: octets it may have.
        seven_bit: octets beyond ASCII are a fault.
    """

    def __init__(self, limit: int, *, seven_bit: bool) -> None:
        self._check = ContentCheck(limit, seven_bit=seven_bit)
        self._decoder = BodyDecoder(looked_at=True)
        self._limit = limit
        self._held = b""
        """A CR at the end of a chunk; its LF may be the next one's first octet."""

    @property
    def faults(self) -> set[Fault]:
        """What is wrong so far; nothing is given out from the first on."""
        return self._check.faults

    @property
    def worst(self) -> bytes | None:
        """The reply that refuses the body; None if it is sound so far."""
        worst = self._check.worst
        return None if worst is None else REPLIES[worst]

    @property
    def size(self) -> int:
        """Octets given out so far."""
        return self._check.size

    @property
    def eight_bit(self) -> bool:
        """There was an octet beyond ASCII."""
        return self._check.eight_bit

    def feed(self, data: bytes) -> tuple[bytes, bool, bytes]:
        """Take octets that follow DATA; see BodyDecoder.feed."""
        payload, end, rest = self._decoder.feed(data)
        if payload:
            self._check.look(payload)
        return payload, end, rest

    def expect(self, size: int) -> None:
        """A chunk of that many octets begins. One that is too big is not waited for."""
        if self._check.size + len(self._held) + size > self._limit:
            self.faults.add(Fault.TOO_BIG)

    def feed_chunk(self, data: bytes, *, last: bool) -> bytes:
        """Take octets of a chunk; return those of the body that are certain now.

        Args:
            data: the next octets.
            last: they are the last of the body.
        """
        data, self._held = self._held + data, b""
        if not last and data.endswith(b"\r"):
            data, self._held = data[:-1], b"\r"
        if data:
            self._check.look(data)
        return data
