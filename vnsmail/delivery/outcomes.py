"""What is said of a recipient after an attempt. Pure.

Rules of this file: every Outcome that this project makes up itself is made here, so
that its codes are chosen in one place (RFC 3463); texts are one line, and say what a
person can do where there is something to do.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeAlias

from vnsmail.errors import ResolveError, VnsmailError
from vnsmail.model import Contact, Outcome, Verdict
from vnsmail.smtp.replies import Reply

Outcomes: TypeAlias = dict[str, Outcome]
"""By recipient, written as in the envelope."""

_VERDICTS = {2: Verdict.DELIVERED, 4: Verdict.DEFERRED, 5: Verdict.FAILED}


def from_reply(
    reply: Reply, remote: str, source: str, contact: Contact | None = None
) -> Outcome:
    """Return what a remote's last reply means for a recipient.

    A reply of another class than 2yz, 4yz or 5yz says nothing that could be relied on,
    so the recipient is tried again.
    """
    kind = reply.code // 100
    verdict = _VERDICTS.get(kind, Verdict.DEFERRED)
    enhanced = reply.enhanced
    if not enhanced.startswith(f"{kind}."):
        enhanced = f"{kind if kind in _VERDICTS else 4}.0.0"
    return Outcome(
        *(verdict, reply.code, enhanced, _line(reply.text), remote, source),
        contact=contact,
    )


def delivered(text: str) -> Outcome:
    """Return the outcome when a message is in a mailbox here: no remote was asked."""
    return Outcome(Verdict.DELIVERED, 250, "2.0.0", _line(text))


def deferred(code: int, enhanced: str, text: str, remote: str = "") -> Outcome:
    return Outcome(Verdict.DEFERRED, code, enhanced, _line(text), remote)


def failed(code: int, enhanced: str, text: str, remote: str = "") -> Outcome:
    return Outcome(Verdict.FAILED, code, enhanced, _line(text), remote)


def no_source(error: VnsmailError) -> Outcome:
    """Return the outcome when there was no socket to send from: nobody was asked."""
    return Outcome(
        Verdict.DEFERRED, 451, "4.4.0", _line(str(error)), not_an_attempt=True
    )


def trouble_here(error: object) -> Outcome:
    """Return the outcome when something of this system failed (RFC 3463: X.3.0)."""
    return deferred(451, "4.3.0", str(error))


def unresolved(error: ResolveError) -> Outcome:
    """Return the outcome when DNS could not say where a domain's mail goes."""
    if error.temporary:
        return replace(deferred(451, "4.4.3", str(error)), unreachable=True)
    return failed(550, "5.1.2", str(error))


def connection_failed(problem: str, remote: str) -> Outcome:
    return replace(deferred(421, "4.4.1", problem, remote), unreachable=True)


def no_tls(problem: str, remote: str) -> Outcome:
    """Return the outcome when a server is not, or may not be, the one that is meant."""
    return replace(deferred(454, "4.7.5", problem, remote), unreachable=True)


def not_signed_in(problem: str, remote: str) -> Outcome:
    """Return the outcome when a relay does not let the owner sign in.

    Whatever it said, it is for the postmaster here to mend, so the mail waits.
    """
    return replace(deferred(454, "4.7.8", problem, remote), unreachable=True)


def unwelcome(outcome: Outcome) -> Outcome:
    """Return what a server said that does not want us, whatever the message."""
    return replace(outcome, unreachable=outcome.verdict is Verdict.DEFERRED)


def expired(last: Outcome, lifetime: float) -> Outcome:
    """Return the outcome of a message that was tried for long enough.

    The status is 4.4.7 though the action is "failed": what was met is transient, and
    RFC 3464 section 2.3.4 wants it to be told so.
    """
    text = f"given up after {_duration(lifetime)}; the last answer was: {last.text}"
    return Outcome(
        Verdict.FAILED,
        last.reply_code,
        "4.4.7",
        text,
        last.remote,
        last.source,
        contact=last.contact,
    )


def is_expired(outcome: Outcome) -> bool:
    """Say whether a failure is that of a message that was tried for long enough."""
    return outcome.enhanced.startswith("4")


def hardest(outcomes: Iterable[Outcome]) -> Outcome:
    """Return what is said when no hop took the message, of what each of them said.

    Only if all of them refused for good is it for good; one that could not be reached
    may take it later (RFC 5321 section 5.1: each address is tried).
    """
    found = list(outcomes)
    waiting = [each for each in found if each.verdict is Verdict.DEFERRED]
    return (waiting or found)[-1]


def for_all(recipients: Iterable[str], outcome: Outcome) -> Outcomes:
    return dict.fromkeys(recipients, outcome)


def of(outcomes: Mapping[str, Outcome], *verdicts: Verdict) -> Outcomes:
    """Return those with one of these verdicts."""
    return {to: each for to, each in outcomes.items() if each.verdict in verdicts}


def _line(text: str) -> str:
    return " ".join(text.split())


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
