"""``vnsmail queue``: what waits to be sent."""

import sys
import time
from dataclasses import replace
from typing import Annotated, Literal, TypeAlias

import typer

from vnsmail.cli import client, selecting
from vnsmail.cli.options import AsJson, DryRun, layout_of
from vnsmail.cli.render import age, as_json, facts, line, progress, remark, table
from vnsmail.cli.selecting import (
    Everything,
    Reason,
    Wanted,
    Work,
    Yes,
)
from vnsmail.engines.protocol import QueueEntry
from vnsmail.errors import BadInput, NotFound
from vnsmail.queue.selection import ALL, HELD_UNTIL, Selection
from vnsmail.settings import Layout
from vnsmail.supervisor import control

AT_ONCE = 100
"""Messages that are asked for in one go; more are asked for page by page."""

LOOK_EVERY = 0.2
"""Seconds between two looks at the queues."""

app = typer.Typer(help="Queued messages.", no_args_is_help=True)


@app.command("list")
@selecting.filtered("ids")
def list_queue(
    context: typer.Context,
    meant: Wanted,
    limit: Annotated[int, typer.Option(help="How many at the most.", min=1)] = 100,
    json: AsJson = False,
) -> None:
    """List queued messages, oldest first, with the last answer to each recipient."""
    layout = layout_of(context)
    if meant.selection == Selection() and limit <= AT_ONCE:
        answer = client.ask(
            layout, control.ListQueue(meant.host, limit), control.QueueListed
        )
        found = list(answer.entries)
    else:
        found = list(selecting.entries(layout, meant, limit))
        found.sort(key=lambda entry: entry.envelope.received_at)
    if json:
        as_json(found)
        return
    _show_list(found, meant.selection)


def _show_list(found: list[QueueEntry], meant: Selection) -> None:
    now = time.time()
    rows = [
        (
            entry.envelope.id,
            entry.envelope.owner,
            age(entry.envelope.received_at),
            entry.envelope.sender or "<>",
            address,
            attempts,
            _next(entry, due, now),
            entry.held or last,
        )
        for entry in found
        for address, attempts, due, last in entry.recipients
        if meant.means(address)
    ]
    columns = ("id", "owner", "age", "sender", "recipient", "tries", "next", "last")
    table("queue", columns, rows, "nothing is queued")


def _next(entry: QueueEntry, due: float, now: float) -> str:
    """Return when a recipient is tried again."""
    if entry.held or due >= HELD_UNTIL:
        return "held"
    return "now" if due <= now else f"in {int(due - now)} s"


@app.command()
def show(
    context: typer.Context,
    queue_id: Annotated[str, typer.Argument(metavar="ID", help="Queue id.")],
    json: AsJson = False,
) -> None:
    """Show one queued message: envelope, recipients with their last answer, header."""
    layout = layout_of(context)
    meant = selecting.wanted([queue_id], None, None, None, None, None, None)
    for owner in selecting.owners(layout, None):
        question = control.FindQueue(owner, meant.selection, header=True)
        page = client.ask(layout, question, control.QueuePage)
        if page.entries:
            _show(page.entries[0], page.header, json=json)
            return
    raise NotFound("queue id", queue_id, f"see `vnsmail trace {queue_id}`")


def _show(entry: QueueEntry, header: str, *, json: bool) -> None:
    if json:
        as_json({"entry": entry, "header": header})
        return
    envelope, now = entry.envelope, time.time()
    pairs: list[tuple[str, object]] = [
        ("id", envelope.id),
        ("owner", envelope.owner),
        ("age", age(envelope.received_at)),
        ("sender", envelope.sender or "<>"),
        ("size", f"{entry.size} octets"),
        ("priority", envelope.priority.name.lower()),
    ]
    if envelope.tls:
        pairs.append(("TLS", f"{envelope.tls} by its sender"))
    if entry.held:
        pairs.append(("held", entry.held))
    if entry.active:
        pairs.append(("state", "being sent"))
    facts(pairs)
    rows = [
        (address, tries, _next(entry, due, now), last)
        for address, tries, due, last in entry.recipients
    ]
    table("recipients", ("recipient", "tries", "next", "last"), rows, "no recipients")
    for text in header.rstrip().splitlines():
        line(f"  {text}")


@app.command()
@selecting.filtered()
def retry(
    context: typer.Context,
    meant: Wanted,
    everything: Everything = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Try messages now, and ask destinations again that are down."""
    _work(context, meant, "retry", everything=everything, dry_run=dry_run, json=json)


@app.command()
@selecting.filtered()
def hold(
    context: typer.Context,
    meant: Wanted,
    reason: Reason = "held by the postmaster",
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Send messages no more until they are released; they do not grow too old.

    `--host` alone holds all that the host sends, `--host` with `--domain` all that it
    sends there, also what comes later. Anything else holds the messages that are there.
    """
    place = _place(meant)
    if place is not None:
        _hold_place(
            context, meant.host or "", place, reason, dry_run=dry_run, json=json
        )
        return
    _work(context, meant, "hold", reason=reason, dry_run=dry_run, json=json)


@app.command()
@selecting.filtered("status")
def release(
    context: typer.Context,
    meant: Wanted,
    everything: Everything = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Send again what is held: a host or a destination as in `hold`, and messages.

    `--host` with or without `--domain` takes such a hold away; messages that are held
    for themselves are released by id, by `--sender`, `--recipient` or `--older`, or with
    `--all`.
    """
    place = _place(meant)
    if place is not None and not everything:
        _hold_place(
            context,
            meant.host or "",
            place,
            "",
            release=True,
            dry_run=dry_run,
            json=json,
        )
        return
    held = replace(meant, selection=replace(meant.selection, status="held"))
    _work(context, held, "release", everything=everything, dry_run=dry_run, json=json)


@app.command()
@selecting.filtered()
def delete(
    context: typer.Context,
    meant: Wanted,
    everything: Everything = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Throw messages away; nobody is told. Recipients that are not meant stay."""
    _sure(context, meant, "delete", everything=everything, yes=yes or dry_run)
    _work(context, meant, "delete", everything=everything, dry_run=dry_run, json=json)


@app.command()
@selecting.filtered()
def bounce(
    context: typer.Context,
    meant: Wanted,
    everything: Everything = False,
    reason: Reason = "the postmaster has returned the message",
    yes: Yes = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Give messages back to their senders, with a notice that says why."""
    _sure(context, meant, "bounce", everything=everything, yes=yes or dry_run)
    _work(
        context,
        meant,
        "bounce",
        everything=everything,
        reason=reason,
        dry_run=dry_run,
        json=json,
    )


@app.command()
@selecting.filtered()
def move(
    context: typer.Context,
    meant: Wanted,
    to: Annotated[str, typer.Option(help="The virtual host that is to send them.")],
    everything: Everything = False,
    force: Annotated[
        bool,
        typer.Option(help="Also messages whose sender is in none of its domains."),
    ] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Move messages to another host's queue, which sends them from then on.

    They leave from its address, under its name, signed with its keys too, and are due
    at once; they stay as old as they are. Each goes once, whatever is interrupted: what
    was begun is finished by itself. What is being sent stays. Messages whose sender is
    in none of its domains stay, unless --force is given.
    """
    if meant.host is None:
        raise BadInput("host", "", "say whose messages: give --host")
    if not (dry_run or yes):
        _sure_to_move(context, meant, to, force=force, everything=everything)
    _refuse_whole(meant, everything=everything)
    done, refused = Work(), list[str]()
    for page in selecting.moved(
        layout_of(context), meant, to, force=force, dry_run=dry_run
    ):
        done.messages += page.messages
        done.recipients += page.recipients
        done.under_way += page.under_way
        refused += page.refused
    if json:
        as_json({"done": done, "refused": refused})
    else:
        _show_moved(done, refused, to, dry_run=dry_run)
    if refused or (meant.selection.ids and not done.messages):
        raise typer.Exit(1)


def _show_moved(done: Work, refused: list[str], to: str, *, dry_run: bool) -> None:
    text = f"{done.messages} messages ({done.recipients} recipients)"
    remark(f"{text} {'would be ' if dry_run else ''}moved to {to}")
    if done.under_way:
        remark(f"{done.under_way} messages are being sent, and were left alone")
    if refused:
        few = ", ".join(refused[:3]) + (" …" if len(refused) > 3 else "")
        remark(
            f"{len(refused)} messages stay: {to} does not send for their senders "
            f"({few}); --force moves them all the same"
        )


def _refuse_whole(meant: Wanted, *, everything: bool) -> None:
    """Refuse what was perhaps not meant: the whole queue of a host."""
    if meant.selection == Selection() and not everything:
        remedy = "say which: ids, --domain, --sender …, or --all of this host"
        raise BadInput("messages", "all", remedy)


def _sure_to_move(
    context: typer.Context, meant: Wanted, to: str, *, force: bool, everything: bool
) -> None:
    _refuse_whole(meant, everything=everything)
    if not sys.stdin.isatty():
        raise BadInput("confirmation", "", "give --yes to move without being asked")
    pages = selecting.moved(layout_of(context), meant, to, force=force, dry_run=True)
    count = sum(page.messages for page in pages)
    if not typer.confirm(f"move {count} messages to {to}?", err=True):
        raise typer.Exit(1)


_DONE = {
    "retry": "due now",
    "hold": "held",
    "release": "released",
    "delete": "deleted",
    "bounce": "returned to their senders",
}

Action: TypeAlias = Literal["retry", "hold", "release", "delete", "bounce"]


def _place(meant: Wanted) -> str | None:
    """Return the destination that is meant as a whole, ``*`` for all; None: messages."""
    if meant.host is None:
        return None
    if meant.selection == Selection(domain=meant.selection.domain):
        return meant.selection.domain or ALL
    return None


def _hold_place(
    context: typer.Context,
    host: str,
    place: str,
    reason: str,
    *,
    release: bool = False,
    dry_run: bool,
    json: bool,
) -> None:
    question = control.HoldPlace(host, place, reason, release, dry_run)
    answer = client.ask(layout_of(context), question, control.PlaceHeld)
    if json:
        as_json(answer)
        return
    what = f"what {host} sends" + ("" if place == ALL else f" to {place}")
    if dry_run:
        held = place in answer.holds
        remark(f"{what} is {'held' if held else 'not held'} now; nothing is changed")
    elif release:
        remark(f"{what} is {'released' if answer.changed else 'not held'}")
    else:
        remark(f"{what} is held: {reason}")


def _refuse_anything(meant: Wanted, *, everything: bool) -> None:
    if meant.anything and not everything:
        raise BadInput(
            "messages", "all", "say which: ids, --host, --domain …, or --all"
        )


def _sure(
    context: typer.Context,
    meant: Wanted,
    action: Action,
    *,
    everything: bool,
    yes: bool,
) -> None:
    """Ask whether that is meant.

    Raises:
        BadInput: there is nobody to ask.
        Exit: it is not.
    """
    _refuse_anything(meant, everything=everything)
    if yes:
        return
    if not sys.stdin.isatty():
        raise BadInput(
            "confirmation", "", f"give --yes to {action} without being asked"
        )
    would = Work()
    for sums in selecting.work(layout_of(context), meant, action, dry_run=True):
        would = sums
    if not typer.confirm(
        f"{action} {would.messages} messages ({would.recipients} recipients)?", err=True
    ):
        raise typer.Exit(1)


def _work(
    context: typer.Context,
    meant: Wanted,
    action: Action,
    *,
    everything: bool = False,
    reason: str = "",
    dry_run: bool = False,
    json: bool = False,
) -> None:
    _refuse_anything(meant, everything=everything)
    done = Work()
    going = selecting.work(
        layout_of(context), meant, action, reason=reason, dry_run=dry_run
    )
    for sums in going:
        done = sums
    if json:
        as_json(done)
    else:
        verb = "would be " if dry_run else ""
        text = f"{done.messages} messages ({done.recipients} recipients) {verb}"
        remark(f"{text.rstrip()} {_DONE[action]}")
        if done.under_way:
            remark(f"{done.under_way} messages are being sent, and were left alone")
    if meant.selection.ids and not done.messages and not done.under_way:
        raise NotFound("queue id", ", ".join(meant.selection.ids), "nothing is changed")


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
    if host is not None:
        _known(layout, host)
    left, unknown = _queued(layout, host)
    most = left
    with progress("queue") as tell:
        while (left or unknown) and time.monotonic() < deadline:
            most = max(most, left)
            tell("messages left to send", most - left, most)
            time.sleep(LOOK_EVERY)
            left, unknown = _queued(layout, host)
    if unknown:
        owner, reason = next(iter(unknown.items()))
        text = (
            f"nobody knows what is queued of {owner} after {timeout:g} s: {reason}; "
            "see `vnsmail status`"
        )
        raise client.Refused(text, 1)
    if left:
        text = (
            f"{left} messages are still queued after {timeout:g} s; "
            "see `vnsmail queue list`"
        )
        raise client.Refused(text, 1)
    remark("nothing is queued")


def _known(layout: Layout, host: str) -> None:
    """Check that there is such an owner: a wrong name is no queue that is empty.

    Raises:
        Refused: there is none.
    """
    try:
        client.ask(layout, control.ListQueue(host, 1), control.QueueListed)
    except client.Refused as error:
        if error.exit_code == BadInput.exit_code:
            raise
        # It is not served at the moment, which is waited for.


def _queued(layout: Layout, host: str | None) -> tuple[int, dict[str, str]]:
    """Return how many messages are queued, and of whom that is not known, and why."""
    found = client.ask(layout, control.GetStatus(), control.Status)
    reports = {report.owner: report for report in found.owners}
    # One that is not served now has a queue all the same.
    unknown = {o: why for o, why in found.problems if o not in reports}
    unknown |= {r.owner: r.problem for r in found.owners if r.unread}
    if host is not None:
        unknown = {o: why for o, why in unknown.items() if o == host}
        if host not in reports:
            unknown.setdefault(host, "it is not served")
    counted = (
        r.messages + r.engine_messages for o, r in reports.items() if host in {None, o}
    )
    return sum(counted), unknown
