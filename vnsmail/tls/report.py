"""How TLS to other servers went, counted for reports (RFC 8460). Pure.

By day (UTC), destination and kind of policy: connections that had what was wanted, and
failures by what failed and where. It is kept small: so many days, destinations and
failures, and beyond them only the numbers.
"""

from typing import Any

import msgspec

REPORT_FILE = "tls-report.json"

DAYS = 8
"""Days kept; a report is made of the day before."""
MOST_DESTINATIONS = 2000
"""Of one day."""
MOST_FAILURES = 50
"""Kinds of failure told apart, of one destination."""

KINDS = {"mta-sts": "sts", "dane": "tlsa"}
"""What wants it so (tls.policy.Step.by) to the policy-type of section 4.4."""


class Failure(msgspec.Struct):
    """Failures of one kind at one server."""

    kind: str
    """A result type of section 4.3."""
    remote: str
    address: str
    source: str = ""
    reason: str = ""
    """What the last one said."""
    count: int = 0


class Tls(msgspec.Struct):
    """One destination on one day, under one kind of policy."""

    successes: int = 0
    failed: int = 0
    failures: list[Failure] = []
    policy: tuple[str, ...] = ()
    mx: tuple[str, ...] = ()


Day = dict[str, Tls]
"""By destination and policy type, with a blank between."""


class Report:
    """The counters of one owner."""

    def __init__(self, days: dict[str, Day] | None = None) -> None:
        self.days: dict[str, Day] = days or {}

    def success(self, day: str, domain: str, policy: str) -> None:
        """Count a connection that had what was wanted."""
        if (found := self._of(day, domain, policy)) is not None:
            found.successes += 1

    def failure(self, day: str, domain: str, policy: str, failure: Failure) -> None:
        """Count one that had not."""
        found = self._of(day, domain, policy)
        if found is None:
            return
        found.failed += 1
        for each in found.failures:
            if (each.kind, each.remote, each.address) == (
                failure.kind,
                failure.remote,
                failure.address,
            ):
                each.count += 1
                each.reason = failure.reason
                return
        if len(found.failures) < MOST_FAILURES:
            failure.count = 1
            found.failures.append(failure)

    def _of(self, day: str, domain: str, policy: str) -> Tls | None:
        if day not in self.days:
            self.days[day] = {}
            for old in sorted(self.days)[:-DAYS]:
                del self.days[old]
        today = self.days.get(day)
        if today is None:
            return None
        key = f"{domain} {policy}"
        if key not in today and len(today) >= MOST_DESTINATIONS:
            return None
        return today.setdefault(key, Tls())

    def of_day(self, day: str) -> list[dict[str, Any]]:
        """Return the policies of a report (section 4.4), a destination each."""
        told = []
        for key, found in sorted(self.days.get(day, {}).items()):
            domain, _, kind = key.partition(" ")
            told.append(_policy(domain, kind, found))
        return told


def _policy(domain: str, kind: str, found: Tls) -> dict[str, Any]:
    policy: dict[str, Any] = {"policy-type": kind, "policy-domain": domain}
    if found.policy:
        policy["policy-string"] = list(found.policy)
    if found.mx:
        policy["mx-host"] = list(found.mx)
    told: dict[str, Any] = {
        "policy": policy,
        "summary": {
            "total-successful-session-count": found.successes,
            "total-failure-session-count": found.failed,
        },
    }
    if found.failures:
        told["failure-details"] = [_details(each) for each in found.failures]
    return told


def _details(failure: Failure) -> dict[str, Any]:
    pairs = {
        "result-type": failure.kind,
        "sending-mta-ip": failure.source,
        "receiving-mx-hostname": failure.remote,
        "receiving-ip": failure.address,
        "failed-session-count": failure.count,
        "failure-reason-code": failure.reason,
    }
    return {name: value for name, value in pairs.items() if value}
