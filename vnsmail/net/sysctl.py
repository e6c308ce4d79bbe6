"""Settings of the kernel's network, of the namespace the calling thread is in.

Rules of this file: a setting that a kernel does not have, for it was built without
IPv6 say, is no error; nothing that is opened here is seen by anybody else.
"""

import contextlib
import ctypes
import os
from typing import Self

_FOLDER = "/proc/sys/net/"

# Numbers of fsopen(2), fsconfig(2) and fsmount(2), which are the same on all machines
# (asm-generic/unistd.h), and of linux/mount.h.
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOSE_ON_EXEC, _CREATE = 1, 6
_NO_SUID_DEV_EXEC = 0x2 | 0x4 | 0x8

_SHARED_BY = 64
"""Namespaces that are looked up in one view; making a view costs about as much as
comparing so many."""

INSIDE = {
    "ipv6/conf/default": {
        # A host has the addresses it was given, and no others.
        "accept_ra": "0",
        "autoconf": "0",
        # Neighbours learn at once where an address is now that was elsewhere before.
        "ndisc_notify": "1",
    },
    "ipv4/conf": {
        "default/arp_notify": "1",
        # Else the kernel removes all addresses of a network with the first one of it.
        "all/promote_secondaries": "1",
        # A host is no router. The kernel copies this from the machine, which may be one.
        "all/forwarding": "0",
    },
}
"""How a host's namespace differs from one that is new (ip-sysctl in the kernel's
manual)."""

_libc = ctypes.CDLL(None, use_errno=True)


class View:
    """Settings seen through a /proc of its own, that nobody else sees.

    The kernel keeps what was looked up below /proc/sys/net for every namespace in one
    list and compares each, for as long as the namespace is there: with a thousand, each
    later look at a setting of any of them costs half a millisecond. In a view that is
    thrown away after a few namespaces the list stays short, and nothing is left in that
    of the machine. Where a /proc cannot be mounted (in a user namespace, or before
    Linux 5.2) the machine's is used.
    """

    def __init__(self) -> None:
        self._folder = _open_view()
        self._left = _SHARED_BY

    def next(self) -> None:
        """Note that the thread is about to look at another namespace."""
        self._left -= 1
        if not self._left:
            self.close()
            self._folder, self._left = _open_view(), _SHARED_BY

    def folder(self, name: str) -> int:
        """Return a descriptor of a folder of settings, such as ``ipv4/conf``.

        It stays that of the namespace the thread is in now; the caller closes it.

        Raises:
            FileNotFoundError: the kernel has no such settings.
        """
        return os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=self._folder)

    def close(self) -> None:
        os.close(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Writer:
    """Writes what hosts' namespaces, and their ends on the machine, differ in."""

    def __init__(self) -> None:
        self._view: View | None = None
        self._outside: int | None = None
        """Descriptor of the settings of IPv6 of the machine's links."""

    def prepare_inside(self) -> None:
        """Write the settings of the new namespace that the thread is in."""
        view = self._opened()
        view.next()
        for name, settings in INSIDE.items():
            with contextlib.suppress(FileNotFoundError):
                folder = view.folder(name)
                try:
                    for setting, value in settings.items():
                        write(setting, value, folder)
                finally:
                    os.close(folder)

    def write_outside(self, name: str, value: str) -> None:
        """Write a setting of IPv6 of a link of the machine, where the thread is."""
        if self._outside is None:
            try:
                self._outside = self._opened().folder("ipv6/conf")
            except FileNotFoundError:
                return
        write(name, value, self._outside)

    def _opened(self) -> View:
        if self._view is None:
            self._view = View()
        return self._view

    def close(self) -> None:
        if self._outside is not None:
            os.close(self._outside)
        if self._view is not None:
            self._view.close()


def _open_view() -> int:
    """Return a descriptor of /proc/sys/net, if it can be of a /proc that is ours."""
    flags = os.O_PATH | os.O_CLOEXEC
    try:
        proc = _mounted_proc()
    except OSError:
        return os.open(_FOLDER, flags)
    try:
        # What is mounted stays while a descriptor is in it, and goes with the last.
        return os.open("sys/net", flags, dir_fd=proc)
    finally:
        os.close(proc)


def _mounted_proc() -> int:
    """Return a descriptor of a new mount of proc that is attached nowhere.

    Raises:
        OSError: the kernel has no such calls, or does not let us.
    """
    system = _system(_FSOPEN, b"proc", _CLOSE_ON_EXEC)
    try:
        _system(_FSCONFIG, system, _CREATE, None, None, 0)
        return _system(_FSMOUNT, system, _CLOSE_ON_EXEC, _NO_SUID_DEV_EXEC)
    finally:
        os.close(system)


def _system(number: int, *arguments: bytes | int | None) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def write(name: str, value: str, within: int | None = None) -> None:
    """Set a setting, such as ``ipv4/conf/all/forwarding``.

    Args:
        name: which.
        value: what it will be.
        within: descriptor of the folder that the name begins in (View.folder).
    """
    path = _FOLDER + name if within is None else name
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=within)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)


def read(name: str) -> str:
    """Return a setting; empty if the kernel does not have it."""
    try:
        with open(_FOLDER + name, encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def links() -> list[str]:
    """Return the links that have settings of IPv6."""
    with contextlib.suppress(FileNotFoundError):
        found = set(os.listdir(f"{_FOLDER}ipv6/conf"))
        return sorted(found - {"all", "default"})
    return []
