"""Whether a virtual host can be had on the network of this machine as it is asked for.

choose.py finds the link; this file looks at what else was said: routers, the size of
packets, a tag. Whatever would have no effect, or not the one that was meant, is refused
with what to do instead: a fact of a host that is kept and does nothing is a trap.

Rules of this file: pure; an error's ``what`` is the key of hosts.toml, so that it can be
told with its line.
"""

from vnsmail.errors import BadInput
from vnsmail.model import Context, IPAddress, Uplink, VirtualHost
from vnsmail.net.facts import Actual, Link

_SMALLEST = {4: 68, 6: 1280}
"""Octets that a link must carry: RFC 791 page 25, RFC 8200 section 5."""


def check(host: VirtualHost, actual: Actual, old: VirtualHost | None = None) -> None:
    """Refuse a host that cannot be had.

    Args:
        host: as it should be, its link and uplink chosen.
        actual: the network as observed.
        old: the host as it is; what stays as it was is not judged by what has become of
            the link meanwhile.

    Raises:
        BadInput: what cannot be, and what to do.
    """
    _check_gateways(host)
    _check_vlan(host)
    link = next((each for each in actual.links if each.name == host.link), None)
    if host.uplink is Uplink.ROUTED and link is not None:
        _check_routed(host, link, actual)
    if host.mtu is not None:
        same = old is not None and (old.mtu, old.link) == (host.mtu, host.link)
        _check_mtu(host, host.mtu, None if same else link)


def _check_gateways(host: VirtualHost) -> None:
    if host.gateways and host.uplink is Uplink.ROUTED:
        remedy = "the machine is the router of a routed uplink; leave it out"
        raise BadInput("gateways", str(host.gateways[0]), remedy)
    own = {each.address for each in host.addresses}
    seen: set[int] = set()
    for gateway in host.gateways:
        if problem := _problem(gateway, host, own, seen):
            raise BadInput("gateways", str(gateway), problem)
        seen.add(gateway.version)


def _problem(
    gateway: IPAddress, host: VirtualHost, own: set[IPAddress], seen: set[int]
) -> str:
    if gateway in own:
        return "it is the host's own address"
    if gateway.version in seen:
        return "give one of each family"
    if gateway.version not in {each.value for each in host.families}:
        return f"the host has no IPv{gateway.version} address; leave it out"
    if gateway.is_loopback:
        return "a router is another machine; give its address on the link"
    return ""


def _check_routed(host: VirtualHost, link: Link, actual: Actual) -> None:
    """Refuse what the machine could not forward, or forwards for somebody else."""
    there = link.settings
    versions = {each.value for each in host.families}
    forwards = {4: there.forwarding4, 6: there.forwarding6}
    for version in sorted(versions - actual.forwards):
        answered = any(
            each.known and (each.link, each.address.version) == (link.name, version)
            for each in actual.proxies
        )
        if forwards[version] and not answered:
            remedy = (
                f"net.ipv{version}.conf.{link.name}.forwarding is on, though the machine "
                "forwards nowhere else; set it to 0, or set "
                f"net.ipv{version}.conf.all.forwarding to 1"
            )
            raise BadInput("uplink", "routed", remedy)
    if 6 in versions - actual.forwards and there.forced6 is None:
        remedy = (
            "this kernel (before 6.17) forwards IPv6 on all links or on none; set "
            "net.ipv6.conf.all.forwarding to 1, with accept_ra 2 on links that learn "
            "their router, or leave out its IPv6 addresses"
        )
        raise BadInput("uplink", "routed", remedy)


def _check_vlan(host: VirtualHost) -> None:
    if host.vlan is None:
        return
    if host.uplink is Uplink.MACVLAN:
        if not 1 <= host.vlan <= 4094:
            raise BadInput("vlan", str(host.vlan), "choose one from 1 to 4094")
        return
    remedy = {
        None: "an alias has no vlan of its own; name a link that has the tag",
        Uplink.ROUTED: "nothing is tagged on a routed uplink; name a link that has "
        "the tag",
        Uplink.BRIDGE: f"{host.link} is a bridge, and what is on it has one network; "
        "use a bridge over a link that has the tag, or a link that is in no bridge",
    }[host.uplink]
    raise BadInput("vlan", str(host.vlan), remedy)


def _check_mtu(host: VirtualHost, mtu: int, link: Link | None) -> None:
    if host.context is Context.ALIAS:
        remedy = f"an alias has no mtu of its own; set that of {host.link}"
        raise BadInput("mtu", str(mtu), remedy)
    least = max(_SMALLEST[each.value] for each in host.families)
    if not least <= mtu <= 65535:
        remedy = f"choose one from {least} to 65535 octets"
        raise BadInput("mtu", str(mtu), remedy)
    if link is not None and mtu > link.mtu:
        remedy = (
            f"{link.name} carries packets of {link.mtu} octets at most; choose no more, "
            "or set it higher there first"
        )
        raise BadInput("mtu", str(mtu), remedy)


def reduced(wanted: int | None, link: Link | None) -> int:
    """Return the size of packets for a link that stands on another, in octets."""
    most = link.mtu if link else 1500
    return min(wanted or most, most)
