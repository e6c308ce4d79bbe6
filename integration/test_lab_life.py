"""A lab begins, ends and is killed; the machine is as before."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from integration.labs import Lab, eventually

AS_USER = ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")
"""An ordinary user with no capability, whose files are readable all the same."""


def machine():
    """Return the links, namespaces and mounts of the real machine."""
    return tuple(
        subprocess.run(words, capture_output=True, text=True, check=True).stdout
        for words in (["ip", "-o", "link"], ["ip", "netns"], ["mount"])
    )


def processes(root):
    """Return the command lines that name a lab's folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(root) in command and folder.name != str(os.getpid()):
            found.append(command)
    return found


def test_ordinary_user(tmp_path):
    """Without root it runs in a user namespace, and proves the same."""
    lab = Lab(tmp_path / "root", hosts=2, prefix=AS_USER)
    try:
        lab.send("user@alpha.example", "ann@north.example", "bob@south.example")
        lab.send("user@beta.example", "ann@north.example", "bob@south.example")
        lab.send("machine", "ann@north.example", "bob@south.example")
        lab.settle()
        proof = json.loads(lab.vnsmail("prove", "--json").stdout)
        held = subprocess.run(
            [*AS_USER, "cat", "/proc/self/status"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    finally:
        lab.stop()

    assert "CapEff:\t0000000000000000" in held
    assert "pass" == proof["verdict"]
    assert 3 == len(proof["hosts"])
    assert [] == processes(lab.root)


def test_no_namespaces_to_be_had(tmp_path):
    """Where the kernel gives an ordinary user none, one line says what to do."""
    limit = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    done = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "--", "sh", "-c", limit, "sh"),
            *("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"),
            *(Lab.python, "-c"),
            (
                "import os, sys; os.geteuid = lambda: 1000\n"
                "from vnsmail.cli.app import main; main()"
            ),
            *("--root", str(tmp_path / "root"), "lab", "up"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert 4 == done.returncode
    assert "cannot start a lab without privilege: run it as root" in done.stderr
    assert 1 == len(done.stderr.strip().splitlines())
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("whom", ["the lab", "the command"])
def test_killed(tmp_path, whom):
    """kill -9 leaves no process, link, namespace or mount; the next lab starts."""
    before = machine()
    lab = Lab(tmp_path / "root", hosts=2)
    pid = lab.process.pid if whom == "the command" else lab.pid
    os.kill(pid, signal.SIGKILL)
    lab.process.communicate(timeout=30)
    eventually(lambda: not processes(lab.root), "all of its processes are gone")
    status = lab.vnsmail("lab", "status", check=False)

    assert before == machine()
    assert 2 == status.returncode

    again = Lab(tmp_path / "root", hosts=1)
    again.send("user@alpha.example", "ann@north.example")
    again.settle()
    again.stop()

    assert before == machine()
    assert [] == processes(lab.root)


def test_a_folder_that_is_not_a_labs(tmp_path):
    """Nothing of a folder with other things in it is removed."""
    (tmp_path / "precious").write_text("x")
    done = subprocess.run(
        [Lab.python, "-m", "vnsmail.cli.app", "--root", tmp_path, "lab", "up"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert 1 == done.returncode
    assert "it is not empty and no lab's; give another --root" in done.stderr
    assert ["precious"] == [path.name for path in tmp_path.iterdir()]
