#!/usr/bin/env python3
"""What receiving costs: messages a second made durable, and CPU a message.

Our receiving path, Postfix's smtpd and aiosmtpd, one after the other, each under the
same load from Postfix's smtp-source: 4 KiB messages, one a session or many, from 1, 20
and 200 clients. What each says 250 to is on disk by then, and stays in its queue:
nothing is delivered. Then what an idle connection takes of memory.

It runs in namespaces of its own (unshare(1)); Postfix is Debian's package, unpacked into
a temporary folder and neither installed nor configured outside of it.
"""

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PORTS = {"vnsmail": 2501, "postfix": 2502, "aiosmtpd": 2503}
CLIENTS = (1, 20, 200)
SIZE = 4096
DOMAIN = "alpha.example"
RECIPIENT = f"user@{DOMAIN}"
SENDER = "ann@north.example"
SECONDS = 4.0
"""What one measurement should take."""
READY = 20.0
"""Seconds for a server to listen."""
IDLE = {"vnsmail": 1000, "postfix": 100, "aiosmtpd": 1000}
"""Idle connections; Postfix has a process for each."""


def say(text: str) -> None:
    """Tell how far it has come."""
    print(text, file=sys.stderr, flush=True)


# Servers ----------------------------------------------------------------------------


class Server:
    """A server under test: its first process, and how it is watched."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]") -> None:
        self.name = name
        self.process = process
        deadline = time.monotonic() + READY
        while True:
            with contextlib.suppress(OSError), self.connected() as sock:
                if sock.recv(512).startswith(b"220"):
                    return
            if process.poll() is not None or time.monotonic() > deadline:
                message = f"{name} does not listen; see its log in the folder"
                raise RuntimeError(message)
            time.sleep(0.1)

    def connected(self) -> socket.socket:
        """Return a connection to it."""
        sock = socket.socket()
        sock.settimeout(10)
        sock.connect(("127.0.0.1", PORTS[self.name]))
        return sock

    def pids(self) -> list[int]:
        """Return its processes."""
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    found += map(int, (task / "children").read_text().split())
        return found

    def cpu(self) -> float:
        """Return the seconds of CPU that all its processes have used, dead ones too."""
        total = 0.0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    total += int((task / "schedstat").read_text().split()[0]) / 1e9
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks = int(stat[13]) + int(stat[14])  # cutime, cstime
                total += ticks / os.sysconf("SC_CLK_TCK")
        return total

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
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  our own interpreter
            [sys.executable, __file__, "--serve", name, "--folder", str(folder)],
            stdout=log,
            stderr=log,
        )
    return Server(name, process)


MAIN_CF = """\
compatibility_level = 3.6
queue_directory = {folder}/spool
data_directory = {folder}/data
daemon_directory = {postfix}/usr/lib/postfix/sbin
command_directory = {postfix}/usr/sbin
mail_owner = postfix
setgid_group = postdrop
import_environment = MAIL_CONFIG TZ LANG=C LD_LIBRARY_PATH
maillog_file = {folder}/postfix.log
maillog_file_prefixes = {folder}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = {domain}
mydestination = {domain}
local_recipient_maps =
alias_maps =
smtpd_recipient_restrictions = reject_unauth_destination, static:HOLD
smtpd_peername_lookup = no
default_process_limit = 400
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
smtpd_client_message_rate_limit = 0
in_flow_delay = 0
"""

MASTER_CF = """\
{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
rewrite unix - - n - - trivial-rewrite
anvil unix - - n - 1 anvil
qmgr unix n - n 300 1 qmgr
proxymap unix - - n - - proxymap
postlog unix-dgram n - n - 1 postlogd
"""

SPOOL = (
    "active bounce corrupt defer deferred flush hold incoming maildrop pid private"
    " public saved trace"
)


def postfix(postfix: Path, folder: Path) -> Server:
    """Start Postfix's master with a configuration of our own; messages are held."""
    conf = folder / "conf"
    conf.mkdir()
    facts = {"folder": folder, "postfix": postfix, "domain": DOMAIN}
    (conf / "main.cf").write_text(MAIN_CF.format(**facts))
    (conf / "master.cf").write_text(MASTER_CF.format(port=PORTS["postfix"]))
    for name in ("spool", "data"):
        (folder / name).mkdir()
    os.chown(folder / "data", OWNER, OWNER)
    for name in SPOOL.split():
        (folder / "spool" / name).mkdir(mode=0o700)
        if name != "pid":
            os.chown(folder / "spool" / name, OWNER, OWNER)
    with (folder / "postfix.out").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  the unpacked program
            [postfix / "usr/lib/postfix/sbin/master", "-d", "-c", conf],
            env={**os.environ, "MAIL_CONFIG": str(conf)},
            stdout=log,
            stderr=log,
        )
    return Server("postfix", process)


OWNER = 64001
"""uid and gid of Postfix, in the namespace's own /etc/passwd."""


# This script as a server ----------------------------------------------------------------


def serve(name: str, folder: Path) -> None:
    """Be our receiving path, or aiosmtpd, until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if name == "vnsmail":
        import uvloop  # noqa: PLC0415

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_receive(folder / "queue"))
    else:
        _aiosmtpd(folder / "maildrop")


async def _receive(folder: Path) -> None:
    """Receive as a worker does, queue and log and all; what is kept is not delivered."""
    from vnsmail import log  # noqa: PLC0415
    from vnsmail.inbound.accept import AcceptPolicy  # noqa: PLC0415
    from vnsmail.inbound.listeners import Reception  # noqa: PLC0415
    from vnsmail.inbound.shared import ReceiverFacts  # noqa: PLC0415
    from vnsmail.model import IPAddress, Owner  # noqa: PLC0415
    from vnsmail.queue.queue import Queue  # noqa: PLC0415

    log.configure(process="worker-0")
    executor = ThreadPoolExecutor(4)
    queue = await Queue.open(folder, executor)

    async def nameless(_: IPAddress) -> str | None:
        return None

    most = max(*IDLE.values(), *CLIENTS) + 100
    facts = ReceiverFacts(
        owner=Owner(DOMAIN),
        name=DOMAIN,
        policy=AcceptPolicy.of([DOMAIN], ["user"]),
        folder=folder,
        max_message_size=50 * 1024 * 1024,
        max_recipients=1000,
        command_timeout=300.0,
        max_sessions=most,
        max_sessions_per_peer=most,
    )
    reception = Reception(
        facts, keep=queue.accept, reverse_name=nameless, executor=executor
    )
    reception.listen(_listening(PORTS["vnsmail"]))
    await asyncio.Event().wait()


def _listening(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen(1024)
    return sock


def _aiosmtpd(folder: Path) -> None:
    """Aiosmtpd with a handler that makes each message durable: a synced file a message."""
    from aiosmtpd.smtp import SMTP, Envelope, Session  # noqa: PLC0415

    for name in ("tmp", "new"):
        (folder / name).mkdir(parents=True)
    new = os.open(folder / "new", os.O_RDONLY)

    class Keep:
        async def handle_DATA(  # noqa: N802  aiosmtpd's name
            self, _server: SMTP, _session: Session, envelope: Envelope
        ) -> str:
            content = envelope.content or b""
            data = content if isinstance(content, bytes) else content.encode()
            await asyncio.to_thread(self.keep, data)
            return "250 2.0.0 kept"

        def keep(self, data: bytes) -> None:
            name = os.urandom(16).hex()
            fd = os.open(folder / "tmp" / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            os.write(fd, data)
            os.fsync(fd)
            os.close(fd)
            (folder / "tmp" / name).rename(folder / "new" / name)
            os.fsync(new)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        await loop.create_server(
            lambda: SMTP(Keep(), hostname=DOMAIN, enable_SMTPUTF8=True),
            sock=_listening(PORTS["aiosmtpd"]),
            backlog=1024,
        )
        await asyncio.Event().wait()

    asyncio.run(run())


# Measuring ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """One measurement."""

    rate: float
    """Messages a second."""
    cost: float
    """Microseconds of CPU a message."""


def load(
    source: Path, server: Server, clients: int, messages: int, *, many: bool
) -> Figure:
    """Send messages to a server and return what it took."""
    command = [str(source), "-s", str(clients), "-m", str(messages), "-l", str(SIZE)]
    command += ["-f", SENDER, "-t", RECIPIENT, *(["-d"] if many else [])]
    before, began = server.cpu(), time.monotonic()
    done = subprocess.run(  # noqa: S603  smtp-source
        [*command, f"127.0.0.1:{PORTS[server.name]}"],
        capture_output=True,
        check=False,
        timeout=120,
    )
    elapsed = time.monotonic() - began
    if done.returncode != 0:
        message = f"smtp-source and {server.name}: {done.stderr.decode()}"
        raise RuntimeError(message)
    time.sleep(0.2)  # a process that is ending is counted when it has ended
    return Figure(messages / elapsed, (server.cpu() - before) / messages * 1e6)


def measured(
    source: Path, server: Server, clients: int, seconds: float, *, many: bool
) -> Figure:
    """Measure for about so long, after a short try that says how many messages that is."""
    trial = load(source, server, clients, max(50, 2 * clients), many=many)
    messages = max(100, 4 * clients, min(60_000, int(trial.rate * seconds)))
    return load(source, server, clients, messages, many=many)


def idle_cost(server: Server, connections: int) -> float:
    """Return the KiB that an idle connection takes."""
    before = server.memory()
    with contextlib.ExitStack() as stack:
        for _ in range(connections):
            sock = stack.enter_context(server.connected())
            sock.recv(512)
        time.sleep(0.3)
        return (server.memory() - before) / connections


def shown(figures: dict[tuple[str, int, bool], Figure]) -> None:
    """Print the table; ratios are ours to each of the others."""
    print(
        f"{'clients':>7} {'messages':<8}"
        + "".join(f"{name + ' msg/s':>16}{'us':>7}" for name in PORTS)
        + f"{'rate/postfix':>14}{'CPU':>6}{'rate/aiosmtpd':>15}{'CPU':>6}"
    )
    for many in (False, True):
        for clients in CLIENTS:
            row = {name: figures[name, clients, many] for name in PORTS}
            ours = row["vnsmail"]
            line = f"{clients:7} {'many' if many else 'one':<8}"
            line += "".join(f"{f.rate:16,.0f}{f.cost:7.0f}" for f in row.values())
            for other, width in (("postfix", 14), ("aiosmtpd", 15)):
                theirs = row[other]
                line += f"{ours.rate / theirs.rate:{width}.2f}"
                line += f"{ours.cost / theirs.cost:6.2f}"
            print(line)


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
    figures: dict[tuple[str, int, bool], Figure] = {}
    idle = {}
    seconds = 0.5 if options.quick else SECONDS
    with accounts(folder):
        for name in PORTS:
            place = folder / f"{name}-run"
            place.mkdir(mode=0o755)
            server = (
                postfix(package, place) if name == "postfix" else ourselves(name, place)
            )
            try:
                # First, as what was used and freed would be used again.
                idle[name] = idle_cost(server, IDLE[name])
                for many in (False, True):
                    for clients in CLIENTS:
                        figure = measured(source, server, clients, seconds, many=many)
                        figures[name, clients, many] = figure
                        how = "many a session" if many else "one a session"
                        say(
                            f"{name}: {clients} clients, {how}: "
                            f"{figure.rate:,.0f}/s, {figure.cost:.0f} us"
                        )
            finally:
                server.end()
    shown(figures)
    print()
    for name, cost in idle.items():
        print(f"{name}: {cost:.1f} KiB for each of {IDLE[name]:,} idle connections")


def main() -> None:
    """Run the benchmark, or the part of it that the options say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half a minute")
    parser.add_argument(
        "--folder", default="", help="on the disk that is to be measured"
    )
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, Path(options.folder))
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
    try:
        unpacked(folder)
        unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
        command = [*unshare, "--mount-proc", sys.executable, __file__, "--inside"]
        command += ["--folder", str(folder), *(["--quick"] if options.quick else [])]
        sys.exit(subprocess.run(command, check=False).returncode)  # noqa: S603
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
