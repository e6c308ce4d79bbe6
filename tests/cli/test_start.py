"""What each process imports, for that is most of what its start takes."""

import subprocess
import sys

import pytest

from vnsmail.cli.late import COMMANDS, load

HEAVY = "cryptography dns pydantic pyroute2 rich structlog typer uvloop"

ASKING = """
import contextlib, sys
from vnsmail.cli import app
for words in (["--version"], ["status"], ["down"], ["host", "list", "--json"],
              ["host", "show", "alpha.example"], ["queue", "list"], ["queue", "wait"],
              ["user", "list", "alpha.example"], ["top", "--once"], ["metrics"],
              ["send", "--machine", "--to", "bob@b.example", "--text", "hello"],
              ["alias", "list", "alpha.example"], ["dkim", "list", "alpha.example"]):
    sys.argv = ["vnsmail", "--root", "/nonexistent", *words]
    with contextlib.suppress(SystemExit):
        app.main()
"""

HELP = """
import contextlib, sys
from vnsmail.cli import app
sys.argv = ["vnsmail", "--help"]
with contextlib.suppress(SystemExit):
    app.main()
"""


def imported(code):
    """Return which of the heavy modules a process that runs this code has imported."""
    told = f"\nimport sys\nprint(*sorted(set({HEAVY.split()}) & set(sys.modules)))"
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-P", "-c", code + told],
        capture_output=True,
        check=True,
        text=True,
    )
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (ASKING, ["typer"]),
        (HELP, ["rich", "typer"]),
        ("import vnsmail.supervisor.launch", []),
        ("import vnsmail.broker.server", []),
        ("import vnsmail.engines.native", ["cryptography", "dns", "uvloop"]),
    ],
    ids=["asking", "help", "launcher", "broker", "worker"],
)
def test_what_is_imported(code, expected):
    assert expected == imported(code)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_of_commands(name):
    """What is listed without an import is what the command says of itself."""
    paragraph = (load(name).help or "").partition("\n\n")[0]

    assert COMMANDS[name].help == " ".join(paragraph.split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vnsmail ho", ["host"]),
        ("vnsmail host cre", ["create"]),
        ("vnsmail d", ["dkim", "doctor", "down"]),
        ("vnsmail status --js", ["--json"]),
    ],
)
def test_completion(vnsmail, monkeypatch, line, expected):
    """A shell is told the words of commands that are not imported yet too."""
    monkeypatch.setenv("_VNSMAIL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))

    assert expected == sorted(vnsmail(rooted=False).out.split())
