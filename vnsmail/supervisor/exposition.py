"""What is measured, in Prometheus' text format. Pure.

The format is version 0.0.4 of prometheus.io/docs/instrumenting/exposition_formats: for
each metric a line of help, one of type, and a line for each sample. Written here and not
by prometheus-client, whose module brings an HTTP server, TLS and threads into the process
that runs as root; its parser judges the text in the tests.

Rules of this file: values in, text out; a name says its unit, and a counter ends in
``_total``; the labels are ``host`` and ``process``; what is not known is left out, never
zero.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from vnsmail import __version__
from vnsmail.engines.protocol import OwnerReport
from vnsmail.supervisor.control import Guarded, ProcessStatus, Watched

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Kind: TypeAlias = Literal["gauge", "counter"]
Sample: TypeAlias = tuple[Mapping[str, str], float]


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that is measured, at one moment."""

    now: float
    """Seconds since the epoch."""
    owners: tuple[OwnerReport, ...] = ()
    problems: frozenset[str] = frozenset()
    """Owners that are not served, or whose mail does not flow."""
    processes: tuple[ProcessStatus, ...] = ()
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes resident, by process."""
    drifts: Mapping[str, int] = field(default_factory=dict)
    """How often others changed the network, by host, since the start."""
    guards: Mapping[str, Guarded] | None = None
    """None where nothing can be guarded."""
    sockets: Mapping[str, int] | None = None
    """Requests to the broker by outcome, since it was started; None while it is not."""
    audit: Watched | None = None
    """What the audit found; None or ``off`` where there is none."""


def text(facts: Facts) -> str:
    """Return the exposition."""
    lines = [line for each in _metrics(facts) for line in each]
    return "\n".join(lines) + "\n"


def _metrics(facts: Facts) -> Iterator[list[str]]:
    own = {"version": __version__}
    yield _metric("vnsmail_info", "gauge", "The version that runs.", [(own, 1)])
    yield from _owners(facts)
    yield from _guards(facts.guards)
    yield from _processes(facts)
    drifts = [({"host": host}, count) for host, count in sorted(facts.drifts.items())]
    yield _metric(
        "vnsmail_network_drifts_total",
        "counter",
        "Times that others changed the network of a host.",
        drifts,
    )
    if facts.audit is not None and facts.audit.state != "off":
        yield from _audit(facts.audit)
    if facts.sockets is not None:
        yield _metric(
            "vnsmail_broker_requests_total",
            "counter",
            "Requests of workers for sockets: opened, unavailable here, or refused.",
            [({"outcome": key}, count) for key, count in facts.sockets.items()],
        )


def _owners(facts: Facts) -> Iterator[list[str]]:
    reported = {report.owner: report for report in facts.owners}
    troubled = facts.problems | {o for o, r in reported.items() if r.problem}
    everyone = sorted(troubled | reported.keys())
    yield _metric(
        "vnsmail_host_ok",
        "gauge",
        "1 if a host is served and its mail flows, else 0.",
        [({"host": owner}, owner not in troubled) for owner in everyone],
    )
    table: tuple[tuple[str, str, Callable[[OwnerReport], float]], ...] = (
        (
            "host_source_missing",
            "1 if mail waits for an address or the network of a host, else 0.",
            lambda r: bool(r.held),
        ),
        ("sessions", "Sessions of SMTP that are open.", lambda r: r.sessions),
        ("queue_messages", "Messages in the queue.", lambda r: r.messages),
        (
            "queue_deferred_messages",
            "Messages in the queue that were tried, and wait.",
            lambda r: r.deferred,
        ),
        (
            "queue_oldest_age_seconds",
            "Age of the oldest message in the queue.",
            lambda r: max(0.0, facts.now - r.oldest) if r.oldest else 0,
        ),
    )
    for name, help_text, value in table:
        samples = [({"host": r.owner}, value(r)) for r in facts.owners]
        yield _metric(f"vnsmail_{name}", "gauge", help_text, samples)


def _guards(guards: Mapping[str, Guarded] | None) -> Iterator[list[str]]:
    if guards is None:
        return
    table: tuple[tuple[str, str, Callable[[Guarded], float]], ...] = (
        (
            "dropped_packets",
            "Packets of a host to ports of mail, from an address not its own.",
            lambda g: g.dropped_packets,
        ),
        ("dropped_bytes", "Bytes of those.", lambda g: g.dropped_bytes),
        (
            "borrowed_packets",
            "Packets of others to ports of mail, from an address of the host.",
            lambda g: g.borrowed_packets,
        ),
    )
    for name, help_text, value in table:
        samples = [({"host": host}, value(guards[host])) for host in sorted(guards)]
        yield _metric(f"vnsmail_guard_{name}_total", "counter", help_text, samples)


def _audit(audit: Watched) -> Iterator[list[str]]:
    table = (
        ("packets", "Packets that the audit looked at.", audit.packets),
        ("connections", "Connections that it saw begin.", audit.connections),
        (
            "wrong_connections",
            "Those from an address that is not their sender's.",
            audit.wrong,
        ),
        ("dropped_packets", "Packets that it had no room for.", audit.dropped),
    )
    for name, help_text, value in table:
        yield _metric(
            f"vnsmail_audit_{name}_total", "counter", help_text, [({}, value)]
        )


def _processes(facts: Facts) -> Iterator[list[str]]:
    yield _metric(
        "vnsmail_process_up",
        "gauge",
        "1 if a process runs, else 0.",
        [({"process": p.name}, p.state == "running") for p in facts.processes],
    )
    yield _metric(
        "vnsmail_process_restarts_total",
        "counter",
        "Times that a process ended and was started again.",
        [({"process": p.name}, p.restarts) for p in facts.processes],
    )
    yield _metric(
        "vnsmail_process_resident_memory_bytes",
        "gauge",
        "Memory of a process that is in use.",
        [({"process": name}, size) for name, size in facts.memory.items()],
    )


def _metric(
    name: str, kind: Kind, help_text: str, samples: Iterable[Sample]
) -> list[str]:
    lines = [
        f"{name}{_labels(labels)} {float(value):.17g}" for labels, value in samples
    ]
    if not lines:
        return []
    return [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}", *lines]


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
