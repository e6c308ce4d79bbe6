"""``vnsmail dkim``: the keys that a virtual host's mail is signed with."""

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import msgspec
import typer

from vnsmail import settings
from vnsmail.cli import client, dkim_records
from vnsmail.cli.options import AsJson, layout_of
from vnsmail.cli.render import age, as_json, line, remark, table
from vnsmail.errors import BadInput
from vnsmail.settings import Layout
from vnsmail.supervisor import control

app = typer.Typer(
    help="Keys that sign what a virtual host sends (DKIM).", no_args_is_help=True
)

Name: TypeAlias = Annotated[str, typer.Argument(help="Name of the virtual host.")]
Domain: TypeAlias = Annotated[
    str | None, typer.Option(help="Only of this domain; else of all that it has.")
]


@app.command()
def create(
    context: typer.Context,
    name: Name,
    domain: Domain = None,
    selector: Annotated[
        str | None,
        typer.Option(help="Name of the key; else made of algorithm and date."),
    ] = None,
    algorithm: Annotated[
        list[str] | None,
        typer.Option(help="rsa or ed25519; else a key of each, and two signatures."),
    ] = None,
    activate_: Annotated[
        bool,
        typer.Option("--activate", help="Sign with it before its record is in DNS."),
    ] = False,
    json: AsJson = False,
) -> None:
    """Make keys, and print the DNS records to publish.

    Nothing is signed with a key until `vnsmail dkim activate`.
    """
    request = control.ChangeDkim(
        name, "create", domain, selector, tuple(algorithm or ()), active=activate_
    )
    _show_new(client.ask(layout_of(context), request, control.DkimKeys), name, json)


@app.command()
def rotate(
    context: typer.Context,
    name: Name,
    domain: Domain = None,
    selector: Annotated[
        str | None,
        typer.Option(help="Name of the new key; else made of algorithm and date."),
    ] = None,
    activate_: Annotated[
        bool,
        typer.Option("--activate", help="Sign with it before its record is in DNS."),
    ] = False,
    json: AsJson = False,
) -> None:
    """Make the keys that are to follow those in use, and print their DNS records.

    Mail is signed with the old ones until `vnsmail dkim activate`.
    """
    request = control.ChangeDkim(name, "rotate", domain, selector, active=activate_)
    _show_new(client.ask(layout_of(context), request, control.DkimKeys), name, json)


@app.command()
def activate(
    context: typer.Context,
    name: Name,
    domain: Domain = None,
    selector: Annotated[str | None, typer.Option(help="Only this key.")] = None,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Do not ask DNS for the records first.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Sign with the keys that wait, once DNS shows their records.

    The keys they follow are retired, and their private halves destroyed.
    """
    layout = layout_of(context)
    if not unchecked:
        _check(layout, name, domain, selector)
    request = control.ChangeDkim(name, "activate", domain, selector)
    answer = client.ask(layout, request, control.DkimKeys)
    if json:
        as_json(msgspec.to_builtins(answer.keys))
        return
    for key in answer.keys:
        remark(f"mail of {key.domain} is signed with {key.selector}")
    remark("leave the records of earlier keys in DNS for a week")


@app.command()
def remove(
    context: typer.Context,
    name: Name,
    selector: Annotated[str, typer.Argument(help="Name of the key.")],
    domain: Domain = None,
    json: AsJson = False,
) -> None:
    """Destroy a key, whether it is in use or not."""
    request = control.ChangeDkim(name, "remove", domain, selector)
    answer = client.ask(layout_of(context), request, control.DkimKeys)
    if json:
        as_json(msgspec.to_builtins(answer.keys))
        return
    for key in answer.keys:
        remark(f"{dkim_records.name(key)} is removed")
        if key.state == "active":
            remark(f"mail of {key.domain} is not signed with {key.algorithm} any more")


@app.command("list")
def list_keys(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="Name of a virtual host; else of all.")
    ] = None,
    records: Annotated[
        bool, typer.Option("--records", help="Print the DNS records, and nothing else.")
    ] = False,
    json: AsJson = False,
) -> None:
    """List keys, and whether DNS shows them."""
    layout = layout_of(context)
    keys = client.ask(layout, control.ListDkim(name), control.DkimKeys).keys
    if records:
        for key in keys:
            line(dkim_records.zone_line(key))
        return
    seen = _seen(layout, keys)
    if json:
        rows = zip(keys, seen, strict=True)
        as_json([msgspec.to_builtins(k) | {"dns": dns} for k, dns in rows])
        return
    table(
        "DKIM keys",
        ("domain", "selector", "algorithm", "state", "since", "DNS"),
        [
            (
                k.domain,
                k.selector,
                k.algorithm,
                k.state,
                f"{age(k.changed_at)} ago",
                dns,
            )
            for k, dns in zip(keys, seen, strict=True)
        ],
        "no keys yet; make some with `vnsmail dkim create HOST`",
    )


def _seen(layout: Layout, keys: Sequence[control.DkimFacts]) -> list[str]:
    from vnsmail.supervisor.main import resolvers  # noqa: PLC0415  as in doctor.py

    if not keys:
        return []
    return dkim_records.shown(keys, resolvers(settings.load(layout.settings_file)))


def _check(layout: Layout, name: str, domain: str | None, selector: str | None) -> None:
    """Refuse keys that nobody could verify with.

    Raises:
        BadInput: DNS does not show the record of one.
    """
    keys = client.ask(layout, control.ListDkim(name), control.DkimKeys).keys
    fresh = [
        key
        for key in keys
        if key.state == "pending"
        and (domain or key.domain) == key.domain
        and (selector or key.selector) == key.selector
    ]
    for key, dns in zip(fresh, _seen(layout, fresh), strict=True):
        if dns != dkim_records.PUBLISHED:
            remedy = (
                f"DNS: {dns}; publish what `vnsmail dkim list {name} --records` prints, "
                "wait until it is seen, or give --unchecked"
            )
            raise BadInput("DKIM key", dkim_records.name(key), remedy)


def _show_new(answer: control.DkimKeys, name: str, json: bool) -> None:
    if json:
        as_json(
            [
                msgspec.to_builtins(key) | {"record": dkim_records.text(key)}
                for key in answer.keys
            ]
        )
        return
    for key in answer.keys:
        line(dkim_records.zone_line(key))
    if any(key.state == "pending" for key in answer.keys):
        remark(f"publish these records, then `vnsmail dkim activate {name}`")
    else:
        remark("publish these records now: mail is signed already")
