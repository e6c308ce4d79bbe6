"""What delivery must know of an owner. Pure."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from vnsmail.model import Family, IPAddress, Owner
from vnsmail.sasl.client import Login


@dataclass(frozen=True, slots=True)
class RelayFacts:
    """The server that an owner's mail for others leaves by."""

    server: str
    """As settings.DeliverySettings.route has it."""
    login: Login | None = None
    """Who signs in there; None: nobody has to."""
    problem: str = ""
    """Why nobody can sign in though somebody has to; then nothing is sent."""


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """A virtual host, or the machine, as one that sends mail."""

    owner: Owner
    name: str
    """Given in EHLO and in delivery status notifications; as an exchanger: here."""
    addresses: AbstractSet[IPAddress]
    """Its own addresses; none for the machine, whose sockets are unbound."""
    domains: AbstractSet[str]
    """Domains whose mailboxes are here, in lower case."""
    sources: AbstractSet[IPAddress] = frozenset()
    """Those of its addresses that mail leaves from; none: any."""
    connections: int | None = None
    """Connections that it may have open at a time; None is as many as there is room
    for."""

    engine: str = ""
    """What takes mail for others in our place (model.Engine); empty: nothing does."""
    relay: RelayFacts | None = None
    """Where mail for others goes; None: where DNS and the settings say."""

    @property
    def families(self) -> frozenset[Family]:
        """Families it can send from. What the machine can, only the kernel knows."""
        if not self.addresses:
            return frozenset(Family)
        return frozenset(Family(address.version) for address in self.addresses)
