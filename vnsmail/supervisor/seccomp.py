"""System calls that broker and workers may not make: a seccomp(2) filter.

``program`` is pure: tables in, classic BPF out. ``install`` gives it to the kernel; it
stays for the life of the process and of whatever it becomes.

Rules of this file: what is refused is a table, with the reason beside it; a refused
call fails with EPERM, so that a program can say what it missed; another ABI than the
one the tables are for ends the process, as its numbers mean other calls.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from vnsmail.supervisor import kernel

Condition: TypeAlias = tuple[int, int, int]
"""(argument, mask, value): the argument's lower half, masked, must be the value. All
arguments tested here are ints, or flags of which the kernel takes the lower half."""

_ALL = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Only:
    """A call that is allowed only as described; in no way if nothing is."""

    call: str
    ways: tuple[tuple[Condition, ...], ...] = ()
    """It is enough that all conditions of one hold."""
    error: int = errno.EPERM


_CLONE_NEW = 0x7E020080
"""All CLONE_NEW* flags of linux/sched.h but CLONE_NEWTIME, which clone(2) has not."""
_MSG_FASTOPEN = 0x20000000
_SOL_SOCKET, _IPPROTO_TCP = 1, 6
_SOCKET_OPTIONS = {
    _SOL_SOCKET: (2, 7, 8, 9, 13),  # REUSEADDR, SNDBUF, RCVBUF, KEEPALIVE, LINGER
    # NODELAY, CORK, KEEPIDLE, KEEPINTVL, KEEPCNT, QUICKACK, USER_TIMEOUT, NOTSENT_LOWAT
    _IPPROTO_TCP: (1, 3, 4, 5, 6, 12, 18, 25),
}


def _refused(*calls: str) -> tuple[Only, ...]:
    return tuple(Only(call) for call in calls)


def _both(pid: int) -> tuple[Only, ...]:
    return (
        # Other namespaces and mounts. setns(2) is left to the broker.
        *_refused("unshare", "mount", "umount2", "pivot_root", "chroot", "move_mount"),
        *_refused("open_tree", "open_tree_attr", "fsopen", "fsconfig", "fsmount"),
        *_refused("fspick", "mount_setattr"),
        Only("clone", (((0, _CLONE_NEW, 0),),)),
        # Its flags are in memory, where a filter cannot look; libc then takes clone(2).
        Only("clone3", error=errno.ENOSYS),
        # The memory and descriptors of other processes of the same account.
        *_refused("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd"),
        *_refused("process_madvise", "kcmp", "perf_event_open"),
        # One worker must not end another.
        Only("kill", (((0, _ALL, pid),),)),
        Only("tgkill", (((0, _ALL, pid),),)),
        *_refused("tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal"),
        # Calls by the side of this filter, and large parts of the kernel unused here.
        *_refused("io_uring_setup", "io_uring_enter", "io_uring_register"),
        *_refused("bpf", "userfaultfd", "keyctl", "add_key", "request_key"),
    )


def for_broker(pid: int) -> tuple[Only, ...]:
    """Return what the broker may not do: anything but open sockets."""
    return _both(pid)


def for_worker(pid: int) -> tuple[Only, ...]:
    """Return what a worker may not do: have any address but those it is given.

    What is said of sockets in broker/sockets.py is why. Pairs of Unix sockets, made
    with socketpair(2), and accept(2) are left to it.
    """
    options = tuple(
        ((1, _ALL, level), (2, _ALL, option))
        for level, allowed in _SOCKET_OPTIONS.items()
        for option in allowed
    )
    return (
        *_both(pid),
        # With a Unix socket it could ask a daemon of the machine to speak for it.
        *_refused("socket", "setns"),
        # A socket from the broker has an address and no port, so it can be bound again.
        *_refused("bind", "listen"),
        # IPV6_V6ONLY, IP_OPTIONS, SO_BINDTODEVICE... change whence or where it goes.
        Only("setsockopt", options),
        # Data in a SYN gets there without an answer, which a filter could stop.
        Only("sendto", (((3, _MSG_FASTOPEN, 0),),)),
        Only("sendmsg", (((2, _MSG_FASTOPEN, 0),),)),
        Only("sendmmsg", (((3, _MSG_FASTOPEN, 0),),)),
    )


# Machines ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Machine:
    """A kind of processor: what linux/audit.h calls its ABI, which column is its own."""

    audit: int
    column: int
    foreign_from: int | None = None
    """Numbers from here on belong to another ABI."""


MACHINES = {
    # The x32 ABI has the same audit number, and __X32_SYSCALL_BIT in every call's.
    "x86_64": Machine(0xC000003E, 0, 0x40000000),
    "aarch64": Machine(0xC00000B7, 1),
}

NUMBERS: dict[str, tuple[int, int]] = {
    "add_key": (248, 217),
    "bind": (49, 200),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clone": (56, 220),
    "clone3": (435, 435),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "keyctl": (250, 219),
    "kill": (62, 129),
    "listen": (50, 201),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "request_key": (249, 218),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "sendmmsg": (307, 269),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "setns": (308, 268),
    "setsockopt": (54, 208),
    "socket": (41, 198),
    "tgkill": (234, 131),
    "tkill": (200, 130),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
"""By name: x86_64 (asm/unistd_64.h), aarch64 (asm-generic/unistd.h)."""


def machine() -> Machine | None:
    """Return what this process runs on; None if there is no table for it."""
    if struct.calcsize("P") != 8:
        return None
    return MACHINES.get(os.uname().machine)


# The program ------------------------------------------------------------------

_LOAD, _AND, _JUMP_EQUAL, _JUMP_FROM, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
"""Offsets in struct seccomp_data; arguments are of 8 bytes, lower half first."""
_KILL, _ERROR, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000

Instruction: TypeAlias = tuple[int, int, int, int]
"""Code, how many to skip if true, if false, operand (struct sock_filter)."""


def program(rules: Sequence[Only], machine: Machine) -> list[Instruction]:
    """Return the classic BPF program that refuses what the rules say."""
    lines: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_JUMP_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine.foreign_from is not None:
        lines += [
            (_JUMP_FROM, 0, 1, machine.foreign_from),
            (_RETURN, 0, 0, _KILL),
        ]
    for rule in rules:
        body = [line for way in rule.ways for line in _way(way)]
        body.append((_RETURN, 0, 0, _ERROR | rule.error))
        number = NUMBERS[rule.call][machine.column]
        lines += [(_JUMP_EQUAL, 0, len(body), number), *body]
    return [*lines, (_RETURN, 0, 0, _ALLOW)]


def _way(conditions: tuple[Condition, ...]) -> list[Instruction]:
    lines: list[Instruction] = []
    for left, (argument, mask, value) in zip(
        range(len(conditions) - 1, -1, -1), conditions, strict=True
    ):
        lines += [
            (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
            (_AND, 0, 0, mask),
            (_JUMP_EQUAL, 0, 3 * left + 1, value),
        ]
    return [*lines, (_RETURN, 0, 0, _ALLOW)]


def install(lines: Sequence[Instruction]) -> None:
    """Filter this process from now on; it must have given up new privileges before.

    Raises:
        OSError: the kernel does not take it.
    """
    code = b"".join(struct.pack("=HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(code, len(code))
    wanted = struct.pack("@HP", len(lines), ctypes.addressof(buffer))
    kernel.prctl(kernel.PR_SET_SECCOMP, kernel.SECCOMP_MODE_FILTER, wanted)
