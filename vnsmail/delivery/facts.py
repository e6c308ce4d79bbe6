"""What delivery must know of an owner. Pure."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from vnsmail.model import Family, IPAddress, Owner


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

    @property
    def families(self) -> frozenset[Family]:
        """Families it can send from. What the machine can, only the kernel knows."""
        if not self.addresses:
            return frozenset(Family)
        return frozenset(Family(address.version) for address in self.addresses)
