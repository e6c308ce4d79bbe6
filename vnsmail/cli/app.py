"""The ``vnsmail`` command: puts the nouns together and turns errors into exit codes.

Exit codes: 0 done; 1 failed, or a verdict that is not a pass; 2 bad input; 3 vnsmail is
not running; 4 a privilege is missing (docs/reference/cli.md).
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from vnsmail import __version__, settings
from vnsmail.cli.late import LateGroup
from vnsmail.cli.render import complain
from vnsmail.errors import VnsmailError

app = typer.Typer(
    name="vnsmail",
    cls=LateGroup,
    help="Many virtual mail hosts on one machine, each sending from its own address.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"vnsmail {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    root: Annotated[
        Path | None,
        typer.Option(
            envvar="VNSMAIL_ROOT",
            help="Folder with settings, state and runtime files of one installation; "
            "without it /etc/vnsmail, /var/lib/vnsmail and /run/vnsmail.",
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show it."),
    ] = False,
) -> None:
    context.obj = settings.layout(root)


def root_first(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with ``--root DIR`` in front, wherever it was written.

    It is an option of the whole program, and people write it where they think of it.
    Nothing behind ``--`` is touched, nor the words of a command that is to be run.
    """
    front: list[str] = []
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        if word == "--" or begins_command(rest):
            rest += [word, *waiting]
            break
        if word == "--root" and waiting:
            front += [word, waiting.pop(0)]
        elif word.startswith("--root="):
            front.append(word)
        else:
            rest.append(word)
    return front + rest


def begins_command(words: Sequence[str]) -> bool:
    """Return whether what follows these words of our command line is not ours."""
    nouns = [word for word in words if not word.startswith("-")]
    return nouns == ["sendmail"] or (len(nouns) == 2 and nouns[0] == "exec")


def main() -> None:
    """Run the command line of this process."""
    try:
        code = app(
            args=root_first(sys.argv[1:]), prog_name="vnsmail", standalone_mode=False
        )
        # Else a reader that left is noticed at exit, too late to be silent about.
        sys.stdout.flush()
        # What a command returns is None; a number is that of typer.Exit.
        sys.exit(code)
    except TyperException as error:
        _complain_of_usage(error)
    except VnsmailError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output left (``| head``). Give the interpreter a standard
        # output it can flush at exit without a second complaint.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _complain_of_usage(error: TyperException) -> NoReturn:
    """Say in one line what is wrong with the words of a command, and where to look."""
    context = getattr(error, "ctx", None)
    show = getattr(error, "show", None)
    if type(error).__name__ == "NoArgsIsHelpError" and show is not None:
        show()  # no words at all: the help, not a complaint
        sys.exit(2)
    where = f"; see `{context.command_path} --help`" if context else ""
    complain(f"{error.format_message().rstrip('.')}{where}")
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
