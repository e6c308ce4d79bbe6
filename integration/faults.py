"""Disks that fail under one host, and a client that notes what it is told.

Each host that is to suffer has a file system of its own, mounted in the namespace of
the lab, so that it goes with the lab: one in memory, which can be filled to the last
byte or be made read-only; and one in a file of another that can be filled, so that what
fits the inner one cannot be written: an I/O error, as that of a failing disk.
"""

import contextlib
import json
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from integration.labs import Lab, eventually

REMOTE = "mx1.north.example"

CLIENT = """
import json, smtplib, sys
address, to, *works = sys.argv[1:]
said = []
for work in works:
    subject, size = work.split(",")
    text = f"Subject: {subject}\\r\\n\\r\\n" + ("x" * 70 + "\\r\\n") * (int(size) // 72 + 1)
    try:
        with smtplib.SMTP(address, 25, "mx1.north.example", timeout=60) as client:
            client.sendmail("ann@north.example", [to], text)
        said.append(250)
    except smtplib.SMTPRecipientsRefused as error:
        said.append(error.recipients[to][0])
    except smtplib.SMTPResponseException as error:
        said.append(error.smtp_code)
    except (smtplib.SMTPServerDisconnected, OSError):
        said.append(0)
print(json.dumps(said))
"""

HOLD = """
import smtplib, socket, sys
to, count, size, *addresses = sys.argv[1:]
first = smtplib.SMTP(addresses[0], 25, "mx1.north.example", timeout=60)
first.ehlo()
first.mail("ann@north.example")
first.rcpt(to)
held = [
    socket.create_connection((addresses[n % len(addresses)], 25), timeout=60)
    for n in range(int(count))
]
print("held", flush=True)
for line in sys.stdin:
    print(first.data(("x" * 70 + "\\r\\n") * (int(size) // 72))[0], flush=True)
"""

SMALL, LARGE = 500, 400_000
"""Octets: in a row of the queue, and in a file of its own."""


class Disk:
    """The file system of one host, and what can happen to it."""

    def __init__(self, lab: Lab, host: str) -> None:
        self._lab = lab
        self.host = host
        self.folder = lab.root / "hosts" / host
        self._beside = lab.root / f"disk-{host}"

    def _run(self, script: str, *, check: bool = True) -> bool:
        words = ("sh", "-ec", script, "sh", str(self.folder), str(self._beside))
        return not self._lab.inside("machine", *words, check=check).returncode

    def in_memory(self) -> None:
        """Move the host to a file system in memory, of 64 MiB."""
        self._mount("mount -t tmpfs -o size=64m,mode=700 vnsmail $1")

    def in_file(self) -> None:
        """Move the host to a file system of 256 MiB in a file, which has 40 MiB."""
        # Without a journal: an error is an error, and no end of all writing.
        make = "mount -t tmpfs -o size=40m vnsmail $2; truncate -s 256M $2/image;"
        make += "mkfs.ext4 -q -m 0 -O ^has_journal $2/image;"
        self._mount(make + "mount -o loop,noinit_itable $2/image $1")

    def _mount(self, how: str) -> None:
        owner = "chown --reference=$2/kept $1; chmod 700 $1;"
        self._run(
            f"mkdir -p $2; cp -a $1 $1.kept; {how}; mkdir -p $2/kept;"
            f"{owner.replace('$2/kept', '$1.kept')} cp -a $1.kept/. $1; rm -r $1.kept"
        )

    def fill(self) -> None:
        """Take the last byte of it; of the outer one if it lies in a file."""
        where = "$2" if self._outer() else "$1"
        script = f"cat /dev/zero > {where}/filler"
        self._run(f"{script} 2>/dev/null || sync -f $1 || true")

    def empty(self) -> None:
        """Give back what ``fill`` took."""
        self._run("rm -f $1/filler $2/filler")

    def _outer(self) -> bool:
        return self._run("mountpoint -q $2", check=False)

    def read_only(self) -> None:
        """Let nothing be written; waits until nobody has a file open to write."""
        eventually(
            lambda: self._run("mount -o remount,ro $1", check=False),
            "nobody writes",
            90,
        )

    def writable(self) -> None:
        self._run("mount -o remount,rw $1")


def bring(lab: Lab, address: str, to: str, *works: tuple[str, int]) -> list[int]:
    """Bring messages from outside, each in a session; returns the last reply to each.

    Args:
        lab: where.
        address: of the host.
        to: recipient.
        works: subject and octets of each message.
    """
    words = [f"{subject},{size}" for subject, size in works]
    done = lab.inside(REMOTE, lab.python, "-c", CLIENT, address, to, *words)
    found: list[int] = json.loads(done.stdout)
    return found


class Held:
    """Clients that hold what they have."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert "held\n" == self._hear()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def send(self) -> int:
        """End the message that the first has begun; returns the reply."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._hear())


@contextlib.contextmanager
def holding(lab: Lab, to: str, count: int, addresses: Iterable[str]) -> Iterator[Held]:
    """Hold connections to hosts open; one has begun a large message to ``to``."""
    words = (to, str(count), str(LARGE), *addresses)
    process = lab.beside(REMOTE, lab.python, "-c", HOLD, *words)
    try:
        yield Held(process)
    finally:
        process.communicate(timeout=60)


def subjects(folder: Path) -> list[str]:
    """Return the subjects of the messages in a Maildir, sorted."""
    found = []
    for file in folder.glob("new/*"):
        with file.open("rb") as lines:
            words = next((line for line in lines if line.startswith(b"Subject: ")), b"")
            found.append(words.removeprefix(b"Subject: ").decode().strip())
    return sorted(found)
