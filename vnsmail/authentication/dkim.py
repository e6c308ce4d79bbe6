"""DKIM: who took responsibility for a message (RFC 6376, section 6)? Pure.

The bodies' hashes come from outside, as a body may be large: ``wanted_forms`` says which
are needed, and a table of them is given to ``verify``.

Rules of this file: one signature more costs no more than one question and one check,
and there are ten at most. A signature that covers a part of the body only (l=) is
"policy": whoever holds the message could have put anything behind it.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from vnsmail.authentication.canonical import BodyHash, Form
from vnsmail.authentication.header_block import HeaderBlock
from vnsmail.authentication.public_key import KeyProblem, PublicKey, read_key
from vnsmail.authentication.questions import Asking, Question
from vnsmail.authentication.signature import (
    Malformed,
    Signature,
    parse_signature,
    signed_data,
)

MAX_SIGNATURES = 10
"""Signatures of a message that are verified, those of its author's domain first."""


class DkimResult(StrEnum):
    """The words of RFC 8601 section 2.7.1."""

    NONE = "none"
    PASS = "pass"  # noqa: S105  no password
    FAIL = "fail"
    POLICY = "policy"
    NEUTRAL = "neutral"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


@dataclass(frozen=True, slots=True)
class Dkim:
    """What one signature is worth."""

    result: DkimResult
    reason: str = ""
    """Words of ours."""
    domain: str = ""
    selector: str = ""
    algorithm: str = ""
    short: str = ""
    testing: bool = False


@dataclass(frozen=True, slots=True)
class Hashed:
    """A body in one canonical form."""

    digest: bytes
    size: int


BodyHashes: TypeAlias = Mapping[Form, Hashed]


def hash_body(pieces: Iterable[bytes], forms: Iterable[Form]) -> dict[Form, Hashed]:
    """Return the hashes of a body that comes in pieces."""
    hashing = {form: BodyHash(form) for form in forms}
    for piece in pieces:
        for each in hashing.values():
            each.update(piece)
    return {form: Hashed(h.finish(), h.size) for form, h in hashing.items()}


def signatures(
    block: HeaderBlock, authors: Iterable[str], now: float
) -> tuple[Signature | Malformed, ...]:
    """Return the signatures that are to be verified.

    Args:
        block: of the message.
        authors: domains in From: theirs come first where there are too many.
        now: seconds since the epoch.
    """
    wanted = tuple(authors)
    fields = block.named("dkim-signature")[: 5 * MAX_SIGNATURES]
    parsed = [parse_signature(field, now) for field in fields]
    parsed.sort(key=lambda each: not any(_related(each.domain, a) for a in wanted))
    return tuple(parsed[:MAX_SIGNATURES])


def _related(domain: str, author: str) -> bool:
    return bool(domain) and (author == domain or author.endswith(f".{domain}"))


def wanted_forms(found: Iterable[Signature | Malformed]) -> frozenset[Form]:
    """Return the forms of the body whose hashes are needed."""
    return frozenset(each.body_form for each in found if isinstance(each, Signature))


def verify(
    block: HeaderBlock, signature: Signature | Malformed, bodies: BodyHashes
) -> Asking[Dkim]:
    """Return what a signature is worth; asks for its key if that can matter."""
    if isinstance(signature, Malformed):
        result = DkimResult.POLICY if signature.policy else DkimResult.PERMERROR
        return Dkim(
            result,
            signature.why,
            signature.domain,
            signature.selector,
            signature.algorithm,
        )
    answer = yield Question(signature.key_name, "TXT")
    key = read_key(answer, signature.kind)
    result, reason = judge(block, signature, bodies, key)
    return Dkim(
        result,
        reason,
        signature.domain,
        signature.selector,
        signature.algorithm,
        signature.short,
        testing=isinstance(key, PublicKey) and key.testing,
    )


def judge(
    block: HeaderBlock,
    signature: Signature,
    bodies: BodyHashes,
    key: PublicKey | KeyProblem,
) -> tuple[DkimResult, str]:
    """Return the result of a signature, and why, with what DNS says of its key."""
    if isinstance(key, KeyProblem):
        results = {
            KeyProblem.TROUBLE: DkimResult.TEMPERROR,
            KeyProblem.WEAK: DkimResult.POLICY,
        }
        return results.get(key, DkimResult.PERMERROR), key.value
    of = signature.identity.rpartition("@")[2].lower()
    if key.strict and of and of != signature.domain:
        return DkimResult.PERMERROR, "i= is below d=, which its key does not allow"
    return _judge_body(signature, bodies[signature.body_form]) or _judge_header(
        block, signature, key
    )


def _judge_body(signature: Signature, body: Hashed) -> tuple[DkimResult, str] | None:
    length = body.size if signature.length is None else signature.length
    if length > body.size:
        return DkimResult.FAIL, "the body is shorter than it was"
    if length < body.size:
        return DkimResult.POLICY, "a part of the body is not signed"
    if body.digest != signature.body_hash:
        return DkimResult.FAIL, "the body was changed"
    return None


def _judge_header(
    block: HeaderBlock, signature: Signature, key: PublicKey
) -> tuple[DkimResult, str]:
    data = hashlib.sha256(signed_data(block, signature)).digest()
    if not key.verifies(signature.value, data):
        return DkimResult.FAIL, "the header was changed, or the key is another"
    return DkimResult.PASS, ""
