"""The directory's file, as all of its readers and writers use it.

Rules of this file: it knows of hosts only whether there is one; errors of SQLite and of
the system become StateUnusable here and nowhere else.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw

from vnsmail import database
from vnsmail.errors import NotFound, StateUnusable


class DirectoryFile:
    """An open file."""

    def __init__(self, connection: apsw.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    def close(self) -> None:
        """Close the file."""
        with in_our_words(self._path):
            self._connection.close()

    def _rows(self, statement: str, *values: str) -> list[Any]:
        with in_our_words(self._path):
            return self._connection.execute(statement, values).fetchall()

    def _state(self, name: str) -> str:
        """Return the state of a host, empty if there is none."""
        rows = self._rows("SELECT state FROM host WHERE name = ?", name)
        return str(rows[0][0]) if rows else ""

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """Do all of it durably, or nothing."""
        with in_our_words(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                database.roll_back(self._connection)
                raise


@contextlib.contextmanager
def in_our_words(path: Path) -> Iterator[None]:
    """Turn errors of the file into ours.

    Raises:
        StateUnusable: the file cannot be used.
    """
    try:
        yield
    except (apsw.Error, OSError) as error:
        remedy = "free it, or put back a copy"
        raise StateUnusable(str(path), database.reason(error), remedy) from error


def no_host(name: str) -> NotFound:
    """Return the error that there is no host of that name."""
    return NotFound("virtual host", name, "see `vnsmail host list`")
