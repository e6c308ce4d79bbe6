"""``vnsmail alias``: addresses whose mail goes elsewhere."""

from typing import Annotated

import typer

from vnsmail.cli import client
from vnsmail.cli.options import AsJson, layout_of
from vnsmail.cli.render import as_json, remark, table
from vnsmail.directory import open_to_read
from vnsmail.model import host_name
from vnsmail.supervisor import control

app = typer.Typer(
    help="Addresses whose mail goes to others, here or elsewhere.", no_args_is_help=True
)

Address = Annotated[
    str,
    typer.Argument(
        help="Such as sales@alpha.example; '*@alpha.example' takes what nobody else does."
    ),
]


@app.command()
def add(
    context: typer.Context,
    address: Address,
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET...", help="Users or aliases here, or addresses elsewhere."
        ),
    ],
) -> None:
    """Send mail for an address to others; an alias that exists gets more targets.

    It goes before a user of the same name: give that user among the targets, and the
    mailbox has a copy. It holds at every domain of the host.
    """
    request = control.AddAlias(address, tuple(targets))
    client.ask(layout_of(context), request, control.Done)
    remark(f"mail for {address} goes to {', '.join(targets)}")


@app.command()
def remove(
    context: typer.Context,
    address: Address,
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TARGET...]", help="Only these; else the whole alias."),
    ] = None,
) -> None:
    """Remove an alias, or some of its targets."""
    request = control.RemoveAlias(address, tuple(targets or ()))
    client.ask(layout_of(context), request, control.Done)
    more = f" to {', '.join(targets)}" if targets else " to others"
    remark(f"mail for {address} goes no more{more}")


@app.command("list")
def list_aliases(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Only those of this host.")] = None,
    json: AsJson = False,
) -> None:
    """List aliases, of one virtual host or of all."""
    with open_to_read(layout_of(context).directory_db) as directory:
        wanted = [directory.host(host_name(host))] if host else directory.hosts()
        found = [
            {
                "address": f"{alias.local_part}@{alias.host}",
                "host": alias.host,
                "targets": [
                    target if "@" in target else f"{target}@{alias.host}"
                    for target in alias.targets
                ],
            }
            for each in wanted
            for alias in directory.aliases(each.name)
        ]
    if json:
        as_json(found)
    else:
        rows = [(each["address"], each["targets"]) for each in found]
        table("aliases", ("address", "goes to"), rows, "no aliases yet")
