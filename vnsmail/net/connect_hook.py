"""Gives the kernel the programs that steer the sockets of a cgroup. PRIVILEGED.

They belong to the cgroup: they stay when the process that attached them ends, and go
with the cgroup. What they decide is in hook_programs.py.

Rules of this file: attached is all or an error, and nobody starts a program after an
error. They are attached without BPF_F_ALLOW_MULTI: so attaching again replaces them one
by one, with never a moment without, and nothing below the cgroup attaches another that
has the last word. The price is that a program which itself manages cgroups with such
hooks cannot run in one.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

from vnsmail.errors import CannotRunAs, NotPrivileged
from vnsmail.net import bpf
from vnsmail.net.hook_programs import Hook

_LOAD, _ATTACH = 5, 8  # bpf_cmd
_LICENCE = b"Apache-2.0"
_LOG_SIZE = 1 << 16
_NAME_LIMIT = 15  # BPF_OBJ_NAME_LEN is 16 with the final NUL

_SYSTEM_CALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
"""Number of bpf(2), for which libc has no function."""

_libc = ctypes.CDLL(None, use_errno=True)


def attach(host: str, cgroup: int, hooks: Iterable[Hook]) -> None:
    """Attach programs to a cgroup, each in place of the one that is there.

    Args:
        host: whose cgroup it is.
        cgroup: a descriptor of its folder.
        hooks: the programs.

    Raises:
        NotPrivileged: bpf(2) is not for this process.
        CannotRunAs: the kernel has no such hook, or refused a program.
    """
    for hook in hooks:
        try:
            program = _load(hook)
            try:
                _bpf(_ATTACH, struct.pack("=4I", cgroup, program, hook.place, 0))
            finally:
                os.close(program)
        except OSError as error:
            raise _refused(host, hook, error) from None


def _load(hook: Hook) -> int:
    """Return a descriptor of a program that the kernel has verified.

    Raises:
        OSError: the kernel does not take it; with the verifier's reason if it gave one.
    """
    try:
        return _load_logged(hook, None)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EACCES}:
            raise
    log = ctypes.create_string_buffer(_LOG_SIZE)
    try:
        return _load_logged(hook, log)
    except OSError as error:
        last = log.value.decode(errors="replace").strip().splitlines()[-3:]
        raise OSError(error.errno, "; ".join(last) or error.strerror) from None


def _load_logged(hook: Hook, log: "ctypes.Array[ctypes.c_char] | None") -> int:
    code = ctypes.create_string_buffer(bpf.packed(hook.program))
    licence = ctypes.create_string_buffer(_LICENCE)
    name = f"vnsmail_{hook.name}"[:_NAME_LIMIT].encode()
    wanted = struct.pack(
        "=IIQQIIQII16sII",
        hook.kind,
        len(hook.program),
        ctypes.addressof(code),
        ctypes.addressof(licence),
        0 if log is None else 1,
        0 if log is None else len(log),
        0 if log is None else ctypes.addressof(log),
        0,  # version of the kernel, which nobody checks any more
        0,  # flags
        name,
        0,  # index of a network device
        hook.place,
    )
    return _bpf(_LOAD, wanted)


def _bpf(command: int, wanted: bytes) -> int:
    number = _SYSTEM_CALL.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, "bpf(2) has no known number on this processor")
    result: int = _libc.syscall(
        ctypes.c_long(number),
        ctypes.c_int(command),
        wanted,
        ctypes.c_uint(len(wanted)),
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _refused(host: str, hook: Hook, error: OSError) -> NotPrivileged | CannotRunAs:
    if error.errno == errno.EPERM:
        return NotPrivileged(
            f"steer the programs of {host}",
            "bpf(2) takes root of the machine itself, not of a user namespace, and no "
            "program of others in a cgroup above",
        )
    return CannotRunAs(
        host,
        f"the kernel does not take the {hook.name} hook: {error.strerror}",
        "it takes Linux 5.18 or later with CONFIG_CGROUP_BPF",
    )
