"""``vnsmail host set|limits|suspend|resume|address|rename|stats``: hosts that exist."""

from typing import Annotated, TypeAlias

import msgspec
import typer

from vnsmail.cli import client
from vnsmail.cli.host import app
from vnsmail.cli.options import AsJson, DryRun, NoProbe, layout_of
from vnsmail.cli.render import age, as_json, facts, line, remark, table
from vnsmail.errors import BadInput
from vnsmail.settings import Layout
from vnsmail.supervisor import control

NONE = "none"
"""The word that takes a fact away."""

DRAIN = 60.0
"""Seconds for what is being said at an address that goes."""

LONGER = 120.0
"""Seconds beyond a drain that a change itself may take."""

Name: TypeAlias = Annotated[str, typer.Argument(help="Name of the virtual host.")]
Value: TypeAlias = str | int | bool | tuple[str, ...] | None

address = typer.Typer(
    help="Add addresses to a virtual host, and take some from it.",
    no_args_is_help=True,
)
app.add_typer(address, name="address")

__all__ = ["app"]


@app.command("set")
def set_facts(
    context: typer.Context,
    name: Name,
    domain: Annotated[
        list[str] | None,
        typer.Option(help="A further mail domain; all there are to be, or none."),
    ] = None,
    helo: Annotated[
        str | None,
        typer.Option(help="What it calls itself in EHLO; none is its name."),
    ] = None,
    link: Annotated[str | None, typer.Option(help="Link of the machine.")] = None,
    uplink: Annotated[
        str | None, typer.Option(help="How its namespace reaches the network.")
    ] = None,
    gateway: Annotated[
        list[str] | None,
        typer.Option(help="Router for what leaves from its addresses, or none."),
    ] = None,
    mtu: Annotated[
        str | None, typer.Option(help="Octets of the largest packet, or none.")
    ] = None,
    vlan: Annotated[
        str | None, typer.Option(help="Tag of its packets on the uplink, or none.")
    ] = None,
    resolver: Annotated[
        list[str] | None,
        typer.Option(help="A name server that it asks from its own address, or none."),
    ] = None,
    source_check: Annotated[
        str | None,
        typer.Option(help="What is proven of its source: strict, nat or off."),
    ] = None,
    authentication: Annotated[
        str | None,
        typer.Option(
            help="Mail from strangers that may not be from whom it says: none, mark "
            "(say what was found) or reject (what its domain wants refused)."
        ),
    ] = None,
    public_address: Annotated[
        list[str] | None,
        typer.Option(help="What remotes see behind NAT, or none."),
    ] = None,
    where: Annotated[
        str | None, typer.Option("--context", help="namespace or alias.")
    ] = None,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Change facts of a virtual host.

    What is not given stays. An option that can be given several times replaces all
    there were. The word none takes a fact away. Mail that is queued, users and
    mailboxes stay.
    """
    given: dict[str, str | list[str] | None] = {
        "context": where,
        "domains": domain,
        "helo": helo,
        "link": link,
        "uplink": uplink,
        "gateways": gateway,
        "mtu": mtu,
        "vlan": vlan,
        "resolvers": resolver,
        "source_check": source_check,
        "authentication": authentication,
        "public_addresses": public_address,
    }
    changes = {key: _value(key, v) for key, v in given.items() if v is not None}
    if not changes:
        raise BadInput("options", "", "say what to change; see --help")
    _change(layout_of(context), name, changes, dry_run=dry_run, json=json)


@app.command()
def limits(
    context: typer.Context,
    name: Name,
    messages_per_hour: Annotated[
        str | None,
        typer.Option(help="Messages taken for sending in any hour, or none."),
    ] = None,
    connections: Annotated[
        str | None,
        typer.Option(
            help="Connections open at a time, those that come in and those that go "
            "out each, or none."
        ),
    ] = None,
    queue_bytes: Annotated[
        str | None,
        typer.Option(help="Octets of all messages in its queue together, or none."),
    ] = None,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Limit what a virtual host may use of the machine.

    What is not given stays; none lifts a limit. A message beyond a limit is refused
    for now (451, 452), a connection beyond it is turned away (421); what is to go out
    waits for a connection.
    """
    given = {
        "limits.messages_per_hour": messages_per_hour,
        "limits.connections": connections,
        "limits.queue_bytes": queue_bytes,
    }
    changes: dict[str, Value] = {
        key: _number(key, v) for key, v in given.items() if v is not None
    }
    if not changes:
        raise BadInput("options", "", "say which limit; see --help")
    _change(layout_of(context), name, changes, dry_run=dry_run, json=json)


@app.command()
def suspend(
    context: typer.Context, name: Name, dry_run: DryRun = False, json: AsJson = False
) -> None:
    """Stop sending and receiving of a virtual host.

    Its queue, users, mailboxes and network stay. Clients find its ports closed, and
    `vnsmail send` is refused. This outlives restarts, until `vnsmail host resume`.
    """
    layout = layout_of(context)
    _change(layout, name, {"suspended": True}, dry_run=dry_run, json=json)


@app.command()
def resume(
    context: typer.Context,
    name: Name,
    force: Annotated[
        bool,
        typer.Option(
            help="Also if it was packed: its pack must never be unpacked elsewhere."
        ),
    ] = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Send and receive again; mail that waits is tried at once."""
    changes: dict[str, Value] = {"suspended": False}
    request = control.ChangeHost(name, changes, dry_run=dry_run, force=force)
    answer = client.ask(layout_of(context), request, control.Changed)
    show_change(answer, name, request, json)


@app.command("set-engine")
def set_engine(
    context: typer.Context,
    name: Name,
    engine: Annotated[str, typer.Argument(help="native, sendmail, postfix or exim.")],
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Choose what sends a virtual host's mail to other servers.

    Mail that is queued with us stays queued and goes by the new engine. An engine that
    still has mail of its own is not taken away.
    """
    changes: dict[str, Value] = {"engine": engine}
    _change(layout_of(context), name, changes, dry_run=dry_run, json=json)


@address.command("add")
def add_address(
    context: typer.Context,
    name: Name,
    addresses: Annotated[
        list[str], typer.Argument(help="Addresses with prefix length.")
    ],
    no_probe: NoProbe = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Give a virtual host further addresses.

    It receives on them at once. Its mail still leaves from the first of each family.
    """
    request = control.ChangeAddresses(
        name, add=tuple(addresses), dry_run=dry_run, no_probe=no_probe
    )
    show_change(
        client.ask(layout_of(context), request, control.Changed), name, request, json
    )


@address.command("remove")
def remove_address(
    context: typer.Context,
    name: Name,
    addresses: Annotated[list[str], typer.Argument(help="Addresses that it has.")],
    drain: Annotated[
        float,
        typer.Option(help="Seconds for what is being said there; then it is cut off."),
    ] = DRAIN,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Take addresses from a virtual host, without cutting off what is being said.

    Nothing new begins there; the address goes when the last connection has ended.
    """
    request = control.ChangeAddresses(
        name, remove=tuple(addresses), drain=drain, dry_run=dry_run
    )
    patience = max(drain, 0) + LONGER
    layout = layout_of(context)
    answer = client.ask(layout, request, control.Changed, patience=patience)
    show_change(answer, name, request, json)


@app.command()
def rename(
    context: typer.Context,
    name: Name,
    new_name: Annotated[str, typer.Argument(help="Its name from now on.")],
    drop_domain: Annotated[
        bool,
        typer.Option("--drop-domain", help="Take no mail for the old name any more."),
    ] = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Give a virtual host another name.

    Queue, mailboxes, users and addresses go with it. Unless --drop-domain is given, the
    old name stays one of its domains. Its connections end; mail on its way out is tried
    again.
    """
    keep = not drop_domain
    request = control.RenameHost(name, new_name, keep_domain=keep, dry_run=dry_run)
    answer = client.ask(layout_of(context), request, control.Changed)
    show_change(answer, name, request, json)


@app.command()
def stats(context: typer.Context, name: Name, json: AsJson = False) -> None:
    """Show what a virtual host has sent, received and used."""
    layout = layout_of(context)
    tally = client.ask(layout, control.GetTally(name), control.Told).tally
    guarded = client.ask(layout, control.GetGuard(name), control.Guarded)
    status = client.ask(layout, control.GetStatus(), control.Status)
    report = next((r for r in status.owners if r.owner == name.lower()), None)
    value = msgspec.to_builtins(tally) | {
        "queued": report.messages if report else None,
        "queued_octets": report.octets if report else None,
        "mailbox_octets": mailbox_octets(layout, name),
        "failed_sign_ins": report.failed_sign_ins if report else None,
        "dropped_packets": guarded.dropped_packets,
        "borrowed_packets": guarded.borrowed_packets,
    }
    if json:
        as_json({"name": name, **value})
        return
    counted = f"{age(tally.since)} ago"
    shown = [(key.replace("_", " "), each) for key, each in value.items()]
    facts([("name", name), ("counted since", counted), *shown[1:]])


@app.command()
def explain(
    context: typer.Context,
    name: Name,
    to: Annotated[str, typer.Option(help="Address that a message would be for.")],
    json: AsJson = False,
) -> None:
    """Tell the path that a message would take, and what would keep it; none is sent.

    The exit code is 1 if it would be refused, or could not be sent now.
    """
    request = control.ExplainHost(name, to)
    found = client.ask(layout_of(context), request, control.PathOf)
    if json:
        as_json(found)
    else:
        _show_path(name, to, found)
    if found.refusals:
        raise typer.Exit(1)


def _show_path(name: str, to: str, found: control.PathOf) -> None:
    limits_of = ", ".join(f"{key} {each}" for key, each in found.limits.items())
    pairs: list[tuple[str, object]] = [
        ("from", name),
        ("to", to),
        ("context", f"{found.context} {found.namespace}".strip()),
        ("sources", list(found.sources)),
        ("HELO", found.helo),
        ("engine", found.engine),
        ("limits", limits_of or "none"),
        ("name servers", list(found.servers)),
    ]
    if found.mailboxes:
        pairs.append(("put into", list(found.mailboxes)))
    if found.tls:
        pairs.append(("TLS", found.tls))
    facts(pairs)
    if found.targets:
        columns = (
            "turn",
            "exchanger",
            "preference",
            "address",
            "source",
            "way",
            "why not",
        )
        rows = [
            (
                *(each.turn or "-", each.exchanger, each.preference, each.address),
                *(each.source, _way(each), each.why),
            )
            for each in sorted(found.targets, key=lambda t: (not t.turn, t.turn))
        ]
        table("targets", columns, rows, "none")
    for refusal in found.refusals:
        line(refusal)


def _way(target: control.WayTo) -> str:
    if not target.link:
        return ""
    return f"{target.link} by {target.gateway}" if target.gateway else target.link


def mailbox_octets(layout: Layout, name: str) -> int | None:
    """Return what the mailboxes of a host take up, None if nobody lets us look."""
    folder = layout.hosts / name.lower() / "mail"
    total = 0
    try:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
    except OSError:
        return None
    return total


# Within ---------------------------------------------------------------------------


def _change(
    layout: Layout, name: str, changes: dict[str, Value], *, dry_run: bool, json: bool
) -> None:
    request = control.ChangeHost(name, changes, dry_run=dry_run)
    show_change(client.ask(layout, request, control.Changed), name, request, json)


def show_change(
    answer: control.Changed,
    name: str,
    request: control.ChangeHost | control.ChangeAddresses | control.RenameHost,
    json: bool,
) -> None:
    """Write what a change of a host came to."""
    if json:
        as_json(
            {
                "changed": answer.changed,
                "details": answer.details,
                "steps": answer.steps,
            }
        )
        return
    for detail in answer.details:
        line(detail)
    if request.dry_run:
        for step in answer.steps:
            line(f"  {step}")
    if not answer.details:
        remark(f"virtual host {name} is so already")
    elif answer.changed:
        remark(f"virtual host {name} is changed")


def _value(key: str, given: str | list[str]) -> Value:
    if given in (NONE, [NONE]):
        return () if key == "gateways" else None
    if isinstance(given, list):
        return tuple(given)
    return _number(key, given) if key in {"mtu", "vlan"} else given


def _number(key: str, text: str) -> int | None:
    if text == NONE:
        return None
    if not (text.isascii() and text.isdecimal()):
        what = f"--{key.rpartition('.')[2].replace('_', '-')}"
        raise BadInput(what, text, "give a number, or none")
    return int(text)
