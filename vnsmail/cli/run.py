"""``vnsmail exec``: any program as a virtual host."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from vnsmail import settings
from vnsmail.cli import client
from vnsmail.cli.options import layout_of
from vnsmail.directory import open_to_read
from vnsmail.errors import DaemonNotRunning, NotFound, NotPrivileged
from vnsmail.lab import start as lab
from vnsmail.model import Context, VirtualHost, host_name
from vnsmail.settings import Layout
from vnsmail.supervisor import control, run_as


def run(
    context: typer.Context,
    host: Annotated[str, typer.Argument(help="Name of the virtual host.")],
    command: Annotated[
        list[str],
        typer.Argument(
            help="The program and its arguments; `--` before it if you like."
        ),
    ],
) -> None:
    """Run any program as a virtual host: what it connects leaves from its address.

    The exit code is the program's own; 127 if there is no such program, 126 if it
    cannot be executed.
    """
    layout = layout_of(context)
    words = command[1:] if command[0] == "--" else command
    if not words:
        raise typer.BadParameter("give a command to run")
    with open_to_read(layout.directory_db) as directory:
        found = directory.host(host_name(host))
    _enter_lab(layout, found.name, words)
    servers = found.resolvers or settings.load(layout.settings_file).dns.servers
    sys.stdout.flush()
    code = run_as.run(
        found,
        layout.instance,
        words,
        [str(each) for each in servers],
        _known_identity(layout, found),
    )
    raise typer.Exit(code)


def _known_identity(layout: Layout, host: VirtualHost) -> int:
    """Return which namespace vnsmail knows as the host's; 0 if it does not run."""
    if host.context is not Context.NAMESPACE:
        return 0
    try:
        request = control.GetGuard(host.name)
        return client.ask(layout, request, control.Guarded).identity
    except (DaemonNotRunning, NotPrivileged, NotFound, client.Refused):
        # What carries no mark of ours is not entered all the same.
        return 0


def _enter_lab(layout: Layout, host: str, words: Sequence[str]) -> None:
    """Do it in this root's lab if there is one: the hosts are not out here."""
    found = lab.running(layout)
    if found is None:
        return
    ours = [sys.executable, "-P", "-m", "vnsmail.cli.app", "--root", str(layout.state)]
    # Entering a mount namespace leads to its root.
    here = ["env", f"--chdir={os.getcwd()}"]
    command = [*lab.enter_command(found, ""), *here, *ours, "exec", host, "--", *words]
    sys.stdout.flush()
    # nsenter ends as the program does: by this signal too, which Python ignores.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvp(command[0], command)  # noqa: S606  nsenter(1) and this very command
