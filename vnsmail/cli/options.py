"""Options that several commands share."""

from typing import Annotated, cast

import typer

from vnsmail.settings import Layout

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, for programs.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
]
NoProbe = Annotated[
    bool,
    typer.Option(
        "--no-probe", help="Do not ask the network whether somebody has the address."
    ),
]


def layout_of(context: typer.Context) -> Layout:
    """Return where the files of the chosen root lie."""
    return cast("Layout", context.obj)
