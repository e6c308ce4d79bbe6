import os
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.errors import QueueUnavailable, StateUnusable
from vnsmail.mailbox.maildir import deliver, holds, name_of, unique_name
from vnsmail.queue.body import Body

NOW = 1_800_000_000.25


def put(
    folder,
    body=b"Subject: hi\r\n\r\nhello\r\n",
    return_path="ann@alpha.example",
    name="",
):
    return deliver(
        folder,
        Body(body),
        return_path=return_path,
        delivered_to="bob@b.example",
        name=name or unique_name(NOW),
    )


def names(folder, below):
    return [path.name for path in (folder / below).iterdir()]


@pytest.mark.parametrize("body", [b"", b"\n.\r\n\x00\xff no end", b"x\r\n" * 99999])
def test_bytes_are_kept_behind_two_fields(tmp_path, body):
    """The message follows Return-Path and Delivered-To, byte for byte."""
    file = put(tmp_path / "mail" / "bob", body)

    head = b"Return-Path: <ann@alpha.example>\r\nDelivered-To: bob@b.example\r\n"
    assert file.read_bytes() == head + body


def test_null_reverse_path(tmp_path):
    """A notification has an empty return path."""
    file = put(tmp_path, return_path="")

    assert file.read_bytes().startswith(b"Return-Path: <>\r\n")


def test_message_is_new_and_nothing_is_left_behind(tmp_path):
    """The file is in new; tmp and cur are there and empty."""
    folder = tmp_path / "mail" / "bob"
    file = put(folder)

    assert file.parent == folder / "new"
    assert names(folder, "new") == [file.name]
    assert names(folder, "tmp") == names(folder, "cur") == []


def test_only_the_owner_reads_it(tmp_path):
    """Folders are 0700 and the file 0600, whatever the umask."""
    before = os.umask(0)
    try:
        put(tmp_path / "mail" / "bob")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "mail").rglob("*")}

    assert modes == {0o700, 0o600}


def test_every_delivery_is_its_own_file(tmp_path):
    """Two messages of one instant are two files."""
    first, second = put(tmp_path), put(tmp_path)

    assert first != second
    assert len(names(tmp_path, "new")) == 2


def test_file_is_synced_before_it_is_named_and_the_name_after(tmp_path, monkeypatch):
    """A message whose delivery returned outlives a power cut."""
    put(tmp_path)
    happened = []
    sync, rename = os.fsync, os.rename

    def synced(fd):
        happened.append(("sync", Path(f"/proc/self/fd/{fd}").readlink().parent.name))
        sync(fd)

    def renamed(source, target):
        happened.append(("rename", Path(target).parent.name))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    put(tmp_path)

    assert happened == [("sync", "tmp"), ("rename", "new"), ("sync", tmp_path.name)]


def test_folders_are_synced_when_they_are_made(tmp_path, monkeypatch):
    """A new mailbox outlives a power cut with everything above it."""
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink())
    )
    put(tmp_path / "mail" / "bob")

    assert {tmp_path, tmp_path / "mail", tmp_path / "mail" / "bob"} <= set(synced)


def test_folder_that_is_a_file(tmp_path):
    """A mailbox that cannot be made is told with its path."""
    (tmp_path / "bob").write_bytes(b"")

    with pytest.raises(StateUnusable, match="bob"):
        put(tmp_path / "bob")


def test_failure_leaves_nothing(tmp_path):
    """A body that breaks off is no message, and no rest in tmp."""
    put(tmp_path)
    body = Body(b"head", tmp_path / "gone", 10)

    with pytest.raises(QueueUnavailable):
        deliver(tmp_path, body, return_path="", delivered_to="b@b.example", name="1.x")
    assert len(names(tmp_path, "new")) == 1
    assert names(tmp_path, "tmp") == []


@pytest.mark.parametrize("address", ["a@b.example>\r\nX: y", "a\0@b.example", "a\x7f"])
def test_address_with_control_characters(tmp_path, address):
    """No address can add a header field."""
    with pytest.raises(ValueError, match="control character"):
        put(tmp_path, return_path=address)


@given(st.floats(0, 4e9), st.text())
def test_name(now, key):
    """A name starts with the time, has no slash and no colon, and is always the same."""
    name = name_of(now, key)

    assert re.fullmatch(rf"{int(now)}\.M\d{{1,6}}Q[0-9a-f]{{32}}\.[^/:]+", name)
    assert name == name_of(now, key) != name_of(now, key + "x")


@pytest.mark.parametrize("suffix", [None, "", ":2,", ":2,RS"])
def test_what_was_delivered_is_found_by_its_name(tmp_path, suffix):
    """Unseen, seen, answered: it is there; not so if only a similar one is."""
    name = name_of(NOW, "id bob@b.example")
    assert not holds(tmp_path, name)
    file = put(tmp_path, name=name)
    if suffix is not None:
        file.rename(tmp_path / "cur" / f"{name}{suffix}")

    assert holds(tmp_path, name)
    assert not holds(tmp_path, name_of(NOW, "id eve@b.example"))
    assert not holds(tmp_path, name[:-1])


def test_half_a_message_is_none(tmp_path):
    """What a crash left in tmp is not there, and not in the way."""
    name = name_of(NOW, "id bob@b.example")
    put(tmp_path, name=name).rename(tmp_path / "tmp" / name)
    assert not holds(tmp_path, name)
    put(tmp_path, name=name)

    assert holds(tmp_path, name)
    assert [name] == names(tmp_path, "new")
