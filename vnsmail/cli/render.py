"""How values look: as a table for people, or as the same value in JSON.

The only module that uses rich, and only where something is drawn: JSON, single lines and
complaints need none, and its import would be a third of what such a command takes. Data
goes to standard output, remarks and progress to standard error.
"""

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

PIPE_WIDTH = 200
"""Columns where there is no terminal: programs and files have no edge to wrap at."""


@cache
def _out() -> "Console":
    from rich.console import Console  # noqa: PLC0415

    return Console(highlight=False)


# Words whose colour tells how things are.
_STYLES = {
    "running": "green",
    "pass": "bold green",
    "ok": "green",
    "fail": "bold red",
    "wrong": "bold red",
    "unknown": "yellow",
    "backoff": "red",
    "stopped": "red",
    "no mail": "yellow",
    "suspended": "yellow",
    "off": "yellow",
}

_SIGNS = {"+": "green", "-": "red", "~": "yellow", "!": "bold red", " ": "dim"}


def as_json(value: object) -> None:
    """Write one JSON document with a final newline."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2)
    sys.stdout.write(text.decode() + "\n")


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    empty: str,
    *,
    aside: str = "",
) -> None:
    """Write a table, or the remark ``empty`` where there are no rows.

    Where a screen is too narrow, the column ``aside`` gets a table of its own; if that
    is not enough, each row becomes a block of lines.
    """
    if not rows:
        remark(empty)
        return
    screen = _screen()
    shown = _table(title, columns, rows)
    if _fits(screen, shown):
        screen.print(shown)
    elif aside and _fits(
        screen, narrow := _table(title, *_without(aside, columns, rows))
    ):
        screen.print(narrow)
        at = columns.index(aside)
        pairs = [(row[0], row[at]) for row in rows]
        screen.print("", _table(aside, (columns[0], aside), pairs), sep="\n")
    else:
        _blocks(columns, rows)


def _table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> "Table":
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    shown = Table(
        title=title,
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    for column in columns:
        right = column in {"queued", "deferred", "packets", "wrong", "size", "restarts"}
        shown.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(_cell(value) for value in row))
    return shown


def _fits(screen: "Console", shown: "Table") -> bool:
    from rich.measure import Measurement  # noqa: PLC0415

    unbounded = screen.options.update(max_width=10_000)
    return Measurement.get(screen, unbounded, shown).maximum <= screen.width


def _without(
    column: str, columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    at = columns.index(column)
    left = [*columns[:at], *columns[at + 1 :]]
    return left, [[*row[:at], *row[at + 1 :]] for row in rows]


def _screen() -> "Console":
    from rich.console import Console  # noqa: PLC0415

    if _out().is_terminal or "COLUMNS" in os.environ:
        return _out()
    return Console(highlight=False, width=PIPE_WIDTH)


def _blocks(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    from rich.table import Table  # noqa: PLC0415

    for row in rows:
        block = Table.grid(padding=(0, 2))
        block.add_column(style="bold")
        block.add_column(overflow="fold")
        for column, value in zip(columns, row, strict=True):
            block.add_row(column, _cell(value))
        _out().print(block)
        _out().print()


def facts(pairs: Sequence[tuple[str, object]]) -> None:
    """Write one thing's facts, a line each."""
    from rich.text import Text  # noqa: PLC0415

    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        line = Text(f"{name:<{width}}  ", style="bold")
        line.append(_cell(value))
        _out().print(line, soft_wrap=True)


def line(text: str) -> None:
    """Write one line of data."""
    sys.stdout.write(f"{text}\n")


def change(sign: str, text: str) -> None:
    """Write a line of a list of changes: + what comes, - what goes, ~ what changes."""
    from rich.text import Text  # noqa: PLC0415

    _out().print(Text(f"{sign} {text}", style=_SIGNS[sign]), soft_wrap=True)


def finding(verdict: str, check: str, subject: str, text: str) -> None:
    """Write a line that says how one thing is."""
    from rich.text import Text  # noqa: PLC0415

    shown = Text(f"{verdict:<7} ", style=_STYLES.get(verdict, ""))
    shown.append(f"{check:<11} ", style="bold")
    shown.append(f"{subject}: {text}", style="default")
    _out().print(shown, soft_wrap=True)


def remark(text: str) -> None:
    """Write a line for people, not for programs."""
    sys.stderr.write(f"{text}\n")


def complain(text: str) -> None:
    """Write the one line that says what is wrong."""
    coloured = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    who = "\033[1;31mvnsmail:\033[0m" if coloured else "vnsmail:"
    sys.stderr.write(f"{who} {' '.join(text.splitlines())}\n")


def age(since: float | None) -> str:
    """Return how long ago that was, in the largest two units that matter."""
    if since is None:
        return ""
    seconds = max(0, int(time.time() - since))
    for unit, size, lower, lower_size in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "m", 60),
        ("m", 60, "s", 1),
    ):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // lower_size}{lower}"
    return f"{seconds}s"


@contextlib.contextmanager
def progress(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show how far a job is; yields a function for (what, done, of all).

    A terminal gets a bar; anything else a line for each new step.
    """
    if not sys.stderr.isatty():
        last = ""

        def tell(what: str, done: int, total: int) -> None:
            nonlocal last
            if what != last:
                remark(f"{title}: {what} ({done}/{total})")
                last = what

        yield tell
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
    )

    with Progress(
        SpinnerColumn(),
        TextColumn("[bold]{task.fields[title]}"),
        BarColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True, highlight=False),
        transient=True,
    ) as bar:
        task = bar.add_task("", title=title, total=None)

        def draw(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield draw


def live(
    draw: Callable[[], tuple[str, Sequence[str], Sequence[Sequence[object]]]],
    every: float,
) -> None:
    """Show a table that is drawn anew every so many seconds, until q or Ctrl-C.

    Args:
        draw: returns title, columns and rows.
        every: seconds.
    """
    from rich.live import Live  # noqa: PLC0415

    with (
        contextlib.suppress(KeyboardInterrupt),
        _keys() as pressed,
        Live(console=_out(), screen=True, auto_refresh=False) as shown,
    ):
        key = ""
        while key not in {"q", "Q"}:
            shown.update(_table(*draw()), refresh=True)
            key = pressed(every)


def _no_key(seconds: float) -> str:
    time.sleep(seconds)
    return ""


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Give a function that waits so many seconds for a key; empty: there was none."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([fd], [], [], seconds)
        return os.read(fd, 1).decode(errors="replace") if ready else ""

    try:
        tty.setcbreak(fd)
        yield pressed
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _cell(value: object) -> "Text":
    from rich.text import Text  # noqa: PLC0415

    if isinstance(value, (list, tuple)):
        text = "\n".join(str(part) for part in value)
    else:
        text = "" if value is None else str(value)
    return Text(text, style=_STYLES.get(text, ""))
