"""Opening SQLite files the one way that keeps what was promised.

Write-ahead log and synchronous=FULL: a transaction is on disk when COMMIT returns
(sqlite.org/pragma.html#pragma_synchronous). What a file holds is the business of the
module that owns it (queue/store.py, directory/store.py).

Rules of this file: it never deletes or repairs a file; errors are apsw's and the
system's, and the owner of the file says them in its own words with ``reason``.
"""

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

import apsw

MINIMUM_SQLITE = (3, 51, 3)
"""Older ones can corrupt a file in WAL mode (sqlite.org/wal.html#walresetbug)."""

BUSY_TIMEOUT = 5000
"""Milliseconds to wait for another process's transaction."""


class UnusableFile(apsw.Error):
    """The file is a database, and not one that this program can use."""


def open_file(
    path: Path,
    schema: str,
    version: int,
    *,
    exclusive: bool = False,
    migrations: Mapping[int, str] | None = None,
) -> apsw.Connection:
    """Open a database to read and write, making it with its schema if it is new.

    Args:
        path: the file; made with mode 0600, in a folder that exists.
        schema: statements that make the tables of a new file.
        version: number of that schema, one or more, kept as user_version.
        exclusive: let no other process open it while this one lives.
        migrations: by version, statements that turn its tables into the next one's.

    Raises:
        apsw.Error: no database, corrupt, of another version, or held by a process.
        OSError: the file cannot be made.
    """
    _require_sqlite(apsw.sqlite_lib_version())
    _make(path)
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.set_busy_timeout(0 if exclusive else BUSY_TIMEOUT)
        if exclusive:
            # Before the first access to the log: it then needs no file of shared
            # memory, and the lock is held from here to close (sqlite.org/wal.html).
            connection.pragma("locking_mode", "EXCLUSIVE")
        _require_log(connection.pragma("journal_mode", "WAL"))
        connection.pragma("synchronous", "FULL")
        _bring_to(connection, schema, version, migrations or {})
    except BaseException:
        connection.close()
        raise
    return connection


def open_read_only(path: Path, version: int) -> apsw.Connection:
    """Open a database that exists, to read it only.

    Raises:
        apsw.Error: no database, corrupt, or of another version.
    """
    _require_sqlite(apsw.sqlite_lib_version())
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        connection.set_busy_timeout(BUSY_TIMEOUT)
        _require_version(connection, version)
    except BaseException:
        connection.close()
        raise
    return connection


def give_back_memory() -> None:
    """Give the system what closed files have left behind (malloc_trim(3)).

    The C library keeps it for the next that asks: with a thousand files, 200 MB.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def roll_back(connection: apsw.Connection) -> None:
    """End a transaction without effect; SQLite may have ended it by itself."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def reason(error: apsw.Error | OSError) -> str:
    """Return in words a person understands why a file could not be used."""
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    if isinstance(error, apsw.BusyError):
        return "another process has it open"
    text = str(error).removeprefix("SQLITE_").strip()
    number = getattr(error, "oserror", 0) or 0
    return f"{text} ({os.strerror(number)})" if number > 0 else text


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (fsync(2) on a file does not)."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _require_sqlite(found: str) -> None:
    if tuple(int(part) for part in found.split(".")) < MINIMUM_SQLITE:
        needed = ".".join(str(part) for part in MINIMUM_SQLITE)
        message = f"SQLite {found} can corrupt it; {needed} or later is needed"
        raise UnusableFile(message)


def _require_log(mode: object) -> None:
    if mode != "wal":
        message = "its file system cannot hold a write-ahead log"
        raise UnusableFile(message)


def _make(path: Path) -> None:
    # Never open and close a file that exists: close(2) would drop the locks that
    # another connection of this process holds on it (fcntl_locking(2)).
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except FileExistsError:
        return
    os.close(fd)
    sync_folder(path.parent)


def _bring_to(
    connection: apsw.Connection,
    schema: str,
    version: int,
    migrations: Mapping[int, str],
) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = connection.pragma("user_version")
        if found == 0:
            connection.execute(schema)
            connection.pragma("user_version", version)
        while 0 < found < version and found in migrations:
            connection.execute(migrations[found])
            found += 1
            connection.pragma("user_version", found)
        _require_version(connection, version)
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise


def _require_version(connection: apsw.Connection, version: int) -> None:
    found = connection.pragma("user_version")
    if found != version:
        message = (
            f"it has version {found} of its tables, this program reads {version}; "
            "use the program that wrote it"
        )
        raise UnusableFile(message)
