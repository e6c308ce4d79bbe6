"""``vnsmail up``, ``down`` and ``status``: the running system."""

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Annotated

import typer

from vnsmail import settings
from vnsmail.cli import client
from vnsmail.cli.options import AsJson, layout_of
from vnsmail.cli.render import age, as_json, facts, remark, table
from vnsmail.errors import Taken
from vnsmail.lab import start as lab
from vnsmail.settings import Layout
from vnsmail.supervisor import control
from vnsmail.supervisor.folders import is_locked

START_PATIENCE = 60.0
"""Seconds a detached supervisor has to say that it is ready."""

END_PATIENCE = 60.0
"""Seconds a supervisor has to end: workers finish what is being said, then the broker
goes, each by force if need be (supervisor/process.py)."""

DRIFTS_SHOWN = 10
"""Changes by others that status shows; its JSON has some more."""

LOOK_EVERY = 0.05
"""Seconds between two looks whether it has ended."""


def up(
    context: typer.Context,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return once it is ready; log to a file.")
    ] = False,
    ready_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Start vnsmail: network, broker and workers. Ctrl-C ends it in the foreground."""
    layout = layout_of(context)
    if lab.running(layout) is not None:
        # It would make the lab's hosts on the machine's own links.
        remedy = "a lab runs there; give another --root"
        raise Taken("root", str(layout.state), remedy)
    if detach:
        _detached(layout)
        return

    def ready() -> None:
        if ready_fd is not None:
            # Whoever started us may have gone; that is no reason to end.
            with contextlib.suppress(BrokenPipeError):
                os.write(ready_fd, b"ready")
            os.close(ready_fd)
        remark(f"vnsmail is ready (process {os.getpid()}, root {layout.state})")

    _supervisor().run(layout, settings.load(layout.settings_file), ready)


def _supervisor() -> ModuleType:
    # It brings half of what there is to import, and no other command needs it.
    from vnsmail.supervisor import main  # noqa: PLC0415

    return main


def _detached(layout: Layout) -> None:
    _supervisor().check(layout, settings.load(layout.settings_file))
    ours, theirs = os.pipe()
    command = [sys.executable, "-P", "-m", "vnsmail.cli.app", *_root_option(layout)]
    with open(layout.log_file, "ab", buffering=0) as log_file:
        log_size = log_file.tell()
        process = subprocess.Popen(  # noqa: S603  our own interpreter and module
            [*command, "up", "--ready-fd", str(theirs)],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            pass_fds=(theirs,),
            start_new_session=True,
            cwd="/",
        )
    os.close(theirs)
    with open(ours, "rb") as pipe:
        if not select.select([pipe], [], [], START_PATIENCE)[0]:
            text = (
                f"vnsmail (process {process.pid}) is not ready after "
                f"{START_PATIENCE:.0f} s; see {layout.log_file}"
            )
            raise client.Refused(text, 1)
        said = pipe.read()
    if said != b"ready":
        status = max(process.wait(), 1)
        raise client.Refused(_last_words(layout, log_size), status)
    remark(f"vnsmail is ready (process {process.pid}, log {layout.log_file})")


def _root_option(layout: Layout) -> list[str]:
    return ["--root", str(layout.state)] if layout.instance else []


def _last_words(layout: Layout, log_size: int) -> str:
    """Return what it complained of, in what it added to the log."""
    with layout.log_file.open(errors="replace") as log_file:
        log_file.seek(log_size)
        lines = log_file.read().splitlines()
    found = [line for line in lines if line.startswith("vnsmail: ")]
    return (
        found[-1].removeprefix("vnsmail: ")
        if found
        else f"vnsmail ended before it was ready; see {layout.log_file}"
    )


def down(context: typer.Context) -> None:
    """End vnsmail. Queues keep what is not sent; namespaces and addresses stay."""
    layout = layout_of(context)
    pid = client.ask(layout, control.GetStatus(), control.Status).pid
    client.ask(layout, control.ShutDown(), control.Done)
    # It answers no more while its workers still finish; the lock goes with its life.
    deadline = time.monotonic() + END_PATIENCE
    while is_locked(layout):
        if time.monotonic() > deadline:
            text = (
                f"vnsmail (process {pid}) has not ended within {END_PATIENCE:.0f} s; "
                f"see {layout.log_file}"
            )
            raise client.Refused(text, 1)
        time.sleep(LOOK_EVERY)
    remark(f"vnsmail has ended (process {pid})")


def status(context: typer.Context, json: AsJson = False) -> None:
    """Show processes with their privileges, and how each virtual host is doing."""
    found = client.ask(layout_of(context), control.GetStatus(), control.Status)
    if json:
        as_json(found)
        return
    known = [("supervisor", f"process {found.pid}"), ("root", found.root)]
    facts([*known, ("network", found.watching)] if found.watching else known)
    table(
        "processes",
        ("process", "state", "pid", "restarts", "privileges", "owners"),
        [
            (p.name, p.state, p.pid, p.restarts, p.privileges, len(p.owners))
            for p in found.processes
        ],
        "no processes",
    )
    problems = dict(found.problems)
    served = {report.owner for report in found.owners}
    rows: list[tuple[object, ...]] = [
        (
            r.owner,
            problems.pop(r.owner, "")
            or r.problem
            or ("suspended" if r.suspended else "ok"),
            [_without_port(address) for address in r.listening],
            r.sessions,
            r.messages,
            r.deferred,
            age(r.oldest),
        )
        for r in found.owners
    ]
    rows += [
        (owner, problem, "", "", "", "", "")
        for owner, problem in problems.items()
        if owner not in served
    ]
    columns = (
        "owner",
        "state",
        "listening",
        "sessions",
        "queued",
        "deferred",
        "oldest",
    )
    table("owners", columns, rows, "nothing is served")
    guessed = [(r.owner, r.failed_sign_ins) for r in found.owners if r.failed_sign_ins]
    if guessed:
        counted = ("owner", "since its worker took it")
        table("failed sign-ins", counted, guessed, "none")
    if found.drifts:
        _show_drifts(found.drifts[-DRIFTS_SHOWN:])


def _show_drifts(drifts: Sequence[control.Drift]) -> None:
    """Show what others changed in the network, newest last."""
    rows = [
        (f"{age(each.at)} ago", each.host, each.missing, each.problem or "mended")
        for each in drifts
    ]
    columns = ("when", "host", "what was to be done", "outcome")
    table("changed by others", columns, rows, "nothing", aside="what was to be done")


def _without_port(address: str) -> str:
    """Return a listening address as it is commonly seen: the SMTP port is no news."""
    return (
        address.removesuffix(":25").strip("[]") if address.endswith(":25") else address
    )
