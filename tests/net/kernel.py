"""A kernel made of values: what a step does to an observed network.

It is as strict as the real one where a plan could go wrong: nothing is made twice,
nothing is changed that is not there, and what hangs on a thing goes with it.
"""

from dataclasses import replace
from functools import singledispatchmethod

from vnsmail.model import Uplink
from vnsmail.net.facts import (
    Actual,
    Alias,
    HostRoute,
    Link,
    Namespace,
    Proxy,
    Settings,
    SourceRule,
    TableRoute,
)
from vnsmail.net.names import INSIDE_LINK
from vnsmail.net.steps import (
    AddAddress,
    AddAlias,
    AddNeighbour,
    AddProxy,
    AddRoute,
    AddRule,
    AddTableRoute,
    Connect,
    JoinBridge,
    MakeNamespace,
    MakeVlan,
    RemoveAddress,
    RemoveAlias,
    RemoveGateway,
    RemoveLink,
    RemoveNamespace,
    RemoveNeighbour,
    RemoveProxy,
    RemoveRoute,
    RemoveRule,
    RemoveTableRoute,
    SetGateway,
    SetMtu,
    SetPortUp,
    SetSetting,
    SetUp,
)


class Kernel:
    """A network that steps change."""

    def __init__(self, actual: Actual) -> None:
        self.actual = actual
        self.links = {link.name: link for link in actual.links}
        self.namespaces = {each.name: each for each in actual.namespaces}
        self.aliases = {(each.link, each.address): each for each in actual.aliases}
        self.host_routes = dict.fromkeys(actual.host_routes)
        self.table_routes = dict.fromkeys(actual.table_routes)
        self.rules = dict.fromkeys(actual.rules)
        self.proxies = {(each.link, each.address): each for each in actual.proxies}

    def observe(self) -> Actual:
        return replace(
            self.actual,
            links=tuple(self.links.values()),
            namespaces=tuple(self.namespaces.values()),
            aliases=tuple(self.aliases.values()),
            host_routes=tuple(self.host_routes),
            proxies=tuple(self.proxies.values()),
            table_routes=tuple(self.table_routes),
            rules=tuple(self.rules),
        )

    @singledispatchmethod
    def perform(self, step):
        raise NotImplementedError(step)

    @perform.register
    def _(self, step: MakeNamespace) -> None:
        there = self.namespaces.get(step.name)
        assert there is None or not there.entered
        self.namespaces[step.name] = Namespace(step.name)

    @perform.register
    def _(self, step: RemoveNamespace) -> None:
        gone = self.namespaces.pop(step.name)
        if gone.link and gone.link.kind == "veth":
            self._forget_port(gone.link.below)

    @perform.register
    def _(self, step: Connect) -> None:
        assert step.link in self.links
        assert self.namespaces[step.into].link is None
        kind, below = "macvlan", step.link
        if step.uplink is not Uplink.MACVLAN:
            kind, below = "veth", step.port
            routed = step.uplink is Uplink.ROUTED
            assert step.port not in self.links
            self.links[step.port] = Link(
                step.port,
                kind,
                up=False,
                mtu=step.outer_mtu,
                ours=True,
                master="" if routed else step.link,
                router=routed,
                settings=Settings(forced6=0),
            )
        link = Link(INSIDE_LINK, kind, up=False, mtu=step.mtu, below=below)
        self._change(step.into, link=link)

    @perform.register
    def _(self, step: MakeVlan) -> None:
        assert step.name not in self.links
        below = self.links[step.link]
        self.links[step.name] = Link(
            step.name, "vlan", up=False, mtu=below.mtu, ours=True
        )

    @perform.register
    def _(self, step: JoinBridge) -> None:
        assert self.links[step.bridge].kind == "bridge"
        self._change_link(step.port, master=step.bridge)

    @perform.register
    def _(self, step: RemoveLink) -> None:
        if step.namespace:
            gone = self._inside(step.namespace)
            self._change(step.namespace, link=None, gateways=())
            if gone.kind == "veth":
                self._forget_port(gone.below)
            return
        assert self.links[step.link].ours
        self._forget_port(step.link)
        for each in self.namespaces.values():
            if each.link and each.link.below == step.link:
                self._change(each.name, link=None, gateways=())

    @perform.register
    def _(self, step: SetMtu) -> None:
        if step.namespace:
            self._change_inside(step.namespace, mtu=step.mtu)
        else:
            self._change_link(step.link, mtu=step.mtu)

    @perform.register
    def _(self, step: SetUp) -> None:
        if step.link == "lo":
            self._change(step.namespace, loopback_up=True)
        else:
            self._change_inside(step.namespace, up=True)

    @perform.register
    def _(self, step: SetPortUp) -> None:
        self._change_link(step.port, up=True, arriving=False)
        if self.links[step.port].router:
            self._set(step.port, accept_ra=0, off6=int(not step.ipv6))

    @perform.register
    def _(self, step: AddAddress) -> None:
        had = self._inside(step.namespace).addresses
        assert step.address.address not in {a.address for a in had}
        self._change_inside(step.namespace, addresses=(*had, step.address))

    @perform.register
    def _(self, step: RemoveAddress) -> None:
        had = self._inside(step.namespace).addresses
        assert step.address in had
        left = tuple(a for a in had if a != step.address)
        self._change_inside(step.namespace, addresses=left)
        # Routed: whom it knows as well, with the last address.
        known = [
            each
            for each in self._inside(step.namespace).neighbours
            if each.version != step.address.family
        ]
        self._change_inside(step.namespace, neighbours=tuple(known))
        # The real one may forget the routes of that family, so this one does.
        self._forget_routes(step.namespace, step.address.family)

    @perform.register
    def _(self, step: SetGateway) -> None:
        assert self._inside(step.namespace).up
        self._forget_routes(step.namespace, step.gateway.version)
        had = self.namespaces[step.namespace].gateways
        self._change(step.namespace, gateways=(*had, step.gateway))

    @perform.register
    def _(self, step: RemoveGateway) -> None:
        had = self.namespaces[step.namespace].gateways
        assert step.gateway in had
        left = tuple(g for g in had if g != step.gateway)
        self._change(step.namespace, gateways=left)

    @perform.register
    def _(self, step: AddAlias) -> None:
        assert step.link in self.links
        assert (step.link, step.address) not in self.aliases
        self.aliases[step.link, step.address] = Alias(step.link, step.address)

    @perform.register
    def _(self, step: RemoveAlias) -> None:
        del self.aliases[step.link, step.address]

    @perform.register
    def _(self, step: AddNeighbour) -> None:
        if step.namespace:
            link = self._inside(step.namespace)
            assert link.up
            known = dict.fromkeys((*link.neighbours, step.address))
            self._change_inside(step.namespace, neighbours=tuple(known))
        else:
            link = self.links[step.link]
            assert link.up
            known = dict.fromkeys((*link.neighbours, step.address))
            self._change_link(step.link, neighbours=tuple(known))

    @perform.register
    def _(self, step: RemoveNeighbour) -> None:
        known = self.links[step.link].neighbours
        assert step.address in known
        left = tuple(each for each in known if each != step.address)
        self._change_link(step.link, neighbours=left)

    @perform.register
    def _(self, step: AddRoute) -> None:
        assert self.links[step.link].up
        self.host_routes[HostRoute(step.address, step.link)] = None

    @perform.register
    def _(self, step: RemoveRoute) -> None:
        del self.host_routes[HostRoute(step.address, step.link)]

    @perform.register
    def _(self, step: AddProxy) -> None:
        assert (step.link, step.address) not in self.proxies
        self.proxies[step.link, step.address] = Proxy(step.link, step.address)

    @perform.register
    def _(self, step: RemoveProxy) -> None:
        gone = self.proxies.pop((step.link, step.address))
        assert gone.ours

    @perform.register
    def _(self, step: SetSetting) -> None:
        names = {
            "forwarding": f"forwarding{step.version}",
            "force_forwarding": "forced6",
            "disable_ipv6": "off6",
        }
        link = self.links[step.link]
        name = names.get(step.name, step.name)
        if (step.version, step.name, step.value) == (6, "forwarding", 1):
            # As apply.py does it.
            self._set(step.link, accept_ra=2 if link.settings.accept_ra else 0)
        self._set(step.link, **{name: step.value})

    @perform.register
    def _(self, step: AddTableRoute) -> None:
        made = TableRoute(step.table, step.version, step.gateway, step.link)
        assert made not in self.table_routes
        self.table_routes[made] = None

    @perform.register
    def _(self, step: RemoveTableRoute) -> None:
        gone = TableRoute(step.table, step.version, step.gateway, step.link)
        del self.table_routes[gone]

    @perform.register
    def _(self, step: AddRule) -> None:
        assert SourceRule(step.address, step.table) not in self.rules
        # A way that ends nowhere would be the machine's.
        assert step.table == 254 or any(
            step.table == each.table and each.gateway is None
            for each in self.table_routes
        )
        self.rules[SourceRule(step.address, step.table)] = None

    @perform.register
    def _(self, step: RemoveRule) -> None:
        del self.rules[SourceRule(step.address, step.table)]

    def _set(self, name, **values):
        link = self.links[name]
        self.links[name] = replace(link, settings=replace(link.settings, **values))

    def _inside(self, namespace):
        link = self.namespaces[namespace].link
        assert link is not None
        return link

    def _change(self, namespace, **facts):
        assert self.namespaces[namespace].entered
        self.namespaces[namespace] = replace(self.namespaces[namespace], **facts)

    def _change_inside(self, namespace, **facts):
        self._change(namespace, link=replace(self._inside(namespace), **facts))

    def _change_link(self, name, **facts):
        assert self.links[name].ours
        self.links[name] = replace(self.links[name], **facts)

    def _forget_port(self, name):
        if name in self.links and self.links[name].ours:
            del self.links[name]
            for route in [each for each in self.host_routes if each.link == name]:
                del self.host_routes[route]

    def _forget_routes(self, namespace, family):
        had = self.namespaces[namespace].gateways
        left = tuple(g for g in had if g.version != family)
        self._change(namespace, gateways=left)
