"""``vnsmail apply`` and ``export``: all virtual hosts as a file."""

import queue
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from vnsmail.cli import client, render
from vnsmail.cli.options import AsJson, DryRun, NoProbe, layout_of
from vnsmail.cli.render import as_json, complain, remark
from vnsmail.directory import declaration, open_to_read
from vnsmail.directory.declaration import Misfits
from vnsmail.errors import BadInput, VnsmailError
from vnsmail.settings import Layout
from vnsmail.supervisor import control

PATIENCE = 3600.0
"""Seconds to wait for an answer: a thousand hosts take their time."""

NAMED = 20
"""Things wrong in a file that are told; one mistake may be in each of a thousand hosts."""

UNSAID = 1.0
"""Seconds without a word; what takes longer shows how far it is."""

LOOK_EVERY = 0.2
"""Seconds between two looks at how far it is."""

_SIGNS = {"create": "+", "change": "~", "mend": "~", "destroy": "-"}


def apply(
    context: typer.Context,
    file: Annotated[
        str, typer.Argument(help="File of virtual hosts; - is the standard input.")
    ],
    discard_queue: Annotated[
        bool,
        typer.Option("--discard-queue", help="Destroy hosts with mail still queued."),
    ] = False,
    no_probe: NoProbe = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Make the virtual hosts of a file all there are.

    Hosts that are missing are created, those that differ are changed without losing
    mail, and those that are not in the file are destroyed. `vnsmail export` writes such
    a file.
    """
    text = _read(file)
    try:
        declaration.parse(text)
    except Misfits as error:
        found = (control.FileProblem(p.line, p.key, p.text) for p in error.problems)
        answer = control.Applied(problems=tuple(found))
    else:
        request = control.ApplyHosts(text, discard_queue, dry_run, no_probe)
        answer = _asked(layout_of(context), request)
    if json:
        as_json(answer)
    else:
        _show(answer, dry_run=dry_run)
    for problem in answer.problems[:NAMED]:
        key = f"{problem.key}: " if problem.key else ""
        complain(f"{file}:{problem.line}: {key}{problem.text}")
    if len(answer.problems) > NAMED:
        complain(f"{file}: {len(answer.problems) - NAMED} more; mend these first")
    if answer.problems:
        raise typer.Exit(2)
    if any(change.problem for change in answer.changes):
        raise typer.Exit(1)


def export(
    context: typer.Context,
    schema: Annotated[
        bool,
        typer.Option("--schema", help="Write the JSON schema of the file instead."),
    ] = False,
    json: AsJson = False,
) -> None:
    """Write the virtual hosts that should be, as a file for `vnsmail apply`."""
    if schema:
        as_json(declaration.schema())
        return
    with open_to_read(layout_of(context).directory_db) as directory:
        hosts = [
            (host, tuple(user.local_part for user in directory.users(host.name)))
            for host in directory.hosts()
        ]
    if json:
        tables = {host.name: declaration.entries(host, users) for host, users in hosts}
        as_json({"host": tables})
        return
    sys.stdout.write(declaration.write(hosts))


def _read(file: str) -> str:
    """Return what a file says.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        remedy = f"cannot read it: {error.strerror or error}"
        raise BadInput("file", file, remedy) from None
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        remedy = f"line {line} is not UTF-8, as TOML has to be"
        raise BadInput("file", file, remedy) from None


def _asked(layout: Layout, request: control.ApplyHosts) -> control.Applied:
    """Return the answer to a request; while it takes long, show how far it is."""
    answers: queue.Queue[control.Applied | VnsmailError] = queue.Queue()

    def ask() -> None:
        try:
            answer = client.ask(layout, request, control.Applied, patience=PATIENCE)
            answers.put(answer)
        except VnsmailError as error:
            answers.put(error)

    # Ctrl-C ends this command; what the supervisor has begun, it finishes.
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=UNSAID)
    except queue.Empty:
        answer = _awaited(layout, answers)
    if isinstance(answer, VnsmailError):
        raise answer
    return answer


def _awaited(
    layout: Layout, answers: "queue.Queue[control.Applied | VnsmailError]"
) -> control.Applied | VnsmailError:
    with render.progress("apply") as tell:
        while True:
            found = client.ask(layout, control.GetProgress(), control.Progress)
            if found.what:
                tell(found.what, found.done, found.total)
            try:
                return answers.get(timeout=LOOK_EVERY)
            except queue.Empty:
                continue


def _show(answer: control.Applied, *, dry_run: bool) -> None:
    for change in answer.changes:
        details = f": {'; '.join(change.details)}" if change.details else ""
        render.change(_SIGNS[change.action], f"{change.action} {change.name}{details}")
        if change.problem:
            render.change("!", f"  {change.name} failed: {change.problem}")
    if dry_run:
        for step in answer.steps:
            render.change(" ", f"  {step}")
    if not answer.problems:
        remark(_summary(answer, dry_run=dry_run))


def _summary(answer: control.Applied, *, dry_run: bool) -> str:
    """Return what was done, in a line."""
    words = {"create": "created", "change": "changed", "mend": "mended"}
    words["destroy"] = "destroyed"
    found = [change for change in answer.changes if not change.problem]
    counts = [
        f"{sum(1 for c in found if c.action == action)} {word}"
        for action, word in words.items()
        if any(c.action == action for c in found)
    ]
    if failed := len(answer.changes) - len(found):
        counts.append(f"{failed} failed")
    counts.append(f"{answer.unchanged} as they were")
    would = "this would be done: " if dry_run else ""
    return f"{would}{', '.join(counts)}"
