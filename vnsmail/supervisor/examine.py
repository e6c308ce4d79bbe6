"""What is as it should be, and what is not: the judgements of ``vnsmail doctor``. Pure.

Rules of this file: facts in, findings out; probe.py collects the facts from the kernel.
A finding that is not ``ok`` says what to do. What could not be looked at is ``unknown``
and never ``ok``.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from vnsmail.errors import VnsmailError
from vnsmail.model import HostName
from vnsmail.supervisor.control import Drift

Verdict: TypeAlias = Literal["ok", "wrong", "unknown"]

RECENT = 600.0
"""Seconds for which the restart of a process is told."""

LEAST_FREE = 0.02
"""Part of a file system, in bytes and in files, below which it counts as full."""

LEAST_FREE_BYTES = 256 * 1024 * 1024
"""Five messages of the greatest size that is accepted by default."""

BACKWARDS = 60.0
"""Seconds that a file may be from the future: file systems are not exact."""

A_HOST = 12
"""Descriptors for a host: six listeners, its queue, and mail under way."""

SPARE = 64
"""Descriptors for a process itself."""

AGAIN = "`vnsmail export | vnsmail apply -` makes it so, as does a restart"

_CONFINED = {
    "CapEff": "no capabilities",
    "CapPrm": "no capabilities to be had",
    "CapBnd": "no capabilities ever",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """How one thing is."""

    check: str
    """Which kind of thing."""
    subject: str
    """Which one: a host, a process, a file."""
    verdict: Verdict
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """What the kernel says of a process (proc_pid_status(5), proc_pid_limits(5))."""

    status: Mapping[str, str]
    own_network: bool
    """It is in another network namespace than the supervisor."""
    age: float
    """Seconds since it was started."""
    descriptors: int
    limit: int


def failed(check: str, subject: str, error: VnsmailError | OSError) -> Finding:
    """Return what an error says about a thing that could not be looked at."""
    text = error.strerror if isinstance(error, OSError) else None
    denied = isinstance(error, PermissionError)
    remedy = "run it as root" if denied else "see the text"
    return Finding(check, subject, "unknown", text or str(error), remedy)


def network(
    hosts: Iterable[HostName],
    concerned: Mapping[HostName, Sequence[str]],
    others: Iterable[str],
) -> Iterator[Finding]:
    """Judge the steps that a network plan still has.

    Args:
        hosts: those there should be.
        concerned: steps by host.
        others: steps for no host: they remove what is nobody's.
    """
    for host in hosts:
        steps = concerned.get(host, ())
        if steps:
            text = f"not as planned; to do: {', '.join(steps)}"
            yield Finding("network", host, "wrong", text, AGAIN)
        else:
            yield Finding("network", host, "ok", "as planned")
    orphans = list(others)
    for step in orphans:
        text = f"left over, of no host; to do: {step}"
        yield Finding("orphans", "network", "wrong", text, AGAIN)
    if not orphans:
        yield Finding("orphans", "network", "ok", "nothing of ours is without a host")


def folders(
    found: Iterable[str], hosts: Collection[str], where: str
) -> Iterator[Finding]:
    """Judge what lies among the hosts' folders, and what is missing there."""
    there = set(found)
    foreign = sorted(there - set(hosts))
    for name in foreign:
        text = f"{where}/{name} belongs to no host"
        yield Finding("orphans", name, "wrong", text, "look into it, then move it away")
    if not foreign:
        yield Finding("orphans", "folders", "ok", "each folder has its host")
    for name in sorted(set(hosts) - there):
        text = f"{where}/{name} is missing: no queue, no mailboxes"
        yield Finding(
            "queue", name, "wrong", text, "restart vnsmail; it makes the folder"
        )


def restarted(name: str, restarts: int, age: float) -> Finding | None:
    """Judge how steadily a process runs."""
    if restarts and age < RECENT:
        text = f"started again {int(age)} s ago, {restarts} times in all"
        return Finding("processes", name, "wrong", text, "see why in the log")
    return None


def drift(drifts: Iterable[Drift], now: float) -> Iterator[Finding]:
    """Judge what others did to the network lately."""
    found: dict[str, list[Drift]] = {}
    for each in drifts:
        if now - each.at < RECENT:
            found.setdefault(each.host, []).append(each)
    for host, those in found.items():
        last = those[-1]
        done = last.problem or "mended"
        text = f"changed by others {len(those)} times lately, {int(now - last.at)} s "
        text += f"ago the last time ({', '.join(last.missing)}: {done})"
        yield Finding("drift", host, "wrong", text, "find out who does it, and stop it")
    if not found:
        yield Finding("drift", "network", "ok", "nobody else changed it lately")


def confinement(name: str, facts: ProcessFacts) -> Finding:
    """Judge whether a worker can do nothing by itself."""
    status = facts.status
    missing = [
        words for key, words in _CONFINED.items() if int(status.get(key, "1"), 16)
    ]
    if status.get("NoNewPrivs") != "1":
        missing.append("no new privileges")
    if status.get("Seccomp") != "2":
        missing.append("a system call filter")
    if not facts.own_network:
        missing.append("an empty network")
    if missing:
        text = f"it should have {', '.join(missing)}"
        return Finding(
            "confinement", name, "wrong", text, "restart vnsmail; see the log"
        )
    text = "no capabilities, own network, system calls filtered"
    return Finding("confinement", name, "ok", text)


def privileges(name: str, facts: ProcessFacts, allowed: int) -> Finding:
    """Judge whether the broker has no more than it needs."""
    held = int(facts.status.get("CapEff", "0"), 16)
    if held & ~allowed:
        text = f"it has capabilities it should not have ({held & ~allowed:x})"
        return Finding(
            "confinement", name, "wrong", text, "restart vnsmail; see the log"
        )
    return Finding("confinement", name, "ok", "no more capabilities than it needs")


def descriptors(name: str, facts: ProcessFacts, hosts: int) -> Finding:
    """Judge whether a process may open as much as its hosts need."""
    needed = max(facts.descriptors, hosts * A_HOST) + SPARE
    text = f"{facts.descriptors} open, {facts.limit} allowed, {hosts} hosts"
    if facts.limit < needed:
        remedy = f"allow {needed} or more: LimitNOFILE= in the unit, or ulimit -Hn"
        return Finding("descriptors", name, "wrong", text, remedy)
    return Finding("descriptors", name, "ok", text)


def disk(where: str, free: int, total: int, files_free: int, files: int) -> Finding:
    """Judge the room on a file system."""
    room = f"{free / 2**30:.1f} GiB of {total / 2**30:.1f} GiB free"
    full = free < LEAST_FREE_BYTES or free < total * LEAST_FREE
    # Some file systems count no files.
    if full or (files and files_free < files * LEAST_FREE):
        text = f"{room}, {files_free} files of {files}"
        return Finding(
            "disk", where, "wrong", text, "make room: mail is refused when full"
        )
    return Finding("disk", where, "ok", room)


def banner(host: str, address: str, port: int, said: bytes | OSError) -> Finding:
    """Judge what was heard on a host's own port."""
    where = f"port {port} of {address}"
    if isinstance(said, OSError):
        text = f"{where}: {said.strerror or said}"
    elif said.startswith(b"220"):
        return Finding("listening", host, "ok", f"{where} answers")
    else:
        text = (
            f"{where} says {said[:60].decode(errors='replace').strip() or 'nothing'!r}"
        )
    return Finding("listening", host, "wrong", text, f"vnsmail host show {host}")


def reached(host: str, source: str, where: str, said: bytes | OSError) -> Finding:
    """Judge what a server said to a host that came from its own address."""
    remedy = (
        f"see `vnsmail host explain {host}`; many networks let nobody out on port 25"
    )
    if isinstance(said, OSError):
        text = f"{where} from {source}: {said.strerror or said}"
    elif said.startswith(b"220"):
        return Finding("reach", host, "ok", f"{where} answers to {source}")
    else:
        words = said[:60].decode(errors="replace").strip()
        text = f"{where} says {words or 'nothing'!r} to {source}"
    return Finding("reach", host, "wrong", text, remedy)


def guarded(host: str, problem: str, dropped: int, borrowed: int) -> Finding:
    """Judge what the kernel stopped of a host since its rules were made."""
    if problem:
        remedy = "see docs/how-to/mail-does-not-flow.md"
        return Finding("guard", host, "wrong", f"off: {problem}", remedy)
    if dropped or borrowed:
        text = (
            f"{dropped} packets from an address that is not its own, and {borrowed} of "
            "others from its addresses, were dropped since its rules were made"
        )
        remedy = "find the program: `ss -tnp` in its namespace, or on the machine"
        return Finding("guard", host, "wrong", text, remedy)
    return Finding("guard", host, "ok", "nothing had to be dropped")


def clock(now: float, newest: float, *, synchronized: bool) -> Finding:
    """Judge the clock: retries, signatures and certificates go by it.

    Args:
        now: seconds since the epoch.
        newest: when something of ours was written last, by the same clock.
        synchronized: the kernel says that somebody keeps it right.
    """
    if newest > now + BACKWARDS:
        text = f"it was set back by {int(newest - now)} s or more"
        remedy = "set it right, and restart vnsmail; mail waits by what it said before"
        return Finding("clock", "machine", "wrong", text, remedy)
    if not synchronized:
        remedy = "run chrony or systemd-timesyncd"
        return Finding("clock", "machine", "wrong", "nobody keeps it right", remedy)
    return Finding("clock", "machine", "ok", "kept right")
