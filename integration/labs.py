"""A lab for a test: started through the command line, and gone with the test.

Everything is inside namespaces that the lab made. The lab is tied to the process that
started it, and that one to the test run by PR_SET_PDEATHSIG, so that killing the test
run leaves nothing behind.
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from vnsmail.directory import open_to_read
from vnsmail.lab import topology
from vnsmail.net import names
from vnsmail.settings import layout

T = TypeVar("T")

VNSMAIL = (sys.executable, "-P", "-m", "vnsmail.cli.app")

PATIENCE = 60.0
"""Seconds until a condition that is waited for counts as never."""


def die_with_parent() -> None:
    """Make the process that is about to be started end with the one that starts it."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def eventually(look: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """Return what ``look`` finds as soon as it is true."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


class Lab:
    """A running lab."""

    python = sys.executable

    def __init__(
        self,
        root: Path,
        *,
        hosts: int = 5,
        prefix: tuple[str, ...] = (),
        options: tuple[str, ...] = (),
    ):
        self.root = root
        self.prefix = prefix
        self.process = subprocess.Popen(
            [
                *(*prefix, *VNSMAIL, "--root", str(root), "lab", "up"),
                *("--foreground", "--json", "--hosts", str(hosts), *options),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509  before any thread
        )
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        else:
            assert self.process.stderr is not None
            pytest_text = self.process.stderr.read() + self.log()
            raise AssertionError(f"the lab did not start: {pytest_text}")
        self.facts: dict[str, Any] = json.loads("".join(lines))
        self.pid: int = self.facts["pid"]

    def log(self) -> str:
        """Return what the lab's processes logged."""
        try:
            return (self.root / "run" / "lab.log").read_text()
        except OSError:
            return ""

    def stop(self) -> None:
        """End it as a service manager does."""
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=90)

    def restart(self, settings: str = "") -> None:
        """End vnsmail in the lab and start it again, with more settings."""
        self.vnsmail("down")
        with (self.root / "vnsmail.toml").open("a") as file:
            file.write(settings)
        self.up()

    def up(self, descriptors: int = 0) -> None:
        """Start vnsmail in the lab; no process of it may have more descriptors."""
        python = "import sys; from vnsmail.cli.app import main; main()"
        if descriptors:
            limit = (resource.RLIMIT_NOFILE, (descriptors, descriptors))
            python = f"import resource; resource.setrlimit{limit}; {python}"
        self.inside(
            *("machine", self.python, "-P", "-c", python),
            *("--root", str(self.root), "up", "--detach"),
        )

    def vnsmail(
        self, *words: str, check: bool = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of the product from outside the lab."""
        done = subprocess.run(
            [*self.prefix, *VNSMAIL, "--root", str(self.root), *words],
            capture_output=True,
            text=True,
            input=stdin,
            check=False,
        )
        if check:
            assert done.returncode == 0, (words, done.stderr, self.log()[-5000:])
        return done

    def json(self, *words: str) -> Any:
        """Return what a command says as JSON."""
        return json.loads(self.vnsmail(*words, "--json").stdout)

    def inside(
        self, node: str, *command: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run any command where a node is; the machine is ``machine``."""
        return subprocess.run(
            self._command(node, command), capture_output=True, text=True, check=check
        )

    def beside(self, node: str, *command: str) -> subprocess.Popen[str]:
        """Start a command where a node is; it is to end when its input does."""
        return subprocess.Popen(
            self._command(node, command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _command(self, node: str, command: tuple[str, ...]) -> list[str]:
        into = ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid"]
        namespace = self._namespace(node)
        if namespace:
            command = ("ip", "netns", "exec", namespace, *command)
        return [*into, "--", *command]

    def _namespace(self, node: str) -> str:
        if node == "machine":
            return ""
        if node in {topology.NAMESERVER, *(r["name"] for r in self.facts["remotes"])}:
            return names.namespace(topology.INSTANCE, node)
        return names.namespace(layout(self.root).instance, node)

    def hosts(self) -> tuple[str, ...]:
        """Return what the directory says of hosts and users, as text to compare."""
        with open_to_read(layout(self.root).directory_db) as directory:
            return tuple(
                f"{host} {directory.users(host.name)}" for host in directory.hosts()
            )

    def send(
        self, sender: str, *recipients: str, subject: str = "x", text: str = "x"
    ) -> str:
        """Queue a message as a user, or as ``machine``; returns its queue id."""
        who = ("--machine",) if sender == "machine" else ("--as", sender)
        to = [word for each in recipients for word in ("--to", each)]
        words = ("send", *who, *to, "--subject", subject, "--text", text)
        found: str = self.json(*words)["id"]
        return found

    def seen(self, path: str | Path) -> Path:
        """Return a path to what a file of the lab is there, mounts of the lab's included."""
        return Path(f"/proc/{self.pid}/root{path}")

    def settle(self) -> None:
        """Wait until nothing is queued."""
        self.vnsmail("queue", "wait", "--timeout", "40")

    def remote_mail(self, user: str, domain: str = "north.example") -> list[bytes]:
        """Return the messages a user of a remote got."""
        remote = next(r for r in self.facts["remotes"] if r["domain"] == domain)
        return mails(Path(remote["mail"]) / user)

    def mail(self, user: str, host: str) -> list[bytes]:
        """Return the messages a user of a virtual host got."""
        return mails(self.root / "hosts" / host / "mail" / user)

    def outer_pid(self, name: str) -> int:
        """Return the pid, as seen from outside, of a process that status names."""
        status = self.json("status")
        if name == "supervisor":
            inner = status["pid"]
        else:
            inner = next(p["pid"] for p in status["processes"] if p["name"] == name)
        return outer(self.pid, inner)


def mails(folder: Path) -> list[bytes]:
    """Return the messages in a Maildir, oldest first."""
    files = (folder / "new").glob("*")
    # By name they are not in order: its microseconds have no leading zeros.
    in_order = sorted(files, key=lambda path: path.stat().st_mtime_ns)
    return [path.read_bytes() for path in in_order]


def outer(lab: int, inner: int) -> int:
    """Return the pid here of a process that has another in a lab's namespace."""
    namespace = os.readlink(f"/proc/{lab}/ns/pid")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(folder / "ns" / "pid") != namespace:
                continue
            status = (folder / "status").read_text()
        except OSError:
            continue
        line = next(x for x in status.splitlines() if x.startswith("NSpid:"))
        if int(line.split()[-1]) == inner:
            return int(folder.name)
    raise LookupError(f"no process {inner} in the lab of {lab}")


def syns(capture: Path) -> set[str]:
    """Return the sources of connection requests, as tshark sees them."""
    done = subprocess.run(
        [
            *("tshark", "-r", str(capture), "-T", "fields", "-e", "ip.src"),
            *("-e", "ipv6.src", "-Y", "tcp.flags.syn==1 && tcp.flags.ack==0"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())
