"""MTA-STS: the record that says there is a policy, and the policy (RFC 8461). Pure.

Rules of this file: what cannot be understood is no policy, and the reason is told; fields
that nobody knows are passed over, as section 3.2 wants it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

MAX_AGE = 31_557_600
"""Seconds a policy can be kept for at most (section 3.2)."""

MAX_POLICY = 64 * 1024
"""Octets of a policy that are read (section 3.3)."""

_ID = re.compile(r"[A-Za-z0-9]{1,32}")
_NAME = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,62})\.)*[a-z0-9_][a-z0-9_-]{0,62}")


class Mode(StrEnum):
    """What becomes of mail that the policy does not allow (section 5)."""

    ENFORCE = "enforce"
    TESTING = "testing"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Policy:
    """What a domain says of its mail exchangers."""

    mode: Mode
    mx: tuple[str, ...]
    max_age: int
    """Seconds that it is good for."""

    def matches(self, exchanger: str) -> bool:
        """Say whether a mail exchanger is one of the policy's (section 4.1)."""
        name = exchanger.lower().rstrip(".")
        parent = name.partition(".")[2]
        return any(
            name == each
            or (each.startswith("*.") and bool(parent) and parent == each[2:])
            for each in self.mx
        )

    def lines(self) -> tuple[str, ...]:
        """Return it as it is written, for a report (RFC 8460 section 4.4)."""
        mx = tuple(f"mx: {each}" for each in self.mx)
        head = ("version: STSv1", f"mode: {self.mode}")
        return (*head, *mx, f"max_age: {self.max_age}")


class PolicyInvalid(ValueError):
    """It is no policy; the text says why."""


def policy_id(texts: Sequence[str]) -> str | None:
    """Return the id in the records of ``_mta-sts.DOMAIN``; None if there is no policy.

    More than one record counts as none (section 3.1).
    """
    found = [t for t in texts if re.match(r"v=STSv1[ \t]*(;|$)", t)]
    if len(found) != 1:
        return None
    for pair in found[0].split(";")[1:]:
        key, _, value = pair.strip(" \t").partition("=")
        if key.strip() == "id":
            value = value.strip()
            return value if _ID.fullmatch(value) else None
    return None


def parse(text: str) -> Policy:
    """Return the policy that a text is (section 3.2).

    Raises:
        PolicyInvalid: it is none.
    """
    first: dict[str, str] = {}
    mx: list[str] = []
    for line in text.replace("\r\n", "\n").split("\n"):
        key, colon, value = line.partition(":")
        key, value = key.strip(), value.strip()
        if not line.strip():
            continue
        if not colon:
            raise PolicyInvalid("a line is no pair of name and value")
        if key == "mx":
            mx.append(value.lower().rstrip("."))
        else:
            first.setdefault(key, value)
    if first.get("version") != "STSv1":
        raise PolicyInvalid("its version is not STSv1")
    try:
        mode = Mode(first.get("mode", ""))
    except ValueError:
        raise PolicyInvalid("its mode is not one of enforce, testing, none") from None
    age = first.get("max_age", "")
    if not (age.isascii() and age.isdecimal() and len(age) <= 10):
        raise PolicyInvalid("its max_age is no number of seconds")
    if mode is not Mode.NONE and not mx:
        raise PolicyInvalid("it names no mail exchanger")
    if not all(_NAME.fullmatch(each) for each in mx):
        raise PolicyInvalid("an mx of it is no name")
    return Policy(mode, tuple(mx), min(int(age), MAX_AGE))
