"""Routing by source: the way of what aliases send, where a machine has several uplinks.

The kernel looks for a way by destination, so all aliases leave by the machine's default
route, whichever link their address is on; a provider drops what comes with an address of
another. An alias host with routers of its own has, for each address, two rules:

    5550   from ADDRESS lookup main suppress_prefixlength 0
    5551   from ADDRESS lookup TABLE
    TABLE  default via ROUTER dev LINK          (metric: our mark)
           unreachable default                  (metric: our mark and the highest bit)

What is near, or routed on purpose, is reached as by everybody; only the default route is
its own. Were the link down and its route gone, the second rule would find nothing and
the machine's default route would be next: hence the last resort, which depends on no
link.

Rules of this file: pure; the way is there before the address is, and until it is gone.
"""

from collections.abc import Iterable, Iterator

from vnsmail.model import Context, VirtualHost
from vnsmail.net import names
from vnsmail.net.facts import Actual, SourceRule, TableRoute
from vnsmail.net.messages import MAIN_TABLE
from vnsmail.net.steps import (
    AddRule,
    AddTableRoute,
    RemoveRule,
    RemoveTableRoute,
    Step,
)


class BySource:
    """Rules and tables of all aliases, as they should be and as they are."""

    def __init__(
        self, hosts: Iterable[VirtualHost], actual: Actual, instance: str
    ) -> None:
        self._actual = actual
        self._routes: dict[TableRoute, VirtualHost] = {}
        self._rules: dict[SourceRule, None] = {}
        for host in hosts:
            if host.context is Context.ALIAS:
                for gateway in host.gateways:
                    table = names.table(instance, host.link, str(gateway))
                    way = TableRoute(table, gateway.version, gateway, host.link)
                    last = TableRoute(table, gateway.version, None)
                    self._routes.setdefault(last, host)
                    self._routes.setdefault(way, host)
                    for each in host.addresses:
                        if each.address.version == gateway.version:
                            self._rules[SourceRule(each.address, MAIN_TABLE)] = None
                            self._rules[SourceRule(each.address, table)] = None

    def surplus(self) -> Iterator[Step]:
        """Return the steps that take away what no alias needs, once those are gone."""
        for rule in self._actual.rules:
            if rule not in self._rules:
                yield RemoveRule(rule.address, rule.table)
        for route in self._actual.table_routes:
            if route not in self._routes:
                yield RemoveTableRoute(
                    route.table, route.version, route.gateway, route.link
                )

    def missing(self) -> Iterator[Step]:
        """Return the steps that make what is lacking, before there are aliases."""
        for route, host in self._routes.items():
            if route not in self._actual.table_routes:
                yield AddTableRoute(
                    route.table, route.version, route.gateway, route.link, host.name
                )
        there = set(self._actual.rules)
        for rule in self._rules:
            if rule not in there:
                yield AddRule(rule.address, rule.table)
