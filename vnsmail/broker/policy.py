"""Who may have which socket. Pure.

Rules of this file: what was not granted is refused; nothing is opened by name of an
address alone, it is always the address of an owner; an owner is granted to one worker
at a time; the machine's sockets, which are not bound, are never mixed with those of a
virtual host in one worker, who could bind them to the address of another.
"""

import contextlib
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from errno import EAFNOSUPPORT
from typing import Literal, TypeAlias, cast

from vnsmail.broker import protocol
from vnsmail.broker.protocol import HostGrant, Kind
from vnsmail.errors import BrokerRefused
from vnsmail.model import MACHINE, Family, IPAddress

_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""A name of a file in /run/netns, and never a path."""


@dataclass(frozen=True, slots=True)
class Connectable:
    """Open a TCP socket to be connected."""

    namespace: str
    family: Family
    source: str | None
    """The address to bind it to; None, for the machine only: the kernel chooses."""
    mark: int = 0
    """See HostGrant; 0: none."""
    identity: int = 0
    """Of the namespace; see HostGrant."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Open a TCP socket that listens."""

    namespace: str
    family: Family
    source: str
    port: int
    identity: int = 0
    """Of the namespace; see HostGrant."""


@dataclass(frozen=True, slots=True)
class Resolver:
    """Open a socket connected to a name server."""

    transport: Literal["udp", "tcp"]
    family: Family
    server: str
    namespace: str = ""
    source: str | None = None
    """The address to bind it to; None, for the machine only: the kernel chooses."""
    mark: int = 0
    identity: int = 0
    """Of the namespace; see HostGrant."""


@dataclass(frozen=True, slots=True)
class EngineSocket:
    """Open a Unix socket connected to an owner's engine."""

    path: str
    namespace: str = ""
    identity: int = 0
    source: str | None = None
    """It has none."""


@dataclass(frozen=True, slots=True)
class Store:
    """Open a Unix socket connected to a mail store; it reaches nothing but that."""

    path: str
    namespace: str = ""
    source: str | None = None
    identity: int = 0


@dataclass(frozen=True, slots=True)
class _Granted:
    """A grant that was found to be sound."""

    namespace: str
    addresses: frozenset[IPAddress]
    sources: dict[Family, str | None]
    """What to bind to, by family."""
    mark: int = 0
    resolvers: frozenset[IPAddress] = frozenset()
    identity: int = 0
    engine: str = ""


Opening: TypeAlias = Connectable | Listener | Resolver | EngineSocket | Store
Refusal: TypeAlias = protocol.Refused | protocol.Unavailable


class Policy:
    """What was granted, and the decisions that follow from it."""

    def __init__(self) -> None:
        self._ports: frozenset[int] = frozenset()
        self._resolvers: frozenset[IPAddress] = frozenset()
        self._stores: frozenset[tuple[str, str]] = frozenset()
        self._granted: dict[str, dict[str, _Granted]] = {}

    # What the supervisor says -------------------------------------------------

    def configure(
        self,
        ports: Iterable[int],
        resolvers: Iterable[str],
        stores: Iterable[protocol.Store] = (),
    ) -> None:
        """Take ports to listen on, name servers and stores, in place of any earlier.

        A server that nobody can ask, such as 0.0.0.0 in a resolv.conf(5), is left out:
        a question to it is refused, and the next server is asked.
        """
        servers: set[IPAddress] = set()
        for text in resolvers:
            with contextlib.suppress(BrokerRefused):
                servers.add(_address(text, "name server"))
        self._ports, self._resolvers = frozenset(ports), frozenset(servers)
        self._stores = frozenset((store.owner, store.path) for store in stores)

    def attach(self, worker: str) -> None:
        """Begin anew with a worker: nothing is granted to it."""
        self._granted.pop(worker, None)

    def grant(self, worker: str, hosts: Iterable[HostGrant]) -> None:
        """Let a worker have the sockets of these hosts, all or none of them.

        Raises:
            BrokerRefused: a grant that cannot be.
        """
        sound = {host.name: _sound(host) for host in hosts}
        names = {*sound, *self._granted.get(worker, ())}
        if MACHINE in names and len(names) > 1:
            raise _no(
                "malformed", f"{worker} cannot have the machine and virtual hosts"
            )
        for name, host in sound.items():
            for others in self._granted.values():
                others.pop(name, None)
            self._granted.setdefault(worker, {})[name] = host

    def revoke(self, worker: str, host: str) -> None:
        """Let a worker have no more sockets of a host."""
        self._granted.get(worker, {}).pop(host, None)

    # What a worker asks -------------------------------------------------------

    def decide(self, worker: str, request: protocol.WorkerRequest) -> Opening | Refusal:
        """Return what to open for a worker, or the answer that it gets instead."""
        try:
            match request:
                case protocol.OpenConnectable():
                    return self._connectable(worker, request)
                case protocol.OpenListener():
                    return self._listener(worker, request)
                case protocol.OpenResolver():
                    return self._resolver(worker, request)
                case protocol.OpenEngine():
                    return self._engine(worker, request)
                case protocol.OpenStore():
                    return self._store(worker, request)
        except BrokerRefused as error:
            return refused(request.id, error)

    def _connectable(
        self, worker: str, request: protocol.OpenConnectable
    ) -> Connectable | protocol.Unavailable:
        host = self._owned(worker, request.owner)
        family = Family(request.family)
        if family in host.sources:
            source = host.sources[family]
            return Connectable(host.namespace, family, source, host.mark, host.identity)
        reason = f"it has no IPv{request.family} address"
        return protocol.Unavailable(request.id, EAFNOSUPPORT, reason, None)

    def _engine(self, worker: str, request: protocol.OpenEngine) -> EngineSocket:
        host = self._owned(worker, request.owner)
        if not host.engine:
            raise _no("server", f"{request.owner} has no engine but its worker")
        return EngineSocket(host.engine)

    def _listener(self, worker: str, request: protocol.OpenListener) -> Listener:
        host = self._owned(worker, request.owner)
        address = _address(request.address, "address")
        if address not in map(ipaddress.ip_address, host.addresses):
            raise _no(
                "no_such_address", f"{address} is not an address of {request.owner}"
            )
        if request.port not in self._ports:
            raise _no("port", f"nobody may listen on port {request.port}")
        family = Family(address.version)
        return Listener(
            host.namespace, family, str(address), request.port, host.identity
        )

    def _resolver(
        self, worker: str, request: protocol.OpenResolver
    ) -> Resolver | protocol.Unavailable:
        server = _address(request.server, "name server")
        if request.owner:
            return self._own_resolver(worker, request, server)
        if server not in self._resolvers:
            raise _no("server", f"{server} is not one of the name servers to ask")
        return Resolver(request.transport, Family(server.version), str(server))

    def _own_resolver(
        self, worker: str, request: protocol.OpenResolver, server: IPAddress
    ) -> Resolver | protocol.Unavailable:
        host = self._owned(worker, request.owner)
        if server not in host.resolvers:
            raise _no("server", f"{server} is not a name server of {request.owner}")
        family = Family(server.version)
        if family not in host.sources:
            reason = f"it has no IPv{family.value} address"
            return protocol.Unavailable(request.id, EAFNOSUPPORT, reason, None)
        return Resolver(
            request.transport,
            family,
            str(server),
            host.namespace,
            host.sources[family],
            host.mark,
            host.identity,
        )

    def _store(self, worker: str, request: protocol.OpenStore) -> Store:
        self._owned(worker, request.owner)
        if not {("", request.path), (request.owner, request.path)} & self._stores:
            raise _no("store", f"{request.path} is not a store of {request.owner}")
        return Store(request.path)

    def _owned(self, worker: str, owner: str) -> _Granted:
        host = self._granted.get(worker, {}).get(owner)
        if host is None:
            raise _no("not_owned", f"{worker} does not own {owner}")
        return host


def refused(number: int, error: BrokerRefused) -> protocol.Refused:
    """Return the answer that tells of a refusal."""
    return protocol.Refused(number, cast("Kind", error.kind), error.text)


def _sound(host: HostGrant) -> _Granted:
    """Return what a grant says; raises BrokerRefused for one that cannot be."""
    addresses = [_address(text, "address") for text in host.addresses]
    if host.name == MACHINE:
        if addresses or host.namespace or host.resolvers or host.engine:
            raise _no("malformed", "the machine's sockets are bound to nothing")
        return _Granted("", frozenset(), dict.fromkeys(Family))
    if not addresses:
        # Without one its sockets would be unbound, and leave from the machine's.
        raise _no("malformed", f"{host.name} has no address")
    if host.namespace and not _NAMESPACE.fullmatch(host.namespace):
        raise _no("malformed", f"{host.namespace!r} is no name of a namespace")
    sources: dict[Family, str | None] = {}
    for address in addresses:
        sources.setdefault(Family(address.version), str(address))
    resolvers = frozenset(_address(text, "name server") for text in host.resolvers)
    return _Granted(
        host.namespace,
        frozenset(addresses),
        sources,
        host.mark,
        resolvers,
        host.identity,
        host.engine,
    )


def _address(text: str, what: str) -> IPAddress:
    """Return an address that can be one end of a connection."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise _no("malformed", f"{what} {text!r} is not an IP address") from None
    if address.is_unspecified or address.is_multicast:
        raise _no("malformed", f"{what} {text!r} is nobody's address")
    if isinstance(address, ipaddress.IPv6Address) and (
        address.scope_id or address.ipv4_mapped
    ):
        raise _no("malformed", f"{what} {text!r} is mapped or scoped")
    return address


def _no(kind: Kind, text: str) -> BrokerRefused:
    return BrokerRefused(kind, text)
