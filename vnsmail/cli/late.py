"""The nouns of the command line, each imported when it is called.

Rules of this file: what stands in the table is all that ``vnsmail --help`` and the
completion of the first word need, so neither imports a command. A test compares it with
the commands.
"""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group


@dataclass(frozen=True, slots=True)
class Late:
    """A command, or a noun with several, and where it is."""

    place: str
    """``module:name`` below vnsmail.cli; the name is a function or an app of typer."""
    help: str
    """First paragraph of its help."""
    options: dict[str, Any] = field(default_factory=dict)
    """What ``typer.Typer.command`` is told besides the name."""


COMMANDS = {
    "up": Late(
        "daemon:up",
        "Start vnsmail: network, broker and workers. Ctrl-C ends it in the foreground.",
    ),
    "down": Late(
        "daemon:down",
        "End vnsmail. Queues keep what is not sent; namespaces and addresses stay.",
    ),
    "status": Late(
        "daemon:status",
        "Show processes with their privileges, and how each virtual host is doing.",
    ),
    "doctor": Late(
        "doctor:doctor",
        "Look whether all is as it should be; exit 1 if anything is not, or is unknown.",
    ),
    "metrics": Late(
        "metrics:metrics",
        "Write queues, sessions, guard counters, restarts and drift as Prometheus reads it.",
    ),
    "apply": Late("apply:apply", "Make the virtual hosts of a file all there are."),
    "export": Late(
        "apply:export",
        "Write the virtual hosts that should be, as a file for `vnsmail apply`.",
    ),
    "send": Late(
        "send:send",
        "Queue a message. It is durable when this returns, and leaves by itself.",
    ),
    "trace": Late(
        "trace:trace",
        "Tell the life of a message: who brought it, each attempt, and how it ended.",
    ),
    "top": Late(
        "top:top",
        "Show what the hosts are doing, the busiest first, until q or Ctrl-C.",
    ),
    "prove": Late(
        "prove:prove",
        "Judge from packets whether all mail left from the address of its sender.",
    ),
    "audit": Late(
        "audit:app",
        "Watch how SMTP connections begin, and tell of the first that comes from an address that is not its sender's. Exits with 1 if there was any.",
    ),
    "exec": Late(
        "run:run",
        "Run any program as a virtual host: what it connects leaves from its address.",
        # What follows HOST is not ours, options neither.
        {
            "context_settings": {
                "ignore_unknown_options": True,
                "allow_interspersed_args": False,
            }
        },
    ),
    "sendmail": Late(
        "sendmail_words:sendmail",
        "Hand over a message as /usr/sbin/sendmail does (-t -i -f -F -bs -bp and more).",
        {
            "context_settings": {
                "ignore_unknown_options": True,
                "help_option_names": [],
            },
            "add_help_option": False,
        },
    ),
    "host": Late(
        "host_relay:app", "Create, look at, change and destroy virtual hosts."
    ),
    "user": Late("user:app", "Users of virtual hosts."),
    "alias": Late(
        "alias:app", "Addresses whose mail goes to others, here or elsewhere."
    ),
    "login": Late(
        "login:app",
        "Local accounts that send as users of virtual hosts (sendmail command).",
    ),
    "dkim": Late("dkim:app", "Keys that sign what a virtual host sends (DKIM)."),
    "queue": Late("queue:app", "Queued messages."),
    "tls": Late("tls:app", "TLS to other servers."),
    "lab": Late(
        "lab:app",
        "An internet in network namespaces: a name server, two remote mail hosts, virtual hosts and the machine itself. The real network is not touched.",
    ),
}


class LateGroup(TyperGroup):
    """The commands of the table: listed by what it says, imported when called."""

    def __init__(self, **attributes: Any) -> None:  # noqa: ANN401  typer's own
        super().__init__(**attributes)
        for name, late in COMMANDS.items():
            listed = TyperCommand(name, help=late.help)
            self.add_command(listed, name)

    def resolve_command(  # type: ignore[override]  # typer does not show its click
        self, ctx: typer.Context, args: list[str]
    ) -> tuple[str | None, TyperCommand | TyperGroup | None, list[str]]:
        name, listed, rest = super().resolve_command(ctx, args)
        return name, load(name) if name and listed else None, rest


def load(name: str) -> TyperCommand | TyperGroup:
    """Return the command that stands in the table under that name."""
    late = COMMANDS[name]
    module, _, attribute = late.place.partition(":")
    found = getattr(import_module(f"vnsmail.cli.{module}"), attribute)
    holder = typer.Typer(rich_markup_mode="markdown")
    if isinstance(found, typer.Typer):
        holder.add_typer(found, name=name)
    else:
        holder.command(name, **late.options)(found)
    return cast("TyperCommand | TyperGroup", get_group(holder).commands[name])
