"""``vnsmail trace``: the life of a message, from the event log and the queue."""

import time
from datetime import datetime
from typing import Annotated

import typer

from vnsmail.cli import selecting
from vnsmail.cli.options import AsJson, layout_of
from vnsmail.cli.render import as_json, line, remark
from vnsmail.engines.protocol import QueueEntry
from vnsmail.errors import BadInput, DaemonNotRunning, NotFound, NotPrivileged
from vnsmail.events import record, search
from vnsmail.events.record import Accepted, Event
from vnsmail.queue.envelope import arrival, is_id
from vnsmail.queue.selection import HELD_UNTIL
from vnsmail.settings import Layout, event_file, load


def trace(
    context: typer.Context,
    queue_id: Annotated[str, typer.Argument(metavar="ID", help="Queue id.")],
    json: AsJson = False,
) -> None:
    """Tell the life of a message: who brought it, each attempt, and how it ended.

    It is read from the event log, rotated files included, and from the queue.
    """
    layout = layout_of(context)
    if not is_id(queue_id):
        raise BadInput("queue id", queue_id, "it has 20 letters and digits")
    file = event_file(layout, load(layout.settings_file))
    life = search.Life(queue_id)
    if file is None:
        remark("there is no event log (events.file is off)")
    else:
        try:
            life = search.trace(file, queue_id, arrival(queue_id))
        except PermissionError:
            what = f"read {file}"
            raise NotPrivileged(what, "run it as root") from None
    entry = _queued(layout, queue_id)
    if not life.events and entry is None:
        where = f"neither a queue nor {file} has it" if file else "no queue has it"
        raise NotFound("queue id", queue_id, where)
    if json:
        as_json({"id": queue_id, "events": life.events, "queued": entry})
        return
    for event in life.events:
        line(f"{_stamp(event.time)}  {_name(event, queue_id):<9} {said(event)}")
    if entry is not None:
        _tell_queued(entry)


def _queued(layout: Layout, queue_id: str) -> QueueEntry | None:
    """Return the message as it is queued now; None if it is not, or nobody knows."""
    meant = selecting.wanted([queue_id], None, None, None, None, None, None)
    try:
        return next(selecting.entries(layout, meant, 1), None)
    except DaemonNotRunning:
        remark("vnsmail is not running: what is queued is not looked at")
        return None


def _tell_queued(entry: QueueEntry) -> None:
    now = time.time()
    for address, tries, due, last in entry.recipients:
        if entry.held or due >= HELD_UNTIL:
            when = f"held: {entry.held}"
        elif entry.active:
            when = "being sent"
        else:
            when = "due now" if due <= now else f"next attempt in {int(due - now)} s"
        words = [address, when, f"{tries} attempts", last]
        line(
            f"{_stamp(record.at(now))}  {'queued':<9} {'; '.join(filter(None, words))}"
        )


def _stamp(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _name(event: Event, queue_id: str) -> str:
    if isinstance(event, Accepted) and event.about == queue_id:
        return "notice" if event.via == "notice" else event.via
    return type(event).__name__.lower()


def said(event: Event) -> str:  # noqa: PLR0911  one line an event, like a table
    """Return in one line what an event says, besides when and what."""
    match event:
        case Accepted():
            return _accepted(event)
        case record.Delivered() | record.Bounced() | record.Expired():
            return _attempt(event)
        case record.Deferred(next_attempt=at):
            when = f"; again at {_stamp(at)}" if at else ""
            return _attempt(event) + when
        case record.Held(reason=reason):
            return reason
        case record.Moved(to=to, recipients=recipients):
            return f"to {to}: {', '.join(recipients)}"
        case record.Deleted(recipients=recipients):
            return ", ".join(recipients)
        case record.Delayed():
            return "the sender is told that it is late"
        case record.Withdrawn():
            return "taken out of the queue while it was under way"
        case _:
            return ""


def _accepted(event: Accepted) -> str:
    size = f"{event.size} octets"
    if event.about:
        words = [f"{event.id} to {', '.join(event.recipients)}", size]
        return "; ".join(words)
    by = event.user or (f"uid {event.uid}" if event.uid is not None else "")
    peer = event.peer
    if event.peer_name:
        peer = f"{event.peer_name} [{event.peer}]"
    words = [
        f"{event.host}, {event.via}",
        f"by {by}" if by else "",
        f"from {peer}" if peer else "",
        f"HELO {event.helo}" if event.helo else "",
        event.tls,
        f"<{event.sender}> to {', '.join(event.recipients)}",
        size,
    ]
    more = event.recipient_count - len(event.recipients)
    return "; ".join(filter(None, [*words, f"and {more} recipients" if more else ""]))


def _attempt(
    event: record.Delivered | record.Deferred | record.Bounced | record.Expired,
) -> str:
    way = event.remote
    if event.remote_address:
        source, remote = _place(event.source, event.source_port), event.remote_address
        way = f"{source} → {event.remote} {_place(remote, event.remote_port)}"
    times = (
        ("connect", event.connect_seconds),
        ("hello", event.hello_seconds),
        ("data", event.data_seconds),
        ("total", event.total_seconds),
    )
    words = [
        event.recipient,
        f"attempt {event.attempt}",
        way,
        f"HELO {event.helo}" if event.helo else "",
        event.tls or ("no TLS" if event.remote_address else ""),
        event.reply,
        ", ".join(f"{name} {1000 * each:.1f} ms" for name, each in times if each),
    ]
    return "; ".join(filter(None, words))


def _place(address: str, port: int) -> str:
    return f"[{address}]:{port}"
