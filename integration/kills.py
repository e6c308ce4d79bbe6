"""Processes killed at random moments under load, and an account of every message.

Load comes over SMTP from the remotes of a lab, and from the sendmail command. Mail
goes to a mailbox here, and by an alias to a remote. What was acknowledged is looked
for where it should have come; a copy too many is excused only if its message was on
its way when a worker died.

Rules of this file: what is judged lies in Maildirs; nothing is asked of vnsmail. A
seed repeats the order of kills and pauses.
"""

import collections
import email
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from integration.labs import Lab, eventually

SENDS_MAIL = {
    "worker-0": "vnsmail.engines.native",
    "worker-machine": "vnsmail.engines.native",
    "supervisor": "vnsmail.cli.app",
}
VICTIMS = ("worker-0", "worker-0", "broker", "broker", "supervisor")
MODULES = {**SENDS_MAIL, "broker": "vnsmail.broker.server"}

LONGEST_FLIGHT = 20.0
"""Seconds from a remote's 250 to its record in the queue, on the slowest machine."""

LATE = 10.0
"""Seconds in which a remote has read what was sent to it by one that died."""

MARGIN_TOLD = 30.0
"""Seconds before and after within which kills are told of a copy too many."""

SETTLING = 120.0
"""Seconds after the last kill until what has not come counts as lost."""

HOST = "alpha.example"
ROOT = Path(__file__).parents[1]


@dataclass
class Kill:
    victim: str
    at: float
    """Seconds since the epoch."""


@dataclass
class Account:
    """What became of all messages."""

    seed: int
    kills: list[Kill] = field(default_factory=list)
    tried: dict[str, str] = field(default_factory=dict)
    """Token to digest."""
    acknowledged: set[str] = field(default_factory=set)
    lost: dict[str, list[str]] = field(default_factory=dict)
    """By place, what was acknowledged and is not there."""
    damaged: list[str] = field(default_factory=list)
    doubled: dict[str, list[str]] = field(default_factory=dict)
    """By place, what is there more than once."""
    unexcused: list[str] = field(default_factory=list)
    """Copies too many of what was on its way at no kill."""
    unknown: int = 0
    """Messages without an answer that came nevertheless."""

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        faults = [*self.lost.values(), self.damaged, self.unexcused]
        return bool(self.acknowledged) and not any(faults)

    def lines(self) -> Iterator[str]:
        """Say it in words."""
        counts = collections.Counter(kill.victim for kill in self.kills)
        killed = ", ".join(f"{who} {n}" for who, n in sorted(counts.items()))
        yield f"seed {self.seed}: {len(self.kills)} kills ({killed})"
        yield f"{len(self.tried)} messages tried, {len(self.acknowledged)} acknowledged"
        for place, tokens in sorted(self.lost.items()):
            again = len(self.doubled[place])
            yield f"{place}: {len(tokens)} lost, {again} there twice"
        yield f"{self.unknown} came without an answer to their sender"
        yield f"{len(self.damaged)} damaged, {len(self.unexcused)} copies unexcused"


class Load:
    """Clients that send until ``end``."""

    def __init__(self, lab: Lab, account: Account, clients: int) -> None:
        self._account = account
        self._lock = threading.Lock()
        self._ending = threading.Event()
        nodes = [
            ("mx1.north.example", "10.77.0.11"),
            ("mx2.south.example", "10.77.0.11"),
        ]
        self._clients: list[subprocess.Popen[str]] = []
        for number in range(clients):
            node, address = nodes[number % 2]
            # -c and the path: the namespaces of the lab have the machine's files.
            run = f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
            run += "from integration.smtp_load import main; main()"
            words = (f"c{number}", address, f"user@{HOST}", f"both@{HOST}")
            self._clients.append(lab.beside(node, sys.executable, "-c", run, *words))
        self._threads = [
            threading.Thread(target=self._hear, args=(client,))
            for client in self._clients
        ]
        self._threads.append(threading.Thread(target=self._send, args=(lab,)))
        for thread in self._threads:
            thread.start()

    def _hear(self, client: subprocess.Popen[str]) -> None:
        assert client.stdout is not None
        for line in client.stdout:
            word, token, *more = line.split()
            with self._lock:
                if word == "try":
                    self._account.tried[token] = more[0]
                elif word == "ack":
                    self._account.acknowledged.add(token)

    def _send(self, lab: Lab) -> None:
        """Hand messages over with the sendmail command, also when nobody runs."""
        number = 0
        while not self._ending.wait(0.5):
            token, text = f"s-{number:05}", f"text {number}"
            number += 1
            digest = hashlib.sha256(text.encode()).hexdigest()
            with self._lock:
                self._account.tried[token] = digest
            mail = f"Subject: {token}\nX-Sum: {digest}\n\n{text}\n"
            words = ("sendmail", "-f", f"user@{HOST}", f"user@{HOST}", f"both@{HOST}")
            if not lab.vnsmail(*words, check=False, stdin=mail).returncode:
                with self._lock:
                    self._account.acknowledged.add(token)

    def acknowledged(self) -> int:
        with self._lock:
            return len(self._account.acknowledged)

    def end(self) -> None:
        self._ending.set()
        for client in self._clients:
            assert client.stdin is not None
            client.stdin.close()
        for thread in self._threads:
            thread.join(60)
        for client in self._clients:
            client.wait(60)
            assert client.stdout is not None
            client.stdout.close()


def pids(lab: Lab) -> dict[str, int]:
    """Return the pids here of what can be killed, by the names that status has."""
    found: dict[str, int] = {}
    supervisors: dict[int, int] = {}
    for pid, parent, words in _processes(lab):
        if "vnsmail.broker.server" in words:
            found["broker"] = pid
        elif "vnsmail.engines.native" in words:
            name = _worker(pid, lab)
            if name:
                found[name] = pid
        elif "up" in words and str(lab.root) in words:
            supervisors[pid] = parent
    for pid, parent in supervisors.items():
        # Between fork and exec a child looks like the one that starts it.
        if parent not in supervisors:
            found["supervisor"] = pid
    return found


def _processes(lab: Lab) -> Iterator[tuple[int, int, list[str]]]:
    """Yield pid, that of the parent, and command of what runs in a lab."""
    namespace = os.readlink(f"/proc/{lab.pid}/ns/pid")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(folder / "ns" / "pid") != namespace:
                continue
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        yield int(folder.name), int(parent), words


def _worker(pid: int, lab: Lab) -> str:
    """A worker is known by the folders it sees."""
    seen = Path(f"/proc/{pid}/root{lab.root}")
    try:
        if (seen / "hosts").is_dir():
            return "worker-0"
        if (seen / "machine").is_dir():
            return "worker-machine"
    except OSError:
        pass
    return ""


def kill(lab: Lab, victim: str, account: Account) -> None:
    """Kill one process; a supervisor is started again, as a service manager does."""
    pid = eventually(lambda: pids(lab).get(victim, 0), f"{victim} runs", 60)
    os.kill(pid, signal.SIGKILL)
    account.kills.append(Kill(victim, time.time()))
    if victim == "supervisor":
        try:
            eventually(lambda: not pids(lab), "its children have ended with it", 60)
        except AssertionError:
            left = [(pid, words) for pid, _, words in _processes(lab)]
            raise AssertionError((pid, left, lab.log()[-5000:])) from None
        lab.up()


def _untold(_words: str) -> None:
    return None


def run(
    lab: Lab,
    times: int,
    seed: int,
    clients: int = 4,
    tell: Callable[[str], object] = _untold,
) -> Account:
    """Kill so many times under load; return the account when the queues are empty."""
    tell(f"seed {seed}")
    chance = random.Random(seed)  # noqa: S311  any moment will do
    account = Account(seed)
    lab.vnsmail(
        "alias", "add", f"both@{HOST}", "ann@north.example", "kim@south.example"
    )
    load = Load(lab, account, clients)
    try:
        eventually(lambda: load.acknowledged() > 0, "mail flows")
        for _ in range(times):
            before = load.acknowledged()
            # Sometimes in the middle of the start, mostly when mail flows again.
            if chance.random() < 0.7:
                eventually(lambda b=before: load.acknowledged() > b, "mail flows", 90)  # type: ignore[misc]
            time.sleep(chance.random())
            kill(lab, chance.choice(VICTIMS), account)
            flow = f"{load.acknowledged()} messages acknowledged"
            tell(f"{len(account.kills)}: killed {account.kills[-1].victim}; {flow}")
    finally:
        load.end()
    eventually(lambda: not lab.json("status")["problems"], "all is served", 60)
    settle(lab, account)
    return account


def settle(lab: Lab, account: Account) -> None:
    """Wait until all has come, or it takes too long; account for every message."""
    deadline = time.monotonic() + SETTLING
    while time.monotonic() < deadline and not _all_came(lab, account):
        time.sleep(0.2)
    # What is still queued then could make copies.
    lab.vnsmail("queue", "wait", "--timeout", "60")
    came: set[str] = set()
    for place, folder in _places(lab).items():
        copies: dict[str, list[float]] = collections.defaultdict(list)
        for file in folder.glob("new/*"):
            head, _, text = file.read_bytes().partition(b"\r\n\r\n")
            token = str(email.message_from_bytes(head)["Subject"])
            if account.tried.get(token) != _digest(text):
                account.damaged.append(f"{token} at {place}")
            copies[token].append(file.stat().st_mtime)
        account.lost[place] = sorted(account.acknowledged - copies.keys())
        doubled = {token: sorted(at) for token, at in copies.items() if len(at) > 1}
        account.doubled[place] = sorted(doubled)
        for token, at in doubled.items():
            if place == "mailbox" or not all(map(_excused(account), at[:-1], at[1:])):
                kills = [
                    f"{kill.victim} {kill.at - at[0]:+.2f}"
                    for kill in account.kills
                    if at[0] - MARGIN_TOLD < kill.at < at[-1] + MARGIN_TOLD
                ]
                copies_at = ", ".join(f"+{each - at[0]:.2f} s" for each in at[1:])
                account.unexcused.append(
                    f"{token} at {place} and again {copies_at}; kills {kills}"
                )
        came |= copies.keys()
    account.unknown = len(came - account.acknowledged)


def _places(lab: Lab) -> dict[str, Path]:
    remotes = {r["domain"]: Path(r["mail"]) for r in lab.facts["remotes"]}
    return {
        "mailbox": lab.root / "hosts" / HOST / "mail" / "user",
        "north": remotes["north.example"] / "ann",
        "south": remotes["south.example"] / "kim",
    }


def _all_came(lab: Lab, account: Account) -> bool:
    wanted = len(account.acknowledged)
    return all(
        len(list(folder.glob("new/*"))) >= wanted
        and account.acknowledged <= _subjects(folder)
        for folder in _places(lab).values()
    )


def _subjects(folder: Path) -> set[str]:
    found = set()
    for file in folder.glob("new/*"):
        with file.open("rb") as lines:
            words = next((x for x in lines if x.startswith(b"Subject: ")), b" ")
            found.add(words.partition(b" ")[2].decode().strip())
    return found


def _digest(text: bytes) -> str:
    return hashlib.sha256(text.removesuffix(b"\r\n")).hexdigest()


def _excused(account: Account) -> Callable[[float, float], bool]:
    """Say whether what sends died while the first copy was on its way or unrecorded.

    A remote reads what it was sent though its sender has died since; so the first copy
    may be younger than the death.
    """
    deaths = [each.at for each in account.kills if each.victim in SENDS_MAIL]

    def excused(first: float, second: float) -> bool:
        begin, end = first - LATE, min(second, first + LONGEST_FLIGHT)
        return any(begin <= at <= end for at in deaths)

    return excused
