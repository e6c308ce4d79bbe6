#!/usr/bin/env python3
"""What receiving costs: messages a second made durable, and CPU a message.

vnsmail, Postfix's smtpd and aiosmtpd, one after the other, under the same load from
Postfix's smtp-source: 4 KiB messages, one a session or many, from 1, 20 and 200 clients, to
one virtual host and to twenty. What each says 250 to is on disk by then, and stays in its
queue: nothing is delivered.

What is alike: the file system, the load, the addresses, no look-up of a client's name that
would be answered, no filter. Each has what it has by default for what is left: vnsmail its
workers (one a processor), virtual hosts with a queue each, recipients looked up, the event
log, policy ``none``; Postfix a process a session, no recipients looked up, its log. The last
lines are vnsmail with policy ``mark``, which asks SPF, DMARC and reverse names of a name
server beside it, and hashes bodies.

What to know: one client waits for each sync of the disk, so its rate is the disk's, and what
a commit costs is spread over one message. One virtual host is one worker's, so twenty use
all processors and one does not. The load takes CPU too ("load us"), which on few processors
bounds the rate of whoever is fast; CPU a message does not depend on it.

It runs in namespaces of its own (unshare(1)); Postfix is Debian's package, unpacked into
a temporary folder and neither installed nor configured outside of it. Python is Debian's,
as in the package of vnsmail, where it is there.
"""

import argparse
import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench_receivers import HOSTS, OWNER, PORTS, address, domain, serve, start_postfix

CLIENTS = (1, 20, 200)
SIZE = 4096
SENDER = "ann@north.example"
SECONDS = 3.0
"""What one measurement should take."""
READY = 30.0
"""Seconds for a server to listen."""
IDLE = {"vnsmail": 1000, "postfix": 100, "aiosmtpd": 1000}
"""Idle connections; Postfix has a process for each."""

CASES = [
    (hosts, clients, many)
    for hosts in (1, HOSTS)
    for many in (False, True)
    for clients in CLIENTS
    if clients >= hosts
]
MARKED = "vnsmail, mark"
SERVERS = (*PORTS, MARKED)


def say(text: str) -> None:
    """Tell how far it has come."""
    print(text, file=sys.stderr, flush=True)


# Servers ----------------------------------------------------------------------------


class Server:
    """A server under test: its first process, and how it is watched."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]") -> None:
        self.name = name
        self.port = PORTS[name.partition(",")[0]]
        self.process = process
        deadline = time.monotonic() + READY
        while True:
            with contextlib.suppress(OSError), self.connected(HOSTS - 1) as sock:
                if sock.recv(512).startswith(b"220"):
                    return
            if process.poll() is not None or time.monotonic() > deadline:
                message = f"{name} does not listen; see its log in the folder"
                raise RuntimeError(message)
            time.sleep(0.1)

    def connected(self, host: int = 0) -> socket.socket:
        """Return a connection to it."""
        sock = socket.socket()
        sock.settimeout(10)
        sock.connect((address(host), self.port))
        return sock

    def pids(self) -> list[int]:
        """Return its processes."""
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    found += map(int, (task / "children").read_text().split())
        return found

    def cpu(self) -> dict[str, float]:
        """Return the seconds of CPU that its processes have used, dead ones too, by name."""
        found: dict[str, float] = {}
        for pid in self.pids():
            with contextlib.suppress(OSError):
                used = sum(
                    int((task / "schedstat").read_text().split()[0]) / 1e9
                    for task in Path(f"/proc/{pid}/task").iterdir()
                )
                stat = Path(f"/proc/{pid}/stat").read_text()
                fields = stat.rpartition(")")[2].split()
                ticks = int(fields[13]) + int(fields[14])  # cutime, cstime
                used += ticks / os.sysconf("SC_CLK_TCK")
                name = self._called(pid)
                found[name] = found.get(name, 0.0) + used
        return found

    def _called(self, pid: int) -> str:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"vnsmail.engines.native" in words:
            return "worker"
        if pid == self.process.pid:
            return "first"
        return Path(f"/proc/{pid}/comm").read_text().strip()

    def memory(self) -> int:
        """Return the KiB that all its processes have for themselves, shares included."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1])
        return total

    def end(self) -> None:
        """End it, with what it started, by process id."""
        pids = self.pids()
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def ourselves(name: str, folder: Path) -> Server:
    """Start a server that is a mode of this very script."""
    word, _, policy = name.partition(", ")
    command = [sys.executable, __file__, "--serve", word, "--folder", str(folder)]
    with (folder / f"{word}.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  our own interpreter
            [*command, "--policy", policy or "none"], stdout=log, stderr=log
        )
    return Server(name, process)


# Measuring ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """One measurement."""

    rate: float
    """Messages a second."""
    costs: dict[str, float]
    """Microseconds of CPU a message, by process."""
    load: float
    """The same of smtp-source."""

    @property
    def cost(self) -> float:
        """Microseconds of CPU a message."""
        return sum(self.costs.values())


def load(
    source: Path, server: Server, case: tuple[int, int, bool], messages: int
) -> Figure:
    """Send messages to a server and return what it took."""
    hosts, clients, many = case
    share = [str(source), "-s", str(clients // hosts), "-m", str(messages // hosts)]
    share += ["-l", str(SIZE), "-f", SENDER, *(["-d"] if many else [])]
    before, ours = server.cpu(), _children()
    began = time.monotonic()
    sources = [
        subprocess.Popen(  # noqa: S603  smtp-source
            [*share, "-t", f"user@{domain(n)}", f"{address(n)}:{server.port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for n in range(hosts)
    ]
    for each in sources:
        _, problem = each.communicate(timeout=120)
        if each.returncode != 0:
            message = f"smtp-source and {server.name}: {problem.decode()}"
            raise RuntimeError(message)
    elapsed = time.monotonic() - began
    time.sleep(0.2)  # a process that is ending is counted when it has ended
    sent = messages // hosts * hosts
    after = server.cpu()
    costs = {
        name: (used - before.get(name, 0.0)) / sent * 1e6
        for name, used in after.items()
    }
    return Figure(sent / elapsed, costs, (_children() - ours) / sent * 1e6)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(
    source: Path, server: Server, case: tuple[int, int, bool], seconds: float
) -> Figure:
    """Measure for about so long, after a short try that says how many messages that is."""
    clients = case[1]
    trial = load(source, server, case, max(100, 4 * clients))
    messages = max(100, 4 * clients, min(60_000, int(trial.rate * seconds)))
    return load(source, server, case, messages)


def idle_cost(server: Server, connections: int) -> float:
    """Return the KiB that an idle connection takes."""
    before = server.memory()
    with contextlib.ExitStack() as stack:
        for _ in range(connections):
            sock = stack.enter_context(server.connected())
            sock.recv(512)
        time.sleep(0.3)
        return (server.memory() - before) / connections


Figures = dict[tuple[str, tuple[int, int, bool]], Figure]


def shown(figures: Figures) -> None:
    """Print the table; ratios are ours to each of the others."""
    print(
        f"{'hosts':>5} {'clients':>7} {'messages':<8}"
        + "".join(f"{name + ' msg/s':>15}{'us':>6}" for name in PORTS)
        + f"{'load us':>9}{'rate/postfix':>14}{'CPU':>6}{'rate/aiosmtpd':>15}{'CPU':>6}"
    )
    for case in CASES:
        row = [figures[name, case] for name in PORTS]
        ours = row[0]
        line = f"{case[0]:5} {case[1]:7} {'many' if case[2] else 'one':<8}"
        line += "".join(f"{f.rate:15,.0f}{f.cost:6.0f}" for f in row)
        line += f"{ours.load:9.0f}"
        for theirs, width in zip(row[1:], (14, 15), strict=True):
            line += f"{ours.rate / theirs.rate:{width}.2f}"
            line += f"{ours.cost / theirs.cost:6.2f}"
        print(line)
    for (name, case), figure in figures.items():
        if name == MARKED:
            what = f"{case[0]} hosts, {case[1]} clients, {_many(case)}"
            line = f"policy mark: {what}: {figure.rate:,.0f}/s, {figure.cost:.0f} us"
            print(line, "of which", _by_process(figure))


def _many(case: tuple[int, int, bool]) -> str:
    return "many a session" if case[2] else "one a session"


def _by_process(figure: Figure) -> str:
    return ", ".join(f"{name} {cost:.0f}" for name, cost in figure.costs.items())


def unpacked(folder: Path) -> Path:
    """Return a folder with Debian's Postfix, fetched once into the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "vnsmail")
    cache.mkdir(parents=True, exist_ok=True)
    if not list(cache.glob("postfix_*.deb")):
        say("fetching Postfix (once)")
        subprocess.run(
            ["apt-get", "download", "-q", "postfix"],  # noqa: S607
            cwd=cache,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    package = max(cache.glob("postfix_*.deb"))
    target = folder / "postfix"
    subprocess.run(["dpkg", "-x", package, target], check=True)  # noqa: S603, S607
    return target


@contextlib.contextmanager
def accounts(folder: Path) -> Iterator[None]:
    """Give this mount namespace the accounts that Postfix wants."""
    for name, line in (
        ("passwd", f"postfix:x:{OWNER}:{OWNER}::/nonexistent:/bin/false\n"),
        ("group", f"postfix:x:{OWNER}:\npostdrop:x:{OWNER + 1}:\n"),
    ):
        copy = folder / name
        copy.write_text(Path("/etc", name).read_text() + line)
        copy.chmod(0o644)
        subprocess.run(  # noqa: S603
            ["mount", "--bind", copy, f"/etc/{name}"],  # noqa: S607
            check=True,
        )
    yield


def inside(options: argparse.Namespace) -> None:
    """Measure, in the namespaces that are this process's own by now."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)  # noqa: S607
    folder = Path(options.folder)
    package = folder / "postfix"
    os.environ["LD_LIBRARY_PATH"] = str(package / "usr/lib/postfix")
    source = package / "usr/sbin/smtp-source"
    figures: Figures = {}
    idle = {}
    seconds = 0.5 if options.quick else SECONDS
    with accounts(folder):
        for name in SERVERS:
            place = folder / f"{name.replace(', ', '-')}-run"
            place.mkdir(mode=0o755)
            server = (
                Server(name, start_postfix(package, place))
                if name == "postfix"
                else ourselves(name, place)
            )
            try:
                # First, as what was used and freed would be used again.
                if name in IDLE:
                    idle[name] = idle_cost(server, IDLE[name])
                for case in CASES if name in PORTS else [c for c in CASES if c[0] > 1]:
                    figure = figures[name, case] = measured(
                        source, server, case, seconds
                    )
                    say(
                        f"{name}: {case[0]} hosts, {case[1]} clients, {_many(case)}: "
                        f"{figure.rate:,.0f}/s, {figure.cost:.0f} us "
                        f"({_by_process(figure)}; load {figure.load:.0f})"
                    )
            finally:
                server.end()
    print(f"Python {sys.version.split()[0]} ({sys.executable})")
    shown(figures)
    print()
    for name, cost in idle.items():
        print(f"{name}: {cost:.1f} KiB for each of {IDLE[name]:,} idle connections")
    print("load of the machine:", *(f"{x:.1f}" for x in os.getloadavg()))


def interpreter() -> tuple[str, str]:
    """Return the Python that servers run in, and where it finds what they need."""
    top = Path(__file__).resolve().parent.parent
    paths = f"{top}:{sysconfig.get_path('purelib')}"
    system = "/usr/bin/python3"
    version = "import sys; print(*sys.version_info[:2])"
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        same = subprocess.run(  # noqa: S603  Debian's Python
            [system, "-c", version],
            capture_output=True,
            text=True,
            check=True,
        )
        if tuple(map(int, same.stdout.split())) == sys.version_info[:2]:
            return system, paths
    return sys.executable, paths


def main() -> None:
    """Run the benchmark, or the part of it that the options say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a minute and a half")
    parser.add_argument(
        "--folder", default="", help="on the disk that is to be measured"
    )
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    parser.add_argument("--policy", default="none", help=argparse.SUPPRESS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, Path(options.folder), options.policy)
        return
    if options.inside:
        inside(options)
        return
    if os.geteuid() != 0:
        sys.exit(
            "scripts/bench receive: run it as root (Postfix wants accounts of its own)"
        )
    folder = Path(tempfile.mkdtemp(prefix="vnsmail-bench-", dir=options.folder or None))
    folder.chmod(0o755)
    python, paths = interpreter()
    try:
        unpacked(folder)
        unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
        command = [*unshare, "--mount-proc", python, __file__, "--inside"]
        command += ["--folder", str(folder), *(["--quick"] if options.quick else [])]
        environment = {**os.environ, "PYTHONPATH": paths}
        done = subprocess.run(command, check=False, env=environment)  # noqa: S603
        sys.exit(done.returncode)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
