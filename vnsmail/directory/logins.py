"""Local accounts that send as users of virtual hosts.

Rules of this file: an account is one user of one host, a user may have several
accounts; who it is goes by the uid, which is what the kernel says of a caller; the name
stands for people, and in mail that names an account without a domain.
"""

from vnsmail import model
from vnsmail.directory.file import DirectoryFile
from vnsmail.errors import NotFound, Taken
from vnsmail.model import HostName, Login, User

_ACTIVE = (
    "SELECT uid, login.name, login.host, login.local_part FROM login"
    " JOIN user USING (host, local_part)"
    " JOIN host ON login.host = host.name WHERE state = 'active'"
)

DROP_ORPHANS = (
    "DELETE FROM login WHERE NOT EXISTS (SELECT 1 FROM user"
    " WHERE user.host = login.host AND user.local_part = login.local_part)"
)
"""To be carried out where users go: the next of that name is somebody else."""


class LoginsReader(DirectoryFile):
    """What can be asked of accounts."""

    def logins(self, host: HostName | None = None) -> tuple[Login, ...]:
        """Return the accounts that may send, of one active host or of all."""
        rows = self._rows(f"{_ACTIVE} ORDER BY login.host, login.local_part, uid")
        found = (_login(*row) for row in rows)
        return tuple(each for each in found if host in {None, each.user.host})

    def login(self, uid: int) -> Login | None:
        """Return whom an account sends as, if it may."""
        rows = self._rows(f"{_ACTIVE} AND uid = CAST(? AS INTEGER)", str(uid))
        return _login(*rows[0]) if rows else None


class Logins(LoginsReader):
    """Accounts, to read and to change."""

    def add_login(self, login: Login) -> None:
        """Let an account send as a user of an active host; twice changes nothing.

        Raises:
            NotFound: there is no such user.
            Taken: the account is another user.
        """
        user = login.user
        address = f"{user.local_part}@{user.host}"
        with self._change():
            self._connection.execute(DROP_ORPHANS)
            rows = self._rows(
                "SELECT 1 FROM user JOIN host ON host = host.name"
                " WHERE host = ? AND local_part = ? AND state = 'active'",
                *(user.host, user.local_part),
            )
            if not rows:
                raise NotFound("user", address, "see `vnsmail user list`")
            earlier = self._rows(
                "SELECT local_part || '@' || host FROM login"
                " WHERE uid = CAST(? AS INTEGER)",
                str(login.uid),
            )
            if earlier and earlier[0][0] != address:
                remedy = f"it is {earlier[0][0]}; run `vnsmail login remove {login.name}` first"
                raise Taken("account", login.name, remedy)
            self._connection.execute(
                "INSERT OR REPLACE INTO login VALUES (?, ?, ?, ?)",
                (login.uid, model.account(login.name), user.host, user.local_part),
            )

    def remove_login(self, account: str) -> None:
        """Let an account send no more.

        Args:
            account: its name as it was given, or its uid.

        Raises:
            NotFound: it is no user.
        """
        with self._change():
            self._connection.execute(
                "DELETE FROM login WHERE name = ? OR CAST(uid AS TEXT) = ?",
                (account, account),
            )
            if not self._connection.changes():
                raise NotFound("account", account, "see `vnsmail login list`")


def _login(uid: int, name: str, host: str, local_part: str) -> Login:
    return Login(uid, name, User(HostName(host), local_part))
