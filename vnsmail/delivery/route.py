"""Where the mail of a domain goes: the hops to try, in order (RFC 5321 section 5.1).

Rules of this file: it asks the resolver and nothing else; chance comes from the
caller. An outcome instead of hops means that there is nobody to connect to.
"""

import asyncio
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Protocol, TypeAlias

from vnsmail.delivery import outcomes as say
from vnsmail.delivery.facts import AgentFacts
from vnsmail.errors import ResolveError
from vnsmail.model import Family, IPAddress, Outcome
from vnsmail.resolve.resolver import MailExchanger, NullMx
from vnsmail.sasl.client import Login
from vnsmail.settings import LMTP, store_path
from vnsmail.tls.policy import NO_TLS, HopTls

MAX_EXCHANGERS = 10
"""Exchangers whose addresses are asked for; the largest providers list five."""

MAX_HOPS = 10
"""Addresses tried in one attempt. RFC 5321 section 5.1 wants two or more and allows a
limit; without one, a domain that lists hundreds keeps a connection slot for hours."""


HERE = ipaddress.IPv6Address("::1")
"""In place of the address of a store that has none."""


class Questions(Protocol):
    """What a route needs to know; vnsmail.resolve.resolver.Resolver answers it."""

    async def mx(self, domain: str) -> tuple[MailExchanger, ...]: ...

    async def addresses(self, name: str, family: Family) -> tuple[IPAddress, ...]: ...


@dataclass(frozen=True, slots=True)
class Hop:
    """One address of one host that takes mail for a domain."""

    name: str
    address: IPAddress
    port: int | None = None
    """None: that of the settings."""
    site: str = field(default="", compare=False)
    """Names of all exchangers of the domain: domains with the same ones are one site.
    Empty: the address is a site by itself."""
    lmtp: bool = False
    """A store that speaks LMTP (RFC 2033)."""
    engine: bool = False
    """The owner's own engine, reached without any network."""

    domain: str = field(default="", compare=False)
    """Of the recipients that it is asked for; others may be asked for as well."""
    tls: HopTls = field(default=NO_TLS, compare=False)
    """How it is to be spoken to (delivery/security.py)."""
    login: Login | None = field(default=None, compare=False)
    """Who signs in there."""
    path: str = ""
    """Of the Unix socket of a store on this machine; its address means nothing."""

    @property
    def family(self) -> Family:
        return Family(self.address.version)

    @property
    def pool(self) -> str:
        """Which connections can be used for it: those of its site, of the same rules."""
        login = f" {self.login.key}" if self.login else ""
        return f"{self.site or self.address} {self.tls.key}{login}".rstrip()

    def __str__(self) -> str:
        return self.name if self.path else f"{self.name} [{self.address}]"


@dataclass(frozen=True, slots=True)
class RouteRules:
    """What the settings say of one owner's routes."""

    routes: Mapping[str, str] = field(default_factory=dict)
    """Domain, or ``*``, to a relay as settings.DeliverySettings.route has it."""
    loopback: bool = False
    """Mail may go to loopback addresses."""

    def relay(self, domain: str) -> str | None:
        """Return the relay by which a domain's mail goes; None: where DNS says."""
        found = self.routes.get(domain) or self.routes.get("*", "mx")
        return None if found == "mx" else found


AS_DNS_SAYS = RouteRules()

Route: TypeAlias = tuple[Hop, ...] | Outcome

Shuffle: TypeAlias = Callable[[list[MailExchanger]], None]
"""Reorders a list in place, as random.shuffle does."""


async def route(
    domain: str,
    facts: AgentFacts,
    resolver: Questions,
    shuffle: Shuffle,
    rules: RouteRules = AS_DNS_SAYS,
) -> Route:
    """Return the hops for a domain or an address literal, the first to try first.

    Order: preference, chance among equals (RFC 5321 section 5.1), and for one
    exchanger IPv6 before IPv4 (RFC 6724 section 2.1, rule 6).
    """
    if facts.engine:
        return (_engine(facts),)
    found = await _found(domain, facts, resolver, shuffle, rules)
    if isinstance(found, Outcome) or rules.loopback:
        return found
    usable = tuple(hop for hop in found if hop.path or not hop.address.is_loopback)
    if found and not usable:
        # What listens there is this machine: the mail would come back.
        text = f"{domain} names {found[0]} as its mail host, which is here"
        return say.failed(550, "5.4.6", text)
    return usable


def _engine(facts: AgentFacts) -> Hop:
    """Return the owner's engine as a hop: at home, so to say."""
    home = min(facts.sources or facts.addresses, key=lambda each: each.version)
    return Hop(facts.engine, home, site=f"engine {facts.engine}", engine=True)


async def _found(
    domain: str,
    facts: AgentFacts,
    resolver: Questions,
    shuffle: Shuffle,
    rules: RouteRules,
) -> Route:
    if relay := rules.relay(domain):
        return await _by_relay(relay, facts, resolver)
    if domain.startswith("["):
        return _literal(domain, facts)
    try:
        exchangers = await resolver.mx(domain)
    except NullMx:
        # RFC 7505 section 4.1 gives both codes.
        return say.failed(556, "5.1.10", f"{domain} takes no mail")
    except ResolveError as error:
        return say.unresolved(error)
    ordered = _ordered(exchangers, shuffle)[:MAX_EXCHANGERS]
    usable = _before(ordered, {facts.name, facts.owner})
    if not usable:
        return _loops(domain, facts)
    return await _reach(domain, usable, facts, resolver)


async def _by_relay(relay: str, facts: AgentFacts, resolver: Questions) -> Route:
    """Return the hops of a relay: its addresses, whatever its own MX says."""
    if path := store_path(relay):
        name = f"unix:{path}"
        return (Hop(name, HERE, site=f"relay {relay}", lmtp=True, path=path),)
    lmtp = relay.startswith(LMTP)
    name, port = relay.removeprefix(LMTP), None
    if not relay.endswith("]") and ":" in relay:
        name, _, number = name.rpartition(":")
        port = int(number)
    if name.startswith("["):
        text = name[1:-1]
        literal = f"[IPv6:{text}]" if ":" in text else name
        hops = _literal(literal, facts)
    else:
        hops = await _reach(name, [MailExchanger(0, name)], facts, resolver)
    if isinstance(hops, Outcome):
        # It is for the postmaster here to mend, so the mail waits.
        text = f"the relay {relay} cannot be used: {hops.text}"
        return replace(say.deferred(451, "4.4.4", text), unreachable=True)
    return tuple(
        replace(hop, port=port, site=f"relay {relay}", lmtp=lmtp) for hop in hops
    )


def _ordered(
    exchangers: Sequence[MailExchanger], shuffle: Shuffle
) -> list[MailExchanger]:
    ordered: list[MailExchanger] = []
    for _, equals in groupby(sorted(exchangers), key=lambda each: each.preference):
        mixed = list(equals)
        shuffle(mixed)
        ordered += mixed
    return ordered


def _before(
    exchangers: Sequence[MailExchanger], own: AbstractSet[str]
) -> list[MailExchanger]:
    """Leave out ourselves and whoever is no closer to the domain than we are.

    Mail handed to them would come back (RFC 5321 section 5.1).
    """
    limit = min((e.preference for e in exchangers if e.name in own), default=None)
    return [e for e in exchangers if limit is None or e.preference < limit]


@dataclass(frozen=True, slots=True)
class _Found:
    """The addresses of one exchanger, and what went wrong in finding them."""

    exchanger: MailExchanger
    addresses: tuple[IPAddress, ...]
    errors: tuple[ResolveError, ...]


async def _reach(
    domain: str,
    exchangers: Sequence[MailExchanger],
    facts: AgentFacts,
    resolver: Questions,
) -> Route:
    async with asyncio.TaskGroup() as tasks:
        asking = [
            tasks.create_task(_find(each, facts.families, resolver))
            for each in exchangers
        ]
    found = [task.result() for task in asking]
    own = {f.exchanger.name for f in found if facts.addresses & set(f.addresses)}
    usable = set(_before([f.exchanger for f in found], own))
    if not usable:
        return _loops(domain, facts)
    hops: dict[IPAddress, Hop] = {}
    for each in found:
        if each.exchanger in usable:
            for address in each.addresses:
                hops.setdefault(address, Hop(each.exchanger.name, address))
    if hops:
        site = " ".join(sorted(e.name for e in usable))
        return tuple(replace(hop, site=site) for hop in hops.values())[:MAX_HOPS]
    return await _nobody(domain, found, facts, resolver)


async def _find(
    exchanger: MailExchanger, families: AbstractSet[Family], resolver: Questions
) -> _Found:
    addresses: list[IPAddress] = []
    errors: list[ResolveError] = []
    for family in sorted(families, reverse=True):
        try:
            addresses += await resolver.addresses(exchanger.name, family)
        except ResolveError as error:
            errors.append(error)
    return _Found(exchanger, tuple(addresses), tuple(errors))


async def _nobody(
    domain: str, found: Sequence[_Found], facts: AgentFacts, resolver: Questions
) -> Outcome:
    """Say why no address is left.

    Exchangers that cannot be used must be reported as an error (RFC 5321 section 5.1):
    unless DNS may know more later, the message goes back at once, and whoever sent it
    learns today and not in five days that the two sides share no address family.
    """
    errors = [error for each in found for error in each.errors]
    for error in errors:
        if error.temporary:
            return say.unresolved(error)
    missing = set(Family) - set(facts.families)
    others = [
        await _find(each.exchanger, missing, resolver) for each in found if missing
    ]
    if any(each.addresses for each in others):
        ours, theirs = _names(facts.families), _names(missing)
        text = f"{domain} is reached by {theirs} only, and {facts.name} has only {ours}"
        return say.failed(550, "5.4.4", text)
    names = ", ".join(dict.fromkeys(each.exchanger.name for each in found))
    return say.failed(550, "5.4.4", f"no mail host of {domain} has an address: {names}")


def _loops(domain: str, facts: AgentFacts) -> Outcome:
    text = (
        f"the mail of {domain} is to come to {facts.name}, which does not know that "
        "domain as its own"
    )
    return say.failed(550, "5.4.6", text)


def _literal(domain: str, facts: AgentFacts) -> Route:
    """Return the one hop of an address literal (RFC 5321 section 4.1.3)."""
    text = domain[1:-1].lower()
    try:
        if text.startswith("ipv6:"):
            address: IPAddress = ipaddress.IPv6Address(text.removeprefix("ipv6:"))
        else:
            address = ipaddress.IPv4Address(text)
    except ValueError:
        return say.failed(550, "5.1.2", f"{domain} is not an address that can be used")
    hop = Hop(domain, address)
    if address in facts.addresses:
        return _loops(domain, facts)
    if hop.family not in facts.families:
        text = f"{facts.name} has no {_names({hop.family})} address to send from"
        return say.failed(550, "5.4.4", text)
    return (hop,)


def _names(families: AbstractSet[Family]) -> str:
    return " and ".join(f"IPv{family.value}" for family in sorted(families))
