"""A host goes to another installation: nothing is lost, nothing goes twice.

Both installations are on the machine of one lab; the second has a root of its own.
"""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from integration.labs import Lab, eventually

HOST = "alpha.example"
NEW = {"10.77.0.61", "fd77::61"}
OLD = {"10.77.0.11", "fd77::11"}
SETTINGS = """
[machine]
name = "other.example"
[worker]
user = "65534"
[queue]
first_retry = 2
[dns]
servers = ["10.77.0.2"]
timeout = 5
"""


class Other:
    """A second installation on the machine of a lab."""

    def __init__(self, lab: Lab, root: Path) -> None:
        self.lab = lab
        self.root = root
        root.mkdir()
        (root / "vnsmail.toml").write_text(SETTINGS)

    def __call__(
        self, *words: str, check: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        code = "import sys; from vnsmail.cli.app import main; main()"
        words = ("--root", str(self.root), *words)
        done = self.lab.inside(
            "machine", self.lab.python, "-P", "-c", code, *words, check=False
        )
        if check:
            assert done.returncode == 0, (words, done.stderr)
        return done

    def kill(self) -> None:
        pid = json.loads(self("status", "--json").stdout)["pid"]
        self.lab.inside("machine", "kill", "-9", str(pid))
        eventually(lambda: self("status", check=False).returncode == 3, "it ended")

    def unpack(
        self, file: Path, *more: str, check: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        addresses = [
            w for a in ("10.77.0.61/24", "fd77::61/64") for w in ("--address", a)
        ]
        return self("host", "unpack", str(file), *addresses, *more, check=check)


@pytest.fixture(scope="module")
def other(lab, tmp_path_factory):
    found = Other(lab, tmp_path_factory.mktemp("other") / "root")
    found("up", "--detach")
    yield found
    found("down", check=False)


def clients(lab, user):
    """Return who brought the mail of a user of the north, as the remote wrote it."""
    found = []
    for mail in lab.remote_mail(user):
        where = mail.partition(b"Received: from ")[2].partition(b"]")[0]
        found.append(where.rpartition(b"[")[2].decode().removeprefix("IPv6:"))
    return found


@pytest.mark.timeout(240)
def test_a_host_moves(lab, other, tmp_path):
    """Its queue leaves from the new place, once; what it had is there, and closed here."""
    lab.vnsmail("alias", "add", f"sales@{HOST}", "user")
    word = lab.vnsmail("user", "passwd", f"user@{HOST}", "--generate").stdout.strip()
    lab.vnsmail("dkim", "create", HOST)
    lab.send("user@beta.example", f"user@{HOST}", subject="kept")
    eventually(lambda: lab.mail("user", HOST), "a message in the mailbox")
    kept = lab.mail("user", HOST)
    lab.inside("mx1.north.example", "ip", "link", "set", "eth0", "down")
    ids = {lab.send(f"user@{HOST}", "moved@north.example", text=str(n)) for n in (1, 2)}
    keys = (lab.root / "dkim" / HOST / "keys.json").read_bytes()

    pack = tmp_path / "packs"
    pack.mkdir()
    file = pack / f"{HOST}.vnsmail-pack"
    said = lab.json("host", "pack", HOST, "--to", str(pack))
    assert (str(file), 0o600) == (said["file"], file.stat().st_mode & 0o777)
    lab.inside("mx1.north.example", "ip", "link", "set", "eth0", "up")
    for words in (
        ("host", "resume", HOST),
        ("host", "pack", HOST, "--to", str(tmp_path)),
        ("send", "--as", f"user@{HOST}", "--to", "x@north.example", "--text", "x"),
    ):
        assert lab.vnsmail(*words, check=False).returncode != 0, words
    lab.restart()
    assert ids == {e["id"] for e in lab.json("queue", "list", "--host", HOST)}

    assert "would be" in other.unpack(file, "--dry-run").stderr
    other.unpack(file)
    eventually(lambda: len(lab.remote_mail("moved")) == len(ids), "both messages")
    found = json.loads(other("queue", "list", "--host", HOST, "--json").stdout)
    assert [] == found
    assert set(clients(lab, "moved")) <= NEW
    mail = other.root / "hosts" / HOST / "mail" / "user" / "new"
    assert kept == [path.read_bytes() for path in mail.iterdir()]
    assert keys == (other.root / "dkim" / HOST / "keys.json").read_bytes()
    users = json.loads(other("user", "list", "--host", HOST, "--json").stdout)
    assert users[0]["sign_in"]
    assert word
    assert not (other.root / "unpacking").exists()

    again = other.unpack(file, check=False)
    assert again.returncode == 2
    assert "already" in again.stderr
    lab.vnsmail("host", "destroy", HOST)
    other("host", "destroy", HOST)
    again = other.unpack(file, check=False)
    assert "it became alpha.example here already" in again.stderr
    assert len(lab.remote_mail("moved")) == len(ids)


def watch_and_kill(lab, words, look, kill):
    """Start a command, and kill the supervisor as soon as something is to be seen."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and not look():
        pass
    kill()
    process.communicate(timeout=60)
    return process.returncode


def _with_much_mail(lab, host):
    """Give a host mailboxes that take their time to copy."""
    lab.send("user@gamma.example", f"user@{host}")
    eventually(lambda: lab.mail("user", host), "a mailbox")
    folder = lab.root / "hosts" / host / "mail" / "user" / "cur"
    facts = folder.stat()
    for number in range(40):
        path = folder / f"{number}.large"
        with path.open("wb") as out:
            for _ in range(4):
                out.write(os.urandom(1024 * 1024))
        os.chown(path, facts.st_uid, facts.st_gid)


@pytest.mark.timeout(300)
def test_killed_while_it_moves(lab, other, tmp_path):
    """kill -9 in the middle of packing and unpacking: the same again succeeds."""
    host = "beta.example"
    _with_much_mail(lab, host)
    lab.inside("mx1.north.example", "ip", "link", "set", "eth0", "down")
    lab.send(f"user@{host}", "killed@north.example")
    file = tmp_path / "pack"
    part = tmp_path / "pack.part"
    root = ["--root", str(lab.root)]
    words = [lab.python, "-P", "-m", "vnsmail.cli.app", *root]
    words += ["host", "pack", host, "--to", str(file)]

    def large(path, octets):
        return path.exists() and path.stat().st_size > octets

    for octets in (0, 60_000_000):
        watch_and_kill(
            lab,
            words,
            lambda size=octets: large(part, size),
            lambda: os.kill(lab.outer_pid("supervisor"), signal.SIGKILL),
        )
        eventually(
            lambda: lab.vnsmail("status", check=False).returncode == 3, "it ended"
        )
        assert not file.exists()
        lab.up()
        refused = lab.vnsmail("host", "resume", host, check=False)
        assert "--force" in refused.stderr
    lab.vnsmail("host", "pack", host, "--to", str(file))
    lab.inside("mx1.north.example", "ip", "link", "set", "eth0", "up")

    stage = other.root / "unpacking"
    arguments = ("host", "unpack", str(file), "--address", "10.77.0.62/24")
    for look in (
        (stage / "owner").exists,
        (stage / "owner" / "mail" / "user" / "cur" / "30.large").exists,
        (other.root / "hosts" / host).exists,
    ):
        process = lab.beside(
            "machine",
            lab.python,
            "-P",
            "-m",
            "vnsmail.cli.app",
            *("--root", str(other.root), *arguments),
        )
        pid = json.loads(other("status", "--json").stdout)["pid"]
        while process.poll() is None and not look():
            pass
        lab.inside("machine", "kill", "-9", str(pid))
        process.communicate(timeout=60)
        other("up", "--detach")
        if (
            process.returncode == 0
            or other(*arguments, "--dry-run", check=False).returncode
        ):
            break
    listed = json.loads(other("host", "list", "--json").stdout)
    if host not in [each["name"] for each in listed]:
        other(*arguments)
    eventually(lambda: lab.remote_mail("killed"), "the message")
    lab.settle()
    assert ["10.77.0.62"] == clients(lab, "killed")
    moved = other.root / "hosts" / host / "mail" / "user" / "cur"
    assert 40 == len(list(moved.glob("*.large")))
    other("host", "destroy", host)


@pytest.mark.timeout(120)
def test_what_is_no_pack(lab, other, tmp_path):
    """A pack that was changed, cut or made up becomes nothing, and changes nothing."""
    file = tmp_path / "pack"
    lab.vnsmail("host", "pack", "gamma.example", "--to", str(file))
    whole = file.read_bytes()
    middle = len(whole) // 2
    before = sorted(os.listdir(other.root)), sorted(os.listdir(other.root / "hosts"))
    for wrong in (
        whole[:middle],
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        b"no pack",
        b"",
    ):
        bad = tmp_path / "bad"
        bad.write_bytes(wrong)
        done = other.unpack(bad, check=False)
        assert done.returncode in {1, 2}, done
        assert 1 == len(done.stderr.splitlines()), done.stderr
    link = tmp_path / "link"
    link.symlink_to(file)
    assert other.unpack(link, check=False).returncode == 1
    after = sorted(os.listdir(other.root)), sorted(os.listdir(other.root / "hosts"))
    assert before == after
    lab.vnsmail("host", "resume", "--force", "gamma.example")
    lab.send("user@gamma.example", "back@north.example")
    lab.settle()
    assert 1 == len(lab.remote_mail("back"))
    shutil.rmtree(tmp_path)
