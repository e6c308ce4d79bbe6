"""The folders of a root, and who may use them.

Rules of this file: what a worker writes belongs to the worker's account and to nobody
else; everything above is the supervisor's.
"""

import contextlib
import fcntl
import os
import pwd
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vnsmail.database import sync_folder
from vnsmail.errors import DaemonRunning, SettingsError, StateUnusable
from vnsmail.model import MACHINE, Owner
from vnsmail.settings import Layout, Settings
from vnsmail.supervisor.privileges import single_uid

_LAST_UID = 2**32 - 2
"""The one after it stands for "none" (setresuid(2))."""


@dataclass(frozen=True, slots=True)
class Account:
    """The account workers run as."""

    uid: int
    gid: int


def worker_account(settings: Settings, settings_file: Path) -> Account | None:
    """Return the account of the workers; None where there is only one uid to be had.

    In a user namespace with a single uid mapped, as of an ordinary user's lab, the
    workers keep that uid and lose everything else.

    Raises:
        SettingsError: there is no such account.
    """
    if single_uid():
        return None
    user = settings.worker.user
    account = _account(user)
    problem = ""
    if account is None:
        problem = (
            "no such account; create it with `useradd --system --no-create-home "
            f"--shell /usr/sbin/nologin {user}`, or name another"
        )
    elif account.uid == 0:
        problem = "workers must not be root"
    if account is None or problem:
        raise SettingsError(str(settings_file), "worker.user", user, problem)
    return account


def _account(user: str) -> Account | None:
    """Return the account of a name or number; a number needs no entry anywhere."""
    number = int(user) if user.isascii() and user.isdecimal() else None
    try:
        entry = pwd.getpwnam(user) if number is None else pwd.getpwuid(number)
    except KeyError:
        if number is None or number > _LAST_UID:
            return None
        return Account(number, number)
    return Account(entry.pw_uid, entry.pw_gid)


def check_keys(settings: Settings, settings_file: Path) -> None:
    """See that nobody is told the keys of TLS sessions outside a lab.

    In a lab, process 1 is the lab's keeper: this cannot be said in a file by mistake.

    Raises:
        SettingsError: the settings say they are to be told, and this is no lab.
    """
    folder = settings.lab.tls_keys
    if not folder:
        return
    try:
        first = Path("/proc/1/cmdline").read_bytes().split(b"\0")
    except OSError:
        first = []
    if b"vnsmail.lab.keeper" not in first:
        problem = "keys of TLS sessions are told in a lab only; remove it"
        raise SettingsError(str(settings_file), "lab.tls_keys", folder, problem)


def prepare(layout: Layout) -> None:
    """Make the folders of a root that are missing.

    Raises:
        StateUnusable: one cannot be made or used.
    """
    for folder in (layout.state, layout.run, layout.hosts):
        try:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            # The folder above a root may be one that we can enter and not read.
            with contextlib.suppress(PermissionError):
                sync_folder(folder.parent)
        except OSError as error:
            raise StateUnusable(
                str(folder), _why(error), "give another --root, or mend it"
            ) from None
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise StateUnusable(
                str(folder), "it is not writable", "give another --root, or mend it"
            )


def prepare_owner(layout: Layout, owner: Owner, account: Account | None) -> Path:
    """Make the folder of an owner's queue and mailboxes, and give it to the workers.

    It outlives a power cut: a worker cannot see to that, for it has not got what lies
    above its folder.

    Raises:
        StateUnusable: it cannot be made.
    """
    folder = layout.owner_folder(owner)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if account is not None:
            os.chown(folder, account.uid, account.gid)
        sync_folder(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise StateUnusable(str(folder), _why(error), "mend it") from None
    return folder


def empty_folder(layout: Layout, account: Account | None) -> Path:
    """Make the folder that a process sees which needs none.

    Raises:
        StateUnusable: it cannot be made.
    """
    folder = layout.run / "empty"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if account is not None:
            os.chown(folder, account.uid, account.gid)
    except OSError as error:
        raise StateUnusable(str(folder), _why(error), "mend it") from None
    return folder


def remove_owner(layout: Layout, owner: Owner) -> None:
    """Remove a destroyed host's folder with all that is in it, its certificates and keys.

    Raises:
        StateUnusable: something in it cannot be removed.
    """
    if owner == MACHINE:
        message = "the machine's folder is not removed"
        raise ValueError(message)
    for folder in (
        layout.certificates / owner,
        layout.dkim / owner,
        layout.engines / owner,
        layout.relay / owner,
        layout.owner_folder(owner),
    ):
        if not os.path.lexists(folder):
            continue
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise StateUnusable(
                str(folder), _why(error), "mend it, and destroy the host again"
            ) from None


def move_owner(layout: Layout, old: Owner, new: Owner) -> None:
    """Give an owner's folders another name; one that was moved already stays.

    Raises:
        StateUnusable: one cannot be moved, or another folder is in its place.
    """
    _move(layout.certificates / old, layout.certificates / new)
    _move(layout.dkim / old, layout.dkim / new)
    _move(layout.engines / old, layout.engines / new)
    _move(layout.relay / old, layout.relay / new)
    _move(layout.owner_folder(old), layout.owner_folder(new))


def _move(before: Path, after: Path) -> None:
    if not os.path.lexists(before):
        return
    if os.path.lexists(after):
        raise StateUnusable(
            str(after),
            f"it is in the place of {before}",
            "move it away, then start vnsmail again",
        )
    try:
        os.rename(before, after)
        sync_folder(after.parent)
    except OSError as error:
        raise StateUnusable(str(before), _why(error), "mend it") from None


def lock(layout: Layout) -> IO[str]:
    """Become the one supervisor of this root; returns the file that holds the lock.

    The kernel lets go of a flock(2) when its holder dies, however it dies.

    Raises:
        DaemonRunning: another process is it.
        StateUnusable: the file cannot be made.
    """
    try:
        file = open(layout.pid_file, "a+")  # noqa: SIM115  open as long as we live
    except OSError as error:
        raise StateUnusable(
            str(layout.pid_file), _why(error), "give another --root, or mend it"
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise DaemonRunning(
            str(layout.state), int(holder) if holder.isdigit() else 0
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def is_locked(layout: Layout) -> bool:
    """Return whether a supervisor of this root lives, also one that is ending."""
    try:
        with layout.pid_file.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
