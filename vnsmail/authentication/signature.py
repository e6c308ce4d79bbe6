"""The tags of a DKIM-Signature or ARC-Message-Signature, checked. Pure.

RFC 6376 sections 3.5 and 6.1.1, with RFC 8301 (no SHA-1) and RFC 8463.

Rules of this file: what is not well formed says so in a few words of ours, which may
stand in a header field.
"""

import re
from dataclasses import dataclass, replace
from typing import cast

from vnsmail.authentication.canonical import Form, canonical_field
from vnsmail.authentication.header_block import HeaderBlock, unfolded, value_of
from vnsmail.authentication.public_key import KeyType
from vnsmail.authentication.spf import is_name
from vnsmail.authentication.tags import (
    decoded,
    listed,
    number,
    parse_tags,
    without_white,
)
from vnsmail.message.headers import Field

MAX_FIELDS = 500
"""Names in h=, each of which is looked for."""

CLOCK_SKEW = 300
"""Seconds that the signer's clock may be ahead of ours."""

_SELECTOR = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")
_ALGORITHMS: dict[str, KeyType] = {"rsa-sha256": "rsa", "ed25519-sha256": "ed25519"}
_SIGNATURE_VALUE = re.compile(rb"((?:^|;)[ \t\r\n]*b[ \t\r\n]*=)[^;]*")


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature whose tags are as they should be."""

    field: Field
    algorithm: str
    kind: KeyType
    domain: str
    selector: str
    value: bytes
    """b=, decoded."""
    short: str
    """First characters of b=, which tell signatures apart (RFC 6008)."""
    body_hash: bytes
    header_form: Form
    body_form: Form
    signed: tuple[str, ...]
    """h=, in lower case."""
    length: int | None
    """l=: octets of the body that were signed; None is all."""
    identity: str
    """i=, as it is; empty where there is none."""

    @property
    def key_name(self) -> str:
        """Where DNS has the key."""
        return f"{self.selector}._domainkey.{self.domain}"


@dataclass(frozen=True, slots=True)
class Malformed:
    """A signature that cannot be verified."""

    why: str
    domain: str = ""
    selector: str = ""
    algorithm: str = ""
    policy: bool = False
    """It is well formed, but nothing that we accept."""


def parse_signature(
    field: Field, now: float, *, arc: bool = False
) -> Signature | Malformed:
    """Return the signature in a field.

    Args:
        field: a DKIM-Signature, or an ARC-Message-Signature.
        now: seconds since the epoch.
        arc: it is the latter, which has no v= and an i= of another meaning.
    """
    tags = parse_tags(unfolded(field))
    if tags is None:
        return Malformed("it is no list of tags")
    who = Malformed("", *_who(tags))
    missing = [t for t in ("a", "b", "bh", "d", "h", "s") if not tags.get(t)]
    if missing:
        return replace(who, why=f"it has no {missing[0]}=")
    if not is_name(who.domain) or not _SELECTOR.fullmatch(who.selector):
        return Malformed("d= or s= is no name")
    if who.algorithm not in _ALGORITHMS:
        known = who.algorithm == "rsa-sha1"
        why = "SHA-1 proves nothing" if known else "its algorithm is unknown"
        return replace(who, why=why, policy=known, algorithm="")
    problem = _problem(tags, arc=arc) or _problem_of_time(tags, now)
    if problem:
        return replace(who, why=problem)
    return _signature(field, tags, who, arc=arc)


def _who(tags: dict[str, str]) -> tuple[str, str, str]:
    domain = without_white(tags.get("d", "")).lower().removesuffix(".")
    selector = without_white(tags.get("s", ""))
    return domain, selector, without_white(tags.get("a", "")).lower()


def _problem(tags: dict[str, str], *, arc: bool) -> str:
    """Return what is wrong with further tags; empty if nothing is."""
    signed = listed(tags["h"])
    wrong = {
        "ARC has no v=": arc and "v" in tags,
        "its version is not 1": not arc and tags.get("v") != "1",
        "h= names too many fields": len(signed) > MAX_FIELDS,
        "From is not signed": not arc and "from" not in signed,
        "ARC-Seal must not be signed": arc and "arc-seal" in signed,
        "q= knows another place for keys": "dns/txt"
        not in listed(tags.get("q", "dns/txt")),
        "l= is no number": "l" in tags and number(tags["l"]) is None,
    }
    return next((why for why, is_so in wrong.items() if is_so), "")


def _problem_of_time(tags: dict[str, str], now: float) -> str:
    made, expires = number(tags.get("t")), number(tags.get("x"))
    if ("t" in tags and made is None) or ("x" in tags and expires is None):
        return "t= or x= is no time"
    if made is not None and made > now + CLOCK_SKEW:
        return "it is from the future"
    if expires is not None and (expires < now or expires <= (made or 0)):
        return "it has expired"
    return ""


def _signature(
    field: Field, tags: dict[str, str], who: Malformed, *, arc: bool
) -> Signature | Malformed:
    value, body_hash = decoded(tags["b"]), decoded(tags["bh"])
    if not value or not body_hash:
        return replace(who, why="b= or bh= is no base64")
    header_form, slash, body_form = (
        without_white(tags.get("c", "simple/simple")).lower().partition("/")
    )
    body_form = body_form if slash else "simple"
    if not {header_form, body_form} <= {"simple", "relaxed"}:
        return replace(who, why="c= is unknown")
    identity = "" if arc else without_white(tags.get("i", ""))
    of = identity.rpartition("@")[2].lower()
    if identity and of != who.domain and not of.endswith(f".{who.domain}"):
        return replace(who, why="i= is not of d=")
    return Signature(
        field=field,
        algorithm=who.algorithm,
        kind=_ALGORITHMS[who.algorithm],
        domain=who.domain,
        selector=who.selector,
        value=value,
        short=without_white(tags["b"])[:8],
        body_hash=body_hash,
        header_form=cast("Form", header_form),
        body_form=cast("Form", body_form),
        signed=listed(tags["h"]),
        length=number(tags.get("l")),
        identity=identity,
    )


def signed_data(block: HeaderBlock, signature: Signature) -> bytes:
    """Return what the signer hashed of the header block (section 3.7)."""
    left: dict[str, list[Field]] = {}
    for field in block.fields:
        left.setdefault(field.name, []).append(field)
    # From the bottom up; one that is not there is nothing (section 5.4.2).
    chosen = [
        canonical_field(left[name].pop(), signature.header_form)
        for name in signature.signed
        if left.get(name)
    ]
    own = canonical_field(without_value(signature.field), signature.header_form)
    return b"".join(chosen) + own.removesuffix(b"\r\n")


def without_value(field: Field) -> Field:
    """Return a signature's field with nothing in its b=."""
    name = field.raw[: len(field.raw) - len(value_of(field))]
    value = value_of(field)
    ending = b"\r\n" if value.endswith(b"\r\n") else b""
    emptied = _SIGNATURE_VALUE.sub(rb"\1", value.removesuffix(b"\r\n"), count=1)
    return Field(field.name, name + emptied + ending)
