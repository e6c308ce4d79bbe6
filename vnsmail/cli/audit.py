"""``vnsmail audit``: how connections begin, looked at all the time."""

import typer

from vnsmail.cli import client
from vnsmail.cli.options import AsJson, layout_of
from vnsmail.cli.render import age, as_json, facts, remark, table
from vnsmail.settings import Layout
from vnsmail.supervisor import control

app = typer.Typer(
    help="Watch how SMTP connections begin, and tell of the first that comes from an "
    "address that is not its sender's. Exits with 1 if there was any.",
    invoke_without_command=True,
)


@app.callback()
def audit(context: typer.Context, json: AsJson = False) -> None:
    """Show what the audit found; exits with 1 if anything is wrong, or it is off."""
    if context.invoked_subcommand is not None:
        return
    _show(_asked(layout_of(context), None), json=json)


@app.command()
def start(context: typer.Context, json: AsJson = False) -> None:
    """Watch from now on, until `stop` or the next start of vnsmail."""
    found = _asked(layout_of(context), on=True)
    if json:
        as_json(found)
    else:
        remark("the audit watches; `vnsmail audit` shows what it found")


@app.command()
def stop(context: typer.Context, json: AsJson = False) -> None:
    """Watch no more, and forget what was found."""
    found = _asked(layout_of(context), on=False)
    if json:
        as_json(found)
    else:
        remark("the audit is off")


def _asked(layout: Layout, on: bool | None) -> control.Watched:
    return client.ask(layout, control.WatchMail(on), control.Watched)


def _show(found: control.Watched, *, json: bool) -> None:
    if json:
        as_json(found)
    elif found.state == "off":
        remark(
            "the audit is off; `vnsmail audit start`, or audit.enabled in vnsmail.toml"
        )
    else:
        facts(
            [
                ("state", found.state),
                ("since", f"{age(found.since)} ago"),
                ("links", ", ".join(found.links)),
                ("packets", f"{found.packets} looked at, {found.dropped} lost"),
                ("connections", f"{found.connections} seen to begin"),
                ("right", found.right),
                ("wrong", found.wrong),
            ]
        )
        if found.problem:
            remark(found.problem)
        rows = [
            (
                f"{age(each.time)} ago",
                each.host or "nobody here",
                f"{each.source} port {each.source_port}",
                f"{each.remote} port {each.remote_port}",
                each.helo,
                each.reason,
            )
            for each in found.found
        ]
        columns = ("when", "sender", "from", "to", "HELO", "what is wrong")
        table("wrong connections", columns, rows, "nothing is wrong")
    if found.wrong or found.found or found.state != "running":
        raise typer.Exit(1)
