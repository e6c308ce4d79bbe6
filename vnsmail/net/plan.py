"""What must be done to the network so that it is as desired.

Rules of this file: pure; the plan depends on what is there and on what should be there,
not on how it came about, so it finishes whatever was cut off; planning again after
applying gives nothing; what should not be goes before what should be comes, so that an
address can move from one host to another; nothing is named in a plan that is not ours.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from vnsmail.errors import Taken
from vnsmail.model import (
    Context,
    Family,
    HostName,
    IPAddress,
    SourceAddress,
    Uplink,
    VirtualHost,
)
from vnsmail.net import names
from vnsmail.net.by_source import BySource
from vnsmail.net.choose import choose_gateways, choose_link
from vnsmail.net.facts import Actual, Alias, Desired, Link, Namespace
from vnsmail.net.fit import reduced
from vnsmail.net.routed import Routing
from vnsmail.net.steps import (
    AddAddress,
    AddAlias,
    AddNeighbour,
    Connect,
    JoinBridge,
    MakeNamespace,
    MakeVlan,
    RemoveAddress,
    RemoveAlias,
    RemoveGateway,
    RemoveLink,
    RemoveNamespace,
    SetGateway,
    SetMtu,
    SetPortUp,
    SetUp,
    Step,
)

__all__ = ["Actual", "Desired", "Step", "choose_gateways", "choose_link", "plan"]


def plan(
    desired: Desired, actual: Actual, instance: str, only: HostName | None = None
) -> tuple[Step, ...]:
    """Return the steps from the network as it is to the network as it should be.

    Args:
        desired: all virtual hosts of this instance; what others are there go.
        actual: the network as observed.
        instance: tells the things of this root from those of others (settings.Layout).
        only: plan for this host alone, for no other was looked at (observe.py); it is
            one of the desired, or to be removed.

    Raises:
        Taken: two hosts would have links of the same name.
    """
    there = _There(
        links={link.name: link for link in actual.links},
        namespaces={each.name: each for each in actual.namespaces},
    )
    inside = [h for h in desired.hosts if h.context is Context.NAMESPACE]
    _refuse_same_ports(inside, instance)
    hosts = [
        _Host(host, there, instance) for host in inside if only in {None, host.name}
    ]
    aliases = {
        (host.link, a.address): host
        for host in desired.hosts
        if host.context is Context.ALIAS
        for a in host.addresses
    }
    kept = {(a.link, a.address) for a in actual.aliases if a.quiet} & aliases.keys()
    if only is not None:
        there = there.of(only, instance)
    vlans = _Vlans(inside, hosts, actual, instance, only)
    routing = Routing(inside, actual, instance, only)
    by_source = BySource(desired.hosts, actual, instance)
    return (
        *routing.surplus(),
        *_surplus(hosts, there),
        *(step for host in hosts for step in host.surplus()),
        *vlans.surplus(),
        *_surplus_aliases(actual.aliases, kept),
        *by_source.surplus(),
        *vlans.missing(),
        *(step for host in hosts for step in host.missing()),
        *routing.missing({host.port for host in hosts if host.is_kept}),
        *(step for host in hosts for step in host.arrival()),
        *by_source.missing(),
        *(
            AddAlias(link, address, host.name)
            for (link, address), host in aliases.items()
            if (link, address) not in kept and only in {None, host.name}
        ),
    )


@dataclass(frozen=True, slots=True)
class _There:
    """What is there, by name."""

    links: Mapping[str, Link]
    namespaces: Mapping[str, Namespace]

    def ours(self, name: str) -> Link | None:
        """Return a link of the machine if it is there and ours."""
        link = self.links.get(name)
        return link if link is not None and link.ours else None

    def is_pair(self, link: Link) -> bool:
        """Return whether the other end of a namespace's link is ours."""
        return link.kind == "veth" and self.ours(link.below) is not None

    def of(self, host: HostName, instance: str) -> "_There":
        """Return what is there of one host."""
        port, inside = names.link(instance, host), names.namespace(instance, host)
        return _There(
            links={name: self.links[name] for name in (port,) if name in self.links},
            namespaces={
                n: self.namespaces[n] for n in (inside,) if n in self.namespaces
            },
        )


def _surplus(hosts: Collection["_Host"], there: _There) -> Iterator[Step]:
    """Take away the namespaces and links that belong to no host any more.

    The link goes first and by itself: sockets keep a namespace alive that has lost its
    name, and a link in it would go on answering for its address. A veth pair is removed
    from the outside, because the kernel takes its time over a namespace, and its outer
    name is not free before.
    """
    ports = {host.port for host in hosts}
    namespaces = {host.namespace for host in hosts}
    for link in there.links.values():
        if link.ours and link.name not in ports and link.kind != "vlan":
            yield RemoveLink(link.name)
    gone = [n for n in there.namespaces.values() if n.name not in namespaces]
    for each in gone:
        if each.link is not None and not there.is_pair(each.link):
            yield RemoveLink(each.link.name, each.name)
    for each in gone:
        yield RemoveNamespace(each.name)


def _surplus_aliases(
    aliases: Iterable[Alias], kept: set[tuple[str, IPAddress]]
) -> Iterator[Step]:
    for alias in aliases:
        if (alias.link, alias.address) not in kept:
            yield RemoveAlias(alias.link, alias.address)


def _refuse_same_ports(hosts: Iterable[VirtualHost], instance: str) -> None:
    holders: dict[str, HostName] = {}
    for host in hosts:
        if host.uplink in {Uplink.BRIDGE, Uplink.ROUTED}:
            port = names.link(instance, host.name)
            holder = holders.setdefault(port, host.name)
            if holder != host.name:
                remedy = f"its link would be called as that of {holder}; choose another"
                raise Taken("virtual host", host.name, remedy)


class _Vlans:
    """Our links for tags: one for all hosts with the same tag on the same link."""

    def __init__(
        self,
        inside: Iterable[VirtualHost],
        hosts: Iterable["_Host"],
        actual: Actual,
        instance: str,
        only: HostName | None,
    ) -> None:
        """``inside`` are all hosts with namespaces, ``hosts`` those to plan for."""
        own = None if only is None else names.namespace(instance, only)
        # Others may be half moved, and stand where they should stand no more.
        self._needed = {
            each.link.below
            for each in actual.namespaces
            if own is not None and each.name != own and each.link is not None
        }
        self._links = {link.name: link for link in actual.links}
        self._wanted = {
            names.vlan(instance, host.link, host.vlan)
            for host in inside
            if host.vlan is not None
        }
        self._hosts = [host for host in hosts if host.facts.vlan is not None]

    def surplus(self) -> Iterator[Step]:
        """Return the steps that remove links for tags that no host has any more."""
        for link in self._links.values():
            kept = link.name in self._wanted or link.name in self._needed
            if link.ours and link.kind == "vlan" and not kept:
                yield RemoveLink(link.name)

    def missing(self) -> Iterator[Step]:
        """Return the steps that make links for tags, before hosts stand on them."""
        for name, facts in {host.parent: host.facts for host in self._hosts}.items():
            assert facts.vlan is not None  # noqa: S101  that is what they are here for
            there = self._links.get(name)
            if there is None or not there.ours:
                yield MakeVlan(name, facts.link, facts.vlan, facts.name)
            else:
                # What is tagged is as large as what is not: it follows only downwards.
                below = reduced(None, self._links.get(facts.link))
                if there.mtu != below:
                    yield SetMtu(name, below)
            if there is None or not there.up:
                yield SetPortUp(name, HostName(f"{facts.link}.{facts.vlan}"))


class _Host:
    """One virtual host with a namespace, as it should be and as it is."""

    def __init__(self, facts: VirtualHost, there: _There, instance: str) -> None:
        self.facts = facts
        self.namespace = names.namespace(instance, facts.name)
        self._routed = facts.uplink is Uplink.ROUTED
        paired = facts.uplink in {Uplink.BRIDGE, Uplink.ROUTED}
        self.port = names.link(instance, facts.name) if paired else ""
        self.parent = facts.link
        """What a macvlan stands on: the link, or ours for the tag."""
        if facts.vlan is not None:
            self.parent = names.vlan(instance, facts.link, facts.vlan)
        self._addresses, self._routers = facts.addresses, facts.gateways
        if self._routed:
            # Alone on its wire, it reaches everybody by the machine.
            self._addresses = tuple(
                SourceAddress(a.address, a.address.max_prefixlen)
                for a in facts.addresses
            )
            self._routers = tuple(
                ip_address(names.ROUTERS[family]) for family in sorted(facts.families)
            )
        self._there = there
        self._found = there.namespaces.get(self.namespace)
        self._outer = there.ours(self.port)
        self._old = self._found.link if self._found else None
        self._kept = self._old if self._old and self._fits(self._old) else None

    @property
    def is_kept(self) -> bool:
        """Whether its link is there and stays."""
        return self._kept is not None

    def surplus(self) -> Iterator[Step]:
        """Return the steps that take away what the host should not have."""
        if self._kept is None:
            if self._outer is not None:
                yield RemoveLink(self._outer.name)
            # If its other end is ours, that is surplus too, and both go at once.
            if self._old is not None and not self._there.is_pair(self._old):
                yield RemoveLink(self._old.name, self.namespace)
            return
        for gateway in self._gateways():
            if gateway not in self._routers:
                yield RemoveGateway(self.namespace, gateway)
        for address in self._lost():
            yield RemoveAddress(self.namespace, address)

    def missing(self) -> Iterator[Step]:
        """Return the steps that give the host what it lacks."""
        if self._found is None or not self._found.entered:
            yield MakeNamespace(self.namespace, self.facts.name)
        elif not self._found.loopback_up:
            yield SetUp(self.namespace, "lo")
        yield from self._missing_link()
        if self._routed:
            yield from self._missing_port()
        had = self._kept.addresses if self._kept else ()
        for address in self._addresses:
            if address not in had:
                yield AddAddress(self.namespace, address)
        if not (self._kept and self._kept.up):
            yield SetUp(self.namespace)
        if self._routed:
            yield from self._missing_neighbours()
        yield from self._missing_gateways()

    def arrival(self) -> Iterator[Step]:
        """Return the steps by which the others on its bridge hear of it.

        They come when all hosts have what they lack: what each of them says when its
        link comes up reaches all that are up, and waits for the kernel's lock meanwhile.
        """
        if not self._routed:
            yield from self._missing_port()

    def _missing_port(self) -> Iterator[Step]:
        port = self._outer if self._kept else None
        if self.port and not (port and port.up and not port.arriving):
            ipv6 = self._routed and Family.IPV6 in self.facts.families
            yield SetPortUp(self.port, self.facts.name, ipv6)

    def _missing_link(self) -> Iterator[Step]:
        mtu = self._mtu()
        if self._kept is None:
            yield Connect(
                into=self.namespace,
                host=self.facts.name,
                uplink=self.facts.uplink or Uplink.MACVLAN,
                link=self.parent,
                port=self.port,
                mtu=mtu,
                outer_mtu=self._outer_mtu(),
            )
            return
        if self._outer is not None:
            # A bridge that was removed and made again has lost its ports, not they it.
            if not self._routed and self._outer.master != self.facts.link:
                yield JoinBridge(self.port, self.facts.link)
            # Larger packets than the bridge carries are lost without a word. It would
            # itself carry no larger ones than its smallest port does.
            if self._outer.mtu != (outer := self._outer_mtu()):
                yield SetMtu(self.port, outer)
        if self._kept.mtu != mtu:
            yield SetMtu(self._kept.name, mtu, self.namespace)

    def _missing_neighbours(self) -> Iterator[Step]:
        # The kernel forgets them when the link is set down, or has no address.
        forgotten = {address.family for address in self._lost()}
        known = self._kept.neighbours if self._kept and self._kept.up else ()
        for router in self._routers:
            if router not in known or Family(router.version) in forgotten:
                yield AddNeighbour(
                    self.namespace, names.INSIDE_LINK, router, names.ROUTER_HARDWARE
                )

    def _missing_gateways(self) -> Iterator[Step]:
        # The kernel forgets routes when their address goes or their link is down.
        forgotten = {address.family for address in self._lost()}
        if self._kept is None or not self._kept.up:
            forgotten = set(Family)
        had = self._gateways()
        for gateway in self._routers:
            if gateway not in had or Family(gateway.version) in forgotten:
                near = any(gateway in a.network for a in self._addresses)
                near = near or (gateway.version == 6 and gateway.is_link_local)
                yield SetGateway(self.namespace, gateway, not near)

    def _lost(self) -> list[SourceAddress]:
        had = self._kept.addresses if self._kept else ()
        return [address for address in had if address not in self._addresses]

    def _gateways(self) -> tuple[IPAddress, ...]:
        return self._found.gateways if self._kept and self._found else ()

    def _fits(self, link: Link) -> bool:
        """Return whether the namespace's link leads where it should."""
        if self.port:
            return (
                link.kind == "veth"
                and link.below == self.port
                and self._outer is not None
                and self._outer.router == self._routed
            )
        return link.kind == "macvlan" and link.below == self.parent

    def _mtu(self) -> int:
        return reduced(self.facts.mtu, self._there.links.get(self.facts.link))

    def _outer_mtu(self) -> int:
        if self._routed:
            return self._mtu()
        return reduced(None, self._there.links.get(self.facts.link))
