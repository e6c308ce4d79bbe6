"""System calls that Python has no names for, checked.

Rules of this file: one function a call, no decisions; what fails is an OSError. setns(2)
is not here: it moves one thread and has its home in net/namespaces.py. unshare(2) is,
for the launcher, which has one thread and is about to become another program.
"""

import ctypes
import os
import struct
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_SLAVE = 1 << 19
MNT_DETACH = 2

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECCOMP_MODE_FILTER = 2

_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_SYS_MOUNT_SETATTR = 442
"""The same on all processors, as all numbers from 424 on."""
_SYS_OPENAT2 = 437
_RESOLVE = 0x01 | 0x04 | 0x08
"""RESOLVE_NO_XDEV, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH."""
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str = "") -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what or None)


def unshare(flags: int) -> None:
    """Leave namespaces for new ones (unshare(2))."""
    _check(_libc.unshare(flags))


def mount(
    source: str, target: Path, *, kind: str = "", flags: int = 0, data: str = ""
) -> None:
    """Mount something, or change what is mounted (mount(2))."""
    result = _libc.mount(
        source.encode(),
        bytes(target),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        data.encode() or None,
    )
    _check(result, str(target))


def detach(target: Path) -> None:
    """Unmount, also if it is in use (umount2(2))."""
    _check(_libc.umount2(bytes(target), MNT_DETACH), str(target))


def restrict_mount(target: Path, attributes: int, *, below: bool = False) -> None:
    """Set MOUNT_ATTR_* flags of a mount, and of those below it (mount_setattr(2))."""
    wanted = struct.pack("=QQQQ", attributes, 0, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        _AT_FDCWD,
        bytes(target),
        _AT_RECURSIVE if below else 0,
        wanted,
        ctypes.c_size_t(len(wanted)),
    )
    _check(result, str(target))


def prctl(option: int, first: int, second: int | bytes = 0) -> None:
    """Change what the process is (prctl(2))."""
    last = second if isinstance(second, bytes) else ctypes.c_ulong(second)
    nothing = ctypes.c_ulong(0)
    _check(_libc.prctl(option, ctypes.c_ulong(first), last, nothing, nothing))


def set_capabilities(*, permitted: int, effective: int, inheritable: int) -> None:
    """Set the capability sets of this thread, each a bit set (capset(2))."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    halves = [
        (sets >> shift) & 0xFFFFFFFF
        for shift in (0, 32)
        for sets in (effective, permitted, inheritable)
    ]
    _check(_libc.capset(header, struct.pack("=6I", *halves)))


def open_beneath(folder: int, name: str, flags: int) -> int:
    """Open what lies in a folder and nowhere else: no link, no mount (openat2(2)).

    The number is the same on all processors. Linux 5.6 has it.
    """
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0, _RESOLVE)
    fd = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(folder),
        os.fsencode(name),
        how,
        ctypes.c_size_t(len(how)),
    )
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return int(fd)
