"""DMARC: does the author's domain stand by a message (RFC 7489)? Pure.

Rules of this file: only the domains in From count; what nobody can say now is
"temperror" and is never a reason to refuse. Where several domains are in From, the
strictest policy of those that fail is followed (section 6.6.1).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TypeAlias

from vnsmail.authentication.dkim import Dkim, DkimResult
from vnsmail.authentication.questions import Asking, Question
from vnsmail.authentication.spf import Spf, SpfResult
from vnsmail.authentication.tags import number, parse_tags

Organizational: TypeAlias = Callable[[str], str]
"""Returns the organizational domain of a domain (section 3.2)."""


class DmarcResult(StrEnum):
    """The words of RFC 7489 section 11.2."""

    NONE = "none"
    PASS = "pass"  # noqa: S105  no password
    FAIL = "fail"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


class Disposition(IntEnum):
    """What a domain wants of mail that fails; the larger is the stricter."""

    NONE = 0
    QUARANTINE = 1
    REJECT = 2

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Policy:
    """A record (section 6.3)."""

    policy: Disposition
    subdomains: Disposition
    strict_dkim: bool
    strict_spf: bool
    percent: int


@dataclass(frozen=True, slots=True)
class Dmarc:
    """What DMARC says of one domain in From."""

    result: DmarcResult
    domain: str = ""
    policy: Disposition = Disposition.NONE
    """What the domain publishes."""
    disposition: Disposition = Disposition.NONE
    """What it wants done with this message."""
    reason: str = ""


def evaluate(
    domain: str,
    spf: Spf,
    dkim: Iterable[Dkim],
    organizational: Organizational,
    chance: float,
) -> Asking[Dmarc]:
    """Return what DMARC says of one domain in From.

    Args:
        domain: in lower case, as A-labels.
        spf: of the reverse-path.
        dkim: of all signatures.
        organizational: knows the public suffixes.
        chance: 0 to 1, which messages a policy for some percent is for.
    """
    found = yield from _discover(domain, organizational)
    if isinstance(found, str):
        return Dmarc(DmarcResult.TEMPERROR, domain, reason=found)
    if found is None:
        return Dmarc(DmarcResult.NONE, domain)
    policy, of = found

    def aligned(other: str, *, strict: bool) -> bool:
        if other == domain or strict:
            return other == domain
        return organizational(other) == organizational(domain)

    wanted = policy.policy if of == domain else policy.subdomains
    outcomes = [
        each.result for each in dkim if aligned(each.domain, strict=policy.strict_dkim)
    ]
    passed = DkimResult.PASS in outcomes
    unsure = DkimResult.TEMPERROR in outcomes
    if aligned(spf.domain, strict=policy.strict_spf):
        passed = passed or spf.result is SpfResult.PASS
        unsure = unsure or spf.result is SpfResult.TEMPERROR
    if passed:
        return Dmarc(DmarcResult.PASS, domain, wanted)
    if unsure:
        why = "DNS did not answer what would decide it"
        return Dmarc(DmarcResult.TEMPERROR, domain, wanted, reason=why)
    sampled = _sampled(wanted, policy.percent, chance)
    return Dmarc(DmarcResult.FAIL, domain, wanted, sampled)


def _sampled(wanted: Disposition, percent: int, chance: float) -> Disposition:
    """Return what is wanted of one message (section 6.6.4): some get the next milder."""
    if chance * 100 < percent or wanted is Disposition.NONE:
        return wanted
    return Disposition(wanted - 1)


def _discover(
    domain: str, organizational: Organizational
) -> Asking[tuple[Policy, str] | str | None]:
    """Return the policy and whose it is (section 6.6.3), none, or the trouble."""
    for each in dict.fromkeys((domain, organizational(domain))):
        answer = yield Question(f"_dmarc.{each}", "TXT")
        if answer.trouble:
            return answer.trouble
        records = [text for text in answer.values if _is_record(text)]
        if len(records) > 1:
            return None
        if records:
            policy = parse_policy(records[0])
            return None if policy is None else (policy, each)
    return None


def _is_record(text: str) -> bool:
    name, equals, value = text.partition(";")[0].partition("=")
    return bool(equals) and name.strip() == "v" and value.strip() == "DMARC1"


def parse_policy(text: str) -> Policy | None:
    """Return the policy in a record; None if it is to be ignored (section 6.6.3)."""
    tags = parse_tags(text)
    if tags is None or next(iter(tags), "") != "v" or not _is_record(text):
        return None
    words = {each.word: each for each in Disposition}
    policy = words.get(tags.get("p", "").lower())
    subdomains = words.get(
        tags.get("sp", "none" if policy is None else policy.word).lower()
    )
    if policy is None or subdomains is None:
        if not tags.get("rua", "").lower().startswith("mailto:"):
            return None
        policy = subdomains = Disposition.NONE
    percent = number(tags.get("pct", "100"))
    return Policy(
        policy,
        subdomains,
        strict_dkim=tags.get("adkim", "r").lower() == "s",
        strict_spf=tags.get("aspf", "r").lower() == "s",
        percent=100 if percent is None or percent > 100 else percent,
    )


def strictest(found: Iterable[Dmarc]) -> Dmarc:
    """Return the one of several that decides: the strictest that fails, else trouble."""
    order = {
        DmarcResult.PASS: 0,
        DmarcResult.NONE: 1,
        DmarcResult.PERMERROR: 2,
        DmarcResult.TEMPERROR: 3,
        DmarcResult.FAIL: 4,
    }
    nothing = Dmarc(DmarcResult.PERMERROR, reason="there is no domain in From")
    return max(
        found, key=lambda each: (each.disposition, order[each.result]), default=nothing
    )
