"""A host goes to another installation: nothing is lost, nothing goes twice.

Both installations are on the machine of one lab; the second has a root of its own. Most
commands run in this process, which is quicker; they are the same.
"""

import json
import os
from pathlib import Path

import pytest

from integration.labs import Lab, eventually
from integration.moves import ADDRESSES, call, second

HOST = "alpha.example"
USER = f"user@{HOST}"
NEW = {"10.77.0.61", "fd77::61"}


@pytest.fixture(scope="module")
def other(lab, tmp_path_factory):
    """The root of a second installation on the machine of the lab."""
    with second(lab, tmp_path_factory.mktemp("other") / "root") as root:
        yield root


def clients(lab: Lab, user: str) -> list[str]:
    """Return who brought the mail of a user of the north, as the remote wrote it."""
    found = []
    for mail in lab.remote_mail(user):
        where = mail.partition(b"Received: from ")[2].partition(b"]")[0]
        found.append(where.rpartition(b"[")[2].decode().removeprefix("IPv6:"))
    return found


@pytest.fixture(scope="module")
def pack(lab, tmp_path_factory):
    """A host with mail in its mailbox and in its queue, packed."""
    call(lab.root, "alias", "add", f"sales@{HOST}", "user")
    call(lab.root, "user", "passwd", USER, "--generate")
    call(lab.root, "dkim", "create", HOST)
    call(lab.root, *_send("user@beta.example", USER))
    eventually(lambda: lab.mail("user", HOST), "a message in the mailbox")
    lab.inside("mx1.north.example", "ip", "link", "set", "eth0", "down")
    for _ in range(2):
        call(lab.root, *_send(USER, "moved@north.example"))
    folder = tmp_path_factory.mktemp("packs")
    said = json.loads(
        call(lab.root, "host", "pack", HOST, "--to", str(folder), "--json")
    )
    lab.inside("mx1.north.example", "ip", "link", "set", "eth0", "up")
    return Path(said["file"])


def _send(sender: str, to: str) -> tuple[str, ...]:
    return ("send", "--as", sender, "--to", to, "--subject", "x", "--text", "x")


@pytest.mark.timeout(180)
def test_where_it_was(lab, pack, tmp_path):
    """It is one file of root's, and the host neither sends nor receives any more."""
    assert (f"{HOST}.vnsmail-pack", 0o600) == (pack.name, pack.stat().st_mode & 0o777)
    assert "--force" in call(lab.root, "host", "resume", HOST)
    assert "packed already" in call(
        lab.root, "host", "pack", HOST, "--to", str(tmp_path)
    )
    assert "it is suspended" in call(lab.root, *_send(USER, "x@north.example"))
    assert 2 == len(
        json.loads(call(lab.root, "queue", "list", "--host", HOST, "--json"))
    )


@pytest.mark.timeout(180)
def test_what_is_no_pack(other, pack, tmp_path):
    """A pack that was changed or cut becomes nothing, and changes nothing."""
    whole = pack.read_bytes()
    middle = len(whole) // 2
    before = sorted(os.listdir(other)), sorted(os.listdir(other / "hosts"))
    for wrong in (
        whole[:middle],
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        b"",
    ):
        bad = tmp_path / "bad"
        bad.write_bytes(wrong)
        said = call(other, "host", "unpack", str(bad), *ADDRESSES)
        assert "nothing was changed" in said
    assert before == (sorted(os.listdir(other)), sorted(os.listdir(other / "hosts")))


@pytest.mark.timeout(180)
def test_where_it_is(lab, other, pack):
    """Its queue leaves from the new place, once; what it had is there."""
    kept = lab.mail("user", HOST)
    keys = (lab.root / "dkim" / HOST / "keys.json").read_bytes()
    call(other, "host", "unpack", str(pack), *ADDRESSES, "--dry-run")
    assert not (other / "hosts" / HOST).exists()
    call(other, "host", "unpack", str(pack), *ADDRESSES)
    eventually(lambda: len(lab.remote_mail("moved")) == 2, "both messages")

    assert set(clients(lab, "moved")) <= NEW
    assert [] == json.loads(call(other, "queue", "list", "--json"))
    mail = other / "hosts" / HOST / "mail" / "user" / "new"
    assert kept == [path.read_bytes() for path in mail.iterdir()]
    assert keys == (other / "dkim" / HOST / "keys.json").read_bytes()
    assert json.loads(call(other, "user", "list", "--json"))[0]["sign_in"]
    assert f"sales@{HOST}" in call(other, "alias", "list")
    assert not (other / "unpacking").exists()


@pytest.mark.timeout(180)
def test_once(lab, other, pack):
    """The same pack becomes no second host, not even after the first was destroyed."""
    unpack = ("host", "unpack", str(pack), *ADDRESSES)
    assert "it became alpha.example here already" in call(other, *unpack)
    call(lab.root, "host", "destroy", HOST)
    call(other, "host", "destroy", HOST)
    assert "it became alpha.example here already" in call(other, *unpack)
    assert 2 == len(lab.remote_mail("moved"))


@pytest.mark.timeout(180)
def test_it_stays_after_all(lab, tmp_path):
    """A host that was packed goes on where it is, if one insists."""
    call(lab.root, "host", "pack", "beta.example", "--to", str(tmp_path))
    call(lab.root, "host", "resume", "--force", "beta.example")
    call(lab.root, *_send("user@beta.example", "back@north.example"))
    eventually(lambda: lab.remote_mail("back"), "the message")
    assert set(clients(lab, "back")) <= {"10.77.0.12", "fd77::12"}
