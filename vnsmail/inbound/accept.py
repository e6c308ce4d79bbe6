"""Which recipients are taken, and whose mailbox each of them is. Pure.

Rules of this file: it relays for nobody, whoever asks; what it takes has a mailbox
whose name can be the name of a folder and of nothing else, whatever a remote wrote.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from vnsmail.errors import BadInput
from vnsmail.message.trace import address_literal
from vnsmail.model import IPAddress, domain_name
from vnsmail.smtp.address import Mailbox
from vnsmail.smtp.replies import Reply

POSTMASTER = "postmaster"
"""Has a mailbox at every domain that takes mail (RFC 5321 section 4.5.1)."""

MAX_USER = 128
"""Octets of a mailbox's name where every local part has one. A folder's name may have
255; bounce addresses that carry another address in them reach a hundred."""

RELAYING_DENIED = Reply(550, ("relaying denied",), "5.7.1")
NO_SUCH_USER = Reply(550, ("no such user",), "5.1.1")


@dataclass(frozen=True, slots=True)
class Taken:
    """A recipient whose mailbox is here."""

    user: str
    """The mailbox, as the name of a folder."""
    address: str
    """The recipient in the one spelling that the queue and delivery know."""


@dataclass(frozen=True, slots=True)
class AcceptPolicy:
    """What one owner takes: its domains, and who has a mailbox there."""

    domains: tuple[str, ...]
    """Lower-case names, as A-labels; the first stands for all where none is given."""
    users: frozenset[str]
    """Local parts in lower case."""
    any_user: bool = False
    """Every local part that can name a folder has a mailbox."""
    literals: frozenset[str] = frozenset()
    """The owner's own addresses, as address literals with brackets."""

    @classmethod
    def of(
        cls,
        domains: Iterable[str],
        users: Iterable[str],
        *,
        any_user: bool = False,
        addresses: Iterable[IPAddress] = (),
    ) -> Self:
        """Return the policy of an owner with these domains, users and addresses."""
        return cls(
            tuple(domain.lower() for domain in domains),
            frozenset(user.lower() for user in users),
            any_user,
            frozenset(map(address_literal, addresses)),
        )

    def decide(self, recipient: Mailbox) -> Taken | Reply:
        """Return whose mailbox a recipient is, or the reply that refuses it."""
        domain = self._own_domain(recipient.domain)
        if not domain:
            return RELAYING_DENIED
        user = _lower(recipient.local_part)
        known = self.any_user or user in self.users or user == POSTMASTER
        if not known or not names_a_folder(user):
            return NO_SUCH_USER
        return Taken(user, f"{Mailbox(user, domain)}")

    def spelled(self, recipient: Mailbox) -> str:
        """Return a recipient, here or elsewhere, in the spelling delivery knows."""
        decision = self.decide(recipient)
        return decision.address if isinstance(decision, Taken) else str(recipient)

    def _own_domain(self, domain: str) -> str:
        """Return an own domain in its one spelling; empty if it is not ours."""
        if domain in self.domains:
            return domain
        if not self.domains:
            return ""
        # RFC 5321 sections 4.1.3 and 4.5.1: mail for an address of ours, or for just
        # "postmaster", is ours.
        if not domain or domain in self.literals:
            return self.domains[0]
        if domain.isascii():
            return ""
        try:
            name = domain_name(domain)
        except BadInput:
            return ""
        return name if name in self.domains else ""


def names_a_folder(user: str) -> bool:
    """Say whether a mailbox's name is the name of a folder, and not a path."""
    return (
        user.isprintable()
        and "/" not in user
        and not user.startswith(".")
        and 0 < len(user.encode()) <= MAX_USER
    )


def _lower(local_part: str) -> str:
    # Only ASCII: beyond it some letters become ASCII ones (the Kelvin sign a "k"), and
    # one user's address would reach another's mailbox.
    return local_part.lower() if local_part.isascii() else local_part
