"""How one owner's mail is protected on its way out: what the worker has for it.

Rules of this file: what it puts together is decided and done elsewhere (delivery/security.py,
tls/client.py); nothing here is shared between owners but what the authorities are.
"""

from ipaddress import ip_address

from vnsmail.delivery.explain import TLS
from vnsmail.delivery.security import Security, TlsRules
from vnsmail.engines.protocol import OwnerFacts
from vnsmail.resolve.resolver import Resolver
from vnsmail.settings import DnsSettings, Settings
from vnsmail.tls.client import ClientTls
from vnsmail.tls.layer import KeyPair


class Protection:
    """What protects one owner's mail.

    Args:
        facts: who it is.
        settings: of the whole system.
        authorities: certificates of those who are trusted, as PEM.
        resolver: who is asked for TLSA records and policies.
    """

    def __init__(
        self,
        facts: OwnerFacts,
        settings: Settings,
        authorities: bytes,
        resolver: Resolver,
    ) -> None:
        self._authorities = authorities
        self._rules = TlsRules(settings.delivery, facts.owner)
        self.security = Security(
            self._rules, resolver if settings.dns.validating else None
        )
        self.tls = self._client(facts)

    def update(self, facts: OwnerFacts) -> ClientTls:
        """Use a changed certificate from the next connection on."""
        self.tls = self._client(facts)
        return self.tls

    async def told_of(self, domain: str, relay: str) -> str:
        """Say how the servers of a destination are spoken to."""
        return TLS[self._rules.level(domain, relay.rpartition(":")[0] or relay)]

    def _client(self, facts: OwnerFacts) -> ClientTls:
        own = next((each for each in facts.certificates if not each.name), None)
        shown = own if self._rules.client_certificate else None
        return ClientTls(self._authorities, KeyPair(shown.pem) if shown else None)


def believed(dns: DnsSettings, facts: OwnerFacts, server: str) -> bool:
    """Say whether a name server's word that data are authentic counts.

    It does if nobody can stand between: on this machine, at the owner's own address, or
    where the settings say so (RFC 7672 section 1.3.1).
    """
    if not dns.validating:
        return False
    try:
        address = ip_address(server)
    except ValueError:
        return False
    own = {ip_address(each) for each in facts.addresses}
    return address.is_loopback or address in own or address in dns.trusted
