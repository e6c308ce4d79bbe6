"""Becomes another program, with less than this one has.

``python -P -m vnsmail.supervisor.launch [--empty-network] [--reveal PATH:rw]...
[--user UID] [--keep-capabilities a,b] --pass-fd N -- COMMAND...`` stands between fork
and exec of each child of the supervisor (process.py), which can thus be one that has
threads and a large heap.

Rules of this file: if anything cannot be given up, the command does not run. What it
may do is decided here and now; nothing can be gained again (PR_SET_NO_NEW_PRIVS). It
does not die with the supervisor: it sees its channel close, and finishes what it says.
"""

import argparse
import contextlib
import os
import pwd
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from vnsmail.errors import VnsmailError
from vnsmail.supervisor import kernel, privileges, seccomp, view

LAUNCH_FAILED = 125
"""Exit status, as that of env(1) and chroot(1) when they themselves fail."""

_SECURE_BITS = 0b11101111
"""NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE, each locked, and KEEP_CAPS locked off:
uid 0 is an account like others (capabilities(7))."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Give up what is not kept, and become the command."""
    options = _parser().parse_args(arguments)
    try:
        _launch(options)
    except (OSError, VnsmailError) as error:
        _remark(str(error))
        sys.exit(LAUNCH_FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vnsmail.supervisor.launch")
    parser.add_argument("--empty-network", action="store_true")
    parser.add_argument("--reveal", action="append", type=_revealed, default=[])
    parser.add_argument("--user", type=int)
    parser.add_argument("--keep-capabilities", type=_capabilities, default=0)
    parser.add_argument("--pass-fd", type=int, action="append", default=[])
    parser.add_argument("command", nargs="+")
    return parser


def _revealed(text: str) -> Path:
    path, colon, mode = text.rpartition(":")
    if not colon or mode != "rw" or not path.startswith("/"):
        message = "write it as /PATH:rw"
        raise argparse.ArgumentTypeError(message)
    return Path(path)


def _capabilities(text: str) -> int:
    return sum(1 << privileges.capability(name) for name in set(text.split(",")))


def _launch(options: argparse.Namespace) -> None:
    uid = os.getuid() if options.user is None else options.user
    gid = os.getgid() if options.user is None else _group(uid)
    kept = options.keep_capabilities
    # While there is a /proc to read.
    held, last = privileges.permitted(), privileges.last()
    _close_all_but(options.pass_fd)
    if options.reveal:
        steps = view.plan(view.of_worker(options.reveal, uid, gid))
        kernel.unshare(kernel.CLONE_NEWNS)
        view.apply(steps, uid, gid)
    elif kept and (folder := view.hidden_from(uid, gid)):
        _remark(f"it may read all files, for Python lies below {folder}")
        kept |= 1 << privileges.capability("dac_read_search")
    if options.empty_network:
        kernel.unshare(kernel.CLONE_NEWNET)
    # A session of its own: no Ctrl-C meant for the supervisor, no terminal to type on.
    with contextlib.suppress(PermissionError):
        os.setsid()
    os.umask(0o077)
    _allow_all_descriptors()
    if options.user is not None:
        _change_account(uid, gid)
    _keep_only(kept, held, last)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    _filter(worker=options.empty_network)
    os.execv(options.command[0], options.command)  # noqa: S606  what we are for


def _group(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except KeyError:
        return uid


def _close_all_but(passed: Sequence[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in passed:
            with contextlib.suppress(OSError):  # that of the listing itself is closed
                os.close(int(name))
    for fd in passed:
        os.set_inheritable(fd, True)


def _allow_all_descriptors() -> None:
    """A socket is a descriptor: 1,024, the usual soft limit, is for select(2) only."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _change_account(uid: int, gid: int) -> None:
    """Become the account; permitted capabilities stay for the while."""
    kernel.prctl(kernel.PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    kernel.prctl(kernel.PR_SET_KEEPCAPS, 0)


def _keep_only(kept: int, held: int, last: int) -> None:
    """Have these capabilities and no others, in any set, now and after exec."""
    kernel.set_capabilities(permitted=held, effective=held, inheritable=kept)
    kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(last + 1):
        if kept >> number & 1:
            kernel.prctl(kernel.PR_CAP_AMBIENT, kernel.PR_CAP_AMBIENT_RAISE, number)
        else:
            kernel.prctl(kernel.PR_CAPBSET_DROP, number)
    kernel.prctl(kernel.PR_SET_SECUREBITS, _SECURE_BITS)
    kernel.set_capabilities(permitted=kept, effective=kept, inheritable=kept)


def _filter(*, worker: bool) -> None:
    machine = seccomp.machine()
    if machine is None:
        _remark(f"no system call filter: none is known for {os.uname().machine}")
        return
    # The pid stays the same over exec.
    rules = (seccomp.for_worker if worker else seccomp.for_broker)(os.getpid())
    seccomp.install(seccomp.program(rules, machine))


def _remark(text: str) -> None:
    sys.stderr.write(f"vnsmail launch: {text}\n")


if __name__ == "__main__":
    main()
