"""The directory: a SQLite file that says which virtual hosts and users should exist.

A host is in one of three states, which are the journal of its making and unmaking:

    creating      its network may be half there; to be removed after a crash
    active        it should exist
    destroying    its network may be half gone; to be removed after a crash

Rules of this file: each change is one durable transaction; a name, address or domain
has one holder, whatever the holder's state; what is refused is refused with the name of
the holder. Synchronous; one thread.
"""

import contextlib
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

import apsw

from vnsmail import database
from vnsmail.directory.file import in_our_words, no_host
from vnsmail.directory.logins import DROP_ORPHANS, Logins, LoginsReader
from vnsmail.directory.moves import TABLES, Moves, MovesReader
from vnsmail.directory.people import People, PeopleReader
from vnsmail.errors import NotPrivileged, Taken
from vnsmail.model import (
    Authentication,
    Context,
    Engine,
    HostName,
    IPAddress,
    Limits,
    Relay,
    SourceAddress,
    SourceCheck,
    Uplink,
    VirtualHost,
)

VERSION = 4

SCHEMA = """
CREATE TABLE host (
    name TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('creating', 'active', 'destroying')),
    context TEXT NOT NULL,
    link TEXT NOT NULL,
    uplink TEXT,
    mtu INTEGER,
    vlan INTEGER,
    source_check TEXT NOT NULL DEFAULT 'strict',
    messages_per_hour INTEGER,
    connections INTEGER,
    queue_bytes INTEGER,
    suspended INTEGER NOT NULL DEFAULT 0,
    helo TEXT,
    authentication TEXT NOT NULL DEFAULT 'mark',
    renamed_from TEXT,
    engine TEXT NOT NULL DEFAULT 'native'
) STRICT;
CREATE TABLE address (
    address TEXT PRIMARY KEY,
    prefix_length INTEGER NOT NULL,
    host TEXT NOT NULL REFERENCES host ON DELETE CASCADE,
    position INTEGER NOT NULL
) STRICT;
CREATE TABLE gateway (
    address TEXT NOT NULL,
    host TEXT NOT NULL REFERENCES host ON DELETE CASCADE,
    position INTEGER NOT NULL
) STRICT;
CREATE TABLE domain (
    name TEXT PRIMARY KEY,
    host TEXT NOT NULL REFERENCES host ON DELETE CASCADE,
    position INTEGER NOT NULL
) STRICT;
CREATE TABLE user (
    host TEXT NOT NULL REFERENCES host ON DELETE CASCADE,
    local_part TEXT NOT NULL,
    suspended INTEGER NOT NULL DEFAULT 0,
    quota INTEGER,
    password TEXT NOT NULL DEFAULT '',
    scram TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (host, local_part)
) STRICT;
"""

SINCE_2 = """
CREATE TABLE resolver (
    address TEXT NOT NULL,
    host TEXT NOT NULL REFERENCES host ON DELETE CASCADE,
    position INTEGER NOT NULL
) STRICT;
CREATE TABLE public_address (
    address TEXT NOT NULL,
    host TEXT NOT NULL REFERENCES host ON DELETE CASCADE,
    position INTEGER NOT NULL
) STRICT;
CREATE TABLE alias (
    host TEXT NOT NULL REFERENCES host ON DELETE CASCADE,
    local_part TEXT NOT NULL,
    target TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (host, local_part, target)
) STRICT;
"""
"""What version 1 did not have. An alias of local part * takes what nobody else does."""

SINCE_3 = (
    """
CREATE TABLE sender (
    host TEXT NOT NULL REFERENCES host ON DELETE CASCADE,
    local_part TEXT NOT NULL,
    address TEXT NOT NULL,
    PRIMARY KEY (host, local_part, address)
) STRICT;
CREATE TABLE secret (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;
INSERT INTO secret VALUES ('sign-in', randomblob(32));
CREATE TABLE login (
    uid INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    host TEXT NOT NULL REFERENCES host ON DELETE CASCADE,
    local_part TEXT NOT NULL
) STRICT;
"""
    + TABLES
)
"""What version 2 did not have. A sender is an address that a user may send as besides
its own; the secret is what answers for users who are not there are made of."""

SINCE_4 = """
CREATE TABLE relay (
    host TEXT PRIMARY KEY REFERENCES host ON DELETE CASCADE,
    server TEXT NOT NULL,
    user TEXT NOT NULL,
    password_file TEXT NOT NULL
) STRICT;
"""
"""What version 3 did not have. A password is never in here."""

MIGRATIONS = {
    1: """
ALTER TABLE host ADD COLUMN mtu INTEGER;
ALTER TABLE host ADD COLUMN vlan INTEGER;
ALTER TABLE host ADD COLUMN source_check TEXT NOT NULL DEFAULT 'strict';
ALTER TABLE host ADD COLUMN messages_per_hour INTEGER;
ALTER TABLE host ADD COLUMN connections INTEGER;
ALTER TABLE host ADD COLUMN queue_bytes INTEGER;
ALTER TABLE host ADD COLUMN suspended INTEGER NOT NULL DEFAULT 0;
ALTER TABLE user ADD COLUMN suspended INTEGER NOT NULL DEFAULT 0;
ALTER TABLE user ADD COLUMN quota INTEGER;
ALTER TABLE user ADD COLUMN password TEXT NOT NULL DEFAULT '';
ALTER TABLE user ADD COLUMN scram TEXT NOT NULL DEFAULT '';
"""
    + SINCE_2,
    2: """
ALTER TABLE host ADD COLUMN helo TEXT;
ALTER TABLE host ADD COLUMN authentication TEXT NOT NULL DEFAULT 'mark';
ALTER TABLE host ADD COLUMN renamed_from TEXT;
"""
    + SINCE_3,
    3: """
ALTER TABLE host ADD COLUMN engine TEXT NOT NULL DEFAULT 'native';
"""
    + SINCE_4,
}
"""What turns the tables of a version into those of the next."""

SCHEMA += SINCE_2 + SINCE_3 + SINCE_4

State = Literal["creating", "active", "destroying"]

_FACTS = (
    "context, link, uplink, mtu, vlan, source_check, suspended,"
    " messages_per_hour, connections, queue_bytes, helo, authentication, engine"
)
_OF_A_HOST = ("address", "gateway", "resolver", "public_address", "domain", "relay")
"""The tables of what a host has, but for people."""


@contextlib.contextmanager
def open_to_read(path: Path) -> "Iterator[DirectoryReader]":
    """Open the directory without changing it; one that is not there yet is empty.

    Raises:
        NotPrivileged: it is another user's.
        StateUnusable: the file is damaged, or of another version.
    """
    try:
        there = path.exists()
        if there:
            with path.open("rb"):
                pass
    except PermissionError:
        action = f"read {path}"
        remedy = "run it as the user that started vnsmail (root)"
        raise NotPrivileged(action, remedy) from None
    with in_our_words(path):
        if there:
            connection = database.open_read_only(path, VERSION)
        else:
            connection = apsw.Connection(":memory:")
            connection.execute(SCHEMA)
    reader = DirectoryReader(connection, path)
    try:
        yield reader
    finally:
        reader.close()


class DirectoryReader(PeopleReader, LoginsReader, MovesReader):
    """What can be asked of the directory."""

    def hosts(self) -> tuple[VirtualHost, ...]:
        """Return the virtual hosts that should exist, by name."""
        rows = self._rows("SELECT name FROM host WHERE state = 'active' ORDER BY name")
        return tuple(self.host(name) for (name,) in rows)

    def host(self, name: HostName) -> VirtualHost:
        """Return a virtual host, in whatever state.

        Raises:
            NotFound: there is none of that name.
        """
        found = self.find(name)
        if found is None:
            raise no_host(name)
        return found

    def find(self, name: HostName) -> VirtualHost | None:
        """Return a virtual host, in whatever state, or None."""
        rows = self._rows(f"SELECT {_FACTS} FROM host WHERE name=?", name)  # noqa: S608  words of ours
        if not rows:
            return None
        context, link, uplink, mtu, vlan, check, suspended, *rest = rows[0]
        *limits, helo, authentication, engine = rest
        addresses = self._rows(
            "SELECT address, prefix_length FROM address WHERE host=? ORDER BY position",
            name,
        )
        domains = self._rows(
            "SELECT name FROM domain WHERE host=? ORDER BY position", name
        )
        return VirtualHost(
            name=name,
            context=Context(context),
            addresses=tuple(SourceAddress(ip_address(a), n) for a, n in addresses),
            domains=tuple(HostName(domain) for (domain,) in domains),
            link=link,
            uplink=Uplink(uplink) if uplink else None,
            gateways=self._listed("gateway", name),
            mtu=mtu,
            vlan=vlan,
            resolvers=self._listed("resolver", name),
            source_check=SourceCheck(check),
            public_addresses=self._listed("public_address", name),
            limits=Limits(*limits),
            suspended=bool(suspended),
            helo=HostName(helo) if helo else None,
            authentication=Authentication(authentication),
            engine=Engine(engine),
            relay=self._relay(name),
        )

    def being_destroyed(self) -> tuple[HostName, ...]:
        """Return the hosts whose destruction was begun."""
        return self._in_state("destroying")

    def unfinished(self) -> tuple[HostName, ...]:
        """Return the hosts half made or half destroyed: those to be removed."""
        return (*self._in_state("creating"), *self._in_state("destroying"))

    def check_free(self, host: VirtualHost) -> None:
        """Check that nobody has the name, the addresses and the domains of a host.

        Raises:
            Taken: somebody has; it says who.
        """
        if self._state(host.name):
            raise Taken("virtual host", host.name, self._remedy(host.name, "it exists"))
        self.check_claims(host)

    def check_claims(
        self, host: VirtualHost, renamed_from: HostName | None = None
    ) -> None:
        """Check that no other host has an address or a name of this one.

        With ``renamed_from``, what has that name is the host itself, and its own name
        has to be free.

        Raises:
            Taken: somebody has; it says who.
        """
        own = renamed_from or host.name
        if renamed_from and self._state(host.name):
            raise Taken("virtual host", host.name, self._remedy(host.name, "it exists"))
        wanted = [
            ("address", "address", "address", str(a.address)) for a in host.addresses
        ]
        wanted += [("domain", "domain", "name", domain) for domain in host.domains]
        # Who says another's name could not be told from that one by what it says.
        wanted += [("HELO name", "host", "helo", name) for name in host.domains]
        wanted.append(("HELO name", "domain", "name", host.says))
        wanted.append(("HELO name", "host", "helo", host.says))
        for what, table, column, value in wanted:
            named = "name" if table == "host" else "host"
            rows = self._rows(
                f"SELECT {named} FROM {table} WHERE {column} = ? AND {named} != ?",  # noqa: S608  words of ours
                value,
                own,
            )
            if rows:
                holder = rows[0][0]
                has_it = f"virtual host {holder} has it"
                raise Taken(what, value, self._remedy(holder, has_it))

    def renamed(self) -> tuple[tuple[HostName, HostName], ...]:
        """Return hosts with another name than some of what is theirs: old, new."""
        rows = self._rows(
            "SELECT renamed_from, name FROM host WHERE renamed_from IS NOT NULL"
            " ORDER BY name"
        )
        return tuple((HostName(old), HostName(new)) for old, new in rows)

    # Within ---------------------------------------------------------------------

    def _relay(self, host: HostName) -> Relay | None:
        columns = "server, user, password_file"
        rows = self._rows(f"SELECT {columns} FROM relay WHERE host=?", host)  # noqa: S608  words of ours
        return Relay(*rows[0]) if rows else None

    def _listed(self, table: str, host: HostName) -> tuple[IPAddress, ...]:
        rows = self._rows(
            f"SELECT address FROM {table} WHERE host=? ORDER BY position",  # noqa: S608  words of ours
            host,
        )
        return tuple(ip_address(address) for (address,) in rows)

    def _in_state(self, state: State) -> tuple[HostName, ...]:
        rows = self._rows("SELECT name FROM host WHERE state=? ORDER BY name", state)
        return tuple(HostName(name) for (name,) in rows)

    def _remedy(self, holder: str, fact: str) -> str:
        if self._state(holder) == "active":
            return f"{fact}; choose another, or `vnsmail host destroy {holder}` first"
        return f"{fact}, half made or destroyed; run `vnsmail host destroy {holder}`"


class Directory(DirectoryReader, People, Logins, Moves):
    """The directory, to read and to change.

    Args:
        path: the file; made with mode 0600 if it is missing.

    Raises:
        StateUnusable: the file is damaged, of another version, or cannot be made.
    """

    def __init__(self, path: Path) -> None:
        with in_our_words(path):
            connection = database.open_file(
                path, SCHEMA, VERSION, migrations=MIGRATIONS
            )
            connection.pragma("foreign_keys", 1)
        super().__init__(connection, path)

    def add_host(self, host: VirtualHost) -> None:
        """Write down a host that is being made, in state ``creating``.

        Raises:
            Taken: its name, an address or a domain has a holder.
        """
        with self._change():
            self.check_free(host)
            self._write(host, "creating")

    def declare(
        self,
        hosts: Iterable[tuple[VirtualHost, tuple[str, ...]]],
        going: Iterable[HostName],
    ) -> None:
        """Write down hosts as they should be, with their users, and those to go.

        All of it or nothing, in one transaction. The hosts are active from here on,
        whatever they were before. One that goes gives up its addresses and domains at
        once, so that another can have them; its name stays until it is removed.

        Raises:
            StateUnusable: two of them have the same address or domain.
        """
        listed = tuple(hosts)
        execute = self._connection.execute
        with self._change():
            for name in going:
                execute("UPDATE host SET state = 'destroying' WHERE name = ?", (name,))
                for table in (*_OF_A_HOST, "user", "alias", "sender"):
                    execute(f"DELETE FROM {table} WHERE host = ?", (name,))  # noqa: S608  words of ours
            # All that change go before one comes: they may have changed places.
            for host, _ in listed:
                for table in _OF_A_HOST:
                    execute(f"DELETE FROM {table} WHERE host = ?", (host.name,))  # noqa: S608  words of ours
            for host, users in listed:
                self._write(host, "active")
                self._keep_users(host.name, users)
            execute(DROP_ORPHANS)

    def change(self, host: VirtualHost) -> None:
        """Write down an active host as it should be from now on; its users stay.

        Raises:
            Taken: an address or a name has another holder.
            NotFound: no such host is active.
        """
        with self._change():
            if self._state(host.name) != "active":
                raise no_host(host.name)
            self.check_claims(host)
            for table in _OF_A_HOST:
                self._connection.execute(
                    f"DELETE FROM {table} WHERE host = ?",  # noqa: S608  words of ours
                    (host.name,),
                )
            self._write(host, "active")

    def rename(self, old: HostName, host: VirtualHost) -> None:
        """Write down that an active host has another name; all its own goes with it.

        That its folder still has the old one is written down as well, until
        ``finish_rename``.

        Raises:
            Taken: the name, or a domain, has another holder.
            NotFound: no such host is active.
        """
        execute = self._connection.execute
        with self._change():
            if self._state(old) != "active":
                raise no_host(old)
            if self._state(host.name):
                remedy = self._remedy(host.name, "it exists")
                raise Taken("virtual host", host.name, remedy)
            # Checked at the end, when every row that names the host has its new name.
            execute("PRAGMA defer_foreign_keys = 1")
            execute(
                "UPDATE host SET name = ?, renamed_from = ? WHERE name = ?",
                (host.name, old, old),
            )
            for table in self._tables_of_hosts():
                execute(
                    f"UPDATE {table} SET host = ? WHERE host = ?",  # noqa: S608  words of the schema
                    (host.name, old),
                )
            self.check_claims(host)
            for table in _OF_A_HOST:
                execute(f"DELETE FROM {table} WHERE host = ?", (host.name,))  # noqa: S608  words of ours
            self._write(host, "active")

    def finish_rename(self, name: HostName) -> None:
        """Write down that all that is a host's has its name."""
        with self._change():
            self._connection.execute(
                "UPDATE host SET renamed_from = NULL WHERE name = ?", (name,)
            )

    def activate(self, name: HostName) -> None:
        """Write down that a host is made.

        Raises:
            NotFound: no host of that name is being made.
        """
        self._move(name, "active", "creating")

    def begin_destroy(self, name: HostName) -> None:
        """Write down that a host is to be removed, in whatever state it is.

        Raises:
            NotFound: there is none of that name.
        """
        self._move(name, "destroying", "creating", "active", "destroying")

    def remove_host(self, name: HostName) -> None:
        """Forget a host whose network and files are gone, with its users.

        Raises:
            NotFound: there is none of that name.
        """
        with self._change():
            self._connection.execute("DELETE FROM host WHERE name = ?", (name,))
            if not self._connection.changes():
                raise no_host(name)

    def remove_hosts(self, names: Iterable[HostName]) -> None:
        """Forget hosts whose networks and files are gone, in one transaction."""
        with self._change():
            for name in names:
                self._connection.execute("DELETE FROM host WHERE name = ?", (name,))

    def _write(self, host: VirtualHost, state: State) -> None:
        """Write a host that is new, or one that has lost what ``_OF_A_HOST`` lists."""
        execute = self._connection.execute
        limits = host.limits
        facts = (
            *(host.context, host.link, host.uplink, host.mtu, host.vlan),
            *(host.source_check, host.suspended),
            *(limits.messages_per_hour, limits.connections, limits.queue_bytes),
            *(host.helo, host.authentication, host.engine),
        )
        # Not REPLACE: that would take the users with it.
        execute(
            f"INSERT INTO host (name, state, {_FACTS})"  # noqa: S608  words of ours
            f" VALUES (?, ?{', ?' * len(facts)}) ON CONFLICT (name) DO UPDATE SET"
            f" (state, {_FACTS}) = (excluded.state, {_excluded(_FACTS)})",
            (host.name, state, *facts),
        )
        if (relay := host.relay) is not None:
            execute(
                "INSERT INTO relay VALUES (?, ?, ?, ?)",
                (host.name, relay.server, relay.user, relay.password_file),
            )
        for position, each in enumerate(host.addresses):
            execute(
                "INSERT INTO address VALUES (?, ?, ?, ?)",
                (str(each.address), each.prefix_length, host.name, position),
            )
        for table, values in (
            ("domain", host.domains),
            ("gateway", host.gateways),
            ("resolver", host.resolvers),
            ("public_address", host.public_addresses),
        ):
            for position, value in enumerate(values):
                execute(
                    f"INSERT INTO {table} VALUES (?, ?, ?)",  # noqa: S608  words of ours
                    (str(value), host.name, position),
                )

    def _keep_users(self, host: HostName, local_parts: Iterable[str]) -> None:
        """Make these all the users of a host; those who stay keep their passwords."""
        wanted = set(local_parts)
        for user in self.users(host):
            if user.local_part not in wanted:
                self._connection.execute(
                    "DELETE FROM user WHERE host = ? AND local_part = ?",
                    (host, user.local_part),
                )
        for local_part in wanted:
            self._connection.execute(
                "INSERT OR IGNORE INTO user (host, local_part) VALUES (?, ?)",
                (host, local_part),
            )

    def _tables_of_hosts(self) -> tuple[str, ...]:
        """Return all tables whose rows belong to hosts."""
        rows = self._rows(
            "SELECT m.name FROM sqlite_schema m JOIN pragma_foreign_key_list(m.name) k"
            " WHERE m.type = 'table' AND k.\"table\" = 'host' AND k.\"from\" = 'host'"
        )
        return tuple(str(name) for (name,) in rows)

    def _move(self, name: HostName, to: State, *origins: State) -> None:
        with self._change():
            if self._state(name) not in origins:
                raise no_host(name)
            self._connection.execute(
                "UPDATE host SET state = ? WHERE name = ?", (to, name)
            )


def _excluded(columns: str) -> str:
    return ", ".join(f"excluded.{column.strip()}" for column in columns.split(","))
