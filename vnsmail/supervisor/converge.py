"""What has to change so that the hosts of a file are the hosts there are. Pure.

Rules of this file: a decision is about all hosts or there is none: whatever cannot be
is found before anything is changed, with its line; what the file leaves open stays as
it is where that still fits, so that the same file asks for nothing the second time.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeAlias

from vnsmail.directory import declaration as file
from vnsmail.directory.declaration import Declaration, DeclaredHost, Misfits, Problem
from vnsmail.errors import BadInput, Taken
from vnsmail.model import (
    Context,
    HostName,
    IPAddress,
    Limits,
    Relay,
    SourceAddress,
    Uplink,
    VirtualHost,
)
from vnsmail.net.fit import check
from vnsmail.net.plan import Actual, choose_gateways, choose_link

Action: TypeAlias = Literal["create", "change", "destroy"]

WITHOUT_SOCKETS = frozenset(
    {
        *("domains", "gateways", "mtu", "limits", "suspended"),
        *("resolvers", "source_check", "public_addresses", "helo", "addresses"),
        *("authentication", "engine", "relay"),
    }
)
"""Facts that can change while sockets stay open; addresses that go are drained."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A virtual host with its users."""

    facts: VirtualHost
    users: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One host that is to come, to go, or to become another."""

    before: Tenant | None
    after: Tenant | None

    @property
    def name(self) -> HostName:
        tenant = self.after or self.before
        assert tenant is not None  # noqa: S101  a change has one of the two
        return tenant.facts.name

    @property
    def action(self) -> Action:
        if self.before is None:
            return "create"
        return "change" if self.after else "destroy"

    @property
    def reopens(self) -> bool:
        """Whether the host's sockets have to be opened anew, in another place."""
        if self.before is None or self.after is None:
            return False
        changed = _changed(self.before.facts, self.after.facts)
        return not changed <= WITHOUT_SOCKETS

    def details(self) -> tuple[str, ...]:
        """Return what the change consists of, in words."""
        if self.after is None:
            return ()
        if self.before is None:
            new = file.entries(self.after.facts, self.after.users).items()
            return tuple(f"{key} {_listed(value)}" for key, value in new if value)
        pairs = [
            (name, getattr(self.before.facts, name), getattr(self.after.facts, name))
            for name in sorted(_changed(self.before.facts, self.after.facts))
        ]
        if self.before.users != self.after.users:
            pairs.append(("users", self.before.users, self.after.users))
        return tuple(_difference(*pair) for pair in pairs)


@dataclass(frozen=True, slots=True)
class Decision:
    """What there should be, and what has to change for it."""

    hosts: tuple[Tenant, ...]
    """All that should be, by name."""
    changes: tuple[Change, ...]
    """Those that come, then those that change, then those that go."""


def decide(
    declaration: Declaration, existing: Mapping[HostName, Tenant], actual: Actual
) -> Decision:
    """Return what a file asks for.

    Args:
        declaration: the file.
        existing: the hosts there should be by now.
        actual: the network as observed.

    Raises:
        Misfits: what the file says cannot be here.
    """
    # Links of hosts carry no other host: without them a choice costs the same for the
    # thousandth host as for the first.
    links = tuple(link for link in actual.links if not link.ours)
    actual = replace(actual, links=links, namespaces=())
    hosts: list[Tenant] = []
    problems: list[Problem] = []
    for declared in sorted(declaration.hosts, key=lambda host: host.name):
        before = existing.get(declared.name)
        try:
            hosts.append(_tenant(declared, before, actual))
        except BadInput as error:
            problems.append(_at(declaration, declared, error))
    if problems:
        raise Misfits(tuple(sorted(problems, key=lambda problem: problem.line)))
    changes = [
        Change(existing.get(tenant.facts.name), tenant)
        for tenant in hosts
        if existing.get(tenant.facts.name) != tenant
    ]
    wanted = {tenant.facts.name for tenant in hosts}
    changes += [
        Change(tenant, None) for name, tenant in existing.items() if name not in wanted
    ]
    order = ("create", "change", "destroy")
    changes.sort(key=lambda change: (order.index(change.action), change.name))
    return Decision(tuple(hosts), tuple(changes))


def _tenant(declared: DeclaredHost, before: Tenant | None, actual: Actual) -> Tenant:
    table = declared.table
    old = before.facts if before and before.facts.context is table.context else None
    link, uplink = _link(declared, old, actual)
    host = VirtualHost(
        name=declared.name,
        context=table.context,
        addresses=table.addresses,
        domains=declared.domains,
        link=link,
        uplink=uplink,
        gateways=table.gateways or (),
        mtu=table.mtu,
        vlan=table.vlan,
        resolvers=table.resolvers,
        source_check=table.source_check,
        public_addresses=table.public_addresses,
        limits=table.limits.value,
        suspended=_suspended(table.suspended, before),
        helo=table.helo,
        authentication=table.authentication,
        engine=table.engine,
        relay=table.relay.value if table.relay else None,
    )
    routers = host.context is Context.NAMESPACE and uplink is not Uplink.ROUTED
    # The machine's routers are not on a tagged network.
    routers = routers and table.vlan is None
    if routers and table.gateways is None:
        host = replace(host, gateways=_gateways(host, old, actual))
    check(host, actual, old)
    users = table.users
    if users is None:
        users = before.users if before else ()
    return Tenant(host, tuple(sorted(users)))


def _suspended(said: bool | None, before: Tenant | None) -> bool:
    if said is not None:
        return said
    return before is not None and before.facts.suspended


def _link(
    declared: DeclaredHost, old: VirtualHost | None, actual: Actual
) -> tuple[str, Uplink | None]:
    """Return the link of a host: as the file says, else as it is, else as it fits."""
    table = declared.table
    if (
        old is not None
        and old.addresses == table.addresses
        and table.link in {None, old.link}
        and table.uplink in {None, old.uplink}
        and table.vlan == old.vlan
    ):
        return old.link, old.uplink
    requested = table.link
    if requested is None and old is not None:
        tagged = table.vlan is not None
        if tagged or _reaches(old.link, table, actual):
            requested = old.link
    return choose_link(
        table.addresses,
        actual,
        table.context,
        requested,
        table.uplink,
        tagged=table.vlan is not None,
    )


def _reaches(link: str, table: file.HostTable, actual: Actual) -> bool:
    try:
        choose_link(table.addresses, actual, table.context, link)
    except Taken:
        return True  # so is every other
    except BadInput:
        return False
    return True


def _gateways(
    host: VirtualHost, old: VirtualHost | None, actual: Actual
) -> tuple[IPAddress, ...]:
    """Return the routers of a host for which the file names none."""
    kept: tuple[IPAddress, ...] = ()
    if old is not None and old.link == host.link:
        if old.addresses == host.addresses:
            return old.gateways
        kept = tuple(g for g in old.gateways if _near(g, host.addresses))
    chosen = choose_gateways(host.addresses, actual, host.link)
    had = {gateway.version for gateway in kept}
    found = (*kept, *(each for each in chosen if each.version not in had))
    return tuple(sorted(found, key=lambda gateway: gateway.version))


def _near(gateway: IPAddress, addresses: Iterable[SourceAddress]) -> bool:
    if gateway.is_link_local:
        return any(gateway.version == a.family for a in addresses)
    return any(gateway in a.network and gateway != a.address for a in addresses)


def _at(declaration: Declaration, host: DeclaredHost, error: BadInput) -> Problem:
    """Return what was found wrong with a host, at its place in the file."""
    text = f"{error.value!r}: {error.remedy}"
    if error.what == "address":
        for number, each in enumerate(host.table.addresses):
            if error.value in {str(each), str(each.address)}:
                return declaration.problem(host, text, "addresses", number)
    if error.what in file.HostTable.model_fields:
        return declaration.problem(host, text, error.what)
    return declaration.problem(host, text)


# In words -----------------------------------------------------------------------


def _changed(before: VirtualHost, after: VirtualHost) -> set[str]:
    return {
        each.name
        for each in fields(VirtualHost)
        if getattr(before, each.name) != getattr(after, each.name)
    }


def _difference(name: str, before: object, after: object) -> str:
    if name == "relay":
        return f"{name} {_relay(before)} → {_relay(after)}"
    if isinstance(before, Limits) and isinstance(after, Limits):
        return ", ".join(
            f"{name}.{each.name} {_listed(old)} → {_listed(new)}"
            for each in fields(Limits)
            if (old := getattr(before, each.name)) != (new := getattr(after, each.name))
        )
    if not isinstance(before, tuple) or not isinstance(after, tuple):
        return f"{name} {_listed(before)} → {_listed(after)}"
    signs = [f"-{each}" for each in before if each not in after]
    signs += [f"+{each}" for each in after if each not in before]
    if not signs:
        return f"{name} in the order {_listed(after)}"
    return f"{name} {' '.join(signs)}"


def _relay(value: object) -> str:
    if not isinstance(value, Relay):
        return "none"
    return f"{value.server} as {value.user}" if value.user else value.server


def _listed(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(str(each) for each in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    if isinstance(value, bool):
        return "true" if value else "false"  # as the file has it
    return "none" if value is None else str(value)
