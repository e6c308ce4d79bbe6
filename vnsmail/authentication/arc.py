"""ARC: what those who passed a message on had found before (RFC 8617)? Pure.

Rules of this file: a chain is whole or it fails (section 5.2); who sealed it is told,
so that others decide whom to believe.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from vnsmail.authentication.canonical import canonical_field
from vnsmail.authentication.dkim import BodyHashes, DkimResult, judge
from vnsmail.authentication.header_block import HeaderBlock, unfolded
from vnsmail.authentication.public_key import KeyProblem, KeyType, read_key
from vnsmail.authentication.questions import Asking, Question
from vnsmail.authentication.signature import (
    Malformed,
    Signature,
    parse_signature,
    without_value,
)
from vnsmail.authentication.spf import is_name
from vnsmail.authentication.tags import decoded, number, parse_tags, without_white
from vnsmail.message.headers import Field

MAX_INSTANCES = 50
"""Section 4.2.1."""

MAX_VERIFIED = 10
"""Seals that we check: each is a question and a check that a stranger asks for."""

_RESULTS, _MESSAGE, _SEAL = (
    "arc-authentication-results",
    "arc-message-signature",
    "arc-seal",
)
_SEAL_KINDS: dict[str, KeyType] = {"rsa-sha256": "rsa", "ed25519-sha256": "ed25519"}


class ArcResult(StrEnum):
    """The words of section 4.4, and of RFC 8601 for trouble."""

    NONE = "none"
    PASS = "pass"  # noqa: S105  no password
    FAIL = "fail"
    TEMPERROR = "temperror"


@dataclass(frozen=True, slots=True)
class ArcSet:
    """What one who passed the message on has put on it."""

    instance: int
    results: Field
    message: Field
    seal: Field


@dataclass(frozen=True, slots=True)
class Sealed:
    """One seal that holds, and what its maker had found."""

    domain: str
    results: str
    """Of ARC-Authentication-Results, behind ``i=N;``."""


@dataclass(frozen=True, slots=True)
class Arc:
    """What a chain is worth."""

    result: ArcResult
    reason: str = ""
    sealed: tuple[Sealed, ...] = ()
    """The newest first; none unless the result is "pass"."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The sets of a message."""

    sets: tuple[ArcSet, ...]
    newest: Signature | Malformed
    """The newest ARC-Message-Signature."""


def chain_of(block: HeaderBlock, now: float) -> Chain | str | None:
    """Return the chain on a message; None if there is none, words if it is broken."""
    found: dict[str, dict[int, Field]] = {_RESULTS: {}, _MESSAGE: {}, _SEAL: {}}
    for field in block.fields:
        kind = found.get(field.name)
        if kind is None:
            continue
        instance = _instance(field)
        if not instance or not 1 <= instance <= MAX_INSTANCES:
            return f"{field.name} without a right i="
        if instance in kind:
            return f"{field.name} {instance} is there twice"
        kind[instance] = field
    return _in_order(found, now)


def _in_order(found: Mapping[str, dict[int, Field]], now: float) -> Chain | str | None:
    count = max(map(len, found.values()))
    if not count:
        return None
    if any(set(kind) != set(range(1, count + 1)) for kind in found.values()):
        return "a set is not whole"
    if count > MAX_VERIFIED:
        return f"more than {MAX_VERIFIED} sets"
    sets = tuple(
        ArcSet(n, found[_RESULTS][n], found[_MESSAGE][n], found[_SEAL][n])
        for n in range(1, count + 1)
    )
    return Chain(sets, parse_signature(sets[-1].message, now, arc=True))


def _instance(field: Field) -> int | None:
    text = unfolded(field)
    if field.name != _RESULTS:
        return number((parse_tags(text) or {}).get("i"))
    name, equals, value = text.partition(";")[0].partition("=")
    return number(value.strip()) if equals and name.strip() == "i" else None


def verify_chain(block: HeaderBlock, chain: Chain, bodies: BodyHashes) -> Asking[Arc]:
    """Return what a chain is worth (section 5.2)."""
    for each in chain.sets:
        tags = parse_tags(unfolded(each.seal)) or {}
        if without_white(tags.get("cv", "")) != (
            "pass" if each.instance > 1 else "none"
        ):
            return Arc(ArcResult.FAIL, f"cv= of seal {each.instance} says so")
    newest = chain.newest
    if isinstance(newest, Malformed):
        return Arc(ArcResult.FAIL, f"newest message signature: {newest.why}")
    answer = yield Question(newest.key_name, "TXT")
    key = read_key(answer, newest.kind)
    result, reason = judge(block, newest, bodies, key)
    if result is DkimResult.TEMPERROR:
        return Arc(ArcResult.TEMPERROR, reason)
    if result is not DkimResult.PASS:
        return Arc(ArcResult.FAIL, f"newest message signature: {reason}")
    sealed = []
    for count in range(len(chain.sets), 0, -1):
        verdict = yield from _verify_seal(chain.sets[:count])
        if isinstance(verdict, Arc):
            return verdict
        sealed.append(verdict)
    return Arc(ArcResult.PASS, "", tuple(sealed))


def _verify_seal(sets: tuple[ArcSet, ...]) -> Asking[Sealed | Arc]:
    newest = sets[-1]
    tags = parse_tags(unfolded(newest.seal)) or {}
    domain = without_white(tags.get("d", "")).lower()
    selector = without_white(tags.get("s", ""))
    name = f"{selector}._domainkey.{domain}"
    kind = _SEAL_KINDS.get(without_white(tags.get("a", "")).lower())
    value = decoded(tags.get("b", ""))
    if kind is None or not value or "h" in tags or not is_name(name):
        return Arc(ArcResult.FAIL, f"seal {newest.instance} is not well formed")
    key = read_key((yield Question(name, "TXT")), kind)
    if key is KeyProblem.TROUBLE:
        return Arc(ArcResult.TEMPERROR, key.value)
    if isinstance(key, KeyProblem):
        return Arc(ArcResult.FAIL, f"seal {newest.instance}: {key.value}")
    if not key.verifies(value, hashlib.sha256(sealed_data(sets)).digest()):
        return Arc(ArcResult.FAIL, f"seal {newest.instance} does not hold")
    results = unfolded(newest.results).partition(";")[2].strip()
    return Sealed(domain, results)


def sealed_data(sets: tuple[ArcSet, ...]) -> bytes:
    """Return what the newest of some sets has sealed (section 5.1.1)."""
    parts = []
    for each in sets:
        parts += [canonical_field(each.results, "relaxed")]
        parts += [canonical_field(each.message, "relaxed")]
        if each is not sets[-1]:
            parts += [canonical_field(each.seal, "relaxed")]
    own = canonical_field(without_value(sets[-1].seal), "relaxed")
    return b"".join(parts) + own.removesuffix(b"\r\n")
