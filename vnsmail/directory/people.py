"""Users and aliases of the hosts in the directory.

Rules of this file: a user or alias belongs to one host and is found by the local part
alone, at any of the host's domains; what proves who somebody is (hashes, keys) is read
by ``credentials`` and by nothing else; each change is one durable transaction.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping

from vnsmail import model
from vnsmail.directory.file import DirectoryFile, no_host
from vnsmail.errors import BadInput, NotFound, Taken
from vnsmail.model import Alias, Credentials, HostName, User, domain_name

CATCH_ALL = model.CATCH_ALL

SEE_USERS = "see `vnsmail user list`"
SEE_ALIASES = "see `vnsmail alias list`"


class PeopleReader(DirectoryFile):
    """What can be asked of users and aliases."""

    def domain_owner(self, domain: HostName) -> HostName | None:
        """Return the active host that takes a domain's mail."""
        rows = self._rows(
            "SELECT host.name FROM domain JOIN host ON host = host.name"
            " WHERE domain.name = ? AND state = 'active'",
            domain,
        )
        return HostName(rows[0][0]) if rows else None

    def users(self, host: HostName) -> tuple[User, ...]:
        """Return the users of a host, by local part."""
        rows = self._rows(
            "SELECT local_part, suspended, quota FROM user"
            " WHERE host = ? ORDER BY local_part",
            host,
        )
        return tuple(User(host, name, bool(held), room) for name, held, room in rows)

    def find_user(self, address: str) -> User | None:
        """Return the user with that address at any domain of an active host."""
        local_part, at, domain = address.rpartition("@")
        try:
            host = self.domain_owner(domain_name(domain)) if at else None
        except BadInput:
            return None
        if host is None:
            return None
        rows = self._rows(
            "SELECT local_part, suspended, quota FROM user"
            " WHERE host = ? AND local_part = ?",
            host,
            local_part.lower(),
        )
        if not rows:
            return None
        found, suspended, quota = rows[0]
        return User(host, found, bool(suspended), quota)

    def credentials(self, host: HostName) -> Mapping[str, Credentials]:
        """Return what the users of a host prove who they are with, by local part.

        Those who have no password are not in it.
        """
        rows = self._rows(
            "SELECT local_part, password, scram FROM user"
            " WHERE host = ? AND password != ''",
            host,
        )
        return {name: Credentials(password, scram) for name, password, scram in rows}

    def senders(self, host: HostName) -> Mapping[str, tuple[str, ...]]:
        """Return the addresses that users may send as besides their own."""
        rows = self._rows(
            "SELECT local_part, address FROM sender"
            " WHERE host = ? ORDER BY local_part, address",
            host,
        )
        found: dict[str, tuple[str, ...]] = {}
        for name, address in rows:
            found[name] = (*found.get(name, ()), address)
        return found

    def aliases(self, host: HostName) -> tuple[Alias, ...]:
        """Return the aliases of a host, by local part; the catch-all is the first."""
        rows = self._rows(
            "SELECT local_part, target FROM alias"
            " WHERE host = ? ORDER BY local_part, position, rowid",
            host,
        )
        found: dict[str, list[str]] = {}
        for name, target in rows:
            found.setdefault(name, []).append(target)
        ordered = sorted(found, key=lambda name: (name != CATCH_ALL, name))
        return tuple(Alias(host, name, tuple(found[name])) for name in ordered)

    def secret(self, host: HostName) -> bytes:
        """Return a secret of a host's own, the same for ever and nobody else's.

        What one host's worker knows tells nothing of another's.
        """
        rows = self._rows("SELECT value FROM secret WHERE name = 'sign-in'")
        return hmac.digest(rows[0][0], host.encode(), hashlib.sha256)


class People(PeopleReader):
    """Users and aliases, to read and to change."""

    def add_user(self, user: User, credentials: Credentials | None = None) -> None:
        """Write down a user of an active host; without credentials nobody signs in.

        Raises:
            BadInput: the local part cannot be that of a mailbox.
            NotFound: there is no such host.
            Taken: the host has this user.
        """
        local_part = model.local_part(user.local_part)
        address = f"{local_part}@{user.host}"
        proofs = credentials or Credentials("", "")
        with self._change():
            if self._state(user.host) != "active":
                raise no_host(user.host)
            if self._has_user(user.host, local_part):
                raise Taken("user", address, f"{user.host} has this user already")
            self._connection.execute(
                "INSERT INTO user (host, local_part, suspended, quota, password, scram)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (
                    *(user.host, local_part, user.suspended, user.quota),
                    *(proofs.password, proofs.scram),
                ),
            )

    def remove_user(self, user: User) -> None:
        """Forget a user, and who and what it may send as.

        Raises:
            NotFound: the host has no such user.
        """
        with self._change():
            self._connection.execute(
                "DELETE FROM sender WHERE host = ? AND local_part = ?",
                (user.host, user.local_part),
            )
            self._connection.execute(
                "DELETE FROM login WHERE host = ? AND local_part = ?",
                (user.host, user.local_part),
            )
            self._of_user(
                "DELETE FROM user WHERE host = ? AND local_part = ?", user, ()
            )

    def set_credentials(self, user: User, credentials: Credentials) -> None:
        """Give a user another password; an empty one lets nobody sign in.

        Raises:
            NotFound: the host has no such user.
        """
        with self._change():
            self._of_user(
                "UPDATE user SET password = ?, scram = ?"
                " WHERE host = ? AND local_part = ?",
                user,
                (credentials.password, credentials.scram),
            )

    def set_suspended(self, user: User, suspended: bool) -> None:
        """Let a user sign in no more, or again.

        Raises:
            NotFound: the host has no such user.
        """
        with self._change():
            self._of_user(
                "UPDATE user SET suspended = ? WHERE host = ? AND local_part = ?",
                user,
                (suspended,),
            )

    def set_quota(self, user: User, quota: int | None) -> None:
        """Set the octets that a user's mailbox may have; None is any number.

        Raises:
            NotFound: the host has no such user.
        """
        with self._change():
            self._of_user(
                "UPDATE user SET quota = ? WHERE host = ? AND local_part = ?",
                user,
                (quota,),
            )

    def allow_sender(self, user: User, address: str) -> None:
        """Let a user send as one more address; doing it twice changes nothing.

        Raises:
            NotFound: the host has no such user.
        """
        with self._change():
            self._require_user(user)
            self._connection.execute(
                "INSERT OR IGNORE INTO sender VALUES (?, ?, ?)",
                (user.host, user.local_part, address),
            )

    def forbid_sender(self, user: User, address: str) -> None:
        """Take back ``allow_sender``.

        Raises:
            NotFound: the host has no such user, or the user no such address.
        """
        with self._change():
            self._require_user(user)
            self._connection.execute(
                "DELETE FROM sender WHERE host = ? AND local_part = ? AND address = ?",
                (user.host, user.local_part, address),
            )
            if not self._connection.changes():
                whose = f"{user.local_part}@{user.host}"
                raise NotFound("sender", address, f"{whose} is not allowed it")

    def add_alias(self, alias: Alias) -> None:
        """Write down targets of an alias, behind those it has.

        Raises:
            BadInput: the local part cannot be that of an alias.
            NotFound: there is no such host.
            Taken: it has one of the targets.
        """
        local_part = model.alias_local_part(alias.local_part)
        address = f"{local_part}@{alias.host}"
        with self._change():
            if self._state(alias.host) != "active":
                raise no_host(alias.host)
            had = self._targets(alias.host, local_part)
            for position, target in enumerate(alias.targets, len(had)):
                if target in had:
                    raise Taken("alias", address, f"it goes to {target} already")
                self._connection.execute(
                    "INSERT INTO alias VALUES (?, ?, ?, ?)",
                    (alias.host, local_part, target, position),
                )

    def remove_alias(
        self, host: HostName, local_part: str, targets: Iterable[str] = ()
    ) -> None:
        """Forget an alias, or some of its targets; without any it is none any more.

        Raises:
            NotFound: the host has no such alias, or the alias no such target.
        """
        address = f"{local_part}@{host}"
        with self._change():
            had = self._targets(host, local_part)
            if not had:
                raise NotFound("alias", address, SEE_ALIASES)
            for target in tuple(targets) or had:
                if target not in had:
                    raise NotFound("target", target, f"{address} does not go there")
                self._connection.execute(
                    "DELETE FROM alias"
                    " WHERE host = ? AND local_part = ? AND target = ?",
                    (host, local_part, target),
                )

    # Within ---------------------------------------------------------------------

    def _targets(self, host: HostName, local_part: str) -> tuple[str, ...]:
        rows = self._rows(
            "SELECT target FROM alias WHERE host = ? AND local_part = ?"
            " ORDER BY position, rowid",
            host,
            local_part,
        )
        return tuple(target for (target,) in rows)

    def _has_user(self, host: HostName, local_part: str) -> bool:
        rows = self._rows(
            "SELECT 1 FROM user WHERE host = ? AND local_part = ?", host, local_part
        )
        return bool(rows)

    def _require_user(self, user: User) -> None:
        if not self._has_user(user.host, user.local_part):
            raise _no_user(user)

    def _of_user(
        self, statement: str, user: User, values: tuple[str | int | None, ...]
    ) -> None:
        self._connection.execute(statement, (*values, user.host, user.local_part))
        if not self._connection.changes():
            raise _no_user(user)


def _no_user(user: User) -> NotFound:
    return NotFound("user", f"{user.local_part}@{user.host}", SEE_USERS)
