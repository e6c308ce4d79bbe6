"""The domains that a message says it is from (RFC 7489 section 6.6.1). Pure.

Rules of this file: every domain that a reader may take for the author's is found, also
where the field is not well formed: what is odd must not be a way around a policy. Time
is linear; comments, quoted strings and groups are read as RFC 5322 section 3.4 has them.
"""

from collections.abc import Iterator

from vnsmail.authentication.header_block import HeaderBlock, value_of
from vnsmail.errors import BadInput
from vnsmail.model import domain_name

MAX_AUTHORS = 8
"""Domains that are looked at."""


def author_domains(block: HeaderBlock) -> tuple[str, ...]:
    """Return the domains in the From fields, each once, in the order they stand.

    Those that DNS cannot be asked for (address literals, nonsense) are left out.
    """
    found: dict[str, None] = {}
    for field in block.named("from"):
        for address in addresses(_text(value_of(field))):
            try:
                found[domain_name(address.rpartition("@")[2])] = None
            except BadInput:
                continue
    return tuple(found)[: MAX_AUTHORS + 1]


def _text(value: bytes) -> str:
    value = value.replace(b"\r\n", b"")
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def addresses(text: str) -> Iterator[str]:
    """Give what stands for addresses in a list of mailboxes, quoted parts as ``_``."""
    plain = without_quotes(text)
    for part in plain.replace(";", ",").split(","):
        pieces = part.split("<")[1:] or [part.rpartition(":")[2]]
        for piece in pieces:
            yield from (w for w in piece.partition(">")[0].split() if "@" in w)


def without_quotes(text: str) -> str:
    """Return text without comments, with ``_`` for each quoted string."""
    kept: list[str] = []
    depth, quoted, at = 0, False, 0
    while at < len(text):
        each = text[at]
        at += 1
        if each == "\\" and (quoted or depth):
            at += 1
        elif quoted:
            quoted = each != '"'
        elif each == '"' and not depth:
            quoted = True
            kept.append("_")
        elif each == "(":
            depth += 1
        elif each == ")" and depth:
            depth -= 1
        elif not depth:
            kept.append(each)
    # What is never closed may hide an address that readers see all the same.
    return text if quoted or depth else "".join(kept)
