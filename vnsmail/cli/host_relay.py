"""``vnsmail host relay``: the server that all mail of a host for others leaves by."""

import getpass
import sys
from typing import Annotated

import typer

from vnsmail.cli import client
from vnsmail.cli.host_changes import Value, show_change
from vnsmail.cli.host_move import app
from vnsmail.cli.options import AsJson, DryRun, layout_of
from vnsmail.cli.password import FromStdin
from vnsmail.cli.render import as_json, facts
from vnsmail.directory import open_to_read
from vnsmail.errors import BadInput
from vnsmail.model import host_name
from vnsmail.settings import Layout
from vnsmail.supervisor import control

__all__ = ["app"]


@app.command()
def relay(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the virtual host.")],
    server: Annotated[
        str | None,
        typer.Argument(help="Such as smtp.relay.example:587; none shows the relay."),
    ] = None,
    user: Annotated[
        str | None, typer.Option(help="Who the host signs in as; else it does not.")
    ] = None,
    stdin: FromStdin = False,
    password_file: Annotated[
        str | None,
        typer.Option(
            help="A file that has the password, and that nobody but root may read."
        ),
    ] = None,
    remove: Annotated[
        bool, typer.Option("--none", help="Have no relay: send as DNS says.")
    ] = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Send all mail of a virtual host for others by one server (a smart host).

    With a user the host signs in there: only within TLS, and only at a server that has
    proven who it is. On a terminal the password is asked for; vnsmail keeps it where
    only root can read it. Without SERVER the relay is shown; with --password-stdin
    alone it gets another password.
    """
    layout = layout_of(context)
    given = (server, user, password_file)
    if remove and (stdin or any(each is not None for each in given)):
        raise BadInput("relay", server or "", "give --none, or a relay")
    if server is None and (user is not None or password_file is not None):
        raise BadInput("relay", "", "say which server, then --user or --password-file")
    if server is None and not stdin and not remove:
        _show(layout, name, json=json)
        return
    changes: dict[str, Value] = {}
    if remove:
        changes["relay"] = None
    elif server is not None:
        changes["relay"] = None
        changes["relay.server"] = server
        changes["relay.user"] = user
        changes["relay.password_file"] = password_file
    asked = user is not None and password_file is None and not dry_run
    password = _password(stdin=stdin, ask=asked)
    request = control.ChangeHost(
        name, changes, dry_run=dry_run, relay_password=password
    )
    answer = client.ask(layout, request, control.Changed)
    show_change(answer, name, request, json)


def _password(*, stdin: bool, ask: bool) -> str:
    """Return the password that is given or asked for; empty if the known one stays."""
    if stdin:
        text = sys.stdin.readline().rstrip("\r\n")
        if not text:
            raise BadInput("password", "", "there is nothing on the standard input")
        return text
    if not ask or not sys.stdin.isatty():
        return ""
    return getpass.getpass("Password at the relay (empty: as it was): ")


def _show(layout: Layout, name: str, *, json: bool) -> None:
    with open_to_read(layout.directory_db) as directory:
        found = directory.host(host_name(name)).relay
    if json:
        as_json(None if found is None else found)
        return
    if found is None:
        facts([("relay", "none: mail goes where DNS and the settings say")])
        return
    where = found.password_file or "kept by vnsmail"
    pairs: list[tuple[str, object]] = [("relay", found.server)]
    if found.user:
        pairs += [("user", found.user), ("password", where)]
    facts(pairs)
