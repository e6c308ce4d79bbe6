"""The macros of SPF (RFC 7208 section 7). Pure.

Rules of this file: what is expanded is a name to ask DNS for, never more than 253
octets; the macros of explanations (c, r, t) do not exist here, as no explanation is
ever asked for: its text would be a stranger's in our replies.
"""

import ipaddress
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

from vnsmail.errors import VnsmailError
from vnsmail.model import IPAddress

MAX_NAME = 253
"""Octets of a name; a longer one loses labels on the left (section 7.3)."""

_EXPAND = re.compile(r"%(?:\{([slodipvhSLODIPVH])([0-9]*)([rR]?)([.\-+,/_=]*)\}|[%_-])")
_LITERAL = re.compile(r"[\x21-\x24\x26-\x7e]*")
_PLAIN = {"%%": "%", "%_": " ", "%-": "%20"}


class SpfSyntaxError(VnsmailError):
    """A record of SPF that is not well formed."""

    def __init__(self, term: str, problem: str) -> None:
        super().__init__(term, problem)
        self.term, self.problem = term, problem

    def __str__(self) -> str:
        return f"{self.term[:60]}: {self.problem}"


@dataclass(frozen=True, slots=True)
class MacroFacts:
    """What the macros stand for."""

    address: IPAddress
    sender: str
    """With local part and domain."""
    domain: str
    """The domain whose record is being evaluated."""
    helo: str


def check_macros(text: str) -> None:
    """Check a macro-string.

    Raises:
        SpfSyntaxError: a macro is not well formed, or a character is not allowed.
    """
    at = 0
    while at < len(text):
        literal = _LITERAL.match(text, at)
        at = literal.end() if literal else at
        if at == len(text):
            return
        macro = _EXPAND.match(text, at)
        if macro is None or (macro[2] and int(macro[2][:9]) == 0):
            raise SpfSyntaxError(text, "a macro or character is wrong")
        at = macro.end()


def wants_name(text: str) -> bool:
    """Say whether the client's name is needed to expand a macro-string."""
    return any(m[1] in {"p", "P"} for m in _EXPAND.finditer(text) if m[1])


def expand(text: str, facts: MacroFacts, name: Callable[[], str]) -> str:
    """Return a checked domain-spec with its macros expanded, as a name.

    Args:
        text: the domain-spec.
        facts: what the macros stand for.
        name: returns the client's verified name, asked only for macro ``p``.
    """
    whole = _EXPAND.sub(lambda macro: _value(macro, facts, name), text)
    whole = whole.removesuffix(".")
    while len(whole) > MAX_NAME and "." in whole:
        whole = whole.partition(".")[2]
    return whole


def _value(macro: re.Match[str], facts: MacroFacts, name: Callable[[], str]) -> str:
    letter = macro[1]
    if letter is None:
        return _PLAIN[macro[0]]
    value = _letter(letter.lower(), facts, name)
    digits, reverse, delimiters = macro[2], macro[3], macro[4] or "."
    if digits or reverse or macro[4]:
        parts = re.split(f"[{re.escape(delimiters)}]", value)
        if reverse:
            parts.reverse()
        keep = int(digits[:9]) if digits else len(parts)
        value = ".".join(parts[-keep:])
    return urllib.parse.quote(value, safe="-._~") if letter.isupper() else value


def _letter(letter: str, facts: MacroFacts, name: Callable[[], str]) -> str:
    if letter == "p":
        return name()
    local_part, _, domain = facts.sender.rpartition("@")
    return {
        "s": facts.sender,
        "l": local_part,
        "o": domain,
        "d": facts.domain,
        "i": _dotted(facts.address),
        "v": "in-addr" if facts.address.version == 4 else "ip6",
        "h": facts.helo,
    }[letter]


def _dotted(address: IPAddress) -> str:
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return ".".join(address.exploded.replace(":", ""))
