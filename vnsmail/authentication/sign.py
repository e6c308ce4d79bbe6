"""Signatures that we put on what our users send (RFC 6376 section 5, RFC 8463). Pure.

Rules of this file: a message is signed for a domain in its From and for no other; fields
that a reader sees are signed once more than they are there, so that none can be added;
the canonical forms are relaxed, which survive the hosts on the way.
"""

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from vnsmail.authentication.author import author_domains
from vnsmail.authentication.canonical import canonical_field
from vnsmail.authentication.header_block import HeaderBlock
from vnsmail.message.headers import Field

OVERSIGNED = (
    *("from", "to", "cc", "subject", "date", "message-id", "reply-to"),
    *("mime-version", "content-type", "content-transfer-encoding"),
)
"""What readers see or read by: signed once more than it is there (section 5.4)."""

SIGNED = (
    *("sender", "in-reply-to", "references", "list-id", "list-unsubscribe"),
    *("list-unsubscribe-post", "list-post", "list-help", "autocrypt"),
)
"""Signed where it is there. RFC 8058 section 4 wants List-Unsubscribe signed."""

_WIDTH = 76


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, and where DNS has its public half."""

    domain: str
    selector: str
    key: RSAPrivateKey | Ed25519PrivateKey

    @property
    def algorithm(self) -> str:
        rsa = isinstance(self.key, RSAPrivateKey)
        return "rsa-sha256" if rsa else "ed25519-sha256"

    def sign(self, digest: bytes) -> bytes:
        """Return the signature of a SHA-256 hash."""
        if isinstance(self.key, RSAPrivateKey):
            return self.key.sign(digest, PKCS1v15(), Prehashed(hashes.SHA256()))
        return self.key.sign(digest)


def keys_for(block: HeaderBlock, keys: Iterable[SigningKey]) -> tuple[SigningKey, ...]:
    """Return the keys that a message is to be signed with.

    Those of the domain in From; if it has none, those of the nearest domain above it.
    """
    found = tuple(keys)
    chosen: dict[SigningKey, None] = {}
    for author in author_domains(block):
        name = author
        while name:
            of = [key for key in found if key.domain == name]
            chosen |= dict.fromkeys(of)
            name = "" if of else name.partition(".")[2]
    return tuple(chosen)


def sign(
    block: HeaderBlock, body_hash: bytes, keys: Iterable[SigningKey], now: float
) -> bytes:
    """Return DKIM-Signature fields to put in front of a message.

    Args:
        block: the message's header block.
        body_hash: SHA-256 of its body in the relaxed form.
        keys: one signature is made with each.
        now: seconds since the epoch.
    """
    names = tuple(_names(block))
    left: dict[str, list[Field]] = {}
    for field in block.fields:
        left.setdefault(field.name, []).append(field)
    signed = b"".join(
        canonical_field(left[name].pop(), "relaxed") for name in names if left.get(name)
    )
    return b"".join(_one(names, signed, body_hash, key, int(now)) for key in keys)


def _names(block: HeaderBlock) -> Iterable[str]:
    for name in OVERSIGNED:
        yield from [name] * (len(block.named(name)) + 1)
    for name in SIGNED:
        yield from [name] * len(block.named(name))


def _one(
    names: Iterable[str], signed: bytes, body_hash: bytes, key: SigningKey, now: int
) -> bytes:
    head = _fold(
        [
            "DKIM-Signature: v=1;",
            f"a={key.algorithm};",
            "c=relaxed/relaxed;",
            f"d={key.domain};",
            f"s={key.selector};",
            f"t={now};",
            "h=" + ":".join(names) + ";",
            f"bh={base64.b64encode(body_hash).decode()};",
            "b=",
        ]
    )
    field = Field("dkim-signature", head.encode("ascii"))
    own = canonical_field(field, "relaxed").removesuffix(b"\r\n")
    value = key.sign(hashlib.sha256(signed + own).digest())
    text = base64.b64encode(value).decode()
    lines = [text[at : at + _WIDTH - 2] for at in range(0, len(text), _WIDTH - 2)]
    # White space within b= is no part of it (section 3.5).
    folded = "".join(f"\r\n\t {line}" for line in lines)
    return f"{head}{folded}\r\n".encode("ascii")


def _fold(tags: Iterable[str]) -> str:
    lines = [""]
    for tag in tags:
        for word in _pieces(tag):
            glued = word.startswith(":")
            space = "" if glued or not lines[-1] else " "
            if lines[-1] and len(lines[-1]) + len(space + word) > _WIDTH:
                lines.append(f"\t{word}")
            else:
                lines[-1] += space + word
    return "\r\n".join(lines)


def _pieces(tag: str) -> Iterable[str]:
    """Give a tag in pieces that may stand on lines of their own."""
    first, *rest = tag.split(":") if tag.startswith("h=") else [tag]
    yield first
    for name in rest:
        yield f":{name}"
