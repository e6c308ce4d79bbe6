"""``vnsmail host``: virtual hosts, the tenants of the machine."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from vnsmail.cli import client
from vnsmail.cli.certificate import certificate, day, described
from vnsmail.cli.options import AsJson, DryRun, NoProbe, layout_of
from vnsmail.cli.render import age, as_json, facts, line, remark, table
from vnsmail.directory import open_to_read
from vnsmail.engines.protocol import OwnerReport
from vnsmail.errors import DaemonNotRunning
from vnsmail.model import HostName, VirtualHost, host_name
from vnsmail.net import names
from vnsmail.settings import Layout
from vnsmail.supervisor import control

app = typer.Typer(
    help="Create, look at, change and destroy virtual hosts.", no_args_is_help=True
)


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Full name, such as alpha.example.")],
    address: Annotated[
        list[str],
        typer.Option(
            help="Its own address with prefix length; give one or more, IPv4 or IPv6. "
            "The first of each family is the one its mail leaves from."
        ),
    ],
    where: Annotated[
        str,
        typer.Option(
            "--context",
            help="**namespace**: a network namespace of its own; "
            "**alias**: an address on a link of the machine.",
        ),
    ] = "namespace",
    link: Annotated[
        str | None,
        typer.Option(help="Link of the machine to use; else the one in its network."),
    ] = None,
    domain: Annotated[
        list[str] | None,
        typer.Option(help="A further mail domain of the host; its name is the first."),
    ] = None,
    gateway: Annotated[
        list[str] | None,
        typer.Option(
            help="Router for what leaves from its addresses, one a family; else the "
            "machine's, if it fits."
        ),
    ] = None,
    uplink: Annotated[
        str | None,
        typer.Option(
            help="How its namespace reaches the network: **bridge**, **macvlan** or "
            "**routed**; else as fits the link."
        ),
    ] = None,
    mtu: Annotated[
        int | None,
        typer.Option(
            metavar="OCTETS",
            help="Largest packet on the link of its namespace; else as its uplink.",
        ),
    ] = None,
    vlan: Annotated[
        int | None,
        typer.Option(
            min=1, max=4094, metavar="TAG", help="Tag of its packets on the uplink."
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="What sends its mail to other servers: **native** (ours), "
            "**sendmail**, **postfix** or **exim**, run in its context."
        ),
    ] = "native",
    no_probe: NoProbe = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Create a virtual host and begin to serve it."""
    request = control.CreateHost(
        name=name,
        addresses=tuple(address),
        context=where,
        link=link,
        gateways=tuple(gateway or ()),
        domains=tuple(domain or ()),
        dry_run=dry_run,
        uplink=uplink,
        mtu=mtu,
        vlan=vlan,
        no_probe=no_probe,
        engine=engine,
    )
    answer = client.ask(layout_of(context), request, control.Planned)
    _show_plan(answer, json=json, dry_run=dry_run)
    if not dry_run and not json:
        done = "is created" if answer.changed else "exists already, as asked"
        remark(f"virtual host {name} {done}")


app.command()(certificate)


@app.command()
def destroy(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the virtual host.")],
    discard_queue: Annotated[
        bool,
        typer.Option("--discard-queue", help="Destroy it with mail still queued."),
    ] = False,
    dry_run: DryRun = False,
    json: AsJson = False,
) -> None:
    """Destroy a virtual host: addresses, namespace, users, mailboxes and queue.

    A host with mail still in its queue is refused unless --discard-queue is given.
    """
    request = control.DestroyHost(name, discard_queue=discard_queue, dry_run=dry_run)
    answer = client.ask(layout_of(context), request, control.Planned)
    _show_plan(answer, json=json, dry_run=dry_run)
    if not dry_run and not json:
        remark(f"virtual host {name} is destroyed")


@app.command("list")
def list_hosts(context: typer.Context, json: AsJson = False) -> None:
    """List the virtual hosts of the directory."""
    with open_to_read(layout_of(context).directory_db) as directory:
        hosts = directory.hosts()
    if json:
        as_json([_described(host) for host in hosts])
        return
    rows = [
        (
            host.name,
            host.context,
            [str(a) for a in host.addresses],
            host.link,
            "suspended" if host.suspended else "",
        )
        for host in hosts
    ]
    table(
        "virtual hosts",
        ("name", "context", "addresses", "link", "state"),
        rows,
        "no virtual hosts yet; create one with `vnsmail host create`",
    )


@app.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the virtual host.")],
    json: AsJson = False,
) -> None:
    """Show one virtual host: what it should be, and how it is."""
    layout = layout_of(context)
    wanted = host_name(name)
    with open_to_read(layout.directory_db) as directory:
        host = directory.host(wanted)
        users = directory.users(wanted)
    value = {
        **_described(host),
        "users": [user.local_part for user in users],
        "namespace": names.namespace(layout.instance, wanted) if host.uplink else None,
        **_live(layout, wanted),
    }
    if json:
        as_json(value)
    else:
        usual = {
            "helo": host.name,
            "source_check": "strict",
            "authentication": "mark",
            "engine": "native",
        }
        known = [
            (key, each)
            for key, each in value.items()
            if each not in (None, [], {}, False) and each != usual.get(key)
        ]
        facts([(key, _shown(each)) for key, each in known])


def _described(host: VirtualHost) -> dict[str, object]:
    return {
        "name": host.name,
        "context": host.context.value,
        "addresses": [str(address) for address in host.addresses],
        "domains": list(host.domains),
        "link": host.link,
        "uplink": host.uplink.value if host.uplink else None,
        "gateways": [str(gateway) for gateway in host.gateways],
        "helo": host.says,
        "engine": host.engine.value,
        "mtu": host.mtu,
        "vlan": host.vlan,
        "resolvers": [str(each) for each in host.resolvers],
        "source_check": host.source_check.value,
        "authentication": host.authentication.value,
        "public_addresses": [str(each) for each in host.public_addresses],
        "relay": host.relay and asdict(host.relay),
        "limits": {k: n for k, n in asdict(host.limits).items() if n is not None},
        "suspended": host.suspended,
    }


def _live(layout: Layout, name: HostName) -> dict[str, object]:
    """Return how the host is doing now, as the supervisor sees it."""
    try:
        status = client.ask(layout, control.GetStatus(), control.Status)
    except DaemonNotRunning:
        return {"state": "vnsmail is not running"}
    problem = dict(status.problems).get(name, "")
    report = next((r for r in status.owners if r.owner == name), None)
    guarded = client.ask(layout, control.GetGuard(name), control.Guarded)
    found = client.ask(layout, control.GetCertificates(name), control.Certificates)
    certificates = _certificates(found)
    return {
        **_state(report, problem),
        "guard": _guard(guarded),
        "certificates": certificates,
    }


def _certificates(found: control.Certificates) -> list[dict[str, object]]:
    return [described(entry) for entry in found.entries]


def _guard(guarded: control.Guarded) -> dict[str, object]:
    """Return what the kernel stopped, or why it stops nothing."""
    return {
        "problem": guarded.problem,
        "dropped_packets": guarded.dropped_packets,
        "dropped_bytes": guarded.dropped_bytes,
        "borrowed_packets": guarded.borrowed_packets,
        "forged_packets": guarded.forged_packets,
    }


def _shown(value: object) -> object:
    """Return a value as people read it."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_certificate(each) for each in value]
    if not isinstance(value, dict):
        return "yes" if value is True else value
    if "problem" not in value:
        return ", ".join(f"{key} {each}" for key, each in value.items())
    if value["problem"]:
        return f"off: {value['problem']}"
    wrong = value["dropped_packets"] + value["forged_packets"]
    return (
        f"on; {wrong} packets from a wrong source and "
        f"{value['borrowed_packets']} of others from its addresses were dropped"
    )


def _certificate(value: dict[str, Any]) -> str:
    asked = f"for {value['for']}: " if value["for"] else ""
    return (
        f"{asked}{', '.join(value['names'])}; {value['issuer']}, until "
        f"{day(value['expires'] or 0.0)}, SHA-256 {value['sha256']}"
    )


def _state(report: OwnerReport | None, problem: str) -> dict[str, object]:
    if report is None:
        return {"state": problem or "not served"}
    return {
        "state": problem or report.problem or _well(report),
        "listening": list(report.listening),
        "sessions": report.sessions,
        "queued": report.messages,
        "deferred": report.deferred,
        "oldest": age(report.oldest) or None,
    }


def _well(report: OwnerReport) -> str:
    return "suspended" if report.suspended else "ok"


def _show_plan(answer: control.Planned, *, json: bool, dry_run: bool) -> None:
    if json:
        as_json({"changed": answer.changed, "steps": answer.steps})
        return
    if dry_run:
        for step in answer.steps:
            line(step)
        if not answer.steps:
            remark("nothing to do")
