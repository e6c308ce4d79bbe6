"""``vnsmail queue``: what waits to be sent."""

import time
from typing import Annotated

import typer

from vnsmail.cli import client
from vnsmail.cli.options import AsJson, layout_of
from vnsmail.cli.render import age, as_json, table
from vnsmail.supervisor import control

app = typer.Typer(help="Queued messages.", no_args_is_help=True)


@app.command("list")
def list_queue(
    context: typer.Context,
    host: Annotated[
        str | None, typer.Option(help="Only this virtual host, or `machine`.")
    ] = None,
    limit: Annotated[int, typer.Option(help="How many at the most.", min=1)] = 100,
    json: AsJson = False,
) -> None:
    """List queued messages, oldest first, with the last answer to each recipient."""
    answer = client.ask(
        layout_of(context), control.ListQueue(host, limit), control.QueueListed
    )
    if json:
        as_json(answer.entries)
        return
    now = time.time()
    rows = [
        (
            entry.envelope.id,
            entry.envelope.owner,
            age(entry.envelope.received_at),
            entry.envelope.sender or "<>",
            address,
            attempts,
            "now" if due <= now else f"in {int(due - now)} s",
            last,
        )
        for entry in answer.entries
        for address, attempts, due, last in entry.recipients
    ]
    columns = ("id", "owner", "age", "sender", "recipient", "tries", "next", "last")
    table("queue", columns, rows, "nothing is queued")
