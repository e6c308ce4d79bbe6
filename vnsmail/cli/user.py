"""``vnsmail user``: people with a mailbox at a virtual host."""

import re
from collections.abc import Mapping
from typing import Annotated

import typer

from vnsmail.cli import client, password
from vnsmail.cli.options import AsJson, layout_of
from vnsmail.cli.render import as_json, remark, table
from vnsmail.directory import open_to_read
from vnsmail.errors import BadInput
from vnsmail.model import host_name
from vnsmail.supervisor import control

app = typer.Typer(help="Users of virtual hosts.", no_args_is_help=True)

Address = Annotated[str, typer.Argument(help="Such as user@alpha.example.")]

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@app.command()
def add(
    context: typer.Context,
    address: Address,
    stdin: password.FromStdin = False,
    generate: password.Generate = False,
    quota: Annotated[
        str | None, typer.Option(help="Room of the mailbox: 500M, 2G, or none.")
    ] = None,
) -> None:
    """Give a user a mailbox, and the right to send as that address.

    On a terminal the password is asked for. Without a password nobody signs in as this
    user; mail is taken for it, and `vnsmail send` sends as it.
    """
    room = None if quota is None else size(quota)
    given = password.chosen(stdin=stdin, generate=generate)
    request = control.AddUser(address, password.proofs(given), room)
    client.ask(layout_of(context), request, control.Done)
    without = "" if given else "; without a password it cannot sign in"
    remark(f"user {address} is added{without}")
    if given and generate:
        password.show(given)


@app.command()
def passwd(
    context: typer.Context,
    address: Address,
    stdin: password.FromStdin = False,
    generate: password.Generate = False,
    remove: Annotated[
        bool, typer.Option("--none", help="Take the password away: nobody signs in.")
    ] = False,
) -> None:
    """Give a user another password. The old one is worth nothing at once."""
    if remove and (stdin or generate):
        raise BadInput("password", "…", "give --none, or a password")
    given = None if remove else password.chosen(stdin=stdin, generate=generate)
    if given is None and not remove:
        raise BadInput("password", "", "give --password-stdin, --generate or --none")
    request = control.SetPassword(address, password.proofs(given))
    client.ask(layout_of(context), request, control.Done)
    remark(f"user {address} has {'another' if given else 'no'} password")
    if given and generate:
        password.show(given)


@app.command()
def remove(context: typer.Context, address: Address) -> None:
    """Remove a user. The mailbox folder stays until the host is destroyed."""
    client.ask(layout_of(context), control.RemoveUser(address), control.Done)
    remark(f"user {address} is removed; the mailbox folder stays")


@app.command()
def suspend(context: typer.Context, address: Address) -> None:
    """Let a user sign in and send no more. Mail is still taken for it."""
    request = control.SuspendUser(address, suspended=True)
    client.ask(layout_of(context), request, control.Done)
    remark(f"user {address} is suspended")


@app.command()
def resume(context: typer.Context, address: Address) -> None:
    """Let a suspended user sign in again."""
    request = control.SuspendUser(address, suspended=False)
    client.ask(layout_of(context), request, control.Done)
    remark(f"user {address} may sign in again")


@app.command()
def quota(
    context: typer.Context,
    address: Address,
    room: Annotated[
        str, typer.Argument(metavar="SIZE", help="Such as 500M or 2G; or none.")
    ],
) -> None:
    """Limit a mailbox. While it is full, mail for it is refused for the time being."""
    request = control.SetQuota(address, size(room))
    client.ask(layout_of(context), request, control.Done)
    remark(f"the mailbox of {address} may have {_shown(request.quota) or 'any size'}")


@app.command("allow-from")
def allow_from(
    context: typer.Context,
    address: Address,
    sender: Annotated[
        str, typer.Argument(help="Address, here or elsewhere, that it may send as.")
    ],
    no_more: Annotated[
        bool, typer.Option("--remove", help="Take this permission back.")
    ] = False,
) -> None:
    """Let a user send as one more address (MAIL FROM and From).

    Its own address, with +anything, and aliases that go to it alone need no permission.
    """
    request = control.AllowSender(address, sender, allowed=not no_more)
    client.ask(layout_of(context), request, control.Done)
    remark(f"user {address} may {'no more ' if no_more else ''}send as {sender}")


@app.command("list")
def list_users(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Only users of this host.")] = None,
    json: AsJson = False,
) -> None:
    """List users, of one virtual host or of all."""
    with open_to_read(layout_of(context).directory_db) as directory:
        wanted = [directory.host(host_name(host))] if host else directory.hosts()
        found = []
        for each in wanted:
            passwords = directory.credentials(each.name)
            senders = directory.senders(each.name)
            found += [
                {
                    "address": f"{user.local_part}@{user.host}",
                    "host": user.host,
                    "sign_in": user.local_part in passwords and not user.suspended,
                    "suspended": user.suspended,
                    "quota": user.quota,
                    "senders": list(senders.get(user.local_part, ())),
                }
                for user in directory.users(each.name)
            ]
    if json:
        as_json(found)
        return
    columns = ("address", "host", "signs in", "quota", "sends also as")
    rows = [
        (u["address"], u["host"], _signs_in(u), _shown(u["quota"]), u["senders"])
        for u in found
    ]
    table("users", columns, rows, "no users yet")


def size(text: str) -> int | None:
    """Return the bytes that a text such as 500M means; None for none.

    Raises:
        BadInput: it means nothing of the kind.
    """
    if text.lower() == "none":
        return None
    found = re.fullmatch(r"([0-9]{1,15})\s*([KMGT]?)(?:I?B)?", text.strip().upper())
    if not found or not int(found[1]):
        raise BadInput(
            "quota", text, "write it as 500M, 2G or a number of bytes; or none"
        )
    return int(found[1]) * _UNITS[found[2]]


def _signs_in(user: Mapping[str, object]) -> str:
    if user["suspended"]:
        return "suspended"
    return "yes" if user["sign_in"] else "no password"


def _shown(quota: object) -> str:
    if not isinstance(quota, int):
        return ""
    for unit, factor in reversed(_UNITS.items()):
        if quota % factor == 0:
            return f"{quota // factor}{unit or ' bytes'}"
    return str(quota)
