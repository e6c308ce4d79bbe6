"""``vnsmail user``: people with a mailbox at a virtual host."""

from typing import Annotated

import typer

from vnsmail.cli import client
from vnsmail.cli.options import AsJson, layout_of
from vnsmail.cli.render import as_json, remark, table
from vnsmail.directory import open_to_read
from vnsmail.model import host_name
from vnsmail.supervisor import control

app = typer.Typer(help="Users of virtual hosts.", no_args_is_help=True)

Address = Annotated[str, typer.Argument(help="Such as user@alpha.example.")]


@app.command()
def add(context: typer.Context, address: Address) -> None:
    """Give a user a mailbox, and the right to send as that address."""
    client.ask(layout_of(context), control.AddUser(address), control.Done)
    remark(f"user {address} is added")


@app.command()
def remove(context: typer.Context, address: Address) -> None:
    """Remove a user. The mailbox folder stays until the host is destroyed."""
    client.ask(layout_of(context), control.RemoveUser(address), control.Done)
    remark(f"user {address} is removed; the mailbox folder stays")


@app.command("list")
def list_users(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Only users of this host.")] = None,
    json: AsJson = False,
) -> None:
    """List users, of one virtual host or of all."""
    with open_to_read(layout_of(context).directory_db) as directory:
        wanted = [directory.host(host_name(host))] if host else directory.hosts()
        found = [
            (f"{user.local_part}@{user.host}", user.host)
            for each in wanted
            for user in directory.users(each.name)
        ]
    if json:
        as_json([{"address": address, "host": owner} for address, owner in found])
    else:
        table("users", ("address", "host"), found, "no users yet")
