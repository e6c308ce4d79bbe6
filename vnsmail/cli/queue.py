"""``vnsmail queue``: what waits to be sent."""

import time
from typing import Annotated

import typer

from vnsmail.cli import client
from vnsmail.cli.options import AsJson, layout_of
from vnsmail.cli.render import age, as_json, progress, remark, table
from vnsmail.settings import Layout
from vnsmail.supervisor import control

LOOK_EVERY = 0.2
"""Seconds between two looks at the queues."""

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


@app.command()
def wait(
    context: typer.Context,
    host: Annotated[
        str | None, typer.Option(help="Only this virtual host, or `machine`.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait at the most.", min=0)
    ] = 60,
) -> None:
    """Wait until nothing is queued any more; exit 1 if something still is."""
    layout = layout_of(context)
    deadline = time.monotonic() + timeout
    most = left = _queued(layout, host)
    with progress("queue") as tell:
        while left and time.monotonic() < deadline:
            most = max(most, left)
            tell("messages left to send", most - left, most)
            time.sleep(LOOK_EVERY)
            left = _queued(layout, host)
    if left:
        text = (
            f"{left} messages are still queued after {timeout:g} s; "
            "see `vnsmail queue list`"
        )
        raise client.Refused(text, 1)
    remark("nothing is queued")


def _queued(layout: Layout, host: str | None) -> int:
    """Return how many messages are queued, of one owner or of all."""
    if host is not None:
        # A wrong name is an error, and not a queue that is empty.
        client.ask(layout, control.ListQueue(host, 1), control.QueueListed)
    found = client.ask(layout, control.GetStatus(), control.Status)
    return sum(
        report.messages for report in found.owners if host in {None, report.owner}
    )
