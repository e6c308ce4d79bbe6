"""What the machine does for hosts that it routes: the steps outside their namespaces.

    namespace              the machine                         link
    eth0 192.0.2.11/32 ──── vns… route 192.0.2.11/32 ┄┄┄┄┄┄┄┄ eth0 answers for 192.0.2.11
      default by 169.254.0.1    (metric: our mark)               (ARP, neighbour discovery)

The two ends know each other's hardware address from the start: nothing is asked on that
wire, so nobody in the namespace can answer for another. Packets are forwarded on these
links alone, for net.ipv4.ip_forward stays as the operator has it; what may pass is the
fence's business (fence_rules.py), which is up before.

    settings of the link that hosts are routed through, while there are such hosts and
    the machine does not forward anyway:
        IPv4   forwarding
        IPv6   forwarding (else nobody is answered for), force_forwarding (Linux 6.17),
               proxy_ndp, and accept_ra 2 in place of 1: it still learns its router

Rules of this file: pure; settings of the link are set after the machine answers on it
for one of ours, and set back before it ceases to, so that whatever is cut off, they are
known as ours by that; nothing is set back that somebody else's entries need.
"""

from collections.abc import Iterable, Iterator

from vnsmail.model import HostName, IPAddress, Uplink, VirtualHost
from vnsmail.net import names
from vnsmail.net.facts import Actual, HostRoute, Link, Settings
from vnsmail.net.steps import (
    AddNeighbour,
    AddProxy,
    AddRoute,
    RemoveNeighbour,
    RemoveProxy,
    RemoveRoute,
    SetSetting,
    Step,
)


class Routing:
    """All hosts that the machine routes, as they should be and as they are."""

    def __init__(
        self,
        hosts: Iterable[VirtualHost],
        actual: Actual,
        instance: str,
        only: HostName | None = None,
    ) -> None:
        """``hosts`` are all that should be; steps are for ``only`` if it is given."""
        routed = [host for host in hosts if host.uplink is Uplink.ROUTED]
        self._ports = {host.name: names.link(instance, host.name) for host in routed}
        self._hosts = [h for h in routed if only in {None, h.name}]
        self._actual = actual
        self._links = {link.name: link for link in actual.links}
        self._proxies = {(h.link, a.address) for h in routed for a in h.addresses}
        self._routes = {
            HostRoute(a.address, self._ports[h.name])
            for h in routed
            for a in h.addresses
        }

    # What should not be ---------------------------------------------------------

    def surplus(self) -> Iterator[Step]:
        """Return the steps that take away what no host needs."""
        kept = [
            each
            for each in self._actual.proxies
            if not each.ours or (each.link, each.address) in self._proxies
        ]
        gone = [each for each in self._actual.proxies if each not in kept]
        needed = {(link, address.version) for link, address in self._proxies}
        for name in dict.fromkeys(each.link for each in gone):
            left = [each for each in kept if each.link == name]
            for version in (4, 6):
                lost = any(
                    each.address.version == version
                    for each in gone
                    if each.link == name
                )
                same = [each for each in left if each.address.version == version]
                if lost and name in self._links and (name, version) not in needed:
                    known = any(each.known for each in same)
                    yield from self._set_back(
                        self._links[name], version, known=known, any_left=bool(same)
                    )
        for each in gone:
            yield RemoveProxy(each.link, each.address)
        ports = set(self._ports.values())
        for route in self._actual.host_routes:
            if route not in self._routes and route.link in ports:
                yield RemoveRoute(route.address, route.link)
        for port in sorted(ports & self._links.keys()):
            for address in self._links[port].neighbours:
                if HostRoute(address, port) not in self._routes:
                    yield RemoveNeighbour(port, address)

    def _set_back(
        self, link: Link, version: int, *, known: bool, any_left: bool
    ) -> Iterator[Step]:
        there = link.settings
        if version == 6 and there.proxy_ndp and not any_left:
            yield SetSetting(6, link.name, "proxy_ndp", 0)
        if known or version in self._actual.forwards:
            return
        if version == 4:
            if there.forwarding4:
                yield SetSetting(4, link.name, "forwarding", 0)
            return
        if there.forced6:
            yield SetSetting(6, link.name, "force_forwarding", 0)
        if there.forwarding6:
            yield SetSetting(6, link.name, "forwarding", 0)
        if there.accept_ra == 2:
            yield SetSetting(6, link.name, "accept_ra", 1)

    # What should be -------------------------------------------------------------

    def missing(self, kept_ports: set[str]) -> Iterator[Step]:
        """Return the steps that give what is lacking, once namespaces are connected.

        Args:
            kept_ports: links of ours that are there and stay.
        """
        routes = set(self._actual.host_routes)
        for host in self._hosts:
            port = self._ports[host.name]
            there = self._links.get(port) if port in kept_ports else None
            known = there.neighbours if there else ()
            own = [a.address for a in host.addresses]
            for address in own:
                if address not in known:
                    yield AddNeighbour("", port, address, names.INSIDE_HARDWARE)
            for address in own:
                fits = there is not None and there.up
                if not fits or HostRoute(address, port) not in routes:
                    yield AddRoute(address, port)
            yield from self._port_settings(port, own, there)
        yield from self._missing_at_links()

    def _port_settings(
        self, port: str, own: list[IPAddress], there: Link | None
    ) -> Iterator[Step]:
        found = there.settings if there else Settings(0, 0, self._forced(), 0, 0, 0)
        versions = {address.version for address in own}
        if 4 in versions and not found.forwarding4:
            yield SetSetting(4, port, "forwarding", 1)
        if 6 not in versions:
            return
        if found.accept_ra:
            yield SetSetting(6, port, "accept_ra", 0)
        if found.off6:
            yield SetSetting(6, port, "disable_ipv6", 0)
        if found.forced6 == 0 and 6 not in self._actual.forwards:
            yield SetSetting(6, port, "force_forwarding", 1)

    def _forced(self) -> int | None:
        """Return the setting of a new link; None where the kernel does not have it."""
        has_it = any(link.settings.forced6 is not None for link in self._links.values())
        return 0 if has_it else None

    def _missing_at_links(self) -> Iterator[Step]:
        there = {(each.link, each.address) for each in self._actual.proxies}
        wanted = [(h.link, a.address) for h in self._hosts for a in h.addresses]
        for link, address in wanted:
            if (link, address) not in there:
                yield AddProxy(link, address)
        needed = dict.fromkeys((link, address.version) for link, address in wanted)
        for name, version in needed:
            if name in self._links:
                yield from self._link_settings(self._links[name], version)

    def _link_settings(self, link: Link, version: int) -> Iterator[Step]:
        there = link.settings
        if version == 4:
            if not there.forwarding4:
                yield SetSetting(4, link.name, "forwarding", 1)
            return
        if not there.proxy_ndp:
            yield SetSetting(6, link.name, "proxy_ndp", 1)
        if there.forced6 == 0 and 6 not in self._actual.forwards:
            yield SetSetting(6, link.name, "force_forwarding", 1)
        if not there.forwarding6:
            yield SetSetting(6, link.name, "forwarding", 1)
