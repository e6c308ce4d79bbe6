"""Leaving a message in the drop: the command's side, without any privilege.

    written without a name ─► synced ─► gets its name ─► folder synced, if need be

Rules of this file: a file with a name is whole and on disk; whatever ends the command
before leaves nothing that anybody takes. Light imports only (drop/form.py).
"""

import contextlib
import os
import stat

from vnsmail.drop import form

STATE, RUN = "/var/lib/vnsmail", "/run/vnsmail"
"""As vnsmail/settings.py has them; a test compares."""

MAX_WAITING = 1000
"""Messages that wait for the daemon in one folder."""


class CannotDrop(Exception):
    """The message cannot be left: why, and an exit code of sysexits.h."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason, code)
        self.reason, self.code = reason, code

    def __str__(self) -> str:
        return self.reason


class Place:
    """Where a root takes mail from local commands.

    Attributes:
        drop: the drop.
        socket: where to ask the daemon.
    """

    __slots__ = ("drop", "root", "socket")

    def __init__(self, root: str | None) -> None:
        self.root = root or STATE
        self.drop = os.path.join(root or STATE, "drop")
        self.socket = os.path.join(root, "run") if root else RUN
        self.socket += "/drop.sock"

    def folder(self) -> str:
        """Return the folder of the account that asks.

        Raises:
            CannotDrop: nobody made one: the account is no user of a virtual host.
        """
        uid = os.geteuid()
        try:
            top = os.stat(self.drop)
        except OSError as error:
            reason = f"vnsmail has no drop here ({self.drop}: {error.strerror})"
            raise CannotDrop(reason, os.EX_UNAVAILABLE) from None
        # Whose the installation is, that is its root (a lab of an ordinary user).
        name = "0" if top.st_uid == uid else str(uid)
        folder = f"{self.drop}/{name}"
        with contextlib.suppress(OSError):
            facts = os.lstat(folder)
            if stat.S_ISDIR(facts.st_mode) and facts.st_uid == uid:
                return folder
        reason = (
            f"account {_account(uid)} is no user of a virtual host, so it sends no mail; "
            "root can make it one: vnsmail login add USER@HOST ACCOUNT"
        )
        raise CannotDrop(reason, os.EX_NOPERM)

    def max_size(self) -> int:
        """Return the bytes that a message may have; 0 if nobody knows."""
        try:
            with open(f"{self.drop}/limits", encoding="ascii") as file:
                return int(file.readline())
        except (OSError, ValueError):
            return 0


def _account(uid: int) -> str:
    import pwd  # noqa: PLC0415  only for a refusal

    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


class Writer:
    """One message on its way into the drop.

    Args:
        folder: as ``Place.folder`` returns it.
        request: what is asked.
        max_size: bytes that the message may have; 0 is any number.

    Raises:
        CannotDrop: there is no room, or the request cannot be written down.
    """

    def __init__(self, folder: str, request: form.Request, max_size: int = 0) -> None:
        self._max_size = max_size
        self._size = 0
        self.name = os.urandom(form.NAME_DIGITS // 2).hex()
        self._temporary = ""
        self._folder = self._fd = -1
        try:
            head = form.front(request, 0)
        except form.BadDrop as error:
            raise CannotDrop(str(error), os.EX_USAGE) from None
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._folder = os.open(folder, flags)
            self._check_room()
            self._fd = self._open()
            self._write(head)
        except OSError as error:
            self.discard()
            raise _cannot_write(error) from None
        except CannotDrop:
            self.discard()
            raise

    def _check_room(self) -> None:
        if len(os.listdir(self._folder)) >= MAX_WAITING:
            reason = f"{MAX_WAITING} messages wait already; is vnsmail running?"
            raise CannotDrop(reason, os.EX_TEMPFAIL)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            return os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=self._folder)
        except OSError:  # not every file system can (open(2))
            self._temporary = f".{self.name}"
            flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            return os.open(self._temporary, flags, 0o600, dir_fd=self._folder)

    def write(self, data: bytes) -> None:
        """Add bytes of the message.

        Raises:
            CannotDrop: there are too many, or the disk did not take them.
        """
        self._size += len(data)
        if self._max_size and self._size > self._max_size:
            reason = f"the message is larger than {self._max_size} bytes"
            raise CannotDrop(reason, os.EX_DATAERR)
        try:
            self._write(data)
        except OSError as error:
            raise _cannot_write(error) from None

    def finish(self) -> str:
        """Give the message its name, under which it may be taken at once; return it.

        Raises:
            CannotDrop: it is not there.
        """
        try:
            os.pwrite(self._fd, form.first_line(self._size).encode(), 0)
            os.fsync(self._fd)
            if self._temporary:
                os.rename(
                    self._temporary,
                    self.name,
                    src_dir_fd=self._folder,
                    dst_dir_fd=self._folder,
                )
                self._temporary = ""
            else:
                os.link(
                    f"/proc/self/fd/{self._fd}",
                    self.name,
                    dst_dir_fd=self._folder,
                    follow_symlinks=True,
                )
        except OSError as error:
            raise _cannot_write(error) from None
        return self.name

    def keep(self) -> None:
        """Make the name durable: nobody took the message yet.

        Raises:
            CannotDrop: the disk did not take it.
        """
        try:
            os.fsync(self._folder)
        except OSError as error:
            raise _cannot_write(error) from None

    def discard(self) -> None:
        """Close all; a message that has no name yet is gone."""
        if self._temporary:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._folder)
            self._temporary = ""
        for fd in (self._fd, self._folder):
            if fd >= 0:
                os.close(fd)
        self._fd = self._folder = -1

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


def _cannot_write(error: OSError) -> CannotDrop:
    reason = f"the message cannot be written: {error.strerror}"
    return CannotDrop(reason, os.EX_CANTCREAT)
