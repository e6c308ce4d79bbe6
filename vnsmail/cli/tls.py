"""``vnsmail tls``: how the mail of a host was protected on its way."""

import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from vnsmail.cli.options import layout_of
from vnsmail.errors import BadInput, NotFound
from vnsmail.model import MACHINE, Owner, host_name
from vnsmail.tls.report import REPORT_FILE, Report

app = typer.Typer(help="TLS to other servers.", no_args_is_help=True)


@app.callback()
def tls() -> None:
    """TLS to other servers."""


@app.command()
def report(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="HOST", help="A host, or machine.")],
    day: Annotated[
        str, typer.Option(metavar="YYYY-MM-DD", help="In UTC; today if not given.")
    ] = "",
) -> None:
    """Print how TLS to other servers went on a day, as JSON (RFC 8460 section 4.4).

    Counted are connections: those that had what was wanted, and failures by what failed.
    """
    # It comes with all that makes TLS.
    from vnsmail.engines.protection import read_report  # noqa: PLC0415

    now = datetime.now(UTC)
    try:
        begin = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC) if day else now
    except ValueError:
        raise BadInput("day", day, f"write it as {now:%Y-%m-%d}") from None
    owner = Owner(name if name == MACHINE else host_name(name))
    folder = layout_of(context).owner_folder(owner)
    if not folder.is_dir():
        raise NotFound("virtual host", owner, "`vnsmail host list` has all")
    begin = begin.replace(hour=0, minute=0, second=0, microsecond=0)
    end = begin + timedelta(days=1) - timedelta(seconds=1)
    counted = Report(read_report(folder / REPORT_FILE))
    told = {
        "organization-name": owner,
        "date-range": {
            "start-datetime": f"{begin:%Y-%m-%dT%H:%M:%SZ}",
            "end-datetime": f"{end:%Y-%m-%dT%H:%M:%SZ}",
        },
        "contact-info": f"postmaster@{owner}",
        "report-id": f"{begin:%Y-%m-%d}@{owner}",
        "policies": counted.of_day(f"{begin:%Y-%m-%d}"),
    }
    json.dump(told, sys.stdout, indent=2)
    sys.stdout.write("\n")
