"""Runs any program as a virtual host: whatever it connects leaves from its address.

    context     how
    namespace   this process enters the host's network namespace and becomes the program
    alias       a child in the host's cgroup becomes the program; the kernel's hooks
                (net/hook_programs.py) steer its sockets; this process waits for it,
                passes on the signals it gets, and removes the cgroup

Both have a host name, /etc/hosts and /etc/resolv.conf of their own, in namespaces that
end with the program (uts_namespaces(7), mount_namespaces(7)). A file in
/etc/netns/NAMESPACE/ stands in for the one in /etc, as with ip-netns(8).

Rules of this file: a program that cannot be held to the host's address is not started.
What is changed is changed in namespaces of this process alone, which has one thread.
The program is a stranger: it gets our descriptors, environment, account and terminal,
and no say in any of this.
"""

import errno
import os
import shutil
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from vnsmail.errors import (
    CannotRunAs,
    CommandNotRun,
    NotPrivileged,
    SourceUnavailable,
)
from vnsmail.model import Context, Family, VirtualHost
from vnsmail.net import cgroups, connect_hook, names, namespaces
from vnsmail.net.guard_rules import socket_mark
from vnsmail.net.hook_programs import hooks
from vnsmail.net.observe import is_ours
from vnsmail.supervisor import host_files, kernel, privileges

RESOLV_CONF = Path("/etc/resolv.conf")
# Where systemd-resolved names the servers behind its own, which is on the loopback.
RESOLVED_CONF = Path("/run/systemd/resolve/resolv.conf")
HOSTS = Path("/etc/hosts")
NETNS = Path("/etc/netns")

_SCRATCH = Path("/run")
"""Covered for a moment, while files are made that have no place in any file system."""

_CLONE_NEWUTS = 0x04000000
_MS_RDONLY = 1
_SYS = Path("/sys")

_SI_KERNEL = 0x80
"""Sent by the kernel, such as a terminal's Ctrl-C; not by kill(2) (sigaction(2))."""
_NOT_PASSED = {
    *(signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGTTIN, signal.SIGTTOU),
    # These say that this very process did something wrong.
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP),
    *(signal.SIGSYS, signal.SIGABRT, signal.SIGPIPE),
}


def run(
    host: VirtualHost,
    instance: str,
    command: Sequence[str],
    servers: Sequence[str],
    identity: int = 0,
) -> int:
    """Run a command as a virtual host; returns its exit code.

    In a namespace context this does not return: this process becomes the command.

    Args:
        host: who to be.
        instance: of the root that has the host.
        command: the program and its arguments.
        servers: name servers of the settings; none for those of the machine.
        identity: which its namespace is, as the supervisor knows it; 0: it does not.

    Raises:
        NotPrivileged: this takes root.
        CommandNotRun: there is no such command, or it cannot be executed.
        SourceUnavailable: an address of the host, or its namespace, is not there.
        CannotRunAs: what it takes is not there; the command was not started.
    """
    if not privileges.effective() >> privileges.SYS_ADMIN & 1:
        action = f"run a program as {host.name}"
        raise NotPrivileged(action, "run it as root")
    program = find(command[0])
    if host.context is Context.NAMESPACE:
        enter(host, instance, identity)
        _prepare(host, instance, servers)
        _become(program, command)
    check_addresses(host)
    _prepare(host, instance, servers)
    return _in_cgroup(host, instance, program, command)


def find(command: str) -> str:
    """Return the file that a command stands for, as execvp(3) finds it.

    Raises:
        CommandNotRun: there is none, or it cannot be executed.
    """
    found = shutil.which(command)
    if found is not None:
        return found
    if not command or "/" not in command:
        # A file of the name that cannot be executed is the reason, if there is one.
        found = shutil.which(command, mode=os.F_OK) if command else None
        raise CommandNotRun(command, errno.EACCES if found else errno.ENOENT)
    path = Path(command)
    if not path.exists():
        raise CommandNotRun(command, errno.ENOENT)
    raise CommandNotRun(command, errno.EISDIR if path.is_dir() else errno.EACCES)


# Where it runs --------------------------------------------------------------------


def enter(host: VirtualHost, instance: str, identity: int = 0) -> None:
    """Enter the network namespace of a host, and make sure that its addresses are there.

    Raises:
        SourceUnavailable: it is not there or is another than ours, or they are not.
    """
    name = names.namespace(instance, host.name)
    address = str(host.addresses[0].address)
    try:
        namespaces.enter(name)
    except FileNotFoundError:
        reason = f"its network namespace {name} does not exist"
        raise SourceUnavailable(host.name, address, errno.ENOENT, reason) from None
    except OSError as error:
        reason = f"its network namespace {name}: {error.strerror}"
        raise SourceUnavailable(host.name, address, error.errno or 0, reason) from None
    if not is_ours(instance) or (identity and namespaces.identity() != identity):
        reason = f"the network namespace {name} is not the one that was made for it"
        raise SourceUnavailable(host.name, address, errno.ESTALE, reason)
    check_addresses(host)


def check_addresses(host: VirtualHost) -> None:
    """Say at once what every connect would fail with; the hooks do not rely on it.

    Raises:
        SourceUnavailable: an address to send from is not here.
    """
    for family in sorted(host.families):
        source = host.source(family)
        assert source is not None  # noqa: S101  families are those of its addresses
        domain = socket.AF_INET6 if family is Family.IPV6 else socket.AF_INET
        try:
            with socket.socket(domain, socket.SOCK_DGRAM) as sock:
                sock.bind((str(source.address), 0))
        except OSError as error:
            number = error.errno or 0
            raise SourceUnavailable(host.name, str(source.address), number) from None


# What it sees ---------------------------------------------------------------------


def _prepare(host: VirtualHost, instance: str, servers: Sequence[str]) -> None:
    """Give this process the host's name and files.

    Raises:
        CannotRunAs: the kernel refused.
    """
    apart = host.context is Context.NAMESPACE
    replaced = _own_files(NETNS / names.namespace(instance, host.name))
    made = own_files(host, servers)
    made = {path: text for path, text in made.items() if path not in replaced}
    try:
        kernel.unshare(kernel.CLONE_NEWNS | _CLONE_NEWUTS)
        socket.sethostname(host_files.node_name(host.name))
        # Nothing mounted here is seen elsewhere; what is mounted elsewhere is seen here.
        kernel.mount("", Path("/"), flags=kernel.MS_REC | kernel.MS_SLAVE)
        for path, source in replaced.items():
            kernel.mount(str(source), path, flags=kernel.MS_BIND)
        _show(made)
        if apart:
            _show_own_sys()
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        problem = f"cannot give them the host's files: {error.strerror}{where}"
        raise CannotRunAs(host.name, problem, "see mount_namespaces(7)") from None


def own_files(host: VirtualHost, servers: Sequence[str]) -> dict[Path, str]:
    """Return what /etc/hosts and /etc/resolv.conf are to say to programs of a host."""
    apart = host.context is Context.NAMESPACE
    system = [_text(RESOLV_CONF), _text(RESOLVED_CONF)]
    resolv_conf = host_files.resolv_conf(servers, system, own_loopback=apart)
    return {RESOLV_CONF: resolv_conf or "", HOSTS: host_files.hosts(host)}


def _own_files(folder: Path) -> dict[Path, Path]:
    """Return what is to be seen in /etc in place of what is there."""
    if not folder.is_dir():
        return {}
    return {Path("/etc", found.name): found for found in sorted(folder.iterdir())}


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _show(files: dict[Path, str]) -> None:
    """Show files in place of others. They lie nowhere, and go with the namespace."""
    # The way to one may lead through what is covered below (/run/systemd/resolve).
    targets = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in files}
    kernel.mount("vnsmail", _SCRATCH, kind="tmpfs", data="mode=0755,size=1m")
    try:
        for path, text in files.items():
            source = _SCRATCH / path.name
            source.write_text(text)
            source.chmod(0o644)
            target = Path(f"/proc/self/fd/{targets[path]}")
            kernel.mount(str(source), target, flags=kernel.MS_BIND)
    finally:
        kernel.detach(_SCRATCH)
        for fd in targets.values():
            os.close(fd)


def _show_own_sys() -> None:
    """Show a /sys that has the links of this network namespace."""
    flags = 0
    read_only = os.statvfs(_SYS).f_flag & os.ST_RDONLY
    try:
        kernel.detach(_SYS)
    except OSError:  # of a user namespace above, or there is none
        flags = _MS_RDONLY if read_only else 0
    kernel.mount("vnsmail", _SYS, kind="sysfs", flags=flags)


# Running it -----------------------------------------------------------------------


def _become(program: str, command: Sequence[str]) -> NoReturn:
    # Python ignores these, and exec would hand that down.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(program, list(command))  # noqa: S606  that is its job
    except OSError as error:
        raise CommandNotRun(command[0], error.errno or errno.EACCES) from None


def _in_cgroup(
    host: VirtualHost, instance: str, program: str, command: Sequence[str]
) -> int:
    passed = {int(number) for number in signal.valid_signals() - _NOT_PASSED}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, passed | {signal.SIGCHLD})
    try:
        with cgroups.made(instance, host.name) as cgroup:
            addresses = [each.address for each in host.addresses]
            mark = socket_mark(instance, host.name)
            connect_hook.attach(host.name, cgroup.fd, hooks(addresses, mark))
            child = _start(cgroup, program, command, before)
        try:
            return _wait(child, passed)
        finally:
            cgroups.remove(instance, host.name)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(
    cgroup: cgroups.Cgroup, program: str, command: Sequence[str], mask: set[int]
) -> int:
    """Start a command in a cgroup; returns its process.

    Raises:
        CannotRunAs: it could not be put there, and was not started.
        CommandNotRun: it could not be executed.
    """
    wait, go = os.pipe()
    listen, say = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(go)
            if os.read(wait, 1):
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                _become(program, command)
        except CommandNotRun as error:
            os.write(say, str(error.errno).encode())
        finally:
            os._exit(126)
    os.close(wait)
    os.close(say)
    try:
        cgroup.add(child)
        os.write(go, b"!")
    except BaseException:
        os.close(go)
        os.waitpid(child, 0)
        raise
    else:
        os.close(go)
        # It is closed unwritten when the child has become the program.
        failed = os.read(listen, 16)
    finally:
        os.close(listen)
    if failed:
        os.waitpid(child, 0)
        raise CommandNotRun(command[0], int(failed))
    return child


def _wait(child: int, passed: set[int]) -> int:
    """Pass signals to a child until it ends; returns its exit code, as a shell does."""
    while True:
        got = signal.sigwaitinfo(passed | {signal.SIGCHLD})
        if got.si_signo != signal.SIGCHLD:
            # What the terminal sends, it sends to everybody in the foreground.
            if got.si_code != _SI_KERNEL or os.getpgid(child) != os.getpgrp():
                os.kill(child, got.si_signo)
            continue
        ended, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if not ended:
            continue
        if os.WIFSTOPPED(status):
            # Whoever waits for us is to see that it stopped, and can let it go on.
            os.kill(os.getpid(), signal.SIGSTOP)
            os.kill(child, signal.SIGCONT)
            continue
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code
