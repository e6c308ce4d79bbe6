"""Packs: what is written is what is read, and what is anything else is refused."""

import io
import os
import stat
import tarfile

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.directory import Directory
from vnsmail.directory.moves import PackedPeople, PackedUser
from vnsmail.errors import NotFound, StateUnusable, Taken
from vnsmail.model import Context, HostName, SourceAddress, VirtualHost
from vnsmail.supervisor import packing, unpacking
from vnsmail.supervisor.folders import Account
from vnsmail.supervisor.pack_form import BadPack, Digest, judge_name, read_manifest

ALPHA = HostName("alpha.example")
FACTS = '[host."alpha.example"]\naddresses = ["10.77.0.11/24"]\nusers = ["ann"]\n'
PEOPLE = PackedPeople(
    (PackedUser("ann", False, 10, "hash", "scram"),),
    (("*", "bob@other.example", 1), ("sales", "ann", 0)),
    (("ann", "sales@alpha.example"),),
)


def folders(tmp_path):
    owner = tmp_path / "owner"
    (owner / "mail" / "ann" / "new").mkdir(parents=True)
    (owner / "mail" / "ann" / "cur").mkdir()
    (owner / "queue.db").write_bytes(os.urandom(3_000_000))
    (owner / "mail" / "ann" / "new" / "1.x").write_bytes(b"hello\r\n")
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "keys.json").write_bytes(b"{}")
    return (("owner", owner), ("tls", tmp_path / "none"), ("dkim", keys))


def content(tmp_path, **changes):
    given = {"facts": FACTS, "people": PEOPLE, "folders": folders(tmp_path)} | changes
    return packing.Content(host=ALPHA, pack="a" * 32, **given)


@pytest.fixture
def pack(tmp_path):
    path = tmp_path / "pack"
    packing.write(content(tmp_path), path)
    return path


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_there_and_back(tmp_path, pack):
    found = unpacking.read(str(pack), tmp_path / "stage")

    assert (ALPHA, PEOPLE) == (found.host.name, found.people)
    assert tree(tmp_path / "owner") == tree(found.area("owner"))
    assert tree(tmp_path / "keys") == tree(found.area("dkim"))
    assert not found.area("tls").exists()
    modes = {stat.S_IMODE(p.stat().st_mode) for p in found.folder.rglob("*.*")}
    assert {0o600} == modes
    assert 0o600 == stat.S_IMODE(pack.stat().st_mode)
    assert not (tmp_path / "pack.part").exists()


@pytest.mark.parametrize("what", ["link", "pipe"])
def test_no_plain_file(tmp_path, what):
    """A worker that is taken over cannot have the files of others packed."""
    made = content(tmp_path)
    place = tmp_path / "owner" / "mail" / "x"
    os.symlink("/etc/shadow", place) if what == "link" else os.mkfifo(place)

    with pytest.raises(StateUnusable, match="mail/x is no plain file"):
        packing.write(made, tmp_path / "pack")
    assert not list(tmp_path.glob("pack*"))


def test_cut_anywhere_or_changed(tmp_path, pack):
    whole = pack.read_bytes()
    places = [0, 1, 511, 512, 1024, 5000, len(whole) // 2, len(whole) - 12_000]
    wrong = [whole[:at] for at in places]
    wrong += [
        whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :] for at in places[4:]
    ]
    for each in wrong:
        pack.write_bytes(each)
        with pytest.raises((BadPack, StateUnusable)):
            unpacking.read(str(pack), tmp_path / "stage")
        assert not (tmp_path / "stage").exists()


def forged(tmp_path, *entries):
    path = tmp_path / "forged"
    with tarfile.open(path, "w") as tar:
        for name, kind in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/shadow"
            entry.size = 3 if kind == tarfile.REGTYPE else 0
            tar.addfile(entry, io.BytesIO(b"xyz"))
    return str(path)


@pytest.mark.parametrize(
    "entries",
    [
        [("../x", tarfile.REGTYPE)],
        [("/etc/x", tarfile.REGTYPE)],
        [("owner/../../x", tarfile.REGTYPE)],
        [("elsewhere/x", tarfile.REGTYPE)],
        [("owner", tarfile.DIRTYPE), ("owner/x", tarfile.SYMTYPE)],
        [("owner", tarfile.SYMTYPE), ("owner/x", tarfile.REGTYPE)],
        [("owner", tarfile.DIRTYPE), ("owner/x", tarfile.LNKTYPE)],
        [("owner", tarfile.DIRTYPE), ("owner/x", tarfile.CHRTYPE)],
        [("owner", tarfile.DIRTYPE), ("owner/x", tarfile.FIFOTYPE)],
        [("owner/x", tarfile.REGTYPE)],
        [("owner", tarfile.REGTYPE)],
        [("owner", tarfile.DIRTYPE), ("owner", tarfile.DIRTYPE)],
        [("host.toml", tarfile.REGTYPE), ("host.toml", tarfile.REGTYPE)],
    ],
)
def test_made_up(tmp_path, entries):
    """What would be written elsewhere, or is no plain file, is refused."""
    with pytest.raises(BadPack, match="nothing was changed"):
        unpacking.read(forged(tmp_path, *entries), tmp_path / "stage")
    assert ["forged"] == os.listdir(tmp_path)


def test_no_room(tmp_path, pack, monkeypatch):
    monkeypatch.setattr(unpacking, "_RESERVE", 2**60)
    with pytest.raises(StateUnusable, match="there is no room"):
        unpacking.read(str(pack), tmp_path / "stage")


@given(st.text(), st.booleans())
def test_any_name(name, folder):
    """A name that is taken stays within the pack's folder."""
    try:
        judge_name("pack", name, folder=folder)
    except BadPack:
        return
    assert os.path.normpath(name) == name
    assert not name.startswith(("/", "."))


@given(st.binary())
def test_any_manifest(data):
    with pytest.raises(BadPack):
        read_manifest("pack", data, Digest())


def test_of_another_form():
    with pytest.raises(BadPack, match="form 9"):
        read_manifest("pack", msgspec.json.encode(_manifest(9)), Digest())


def _manifest(form):
    return {
        "form": form,
        "pack": "a" * 32,
        "host": ALPHA,
        "version": "1",
        "packed_at": 0.0,
        "files": 0,
        "octets": 0,
        "digest": "",
    }


@pytest.fixture
def directory(tmp_path):
    found = Directory(tmp_path / "directory.db")
    yield found
    found.close()


def host():
    return VirtualHost(
        name=ALPHA,
        context=Context.NAMESPACE,
        addresses=(SourceAddress.parse("10.77.0.11/24"),),
        domains=(ALPHA,),
        link="lan0",
    )


def test_a_pack_is_used_up_with_its_host(directory):
    directory.add_host(host())
    directory.settle(ALPHA, PEOPLE, "p")

    assert PEOPLE == directory.packed_people(ALPHA)
    assert (ALPHA,) == tuple(each.name for each in directory.hosts())
    directory.begin_destroy(ALPHA)
    directory.remove_host(ALPHA)
    directory.add_host(host())
    with pytest.raises(Taken, match="it became alpha"):
        directory.settle(ALPHA, PEOPLE, "p")
    assert () == directory.hosts()
    directory.settle(ALPHA, PEOPLE, "p", again=True)


def test_a_move_outlives_what_else_changes(directory):
    with pytest.raises(NotFound):
        directory.begin_move(ALPHA, "p")
    directory.add_host(host())
    directory.activate(ALPHA)
    directory.begin_move(ALPHA, "p")

    assert "p" == directory.begin_move(ALPHA, "other").pack
    directory.finish_move(ALPHA)
    directory.change(host())
    directory.declare([(host(), ())], [])
    move = directory.move(ALPHA)
    assert move
    assert move.finished
    directory.cancel_move(ALPHA)
    assert directory.move(ALPHA) is None


def test_given_to_workers(tmp_path, pack, monkeypatch):
    """Whose the files are is on disk too, before anything is put into its place."""
    found = unpacking.read(str(pack), tmp_path / "stage")
    happened: list[object] = []
    monkeypatch.setattr(
        os, "chown", lambda path, uid, gid, **_: happened.append((str(path), uid, gid))
    )
    monkeypatch.setattr(unpacking, "_sync", happened.append)
    owner = found.area("owner")
    unpacking.give(owner, Account(7, 8))

    paths = [owner, *owner.rglob("*")]
    assert found.folder == happened.pop()
    assert {(str(path), 7, 8) for path in paths} == set(happened)
