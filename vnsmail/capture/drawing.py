"""The pictures of a proof, as SVG: from where to where, and when. Pure.

Rules of this file: colours are classes, which the page's style sheet gives meaning;
every string goes through ``text``; a picture stays readable with twenty senders and
some hundred connections, and says in words what it leaves out.
"""

import html
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vnsmail.capture.fields import printable
from vnsmail.capture.proof import Connection
from vnsmail.capture.report import Report, kind, moment
from vnsmail.model import IPAddress

WIDTH = 960
"""Units of a picture; the page scales it to its own width."""

MAX_NODES = 60
"""Nodes of a column. The rest, right ones only, are one node."""

MAX_BARS = 5000

_ROW, _NODE = 46, 34
_LEFT, _RIGHT = 300, 300


def text(value: object) -> str:
    """Return anything as text that is nothing but text in HTML and in attributes."""
    return html.escape(printable(str(value)), quote=True)


class _Edge(NamedTuple):
    source: str
    target: str
    wrong: bool


def topology(report: Report) -> str:
    """Return a picture of senders, the addresses they used, and where they sent."""
    edges: Counter[_Edge] = Counter()
    sources: dict[str, tuple[str, set[IPAddress], bool]] = {}
    for host in report.proof.hosts:
        sources[host.sender.name] = (host.sender.context, set(host.seen), False)
    targets: dict[str, set[IPAddress]] = {}
    for each in report.proof.connections:
        what = kind(each)
        if what in {"incoming", "older"}:
            continue
        source = each.sender or str(each.flow.client)
        target = report.name(each.flow.server)
        targets.setdefault(target, set()).add(each.flow.server)
        _, addresses, _ = sources.setdefault(source, ("nobody here", set(), True))
        addresses.add(each.flow.client)
        edges[_Edge(source, target, what == "wrong")] += 1
    if not edges:
        return ""
    left = _chosen(list(sources), {e.source for e in edges if e.wrong})
    right = _chosen(list(targets), {e.target for e in edges if e.wrong})
    height = max(len(left), len(right)) * _ROW + 16
    places = {
        "left": {name: _middle(at, len(left), height) for at, name in enumerate(left)},
        "right": {
            name: _middle(at, len(right), height) for at, name in enumerate(right)
        },
    }
    parts = [*_edges(edges, places["left"], places["right"])]
    bad = {edge.source for edge in edges if edge.wrong}
    for name, y in places["left"].items():
        context, addresses, unknown = sources.get(name, ("", set(), False))
        mood = "bad" if unknown or name in bad else context
        below = ", ".join(map(str, _sorted(addresses))) or "no connection"
        parts.append(_node(8, y, _LEFT, name, f"{context} · {below}", mood))
    for name, y in places["right"].items():
        below = ", ".join(map(str, _sorted(targets.get(name, set()))))
        x = WIDTH - _RIGHT - 8
        parts.append(
            _node(x, y, _RIGHT, name, below if below != name else "", "remote")
        )
    return _svg(height, parts, "Senders, the addresses they used, and the servers")


def _chosen(names: list[str], wrong: set[str]) -> list[str]:
    """Return the names that are shown: those with something wrong in any case."""
    if len(names) <= MAX_NODES:
        return names
    kept = [name for name in names if name in wrong]
    others = [name for name in names if name not in wrong]
    shown = set(kept) | set(others[: max(0, MAX_NODES - len(kept))])
    return [name for name in names if name in shown]


def _sorted(addresses: set[IPAddress]) -> list[IPAddress]:
    return sorted(addresses, key=lambda a: (a.version, int(a)))


def _middle(at: int, count: int, height: int) -> float:
    return height / count * (at + 0.5)


def _edges(
    edges: Counter[_Edge], left: dict[str, float], right: dict[str, float]
) -> Iterator[str]:
    most = max(edges.values())
    # What is wrong is drawn last, and so on top.
    for edge, count in sorted(edges.items(), key=lambda pair: pair[0].wrong):
        if edge.source not in left or edge.target not in right:
            continue
        y1, y2 = left[edge.source], right[edge.target]
        x1, x2 = _LEFT + 8, WIDTH - _RIGHT - 8
        width = 1.2 + 3.2 * count / most
        bend = (x2 - x1) * 0.5
        mood = "bad" if edge.wrong else "good"
        told = f"{edge.source} to {edge.target}: {count} connections"
        yield (
            f'<path class="edge {mood}" stroke-width="{width:.1f}" d="M{x1} {y1:.1f}'
            f'C{x1 + bend:.0f} {y1:.1f} {x2 - bend:.0f} {y2:.1f} {x2} {y2:.1f}">'
            f"<title>{text(told)}{' (wrong)' if edge.wrong else ''}</title></path>"
        )


def _node(x: float, y: float, width: int, name: str, below: str, mood: str) -> str:
    top = y - _NODE / 2
    second = (
        f'<text class="small" x="{x + 14}" y="{y + 12:.1f}">{text(_cut(below, 46))}</text>'
        if below
        else ""
    )
    return (
        f'<g class="node {text(mood).replace(" ", "-")}"><title>{text(name)}: {text(below)}</title>'
        f'<rect x="{x}" y="{top:.1f}" width="{width}" height="{_NODE}" rx="7"/>'
        f'<rect class="mark" x="{x}" y="{top:.1f}" width="5" height="{_NODE}" rx="2.5"/>'
        f'<text x="{x + 14}" y="{y - 1 if below else y + 4:.1f}">{text(_cut(name, 36))}</text>'
        f"{second}</g>"
    )


def _cut(value: str, length: int) -> str:
    return value if len(value) <= length else f"{value[: length - 1]}…"


# Time ---------------------------------------------------------------------------

_NAMES = 190
_LANE, _BAR = 9, 6
_MAX_LANES = 8


def timeline(report: Report) -> str:
    """Return a picture of each sender's connections over time."""
    rows: dict[str, list[Connection]] = {
        host.sender.name: [] for host in report.proof.hosts
    }
    for each in report.proof.connections:
        if kind(each) != "incoming":
            rows.setdefault(each.sender or f"{each.flow.client} (nobody)", []).append(
                each
            )
    rows = {name: found for name, found in rows.items() if found}
    if not rows:
        return ""
    began = min(each.flow.began for found in rows.values() for each in found)
    ended = max(each.flow.ended for found in rows.values() for each in found)
    span = max(ended - began, 1_000_000)
    parts: list[str] = []
    y = 30.0
    for name, found in rows.items():
        lanes = _lanes(found, span)
        height = max(lanes.values()) * _LANE + _LANE + 10
        parts.append(
            f'<line class="rule" x1="0" x2="{WIDTH}" y1="{y:.0f}" y2="{y:.0f}"/>'
            f'<text x="4" y="{y + height / 2 + 4:.0f}">{text(_cut(name, 26))}</text>'
        )
        parts += [
            _bar(each, began, span, y + 5 + lanes[at] * _LANE)
            for at, each in enumerate(found[:MAX_BARS])
        ]
        y += height
    axis = [*_axis(began, span, y)]
    return _svg(y + 8, [*axis, *parts], "Connections of each sender over time")


def _x(time: int, began: int, span: int) -> float:
    return _NAMES + (WIDTH - _NAMES - 12) * (time - began) / span


def _lanes(found: Sequence[Connection], span: int) -> dict[int, int]:
    """Return a lane for each connection, so that few lie on each other."""
    gap = span // 200
    free: list[int] = []
    lanes: dict[int, int] = {}
    for at, each in enumerate(found):
        lane = next(
            (n for n, until in enumerate(free) if until <= each.flow.began), len(free)
        )
        lane = lane if lane < _MAX_LANES else at % _MAX_LANES
        if lane == len(free):
            free.append(0)
        free[lane] = max(free[lane], each.flow.ended + gap)
        lanes[at] = lane
    return lanes


def _bar(each: Connection, began: int, span: int, y: float) -> str:
    flow = each.flow
    x = _x(flow.began, began, span)
    width = max(3.0, _x(flow.ended, began, span) - x)
    told = (
        f"{moment(flow.began)} {flow.client}:{flow.client_port} to {flow.server}, "
        f"{flow.packets} packets, {len(each.said.transactions)} messages"
        f"{', TLS' if each.said.encrypted else ''}"
    )
    problems = "".join(f"; {problem}" for problem in each.problems)
    return (
        f'<rect class="bar {kind(each)}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
        f'height="{_BAR}" rx="2"><title>{text(told)}{text(problems)}</title></rect>'
    )


_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)


def _axis(began: int, span: int, bottom: float) -> Iterator[str]:
    seconds = span / 1e9
    step = next((s for s in _STEPS if seconds / s <= 8), _STEPS[-1]) * 1.0
    if seconds < 3:
        step = next(s for s in (0.001, 0.005, 0.02, 0.1, 0.25, 0.5) if seconds / s <= 8)
    tick = 0.0
    while tick <= seconds:
        at = _x(began + int(tick * 1e9), began, span)
        yield (
            f'<line class="tick" x1="{at:.1f}" x2="{at:.1f}" y1="20" y2="{bottom:.0f}"/>'
            f'<text class="small" x="{at + 3:.1f}" y="14">+{_seconds(tick)}</text>'
        )
        tick += step


def _seconds(value: float) -> str:
    if value >= 3600:
        return f"{value / 3600:g} h"
    if value >= 60:
        return f"{value // 60:.0f}:{value % 60:02.0f} min"
    return f"{value:g} s" if value >= 1 or not value else f"{value * 1000:g} ms"


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<div class="scroll"><svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{text(label)}">{"".join(parts)}</svg></div>'
    )
