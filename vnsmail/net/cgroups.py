"""A cgroup for each virtual host whose programs are steered. PRIVILEGED.

    /sys/fs/cgroup/vnsmail/default/alpha.example        the default root
    /sys/fs/cgroup/vnsmail/1a2b3c/alpha.example         another root

It is there while a program runs in it, and goes with the last one. Where cgroup v2 is
mounted is asked of the kernel: on machines with the hierarchies of version 1 it is
/sys/fs/cgroup/unified or elsewhere.

Rules of this file: making, filling and removing happen under one lock, so that nobody
removes what another has just made; a cgroup with a process in it is never removed.
"""

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from vnsmail.errors import CannotRunAs

FOLDER = "vnsmail"
_DEFAULT_ROOT = "default"
_PROCESSES = "cgroup.procs"
_OCTAL = re.compile(rb"\\([0-7]{3})")


def mounted(mountinfo: bytes) -> Path | None:
    """Return where cgroup v2 is mounted, as /proc/self/mountinfo says (proc(5)).

    The mount must show the whole hierarchy that this process may see, and nothing that
    came later may hide it.
    """
    found: bytes | None = None
    for line in mountinfo.split(b"\n"):
        before, dash, after = line.partition(b" - ")
        fields = before.split(b" ")
        if not dash or len(fields) < 6:
            continue
        root, where = fields[3], fields[4]
        if found is not None and (found + b"/").startswith(where.rstrip(b"/") + b"/"):
            found = None
        if after.split(b" ")[0] == b"cgroup2" and root == b"/":
            found = found or where
    return None if found is None else Path(os.fsdecode(_unescaped(found)))


def _unescaped(path: bytes) -> bytes:
    return _OCTAL.sub(lambda octal: bytes([int(octal[1], 8) & 0xFF]), path)


class Cgroup:
    """The cgroup of a virtual host, while it is being filled."""

    def __init__(self, host: str, folder: int) -> None:
        self._host = host
        self.fd = folder
        """The folder, for bpf(2)."""

    def add(self, process: int) -> None:
        """Put a process into it; whatever that one starts is in it too.

        Raises:
            CannotRunAs: the kernel refused.
        """
        try:
            fd = os.open(_PROCESSES, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.fd)
            try:
                os.write(fd, str(process).encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise _failed(self._host, "fill", error) from None


@contextlib.contextmanager
def made(instance: str, host: str) -> Iterator[Cgroup]:
    """Make the cgroup of a virtual host, or take the one that is there.

    While this lasts nobody else makes or removes one. What is empty in the end is gone.

    Raises:
        CannotRunAs: there is no cgroup v2, or the kernel refused.
    """
    mount = _mount()
    if mount is None:
        problem = "cgroup v2 is not mounted here"
        remedy = "mount -t cgroup2 none /sys/fs/cgroup/unified"
        raise CannotRunAs(host, problem, remedy)
    path = _path(mount, instance, host)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(mount))
            path.mkdir(parents=True, exist_ok=True)
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _failed(host, "make", error) from None
        stack.callback(_remove_empty, path)
        stack.callback(os.close, folder)
        yield Cgroup(host, folder)


def remove(instance: str, host: str) -> bool:
    """Remove the cgroup of a virtual host if no process is in it. Idempotent.

    Returns whether there is none now.
    """
    mount = _mount()
    if mount is None:
        return True
    path = _path(mount, instance, host)
    if not path.parent.is_dir():
        return True
    with _locked(mount):
        _remove_empty(path)
    return not path.is_dir()


def _mount() -> Path | None:
    return mounted(Path("/proc/self/mountinfo").read_bytes())


def _path(mount: Path, instance: str, host: str) -> Path:
    return mount / FOLDER / (instance or _DEFAULT_ROOT) / host


@contextlib.contextmanager
def _locked(mount: Path) -> Iterator[None]:
    # On the root of the hierarchy, which is the one folder that nobody removes.
    lock = os.open(mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _remove_empty(path: Path) -> None:
    """Remove a host's folder, its root's and ours, each if nothing is in it."""
    for folder in (path, path.parent, path.parent.parent):
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in {errno.EBUSY, errno.ENOTEMPTY}:
                return
            raise


def _failed(host: str, what: str, error: OSError) -> CannotRunAs:
    problem = f"cannot {what} its cgroup: {error.strerror}"
    remedy = "it takes root of the machine itself, and cgroup v2 mounted for writing"
    return CannotRunAs(host, problem, remedy)
