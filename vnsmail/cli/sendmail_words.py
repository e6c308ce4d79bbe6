"""``vnsmail sendmail``, where other options stand before it.

Elsewhere cli/main.py goes straight to cli/sendmail.py, which imports no typer.
"""

from typing import Annotated

import typer

from vnsmail.cli import sendmail as command
from vnsmail.cli.options import layout_of


def sendmail(
    context: typer.Context, words: Annotated[list[str] | None, typer.Argument()] = None
) -> None:
    """Hand over a message as /usr/sbin/sendmail does (-t -i -f -F -bs -bp and more)."""
    layout = layout_of(context)
    root = str(layout.state) if layout.instance else None
    raise typer.Exit(command.run("sendmail", words or [], root))
