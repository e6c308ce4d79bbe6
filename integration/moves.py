"""A second installation on the machine of a lab, to which hosts go."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from typer.testing import CliRunner

from integration.labs import Lab, eventually, outer
from vnsmail.cli.app import app
from vnsmail.settings import layout
from vnsmail.supervisor.folders import is_locked

SETTINGS = """
[machine]
name = "other.example"
[worker]
user = "65534"
count = 1
[queue]
first_retry = 2
[dns]
servers = ["10.77.0.2"]
timeout = 5
"""

ADDRESSES = ("--address", "10.77.0.61/24", "--address", "fd77::61/64")


def call(root: Path, *words: str) -> str:
    """Run a command; returns its output, or what it complains of.

    It runs in this process, which is quicker; it is the same.
    """
    done = CliRunner().invoke(app, ["--root", str(root), *words])
    return str(done.exception) if done.exit_code else done.stdout


def up(lab: Lab, root: Path) -> None:
    """Start an installation on the machine of a lab."""
    _run(lab, root, "up", "--detach")


def down(lab: Lab, root: Path) -> None:
    """End it, if it runs."""
    _run(lab, root, "down", check=False)


def _run(lab: Lab, root: Path, *words: str, check: bool = True) -> None:
    code = "import sys; from vnsmail.cli.app import main; main()"
    command = (lab.python, "-P", "-c", code, "--root", str(root), *words)
    lab.inside("machine", *command, check=check)


@contextlib.contextmanager
def second(lab: Lab, root: Path) -> Iterator[Path]:
    """Give a second installation, which ends with the block."""
    root.mkdir()
    (root / "vnsmail.toml").write_text(SETTINGS)
    up(lab, root)
    try:
        yield root
    finally:
        down(lab, root)


@contextlib.contextmanager
def killed_at(lab: Lab, root: Path, call: str, path: Path) -> Iterator[None]:
    """Have a supervisor killed as it begins a call on a path; started again after that.

    Args:
        lab: where it runs.
        root: whose supervisor.
        call: names of system calls, or ``NAMES:when=N`` for the N-th.
        path: file or folder that the call is about.
    """
    supervisor = outer(lab.pid, int(layout(root).pid_file.read_text()))
    words = ("strace", "-f", "-o", "/dev/null", "-P", str(path), "-p", str(supervisor))
    calls, _, when = call.partition(":")
    inject = f"inject={calls}:signal=KILL" + (when and f":{when}")
    with subprocess.Popen(
        [*words, "-e", f"trace={calls}", "-e", inject],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as tracer:
        try:
            eventually(lambda: _traced(supervisor), "strace is there")
            yield
            eventually(
                lambda: not is_locked(layout(root)), f"killed at {call} {path}", 60
            )
        finally:
            tracer.terminate()
    up(lab, root)


def _traced(pid: int) -> bool:
    """Return whether each thread of a process has a tracer."""
    return all(
        "TracerPid:\t0\n" not in Path(f"/proc/{pid}/task/{each}/status").read_text()
        for each in os.listdir(f"/proc/{pid}/task")
    )
