"""The passwords that hosts sign in at relays with: root's files, kept and told here.

``relay/HOST/password.json`` below the state folder, mode 0600, in a folder that is root's: a
worker gets the password of a host that it owns over its channel, and sees no file. It is
kept with the server and user that it is for, and told of no others.

Rules of this file: a file is changed by putting another in its place; no password is in an
error, a log or an answer.
"""

import os
import stat
from pathlib import Path

import msgspec

from vnsmail.database import sync_folder
from vnsmail.engines.protocol import RelayLogin
from vnsmail.errors import BadInput, StateUnusable
from vnsmail.model import HostName, Relay
from vnsmail.settings import Layout

FILE = "password.json"
LONGEST = 1024
"""Characters of a password (sasl/prepare.py)."""

_READ_AT_MOST = 4 * LONGEST
"""Octets read of a file that somebody else keeps."""


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    server: str
    user: str
    password: str

    def __repr__(self) -> str:
        return f"_Kept({self.server!r}, {self.user!r}, …)"


def put(layout: Layout, host: HostName, relay: Relay, password: str) -> None:
    """Keep a password for a host's relay.

    Raises:
        BadInput: it cannot be one, or nobody signs in with it. What it is, is not said.
        StateUnusable: it cannot be written.
    """
    check(relay, password)
    data = msgspec.json.encode(_Kept(relay.server, relay.user, password))
    _write(layout.relay / host / FILE, data)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".new")
    try:
        path.parent.parent.mkdir(mode=0o700, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        temporary.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StateUnusable(str(path), _why(error), "mend it") from None


def kept(layout: Layout, host: HostName) -> bytes | None:
    """Return the file of a host's password as it is, for ``put_back``."""
    try:
        return (layout.relay / host / FILE).read_bytes()
    except OSError:
        return None


def put_back(layout: Layout, host: HostName, data: bytes | None) -> None:
    """Make the file what ``kept`` returned.

    Raises:
        StateUnusable: it cannot be.
    """
    if data is None:
        forget(layout, host)
    else:
        _write(layout.relay / host / FILE, data)


def check(relay: Relay, password: str) -> None:
    """Check that a password can be kept for a relay.

    Raises:
        BadInput: it cannot be. What it is, is not said.
    """
    if not relay.user:
        raise BadInput(
            "relay", relay.server, "a password goes with a user: give --user"
        )
    if relay.password_file:
        remedy = f"it is in {relay.password_file}; give that or a password, not both"
        raise BadInput("password", "…", remedy)
    _checked(password)


def forget(layout: Layout, host: HostName) -> None:
    """Forget the password of a host's relay.

    Raises:
        StateUnusable: its file cannot be removed.
    """
    path = layout.relay / host / FILE
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StateUnusable(str(path), _why(error), "remove it") from None


def to_tell(layout: Layout, owner: str, relay: Relay | None) -> RelayLogin | None:
    """Return what a worker has to know of an owner's relay; trouble is told to it too."""
    if relay is None:
        return None
    if not relay.user:
        return RelayLogin(relay.server)
    try:
        password = _password(layout, owner, relay)
    except (BadInput, StateUnusable) as error:
        return RelayLogin(relay.server, relay.user, problem=str(error))
    return RelayLogin(relay.server, relay.user, password)


def _password(layout: Layout, owner: str, relay: Relay) -> str:
    if relay.password_file:
        return _from(Path(relay.password_file))
    path = layout.relay / owner / FILE
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
    except FileNotFoundError:
        kept = _Kept("", "", "")
    except OSError as error:
        raise StateUnusable(str(path), _why(error), "mend it") from None
    except msgspec.MsgspecError:
        remedy = f"give it again: `vnsmail host relay {owner} {relay.server}`"
        raise StateUnusable(str(path), "it is damaged", remedy) from None
    if (kept.server, kept.user) != (relay.server, relay.user):
        remedy = (
            f"none is known of {relay.user!r}: "
            f"`vnsmail host relay {owner} {relay.server} --user {relay.user}` asks for it"
        )
        raise BadInput("password for relay", relay.server, remedy)
    return kept.password


def _from(path: Path) -> str:
    """Return the first line of a file that only its owner may read."""
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise StateUnusable(str(path), "it is no plain file", "give another")
            if facts.st_mode & 0o077 or facts.st_uid not in {0, os.geteuid()}:
                remedy = f"chown root {path}; chmod 600 {path}"
                raise StateUnusable(str(path), "others may read or change it", remedy)
            line = file.read(_READ_AT_MOST).split(b"\n")[0].rstrip(b"\r")
    except OSError as error:
        remedy = "put the password of the relay there"
        raise StateUnusable(str(path), _why(error), remedy) from None
    try:
        return _checked(line.decode())
    except UnicodeDecodeError:
        raise StateUnusable(str(path), "it is not UTF-8", "write it anew") from None


def _checked(password: str) -> str:
    if not password or len(password) > LONGEST or not password.isprintable():
        remedy = f"use 1 to {LONGEST} printable characters"
        raise BadInput("password", "…", remedy)
    return password


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
