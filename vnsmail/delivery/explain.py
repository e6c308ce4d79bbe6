"""The path a message would take, without sending any.

Rules of this file: what is told is decided by delivery's own code (route.py), whose
questions are written down on the way; beside it, only what it did not ask is asked.
"""

from dataclasses import dataclass, field

from vnsmail.delivery.facts import AgentFacts
from vnsmail.delivery.route import AS_DNS_SAYS, Hop, Questions, RouteRules, route
from vnsmail.errors import ResolveError
from vnsmail.model import Family, IPAddress, Outcome
from vnsmail.resolve.resolver import MailExchanger
from vnsmail.tls.policy import Level

TLS = {
    Level.NONE: "none: mail is sent in the clear",
    Level.MAY: "where the server offers it (may)",
    Level.ENCRYPT: "or the mail waits (encrypt)",
    Level.VERIFY: "with a certificate for the exchanger's name (verify)",
    Level.SECURE: "with a certificate for the destination's name (secure)",
}
"""What is said of encryption on the way to a remote (delivery/security.py)."""


@dataclass(frozen=True, slots=True)
class Target:
    """One address of an exchanger, or one that has none."""

    exchanger: str
    preference: int
    address: IPAddress | None
    turn: int
    """Which is tried first, from 1; 0: it is not tried."""
    why: str = ""
    """Why it is not tried."""


@dataclass(frozen=True, slots=True)
class Path:
    """Where the mail of a domain would go."""

    targets: tuple[Target, ...]
    refusal: Outcome | None
    """What would become of it at once, where there is nobody to connect to."""


@dataclass(slots=True)
class _Recorder:
    """Answers as the resolver does, and remembers what was asked."""

    resolver: Questions
    exchangers: tuple[MailExchanger, ...] = ()
    found: dict[tuple[str, Family], tuple[IPAddress, ...]] = field(default_factory=dict)
    errors: dict[tuple[str, Family], str] = field(default_factory=dict)

    async def mx(self, domain: str) -> tuple[MailExchanger, ...]:
        self.exchangers = await self.resolver.mx(domain)
        return self.exchangers

    async def addresses(self, name: str, family: Family) -> tuple[IPAddress, ...]:
        try:
            found = await self.resolver.addresses(name, family)
        except ResolveError as error:
            self.errors[name, family] = str(error)
            raise
        self.found[name, family] = found
        return found

    async def known(self, name: str, family: Family) -> tuple[IPAddress, ...]:
        """Return what was answered, or ask now."""
        key = (name, family)
        if key not in self.found and key not in self.errors:
            try:
                await self.addresses(name, family)
            except ResolveError:
                return ()
        return self.found.get(key, ())


async def explain(
    domain: str,
    facts: AgentFacts,
    resolver: Questions,
    rules: RouteRules = AS_DNS_SAYS,
) -> Path:
    """Return where the mail of a domain would go, and what is passed over, and why.

    Among exchangers of the same preference chance decides each time; here they come by
    name.
    """
    recorder = _Recorder(resolver)
    found = await route(domain, facts, recorder, lambda each: each.sort(), rules)
    hops: tuple[Hop, ...] = () if isinstance(found, Outcome) else found
    turns = {hop.address: turn for turn, hop in enumerate(hops, start=1)}
    targets: list[Target] = []
    if not recorder.exchangers:  # a literal, or a relay of the settings
        targets = [Target(hop.name, 0, hop.address, turns[hop.address]) for hop in hops]
    for exchanger in sorted(recorder.exchangers):
        targets += await _targets(exchanger, facts, recorder, turns)
    return Path(tuple(targets), found if isinstance(found, Outcome) else None)


async def _targets(
    exchanger: MailExchanger,
    facts: AgentFacts,
    recorder: _Recorder,
    turns: dict[IPAddress, int],
) -> list[Target]:
    targets: list[Target] = []
    name, preference = exchanger.name, exchanger.preference
    for family in sorted(Family, reverse=True):
        for address in await recorder.known(name, family):
            turn = turns.get(address, 0)
            why = "" if turn else _why(name, address, facts, turns)
            targets.append(Target(name, preference, address, turn, why))
        if error := recorder.errors.get((name, family), ""):
            targets.append(Target(name, preference, None, 0, error))
    return targets or [Target(name, preference, None, 0, "it has no address")]


def _why(
    name: str, address: IPAddress, facts: AgentFacts, turns: dict[IPAddress, int]
) -> str:
    if name in {facts.name, facts.owner} or address in facts.addresses:
        return "it is this host itself"
    family = Family(address.version)
    if family not in facts.families:
        return f"{facts.owner} has no IPv{family.value} address to send from"
    if turns:
        return "no closer to the domain than this host, or behind those that are tried"
    return "no closer to the domain than this host"
