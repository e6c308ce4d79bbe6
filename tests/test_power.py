"""The power fails at any instant: what was promised outside of queues is there.

Queues have their own model (tests/queue/power.py), which knows what SQLite writes. The
event log promises nothing of the kind (docs/decisions/0028-durability.md).
"""

import os
import random
import secrets
from pathlib import Path

import pytest

from tests.power import WAYS, PowerTree, leave
from vnsmail.database import sync_folder
from vnsmail.directory.moves import PackedPeople
from vnsmail.drop import form
from vnsmail.drop.writer import Writer
from vnsmail.mailbox import maildir
from vnsmail.model import MACHINE, HostName, Owner
from vnsmail.queue.body import Body
from vnsmail.settings import layout
from vnsmail.supervisor import drop_folder, folders, packing, unpacking
from vnsmail.supervisor.drop_folder import NotTakeable

NOW = 1_800_000_000.25
TEXT = b"Subject: x\r\n\r\n" + b"x" * 5000


@pytest.fixture
def disk(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    with monkeypatch.context() as patch:
        disk = PowerTree(tmp_path / "disk", patch)
        yield disk
    disk.close()


def each_cut(disk, tmp_path, monkeypatch):
    """Give, for each instant and way, what is left and what was said by then."""
    monkeypatch.undo()
    instants = list(disk.instants)
    seed = secrets.randbits(32)
    chance = random.Random(seed)  # noqa: S311  any choice will do
    for number, instant in enumerate(instants):
        for way in WAYS:
            left = tmp_path / f"{number}-{way}"
            leave(instant, left, way, chance)
            yield left, instant.said, f"{way}, instant {number}, seed {seed}"


def put(folder, name):
    maildir.deliver(
        folder,
        Body(TEXT),
        return_path="ann@a.example",
        delivered_to="bob@b.example",
        name=name,
    )


def test_mailbox(disk, tmp_path, monkeypatch):
    """A message is in the mailbox, whole, once whoever delivered it has been told."""
    mail = disk.folder / "mail" / "bob"
    names = [maildir.unique_name(NOW) for _ in range(3)]
    for name in names:
        put(mail, name)
        disk.say(name)
    (mail / "new" / names[0]).rename(mail / "cur" / f"{names[0]}:2,S")
    assert maildir.holds(mail, names[0])
    disk.say("read")

    for left, said, where in each_cut(disk, tmp_path, monkeypatch):
        box = left / "mail" / "bob"
        found = {path.name: path for path in box.glob("new/*")}
        seen = {path.name.partition(":")[0]: path for path in box.glob("cur/*")}
        assert {*said} - {"read"} <= found.keys() | seen.keys(), where
        for path in (*found.values(), *seen.values()):
            assert path.read_bytes().endswith(TEXT), where


def test_drop(disk, tmp_path, monkeypatch):
    """A message left for the daemon is there when the command has ended."""
    uid = os.getuid()
    drop = disk.folder / "state" / "drop"
    folders.prepare(layout(disk.folder / "state"))
    drop_folder.prepare(drop, {uid}, 100_000)
    promised = []
    for _ in range(2):
        request = form.Request(sender=None, recipients=("bob@b.example",))
        writer = Writer(str(drop / str(uid)), request)
        writer.write(TEXT)
        name = writer.finish()
        writer.keep()
        writer.discard()
        disk.say(name)
        promised.append(name)

    for left, said, where in each_cut(disk, tmp_path, monkeypatch):
        there = left / "state" / "drop"
        names = drop_folder.waiting(there, uid, NOW)
        assert {*said} <= {*names}, where
        for name in names:
            try:
                found = drop_folder.open_message(there, uid, name, 100_000)
            except NotTakeable:
                pytest.fail(f"{name} is not whole: {where}")
            assert found is not None
            with found:
                assert TEXT == os.pread(found.fd, found.size, found.offset), where


def test_folder_of_an_owner(disk, tmp_path, monkeypatch):
    """A queue that a worker makes in it is found again, from the root on."""
    root = layout(disk.folder / "state")
    folders.prepare(root)
    for owner in (Owner(MACHINE), Owner(HostName("alpha.example"))):
        folder = folders.prepare_owner(root, owner, None)
        # A worker syncs its folder, and may have nothing above it.
        (folder / "queue.db").write_bytes(b"x")
        sync_folder(folder)
        disk.say(str(folder.relative_to(disk.folder)))

    for left, said, where in each_cut(disk, tmp_path, monkeypatch):
        assert all((left / each / "queue.db").exists() for each in said), where


def test_pack(disk, tmp_path, monkeypatch):
    """A pack that has its name is whole, and is there once the host counts as moved."""
    host = HostName("alpha.example")
    owner = tmp_path / "owner"
    owner.mkdir()
    (owner / "queue.db").write_bytes(TEXT)
    facts = f'[host."{host}"]\naddresses = ["10.77.0.11/24"]\n'
    areas = (("owner", owner),)
    content = packing.Content(host, "a" * 32, facts, PackedPeople((), (), ()), areas)
    packing.write(content, disk.folder / "pack")
    disk.say("packed")

    for left, said, where in each_cut(disk, tmp_path, monkeypatch):
        assert not said or (left / "pack").exists(), where
        if (left / "pack").exists():
            found = unpacking.read(str(left / "pack"), tmp_path / "stage")
            assert TEXT == (Path(found.area("owner")) / "queue.db").read_bytes(), where
