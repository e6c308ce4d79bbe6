"""Key records in DNS, and what they can verify (RFC 6376 section 3.6.1). Pure.

Rules of this file: RSA from 1024 to 4096 bits (RFC 8301; larger ones are work that a
stranger chooses for us) and Ed25519 (RFC 8463), with SHA-256 and nothing else.
"""

import base64
from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed as _Prehashed

from vnsmail.authentication.questions import Answer
from vnsmail.authentication.tags import decoded, listed, parse_tags

MIN_BITS, MAX_BITS = 1024, 4096

KeyType: TypeAlias = Literal["rsa", "ed25519"]


class KeyProblem(Enum):
    """Why there is no key to verify with."""

    TROUBLE = "dns trouble"
    MISSING = "no key"
    MALFORMED = "key record is not well formed"
    REVOKED = "key is revoked"
    UNFIT = "key is not for mail with this algorithm"
    WEAK = f"key is not of {MIN_BITS} to {MAX_BITS} bits"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that DNS has."""

    key: RSAPublicKey | Ed25519PublicKey
    testing: bool
    """t=y: the domain is trying DKIM out."""
    strict: bool
    """t=s: i= must be of d= itself, not below it."""

    def verifies(self, signature: bytes, signed: bytes) -> bool:
        """Say whether a signature over some data is by this key.

        Args:
            signature: as its tag has it, decoded.
            signed: SHA-256 of what was signed, which RFC 8463 section 3 signs in turn.
        """
        try:
            if isinstance(self.key, RSAPublicKey):
                prehashed = _Prehashed(hashes.SHA256())
                self.key.verify(signature, signed, PKCS1v15(), prehashed)
            else:
                self.key.verify(signature, signed)
        except InvalidSignature:
            return False
        return True


def read_key(answer: Answer, kind: KeyType) -> PublicKey | KeyProblem:
    """Return the key in the answer to a question for a selector's TXT record."""
    if answer.trouble:
        return KeyProblem.TROUBLE
    if not answer.values:
        return KeyProblem.MISSING
    # Section 3.6.2.2: with several the result is undefined. The first that is a key.
    found: PublicKey | KeyProblem = KeyProblem.MALFORMED
    for text in answer.values[:4]:
        found = parse_key(text, kind)
        if isinstance(found, PublicKey):
            break
    return found


def parse_key(text: str, kind: KeyType) -> PublicKey | KeyProblem:
    """Return the key that a record has for signatures of a kind."""
    tags = parse_tags(text)
    if tags is None or "p" not in tags or not _is_first_version(tags):
        return KeyProblem.MALFORMED
    if not _is_fit(tags, kind):
        return KeyProblem.UNFIT
    if not tags["p"]:
        return KeyProblem.REVOKED
    data = decoded(tags["p"])
    key = KeyProblem.MALFORMED if data is None else _load(data, kind)
    if isinstance(key, KeyProblem):
        return key
    flags = listed(tags.get("t", ""))
    return PublicKey(key, testing="y" in flags, strict="s" in flags)


def _is_fit(tags: dict[str, str], kind: KeyType) -> bool:
    services, algorithms = listed(tags.get("s", "*")), listed(tags.get("h", "sha256"))
    return (
        tags.get("k", "rsa").lower() == kind
        and "sha256" in algorithms
        and bool({"*", "email"} & set(services))
    )


def _is_first_version(tags: dict[str, str]) -> bool:
    """Say whether v= is right: it may be missing, and else stands first."""
    return "v" not in tags or (tags["v"] == "DKIM1" and next(iter(tags)) == "v")


def _load(data: bytes, kind: KeyType) -> RSAPublicKey | Ed25519PublicKey | KeyProblem:
    try:
        if kind == "ed25519":
            return Ed25519PublicKey.from_public_bytes(data)
        if len(data) > MAX_BITS:  # octets: eight times what the largest key takes
            return KeyProblem.WEAK
        key = _rsa(data)
    except (ValueError, UnsupportedAlgorithm):
        return KeyProblem.MALFORMED
    if not isinstance(key, RSAPublicKey):
        return KeyProblem.MALFORMED
    if not MIN_BITS <= key.key_size <= MAX_BITS:
        return KeyProblem.WEAK
    return key


def _rsa(data: bytes) -> object:
    """Load SubjectPublicKeyInfo, or the bare RSAPublicKey of RFC 6376's own text."""
    try:
        return serialization.load_der_public_key(data)
    except ValueError:
        head = b"-----BEGIN RSA PUBLIC KEY-----\n"
        tail = b"\n-----END RSA PUBLIC KEY-----\n"
        text = base64.b64encode(data)
        return serialization.load_pem_public_key(head + text + tail)
