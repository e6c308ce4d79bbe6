"""Machines, virtual hosts and states of the network for tests, and for hypothesis."""

import ipaddress
from dataclasses import replace
from itertools import product

from hypothesis import strategies as st

from vnsmail.model import Context, HostName, SourceAddress, Uplink, VirtualHost
from vnsmail.net import names
from vnsmail.net.facts import (
    Actual,
    Alias,
    DefaultRoute,
    HostRoute,
    Link,
    Namespace,
    Proxy,
    Settings,
    SourceRule,
    TableRoute,
)

INSTANCE = "1a2b3c"


def ip(text):
    return ipaddress.ip_address(text)


def own(*texts):
    """Addresses of a link, and the networks they are in."""
    addresses = tuple(SourceAddress.parse(text) for text in texts)
    return {
        "addresses": addresses,
        "networks": tuple(address.network for address in addresses),
    }


LO = Link("lo", loopback=True, networks=(ipaddress.ip_network("127.0.0.0/8"),))
BR0 = Link("br0", "bridge", mtu=1400, **own("10.77.0.1/24", "fd77::1/64"))
ETH0 = Link(
    "eth0", **own("192.0.2.2/24", "2001:db8::2/64"), settings=Settings(forced6=0)
)
ETH1 = Link("eth1", master="br0")
ROUTES = (
    DefaultRoute(ip("192.0.2.1"), "eth0"),
    DefaultRoute(ip("fe80::1"), "eth0", 1024),
)
MACHINE = Actual(links=(LO, BR0, ETH0, ETH1), routes=ROUTES)


def host(name="alpha.example", *addresses, link="br0", uplink="bridge", gateways=()):
    """A virtual host; an empty uplink makes it one with aliases."""
    return VirtualHost(
        HostName(name),
        Context.NAMESPACE if uplink else Context.ALIAS,
        tuple(SourceAddress.parse(a) for a in addresses or ("10.77.0.11/24",)),
        (HostName(name),),
        link,
        Uplink(uplink) if uplink else None,
        tuple(ip(gateway) for gateway in gateways),
    )


NAMES = ("alpha.example", "beta.example", "gamma.example")
_NUMBERS = range(11, 15)
_LENGTHS = st.sampled_from([16, 24])


@st.composite
def hosts(draw):
    """A few virtual hosts that share no address."""
    free = draw(st.permutations(_NUMBERS))
    return tuple(
        _host(draw, name, number)
        for name, number in zip(draw(st.permutations(NAMES)), free, strict=False)
        if draw(st.booleans())
    )


def _host(draw, name, number):
    addresses = [
        f"10.77.0.{number}/{draw(_LENGTHS)}",
        f"fd77::{number}/64",
        f"10.77.1.{number}/24",
    ]
    chosen = draw(st.lists(st.sampled_from(addresses), min_size=1, unique=True))
    uplink = draw(st.sampled_from(["bridge", "macvlan", "routed", ""]))
    link = draw(st.sampled_from(["br0", "br1"] if uplink == "bridge" else ["eth0"]))
    gateways = [
        draw(st.sampled_from(["10.77.0.1", "10.77.0.2"])),
        draw(st.sampled_from(["fd77::1", "fe80::1"])),
    ]
    has_routers = uplink != "routed"
    kept = draw(st.lists(st.sampled_from(gateways), unique=True)) if has_routers else ()
    found = host(name, *chosen, link=link, uplink=uplink, gateways=kept)
    mtu = draw(st.sampled_from([None, 1300, 1450])) if uplink else None
    vlan = draw(st.sampled_from([None, 7, 8])) if uplink == "macvlan" else None
    return replace(found, mtu=mtu, vlan=vlan)


BR1 = Link("br1", "bridge", mtu=1500)
FOREIGN = Link("vns1a2b3cforeign", "veth", master="br0")

_ADDRESSES = st.sampled_from(
    [
        SourceAddress.parse(text)
        for number in _NUMBERS
        for text in (
            f"10.77.0.{number}/24",
            f"10.77.0.{number}/16",
            f"fd77::{number}/64",
        )
    ]
)


_ROUTED = st.sampled_from(
    [ip(text) for n in _NUMBERS for text in (f"10.77.0.{n}", f"fd77::{n}")]
)
_BITS = (0, 1)
# All there are, as one draw: a state has up to nine of them.
_SETTINGS = st.sampled_from(
    [Settings(*s) for s in product(_BITS, _BITS, _BITS, (0, 1, 2), _BITS, _BITS)]
)


def few(elements):
    """Up to three different ones: what goes wrong with more goes wrong with three."""
    return st.lists(elements, unique=True, max_size=3)


_TABLES = st.sampled_from(
    [names.table(INSTANCE, "eth0", g) for g in ("10.77.0.1", "fe80::1")] + [1 << 30]
)
_WAYS = st.one_of(
    st.builds(TableRoute, _TABLES, st.sampled_from([4, 6]), st.none()),
    st.builds(
        TableRoute, _TABLES, st.just(4), st.just(ip("10.77.0.1")), st.just("eth0")
    ),
)
_RULES = st.builds(SourceRule, _ROUTED, _TABLES | st.just(254))


@st.composite
def states(draw):
    """A network with things of ours in any state, half made ones and stray ones."""
    stray = ("delta.example", *NAMES)
    ports = draw(few(st.sampled_from(stray)))
    ours = [
        Link(
            names.link(INSTANCE, name),
            "veth",
            up=draw(st.booleans()),
            mtu=draw(st.sampled_from([1400, 1500])),
            ours=True,
            master=draw(st.sampled_from(["br0", "br1", ""])),
            router=draw(st.booleans()),
            settings=draw(_SETTINGS),
        )
        for name in ports
    ]
    ups = [link.name for link in ours if link.up and link.router]
    routes = (
        draw(few(st.builds(HostRoute, _ROUTED, st.sampled_from(ups)))) if ups else []
    )
    answered = draw(few(st.tuples(st.sampled_from(["eth0", "br0"]), _ROUTED)))
    ours += [
        Link(
            names.vlan(INSTANCE, "eth0", tag),
            "vlan",
            up=draw(st.booleans()),
            mtu=draw(st.sampled_from([1400, 1500])),
            ours=True,
        )
        for tag in draw(st.lists(st.sampled_from([7, 9]), unique=True))
    ]
    touched = {link for link, _ in answered}
    machine = [
        replace(x, settings=draw(_SETTINGS)) if x.name in touched else x
        for x in (LO, BR0, BR1, ETH0, ETH1, FOREIGN)
    ]
    inside = draw(few(st.sampled_from(stray)))
    aliases = draw(st.lists(_ADDRESSES, unique_by=lambda a: a.address, max_size=3))
    return Actual(
        links=(*machine, *ours),
        host_routes=tuple(routes),
        table_routes=tuple(draw(few(_WAYS))),
        rules=tuple(draw(few(_RULES))),
        proxies=tuple(Proxy(link, address) for link, address in answered),
        routes=ROUTES,
        namespaces=tuple(_namespace(draw, name, set(ports)) for name in inside),
        aliases=tuple(
            Alias(
                draw(st.sampled_from(["br0", "eth0"])), a.address, draw(st.booleans())
            )
            for a in aliases
        ),
    )


def _namespace(draw, name, ports):
    full = names.namespace(INSTANCE, name)
    if draw(st.integers(0, 4)) == 0:
        return Namespace(full, entered=False, loopback_up=False)
    if draw(st.integers(0, 3)) == 0:
        return Namespace(full, loopback_up=draw(st.booleans()))
    below = [("macvlan", "eth0"), ("macvlan", "br0"), ("macvlan", ""), ("vlan", "")]
    # On one of ours for a tag, which may be there or have gone.
    below += [("macvlan", names.vlan(INSTANCE, "eth0", 7))]
    if name in ports:
        # A veth end inside is there exactly as long as the other end.
        below = [("veth", names.link(INSTANCE, name)), ("macvlan", "eth0")]
    kind, stands_on = draw(st.sampled_from(below))
    up = draw(st.booleans())
    addresses = draw(st.lists(_ADDRESSES, unique_by=lambda a: a.address, max_size=3))
    gateways = ["10.77.0.1", "10.77.0.2", "fd77::1", "0.0.0.0"]
    return Namespace(
        full,
        loopback_up=draw(st.booleans()),
        link=Link(
            names.INSIDE_LINK,
            kind,
            up=up,
            mtu=draw(st.sampled_from([1400, 1500])),
            below=stands_on,
            addresses=tuple(addresses),
        ),
        gateways=tuple(
            ip(g) for g in draw(st.lists(st.sampled_from(gateways), unique=True)) if up
        ),
    )
