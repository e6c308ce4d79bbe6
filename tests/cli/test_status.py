import dataclasses
import os
import subprocess
import sys
import threading
import time

import msgspec
import pytest

from vnsmail.cli import client, daemon
from vnsmail.engines.protocol import OwnerReport
from vnsmail.errors import StateUnusable, Taken
from vnsmail.settings import layout
from vnsmail.supervisor import control
from vnsmail.supervisor import main as supervisor_main
from vnsmail.supervisor.folders import is_locked, lock, prepare

NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: NOW)


STATUS = control.Status(
    pid=4711,
    root="/var/lib/vnsmail",
    processes=(
        control.ProcessStatus(
            "broker", "running", 12, 0, "uid 0; net_admin; the machine's network"
        ),
        control.ProcessStatus("worker-machine", "backoff", None, 3, "", ("machine",)),
        control.ProcessStatus(
            "worker-0",
            "running",
            14,
            0,
            "uid 991; no capabilities; a network namespace apart",
            ("alpha.example", "beta.example"),
        ),
    ),
    owners=(
        OwnerReport(
            "alpha.example",
            ("10.77.0.11:25", "[fd77::11]:25"),
            *(3, 20, 5, NOW - 3700),
            "",
        ),
        OwnerReport("beta.example", (), 0, 0, 0, None, "cannot send as beta.example"),
    ),
    problems=(
        ("beta.example", "port 25 is in use"),
        ("machine", "worker-machine is backoff, and silent"),
    ),
)

SCREEN = """\
supervisor  process 4711
root        /var/lib/vnsmail
processes
process         state    pid  restarts  privileges                                           owners
───────────────────────────────────────────────────────────────────────────────────────────────────
broker          running  12          0  uid 0; net_admin; the machine's network              0
worker-machine  backoff              3                                                       1
worker-0        running  14          0  uid 991; no capabilities; a network namespace apart  2
owners
owner          state                                  listening   sessions  queued  deferred  oldest
────────────────────────────────────────────────────────────────────────────────────────────────────
alpha.example  ok                                     10.77.0.11  3             20         5  1h1m
                                                      fd77::11
beta.example   port 25 is in use                                  0              0         0
machine        worker-machine is backoff, and silent"""


def test_the_whole_screen(vnsmail, supervisor):
    """Processes with their privileges, owners with what keeps their mail."""
    supervisor.answers[control.GetStatus] = STATUS
    done = vnsmail("status")

    assert (0, "") == (done.code, done.err)
    assert SCREEN == done.screen()


def test_failed_sign_ins(vnsmail, supervisor):
    """Hosts where somebody guesses, or has forgotten, are told; others are not."""
    owners = tuple(
        msgspec.structs.replace(each, failed_sign_ins=number)
        for each, number in zip(STATUS.owners, (17, 0), strict=True)
    )
    supervisor.answers[control.GetStatus] = msgspec.structs.replace(
        STATUS, owners=owners
    )
    shown = vnsmail("status").screen()

    assert shown.startswith(SCREEN)
    assert "alpha.example  17" == shown.splitlines()[-1]


def test_what_others_changed(vnsmail, supervisor):
    """What was to be done, and what came of it, the newest last."""
    drifts = (
        control.Drift(
            NOW - 70, "alpha.example", ("add address 10.77.0.11/24 on eth0",)
        ),
        control.Drift(NOW - 5, "beta.example", ("set lo up",), "not mended: busy"),
    )
    status = msgspec.structs.replace(STATUS, watching="watched", drifts=drifts)
    supervisor.answers[control.GetStatus] = status
    done = vnsmail("status")
    shown = done.screen()

    assert "network     watched" in shown
    assert (
        "1m10s ago  alpha.example  add address 10.77.0.11/24 on eth0  mended" in shown
    )
    assert "not mended: busy" in shown.splitlines()[-1]


def test_json(vnsmail, supervisor):
    """The same as one document, in the words of the control protocol."""
    supervisor.answers[control.GetStatus] = STATUS
    done = vnsmail("status", "--json")

    keys = {"type", "pid", "root", "processes", "owners", "problems"}
    assert keys | {"watching", "drifts"} == set(done.json)
    assert STATUS == control.decode_answer(done.out.encode())


def test_nothing_served(vnsmail, supervisor):
    """An empty list is a remark, and no table."""
    status = control.Status(1, "/r", (), (), ())
    supervisor.answers[control.GetStatus] = status
    done = vnsmail("status")

    assert "supervisor  process 1\nroot        /r" == done.screen()
    assert "no processes\nnothing is served\n" == done.err


# down --------------------------------------------------------------------------


def test_down(vnsmail, supervisor, root):
    """It returns when the supervisor has ended, and not when it stops to answer."""
    supervisor.answers[control.GetStatus] = STATUS
    prepare(layout(root))
    held = lock(layout(root))

    def end():
        while control.ShutDown() not in supervisor.requests:
            time.sleep(0.001)
        held.close()

    ending = threading.Thread(target=end)
    ending.start()
    done = vnsmail("down")
    ending.join()

    assert (0, "", "vnsmail has ended (process 4711)\n") == (
        done.code,
        done.out,
        done.err,
    )
    assert not is_locked(layout(root))
    assert [control.GetStatus(), control.ShutDown()] == supervisor.requests


def test_down_takes_too_long(vnsmail, supervisor, root, monkeypatch):
    """One that does not end is told with where to look."""
    monkeypatch.setattr(daemon, "END_PATIENCE", 0.01)
    supervisor.answers[control.GetStatus] = STATUS
    prepare(layout(root))
    with lock(layout(root)):
        done = vnsmail("down")

    assert 1 == done.code
    assert done.err.endswith(f"has not ended within 0 s; see {root}/run/vnsmail.log\n")


# up ----------------------------------------------------------------------------


def test_up(vnsmail, root, monkeypatch):
    """In the foreground it is the supervisor, and says when it is ready."""
    (root / "vnsmail.toml").write_text("[smtp]\nport = 2525\n")

    def run(layout_, settings, ready):
        assert (root, 2525) == (layout_.state, settings.smtp.port)
        ready()

    monkeypatch.setattr(supervisor_main, "run", run)
    done = vnsmail("up")

    assert (0, "") == (done.code, done.out)
    assert f"vnsmail is ready (process {os.getpid()}, root {root})\n" == done.err


@pytest.mark.parametrize("listens", [True, False])
def test_up_tells_whoever_waits(vnsmail, monkeypatch, listens):
    """It says so on the descriptor it was given; that nobody reads is no reason to end."""
    reader, writer = os.pipe()
    if not listens:
        os.close(reader)
    monkeypatch.setattr(supervisor_main, "run", lambda _, __, ready: ready())
    done = vnsmail("up", "--ready-fd", str(writer))

    assert 0 == done.code
    if listens:
        assert b"ready" == os.read(reader, 10)
        assert b"" == os.read(reader, 10)
        os.close(reader)


def test_up_cannot(vnsmail, monkeypatch):
    """What keeps it from starting is one line."""

    def run(*_):
        raise StateUnusable("/var/lib/vnsmail", "it is not writable", "mend it")

    monkeypatch.setattr(supervisor_main, "run", run)
    done = vnsmail("up")

    text = "vnsmail: cannot use /var/lib/vnsmail: it is not writable; mend it\n"
    assert (1, "", text) == (done.code, done.out, done.err)


def test_up_with_bad_settings(vnsmail, root):
    """Settings that cannot be are one line, and nothing was begun."""
    (root / "vnsmail.toml").write_text("[smtp]\nprot = 25\n")
    done = vnsmail("up")

    assert (2, "") == (done.code, done.out)
    assert done.err.startswith(f"vnsmail: {root}/vnsmail.toml: smtp.prot = 25: ")
    assert ["vnsmail.toml"] == [path.name for path in root.iterdir()]


def test_up_where_a_lab_runs(vnsmail, monkeypatch):
    """A lab's hosts are not made on the machine's own links."""
    monkeypatch.setattr("vnsmail.lab.start.running", lambda _: object())
    done = vnsmail("up")

    assert Taken.exit_code == done.code
    assert "a lab runs there; give another --root" in done.err


@pytest.fixture
def detached(root, monkeypatch):
    """Let ``up --detach`` start a script in place of this program."""
    prepare(layout(root))
    monkeypatch.setattr(supervisor_main, "check", lambda *_: None)
    started = []

    def detached(script):
        real = subprocess.Popen

        def popen(command, **options):
            assert [*command[:3], *command[-2:-1]] == [
                *(sys.executable, "-P", "-m"),
                "--ready-fd",
            ]
            assert str(root) in command
            code = f"import os, sys, time\nfd = int(sys.argv[-1])\n{script}"
            process = real([sys.executable, "-ISc", code, command[-1]], **options)
            started.append(process)
            return process

        monkeypatch.setattr(subprocess, "Popen", popen)

    yield detached
    for process in started:
        process.kill()
        process.wait()


def test_detached(vnsmail, detached, root):
    """It returns once the supervisor is ready, which lives on and logs to a file."""
    detached("print('a word'); os.write(fd, b'ready'); os.close(fd); time.sleep(100)")
    done = vnsmail("up", "--detach")

    assert (0, "") == (done.code, done.out)
    assert done.err.startswith("vnsmail is ready (process ")
    assert done.err.endswith(f", log {root}/run/vnsmail.log)\n")


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("print('vnsmail: no such account'); sys.exit(2)", 2, "no such account"),
        (
            "print('something'); sys.exit(0)",
            1,
            "vnsmail ended before it was ready; see",
        ),
        ("os.kill(os.getpid(), 9)", 1, "vnsmail ended before it was ready; see"),
    ],
)
def test_detached_in_vain(vnsmail, detached, root, script, code, words):
    """What it complained of, this time, is told, with its exit code."""
    (root / "run" / "vnsmail.log").write_text("vnsmail: an old complaint\n")
    detached(script.replace(";", "; sys.stdout.flush();"))
    done = vnsmail("up", "--detach")

    assert (code, "") == (done.code, done.out)
    assert done.err.startswith(f"vnsmail: {words}")


def test_detached_and_slow(vnsmail, detached, monkeypatch):
    """After a while whoever waits is told where to look."""
    monkeypatch.setattr(daemon, "START_PATIENCE", 0.02)
    detached("time.sleep(100)")
    done = vnsmail("up", "--detach")

    assert 1 == done.code
    assert "is not ready after 0 s; see " in done.err


def test_refusals_keep_their_facts():
    """A refusal is its sentence and its exit code."""
    refused = client.Refused("no", 4)

    assert ("no", 4) == (str(refused), refused.exit_code)
    assert dataclasses.is_dataclass(refused) is False
