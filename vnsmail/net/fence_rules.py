"""What the kernel is told of packets that it routes for virtual hosts. Pure.

A host on a routed uplink hands its packets to the machine, which forwards them. One
nftables table, ``inet vnsmail__fence`` or ``inet vnsmail_INSTANCE__fence``, in the
machine's own network, says which:

    packet                                                     what becomes of it
    comes in on the uplink of a host, from an address of it    goes on
    comes in there from a link-local one, or from none (::)    dropped
    comes in there from any other                              dropped for that host
    goes from port to port of a bridge that hosts are routed
      through                                                  goes on
    comes in on a link that hosts are routed through, to be
      forwarded elsewhere than to a host                       dropped, if the machine
                                                               forwards nothing itself

A bridge's own traffic is seen here where br_netfilter is on (Docker switches it on), as
if it were forwarded from the bridge to the bridge. The last is there because forwarding is switched on for those links (routed.py): the
machine forwards for its hosts, and is no router for anybody else by that. Where it is
one already (net.ipv4.ip_forward, net.ipv6.conf.all.forwarding), the operator's rules say
what passes, and this one is left out.

Rules of this file: pure; links are told by name, so that the table can be there before
them.
"""

from collections.abc import Collection, Iterable, Iterator

from vnsmail.model import Uplink, VirtualHost
from vnsmail.net import names
from vnsmail.net.guard_rules import (
    DROP,
    RETURN,
    Chain,
    Command,
    NamedSet,
    Table,
    count,
    equal,
    forged_counter,
    payload,
    rule,
    table_name,
)

_BEFORE_TRACKING, _FILTER = -300, 0
"""Priorities of nft(8): raw, and filter."""

_IN: Command = {"meta": {"key": "iifname"}}
_OUT: Command = {"meta": {"key": "oifname"}}
_FIELDS = {4: "ip", 6: "ip6"}
_PROTOCOLS = {4: "ipv4", 6: "ipv6"}


def fence_name(instance: str) -> str:
    """Return what the table is called."""
    return f"{table_name(instance)}__fence"


def fence(
    hosts: Iterable[VirtualHost], instance: str, forwards: Collection[int] = ()
) -> Table | None:
    """Return the table for these hosts; None if none of them is routed.

    Args:
        hosts: of any kind.
        instance: whose.
        forwards: IP versions that the machine forwards on all its links by itself.
    """
    routed = sorted(
        (host for host in hosts if host.uplink is Uplink.ROUTED),
        key=lambda host: host.name,
    )
    if not routed:
        return None
    return Table(
        name=fence_name(instance),
        hosts=tuple(host.name for host in routed),
        counters=tuple(forged_counter(host.name) for host in routed),
        sets=tuple(_sets(routed, instance, forwards)),
        chains=(
            Chain("arriving", _ARRIVING, _hook("prerouting", _BEFORE_TRACKING)),
            Chain("passing", _PASSING, _hook("forward", _FILTER)),
        ),
    )


def _sets(
    routed: Iterable[VirtualHost], instance: str, forwards: Collection[int]
) -> Iterator[NamedSet]:
    ports = {host: names.link(instance, host.name) for host in routed}
    yield NamedSet("ports", "ifname", tuple(sorted(ports.values())))
    yield NamedSet(
        "uplinks",
        "ifname",
        tuple([port, forged_counter(host.name)] for host, port in ports.items()),
        maps=True,
    )
    for version in (4, 6):
        own = [
            {"concat": [port, str(each.address)]}
            for host, port in ports.items()
            for each in host.addresses
            if each.address.version == version
        ]
        key = ("ifname", f"ipv{version}_addr")
        yield NamedSet(f"own{version}", key, tuple(own))
        links = {
            host.link
            for host in ports
            if version not in forwards
            and any(each.address.version == version for each in host.addresses)
        }
        yield NamedSet(f"through{version}", "ifname", tuple(sorted(links)))
    every = sorted({host.link for host in ports})
    pairs = tuple({"concat": [link, link]} for link in every)
    yield NamedSet("within", ("ifname", "ifname"), pairs)


def _hook(name: str, priority: int) -> Command:
    return {"type": "filter", "hook": name, "prio": priority, "policy": "accept"}


def _own(version: int) -> Command:
    source = payload(_FIELDS[version], "saddr")
    return rule(equal({"concat": [_IN, source]}, f"@own{version}"), RETURN)


def _elsewhere(version: int) -> Command:
    family = equal({"meta": {"key": "nfproto"}}, _PROTOCOLS[version])
    to = {"meta": {"key": "oifgroup"}}
    ours = {"range": list(names.ALL_MARKS)}
    not_to_a_host = {"match": {"op": "!=", "left": to, "right": ours}}
    return rule(family, equal(_IN, f"@through{version}"), not_to_a_host, DROP)


_LOCAL: Command = {"set": [{"prefix": {"addr": "fe80::", "len": 10}}, "::"]}
_ARRIVING = (
    _own(4),
    _own(6),
    # What every link says by itself, of IPv6; there is nobody to answer.
    rule(equal(_IN, "@ports"), equal(payload("ip6", "saddr"), _LOCAL), DROP),
    # A rule ends where its map holds nothing of the packet.
    rule(count(_IN, "@uplinks"), DROP),
)
_PASSING = (
    rule(
        equal({"meta": {"key": "iifkind"}}, "bridge"),
        equal({"concat": [_IN, _OUT]}, "@within"),
        RETURN,
    ),
    _elsewhere(4),
    _elsewhere(6),
)
