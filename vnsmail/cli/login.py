"""``vnsmail login``: local accounts that send as users, with the sendmail command."""

import pwd
from typing import Annotated

import typer

from vnsmail.cli import client
from vnsmail.cli.options import AsJson, layout_of
from vnsmail.cli.render import as_json, remark, table
from vnsmail.directory import open_to_read
from vnsmail.errors import BadInput
from vnsmail.model import host_name
from vnsmail.supervisor import control

app = typer.Typer(
    help="Local accounts that send as users of virtual hosts (sendmail command).",
    no_args_is_help=True,
)

_LAST_UID = 2**32 - 2


@app.command()
def add(
    context: typer.Context,
    address: Annotated[str, typer.Argument(help="Such as user@alpha.example.")],
    accounts: Annotated[
        list[str], typer.Argument(help="Names of local accounts, or uids.")
    ],
) -> None:
    """Let local accounts send as a user: what they hand to sendmail is its mail."""
    for name, uid in [(account, _uid(account)) for account in accounts]:
        request = control.AddLogin(address, uid, name)
        client.ask(layout_of(context), request, control.Done)
        remark(f"account {name} (uid {uid}) sends as {address}")


@app.command()
def remove(
    context: typer.Context,
    accounts: Annotated[
        list[str], typer.Argument(help="Names of local accounts, or uids.")
    ],
) -> None:
    """Let local accounts send no more. What they sent before goes on."""
    for account in accounts:
        client.ask(layout_of(context), control.RemoveLogin(account), control.Done)
        remark(f"account {account} sends no more")


@app.command("list")
def list_logins(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Only those of this host.")] = None,
    json: AsJson = False,
) -> None:
    """List the accounts that may send, and as whom."""
    with open_to_read(layout_of(context).directory_db) as directory:
        name = directory.host(host_name(host)).name if host else None
        found = [
            (each.name, each.uid, f"{each.user.local_part}@{each.user.host}")
            for each in directory.logins(name)
        ]
    if json:
        as_json([{"account": a, "uid": u, "user": user} for a, u, user in found])
    else:
        rows = [(account, str(uid), user) for account, uid, user in found]
        table("accounts", ("account", "uid", "user"), rows, "no accounts yet")


def _uid(account: str) -> int:
    """Return the uid of an account that is there, or of any number.

    Raises:
        BadInput: there is none, or it is root, who is the machine.
    """
    if account.isascii() and account.isdecimal():
        uid = int(account)
    else:
        try:
            uid = pwd.getpwnam(account).pw_uid
        except (KeyError, ValueError):
            remedy = "there is no such account here; create it, or give its uid"
            raise BadInput("account", account, remedy) from None
    if uid == 0:
        remedy = "it sends as the machine, or as any user with -f"
        raise BadInput("account", account, remedy)
    if uid > _LAST_UID:
        raise BadInput("account", account, "there is no such uid")
    return uid
