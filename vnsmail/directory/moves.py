"""Hosts that move to another installation, and those that came from one.

    moved       a host that is packed, or is being: it is served suspended, whatever
                else is said of it, until somebody takes the move back
    unpacked    packs that became hosts here; for ever, so that none does twice

Rules of this file: what makes a pack's host exist and what says that the pack is used
up is one transaction; each change is durable when it returns.
"""

import time
from dataclasses import dataclass

from vnsmail.directory.file import DirectoryFile, no_host
from vnsmail.errors import Taken
from vnsmail.model import HostName

TABLES = """
CREATE TABLE moved (
    host TEXT PRIMARY KEY REFERENCES host ON DELETE CASCADE,
    pack TEXT NOT NULL,
    finished INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE unpacked (
    pack TEXT PRIMARY KEY,
    host TEXT NOT NULL,
    at REAL NOT NULL
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Move:
    """What became of a host that is to be elsewhere."""

    pack: str
    """Id of its pack; the same however often packing is begun."""
    finished: bool
    """The pack is whole, and may be a host elsewhere by now."""


@dataclass(frozen=True, slots=True)
class PackedUser:
    """A user with what it proves who it is with."""

    local_part: str
    suspended: bool
    quota: int | None
    password: str
    scram: str

    def __repr__(self) -> str:
        return f"PackedUser({self.local_part!r}, …)"


@dataclass(frozen=True, slots=True)
class PackedPeople:
    """Users, aliases and further senders of a host, as rows of the directory."""

    users: tuple[PackedUser, ...] = ()
    aliases: tuple[tuple[str, str, int], ...] = ()
    """Local part, target, position."""
    senders: tuple[tuple[str, str], ...] = ()
    """Local part, address."""


class MovesReader(DirectoryFile):
    """What can be asked of moves."""

    def move(self, host: HostName) -> Move | None:
        """Return the move of a host; None if it stays."""
        rows = self._rows("SELECT pack, finished FROM moved WHERE host = ?", host)
        return Move(rows[0][0], bool(rows[0][1])) if rows else None

    def unpacked(self, pack: str) -> str:
        """Return the host that a pack became here; empty if it did not."""
        rows = self._rows("SELECT host FROM unpacked WHERE pack = ?", pack)
        return str(rows[0][0]) if rows else ""

    def packed_people(self, host: HostName) -> PackedPeople:
        """Return the people of a host with all that is known of them."""
        users = self._rows(
            "SELECT local_part, suspended, quota, password, scram FROM user"
            " WHERE host = ? ORDER BY local_part",
            host,
        )
        aliases = self._rows(
            "SELECT local_part, target, position FROM alias WHERE host = ?"
            " ORDER BY local_part, position, rowid",
            host,
        )
        senders = self._rows(
            "SELECT local_part, address FROM sender WHERE host = ?"
            " ORDER BY local_part, address",
            host,
        )
        return PackedPeople(
            tuple(PackedUser(n, bool(s), q, p, k) for n, s, q, p, k in users),
            tuple(tuple(row) for row in aliases),
            tuple(tuple(row) for row in senders),
        )


class Moves(MovesReader):
    """Moves, to read and to change."""

    def begin_move(self, host: HostName, pack: str) -> Move:
        """Write down that an active host is being packed; again changes nothing.

        Raises:
            NotFound: no such host is active.
        """
        with self._change():
            if self._state(host) != "active":
                raise no_host(host)
            self._connection.execute(
                "INSERT INTO moved (host, pack) VALUES (?, ?) ON CONFLICT DO NOTHING",
                (host, pack),
            )
        found = self.move(host)
        assert found is not None  # noqa: S101  it was written just now
        return found

    def finish_move(self, host: HostName) -> None:
        """Write down that the pack of a host is whole."""
        with self._change():
            self._connection.execute(
                "UPDATE moved SET finished = 1 WHERE host = ?", (host,)
            )

    def cancel_move(self, host: HostName) -> None:
        """Write down that a host stays after all."""
        with self._change():
            self._connection.execute("DELETE FROM moved WHERE host = ?", (host,))

    def settle(
        self, host: HostName, people: PackedPeople, pack: str, *, again: bool = False
    ) -> None:
        """Make a host that is being made active, with its people; its pack is used up.

        Raises:
            NotFound: no such host is being made.
            Taken: the pack became a host here before, unless ``again``.
        """
        execute = self._connection.execute
        with self._change():
            if self._state(host) != "creating":
                raise no_host(host)
            before = self.unpacked(pack)
            if before and not again:
                raise Taken("pack", pack, f"it became {before} here")
            for user in people.users:
                execute(
                    "INSERT INTO user (host, local_part, suspended, quota, password,"
                    " scram) VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        *(host, user.local_part, user.suspended, user.quota),
                        *(user.password, user.scram),
                    ),
                )
            for alias in people.aliases:
                execute("INSERT INTO alias VALUES (?, ?, ?, ?)", (host, *alias))
            for sender in people.senders:
                execute("INSERT INTO sender VALUES (?, ?, ?)", (host, *sender))
            execute("UPDATE host SET state = 'active' WHERE name = ?", (host,))
            execute(
                "INSERT OR REPLACE INTO unpacked VALUES (?, ?, ?)",
                (pack, host, time.time()),
            )
