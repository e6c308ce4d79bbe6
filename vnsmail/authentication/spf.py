"""SPF: may this client send mail of that domain (RFC 7208)? Pure.

Rules of this file: every limit of section 4.6.4 holds, so whatever a record says, it
costs a bounded number of questions; trouble with DNS is "temperror" and nothing else.
"""

import ipaddress
from dataclasses import dataclass
from enum import StrEnum

from vnsmail.authentication.questions import Answer, Asking, Question, Record
from vnsmail.authentication.spf_macro import (
    MacroFacts,
    SpfSyntaxError,
    expand,
    wants_name,
)
from vnsmail.authentication.spf_record import (
    Mechanism,
    SpfRecord,
    is_record,
    parse_record,
)
from vnsmail.errors import VnsmailError
from vnsmail.model import IPAddress

MAX_LOOKUPS = 10
"""Terms of all records together that ask DNS (section 4.6.4)."""

MAX_VOID = 2
"""Questions that may be answered with nothing."""

MAX_NAMES = 10
"""Mail exchangers of one mx, and names of one ptr."""


class SpfResult(StrEnum):
    """Section 2.6; the words of Authentication-Results."""

    NONE = "none"
    NEUTRAL = "neutral"
    PASS = "pass"  # noqa: S105  no password
    FAIL = "fail"
    SOFTFAIL = "softfail"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


_BY_QUALIFIER = {
    "+": SpfResult.PASS,
    "-": SpfResult.FAIL,
    "?": SpfResult.NEUTRAL,
    "~": SpfResult.SOFTFAIL,
}


@dataclass(frozen=True, slots=True)
class Spf:
    """What SPF says of one identity."""

    result: SpfResult
    domain: str
    """The domain that was asked."""
    reason: str = ""
    """Why it is an error, for the log; empty else."""


class _Ended(VnsmailError):
    """The evaluation cannot go on."""

    def __init__(self, result: SpfResult, reason: str) -> None:
        super().__init__(result, reason)
        self.result, self.reason = result, reason


def check_host(address: IPAddress, sender: str, helo: str) -> Asking[Spf]:
    """Return what the domain of a sender says of a client.

    Args:
        address: of the client.
        sender: reverse-path; empty for the null one, which stands for
            ``postmaster`` at the HELO name (section 2.4).
        helo: what the client calls itself.
    """
    local_part, _, domain = (sender or f"postmaster@{helo}").rpartition("@")
    domain = domain.lower().removesuffix(".")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if not is_name(domain):
        return Spf(SpfResult.NONE, domain)
    identity = f"{local_part or 'postmaster'}@{domain}"
    evaluation = _Evaluation(address, identity, helo)
    try:
        result = yield from evaluation.check(domain)
    except _Ended as error:
        return Spf(error.result, domain, error.reason)
    return Spf(result, domain)


def is_name(text: str) -> bool:
    """Say whether DNS can be asked for a name of two labels or more."""
    labels = text.split(".")
    return (
        len(labels) > 1
        and len(text) <= 253
        and text.isascii()
        and not any(c in "[]:@ " or c < "!" for c in text)
        and all(0 < len(label) <= 63 for label in labels)
        and not labels[-1].isdigit()
    )


class _Evaluation:
    """One evaluation with what it may still ask."""

    def __init__(self, address: IPAddress, sender: str, helo: str) -> None:
        self._address = address
        self._sender = sender
        self._helo = helo
        self._lookups = 0
        self._void = 0
        self._names: dict[str, str] = {}
        """The client's verified name, by the domain that asks for it."""

    def check(self, domain: str) -> Asking[SpfResult]:
        """Evaluate the record of a domain (section 4)."""
        record = yield from self._record(domain)
        if record is None:
            return SpfResult.NONE
        for mechanism in record.mechanisms:
            if (yield from self._matches(mechanism, domain)):
                return _BY_QUALIFIER[mechanism.qualifier]
        if not record.redirect or any(m.kind == "all" for m in record.mechanisms):
            return SpfResult.NEUTRAL
        self._count()
        target = yield from self._target(record.redirect, domain)
        result = SpfResult.NONE
        if is_name(target):
            result = yield from self.check(target)
        if result is SpfResult.NONE:
            reason = f"redirect to {target}, which has no record"
            raise _Ended(SpfResult.PERMERROR, reason)
        return result

    def _record(self, domain: str) -> Asking[SpfRecord | None]:
        answer = yield Question(domain, "TXT")
        if answer.trouble:
            raise _Ended(SpfResult.TEMPERROR, answer.trouble)
        records = [text for text in answer.values if is_record(text)]
        if not records:
            return None
        if len(records) > 1:
            raise _Ended(SpfResult.PERMERROR, f"{domain} has several records")
        try:
            return parse_record(records[0])
        except SpfSyntaxError as error:
            reason = f"the record of {domain}: {error}"
            raise _Ended(SpfResult.PERMERROR, reason) from None

    def _matches(self, mechanism: Mechanism, domain: str) -> Asking[bool]:
        if mechanism.kind == "all":
            return True
        if mechanism.network is not None:
            same = mechanism.network.version == self._address.version
            return same and self._address in mechanism.network
        self._count()
        target = yield from self._target(mechanism.domain, domain)
        return (yield from self._asks(mechanism, target))

    def _asks(self, mechanism: Mechanism, target: str) -> Asking[bool]:
        """Evaluate a mechanism that asks DNS."""
        match mechanism.kind:
            case "include":
                return (yield from self._include(target))
            case "a":
                return (yield from self._has_address(target, mechanism))
            case "mx":
                return (yield from self._has_exchanger(target, mechanism))
            case "exists":
                answer = yield from self._ask(target, "A")
                return bool(answer.values)
            case _:
                names = yield from self._verified_names()
                return any(_within(name, target.lower()) for name in names)

    def _include(self, target: str) -> Asking[bool]:
        result = SpfResult.NONE
        if is_name(target):
            result = yield from self.check(target)
        if result is SpfResult.NONE:
            reason = f"include of {target}, which has no record"
            raise _Ended(SpfResult.PERMERROR, reason)
        return result is SpfResult.PASS

    def _has_address(self, name: str, mechanism: Mechanism) -> Asking[bool]:
        record: Record = "A" if self._address.version == 4 else "AAAA"
        answer = yield from self._ask(name, record)
        prefix = mechanism.prefix4 if record == "A" else mechanism.prefix6
        network = ipaddress.ip_network((self._address, prefix), strict=False)
        return any(_parsed(text) in network for text in answer.values)

    def _has_exchanger(self, target: str, mechanism: Mechanism) -> Asking[bool]:
        answer = yield from self._ask(target, "MX")
        if len(answer.values) > MAX_NAMES:
            reason = f"{target} has more than {MAX_NAMES} mail exchangers"
            raise _Ended(SpfResult.PERMERROR, reason)
        for name in answer.values:
            if name and (yield from self._has_address(name, mechanism)):
                return True
        return False

    def _verified_names(self) -> Asking[list[str]]:
        """Return the client's names that have its address too (section 5.5)."""
        pointer = self._address.reverse_pointer
        answer = yield Question(pointer, "PTR")
        if answer.trouble:
            return []
        if not answer.values:
            self._found_nothing()
        record: Record = "A" if self._address.version == 4 else "AAAA"
        verified = []
        for name in answer.values[:MAX_NAMES]:
            found = yield Question(name, record)
            if self._address in {_parsed(text) for text in found.values}:
                verified.append(name.lower())
        return verified

    def _target(self, spec: str, domain: str) -> Asking[str]:
        if not spec:
            return domain
        name = "unknown"
        if wants_name(spec):
            if domain not in self._names:
                names = yield from self._verified_names()
                self._names[domain] = _best(names, domain)
            name = self._names[domain]
        facts = MacroFacts(self._address, self._sender, domain, self._helo)
        return expand(spec, facts, lambda: name)

    def _ask(self, name: str, record: Record) -> Asking[Answer]:
        if not _may_be_asked(name):
            answer = Answer(exists=False)
        else:
            answer = yield Question(name, record)
        if answer.trouble:
            raise _Ended(SpfResult.TEMPERROR, answer.trouble)
        if not answer.values:
            self._found_nothing()
        return answer

    def _count(self) -> None:
        self._lookups += 1
        if self._lookups > MAX_LOOKUPS:
            reason = f"more than {MAX_LOOKUPS} terms ask DNS"
            raise _Ended(SpfResult.PERMERROR, reason)

    def _found_nothing(self) -> None:
        self._void += 1
        if self._void > MAX_VOID:
            reason = f"more than {MAX_VOID} questions have no answer"
            raise _Ended(SpfResult.PERMERROR, reason)


def _may_be_asked(name: str) -> bool:
    return 0 < len(name) <= 253 and all(0 < len(x) <= 63 for x in name.split("."))


def _within(name: str, domain: str) -> bool:
    return name == domain or name.endswith(f".{domain}")


def _best(names: list[str], domain: str) -> str:
    """Return the name for macro p (section 7.3): the domain, one below it, or any."""
    below = [name for name in names if _within(name, domain)]
    if domain in below:
        return domain
    return (below or names or ["unknown"])[0]


def _parsed(text: str) -> IPAddress | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
