"""Passwords on the command line: asked for, read, or made; never an argument.

An argument is seen by everybody who runs ps(1), and stays in the shell's history.
"""

import getpass
import sys
from typing import Annotated

import typer

from vnsmail.cli.render import line, remark
from vnsmail.errors import BadInput
from vnsmail.supervisor.control import Proofs

FromStdin = Annotated[
    bool,
    typer.Option(
        "--password-stdin", help="Read the password from the first line of stdin."
    ),
]
Generate = Annotated[
    bool,
    typer.Option("--generate", help="Make a password, and show it this once."),
]


def chosen(*, stdin: bool, generate: bool) -> str | None:
    """Return the password that was given, asked for or made; None if none was.

    On a terminal it is asked for twice and not shown; an empty one is none.

    Raises:
        BadInput: two ways were chosen, or what was typed twice is not the same.
    """
    if stdin and generate:
        raise BadInput("password", "…", "give --password-stdin or --generate, not both")
    if stdin:
        text = sys.stdin.readline().rstrip("\r\n")
        if not text:
            raise BadInput("password", "", "there is nothing on the standard input")
        return text
    if generate:
        from vnsmail.sasl.passwords import generate as made  # noqa: PLC0415  as below

        return made()
    if not sys.stdin.isatty():
        return None
    text = getpass.getpass("Password: ")
    if text and text != getpass.getpass("Again: "):
        raise BadInput("password", "…", "these are two different ones")
    return text or None


def proofs(password: str | None) -> Proofs:
    """Return what is kept of a password; the password itself stays in this process.

    Raises:
        BadInput: it is too short, or cannot be one.
    """
    if password is None:
        return Proofs()
    # Loading it takes as long as most commands do in all.
    from vnsmail.sasl.passwords import derive  # noqa: PLC0415

    kept = derive(password)
    return Proofs(kept.password, kept.scram)


def show(password: str) -> None:
    """Write a password that was made."""
    remark("its password, which is shown this once:")
    line(password)
