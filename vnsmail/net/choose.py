"""Which link and which routers a new virtual host gets.

Rules of this file: pure; a link named by the user may be used for what no network of
the machine shows, such as an address routed to the machine or a bridge on which the
machine has no address itself; nothing of the kind is ever guessed.
"""

from collections.abc import Iterable

from vnsmail.errors import BadInput, Taken
from vnsmail.model import Context, Family, IPAddress, SourceAddress, Uplink
from vnsmail.net.facts import NO_GATEWAY, Actual, Link, Network

_PORT_HOLDERS = {"bridge", "bond", "team"}


def choose_link(
    addresses: tuple[SourceAddress, ...],
    actual: Actual,
    context: Context,
    requested: str | None,
    uplink: Uplink | None = None,
    *,
    tagged: bool = False,
) -> tuple[str, Uplink | None]:
    """Return the machine's link for a virtual host, and how its namespace uses it.

    Args:
        addresses: the host's, at least one.
        actual: the network as observed.
        context: where its sockets will live.
        requested: the link the user named, if any.
        uplink: how the user wants it used; without it as fits the link.
        tagged: the host is on a tagged network of the link, of which the machine knows
            nothing.

    Raises:
        BadInput: no link reaches an address, or the one named cannot be used, or not so.
        Taken: the machine has an address already.
    """
    _refuse_taken(addresses, actual)
    if tagged and requested is None:
        remedy = "name the link whose packets are tagged; no network tells which it is"
        raise BadInput("link", "none", remedy)
    if requested is None:
        link = _link_of(addresses[0], actual)
    else:
        link = _usable(requested, actual)
    for address in () if tagged else addresses:
        _refuse_unreachable(address, link, named=requested is not None)
        if context is Context.NAMESPACE and uplink is not Uplink.ROUTED:
            _refuse_lonely(address, link)
    fits = Uplink.BRIDGE if link.kind == "bridge" else Uplink.MACVLAN
    if context is Context.ALIAS:
        if uplink is not None:
            remedy = "an alias is on the link itself; leave it out"
            raise BadInput("uplink", uplink.value, remedy)
        return link.name, None
    if uplink is Uplink.ROUTED:
        return link.name, uplink
    if uplink not in {None, fits}:
        remedy = f"{link.name} gives {fits.value}; leave it out, or choose routed"
        raise BadInput("uplink", str(uplink), remedy)
    return link.name, fits


def choose_gateways(
    addresses: tuple[SourceAddress, ...], actual: Actual, link: str
) -> tuple[IPAddress, ...]:
    """Return the default routers of a namespace on a link, at most one a family.

    That is the machine's own router where the host can reach it, else the machine,
    where the link is a bridge of it and it has an address in the host's network.
    """
    found = (
        _gateway([a for a in addresses if a.family is family], actual, link)
        for family in Family
    )
    return tuple(gateway for gateway in found if gateway is not None)


def _gateway(
    addresses: list[SourceAddress], actual: Actual, link: str
) -> IPAddress | None:
    if not addresses:
        return None
    family = addresses[0].family
    for route in sorted(actual.routes, key=lambda route: route.metric):
        gateway = route.gateway
        if gateway.version != family or route.link != link or gateway in NO_GATEWAY:
            continue
        if gateway.is_link_local or _holds(addresses, gateway):
            return gateway
    facts = _find(link, actual)
    if facts is None or facts.kind != "bridge":
        return None
    own = (own.address for own in facts.addresses if own.family is family)
    return next((address for address in own if _holds(addresses, address)), None)


def _holds(addresses: Iterable[SourceAddress], other: IPAddress) -> bool:
    """Return whether another machine's address is in a network of these."""
    return any(other in a.network and other != a.address for a in addresses)


def _refuse_taken(addresses: tuple[SourceAddress, ...], actual: Actual) -> None:
    holders = {
        own.address: f"the machine has it itself, on {link.name}"
        for link in actual.links
        for own in link.addresses
    }
    holders |= {r.gateway: "it is that of the machine's router" for r in actual.routes}
    holders |= {
        proxy.address: f"the machine answers for it on {proxy.link} (`ip neigh show "
        "proxy`)"
        for proxy in actual.proxies
        if not proxy.known
    }
    holders |= dict.fromkeys(actual.elsewhere, "a virtual host of another root has it")
    for each in addresses:
        if holder := holders.get(each.address):
            raise Taken("address", str(each.address), f"{holder}; choose another")


def _link_of(address: SourceAddress, actual: Actual) -> Link:
    """Return the link whose network holds an address; of several, the narrowest."""
    usable = [link for link in actual.links if not _problem(link, actual)]
    fits = [
        (-network.prefixlen, not link.up, link.name, link)
        for link in usable
        for network in link.networks
        if address.address in network
    ]
    if not fits:
        known = ", ".join(f"{n} on {link.name}" for link in usable for n in _wide(link))
        remedy = f"use one in {known}" if known else "no link has a network"
        raise BadInput(
            "address", str(address), f"no link reaches it; {remedy}, or give --link"
        )
    return min(fits, key=lambda fit: fit[:3])[3]


def _usable(name: str, actual: Actual) -> Link:
    """Return the link the user named, if it can be used."""
    link = _find(name, actual)
    if link is None:
        known = [each.name for each in actual.links if not _problem(each, actual)]
        raise BadInput(
            "link", name, f"the machine has {', '.join(known) or 'no link of use'}"
        )
    if problem := _problem(link, actual):
        raise BadInput("link", name, problem)
    return link


def _problem(link: Link, actual: Actual) -> str:
    """Return why a link cannot carry a virtual host; empty if it can."""
    if link.loopback:
        return "it is the loopback, which reaches nobody"
    if link.ours:
        return "it is that of another virtual host"
    master = _find(link.master, actual) if link.master else None
    if master is not None and master.kind in _PORT_HOLDERS:
        return f"it is a port of {master.name}; use that"
    return ""


def _refuse_unreachable(address: SourceAddress, link: Link, *, named: bool) -> None:
    if any(address.address in network for network in link.networks):
        return
    same = [n for n in _wide(link) if n.version == address.family]
    # A bare address claims no network: it is one that others route to this machine.
    bare = address.prefix_length == address.address.max_prefixlen
    if named and (bare or not same):
        return
    known = ", ".join(map(str, same)) or "no network of that family"
    raise BadInput(
        "address", str(address), f"{link.name} does not reach it: it has {known}"
    )


def _refuse_lonely(address: SourceAddress, link: Link) -> None:
    """Refuse a host that would be alone in its network, and so reach nobody."""
    if address.prefix_length < address.address.max_prefixlen:
        return
    for network in _wide(link):
        if address.address in network:
            remedy = f"write it as {address.address}/{network.prefixlen}"
            raise BadInput(
                "address", str(address), f"its network is {network}; {remedy}"
            )


def _wide(link: Link) -> list[Network]:
    """Return the networks of a link that hold more than one address."""
    return [n for n in link.networks if n.num_addresses > 1]


def _find(name: str, actual: Actual) -> Link | None:
    return next((link for link in actual.links if link.name == name), None)
