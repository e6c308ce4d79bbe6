import os
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from vnsmail import database
from vnsmail.database import (
    UnusableFile,
    open_file,
    open_read_only,
    reason,
    roll_back,
    sync_folder,
)

SCHEMA = "CREATE TABLE thing (name TEXT) STRICT"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "things.db"


@pytest.fixture
def things(path):
    connection = open_file(path, SCHEMA, 3)
    yield connection
    connection.close()


def names(connection):
    return [name for (name,) in connection.execute("SELECT name FROM thing")]


def test_a_new_file(path, things):
    """It is its owner's alone, has its tables, and keeps what was promised."""
    things.execute("INSERT INTO thing VALUES ('one')")

    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert ["one"] == names(things)
    assert ("wal", 2, 3) == (
        things.pragma("journal_mode"),
        things.pragma("synchronous"),
        things.pragma("user_version"),
    )


def test_opened_again(path, things):
    """What is there stays."""
    things.execute("INSERT INTO thing VALUES ('one')")
    things.close()
    with closing(open_file(path, SCHEMA, 3)) as again:
        assert ["one"] == names(again)


def test_an_old_umask(path):
    """Whatever the umask, nobody else reads it."""
    before = os.umask(0)
    try:
        open_file(path, SCHEMA, 1).close()
    finally:
        os.umask(before)

    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def test_read_only(path, things):
    """A reader sees what is there, and changes nothing."""
    things.execute("INSERT INTO thing VALUES ('one')")
    with closing(open_read_only(path, 3)) as reader:
        assert ["one"] == names(reader)
        with pytest.raises(apsw.ReadOnlyError):
            reader.execute("INSERT INTO thing VALUES ('two')")


def test_read_only_makes_nothing(path):
    """A file that is not there is not made by looking."""
    with pytest.raises(apsw.CantOpenError):
        open_read_only(path, 3)

    assert not path.exists()


@pytest.mark.parametrize(
    "opened", [open_read_only, lambda p, n: open_file(p, SCHEMA, n)]
)
def test_another_version(path, things, opened):
    """A file of another program's version is left alone."""
    things.close()
    with pytest.raises(UnusableFile) as caught:
        opened(path, 4)

    expected = (
        "it has version 3 of its tables, this program reads 4; use the program that "
        "wrote it"
    )
    assert expected == reason(caught.value)
    open_file(path, SCHEMA, 3).close()


@pytest.mark.parametrize(
    "data", [b"nonsense" * 1000, b"SQLite format 3\0" + b"x" * 5000]
)
def test_damaged(path, data):
    """A damaged file is told, and left as it is."""
    path.write_bytes(data)
    for opened in (lambda: open_file(path, SCHEMA, 3), lambda: open_read_only(path, 3)):
        with pytest.raises(apsw.Error) as caught:
            opened()
        assert reason(caught.value)

    assert data == path.read_bytes()


def test_a_schema_that_fails_leaves_nothing(path):
    """The tables come all or not at all."""
    with pytest.raises(apsw.SQLError):
        open_file(path, f"{SCHEMA}; CREATE NONSENSE", 3)
    with closing(open_file(path, SCHEMA, 3)) as connection:
        assert [] == names(connection)


def test_one_process_alone(path):
    """A file that is held for one process is open for no other."""
    script = (
        "import sys, pathlib; from vnsmail import database\n"
        "try:\n"
        f"    database.open_file(pathlib.Path(sys.argv[1]), {SCHEMA!r}, 3,\n"
        "        exclusive=True)\n"
        "except Exception as error: print(database.reason(error))\n"
    )
    with closing(open_file(path, SCHEMA, 3, exclusive=True)):
        assert not path.with_name("things.db-shm").exists()
        command = [sys.executable, "-P", "-c", script, str(path)]
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=True
        )

    assert "another process has it open" == done.stdout.strip()
    with closing(open_file(path, SCHEMA, 3)) as again:
        assert [] == names(again)


def test_a_file_system_without_a_log(path, monkeypatch):
    """Where there can be no write-ahead log, durability cannot be promised."""
    monkeypatch.setattr(database, "_require_log", lambda _: _require("delete"))

    def _require(mode):
        monkeypatch.undo()
        database._require_log(mode)

    with pytest.raises(UnusableFile, match="cannot hold a write-ahead log"):
        open_file(path, SCHEMA, 3)


@pytest.mark.parametrize("version", ["3.40.1", "3.51.2", "3.9.99"])
def test_an_old_sqlite(path, monkeypatch, version):
    """A library that can corrupt a file does not get it."""
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: version)
    with pytest.raises(UnusableFile, match=f"SQLite {version} can corrupt it"):
        open_file(path, SCHEMA, 3)
    with pytest.raises(UnusableFile):
        open_read_only(path, 3)

    assert not path.exists()


@pytest.mark.parametrize("version", ["3.51.3", "3.100.0", "4.0.0"])
def test_a_newer_sqlite(version):
    """Numbers are compared as numbers."""
    database._require_sqlite(version)


def test_roll_back(things):
    """A transaction ends without effect, also one that SQLite has ended."""
    things.execute("BEGIN IMMEDIATE")
    things.execute("INSERT INTO thing VALUES ('one')")
    roll_back(things)
    roll_back(things)

    assert [] == names(things)


def test_no_place_for_it(tmp_path):
    """A folder that is not there is the system's error."""
    with pytest.raises(OSError, match="No such file") as caught:
        open_file(tmp_path / "none" / "things.db", SCHEMA, 3)

    assert "no such file or directory" == reason(caught.value)


def test_reasons():
    """Words that a person understands."""
    io_error: Any = apsw.IOError("disk I/O error")
    io_error.oserror = 28

    assert "disk I/O error (No space left on device)" == reason(io_error)
    assert "another process has it open" == reason(apsw.BusyError("database is locked"))
    assert "file is not a database" == reason(
        apsw.NotADBError("file is not a database")
    )
    assert "oh" == reason(OSError("oh"))


def test_names_are_made_durable(tmp_path, monkeypatch):
    """The folder itself is synced, and only a folder."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd)))
    sync_folder(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        sync_folder(tmp_path / "file")

    assert [os.stat(tmp_path).st_ino] == [each.st_ino for each in synced]


def test_a_new_name_is_synced(path, monkeypatch):
    """Before anything is written to a new file, its name is on disk."""
    synced: list[Path] = []
    monkeypatch.setattr(database, "sync_folder", synced.append)
    open_file(path, SCHEMA, 3).close()
    open_file(path, SCHEMA, 3).close()

    assert [path.parent] == synced
