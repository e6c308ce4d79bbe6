"""Opening sockets in the network namespace they belong to. PRIVILEGED.

Rules of this file: a socket is bound before anybody else sees it; if that fails it is
closed, and the errno is the answer, never another socket; so it is if the namespace is
another than the one that was made, for a name can be given anew, or if the socket came
out bound to another address. What is to be opened was decided by policy.py. The calling thread never leaves the machine's namespace.

What a holder could do with a socket, as found on Linux 6.18 (the filter of
supervisor/seccomp.py follows from it):

    bind(2) again         succeeds: with IP_BIND_ADDRESS_NO_PORT a bound socket has no
                          port yet, which to the kernel means not bound. The holder can
                          take any address of the namespace, so bind is refused there.
    connect(AF_UNSPEC)    keeps the address, also of an accepted socket; but it lets go
                          of the port, after which bind(2) succeeds again.
    IPV6_V6ONLY off       succeeds for the same reason, and then a connect to
                          ::ffff:10.0.0.1 comes from 127.0.0.6; it reaches this machine
                          only. Options of IP and IPv6 are refused there.
    a resolver's socket   is unbound, and connect(AF_UNSPEC) frees it to be connected to
                          anybody: from the machine's address. So it gets a filter that
                          cannot be removed, and hears nobody but the name server; no
                          TCP connection to another comes about. A datagram can still
                          be sent to another, who cannot answer.
"""

import contextlib
import ctypes
import errno
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, assert_never

from vnsmail.broker.policy import (
    Connectable,
    EngineSocket,
    Listener,
    Opening,
    Resolver,
    Store,
)
from vnsmail.model import Family
from vnsmail.net.guard_rules import MARK_OPTION
from vnsmail.net.namespaces import Visitor, identity

IP_BIND_ADDRESS_NO_PORT = 24
"""From linux/in.h. The port is chosen at connect, when the destination is known, so one
address is good for all ports to each destination, not for 28,232 connections in all."""

BACKLOG = 1024
"""Connections not yet accepted. OpenSMTPD's 5 makes clients hang in a burst."""

DNS_PORT = 53

_SO_ATTACH_FILTER = 26
_SO_LOCK_FILTER = 44
_DOMAINS = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_FLAGS = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


@dataclass(frozen=True, slots=True)
class Failed:
    """The kernel refused; what it said, or words that say more."""

    errno: int
    reason: str


Result: TypeAlias = int | Failed
"""A descriptor, which the caller closes, or why there is none."""

_NOTHING = Failed(errno.EIO, "it was not opened")


class Opener:
    """Opens sockets; has one thread to enter namespaces with."""

    def __init__(self) -> None:
        self._visitor = Visitor()

    def close(self) -> None:
        """End the thread."""
        self._visitor.close()

    def open(self, openings: Sequence[Opening]) -> list[Result]:
        """Return a result for each opening; each namespace is entered once."""
        places: dict[str, list[int]] = {}
        for index, opening in enumerate(openings):
            places.setdefault(opening.namespace, []).append(index)
        results: list[Result] = [_NOTHING] * len(openings)

        def open_in(place: str) -> None:
            here = identity() if place else 0
            for index in places[place]:
                wanted = openings[index].identity
                if wanted and wanted != here:
                    results[index] = _replaced(place)
                else:
                    results[index] = _open(openings[index])

        if "" in places:
            open_in("")
        elsewhere = [place for place in places if place]
        visited = self._visitor.run_each(elsewhere, open_in) if elsewhere else {}
        for place, error in visited.items():
            if error is not None:
                for index in places[place]:
                    results[index] = _not_entered(place, error)
        return results


def _open(opening: Opening) -> Result:
    try:
        match opening:
            case Connectable():
                return _connectable(opening)
            case Listener():
                return _listener(opening)
            case Resolver():
                return _resolver(opening)
            case EngineSocket():
                return _engine(opening)
            case Store():
                return _store(opening)
            case _:
                assert_never(opening)
    except OSError as error:
        number = error.errno or errno.EINVAL
        return Failed(number, os.strerror(number))


def _not_entered(namespace: str, error: OSError) -> Failed:
    if isinstance(error, FileNotFoundError):
        reason = f"its network namespace {namespace} does not exist"
    else:
        reason = f"its network namespace {namespace}: {error.strerror}"
    return Failed(error.errno or errno.EINVAL, reason)


def _replaced(namespace: str) -> Failed:
    reason = f"its network namespace {namespace} is not the one that was made for it"
    return Failed(errno.ESTALE, reason)


def _bind(sock: socket.socket, source: str, port: int = 0) -> None:
    """Bind a socket, and make sure of where it is bound.

    Raises:
        OSError: it cannot be; EADDRNOTAVAIL also if it came out as another address.
    """
    sock.bind((source, port))
    bound = sock.getsockname()[0]
    if bound != source and _packed(sock, bound) != _packed(sock, source):
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


def _packed(sock: socket.socket, address: str) -> bytes:
    return socket.inet_pton(sock.family, address)


def _connectable(opening: Connectable) -> int:
    with _stream(opening.family) as sock:
        if opening.mark:
            sock.setsockopt(socket.SOL_SOCKET, MARK_OPTION, opening.mark)
        if opening.source is not None:
            sock.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            _bind(sock, opening.source)
        return sock.detach()


def _engine(opening: EngineSocket) -> Result:
    """Connect to an engine. It listens while it runs, so that this waits for nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | _FLAGS) as sock:
        try:
            sock.connect(opening.path)
        except OSError as error:
            number = error.errno or errno.EIO
            return Failed(number, "its engine does not take mail at the moment")
        return sock.detach()


def _listener(opening: Listener) -> int:
    with _stream(opening.family) as sock:
        # Else connections of an earlier listener in TIME_WAIT would keep it away.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _bind(sock, opening.source, opening.port)
        sock.listen(BACKLOG)
        return sock.detach()


def _resolver(opening: Resolver) -> int:
    kind = socket.SOCK_DGRAM if opening.transport == "udp" else socket.SOCK_STREAM
    with socket.socket(_DOMAINS[opening.family], kind | _FLAGS) as sock:
        if opening.mark:
            sock.setsockopt(socket.SOL_SOCKET, MARK_OPTION, opening.mark)
        if opening.source is not None:
            sock.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            _bind(sock, opening.source)
        _hear_only(sock, opening.server, DNS_PORT)
        # A TCP connection takes its time; whoever writes waits for it.
        with contextlib.suppress(BlockingIOError):
            sock.connect((opening.server, DNS_PORT))
        return sock.detach()


def _store(opening: Store) -> int:
    """Return a connected socket: whoever holds it needs no way to the path.

    Connected, it stays so (unix(7)): it can be connected to nobody else.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | _FLAGS) as sock:
        sock.connect(opening.path)
        return sock.detach()


def _stream(family: Family) -> socket.socket:
    sock = socket.socket(_DOMAINS[family], socket.SOCK_STREAM | _FLAGS)
    if family is Family.IPV6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def _hear_only(sock: socket.socket, address: str, port: int) -> None:
    """Let the kernel drop what comes from elsewhere, for as long as the socket lives.

    For a TCP socket this takes CAP_NET_ADMIN (Linux 6.18).

    A program for SO_ATTACH_FILTER sees a segment or datagram from its header on, so the
    source port is at 0; the IP header is at SKF_NET_OFF (linux/filter.h).
    """
    load, load_half, equal, give = 0x20, 0x28, 0x15, 0x06  # BPF_LD.. in linux/filter.h
    network = 0xFFF00000
    packed = socket.inet_pton(sock.family, address)
    offset = 12 if sock.family == socket.AF_INET else 8  # of the source address
    words = struct.unpack(f"!{len(packed) // 4}I", packed)
    tests = [(load_half, 0, port)] + [
        (load, network + offset + 4 * i, word) for i, word in enumerate(words)
    ]
    program: list[tuple[int, int, int, int]] = []
    for number, (code, where, value) in enumerate(tests):
        to_end = 2 * (len(tests) - number - 1) + 1
        program += [(code, 0, 0, where), (equal, 0, to_end, value)]
    program += [(give, 0, 0, 0xFFFFFFFF), (give, 0, 0, 0)]
    packed_program = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(packed_program, len(packed_program))
    wanted = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, wanted)
    sock.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)
