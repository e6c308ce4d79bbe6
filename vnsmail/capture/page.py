"""A proof as one HTML page that needs nothing else. Pure.

No script, no font, no picture from anywhere: a policy in the page forbids them. Pictures
are SVG in the page (drawing.py), and take their colours from the page's style sheet, so
that light and dark are one document.

Rules of this file: whatever came off the wire, or out of a file, goes through ``text``;
what is wrong comes first, and nothing that is wrong is left out for length.
"""

from collections.abc import Iterable, Sequence

from vnsmail import __version__
from vnsmail.capture import drawing
from vnsmail.capture.drawing import text
from vnsmail.capture.proof import Connection, Judged, Verdict
from vnsmail.capture.report import Report, kind, moment, remarks
from vnsmail.capture.style import STYLE
from vnsmail.capture.witnesses import Testimony, Witness

MAX_ROWS = 1000
"""Rows of a table. A browser shows ten times as many, and nobody reads them."""


_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_FOOTER = (
    "Written by vnsmail {version} from packets, not from what vnsmail says it did."
)


def page(report: Report) -> str:
    """Return the document."""
    proof = report.proof
    title = f"vnsmail proof: {proof.verdict}"
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body><main>",
        _head(report),
        _problems(report),
        _section("From where to where", drawing.topology(report), "picture"),
        _section("When", drawing.timeline(report), "picture"),
        _section("Senders", _senders(report)),
        _section("Messages and their witnesses", _messages(report)),
        _section("Connections", _connections(report)),
        _remarks(report),
        f"<footer>{_FOOTER.format(version=text(__version__))}</footer>",
        "</main></body></html>\n",
    ]
    return "\n".join(filter(None, parts))


def _section(title: str, body: str, kind_: str = "") -> str:
    if not body:
        return ""
    return f'<section class="{kind_}"><h2>{title}</h2>{body}</section>'


def _head(report: Report) -> str:
    proof = report.proof
    passed = proof.verdict is Verdict.PASS
    mails = len(proof.messages)
    wrong = sum(kind(each) == "wrong" for each in proof.connections)
    judged = sum(
        kind(each) in {"mail", "attempt", "wrong"} for each in proof.connections
    )
    said = (
        "Every packet of every message left from the address of its sender."
        if passed
        else "It is not proven that all mail left from the address of its sender."
    )
    facts = [
        ("capture", report.file),
        ("from", (moment(report.began) or "no packet")[:19].replace("T", " ")),
        ("to", (moment(report.ended) or "no packet")[:19].replace("T", " ") + " UTC"),
        ("captured on", ", ".join(report.interfaces[:6]) + _more(report.interfaces, 6)),
    ]
    cards = [
        (
            f"{sum(h.verdict is Verdict.PASS for h in proof.hosts)}/{len(proof.hosts)}",
            "senders proven",
            "",
        ),
        (f"{mails:,}", "messages", ""),
        (f"{judged:,}", "connections", ""),
        (f"{wrong:,}", "wrong or unproven", "bad" if wrong else "good"),
        (
            f"{len(report.dissents):,}",
            "witnesses dissent",
            "bad" if report.dissents else "good",
        ),
        (
            "?" if report.drops is None else f"{report.drops:,}",
            "packets lost by the capture",
            "bad" if report.drops else "" if report.drops is None else "good",
        ),
    ]
    return (
        f'<header class="{"pass" if passed else "fail"}"><p class="verdict">'
        f"{text(proof.verdict.upper())}</p><div><h1>Where the mail came from</h1>"
        f'<p>{said}</p></div></header><dl class="facts">'
        + "".join(
            f"<div><dt>{name}</dt><dd>{text(value)}</dd></div>" for name, value in facts
        )
        + '</dl><div class="cards">'
        + "".join(
            f'<div class="card {mood}"><b>{number}</b><span>{what}</span></div>'
            for number, what, mood in cards
        )
        + "</div>"
    )


def _more(values: Sequence[object], shown: int) -> str:
    return f" and {len(values) - shown} more" if len(values) > shown else ""


def _problems(report: Report) -> str:
    proof = report.proof
    found = [
        (host.sender.name, problem)
        for host in proof.hosts
        for problem in host.problems
        if problem not in proof.problems
    ]
    found += [("", problem) for problem in proof.problems]
    found += [
        (host.sender.name, "no mail of it was seen")
        for host in proof.hosts
        if host.verdict is Verdict.NO_MAIL and proof.every
    ]
    if not found:
        return ""
    lines = "".join(
        f"<li>{f'<b>{text(name)}</b> ' if name else ''}{text(problem)}</li>"
        for name, problem in found
    )
    return f'<section class="problems"><h2>What is wrong</h2><ul>{lines}</ul></section>'


def _table(columns: Sequence[str], rows: Iterable[str], left_out: int = 0) -> str:
    head = "".join(f"<th>{column}</th>" for column in columns)
    tail = (
        f'<p class="more">{left_out:,} more are right, and not listed.</p>'
        if left_out
        else ""
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{tail}"
    )


def _row(mood: str, *cells: str) -> str:
    return f'<tr class="{mood}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _badge(word: str) -> str:
    return f'<span class="badge {word.replace(" ", "-")}">{text(word)}</span>'


def _several(values: Iterable[object]) -> str:
    return "<br>".join(text(value) for value in values)


def _senders(report: Report) -> str:
    def row(host: Judged) -> str:
        return _row(
            "wrong" if host.verdict is Verdict.FAIL else "",
            f"<b>{text(host.sender.name)}</b>",
            text(host.sender.context),
            f"<code>{_several(host.sender.expected)}</code>",
            f"<code>{_several(host.seen)}</code>",
            f"{host.packets:,}",
            f"{host.wrong:,}",
            _several(host.helo),
            _badge(host.verdict),
        )

    columns = (
        "sender",
        "context",
        "expected",
        "seen",
        "packets",
        "wrong",
        "HELO",
        "verdict",
    )
    return _table(columns, map(row, report.proof.hosts))


def _messages(report: Report) -> str:
    messages = report.proof.messages
    if not messages:
        return "<p>No message was seen.</p>"
    wrong = [each for each in messages if each.dissent]
    right = [each for each in messages if not each.dissent]
    shown = right[: max(0, MAX_ROWS - len(wrong))]

    def row(each: Testimony) -> str:
        return _row(
            "wrong" if each.dissent else "",
            f"<time>{text((moment(each.time) or '')[11:23])}</time>",
            f"<b>{text(each.sender)}</b>",
            f"<code>{text(each.id or '—')}</code>",
            text(each.remote),
            *(_voice(report, each, witness) for witness in Witness),
            _badge("agree") if not each.dissent else _badge("dissent"),
        )

    columns = (
        "time",
        "sender",
        "queue id",
        "to",
        "packets",
        "socket",
        "remote",
        "together",
    )
    return _table(columns, map(row, [*wrong, *shown]), len(right) - len(shown))


def _voice(report: Report, each: Testimony, witness: Witness) -> str:
    if witness in each.said:
        mood = "no" if witness in each.dissent else "yes"
        return f'<code class="{mood}">{_several(each.said[witness])}</code>'
    word = "absent" if witness in report.proof.asked else "not asked"
    return f'<span class="quiet">{word}</span>'


def _connections(report: Report) -> str:
    connections = report.proof.connections
    if not connections:
        return "<p>No connection was seen.</p>"
    wrong = [each for each in connections if kind(each) == "wrong"]
    right = [each for each in connections if kind(each) != "wrong"]
    shown = right[: max(0, MAX_ROWS - len(wrong))]

    def row(each: Connection) -> str:
        flow = each.flow
        problems = "".join(f'<p class="why">{text(p)}</p>' for p in each.problems)
        return _row(
            "wrong" if kind(each) == "wrong" else "",
            f"<time>{text((moment(flow.began) or '')[11:23])}</time>",
            f"<b>{text(each.sender or 'nobody here')}</b>{problems}",
            f"<code>{text(flow.client)}</code> <small>{flow.client_port}</small>",
            f"{text(report.name(flow.server))} <small>{flow.server_port}</small>",
            _several(each.said.helo),
            ("TLS" if each.said.encrypted else f"{len(each.said.transactions):,}"),
            f"{flow.packets:,}",
            _badge(kind(each)),
        )

    columns = ("began", "sender", "from", "to", "HELO", "messages", "packets", "what")
    table = _table(columns, map(row, [*wrong, *shown]), len(right) - len(shown))
    return f"<details{' open' if wrong else ''}><summary>{len(connections):,} connections</summary>{table}</details>"


def _remarks(report: Report) -> str:
    found = "".join(f"<li>{text(each)}</li>" for each in remarks(report))
    return (
        f'<section class="remarks"><h2>Remarks</h2><ul>{found}</ul></section>'
        if found
        else ""
    )
