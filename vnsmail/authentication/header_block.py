"""The header block of a message, as signatures see it. Pure.

Rules of this file: bytes are looked at and never changed; a block that is not one of
fields is None, so that what two programs may read differently is never verified or
signed. Time is linear.
"""

from dataclasses import dataclass

from vnsmail.message.headers import Field, parse_header

MAX_HEADER = 512 * 1024
"""Bytes of a header block that is looked at."""

END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class HeaderBlock:
    """The fields of a message, and where its body begins."""

    fields: tuple[Field, ...]
    body_at: int
    """Octets before the body: the fields and the empty line."""

    def named(self, name: str) -> tuple[Field, ...]:
        """Return the fields of a name in lower case, from the top."""
        return tuple(field for field in self.fields if field.name == name)


def header_block(front: bytes, *, whole: bool = False) -> HeaderBlock | None:
    """Return the header block at the front of a message, if it is one.

    Args:
        front: the message, or enough of its front.
        whole: ``front`` is the whole message, so that the block may end with it.
    """
    end = 0 if front.startswith(b"\r\n") else front.find(END) + 2
    if end == 1:
        if not (whole and front.endswith(b"\r\n")):
            return None
        end = len(front)
    header = parse_header(front[:end])
    if header.rest:
        return None
    return HeaderBlock(header.fields, min(end + 2, len(front)))


def value_of(field: Field) -> bytes:
    """Return what stands behind the colon, as it is."""
    return field.raw.partition(b":")[2]


def unfolded(field: Field) -> str:
    """Return what stands behind the colon on one line, as Latin-1."""
    return value_of(field).replace(b"\r\n", b"").decode("latin-1").strip()


def readable_fields(front: bytes) -> HeaderBlock:
    """Return all fields up to the first empty line, lines that are none left out.

    That is how lenient readers see a message whose header block is not well formed: no
    signature of it is looked at, but its author is.
    """
    end = 0 if front.startswith(b"\r\n") else front.find(END) + 2
    left = front if end == 1 else front[:end]
    fields: list[Field] = []
    while left:
        header = parse_header(left)
        fields += header.fields
        left = header.rest.partition(b"\r\n")[2]
    return HeaderBlock(tuple(fields), len(front))
