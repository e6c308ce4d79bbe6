"""Which file a command stands for, and with which code a shell says there is none."""

import os

import pytest

from tests.supervisor.test_host_files import ALPHA
from vnsmail.errors import CommandNotRun, NotPrivileged
from vnsmail.supervisor import privileges, run_as


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A search path with a program, and a file that is none."""
    (tmp_path / "program").write_text("#!/bin/true\n")
    (tmp_path / "program").chmod(0o755)
    (tmp_path / "text").write_text("text")
    (tmp_path / "folder").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/nowhere:{tmp_path}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", ["program", "./program"])
def test_found(folder, command):
    assert os.path.samefile(folder / "program", run_as.find(command))


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ("missing", 127, "cannot run missing: not found"),
        ("./missing", 127, "cannot run ./missing: not found"),
        ("program/x", 127, "cannot run program/x: not found"),
        ("", 127, "cannot run : not found"),
        ("text", 126, "cannot run text: permission denied"),
        ("./text", 126, "cannot run ./text: permission denied"),
        ("./folder", 126, "cannot run ./folder: is a directory"),
        ("folder", 127, "cannot run folder: not found"),
    ],
)
def test_not_found(folder, command, code, says):
    """127 for what is not there, 126 for what cannot be executed, as in a shell."""
    with pytest.raises(CommandNotRun) as failed:
        run_as.find(command)

    assert code == failed.value.exit_code
    assert says == str(failed.value)


def test_without_privilege(monkeypatch):
    """Said before anything is tried."""
    monkeypatch.setattr(privileges, "effective", lambda: 0)
    with pytest.raises(NotPrivileged) as failed:
        run_as.run(ALPHA, "", ["true"], [])

    assert (
        "cannot run a program as alpha.example without privilege: run it as root"
        == str(failed.value)
    )
