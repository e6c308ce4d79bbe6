"""How a destination's servers are to be spoken to: settings, DANE, MTA-STS, in that order.

A level of the settings that asks for more than TLS of any kind (``verify``, ``secure``), or for
none (``none``), is the word of whoever runs the system, and is taken as it is. Otherwise
TLSA records that DNSSEC vouches for go before an MTA-STS policy (RFC 8461 section 2).

Rules of this file: what is not known now is no permission: a server whose TLSA records
cannot be looked up is left out, and the mail waits; what is decided is decided in tls/policy.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from vnsmail.delivery import outcomes as say
from vnsmail.delivery.route import Hop
from vnsmail.errors import ResolveError
from vnsmail.model import Family, Outcome, TlsWish
from vnsmail.resolve.tlsa import TlsaFound
from vnsmail.settings import DeliverySettings
from vnsmail.tls.policy import HopTls, Level, by_dane, by_level, by_sts, proven
from vnsmail.tls.sts import Policy

SMTP_PORT = 25


def name_of(relay: str) -> str:
    """Return the name of a relay without its port."""
    return relay.rpartition(":")[0] or relay


class Secured(Protocol):
    """Who knows what DNSSEC vouches for; vnsmail.resolve.resolver.Resolver."""

    async def mx_is_secure(self, domain: str) -> bool: ...

    async def tlsa(self, name: str, port: int, family: Family) -> TlsaFound: ...


class Policies(Protocol):
    """Who knows MTA-STS policies; delivery/mta_sts.py."""

    async def policy(self, domain: str) -> Policy | None: ...


class Unreported(Protocol):
    """Who is told of servers that were left out."""

    def __call__(self, hop: Hop, policy: str, kind: str, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class TlsRules:
    """What the settings say of one owner's TLS."""

    settings: DeliverySettings
    owner: str

    def level(self, domain: str, relay: str = "", *, login: bool = False) -> Level:
        """Return the level of a destination: that of its relay's name if it has one.

        Where somebody signs in, the server proves who it is, unless the settings want
        ``encrypt`` of that very relay; then no mechanism tells it the password.
        """
        level = self._level(domain, relay)
        weak = {Level.NONE, Level.MAY}
        if Level.ENCRYPT.value not in self._said_of(relay):
            weak.add(Level.ENCRYPT)
        return Level.VERIFY if login and level in weak else level

    def _said_of(self, relay: str) -> set[str]:
        host = self.settings.host.get(self.owner)
        own = host.tls.destination if host is not None else {}
        found = own.get(relay) or self.settings.tls.destination.get(relay)
        return {found} if found else set()

    def _level(self, domain: str, relay: str) -> Level:
        host = self.settings.host.get(self.owner)
        names = [domain, *([relay] if relay else [])]
        if host is not None:
            for name in names:
                if name in host.tls.destination:
                    return Level(host.tls.destination[name])
            if host.tls.policy is not None:
                return Level(host.tls.policy)
        for name in names:
            if name in self.settings.tls.destination:
                return Level(self.settings.tls.destination[name])
        return Level(self.settings.tls.policy)

    @property
    def client_certificate(self) -> bool:
        """Whether the owner's own certificate is shown to servers that ask for one."""
        host = self.settings.host.get(self.owner)
        own = host.tls.client_certificate if host is not None else None
        return self.settings.tls.client_certificate if own is None else own


class Security:
    """Decides for one owner.

    Args:
        rules: of the settings.
        dnssec: who is asked for TLSA records; None: nobody, as no answer is vouched for.
        policies: who is asked for MTA-STS policies; None: nobody.
        left_out: told of each server that is not asked.
    """

    def __init__(
        self,
        rules: TlsRules,
        dnssec: Secured | None = None,
        policies: Policies | None = None,
        left_out: Unreported | None = None,
    ) -> None:
        self.rules = rules
        self._dnssec = dnssec if rules.settings.tls.dane else None
        self._policies = policies if rules.settings.tls.mta_sts else None
        self._left_out = left_out

    async def protect(
        self,
        domain: str,
        hops: Sequence[Hop],
        relay: str = "",
        wish: TlsWish = TlsWish.USUAL,
    ) -> tuple[Hop, ...] | Outcome:
        """Return the hops that may be asked, each with how; or why there is none.

        Args:
            domain: of the recipients.
            hops: of a route.
            relay: the relay of the settings that they belong to; empty: those of DNS.
            wish: what the sender of the message wants.

        Raises:
            SourceUnavailable, BrokerGone, BrokerRefused: a policy could not be asked for,
                as the owner's address is missing.
        """
        login = any(hop.login is not None for hop in hops)
        if all(hop.path for hop in hops):
            return tuple(replace(hop, domain=domain) for hop in hops)  # on this machine
        level = self.rules.level(domain, name_of(relay), login=login)
        plain_after = self.rules.settings.tls.plain_after_failure
        raised = level in {Level.MAY, Level.ENCRYPT} and not domain.startswith("[")
        # What the sender does not need, its destination does not get (RFC 8689 4.2.2).
        raised = raised and wish is not TlsWish.OPTIONAL
        policy = None
        if raised and not relay and self._policies is not None:
            policy = await self._policies.policy(domain)
        secure = raised and await self._is_secure(domain, relay)
        found: list[Hop] = []
        problem = ""
        for hop in hops:
            usual = by_level(level, domain, hop.name, plain_after=plain_after)
            try:
                tls = await self._of(hop, usual, policy, domain, secure=secure)
            except ResolveError as error:
                problem = f"{hop.name} is not asked: {error}"
                self._tell(hop, domain, "tlsa", "dnssec-invalid", problem)
                continue
            if tls is not None and wish is TlsWish.REQUIRED:
                named = bool(relay) or secure or policy is not None
                tls = _proven(tls, hop, domain, level, named=named)
                if tls is None:
                    return say.failed(550, "5.7.5", unproven(domain), str(hop))
            if tls is None:
                problem = f"{hop.name} is not in the MTA-STS policy of {domain}"
                self._tell(hop, domain, "sts", "validation-failure", problem)
                continue
            found.append(replace(hop, tls=tls, domain=domain))
        if found:
            return tuple(found)
        return say.no_tls(problem, str(hops[0]))

    async def _is_secure(self, domain: str, relay: str) -> bool:
        """Say whether the names of the servers are to be believed."""
        if self._dnssec is None:
            return False
        return True if relay else await self._dnssec.mx_is_secure(domain)

    async def _of(
        self,
        hop: Hop,
        usual: HopTls,
        policy: Policy | None,
        domain: str,
        *,
        secure: bool,
    ) -> HopTls | None:
        if secure and self._dnssec is not None and not hop.name.startswith("["):
            port = hop.port or SMTP_PORT
            tlsa = await self._dnssec.tlsa(hop.name, port, hop.family)
            if tlsa.records:
                return by_dane(tlsa.records, tlsa.base, hop.name, domain)
        if policy is not None:
            return by_sts(policy, hop.name, usual)
        return usual

    def _tell(self, hop: Hop, domain: str, policy: str, kind: str, text: str) -> None:
        if self._left_out is not None:
            self._left_out(replace(hop, domain=domain), policy, kind, text)


def _proven(
    tls: HopTls, hop: Hop, domain: str, level: Level, *, named: bool
) -> HopTls | None:
    """Return the steps in which a server proves who it is; None if there can be none.

    Its name has to be known from somewhere that nobody can forge: DNSSEC, an MTA-STS
    policy, the settings (RFC 8689 section 4.2.1).
    """
    if level is Level.SECURE or named:
        found = proven(tls)
        if found is not None or level is Level.NONE:
            return found
        return by_level(Level.VERIFY, domain, hop.name, plain_after=False)
    return None


def unproven(domain: str) -> str:
    """Say why nothing is sent that its sender wants protected."""
    return (
        f"the sender wants TLS all the way (REQUIRETLS), and nothing vouches for the names "
        f"of the mail servers of {domain}: neither DNSSEC nor an MTA-STS policy"
    )


def unknown_to_engine(domain: str, level: Level, engine: str) -> str:
    """Say why a real mail server is not given what the settings want protected."""
    return (
        f"the settings want TLS policy {level.value} for {domain}, and {engine} goes by "
        "its own: give the host the native engine, or take the policy away"
    )
