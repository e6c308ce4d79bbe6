"""``vnsmail lab``: an internet in network namespaces, to try everything in."""

import os
import signal
import subprocess
import sys
from typing import Annotated

import typer

from vnsmail import settings
from vnsmail.cli import client
from vnsmail.cli.options import AsJson, layout_of
from vnsmail.cli.render import as_json, facts, progress, remark, table
from vnsmail.directory import open_to_read
from vnsmail.errors import NotFound
from vnsmail.lab import start, topology
from vnsmail.lab.facts import LabFacts
from vnsmail.model import Context, VirtualHost
from vnsmail.net import names
from vnsmail.settings import Layout
from vnsmail.supervisor import control

LOOK_EVERY = 0.5
"""Seconds between two looks at a lab that is kept in the foreground."""

app = typer.Typer(
    help="An internet in network namespaces: a name server, two remote mail hosts, "
    "virtual hosts and the machine itself. The real network is not touched.",
    no_args_is_help=True,
)


@app.command()
def up(
    context: typer.Context,
    hosts: Annotated[
        int,
        typer.Option(
            help="Virtual hosts to create; of five, three live in namespaces and two "
            f"are aliases. 0 to {topology.MAX_HOSTS}."
        ),
    ] = 5,
    foreground: Annotated[
        bool,
        typer.Option(
            "--foreground",
            help="Stay, and end the lab when this command ends (Ctrl-C).",
        ),
    ] = False,
    tls_keys: Annotated[
        bool,
        typer.Option(
            "--tls-keys",
            help="Keep the keys of TLS sessions, for `vnsmail prove --tls-keys`.",
        ),
    ] = False,
    json: AsJson = False,
) -> None:
    """Start a lab. As an ordinary user it runs in a user namespace."""
    layout = _layout(context)
    wanted = topology.virtual_hosts(hosts)
    steps = 4 + len(topology.REMOTES) + len(wanted)
    done = 0
    with progress("lab") as tell:

        def step(what: str) -> None:
            nonlocal done
            done += 1
            tell(what, done, steps)

        found = start.start(layout, step, tied=foreground, tls_keys=tls_keys)
        for host in wanted:
            step(host.name)
            _create(layout, host)
    if json:
        as_json(_described(layout, found))
    else:
        _explain(layout, len(wanted))
    if foreground:
        _stay(layout)


@app.command()
def down(context: typer.Context) -> None:
    """End the lab. Its capture and the mail of its remotes stay where they are."""
    layout = _layout(context)
    start.stop(layout)
    remark(f"the lab has ended; {start.capture_file(layout.state)} is its capture")


@app.command()
def status(context: typer.Context, json: AsJson = False) -> None:
    """Show who is in the lab, and the mail that the remotes got."""
    layout = _layout(context)
    found = _running(layout)
    described = _described(layout, found)
    if json:
        as_json(described)
        return
    facts(
        [
            ("root", layout.state),
            ("process", found.pid),
            ("capture", found.capture),
            ("name server", found.nameserver),
        ]
    )
    rows: list[tuple[object, ...]] = [
        ("machine", found.machine_name, "", found.machine_addresses, "")
    ]
    rows += [
        (
            "virtual host",
            host.name,
            host.context,
            [str(a.address) for a in host.addresses],
            "",
        )
        for host in _hosts(layout)
    ]
    rows += [
        ("remote", remote.name, "", remote.addresses, start.count_mail(remote))
        for remote in found.remotes
    ]
    table("lab", ("what", "name", "context", "addresses", "mail"), rows, "")


@app.command(context_settings={"ignore_unknown_options": True})
def shell(
    context: typer.Context,
    node: Annotated[
        str,
        typer.Argument(help="`machine`, a remote, the name server, or a virtual host."),
    ],
    command: Annotated[
        list[str] | None, typer.Argument(help="Command to run; else a shell.")
    ] = None,
) -> None:
    """Run a command, or a shell, where a node of the lab is."""
    layout = _layout(context)
    found = _running(layout)
    words = command or [os.environ.get("SHELL", "/bin/sh")]
    inside = start.enter_command(found, _namespace(layout, found, node))
    sys.stdout.flush()
    done = subprocess.run([*inside, *words], check=False)  # noqa: S603  the user's own
    raise typer.Exit(done.returncode)


def _layout(context: typer.Context) -> Layout:
    """Return the chosen root, or the lab's own default: never the system's."""
    layout = layout_of(context)
    return layout if layout.instance else settings.layout(start.default_root())


def _explain(layout: Layout, count: int) -> None:
    option = f" --root {layout.state}"
    remark(f"the lab is up with {count} virtual hosts")
    remark(f"send: vnsmail{option} send --as user@alpha.example --to ann@north.example")
    remark(f"look: vnsmail{option} lab status; the proof: vnsmail{option} prove")


def _stay(layout: Layout) -> None:
    """Wait for a signal, or for the lab to be ended from elsewhere; then end it."""
    sys.stdout.flush()
    wanted = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    while start.running(layout) is not None:
        if signal.sigtimedwait(wanted, LOOK_EVERY) is not None:
            start.stop(layout)
            break
    remark("the lab has ended")


def _running(layout: Layout) -> LabFacts:
    found = start.running(layout)
    if found is None:
        remedy = "none runs here; start one with `vnsmail lab up`"
        raise NotFound("lab", str(layout.state), remedy)
    return found


def _create(layout: Layout, host: topology.LabHost) -> None:
    request = control.CreateHost(
        name=host.name,
        addresses=tuple(str(address) for address in host.addresses),
        context=host.context.value,
        no_probe=True,
    )
    client.ask(layout, request, control.Planned)
    client.ask(layout, control.AddUser(f"{topology.USER}@{host.name}"), control.Done)


def _hosts(layout: Layout) -> tuple[VirtualHost, ...]:
    with open_to_read(layout.directory_db) as directory:
        return directory.hosts()


def _namespace(layout: Layout, found: LabFacts, node: str) -> str:
    """Return the namespace of a node by name; empty for the machine's own.

    Raises:
        NotFound: the lab has no such node.
    """
    if node in {"machine", found.machine_name}:
        return ""
    if node in {topology.NAMESERVER, *(remote.name for remote in found.remotes)}:
        return names.namespace(topology.INSTANCE, node)
    for host in _hosts(layout):
        if host.name == node:
            inside = host.context is Context.NAMESPACE
            return names.namespace(layout.instance, node) if inside else ""
    raise NotFound("node", node, "see `vnsmail lab status`")


def _described(layout: Layout, found: LabFacts) -> dict[str, object]:
    return {
        "root": str(layout.state),
        "pid": found.pid,
        "capture": found.capture,
        "nameserver": found.nameserver,
        "machine": {
            "name": found.machine_name,
            "addresses": found.machine_addresses,
        },
        "hosts": [
            {
                "name": host.name,
                "context": host.context.value,
                "addresses": [str(address.address) for address in host.addresses],
            }
            for host in _hosts(layout)
        ],
        "remotes": [
            {
                "name": remote.name,
                "domain": remote.domain,
                "addresses": remote.addresses,
                "mail": remote.mail,
                "messages": start.count_mail(remote),
            }
            for remote in found.remotes
        ],
    }
