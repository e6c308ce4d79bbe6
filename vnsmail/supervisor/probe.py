"""Looking at what is there, for ``vnsmail doctor``.

Rules of this file: nothing is changed but that a session is begun on each host's port,
and ended politely; each thing is looked at where it is: in the host's own namespace, in
the process's own entry of /proc; no judgement is made here (examine.py).
"""

import contextlib
import ctypes
import os
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vnsmail.errors import VnsmailError
from vnsmail.model import Context, Family, IPAddress, VirtualHost
from vnsmail.net import cgroups, names, namespaces, nftables
from vnsmail.net.guard_rules import MARK_OPTION, socket_mark
from vnsmail.net.observe import observe
from vnsmail.settings import Layout
from vnsmail.supervisor import examine
from vnsmail.supervisor.examine import Finding, ProcessFacts
from vnsmail.supervisor.network import Network
from vnsmail.supervisor.privileges import capability
from vnsmail.supervisor.services import BROKER_CAPABILITIES

PATIENCE = 5.0
"""Seconds for all hosts of a batch to say who they are."""

AT_ONCE = 100
"""Hosts that are listened to at a time: a socket or more each."""

TIMEX = 512
"""Octets; struct timex has 208 on 64-bit machines."""

TIME_ERROR = 5
"""Clock not synchronized (sys/timex.h)."""

_ADD_READ = "dac_read_search"
"""The broker may keep it where Python lies in somebody's home (launch.py)."""


# The network --------------------------------------------------------------------


def network(layout: Layout, hosts: Sequence[VirtualHost]) -> Iterator[Finding]:
    """Compare the network with what is planned for these hosts."""
    try:
        actual = observe(layout.instance)
        planned = Network(layout.instance)
        steps = planned.steps(hosts, actual)
    except (VnsmailError, OSError) as error:
        yield examine.failed("network", "all hosts", error)
        return
    concerned = planned.concerned(steps, hosts)
    told = {words for each in concerned.values() for words in each}
    others = [words for step in steps if (words := step.describe()) not in told]
    yield from examine.network((host.name for host in hosts), concerned, others)


@dataclass(slots=True)
class _Knock:
    """An address of a host that was knocked at."""

    host: VirtualHost
    address: str
    said: bytes | OSError = b""
    unbindable: OSError | None = None
    connection: socket.socket | None = None


def doors(
    layout: Layout, hosts: Sequence[VirtualHost], port: int, *, served: bool
) -> Iterator[Finding]:
    """Find out whether each address can be bound, and whether mail is taken there.

    Args:
        layout: of the root.
        hosts: all of them.
        port: on which they should listen.
        served: whether anybody should be listening.
    """
    for start in range(0, len(hosts), AT_ONCE):
        try:
            knocks = _knock(
                layout, hosts[start : start + AT_ONCE], port if served else 0
            )
        except OSError as error:
            yield examine.failed("address", "all hosts", error)
            return
        try:
            _listen([knock for knock in knocks if knock.connection])
        finally:
            for knock in knocks:
                if knock.connection:
                    knock.connection.close()
        for knock in knocks:
            suspended = knock.host.suspended
            yield from _judged(knock, port if served and not suspended else 0)


def reach(
    layout: Layout, hosts: Sequence[VirtualHost], target: IPAddress, port: int
) -> Iterator[Finding]:
    """Find out whether a server can be reached from each host's own address.

    Args:
        layout: of the root.
        hosts: all of them; one without an address of that family is passed over.
        target: the server, which hears from every host.
        port: on which it takes mail.
    """
    family = Family(target.version)
    concerned = [host for host in hosts if host.source(family)]
    for start in range(0, len(concerned), AT_ONCE):
        some = concerned[start : start + AT_ONCE]
        knocks = [_call(layout, host, target, port) for host in some]
        try:
            _listen([knock for knock in knocks if knock.connection])
        finally:
            for knock in knocks:
                if knock.connection:
                    knock.connection.close()
        for knock in knocks:
            yield examine.reached(
                knock.host.name, knock.address, f"port {port} of {target}", knock.said
            )


def _call(layout: Layout, host: VirtualHost, target: IPAddress, port: int) -> _Knock:
    """Begin to connect to a server from the address that a host's mail leaves from."""
    source = host.source(Family(target.version))
    assert source is not None  # noqa: S101  the caller's choice
    knock = _Knock(host, str(source.address))
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6

    def begin() -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            if host.context is Context.ALIAS:
                mark = socket_mark(layout.instance, host.name)
                sock.setsockopt(socket.SOL_SOCKET, MARK_OPTION, mark)
            sock.bind((knock.address, 0))
            with contextlib.suppress(BlockingIOError):
                sock.connect((str(target), port))
        except BaseException:
            sock.close()
            raise
        return sock

    try:
        if host.context is Context.NAMESPACE:
            name = names.namespace(layout.instance, host.name)
            knock.connection = namespaces.inside(name, begin)
        else:
            knock.connection = begin()
    except OSError as error:
        knock.said = error
    return knock


def _judged(knock: _Knock, port: int) -> Iterator[Finding]:
    name = knock.host.name
    if knock.unbindable:
        why = knock.unbindable.strerror
        text = f"{knock.address} cannot be used: {why}"
        yield Finding("address", name, "wrong", text, examine.AGAIN)
        return
    yield Finding("address", name, "ok", f"{knock.address} can be bound")
    if port:
        yield examine.banner(name, knock.address, port, knock.said)


def _knock(layout: Layout, hosts: Sequence[VirtualHost], port: int) -> list[_Knock]:
    by_namespace = {
        names.namespace(layout.instance, host.name): host
        for host in hosts
        if host.context is Context.NAMESPACE
    }
    with namespaces.Visitor() as visitor:
        found = visitor.run_each(
            by_namespace,
            lambda name: _knock_at(
                by_namespace[name], _unless_suspended(by_namespace[name], port)
            ),
        )
    knocks: list[_Knock] = []
    for name, result in found.items():
        if isinstance(result, OSError):
            host = by_namespace[name]
            missing = FileNotFoundError(result.errno, "its namespace is not there")
            knocks += [
                _Knock(host, str(a.address), unbindable=missing) for a in host.addresses
            ]
        else:
            knocks += result
    for host in hosts:
        if host.context is Context.ALIAS:
            knocks += _knock_at(host, _unless_suspended(host, port))
    return knocks


def _unless_suspended(host: VirtualHost, port: int) -> int:
    return 0 if host.suspended else port


def _knock_at(host: VirtualHost, port: int) -> list[_Knock]:
    """Try the addresses of a host, in the namespace of the calling thread."""
    knocks = []
    for each in host.addresses:
        knock = _Knock(host, str(each.address))
        knocks.append(knock)
        family = socket.AF_INET if each.address.version == 4 else socket.AF_INET6
        try:
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.bind((knock.address, 0))
        except OSError as error:
            knock.unbindable = error
            continue
        if port:
            _begin(knock, family, port)
    return knocks


def _begin(knock: _Knock, family: socket.AddressFamily, port: int) -> None:
    """Connect from the loopback, whose address is nobody's source of mail."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind(("127.0.0.1" if family is socket.AF_INET else "::1", 0))
        with contextlib.suppress(BlockingIOError):
            sock.connect((knock.address, port))
    except OSError as error:
        knock.said = error
        sock.close()
    else:
        knock.connection = sock


def _listen(knocks: Sequence[_Knock]) -> None:
    """Hear what is said first, and say goodbye."""
    deadline = time.monotonic() + PATIENCE
    with selectors.DefaultSelector() as selector:
        for knock in knocks:
            assert knock.connection is not None  # noqa: S101  the caller's choice
            selector.register(knock.connection, selectors.EVENT_READ, knock)
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(deadline - time.monotonic()):
                knock, sock = key.data, key.fileobj
                assert isinstance(sock, socket.socket)  # noqa: S101
                selector.unregister(sock)
                try:
                    knock.said = sock.recv(512)
                    sock.send(b"QUIT\r\n")
                except OSError as error:
                    knock.said = error


# Processes ----------------------------------------------------------------------


def process(pid: int, supervisor: int) -> ProcessFacts | None:
    """Return what the kernel says of a process; None if it is not there."""
    folder = Path(f"/proc/{pid}")
    try:
        lines = (folder / "status").read_text().splitlines()
        limits = (folder / "limits").read_text().splitlines()
        began = int((folder / "stat").read_text().rpartition(")")[2].split()[19])
        own = os.readlink(folder / "ns" / "net")
        shared = os.readlink(f"/proc/{supervisor}/ns/net")
        descriptors = len(os.listdir(folder / "fd"))
        up = float(Path("/proc/uptime").read_text().split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return None
    status = {k: v.strip() for k, _, v in (line.partition(":") for line in lines)}
    limit = next(line.split()[3] for line in limits if line.startswith("Max open"))
    return ProcessFacts(
        status=status,
        own_network=own != shared,
        age=up - began / os.sysconf("SC_CLK_TCK"),
        descriptors=descriptors,
        limit=int(limit) if limit.isdigit() else 2**31,
    )


def broker_capabilities() -> int:
    """Return the capabilities that the broker may have, as a bit set."""
    allowed = [*BROKER_CAPABILITIES.split(","), _ADD_READ]
    return sum(1 << capability(name) for name in allowed)


# The machine --------------------------------------------------------------------


def machine(layout: Layout) -> Iterator[Finding]:
    """Look at what the machine gives: room, and what is not everywhere."""
    try:
        found = os.statvfs(layout.state)
    except OSError as error:
        yield examine.failed("disk", str(layout.state), error)
    else:
        size = found.f_frsize
        yield examine.disk(
            str(layout.state),
            found.f_bavail * size,
            found.f_blocks * size,
            found.f_favail,
            found.f_files,
        )
    try:
        nftables.check()
    except VnsmailError as error:
        remedy = "install libnftables1, or load the kernel's nf_tables"
        yield Finding("libnftables", "machine", "wrong", str(error), remedy)
    else:
        yield Finding("libnftables", "machine", "ok", "there")
    mount = cgroups.mounted(Path("/proc/self/mountinfo").read_bytes())
    if mount is None:
        text = "not mounted; only `vnsmail exec` for a host with an alias needs it"
        yield Finding("cgroup2", "machine", "ok", text)
    else:
        yield Finding("cgroup2", "machine", "ok", f"at {mount}")


def clock(layout: Layout) -> Finding:
    """Judge the machine's clock."""
    newest = 0.0
    for path in (layout.directory_db, layout.state):
        with contextlib.suppress(OSError):
            newest = max(newest, path.stat().st_mtime)
    # struct timex (adjtimex(2)) with modes 0 changes nothing.
    asked = ctypes.create_string_buffer(TIMEX)
    state = ctypes.CDLL(None).adjtimex(asked)
    synchronized = state not in {-1, TIME_ERROR}
    return examine.clock(time.time(), newest, synchronized=synchronized)
