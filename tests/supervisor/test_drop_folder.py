import os
import stat

import pytest

from vnsmail.drop.form import Request, front
from vnsmail.drop.writer import Writer
from vnsmail.errors import StateUnusable
from vnsmail.supervisor import drop_folder
from vnsmail.supervisor.drop_folder import NotTakeable, open_message, waiting

ME = os.geteuid()
NAME = "0123456789abcdef" * 2
MAX = 1000
NOW = 1_800_000_000.0


@pytest.fixture
def drop(tmp_path):
    drop = tmp_path / "drop"
    assert {} == drop_folder.prepare(drop, {ME}, MAX)
    return drop


@pytest.fixture
def folder(drop):
    return drop / str(ME)


def whole(message=b"hello\n"):
    return front(Request(None, ("bob@b.example",)), len(message)) + message


def test_made(drop, folder):
    """Nobody else can look into an account's folder, nor list the accounts."""
    assert 0o711 == stat.S_IMODE(drop.stat().st_mode)
    assert 0o700 == stat.S_IMODE(folder.stat().st_mode)
    assert f"{MAX}\n" == (drop / "limits").read_text()
    assert 0o644 == stat.S_IMODE((drop / "limits").stat().st_mode)


def test_folder_of_who_is_no_user_any_more(drop, folder):
    """It goes, with the files in it; a folder within stays, out of reach."""
    (folder / NAME).write_bytes(whole())
    drop_folder.prepare(drop, set(), MAX)
    assert not folder.exists()

    drop_folder.prepare(drop, {ME}, MAX)
    (folder / "sub").mkdir()
    (folder / "sub" / "x").touch()
    drop_folder.prepare(drop, set(), MAX)
    assert ["x"] == os.listdir(folder / "sub")


def test_message(drop, folder):
    """What the command leaves is taken as it was left."""
    writing = Writer(str(folder), Request("a@b", ("c@d",)))
    writing.write(b"hello\n")
    name = writing.finish()
    writing.discard()
    assert [name] == waiting(drop, ME, NOW)
    found = open_message(drop, ME, name, MAX)
    assert found is not None
    with found:
        assert Request("a@b", ("c@d",)) == found.request
        assert b"hello\n" == os.pread(found.fd, 100, found.offset)
        drop_folder.remove(drop, ME, name, found.fd)

    assert [] == os.listdir(folder)
    assert open_message(drop, ME, name, MAX) is None


def hard_link(path):
    (path.parent / "x").write_bytes(whole())
    os.link(path.parent / "x", path)


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        lambda path: path.mkdir(),
        hard_link,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(whole()[:-1]),
        lambda path: path.write_bytes(whole() + b"x"),
        lambda path: path.write_bytes(b"x" * 10),
        lambda path: path.write_bytes(whole(b"x" * 300_000)),
    ],
    ids=["fifo", "folder", "link", "empty", "short", "long", "other", "large"],
)
def test_what_is_not_taken(drop, folder, make):
    """A plain file of the account's own, whole, or nothing; and nobody waits."""
    make(folder / NAME)
    with pytest.raises(NotTakeable):
        open_message(drop, ME, NAME, MAX)


def test_symbolic_link(drop, folder, tmp_path):
    """Nothing is read through one, not even what would be a message."""
    (tmp_path / "secret").write_bytes(whole())
    (folder / NAME).symlink_to(tmp_path / "secret")
    with pytest.raises(NotTakeable):
        open_message(drop, ME, NAME, MAX)
    drop_folder.remove(drop, ME, NAME)

    assert [] == os.listdir(folder)
    assert (tmp_path / "secret").exists()


def test_link_in_place_of_the_folder(drop, folder, tmp_path):
    """Nor is a folder looked into through one."""
    folder.rename(tmp_path / "mine")
    (tmp_path / "mine" / NAME).write_bytes(whole())
    folder.symlink_to(tmp_path / "mine")

    assert [] == waiting(drop, ME, NOW)
    with pytest.raises(StateUnusable):
        open_message(drop, ME, NAME, MAX)
    drop_folder.remove(drop, ME, NAME)

    assert (tmp_path / "mine" / NAME).exists()


def test_file_of_somebody_else(drop, folder, monkeypatch):
    """Whose folder it is does not make a file its own."""
    (folder / NAME).write_bytes(whole())
    folder.rename(drop / "12345")
    with pytest.raises(NotTakeable, match="another account's"):
        open_message(drop, 12345, NAME, MAX)


def test_another_file_in_its_place_stays(drop, folder):
    """What was not taken is not removed."""
    (folder / NAME).write_bytes(whole())
    found = open_message(drop, ME, NAME, MAX)
    assert found is not None
    with found:
        (folder / NAME).rename(folder / "old")
        (folder / NAME).write_bytes(whole(b"other\n"))
        drop_folder.remove(drop, ME, NAME, found.fd)

    assert (folder / NAME).exists()


def test_names_that_are_none(drop, folder):
    """Only what has a name is taken; what never got one goes when it is old."""
    for name in ("x", ".hidden", f".{NAME}", "..x"):
        (folder / name).write_bytes(whole())
    os.utime(folder / f".{NAME}", (NOW, NOW - 3600))
    assert [] == waiting(drop, ME, NOW)
    assert (folder / f".{NAME}").exists()

    os.utime(folder / f".{NAME}", (NOW, NOW - 2 * 86400))
    assert [] == waiting(drop, ME, NOW)
    assert not (folder / f".{NAME}").exists()
    assert (folder / ".hidden").exists()


def test_some_at_a_time(drop, folder, monkeypatch):
    """One account's thousand does not keep the others waiting."""
    monkeypatch.setattr(drop_folder, "AT_ONCE", 2)
    for number in range(5):
        (folder / f"{number:032x}").write_bytes(whole())

    assert 2 == len(waiting(drop, ME, NOW))
