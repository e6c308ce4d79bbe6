#!/usr/bin/env python3
"""What relaying costs: mail in at a host's address, kept on disk, out from that address.

vnsmail as it is installed (supervisor, broker, workers, guard, event log, SPF, DKIM and
DMARC of what comes in), Postfix, Exim and OpenSMTPD, one after the other, each under the
same load from Postfix's smtp-source, 4 KiB a message, to the same sink: with 1, 20 and
200 virtual hosts, with one message a session and with as many as each likes. Then
how long a message takes at a quiet pace. The sink counts what came and whose address it
came from; the first segment of every connection is captured and judged too.

All of it is in namespaces of its own (unshare(1)); the others are Debian's packages,
unpacked into a folder and neither installed nor configured outside of it.
"""

import argparse
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
from dataclasses import dataclass, field
from pathlib import Path

from relay import far, servers, watch
from relay.servers import PEERS, Load, Place

SIZE = 4096
SESSIONS = 40
"""Sessions at a time into a server with few hosts; with many hosts, one each."""
FEWEST_DESTINATIONS = 4
RATE, PACED_SECONDS = 50.0, 4.0
"""Messages a second whose way is timed, and for how long."""
READY = 60.0
PATIENCE = 120.0
"""Seconds until mail that has not arrived counts as lost."""
FAR = Path(far.__file__)


def say(text: str) -> None:
    """Tell how far it has come."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class Figure:
    """What one server made of one load."""

    rate: float = 0.0
    """Messages a second, from the first arrival to the last."""
    cost: float = 0.0
    """Microseconds of CPU a message."""
    memory: float = 0.0
    """MiB of all its processes."""
    latency: tuple[float, float] | None = None
    """Milliseconds: half of the messages took less, 99 of 100."""
    sessions: int = 0
    problems: list[str] = field(default_factory=list)


class World:
    """The network: the machine, and beyond a wire the sink, the sources, the DNS."""

    def __init__(self, folder: Path, sinks: int) -> None:
        self.folder = folder
        self._sinks = sinks
        self._running: list[subprocess.Popen[bytes]] = []
        self._counts: list[memoryview[int]] = []
        _ip("link set lo up")
        _ip("netns add far")
        _ip("link add wire0 type veth peer name eth0 netns far")
        _ip("addr add 10.9.0.1/16 dev wire0")
        _ip("link set wire0 up")
        for words in (
            "link set lo up",
            "addr add 10.9.255.1/16 dev eth0",
            "addr add 10.9.255.53/16 dev eth0",
            "link set eth0 up",
            "route add local 10.9.254.0/24 dev lo",
        ):
            _ip(f"-n far {words}")
        self._start("dns", "--address", "10.9.255.53")

    def sinks(self, hosts: int) -> None:
        """Start the sinks anew, for so many hosts."""
        self.close(keep=1)
        self._counts.clear()
        for number in range(self._sinks):
            file = self.folder / f"counts{number}"
            file.unlink(missing_ok=True)
            self._counts.append(far.shared(file))
            self._start("sink", "--counts", file, "--hosts", hosts)

    def clear(self) -> None:
        """Count from nothing."""
        for each in self._counts:
            for place in range(len(each)):
                each[place] = 0

    def total(self, place: int) -> int:
        """Return what all sinks counted."""
        return sum(each[place] for each in self._counts)

    def seconds(self) -> float:
        """Return the time from the first message to the last."""
        first = min(each[far.FIRST] for each in self._counts if each[far.FIRST])
        return (max(each[far.LAST] for each in self._counts) - first) / 1e9

    def latencies(self) -> list[float]:
        """Return the milliseconds that each timed message took, in order."""
        start = far.PLACES + far.MOST
        return sorted(
            value / 1e6
            for each in self._counts
            for value in each[start : start + each[far.PROBES]]
        )

    def cpu(self) -> float:
        """Return the CPU that the sinks have used."""
        return sum(watch.cpu(process.pid) for process in self._running[1:])

    def _start(self, *words: object) -> None:
        self._running.append(subprocess.Popen(_beyond(*words)))  # noqa: S603

    def close(self, keep: int = 0) -> None:
        """End what runs beyond the wire."""
        for process in self._running[keep:]:
            process.kill()
            process.wait()
        del self._running[keep:]


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)  # noqa: S603, S607


def _beyond(*words: object) -> list[str]:
    command = ["nsenter", "--net=/run/netns/far", sys.executable, "-P", FAR, *words]
    return list(map(str, command))


class Measurement:
    """One server under one load."""

    def __init__(
        self, world: World, name: str, load: Load, options: argparse.Namespace
    ) -> None:
        self._world = world
        self._name = name
        self._load = load
        self._options = options
        self._peer = PEERS[name]
        folder = world.folder / f"{name}-{load.hosts}-{int(load.many)}"
        folder.mkdir()
        self._place = Place(folder, Path(options.folder) / "packages")
        self.figure = Figure()

    def run(self, *, paced: bool) -> Figure:
        """Start the server, load it, and end it."""
        load = self._load
        self._world.sinks(load.hosts)
        with self._addresses():
            process = servers.start(self._name, load, self._place)
            try:
                self._prepare(process)
                # From here on: later messages may take connections of the first ones.
                self._packets = watch.Connections("wire0")
                self._flood(
                    min(200, 10 * load.destinations), judged=False, process=process
                )
                messages = int(self._peer.messages * self._options.scale)
                self._flood(messages, judged=True, process=process)
                self.figure.memory = watch.memory(process.pid) / 1024
                if paced:
                    self._pace()
                if self._name == "vnsmail":
                    _take_down(self._place.folder / "root")
            finally:
                watch.end(process)
        if not self._options.keep:
            shutil.rmtree(self._place.folder, ignore_errors=True)
        return self.figure

    @contextlib.contextmanager
    def _addresses(self) -> Iterator[None]:
        if not self._peer.addresses:
            yield
            return
        hosts = range(1, self._load.hosts + 1)
        # vnsmail leaves those that it made where they are.
        batch = "".join(f"addr replace 10.9.1.{n}/32 dev wire0\n" for n in hosts)
        subprocess.run(["ip", "-batch", "-"], input=batch.encode(), check=True)  # noqa: S607
        yield
        _ip("addr flush dev wire0 to 10.9.1.0/24")

    def _prepare(self, process: "subprocess.Popen[bytes]") -> None:
        """Wait until it listens at the last host's address."""
        deadline = time.monotonic() + READY
        if self._name == "vnsmail":
            _serve_hosts(self._place.folder / "root", self._load, process, deadline)
        while True:
            with contextlib.suppress(OSError), socket.socket() as sock:
                sock.settimeout(10)
                sock.connect((f"10.9.1.{self._load.hosts}", 25))
                if sock.recv(512).startswith(b"220"):
                    return
            if process.poll() is not None or time.monotonic() > deadline:
                message = f"{self._name} does not listen; see {self._place.folder}/log"
                raise RuntimeError(message)
            time.sleep(0.1)

    def _words(self) -> list[object]:
        load, peer = self._load, self._peer
        words = ["--hosts", load.hosts, "--destinations", load.destinations]
        words += ["--sender", peer.sender, "--recipient", peer.recipient]
        return [*words, "--size", SIZE]

    def _flood(
        self, messages: int, *, judged: bool, process: "subprocess.Popen[bytes]"
    ) -> None:
        load, world = self._load, self._world
        each = max(messages // load.destinations, 2)
        total = each * load.destinations
        sessions = min(max(SESSIONS // load.destinations, 1), each)
        words = ["--source", self._options.source, "--sessions", sessions]
        words += ["--messages", each, *(["--many"] if load.many else [])]
        world.clear()
        before, sink_before = watch.cpu(process.pid), world.cpu()
        began = time.monotonic()
        source = subprocess.Popen(_beyond("flood", *words, *self._words()))  # noqa: S603
        self._arrive(total, source)
        self.figure.sessions += world.total(far.SESSIONS)
        if not judged:
            return
        took = max(world.seconds(), 1e-9)
        figure = self.figure
        figure.rate = total / took
        time.sleep(0.3)  # a process that is ending is counted when it has ended
        figure.cost = (watch.cpu(process.pid) - before) / total * 1e6
        busy = (world.cpu() - sink_before) / (time.monotonic() - began)
        say(f"    the sinks used {busy:.0%} of a processor")
        self._judge(self._packets, total)

    def _arrive(self, total: int, source: "subprocess.Popen[bytes]") -> None:
        """Wait until all is at the sink."""
        deadline = time.monotonic() + PATIENCE
        shown = time.monotonic() + 5
        while (came := self._world.total(far.MESSAGES)) < total:
            if source.poll():
                message = f"smtp-source failed with {self._name}"
                raise RuntimeError(message)
            if time.monotonic() > deadline:
                self.figure.problems.append(f"{total - came} of {total} never came")
                break
            if time.monotonic() > shown:
                shown += 5
                say(f"    {came:,} of {total:,}")
            time.sleep(0.02)
        source.wait()

    def _judge(self, packets: watch.Connections, total: int) -> None:
        """Compare what the sink says and what the packets say with what should be."""
        figure, world, load = self.figure, self._world, self._load
        found, missed = packets.seen()
        packets.close()
        to_sink = {k: v for k, v in found.items() if k[1].startswith("10.9.254.")}
        for (source, destination), count in to_sink.items():
            number = int(destination.rpartition(".")[2])
            if source != f"10.9.1.{far.host_of(number, load.hosts)}":
                figure.problems.append(f"{count} connections {source} > {destination}")
        if missed:
            figure.problems.append(f"{missed} packets missed")
        if wrong := world.total(far.WRONG):
            figure.problems.append(f"{wrong} messages from a wrong address")
        if (more := world.total(far.MESSAGES) - total) > 0:
            figure.problems.append(f"{more} messages too many")
        for n in range(1, load.destinations + 1):
            if world.total(far.PLACES + n) != total // load.destinations:
                figure.problems.append(f"d{n} did not get all")
        seen = sum(to_sink.values())
        if seen < figure.sessions:
            figure.problems.append(
                f"{seen} connections seen, {figure.sessions} counted"
            )

    def _pace(self) -> None:
        words = ["--rate", RATE, "--seconds", PACED_SECONDS, *self._words()]
        self._world.clear()
        source = subprocess.Popen(_beyond("pace", *words))  # noqa: S603
        self._arrive(int(RATE * PACED_SECONDS), source)
        found = self._world.latencies()
        if found:
            last = found[min(len(found) * 99 // 100, len(found) - 1)]
            self.figure.latency = (found[len(found) // 2], last)


def _serve_hosts(
    root: Path, load: Load, process: "subprocess.Popen[bytes]", deadline: float
) -> None:
    """Make vnsmail's hosts, each with an alias for each of its destinations."""
    from vnsmail.cli import client  # noqa: PLC0415
    from vnsmail.settings import layout  # noqa: PLC0415
    from vnsmail.supervisor import control  # noqa: PLC0415

    place = layout(root)
    while True:
        try:
            client.ask(place, control.GetStatus(), control.Status)
            break
        except Exception:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    request = control.ApplyHosts(servers.hosts_file(load), False, False, True)
    answer = client.ask(place, request, control.Applied)
    for change in answer.changes:
        if change.problem:
            raise RuntimeError(change.problem)
    for n in range(1, load.destinations + 1):
        address = f"to{n}@h{far.host_of(n, load.hosts)}.example"
        alias = control.AddAlias(address, (f"out@d{n}.example",))
        client.ask(place, alias, control.Done)


def _take_down(root: Path) -> None:
    """Take vnsmail's hosts away: its guard stops others that use their addresses."""
    from vnsmail.cli import client  # noqa: PLC0415
    from vnsmail.settings import layout  # noqa: PLC0415
    from vnsmail.supervisor import control  # noqa: PLC0415

    request = control.ApplyHosts("", True, False, True)
    client.ask(layout(root), request, control.Applied)


# The table ------------------------------------------------------------------------------


def shown(figures: dict[tuple[str, int, bool], Figure]) -> None:
    """Print the table; ratios are vnsmail's to each of the others."""
    print(
        f"{'server':<10}{'hosts':>6} {'a session':<10}{'msg/s':>8}{'CPU us':>8}"
        f"{'PSS MiB':>9}{'p50 ms':>8}{'p99 ms':>8}{'sessions':>9}"
        f"{'rate ratio':>12}{'CPU ratio':>11}  sources"
    )
    for (name, hosts, many), each in figures.items():
        ours = figures.get(("vnsmail", hosts, many))
        line = f"{name:<10}{hosts:6} {'many' if many else 'one':<10}"
        line += f"{each.rate:8,.0f}{each.cost:8,.0f}{each.memory:9.0f}"
        for value in each.latency or ():
            line += f"{value:8.1f}"
        line += "" if each.latency else " " * 16
        line += f"{each.sessions:9,}"
        if ours is not None and name != "vnsmail" and each.rate and each.cost:
            line += f"{ours.rate / each.rate:11.1f}x{ours.cost / each.cost:11.2f}"
        else:
            line += " " * 23
        print(f"{line}  {'; '.join(each.problems) or 'all right'}")
    for many in (False, True):
        one = figures.get(("vnsmail", 1, many))
        most = max(
            (h for n, h, m in figures if n == "vnsmail" and m == many), default=1
        )
        if one is not None and most > 1:
            part = figures["vnsmail", most, many].rate / one.rate
            how = "many" if many else "one"
            print(
                f"vnsmail, {how} a session: {most} hosts have {part:.0%} of one's rate"
            )


# Namespaces -----------------------------------------------------------------------------


def unpacked(folder: Path) -> None:
    """Unpack Debian's packages, which are fetched once into the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "vnsmail")
    cache.mkdir(parents=True, exist_ok=True)
    for name in servers.PACKAGES:
        if not list(cache.glob(f"{name}_*.deb")):
            say(f"fetching {name} (once)")
            subprocess.run(  # noqa: S603
                ["apt-get", "download", "-q", name],  # noqa: S607
                cwd=cache,
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        package = max(cache.glob(f"{name}_*.deb"))
        subprocess.run(["dpkg", "-x", package, folder / "packages"], check=True)  # noqa: S603, S607


def furnish(folder: Path) -> None:
    """Give this mount namespace its own /etc, /var and /run."""
    subprocess.run(["cp", "-a", "/etc", folder / "etc"], check=True)  # noqa: S603, S607
    passwd = group = ""
    for number, name in enumerate(servers.ACCOUNTS, servers.FIRST_ID):
        passwd += f"{name}:x:{number}:{number}::/nonexistent:/bin/false\n"
        group += f"{name}:x:{number}:\n"
    for name, lines in (("passwd", passwd), ("group", group)):
        file = folder / "etc" / name
        known = file.read_text().splitlines(keepends=True)
        ours = tuple(f"{each}:" for each in servers.ACCOUNTS)
        kept = (line for line in known if not line.startswith(ours))
        file.write_text("".join(kept) + lines)
    (folder / "etc/resolv.conf").unlink(missing_ok=True)
    (folder / "etc/resolv.conf").write_text("nameserver 10.9.255.53\n")
    for name in ("lib", "log", "spool", "mail", "cache"):
        (folder / "var" / name).mkdir(parents=True)
    (folder / "var/tmp").mkdir(mode=0o777)
    (folder / "var/run").symlink_to("/run")
    for name in ("etc", "var"):
        subprocess.run(["mount", "--bind", folder / name, f"/{name}"], check=True)  # noqa: S603, S607
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)  # noqa: S607


def inside(options: argparse.Namespace) -> int:
    """Measure, in the namespaces that are this process's own by now."""
    folder = Path(options.folder)
    furnish(folder)
    os.environ["LD_LIBRARY_PATH"] = str(folder / "packages/usr/lib/postfix")
    options.source = folder / "packages/usr/sbin/smtp-source"
    world = World(folder, options.sinks)
    figures: dict[tuple[str, int, bool], Figure] = {}
    try:
        for hosts in options.hosts:
            for many in options.sessions:
                for name in options.servers:
                    peer = PEERS[name]
                    if hosts > peer.most_hosts or not (many or peer.one):
                        continue
                    how = "many" if many else "one"
                    say(f"{name}, {hosts} hosts, {how} a session")
                    load = Load(hosts, max(hosts, FEWEST_DESTINATIONS), many)
                    measured = Measurement(world, name, load, options)
                    try:
                        figure = measured.run(paced=many and not options.quick)
                    except RuntimeError as error:
                        figure = measured.figure
                        figure.problems.append(str(error))
                    figures[name, hosts, many] = figure
                    say(f"    {figure.rate:,.0f}/s, {figure.cost:,.0f} us of CPU each")
    finally:
        world.close()
    shown(figures)
    print("load of the machine:", *(f"{x:.1f}" for x in os.getloadavg()))
    return 1 if any(each.problems for each in figures.values()) else 0


def _list(kind: type, known: set[str] | None = None):  # type: ignore[no-untyped-def]  # noqa: ANN202
    def parse(text: str) -> list[object]:
        words = text.split(",")
        if known is not None and not known.issuperset(words):
            message = f"choose of {', '.join(known)}"
            raise argparse.ArgumentTypeError(message)
        return [kind(word) for word in words]

    return parse


def main() -> None:
    """Run the benchmark, or the part of it that the options say."""
    parser = argparse.ArgumentParser(prog="scripts/bench relay", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute or two")
    parser.add_argument("--hosts", type=_list(int), default=[1, 20, 200])
    parser.add_argument("--servers", type=_list(str, set(PEERS)), default=[*PEERS])
    parser.add_argument(
        "--sessions", choices=("one", "many", "both"), default="both",
        help="messages a session",
    )  # fmt: skip
    parser.add_argument("--scale", type=float, default=1.0, help="of all messages")
    parser.add_argument("--sinks", type=int, default=1, help="processes")
    parser.add_argument("--keep", action="store_true", help="keep queues and logs")
    parser.add_argument("--folder", default="", help="on the disk to be measured")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        both = {"one": [False], "many": [True], "both": [False, True]}
        options.sessions = both[options.sessions]
        options.scale *= 0.25 if options.quick else 1
        sys.exit(inside(options))
    if os.geteuid() != 0:
        sys.exit("scripts/bench relay: run it as root (it makes namespaces)")
    folder = Path(tempfile.mkdtemp(prefix="vnsmail-relay-", dir=options.folder or None))
    folder.chmod(0o755)
    try:
        unpacked(folder)
        unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
        command = [*unshare, "--mount-proc", sys.executable, *sys.argv, "--inside"]
        with subprocess.Popen([*command, "--folder", str(folder)]) as process:  # noqa: S603
            signal.signal(signal.SIGTERM, lambda *_: process.kill())
            status = process.wait()
    finally:
        if options.keep:
            say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
