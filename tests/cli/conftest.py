import json
import sys
from dataclasses import dataclass

import pytest

from tests.cli.supervisor import FakeSupervisor
from vnsmail.cli import app, render


@dataclass
class Ran:
    """What a command wrote, and what it ended with."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)

    def screen(self):
        """Return the output without the blanks at the ends of lines."""
        return "\n".join(line.rstrip() for line in self.out.splitlines())


@pytest.fixture(autouse=True)
def _width_of_each_test(monkeypatch):
    """Forget the width that the screen had when this process began."""
    monkeypatch.delenv("COLUMNS", raising=False)
    render._out.cache_clear()


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def vnsmail(root, monkeypatch, capsys):
    """Run the command line as its users do, for a root of the test's own."""

    def run(*words, columns="120", rooted=True):
        monkeypatch.setenv("COLUMNS", columns)
        first = ["--root", str(root)] if rooted else []
        argv = ["vnsmail", *first, *(str(word) for word in words)]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as ended:
            app.main()
        captured = capsys.readouterr()
        code = ended.value.code or 0
        assert isinstance(code, int)
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def supervisor(root):
    with FakeSupervisor(root) as supervisor:
        yield supervisor
