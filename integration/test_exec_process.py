"""A program run as a virtual host as a process: codes, signals, and what is left."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from integration.exec_programs import (
    Program,
    cgroups_of,
    command,
    instance,
    observer,
    python,
)
from integration.labs import eventually, outer
from vnsmail.net import cgroups

APART, ALIAS = "alpha.example", "delta.example"
HOSTS = (APART, ALIAS)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("true",), 0, ""),
        (("sh", "-c", "exit 7"), 7, ""),
        (("sh", "-c", "kill -TERM $$"), 128 + 15, ""),
        (("missing",), 127, "vnsmail: cannot run missing: not found\n"),
        (("/etc/passwd",), 126, "vnsmail: cannot run /etc/passwd: permission denied\n"),
        (("/etc",), 126, "vnsmail: cannot run /etc: is a directory\n"),
    ],
)
def test_exit_code(lab, host, words, code, says):
    """The program's own, as a shell shows it; nothing is left of it."""
    done = lab.vnsmail("exec", host, "--", *words, check=False)

    # As a shell shows a process that a signal ended.
    shown = done.returncode if done.returncode >= 0 else 128 - done.returncode

    assert (code, "", says) == (shown, done.stdout, done.stderr)
    assert [] == cgroups_of(lab)


@pytest.mark.parametrize("host", HOSTS)
def test_a_script_without_its_interpreter(lab, host, tmp_path):
    """It is there and cannot be executed: found out when it is tried."""
    script = tmp_path / "script"
    script.write_text("#!/nowhere/at/all\n")
    script.chmod(0o755)
    done = lab.vnsmail("exec", host, str(script), check=False)

    assert (127, f"vnsmail: cannot run {script}: not found\n") == (
        done.returncode,
        done.stderr,
    )
    assert [] == cgroups_of(lab)


PIPE = '"$@" yes | head -1; echo ${PIPESTATUS[0]}'


@pytest.mark.parametrize("host", HOSTS)
def test_input_output_and_pipes(lab, host):
    """A filter like any other; a pipe that nobody reads ends it as everywhere."""
    done = lab.vnsmail("exec", host, "--", "tr", "a-z", "A-Z", stdin="said\n")
    ended = subprocess.run(
        ["bash", "-c", PIPE, "bash", *command(lab), "exec", host, "--"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert "SAID\n" == done.stdout
    assert ("y\n141\n", "") == (ended.stdout, ended.stderr)


TRAPS = """
for name in HUP INT TERM USR1; do trap "echo $name; exit 40" $name; done
echo $$ $PPID
for i in {1..600}; do sleep 0.05; done
"""


@pytest.mark.parametrize("name", ["HUP", "INT", "TERM", "USR1"])
@pytest.mark.parametrize("host", HOSTS)
def test_signals(lab, host, name):
    """What is sent to the command reaches the program, whose code is the code."""
    with Program(lab, host, "bash", "-c", TRAPS) as program:
        own, parent = map(int, program.line().split())
        # In a namespace context the command has become the program.
        target = own if host == APART else parent
        os.kill(outer(lab.pid, target), signal.Signals[f"SIG{name}"])
        rest = program.go_on()

    assert (f"{name}\n", 40) == (rest, program.process.returncode)
    assert [] == cgroups_of(lab)


def state(pid):
    """Return the state of a process as ps(1) shows it; empty if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[0]


def test_stopped_and_continued(lab):
    """One who waits for the command sees it stop with the program, and go on with it."""
    with Program(lab, ALIAS, "bash", "-c", TRAPS) as program:
        own, parent = (outer(lab.pid, int(pid)) for pid in program.line().split())
        waiting = program.process.pid  # which is nsenter(1), into the lab
        all_three = (own, parent, waiting)
        os.kill(parent, signal.SIGTSTP)
        eventually(lambda: {state(pid) for pid in all_three} == {"T"}, "all stopped")
        os.kill(waiting, signal.SIGCONT)
        eventually(lambda: "T" not in map(state, all_three), "all going on")
        os.kill(parent, signal.SIGTERM)
        rest = program.go_on()

    assert ("TERM\n", 40) == (rest, program.process.returncode)


BEHIND = """
(trap '' HUP; read -r < "$1"; exec "$2" -c "$3") < /dev/null >> "$4" 2>&1 &
"""
CONNECT = """
import socket
for server in ("10.77.0.3", "fd77::3"):
    with socket.create_connection((server, 7777)) as sock:
        print(sock.recv(100).decode(), flush=True)
"""


@pytest.fixture
def left_behind(lab, tmp_path):
    """A process that a program left in the background, and that waits to connect."""
    fifo, out = tmp_path / "fifo", tmp_path / "out"
    os.mkfifo(fifo)
    words = ["bash", "-c", BEHIND, "bash", str(fifo), sys.executable, CONNECT, str(out)]
    lab.vnsmail("exec", ALIAS, "--", *words)
    return fifo, out


def ended(lab):
    return lambda: cgroups.remove(instance(lab), ALIAS)


def test_what_goes_on_in_the_background(lab, left_behind):
    """The hooks hold it too; the cgroup stays with it, serves others, and then goes."""
    fifo, out = left_behind

    assert not cgroups.remove(instance(lab), ALIAS)
    assert [ALIAS] == cgroups_of(lab)
    assert 1 == python(lab, ALIAS, "print(1)")
    assert [ALIAS] == cgroups_of(lab)
    with observer(lab):
        fifo.write_text("\n")
        eventually(lambda: cgroups.remove(instance(lab), ALIAS), "the process ended")
    assert "10.77.0.14\nfd77::14\n" == out.read_text()
    assert [] == cgroups_of(lab)


def test_killed(lab):
    """The hooks outlive the command; the next one clears up what it could not."""
    code = f"import os; print(os.getpid(), os.getppid(), flush=True); input(){CONNECT}"
    with observer(lab), Program(lab, ALIAS, sys.executable, "-c", code) as program:
        own, parent = (outer(lab.pid, int(pid)) for pid in program.line().split())
        os.kill(parent, signal.SIGKILL)
        rest = program.go_on()
        eventually(lambda: state(own) in {"", "Z"}, "the program ended")

    assert "10.77.0.14\nfd77::14\n" == rest
    assert [ALIAS] == cgroups_of(lab)
    lab.vnsmail("exec", ALIAS, "true")
    assert [] == cgroups_of(lab)


def test_many_at_once(lab):
    """They share the cgroup, whoever comes and goes first."""
    with contextlib.ExitStack() as stack:
        programs = [
            stack.enter_context(Program(lab, ALIAS, word))
            for word in ["cat", "true"] * 3
        ]
        written = [each.go_on() for each in reversed(programs)]

    assert ["", "\n"] * 3 == written
    assert [0] * 6 == [each.process.returncode for each in programs]
    assert [] == cgroups_of(lab)


def test_a_host_that_has_changed(lab):
    """Made again with another address: those that run on are held to the new one."""
    name = "other.example"
    make = ("host", "create", name, "--context", "alias", "--address")
    lab.vnsmail(*make, "10.77.0.41/24")
    code = "print(flush=True); input()" + CONNECT.replace(', "fd77::3"', ",")
    with observer(lab), Program(lab, name, sys.executable, "-c", code) as program:
        assert "" == program.line()
        lab.vnsmail("host", "destroy", name)
        lab.vnsmail(*make, "10.77.0.42/24")
        lab.vnsmail("exec", name, "true")
        rest = program.go_on()
    lab.vnsmail("host", "destroy", name)

    assert "10.77.0.42\n" == rest
    assert [] == cgroups_of(lab)


def test_nobody_there(lab):
    """A host that does not exist is bad input."""
    done = lab.vnsmail("exec", "nobody.example", "true", check=False)

    assert (2, 1) == (done.returncode, done.stderr.count("\n"))
    assert "virtual host 'nobody.example'" in done.stderr
