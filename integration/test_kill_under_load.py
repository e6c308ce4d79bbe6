"""Worker, broker and supervisor are killed under load: nothing acknowledged is lost."""

import os
import secrets
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from integration import kills
from integration.labs import Lab

TIMES = 20

FORKS = """
import os, signal
child = os.fork()
if child:
    print(child, flush=True)
signal.pause()
"""


def test_who_is_killed(tmp_path):
    """A supervisor that just forks is told from its child, which looks the same."""
    root = str(tmp_path)
    lab: Any = SimpleNamespace(pid=os.getpid(), root=root)
    words = [sys.executable, "-c", FORKS, "--root", root, "up"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            seen = kills.pids(lab)
            process.kill()
            process.wait()
            left = kills.pids(lab)
        finally:
            os.kill(child, signal.SIGKILL)

    assert {"supervisor": process.pid} == seen
    assert {"supervisor": child} == left


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    found = Lab(tmp_path_factory.mktemp("kills") / "root", hosts=1)
    yield found
    found.stop()


@pytest.mark.timeout(480)
def test_every_acknowledged_message_is_accounted_for(lab):
    """At the remotes and in the mailbox, whole; twice only where SMTP cannot tell."""
    seed = secrets.randbits(32)
    account = kills.run(
        lab, TIMES, seed, tell=lambda said: sys.stdout.write(f"{said}\n")
    )
    said = "\n".join(account.lines())

    assert TIMES == len(account.kills)
    assert len(account.acknowledged) > TIMES, said
    assert {"mailbox": [], "north": [], "south": []} == account.lost, said
    assert [] == account.damaged, said
    assert [] == account.doubled["mailbox"], said
    assert [] == account.unexcused, said
