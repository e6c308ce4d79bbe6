"""Which queued messages a command means, and going through them page by page."""

import inspect
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, cast

import typer

from vnsmail.cli import client
from vnsmail.engines.protocol import QueueEntry
from vnsmail.errors import BadInput, NotFound
from vnsmail.model import MACHINE, domain_name
from vnsmail.queue.envelope import ENTROPY_BYTES, destination, is_id, new_id
from vnsmail.queue.selection import Selection, Status
from vnsmail.settings import Layout
from vnsmail.supervisor import control

STATUSES = ("deferred", "held", "active", "due")

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Queue ids.")]
Host = Annotated[str | None, typer.Option(help="Only this virtual host, or `machine`.")]
Domain = Annotated[str | None, typer.Option(help="Only recipients in this domain.")]
Sender = Annotated[
    str | None, typer.Option(help="Only from this address; `<>` is the null one.")
]
Recipient = Annotated[str | None, typer.Option(help="Only to this address.")]
Older = Annotated[
    str | None,
    typer.Option(metavar="AGE", help="Only queued for longer: 90m, 12h, 3d."),
]
StatusIs = Annotated[
    str | None,
    typer.Option("--status", help="Only deferred, held, active or due ones."),
]
Everything = Annotated[
    bool, typer.Option("--all", help="All messages that no option leaves out.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Reason = Annotated[str, typer.Option(help="Why, for those who look later.")]

_AGE = re.compile(r"(\d{1,6})([smhd]?)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the words of a command mean."""

    host: str | None
    selection: Selection

    @property
    def anything(self) -> bool:
        """Whether no word leaves anything out."""
        return self.host is None and self.selection == Selection()


def wanted(
    ids: list[str] | None,
    host: str | None,
    domain: str | None,
    sender: str | None,
    recipient: str | None,
    older: str | None,
    status: str | None,
) -> Wanted:
    """Return what is meant.

    Raises:
        BadInput: a word is none of its kind.
    """
    for each in ids or ():
        if not is_id(each):
            raise BadInput("queue id", each, "see `vnsmail queue list`")
    if status is not None and status not in STATUSES:
        raise BadInput("status", status, f"choose one of {', '.join(STATUSES)}")
    name = domain_name(domain) if domain else ""
    if recipient and "@" not in recipient:
        raise BadInput("recipient", recipient, "write it as user@b.example")
    if recipient and name and destination(recipient) != name:
        raise BadInput("recipient", recipient, f"it is not in {name}")
    before = ""
    if older is not None:
        before = new_id(max(time.time() - age(older), 0.0), bytes(ENTROPY_BYTES))
    return Wanted(
        host,
        Selection(
            tuple(ids or ()),
            name,
            None if sender is None else sender.strip("<>"),
            recipient or "",
            before,
            cast("Status", status or ""),
        ),
    )


_FILTERS = {
    "ids": Ids,
    "host": Host,
    "domain": Domain,
    "sender": Sender,
    "recipient": Recipient,
    "older": Older,
    "status": StatusIs,
}


def filtered(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options that say which messages are meant, as ``meant``.

    Args:
        without: those of the options that it does not have.
    """
    options = {name: kind for name, kind in _FILTERS.items() if name not in without}

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        own = dict(inspect.signature(function).parameters)
        del own["meant"]
        context, *rest = own.values()

        def command(**given: Any) -> None:  # noqa: ANN401  whatever typer read
            words = {name: given.pop(name, None) for name in _FILTERS}
            function(meant=wanted(**words), **given)

        kind = inspect.Parameter.KEYWORD_ONLY
        filters = [
            inspect.Parameter(name, kind, default=None, annotation=each)
            for name, each in options.items()
        ]
        others = [each.replace(kind=kind) for each in rest]
        whole = [context.replace(kind=kind), *filters, *others]
        command.__signature__ = inspect.Signature(whole)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in whole}
        command.__name__, command.__doc__ = function.__name__, function.__doc__
        return command

    return decorate


def age(text: str) -> int:
    """Return the seconds of 90m, 12h or 3d.

    Raises:
        BadInput: it is no such age.
    """
    match = _AGE.fullmatch(text)
    if match is None:
        raise BadInput("age", text, "write it as 90m, 12h or 3d")
    return int(match[1]) * _UNITS[match[2]]


def owners(layout: Layout, host: str | None) -> list[str]:
    """Return whose queues are meant.

    Raises:
        NotFound: there is no such host.
    """
    found = client.ask(layout, control.GetStatus(), control.Status)
    names = [report.owner for report in found.owners]
    if host is None:
        return names
    if host not in names and host != MACHINE:
        raise NotFound("virtual host", host, "see `vnsmail host list`")
    return [host]


def entries(layout: Layout, meant: Wanted, limit: int) -> Iterator[QueueEntry]:
    """Give messages that are meant, host by host, no more than so many."""
    left = limit
    for owner in owners(layout, meant.host):
        place = ""
        while left > 0:
            question = control.FindQueue(owner, meant.selection, place, left)
            page = client.ask(layout, question, control.QueuePage)
            yield from page.entries[:left]
            left -= len(page.entries)
            place = page.place
            if not place:
                break


@dataclass(slots=True)
class Work:
    """What was done, or would be."""

    messages: int = 0
    recipients: int = 0
    under_way: int = 0
    """Messages left alone: they are being sent."""


def work(
    layout: Layout,
    meant: Wanted,
    action: Literal["retry", "hold", "release", "delete", "bounce"],
    *,
    reason: str = "",
    dry_run: bool = False,
) -> Iterator[Work]:
    """Do something to all that is meant, page by page; gives the sums so far."""
    done = Work()
    for owner in owners(layout, meant.host):
        place = ""
        while True:
            question = control.WorkQueue(
                owner, action, meant.selection, place, reason, dry_run
            )
            page = client.ask(layout, question, control.QueueWorked)
            done.messages += page.messages
            done.recipients += page.recipients
            done.under_way += page.under_way
            yield replace(done)
            place = page.place
            if not place:
                break


def moved(
    layout: Layout, meant: Wanted, to: str, *, force: bool, dry_run: bool
) -> Iterator[control.QueueMoved]:
    """Move all that is meant of one host to another, page by page."""
    for owner in owners(layout, meant.host):
        place = ""
        while True:
            question = control.MoveQueue(
                owner, to, meant.selection, place, force, dry_run
            )
            page = client.ask(layout, question, control.QueueMoved)
            yield page
            place = page.place
            if not place:
                break
