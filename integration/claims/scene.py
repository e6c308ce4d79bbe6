"""One running system that does all that the claims ask for, seen from outside.

Five virtual hosts, three in namespaces and two on alias addresses, and the machine
send to two remote domains; users sign in from another machine, and one is a local
account. What is kept of it: the packets on the wire (read by tshark), what the remotes
wrote in front of each message, the system calls of broker and workers (strace), the
queues' files, and the processes.
"""

import email
import email.message
import email.policy
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import apsw
from typer.testing import CliRunner

import vnsmail
from integration.labs import Lab, eventually, outer
from integration.submission import FROM, OTHER_PASSWORD, PASSWORD, give_passwords, talk
from vnsmail.cli.app import app

NORTH, SOUTH = "north.example", "south.example"
NORTH_ADDRESSES = {"10.77.0.3", "fd77::3"}
SOUTH_ADDRESSES = {"10.77.0.4"}
MACHINE = ("10.77.0.1", "fd77::1")
OTHER_SOURCE = ("10.77.0.9", "fd77::9")
"""What the routes of the machine prefer from some moment on."""
HOSTS = {
    "alpha.example": ("10.77.0.11", "fd77::11"),
    "beta.example": ("10.77.0.12", "fd77::12"),
    "gamma.example": ("10.77.0.13", "fd77::13"),
    "delta.example": ("10.77.0.14", "fd77::14"),
    "epsilon.example": ("10.77.0.15", "fd77::15"),
}
ACCOUNT = "www-data"
"""The local account of a user of beta.example; its uid on Debian:"""
ACCOUNT_UID = 33
STRANGER_UID = 31009

PROGRAM = """\
import sys
sys.path.insert(0, {folder!r})
from vnsmail.cli.sendmail import main
main()
"""


@dataclass(frozen=True)
class Packet:
    """A TCP segment, as tshark reads it."""

    source: str
    target: str
    source_port: int
    port: int
    flags: str
    length: int

    @property
    def syn(self) -> bool:
        return self.flags == "S"

    @property
    def accepted(self) -> bool:
        return self.flags == "SA"

    def __str__(self) -> str:
        data = f" {self.length} octets" if self.length else ""
        return (
            f"{_at(self.source, self.source_port)} > {_at(self.target, self.port)} "
            f"[{self.flags}]{data}"
        )


@dataclass(frozen=True)
class Call:
    """A system call about a socket, at a time of the day."""

    time: str
    name: str
    inode: str
    text: str


@dataclass(frozen=True)
class Letter:
    """A message as a remote has it."""

    user: str
    domain: str
    raw: bytes
    message: email.message.EmailMessage

    @property
    def received(self) -> str:
        """What the remote itself put in front."""
        return " ".join(str(self.message.get_all("Received", [""])[0]).split())

    @property
    def peer(self) -> tuple[str, str, str]:
        """HELO name, name by the address, and address, that the remote wrote down."""
        found = re.match(
            r"from (\S+) \((?:(\S+) )?\[(?:IPv6:)?([0-9a-f.:]+)\]\)", self.received
        )
        assert found, self.received
        return found[1], found[2] or "", found[3]


@dataclass
class Seen:
    """What is left when all has been done."""

    packets: list[Packet] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    waiting: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    """By host: the queue's file, and the subjects in it before anything was sent."""
    letters_while_waiting: int = -1
    replies: dict[str, dict[str, str]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    processes: dict[str, str] = field(default_factory=dict)
    owners: dict[str, list[str]] = field(default_factory=dict)
    alone: dict[str, str] = field(default_factory=dict)
    life: list[str] = field(default_factory=list)

    def letter(self, subject: str, domain: str = "") -> list[Letter]:
        return [
            each
            for each in self.letters
            if each.message["Subject"] == subject and domain in {"", each.domain}
        ]


class Scene:
    """The lab in which all happens once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen = Seen()
        self.lab = Lab(folder / "root")

    def play(self) -> None:
        """Do everything, in an order in which nothing covers up another thing."""
        give_passwords(self.lab)
        for name in ("gamma", "delta", "epsilon"):
            self.call(
                *("user", "passwd", f"user@{name}.example", "--password-stdin"),
                stdin=PASSWORD,
            )
        with self._traced():
            self._mail_waits_and_goes()
            self._users()
            self._local_account()
            self.call("queue", "wait", "--timeout", "60")
        self._processes()
        self._another_route()
        self._customer()
        self._read()

    def stop(self) -> None:
        self.lab.stop()

    def call(self, *words: str, stdin: str | None = None, status: int = 0) -> str:
        """Run a command of the product in this process; it is quicker."""
        arguments = ["--root", str(self.lab.root), *words]
        done = CliRunner().invoke(app, arguments, input=stdin)
        assert done.exit_code == status, (words, done.output, done.exception)
        return done.output

    def send(self, sender: str, subject: str) -> None:
        """Queue a message to both remotes, as a user or the machine."""
        who = ("--machine",) if sender == "machine" else ("--as", sender)
        for domain in (NORTH, SOUTH):
            self.call(
                *("send", *who, "--to", f"bob@{domain}"),
                *("--subject", subject, "--text", "hello"),
            )

    # Steps ---------------------------------------------------------------------------

    def _mail_waits_and_goes(self) -> None:
        """Each host's message is in its own queue, and leaves from there."""
        for host in HOSTS:
            self.call("queue", "hold", "--host", host)
        for host in HOSTS:
            self.send(f"user@{host}", f"from {host}")
        self.send("machine", "from the machine")
        for host in HOSTS:
            self.seen.waiting[host] = self._queued(host)
        eventually(
            lambda: len(self._letters()) == 2, "only the machine's own mail has come"
        )
        self.seen.letters_while_waiting = len(self._letters()) - 2
        for host in HOSTS:
            self.call("queue", "release", "--host", host)

    def _queued(self, host: str) -> tuple[str, list[str]]:
        """Return a queue's file, and the subjects that a reader of its own finds there."""
        file = self.lab.root / "hosts" / host / "queue.db"
        copy = self.folder / f"{host}.db"
        for end in ("", "-wal"):
            source = file.with_name(file.name + end)
            if source.exists():
                shutil.copy(source, copy.with_name(copy.name + end))
        connection = apsw.Connection(str(copy))
        tables = [
            row[0]
            for row in connection.execute(
                "SELECT name FROM sqlite_schema WHERE type = 'table'"
            )
        ]
        found = b""
        for table in tables:
            for row in connection.execute(f'SELECT * FROM "{table}"'):  # noqa: S608
                found += b"\n".join(
                    value if isinstance(value, bytes) else str(value).encode()
                    for value in row
                )
        connection.close()
        subjects = re.findall(rb"^Subject: ([^\r\n]+)", found, re.MULTILINE)
        return str(file.relative_to(self.lab.root)), sorted(
            subject.decode() for subject in subjects
        )

    def _users(self) -> None:
        """A user of each host signs in from elsewhere; others are not let in."""
        for host, (four, _) in HOSTS.items():
            password = OTHER_PASSWORD if host == "beta.example" else PASSWORD
            self.seen.replies[host] = talk(
                self.lab,
                address=four,
                password=password,
                sender=f"user@{host}",
                author=f"user@{host}",
                to=f"carol@{SOUTH}",
            )
        for what, changes in {
            "a password of another host's user": {"password": OTHER_PASSWORD},
            "no user of this host": {"name": "user@beta.example"},
            "nobody": {"name": "mallory", "password": "x"},
            "a sender of another host": {"sender": "user@beta.example"},
        }.items():
            self.seen.replies[what] = talk(
                self.lab, node=FROM, to=f"mallory@{NORTH}", **changes
            )

    def _local_account(self) -> None:
        """A local account is a user of one host; another is nobody's."""
        self.call("login", "add", "user@beta.example", ACCOUNT)
        folder = self.folder / "program"
        shutil.copytree(
            Path(vnsmail.__file__).parent,
            folder / "vnsmail",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        program = PROGRAM.format(folder=str(folder))
        for uid in (ACCOUNT_UID, STRANGER_UID):
            done = subprocess.run(
                [
                    *("setpriv", f"--reuid={uid}", f"--regid={uid}"),
                    *("--clear-groups", "/usr/bin/python3", "-P", "-c", program),
                    f"dave@{SOUTH}",
                ],
                input="Subject: from an account\n\nhello\n",
                capture_output=True,
                text=True,
                check=False,
                cwd="/",
                env={"PATH": "/usr/bin:/bin", "VNSMAIL_ROOT": str(self.lab.root)},
            )
            self.seen.refused.append(f"{uid}: {done.returncode}: {done.stderr}")

    def _processes(self) -> None:
        """Who runs, under which account, and what a worker can do without the broker."""
        status = self.lab.json("status")
        for process in status["processes"]:
            self.seen.processes[process["name"]] = process["privileges"]
            self.seen.owners[process["name"]] = process["owners"]
        pid = outer(
            self.lab.pid,
            next(p["pid"] for p in status["processes"] if p["name"] == "worker-0"),
        )
        links = subprocess.run(
            ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-o", "addr"],
            capture_output=True,
            text=True,
            check=True,
        )
        self.seen.alone["addresses"] = links.stdout
        self.seen.alone["status"] = Path(f"/proc/{pid}/status").read_text()

    def _another_route(self) -> None:
        """The machine gets a second address, and its routes prefer that one."""
        for family, prefix, source in (
            ("-4", "10.77.0.0/24", OTHER_SOURCE[0]),
            ("-6", "fd77::/64", OTHER_SOURCE[1]),
        ):
            length = prefix.partition("/")[2]
            extra = ("nodad",) if family == "-6" else ()
            self.lab.inside(
                *("machine", "ip", "addr", "add", f"{source}/{length}"),
                *("dev", "lan0", *extra),
            )
            self.lab.inside(
                *("machine", "ip", family, "route", "replace", prefix),
                *("dev", "lan0", "proto", "kernel", "src", source),
                *(("scope", "link") if family == "-4" else ("metric", "256")),
            )
        self.send("machine", "by another route")
        self.send("user@alpha.example", "alpha by another route")
        self.send("user@delta.example", "delta by another route")
        self.call("queue", "wait", "--timeout", "60")

    def _customer(self) -> None:
        """A customer comes, is limited, suspended, measured, and goes."""
        host = "zeta.example"
        self.call(
            *("host", "create", host, "--address", "10.77.0.16/24"),
            *("--domain", host, "--link", "lan0"),
        )
        self.call("user", "add", f"user@{host}")
        self.call("host", "limits", host, "--messages-per-hour", "1")
        words = ("send", "--as", f"user@{host}", "--to", f"bob@{SOUTH}", "--text", "x")
        self.call(*words, "--subject", "first of zeta")
        done = self.lab.vnsmail(*words, "--subject", "second of zeta", check=False)
        self.seen.life.append(f"{done.returncode}: {done.stderr}")
        eventually(lambda: self._has("first of zeta"), "the customer's first message")
        self.seen.life.append(self.call("host", "stats", host, "--json"))
        self.call("host", "suspend", host)
        self.seen.life.append(self.call("host", "show", host, "--json"))
        self.call("host", "resume", host)
        self.call("host", "destroy", host)
        self.seen.life.append(self.call("host", "list", "--json"))
        links = self.lab.inside("machine", "ip", "netns", "list").stdout
        self.seen.life.append(links)

    # What is seen --------------------------------------------------------------------

    def _letters(self) -> list[Letter]:
        found = []
        for remote in self.lab.facts["remotes"]:
            for file in sorted(Path(remote["mail"]).glob("*/new/*")):
                raw = file.read_bytes()
                message = email.message_from_bytes(raw, policy=email.policy.default)
                assert isinstance(message, email.message.EmailMessage)
                user = file.parents[1].name
                found.append(Letter(user, remote["domain"], raw, message))
        return found

    def _has(self, subject: str) -> bool:
        return any(each.message["Subject"] == subject for each in self._letters())

    def _read(self) -> None:
        self.seen.letters = self._letters()
        # The last packets are on their way to the file.
        time.sleep(0.5)
        self.seen.packets = packets(Path(self.lab.facts["capture"]))
        self.seen.calls = calls(self.folder / "trace")

    def _traced(self) -> "_Trace":
        return _Trace(self.lab, self.folder / "trace")


class _Trace:
    """Follows the system calls of broker and workers about sockets."""

    def __init__(self, lab: Lab, file: Path) -> None:
        self._lab = lab
        self._file = file
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> None:
        pids = [
            str(self._lab.outer_pid(name))
            for name in ("broker", "worker-0", "worker-machine")
        ]
        self._process = subprocess.Popen(
            [
                *("strace", "-f", "-y", "-ttt", "-o", str(self._file)),
                *("-e", "trace=socket,bind,connect"),
                *(word for pid in pids for word in ("-p", pid)),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        waiting = set(pids)
        for line in self._process.stderr:
            if found := re.search(r"Process (\d+) attached", line):
                waiting.discard(found[1])
            if not waiting:
                break
        assert not waiting, "strace does not follow"

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        self._process.send_signal(signal.SIGINT)
        self._process.stderr.read()
        self._process.wait(60)
        self._process.stderr.close()


_CALL = re.compile(
    r"^\d+ +(?P<time>[\d.]+) (?P<name>bind|connect)\(\d+<(?:\w+:)?\[(?P<inode>\d+)\]>,"
    r" (?P<text>\{.*?\})"
)


def calls(file: Path) -> list[Call]:
    """Return binds and connects in the order in which they were."""
    matches = map(_CALL.match, file.read_text().splitlines())
    found = [Call(m["time"], m["name"], m["inode"], m["text"]) for m in matches if m]
    return sorted(found, key=lambda call: float(call.time))


def packets(capture: Path) -> list[Packet]:
    """Return the segments from and to port 25 of a capture, as tshark reads them."""
    names: tuple[str, ...] = (
        "ip.src",
        "ipv6.src",
        "ip.dst",
        "ipv6.dst",
        "tcp.srcport",
        "tcp.dstport",
    )
    names += ("tcp.flags.syn", "tcp.flags.ack", "tcp.len")
    fields = [word for name in names for word in ("-e", name)]
    done = subprocess.run(
        ["tshark", "-r", str(capture), "-Y", "tcp.port==25", "-T", "fields", *fields],
        capture_output=True,
        text=True,
        check=True,
    )
    found = []
    for line in done.stdout.splitlines():
        four, six, to_four, to_six, source_port, port, syn, ack, length = line.split(
            "\t"
        )
        flags = _flag(syn, "S") + _flag(ack, "A")
        found.append(
            Packet(
                four or six,
                to_four or to_six,
                int(source_port),
                int(port),
                flags,
                int(length),
            )
        )
    return found


def _flag(text: str, letter: str) -> str:
    return letter if text.strip().lower() in {"1", "true"} else ""


def _at(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
