"""``vnsmail top``: what the hosts are doing, as it changes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import typer

from vnsmail.cli import client
from vnsmail.cli.options import AsJson, layout_of
from vnsmail.cli.render import age, as_json, live, table
from vnsmail.engines.protocol import OwnerReport, Tally
from vnsmail.settings import Layout
from vnsmail.supervisor import control

COLUMNS = (
    "host",
    "queued",
    "deferred",
    "oldest",
    "in/s",
    "out/s",
    "defer/s",
    "fail/s",
    "sessions",
    "connects/s",
    "state",
)

SHOWN = 200
"""Hosts in the table; those with nothing to do come last."""


@dataclass(frozen=True, slots=True)
class Row:
    """One host in one interval; rates are a second."""

    host: str
    queued: int
    deferred: int
    oldest: float | None
    """When its oldest message arrived, seconds since the epoch."""
    accepted: float
    sent: float
    """Recipients that a remote took, or whose mailbox is here."""
    deferrals: float
    failures: float
    sessions: int
    connections: float
    state: str
    resting: tuple[tuple[str, float, str], ...]
    """Destinations that are down: name, until when, what was met."""


@dataclass(frozen=True, slots=True)
class _Look:
    at: float
    reports: tuple[OwnerReport, ...]
    tallies: dict[str, Tally]


def top(
    context: typer.Context,
    interval: Annotated[
        float, typer.Option(help="Seconds between two looks.", min=0.2, max=3600)
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="One look, and end.")] = False,
    json: AsJson = False,
) -> None:
    """Show what the hosts are doing, the busiest first, until q or Ctrl-C."""
    layout = layout_of(context)
    before = _look(layout)
    if once or json:
        time.sleep(interval)
        found = rows(before, _look(layout))
        if json:
            as_json(found)
        else:
            table("hosts", COLUMNS, [_cells(row) for row in found], "no hosts")
        return
    live(_drawing(layout, before), interval)


def _drawing(
    layout: Layout, before: _Look
) -> Callable[[], tuple[str, tuple[str, ...], list[tuple[object, ...]]]]:
    last = before

    def draw() -> tuple[str, tuple[str, ...], list[tuple[object, ...]]]:
        nonlocal last
        now = _look(layout)
        found, last = rows(last, now), now
        queued = sum(row.queued for row in found)
        title = f"{len(found)} hosts, {queued} messages queued; q ends"
        return title, COLUMNS, [_cells(row) for row in found[:SHOWN]]

    return draw


def _look(layout: Layout) -> _Look:
    status = client.ask(layout, control.GetStatus(), control.Status)
    tallies = {}
    for report in status.owners:
        try:
            told = client.ask(layout, control.GetTally(report.owner), control.Told)
        except client.Refused:  # it is going, or is the machine
            continue
        tallies[report.owner] = told.tally
    return _Look(time.monotonic(), status.owners, tallies)


def rows(before: _Look, now: _Look) -> list[Row]:
    """Return what happened between two looks, the busiest host first."""
    seconds = max(now.at - before.at, 1e-3)
    found = [
        _row(report, before.tallies.get(report.owner), now.tallies, seconds)
        for report in now.reports
    ]
    found.sort(key=lambda row: (-row.accepted - row.sent, -row.queued, row.host))
    return found


def _row(
    report: OwnerReport,
    before: Tally | None,
    now: dict[str, Tally],
    seconds: float,
) -> Row:
    after = now.get(report.owner) or Tally(0.0)
    # Counted anew, it says nothing of the interval.
    start = before if before and before.since == after.since else after

    def rate(*names: str) -> float:
        grown = sum(int(getattr(after, n) - getattr(start, n)) for n in names)
        return round(grown / seconds, 1)

    return Row(
        host=report.owner,
        queued=report.messages,
        deferred=report.deferred,
        oldest=report.oldest,
        accepted=rate("accepted"),
        sent=rate("sent", "delivered"),
        deferrals=rate("deferred"),
        failures=rate("failed"),
        sessions=report.sessions,
        connections=rate("connections_out"),
        state=_state(report),
        resting=report.resting,
    )


def _state(report: OwnerReport) -> str:
    if report.suspended:
        return "suspended"
    if report.held:
        return f"no source since {age(report.held_since)}: {report.held}"
    if report.problem:
        return report.problem
    if report.resting:
        names = ", ".join(name for name, _, _ in report.resting[:3])
        return f"{len(report.resting)} down: {names}"
    return "ok"


def _cells(row: Row) -> tuple[object, ...]:
    return (
        row.host,
        row.queued,
        row.deferred,
        age(row.oldest),
        row.accepted,
        row.sent,
        row.deferrals,
        row.failures,
        row.sessions,
        row.connections,
        row.state,
    )
