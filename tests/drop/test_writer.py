import os
from pathlib import Path

import pytest

from vnsmail.drop import form, writer
from vnsmail.drop.form import Request, read_front
from vnsmail.drop.writer import CannotDrop, Place, Writer
from vnsmail.settings import layout

REQUEST = Request("ann@a.example", ("bob@b.example",))
ME = str(os.geteuid())


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "1000"
    folder.mkdir()
    return folder


def drop(folder, message=b"hello\n", request=REQUEST, **options):
    dropping = Writer(str(folder), request, **options)
    try:
        for at in range(0, len(message), 3):
            dropping.write(message[at : at + 3])
        name = dropping.finish()
        dropping.keep()
        return name
    finally:
        dropping.discard()


def no_tmpfile(monkeypatch):
    """A file system that has no files without a name."""
    real = os.open

    def refuse(path, flags, *mode, **options):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", refuse)


@pytest.mark.parametrize("named", [False, True])
def test_whole_message(folder, monkeypatch, named):
    """It has what is asked in front, and its length, and nobody else may read it."""
    if named:
        no_tmpfile(monkeypatch)
    name = drop(folder)
    (file,) = folder.iterdir()
    data = file.read_bytes()
    request, start, size = read_front(data)

    assert (name, REQUEST, b"hello\n", 6) == (file.name, request, data[start:], size)
    assert form.is_name(name)
    assert 0o600 == file.stat().st_mode & 0o777
    assert 1 == file.stat().st_nlink


@pytest.mark.parametrize("named", [False, True])
def test_nothing_is_left_of_half_a_message(folder, monkeypatch, named):
    """Until it is finished nobody sees a message."""
    if named:
        no_tmpfile(monkeypatch)
    dropping = Writer(str(folder), REQUEST)
    dropping.write(b"hel")
    assert not any(form.is_name(each) for each in os.listdir(folder))
    dropping.discard()

    assert [] == os.listdir(folder)


def test_too_large(folder):
    """It is refused as soon as that is known."""
    with pytest.raises(CannotDrop, match="larger than 10 bytes") as caught:
        drop(folder, b"x" * 11, max_size=10)

    assert (os.EX_DATAERR, []) == (caught.value.code, os.listdir(folder))


def test_too_many(folder, monkeypatch):
    """One account does not fill the disk while nobody takes anything."""
    monkeypatch.setattr(writer, "MAX_WAITING", 2)
    drop(folder)
    drop(folder)
    with pytest.raises(CannotDrop, match="is vnsmail running") as caught:
        drop(folder)

    assert os.EX_TEMPFAIL == caught.value.code


def test_full_disk(folder, monkeypatch):
    """What the disk does not take is not left."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotDrop, match="No space left") as caught:
        drop(folder)

    assert (os.EX_CANTCREAT, []) == (caught.value.code, os.listdir(folder))


def test_synced_before_it_has_its_name(folder, monkeypatch):
    """A name stands for a message that is on the disk."""
    names = []
    real = os.fsync

    def watched(fd):
        names.append(os.listdir(folder))
        real(fd)

    monkeypatch.setattr(os, "fsync", watched)
    name = drop(folder)

    assert [[], [name]] == names


def test_arguments_that_cannot_be(folder):
    with pytest.raises(CannotDrop) as caught:
        drop(folder, request=Request("a\nto b"))

    assert os.EX_USAGE == caught.value.code


# Where --------------------------------------------------------------------------------


@pytest.mark.parametrize("root", [None, "/srv/x"])
def test_places_are_those_of_the_settings(root):
    """The command does not load them, and agrees with them."""
    known = layout(Path(root) if root else None)
    place = Place(root)

    assert (str(known.drop), str(known.drop_socket)) == (place.drop, place.socket)


def made(root, *names):
    drop = root / "drop"
    drop.mkdir()
    for name in names:
        (drop / str(name)).mkdir()
    return drop


def test_folder_of_the_owner(tmp_path):
    """Whose the installation is has the folder of root in it."""
    drop = made(tmp_path, 0)

    assert str(drop / "0") == Place(str(tmp_path)).folder()


def test_account_without_a_folder(tmp_path):
    """Who is no user is told so, and by whom it can be changed."""
    made(tmp_path, 12345)
    with pytest.raises(CannotDrop, match="vnsmail login add") as caught:
        Place(str(tmp_path)).folder()

    assert os.EX_NOPERM == caught.value.code


def test_link_in_place_of_the_folder(tmp_path):
    """No link is followed."""
    drop = made(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (drop / "0").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CannotDrop, match="no user"):
        Place(str(tmp_path)).folder()


def test_no_installation(tmp_path):
    with pytest.raises(CannotDrop, match="no drop here") as caught:
        Place(str(tmp_path / "x")).folder()

    assert os.EX_UNAVAILABLE == caught.value.code


@pytest.mark.parametrize(("text", "size"), [("123\n", 123), ("x\n", 0), (None, 0)])
def test_limit(tmp_path, text, size):
    drop = made(tmp_path)
    if text is not None:
        (drop / "limits").write_text(text)

    assert size == Place(str(tmp_path)).max_size()
