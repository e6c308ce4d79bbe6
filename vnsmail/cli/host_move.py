"""``vnsmail host pack|unpack``: a host that goes to another machine."""

from pathlib import Path
from typing import Annotated

import typer

from vnsmail.cli import client
from vnsmail.cli.host_changes import app
from vnsmail.cli.options import AsJson, DryRun, NoProbe, layout_of
from vnsmail.cli.render import as_json, line, remark
from vnsmail.supervisor import control

PATIENCE = 86400.0
"""Seconds; mailboxes may be large. The supervisor goes on without us too."""

__all__ = ["app"]


@app.command()
def pack(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the virtual host.")],
    to: Annotated[
        Path,
        typer.Option(help="File to write, or a folder that gets one named after it."),
    ],
    json: AsJson = False,
) -> None:
    """Suspend a virtual host, and write all that is its own into one file.

    The file has its facts, users with their passwords, aliases, queue, mailboxes,
    DKIM keys and certificates: keep it as secret as those. The host stays here,
    suspended, until it is destroyed: its mail goes out from where it is unpacked.
    If it is interrupted, run it again. Other changes to hosts wait meanwhile.
    """
    request = control.PackHost(name, str(to.absolute()))
    layout = layout_of(context)
    done = client.ask(layout, request, control.Packed, patience=PATIENCE)
    if json:
        as_json(done)
        return
    remark(f"virtual host {name} is in {done.file}, and suspended here")
    remark(f"where it is to be: vnsmail host unpack {Path(done.file).name}")
    remark(f"then, here: vnsmail host destroy {name}")


@app.command()
def unpack(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="What `vnsmail host pack` wrote.")],
    address: Annotated[
        list[str] | None,
        typer.Option(help="Its address here with prefix length; else as it was."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option("--context", help="namespace or alias; else as it was."),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(help="Link of the machine; else the one in its network."),
    ] = None,
    uplink: Annotated[
        str | None,
        typer.Option(help="bridge, macvlan or routed; else as fits the link."),
    ] = None,
    gateway: Annotated[
        list[str] | None, typer.Option(help="Router for what leaves, one a family.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option(help="Also if this pack became a host here before."),
    ] = False,
    no_probe: NoProbe = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Make a virtual host of a pack, with its mail, and begin to serve it.

    The whole file is read and judged before anything is changed. Mail that was queued
    leaves from the address the host has here. If it is interrupted, run it again.
    """
    request = control.UnpackHost(
        str(file.absolute()),
        tuple(address or ()),
        where,
        link,
        tuple(gateway or ()),
        uplink,
        no_probe=no_probe,
        dry_run=dry_run,
        force=force,
    )
    layout = layout_of(context)
    done = client.ask(layout, request, control.Unpacked, patience=PATIENCE)
    if json:
        as_json(done)
        return
    if dry_run:
        for step in done.steps:
            line(step)
    would = "would be" if dry_run else "is"
    remark(f"virtual host {done.host} {would} here, at {', '.join(done.addresses)}")
