"""All the ways by which a virtual host sends anything, and who is seen to send it.

Each host has sinks of its own, one in each family, and names of its own below
``sink.example``: whose a packet should be is known from where it goes to or what it
asks for, not from what it says of itself.
"""

import contextlib
import io
import ipaddress
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from integration.labs import Lab, eventually
from vnsmail.cli.app import app
from vnsmail.lab.nameserver import ZONE

REMOTE = "mx1.north.example"
FAMILIES = {4: "four", 6: "six"}
PASSWORD = "correct horse 7"  # noqa: S105
QUEUE = "first_retry = 1\nlongest_retry = 4\ndelay_warning = 3\n"
ELSE = {
    *("10.77.0.2", "fd77::2", "10.77.0.3", "fd77::3", "10.77.0.4"),
}
"""Name server and remotes: what they send is no host's."""

MAILS = ("message", "sendmail", "submission", "forward", "dsn", "warning")
"""Whatever is a message in the end; each has a recipient of that name."""


@dataclass(frozen=True)
class Place:
    """A host, and what only it is to reach."""

    label: str
    number: int
    context: str
    families: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.label}.example"

    @property
    def own(self) -> dict[int, str]:
        return {family: address(family, self.number) for family in self.families}

    def sink(self, family: int) -> str:
        return address(family, self.number + 40)

    def domain(self, family: int) -> str:
        return f"{FAMILIES[family]}.{self.label}.sink.example"

    @property
    def resolver(self) -> str:
        return address(max(self.families), 2)

    def asked(self, family: int) -> dict[str, str]:
        """Return what it has to ask for mail from and to a domain, by what for."""
        pointer = ipaddress.ip_address(self.sink(family)).reverse_pointer
        domain = self.domain(family)
        return {
            "MX": domain,
            "address": f"mx.{domain}",
            "SPF": f"spf.{domain}",
            "DKIM": f"s._domainkey.{domain}",
            "reverse": pointer,
        }


def address(family: int, number: int) -> str:
    return f"10.77.0.{number}" if family == 4 else f"fd77::{number}"


PLACES = {
    place.label: place
    for place in (
        Place("ns4", 21, "namespace", (4,)),
        Place("ns6", 22, "namespace", (6,)),
        Place("al4", 23, "alias", (4,)),
        Place("al6", 24, "alias", (6,)),
        Place("ns", 25, "namespace", (4, 6)),
        Place("al", 26, "alias", (4, 6)),
    )
}

SINK = """
import json, socket, sys, threading
log, *addresses = sys.argv[1:]
mode = ["defer"]
lock = threading.Lock()

def talk(sock, peer):
    file, sender, to = sock.makefile("rb"), "", []
    def say(text):
        sock.sendall(text.encode() + b"\\r\\n")
    say("220 sink.example ESMTP")
    for line in file:
        word = line.decode("latin-1").strip()
        verb = word[:4].upper()
        if verb == "MAIL":
            sender, to = word, []
            say("250 ok")
        elif verb == "RCPT" and "nosuch" in word:
            say("550 5.1.1 nobody")
        elif verb == "RCPT" and mode[0] == "defer":
            say("451 4.7.1 later")
        elif verb == "RCPT":
            to.append(word.partition("<")[2].partition(">")[0])
            say("250 ok")
        elif verb == "DATA" and to:
            say("354 go on")
            text = b"".join(iter(file.readline, b".\\r\\n")).decode("latin-1")
            with lock, open(log, "a") as out:
                for each in to:
                    print(json.dumps([each, peer[0], sender, text]), file=out)
            say("250 kept")
        elif verb == "QUIT":
            say("221 bye")
            break
        else:
            say("250 sink.example" if verb != "DATA" else "503 to whom")
    sock.close()

def serve(server):
    def guarded(*what):
        try:
            talk(*what)
        except OSError:
            pass
    while True:
        threading.Thread(target=guarded, args=server.accept(), daemon=True).start()

for address in addresses:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in (25, 7777):
        server = socket.create_server((address, port), family=family)
        threading.Thread(target=serve, args=(server,), daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    mode[0] = line.strip()
    print(mode[0], flush=True)
"""

BRING = """
import json, smtplib, ssl, sys
for work in json.loads(sys.argv[1]):
    host, own, sender, to, password = work
    port = 587 if password else 25
    with smtplib.SMTP(host, port, "sink.example", 60, (own, 0)) as s:
        if password:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            s.starttls(context=context)
            s.login(sender, password)
        domain = sender.partition("@")[2].removeprefix("spf.")
        head = "DKIM-Signature: v=1; a=rsa-sha256; c=simple/simple; d=" + domain
        head += "; s=s; h=from; bh=AAAA; b=AAAA\\r\\n" if not password else ""
        head = "" if password else head
        text = head + "From: <" + sender + ">\\r\\nSubject: x\\r\\n\\r\\nx\\r\\n"
        s.sendmail(sender, [to], text)
"""

PROGRAM = """
import contextlib, socket, sys
for address in sys.argv[1:]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in (25, 7777):
        with contextlib.suppress(OSError), socket.socket(family) as sock:
            sock.settimeout(2)
            sock.connect((address, port))
            sock.recv(3)
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", (address, 7777))
"""


class Wire:
    """What passes the bridge that all are on."""

    def __init__(self, lab: Lab, file: Path) -> None:
        self._lab = lab
        self._file = file
        self._marks = 0
        words = f"tshark -q -l -i lan0 -f 'tcp or udp' -w {file} & cat; kill $!"
        self.process = lab.beside("machine", "sh", "-c", words)
        eventually(lambda: file.exists() and file.stat().st_size, "it listens")

    def mark(self) -> int:
        """Return the number of frames so far; each that was sent before is among them."""
        self._marks += 1
        port = 20000 + self._marks
        code = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        code += f"s.sendto(b'mark', ('10.77.0.3', {port}))"
        self._lab.inside("machine", self._lab.python, "-c", code)

        def look() -> int:
            for number, row in enumerate(self._rows()):
                if row[3] == str(port) and row[0] == "10.77.0.1":
                    return number + 1
            return 0

        return eventually(look, "the mark")

    def between(self, start: int, end: int | None = None) -> list[tuple[str, ...]]:
        """Return source, destination, TCP and UDP port, and name that is asked for."""
        return self._rows()[start:end]

    def _rows(self) -> list[tuple[str, ...]]:
        fields: tuple[str, ...] = ("ip.src", "ipv6.src", "ip.dst", "ipv6.dst")
        fields += ("tcp.dstport", "udp.dstport", "dns.qry.name")
        words = [word for field in fields for word in ("-e", field)]
        done = subprocess.run(
            ["tshark", "-r", str(self._file), "-T", "fields", *words],
            capture_output=True,
            text=True,
            check=False,  # the last frame may be half written
        )
        rows = [line.split("\t") for line in done.stdout.splitlines()]
        return [(r[0] or r[1], r[2] or r[3], r[4], r[5], r[6]) for r in rows]


class Scene:
    """A lab with the hosts of PLACES, their sinks, and who watches."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self._log = folder / "sink.log"
        self._settings()
        self._names()
        self._hosts(folder)
        self.sink = self._sink()
        self.wire = Wire(lab, folder / "wire.pcapng")

    def _settings(self) -> None:
        file = self.lab.root / "vnsmail.toml"
        text = file.read_text().replace("first_retry = 2\n", QUEUE)
        file.write_text(text)
        self.lab.restart("[network]\nmend = false\n")

    def _names(self) -> None:
        lines = []
        for place in PLACES.values():
            for family in FAMILIES:
                record = "A" if family == 4 else "AAAA"
                domain = place.domain(family)
                lines += [
                    f"{domain}. MX 10 mx.{domain}.",
                    f"mx.{domain}. {record} {place.sink(family)}",
                    f'spf.{domain}. TXT "v=spf1 ip{family}:{place.sink(family)} -all"',
                    f"spf.{domain}. MX 10 mx.{domain}.",
                    f's._domainkey.{domain}. TXT "v=DKIM1; p=AAAA"',
                ]
        (self.lab.root / ZONE).write_text("".join(f"{line}\n" for line in lines))

    def _hosts(self, folder: Path) -> None:
        text = ""
        for place in PLACES.values():
            prefixes = {4: 24, 6: 64}
            own = [f"{a}/{prefixes[family]}" for family, a in place.own.items()]
            text += f'[host."{place.name}"]\ncontext = "{place.context}"\n'
            text += f'addresses = {json.dumps(own)}\nusers = ["user"]\n'
            text += f'resolvers = ["{place.resolver}"]\n'
        file = folder / "hosts.toml"
        file.write_text(text)
        self.lab.vnsmail("apply", str(file))
        for place in PLACES.values():
            user = f"user@{place.name}"
            self.call("user", "passwd", user, "--password-stdin", stdin=PASSWORD)
            for family, name in FAMILIES.items():
                for what, to in (("out", "forward"), ("lost", "nosuch")):
                    target = f"{to}@{place.domain(family)}"
                    self.call("alias", "add", f"{what}{name}@{place.name}", target)

    def _sink(self) -> "subprocess.Popen[str]":
        addresses = [p.sink(family) for p in PLACES.values() for family in FAMILIES]
        add = ";".join(f"ip addr add {a} dev eth0 nodad" for a in addresses if ":" in a)
        add += ";" + ";".join(
            f"ip addr add {a}/24 dev eth0" for a in addresses if ":" not in a
        )
        self.lab.inside(REMOTE, "sh", "-c", add)
        words = (self.lab.python, "-c", SINK, str(self._log), *addresses)
        process = self.lab.beside(REMOTE, *words)
        assert process.stdout is not None
        assert "ready\n" == process.stdout.readline()
        return process

    def call(self, *words: str, stdin: str | None = None) -> str:
        """Run a command of the product in this process; it is quicker."""
        arguments = ["--root", str(self.lab.root), *words]
        done = CliRunner().invoke(app, arguments, input=stdin)
        assert done.exit_code == 0, (words, done.output, done.exception)
        return done.stdout

    def turn(self, mode: str) -> None:
        """Let the sinks ``take`` or ``defer`` what comes."""
        assert self.sink.stdin is not None
        assert self.sink.stdout is not None
        self.sink.stdin.write(f"{mode}\n")
        self.sink.stdin.flush()
        assert f"{mode}\n" == self.sink.stdout.readline()

    def send(self, place: Place, what: str = "") -> None:
        """Send by local commands, to both families."""
        for family in FAMILIES:
            user, domain = f"user@{place.name}", place.domain(family)
            to = f"{what}message@{domain}"
            self.call(
                *("send", "--as", user, "--to", to, "--subject", "x", "--text", "x")
            )
            words = ("sendmail", "-f", user, f"{what}sendmail@{domain}")
            self.call(*words, stdin="Subject: x\n\nx\n")

    def bring(self, *places: Place) -> None:
        """Bring mail from outside that goes on outside: submitted, forwarded, lost."""
        work = []
        for place in places:
            at = place.own[min(place.families)]
            own = place.sink(min(place.families))
            user = f"user@{place.name}"
            for family, name in FAMILIES.items():
                domain = place.domain(family)
                to = f"submission@{domain}"
                work.append((at, own, user, to, PASSWORD))
                for alias, sender in (("out", "warning"), ("lost", "dsn")):
                    to = f"{alias}{name}@{place.name}"
                    work.append((at, own, f"{sender}@spf.{domain}", to, ""))
        words = ("/usr/bin/python3", "-c", BRING, json.dumps(work))
        self.lab.inside(REMOTE, *words)

    def run_programs(self, *places: Place) -> None:
        """Run a program as each host that speaks to its sinks by itself."""

        def run(place: Place) -> None:
            sinks = [place.sink(family) for family in FAMILIES]
            words = (sys.executable, "-c", PROGRAM, *sinks)
            self.lab.vnsmail("exec", place.name, "--", *words, check=False)

        with ThreadPoolExecutor(len(places)) as threads:
            list(threads.map(run, places))

    def notices(self, place: Place) -> str:
        """Return what the user of a host was told of its mail."""
        return b"".join(self.lab.mail("user", place.name)).decode()

    def doctor(self) -> None:
        """Have each host knock at a remote, in both families."""
        for target in ("10.77.0.3", "fd77::3"):
            self.lab.vnsmail("doctor", "--reach", target, check=False)

    def waiting(self, place: Place) -> dict[str, str]:
        """Return the recipients in a host's queue, and the last answer to each."""
        said = self.call("queue", "list", "--host", place.name, "--json")
        found = json.loads(said)
        return {r[0]: r[3] or "" for entry in found for r in entry["recipients"]}

    def taken(self) -> dict[str, set[str]]:
        """Return who brought mail for each recipient."""
        found: dict[str, set[str]] = {}
        for to, peer, _, _ in self.noted():
            found.setdefault(to, set()).add(peer)
        return found

    def noted(self) -> list[list[str]]:
        """Return recipient, client, MAIL command and text of all that was taken."""
        with contextlib.suppress(FileNotFoundError), self._log.open() as file:
            return [json.loads(line) for line in io.StringIO(file.read())]
        return []

    def leaks(self, start: int, end: int | None = None) -> list[tuple[str, ...]]:
        """Return packets of hosts that are not from an address of the one they are of."""
        return [row for row in self.wire.between(start, end) if not _rightful(row)]

    def packets_of(self, place: Place, start: int, end: int) -> list[tuple[str, ...]]:
        """Return packets that are a host's, by where they go, and by who sent them."""
        rows = self.wire.between(start, end)
        return [row for row in rows if place.name in _whose(row)]

    def close(self) -> None:
        for process in (self.sink, self.wire.process):
            process.communicate()


_MACHINE = {"10.77.0.1", "fd77::1"}
_OWN = {a: p.name for p in PLACES.values() for a in p.own.values()}
_SINKS = {p.sink(family): p.name for p in PLACES.values() for family in FAMILIES}
_NAMES = {
    name: p.name
    for p in PLACES.values()
    for family in FAMILIES
    for name in p.asked(family).values()
}


def recipient(place: Place, family: int, path: str) -> str:
    """Return who gets what a path sends."""
    domain = place.domain(family)
    return f"{path}@spf.{domain}" if path in {"dsn", "warning"} else f"{path}@{domain}"


def _whose(row: tuple[str, ...]) -> set[str]:
    """Return the hosts that a packet is of, by all that it says."""
    source, destination, _, port, name = row
    found = {_OWN.get(source), _SINKS.get(destination)}
    if port == "53":
        found |= {_NAMES.get(name), _by_label(name)}
    return {each for each in found if each}


def _by_label(name: str) -> str | None:
    labels = name.split(".")
    if labels[-2:] == ["sink", "example"] and labels[-3:-2] != ["_dmarc"]:
        return f"{labels[-3]}.example" if len(labels) > 2 else None
    return None


def _rightful(row: tuple[str, ...]) -> bool:
    source, _, port, _, _ = row
    if source in ELSE or source in _SINKS:
        return True
    if source in _MACHINE and not port and not _whose(row):
        return True  # the machine's own question, or a mark
    # A question for the policy of sink.example itself is anybody's.
    return source in _OWN and {_OWN[source]} == _whose(row)
