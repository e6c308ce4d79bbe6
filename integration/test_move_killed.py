"""Installations are killed (-9) while a host goes from one to the other: it goes once.

A supervisor is killed as it begins a certain system call on a certain file, so that each
step is seen: nothing before it is undone, nothing after it is done. It is started again,
as a service manager does, and the same command is given again.
"""

from functools import partial

import pytest

from integration.labs import Lab, eventually
from integration.moves import ADDRESSES, call, killed_at, second
from vnsmail.settings import layout

pytestmark = pytest.mark.timeout(600)
"""A dozen restarts, and the machine may be busy."""

HOST = "alpha.example"
USER = f"user@{HOST}"
MAILS = 3
SYNC = "fsync,fdatasync"
RENAME = "rename,renameat,renameat2"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    found = Lab(tmp_path_factory.mktemp("moves") / "root", hosts=1)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def other(lab, tmp_path_factory):
    with second(lab, tmp_path_factory.mktemp("other") / "root") as root:
        yield root


def _reach_north(lab, word):
    lab.inside("mx1.north.example", "ip", "link", "set", "eth0", word)


def _send(root, to, text):
    call(root, "send", "--as", USER, "--to", to, "--subject", text, "--text", "x")


def test_it_goes_once(lab, other, tmp_path):
    """Its queue leaves from the new place, each message once; its mail is there."""
    _send(lab.root, USER, "kept")
    eventually(lambda: lab.mail("user", HOST), "a message in the mailbox")
    kept = lab.mail("user", HOST)
    _reach_north(lab, "down")
    for number in range(MAILS):
        _send(lab.root, "moved@north.example", f"number {number}")
    pack = tmp_path / "pack"
    _pack_with_deaths(lab, pack)
    assert pack.is_file()
    assert [] == lab.remote_mail("moved")

    _unpack_with_deaths(lab, other, pack)
    eventually(lambda: len(lab.remote_mail("moved")) >= MAILS, "the queue", 60)
    lab.vnsmail("--root", str(other), "queue", "wait", "--timeout", "60")
    mail = other / "hosts" / HOST / "mail" / "user" / "new"
    assert MAILS == len(lab.remote_mail("moved"))
    assert kept == [path.read_bytes() for path in mail.iterdir()]
    assert "it became alpha.example here already" in call(
        other, "host", "unpack", str(pack), *ADDRESSES
    )


def _pack_with_deaths(lab, pack):
    root = lab.root
    log = layout(root).directory_db.with_name("directory.db-wal")
    half = pack.with_name(f"{pack.name}.part")
    command = partial(call, root, "host", "pack", HOST, "--to", str(pack))
    for step, (calls, path) in enumerate(
        [
            (SYNC, log),  # it is not written down yet that it moves
            ("openat", half),
            (SYNC, half),
            (RENAME, half),
            (SYNC, pack.parent),
        ]
    ):
        with killed_at(lab, root, calls, path):
            command()
        if step == 1:
            # From here on it moves, and sends nothing though it could.
            _reach_north(lab, "up")
        if pack.exists():
            # It has its name, and nobody wrote down that it has.
            pack.unlink()
    with killed_at(lab, root, SYNC, log):
        command()
    # The record of it is whole; only a power cut would take it back.
    assert "it is packed already" in command()


def _unpack_with_deaths(lab, other, pack):
    log = layout(other).directory_db.with_name("directory.db-wal")
    stage, hosts = other / "unpacking", other / "hosts"
    command = partial(call, other, "host", "unpack", str(pack), *ADDRESSES)
    for calls, path in [
        ("mkdir", stage),
        (SYNC, log),
        (RENAME, stage / "owner"),
        (SYNC, hosts),
    ]:
        with killed_at(lab, other, calls, path):
            command()
        assert [] == lab.remote_mail("moved")
    with killed_at(lab, other, f"{SYNC}:when=2", log):
        command()
