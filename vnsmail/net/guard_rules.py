"""What the kernel is told so that no mail leaves from another host's address. Pure.

One nftables table, ``inet vnsmail`` or ``inet vnsmail_INSTANCE``, in the machine's own
network for all hosts with aliases, and one inside the namespace of each other host. A
TCP packet to a port of SMTP, on its way out:

    where       packet                                          what becomes of it
    namespace   over the loopback, or from an address of the     passes
                host's
                any other                                        dropped for the host
    machine     mark of a host, from an address of that host     passes
                mark of a host, from any other                   dropped for that host
                from a host's address to that same address       passes
                the first of a connection, from a host's         dropped, as borrowed
                address, without its mark                        from that host
                any other                                        passes

"Dropped for" and "borrowed from" are counters of the host. Lookups are in sets and maps,
so that a packet costs the same with one host and with a thousand.

Rules of this file: pure; what is wanted depends on the hosts alone, and has a digest
that is the name of an empty chain, so that one cheap question tells whether it is there.
``LAYOUT`` is raised when chains, sets or maps are called otherwise or hold other things
than before: guard_changes.py replaces tables of another layout as a whole.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from vnsmail.errors import Taken
from vnsmail.model import Context, HostName, IPAddress, VirtualHost
from vnsmail.net import names

SMTP_PORTS = (25, 465, 587)

MARK_OPTION = 12
"""SO_PRIORITY (socket(7)): the option of a socket that carries its mark.

It is a number the kernel hands on with each packet and that needs CAP_NET_ADMIN or
CAP_NET_RAW to set, as SO_MARK does. But nobody routes, masquerades or filters by it,
and many do by bits of SO_MARK (0x4000 is how Kubernetes asks for masquerading). Setting
IP_TOS sets it anew: a program that does so before it connects has lost its mark, and is
stopped as one that borrows an address.
"""

LAYOUT = 1

Command: TypeAlias = Mapping[str, Any]
"""One command of libnftables-json(5)."""

# The lowest four bits choose a queue of the link (tc-prio(8)) and stay 0, as without a
# mark. The upper half names a class of a queue (tc-htb(8)); people number those from 1.
_MARK_BITS, _MARK_SHIFT, _IS_MARK = 26, 4, 1 << 30

_COUNTER_LIMIT = 255  # bytes; NFT_OBJ_MAXNAMELEN is 256 with the final NUL
_DROPPED, _BORROWED, _FORGED = "drop-", "lent-", "forged-"

# Before connection tracking, and before operators' chains that change marks or
# destinations, which are at -200 to 0 (nft(8), "standard priority names").
_PRIORITY = -300


# What is wanted --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Table:
    """A table of ours in one network."""

    name: str
    hosts: tuple[HostName, ...]
    """Those it guards."""
    counters: tuple[str, ...]
    sets: tuple["NamedSet", ...]
    chains: tuple["Chain", ...]

    @property
    def state(self) -> str:
        """Name of the empty chain that says that all of this is there."""
        sets = [(each.definition, each.elements) for each in self.sets]
        chains = [(each.name, each.properties, each.rules) for each in self.chains]
        said = json.dumps([self.counters, sets, chains]).encode()
        digest = hashlib.blake2s(said, digest_size=16)
        return f"vnsmail-{LAYOUT}-{digest.hexdigest()}"


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A set, or a map to counters."""

    name: str
    key: str | tuple[str, ...]
    elements: tuple[Any, ...]
    maps: bool = False

    @property
    def kind(self) -> str:
        return "map" if self.maps else "set"

    @property
    def definition(self) -> dict[str, Any]:
        kind = self.key if isinstance(self.key, str) else list(self.key)
        return {"name": self.name, "type": kind} | (
            {"map": "counter"} if self.maps else {}
        )


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain and its rules."""

    name: str
    rules: tuple[Command, ...]
    properties: Command = field(default_factory=dict)
    """What makes the kernel send packets into it by itself."""


@dataclass(frozen=True, slots=True)
class GuardPlan:
    """The tables there should be."""

    machine: Table | None
    """In the machine's own network; None if no host has aliases."""
    inside: Mapping[str, Table] = field(default_factory=dict)
    """By name of the namespace."""


def desired(
    hosts: Iterable[VirtualHost], instance: str, ports: Sequence[int] = SMTP_PORTS
) -> GuardPlan:
    """Return the tables that guard these hosts.

    Raises:
        Taken: two hosts with aliases would have the same mark, or an address.
    """
    aliases: list[VirtualHost] = []
    inside: dict[str, Table] = {}
    for host in hosts:
        if host.context is Context.ALIAS:
            aliases.append(host)
        else:
            where = names.namespace(instance, host.name)
            inside[where] = _inside(host, instance, ports)
    return GuardPlan(_machine(aliases, instance, ports) if aliases else None, inside)


def table_name(instance: str) -> str:
    """Return what the tables of an instance are called."""
    return f"vnsmail_{instance}" if instance else "vnsmail"


def socket_mark(instance: str, host: str) -> int:
    """Return the mark of the sockets of a host with aliases; see MARK_OPTION.

    Of a thousand hosts two share one in seven machines of a thousand; ``desired``
    refuses the second.
    """
    digest = hashlib.blake2s(f"{instance}:{host}".encode(), digest_size=4).digest()
    number = int.from_bytes(digest) >> (32 - _MARK_BITS)
    return _IS_MARK | number << _MARK_SHIFT


def dropped_counter(host: str) -> str:
    """Return the name of the counter of packets from a wrong source."""
    return _counter(_DROPPED, host)


def borrowed_counter(host: str) -> str:
    """Return the name of the counter of others' attempts to use a host's address."""
    return _counter(_BORROWED, host)


def forged_counter(host: str) -> str:
    """Return the name of the counter of packets that a fence stopped."""
    return _counter(_FORGED, host)


def _counter(prefix: str, host: str) -> str:
    name = prefix + host
    if len(name) <= _COUNTER_LIMIT:
        return name
    # No host's name has an underscore, so this is no other's.
    return f"{prefix}_{hashlib.blake2s(host.encode()).hexdigest()}"


def _inside(host: VirtualHost, instance: str, ports: Sequence[int]) -> Table:
    counter = dropped_counter(host.name)
    own = [a.address for a in host.addresses]
    return Table(
        name=table_name(instance),
        hosts=(host.name,),
        counters=(counter,),
        sets=(
            NamedSet("own4", "ipv4_addr", _of(4, own)),
            NamedSet("own6", "ipv6_addr", _of(6, own)),
        ),
        chains=(
            _output(ports, rule(equal({"meta": {"key": "oif"}}, "lo"), RETURN)),
            Chain(
                _CHECK,
                (
                    rule(equal(_SOURCE4, "@own4"), RETURN),
                    rule(equal(_SOURCE6, "@own6"), RETURN),
                    rule({"counter": counter}, DROP),
                ),
            ),
        ),
    )


def _machine(
    hosts: Sequence[VirtualHost], instance: str, ports: Sequence[int]
) -> Table:
    marks = _marks(hosts, instance)
    own = {a.address: host.name for host in hosts for a in host.addresses}
    _refuse_shared_addresses(hosts, own)
    # In which order hosts were named is no difference.
    hosts = sorted(hosts, key=lambda host: host.name)
    return Table(
        name=table_name(instance),
        hosts=tuple(host.name for host in hosts),
        counters=tuple(
            name(host.name)
            for host in hosts
            for name in (dropped_counter, borrowed_counter)
        ),
        sets=tuple(_machine_sets(marks, own)),
        chains=(_output(ports), Chain(_CHECK, _MACHINE_RULES)),
    )


def _machine_sets(
    marks: Mapping[HostName, str], own: Mapping[IPAddress, HostName]
) -> Iterator[NamedSet]:
    dropped = [[mark, dropped_counter(name)] for name, mark in sorted(marks.items())]
    yield NamedSet("hosts", "classid", tuple(dropped), maps=True)
    names_of = {str(address): name for address, name in own.items()}
    for version in (4, 6):
        kind = f"ipv{version}_addr"
        mine = {a: names_of[a] for a in _of(version, own)}
        yield NamedSet(
            f"own{version}",
            ("classid", kind),
            tuple({"concat": [marks[name], a]} for a, name in mine.items()),
        )
        yield NamedSet(
            f"self{version}", (kind, kind), tuple({"concat": [a, a]} for a in mine)
        )
        yield NamedSet(
            f"aliases{version}",
            kind,
            tuple([a, borrowed_counter(name)] for a, name in mine.items()),
            maps=True,
        )


def _marks(hosts: Iterable[VirtualHost], instance: str) -> dict[HostName, str]:
    """Return each host's mark, as tc-htb(8) writes a class."""
    holders: dict[int, HostName] = {}
    for host in hosts:
        mark = socket_mark(instance, host.name)
        holder = holders.setdefault(mark, host.name)
        if holder != host.name:
            remedy = (
                f"its sockets would have the mark of those of {holder}; "
                "give it a namespace (--context namespace)"
            )
            raise Taken("virtual host", host.name, remedy)
    return {name: f"{mark >> 16:x}:{mark & 0xFFFF:x}" for mark, name in holders.items()}


def _refuse_shared_addresses(
    hosts: Iterable[VirtualHost], own: Mapping[IPAddress, HostName]
) -> None:
    for host in hosts:
        for each in host.addresses:
            if (holder := own[each.address]) != host.name:
                raise Taken("address", str(each.address), f"{holder} has it")


# Words of libnftables-json(5) ------------------------------------------------------


def rule(*statements: Command) -> Command:
    return {"expr": list(statements)}


def payload(protocol: str, name: str) -> Command:
    return {"payload": {"protocol": protocol, "field": name}}


def equal(left: Command, right: object) -> Command:
    return {"match": {"op": "==", "left": left, "right": right}}


def count(key: Command, counters: str) -> Command:
    return {"counter": {"map": {"key": key, "data": counters}}}


def _output(ports: Sequence[int], *exempt: Command) -> Chain:
    """Return the chain that every packet on its way out goes through."""
    wanted = {"set": sorted(set(ports))}
    to_smtp = equal(payload("tcp", "dport"), wanted)
    rules = (*exempt, rule(to_smtp, {"jump": {"target": _CHECK}}))
    return Chain("output", rules, _OUTPUT)


def _of(version: int, addresses: Iterable[IPAddress]) -> tuple[str, ...]:
    return tuple(sorted(str(a) for a in addresses if a.version == version))


_CHECK = "check"
_OUTPUT: Command = {
    "type": "filter",
    "hook": "output",
    "prio": _PRIORITY,
    "policy": "accept",
}
RETURN: Command = {"return": None}
DROP: Command = {"drop": None}
_MARK: Command = {"meta": {"key": "priority"}}
_SOURCE4, _SOURCE6 = payload("ip", "saddr"), payload("ip6", "saddr")
_TARGET4, _TARGET6 = payload("ip", "daddr"), payload("ip6", "daddr")
_FIRST = equal({"&": [payload("tcp", "flags"), ["fin", "syn", "rst", "ack"]]}, "syn")

_MACHINE_RULES = (
    rule(equal({"concat": [_MARK, _SOURCE4]}, "@own4"), RETURN),
    rule(equal({"concat": [_MARK, _SOURCE6]}, "@own6"), RETURN),
    # A rule ends where its map holds nothing of the packet.
    rule(count(_MARK, "@hosts"), DROP),
    # From the machine to an alias, the kernel's choice of a source is that alias.
    rule(equal({"concat": [_SOURCE4, _TARGET4]}, "@self4"), RETURN),
    rule(equal({"concat": [_SOURCE6, _TARGET6]}, "@self6"), RETURN),
    # Not what comes later in a connection: the kernel's refusals to strangers, who may
    # send from port 25, have an alias as source and no mark.
    rule(_FIRST, count(_SOURCE4, "@aliases4"), DROP),
    rule(_FIRST, count(_SOURCE6, "@aliases6"), DROP),
)
