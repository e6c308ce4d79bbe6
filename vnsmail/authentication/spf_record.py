"""An SPF record as values (RFC 7208 sections 4.6, 5, 6 and 12). Pure.

Rules of this file: the whole record is read before any of it is believed; whatever the
grammar does not have is SpfSyntaxError. Time is linear in the length of the record.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from vnsmail.authentication.spf_macro import SpfSyntaxError, check_macros

VERSION = "v=spf1"

Kind: TypeAlias = Literal["all", "include", "a", "mx", "ptr", "ip4", "ip6", "exists"]

_KINDS = {"all", "include", "a", "mx", "ptr", "ip4", "ip6", "exists"}
_QUALIFIERS = "+-?~"
_MODIFIER = re.compile(r"([A-Za-z][A-Za-z0-9_.-]*)=(.*)")
_CIDR = re.compile(r"(?:/(0|[1-9][0-9]{0,2}))?(?://(0|[1-9][0-9]{0,2}))?$")
_LONGEST_CIDR = 9
_TOP_LABEL = re.compile(
    r"(?=[A-Za-z0-9-]*[A-Za-z-])[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
)


@dataclass(frozen=True, slots=True)
class Mechanism:
    """One mechanism of a record."""

    kind: Kind
    qualifier: str
    """``+``, ``-``, ``?`` or ``~``."""
    domain: str = ""
    """Domain-spec with its macros; empty where the current domain is meant."""
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    """Of ip4 and ip6."""
    prefix4: int = 32
    prefix6: int = 128
    """Bits that an address of a or mx has to share with the client's."""


@dataclass(frozen=True, slots=True)
class SpfRecord:
    """A record that is well formed."""

    mechanisms: tuple[Mechanism, ...]
    redirect: str = ""
    """Domain-spec with its macros; empty where there is none."""


def is_record(text: str) -> bool:
    """Say whether a TXT record is one of SPF (section 4.5)."""
    head = text[: len(VERSION) + 1].lower()
    return head == VERSION or head == VERSION + " "


def parse_record(text: str) -> SpfRecord:
    """Return a record as values.

    Raises:
        SpfSyntaxError: it is not well formed, which is "permerror".
    """
    mechanisms: list[Mechanism] = []
    modifiers: dict[str, str] = {}
    for term in text[len(VERSION) :].split(" "):
        if not term:
            continue
        modifier = _MODIFIER.fullmatch(term)
        if modifier is None:
            mechanisms.append(_mechanism(term))
            continue
        name, value = modifier[1].lower(), modifier[2]
        if name in {"redirect", "exp"}:
            if name in modifiers:
                raise SpfSyntaxError(term, "it is given twice")
            _check_domain(value, term)
            modifiers[name] = value
        else:
            check_macros(value)
    return SpfRecord(tuple(mechanisms), modifiers.get("redirect", ""))


def _mechanism(term: str) -> Mechanism:
    qualifier, rest = ("+", term)
    if term[0] in _QUALIFIERS:
        qualifier, rest = term[0], term[1:]
    end = next((at for at, c in enumerate(rest) if c in ":/"), len(rest))
    name, argument = rest[:end].lower(), rest[end:]
    if name not in _KINDS:
        raise SpfSyntaxError(term, "there is no such mechanism")
    kind = cast("Kind", name)
    match kind:
        case "all":
            if argument:
                raise SpfSyntaxError(term, "all takes no argument")
            return Mechanism(kind, qualifier)
        case "ip4" | "ip6":
            return Mechanism(kind, qualifier, network=_network(kind, argument, term))
        case "include" | "exists":
            if not argument.startswith(":"):
                raise SpfSyntaxError(term, "a domain is missing")
            _check_domain(argument[1:], term)
            return Mechanism(kind, qualifier, argument[1:])
        case "ptr":
            domain = _optional_domain(argument, term)
            return Mechanism(kind, qualifier, domain)
        case "a" | "mx":
            return _with_prefixes(kind, qualifier, argument, term)


def _with_prefixes(kind: Kind, qualifier: str, argument: str, term: str) -> Mechanism:
    # A slash may stand in a domain-spec too, so only the end is looked at.
    found = _CIDR.search(argument, max(0, len(argument) - _LONGEST_CIDR))
    if found is None:  # cannot be: it matches nothing at all at the end
        raise SpfSyntaxError(term, "the prefix length is wrong")
    prefix4 = 32 if found[1] is None else int(found[1])
    prefix6 = 128 if found[2] is None else int(found[2])
    if prefix4 > 32 or prefix6 > 128:
        raise SpfSyntaxError(term, "the prefix length is too large")
    domain = _optional_domain(argument[: found.start()], term)
    return Mechanism(kind, qualifier, domain, None, prefix4, prefix6)


def _network(
    kind: Kind, argument: str, term: str
) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    address, slash, prefix = argument.removeprefix(":").partition("/")
    most = 32 if kind == "ip4" else 128
    bad = SpfSyntaxError(term, "this is no network")
    if not argument.startswith(":"):
        raise bad
    if slash and not (
        re.fullmatch(r"0|[1-9][0-9]{0,2}", prefix) and int(prefix) <= most
    ):
        raise bad
    try:
        if kind == "ip4":
            return ipaddress.IPv4Network(
                (ipaddress.IPv4Address(address), int(prefix or 32)), strict=False
            )
        if "%" in address:  # a scope is no part of the grammar
            raise bad
        return ipaddress.IPv6Network(
            (ipaddress.IPv6Address(address), int(prefix or 128)), strict=False
        )
    except ValueError:
        raise bad from None


def _optional_domain(argument: str, term: str) -> str:
    if not argument:
        return ""
    if not argument.startswith(":"):
        raise SpfSyntaxError(term, "a colon is missing")
    _check_domain(argument[1:], term)
    return argument[1:]


def _check_domain(spec: str, term: str) -> None:
    """Check a domain-spec (section 7.1): it ends with a macro or a top label."""
    if not spec:
        raise SpfSyntaxError(term, "a domain is missing")
    check_macros(spec)
    if spec.endswith("}") and "%{" in spec:
        return
    labels = spec.removesuffix(".").rsplit(".", 1)
    if len(labels) < 2 or not _TOP_LABEL.fullmatch(labels[1]):
        raise SpfSyntaxError(term, "this is no domain")
