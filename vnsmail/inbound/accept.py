"""Which recipients are taken, and whose mailbox each of them is. Pure.

    alias of that name          its targets, here or elsewhere
    user                        the mailbox
    alias, user of ann+tag      those of ann (RFC 5233: a subaddress)
    postmaster                  the mailbox
    catch-all                   its targets

Rules of this file: it relays for nobody, whoever asks: mail goes elsewhere only where an
alias of the owner sends it; what it takes has a mailbox whose name can be the name of a
folder and of nothing else, whatever a remote wrote.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from vnsmail.errors import BadInput
from vnsmail.message.trace import address_literal
from vnsmail.model import CATCH_ALL, IPAddress, domain_name
from vnsmail.smtp.address import Mailbox, parse_mailbox
from vnsmail.smtp.errors import SmtpSyntaxError
from vnsmail.smtp.replies import Reply

POSTMASTER = "postmaster"
"""Has a mailbox at every domain that takes mail (RFC 5321 section 4.5.1)."""

MAX_USER = 128
"""Octets of a mailbox's name where every local part has one. A folder's name may have
255; bounce addresses that carry another address in them reach a hundred."""

SEPARATOR = "+"
"""Between a user and what it likes to call this mail."""

SEPARATOR_OF_DOMAIN = "@"

MAX_TARGETS = 1000
"""Addresses that one address may become."""

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
class Aliased:
    """A recipient that stands for others."""

    addresses: tuple[str, ...]
    """At least one, here or elsewhere, in the one spelling as above."""
    users: tuple[str, ...]
    """The mailboxes of those that are here."""


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
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Targets by local part in lower case, or CATCH_ALL: local parts of the owner's own,
    or whole addresses."""

    @classmethod
    def of(
        cls,
        domains: Iterable[str],
        users: Iterable[str],
        *,
        any_user: bool = False,
        addresses: Iterable[IPAddress] = (),
        aliases: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Self:
        """Return the policy of an owner with these domains, users, addresses, aliases."""
        return cls(
            tuple(domain.lower() for domain in domains),
            frozenset(user.lower() for user in users),
            any_user,
            frozenset(map(address_literal, addresses)),
            {name.lower(): targets for name, targets in (aliases or {}).items()},
        )

    def decide(self, recipient: Mailbox) -> Taken | Reply:
        """Return whose mailbox a recipient is, or the reply that refuses it.

        Aliases have no mailbox; ``expand`` knows them.
        """
        domain = self.own_domain(recipient.domain)
        if not domain:
            return RELAYING_DENIED
        name = _lower(recipient.local_part)
        user = self._mailbox(name)
        return Taken(user, f"{Mailbox(name, domain)}") if user else NO_SUCH_USER

    def expand(self, recipient: Mailbox) -> Taken | Aliased | Reply:
        """Return where mail for a recipient goes, or the reply that refuses it."""
        domain = self.own_domain(recipient.domain)
        if not domain:
            return RELAYING_DENIED
        name = _lower(recipient.local_part)
        alias = self._alias(name)
        if alias is None:
            return self.decide(recipient)
        users: dict[str, str] = {}
        elsewhere: dict[str, None] = {}
        for target in self._targets(alias, {alias}):
            if SEPARATOR_OF_DOMAIN in target:
                elsewhere[target] = None
            elif user := self._mailbox(target):
                users[f"{Mailbox(target, domain)}"] = user
            if len(users) + len(elsewhere) >= MAX_TARGETS:
                break
        addresses = (*users, *elsewhere)
        if not addresses:
            return NO_SUCH_USER
        return Aliased(addresses, tuple(dict.fromkeys(users.values())))

    def spelled(self, recipient: Mailbox) -> str:
        """Return a recipient, here or elsewhere, in the spelling delivery knows."""
        decision = self.decide(recipient)
        return decision.address if isinstance(decision, Taken) else str(recipient)

    def meant(self, recipient: Mailbox) -> tuple[str, ...]:
        """Return all whom a recipient, here or elsewhere, stands for, spelled so."""
        match self.expand(recipient):
            case Taken(_, address):
                return (address,)
            case Aliased(addresses):
                return addresses
            case _:
                return (str(recipient),)

    # Within ---------------------------------------------------------------------

    def _mailbox(self, name: str) -> str:
        """Return the mailbox of a local part; empty if it has none."""
        for user in (name, _base(name)):
            known = self.any_user or user in self.users or user == POSTMASTER
            if known and names_a_folder(user):
                return user
        return ""

    def _alias(self, name: str) -> str | None:
        """Return the alias that a local part is; None if it is none."""
        if name in self.aliases:
            return name
        if name in self.users:
            return None
        if _base(name) in self.aliases:
            return _base(name)
        if self._mailbox(name) or CATCH_ALL not in self.aliases:
            return None
        return CATCH_ALL

    def _targets(self, alias: str, seen: set[str]) -> Iterator[str]:
        """Return whom an alias stands for: local parts here, addresses elsewhere.

        An alias within an alias is taken apart too, once: what goes in a circle ends. One
        that names itself means the mailbox of that name.
        """
        for target in self.aliases[alias]:
            name = self._local(target)
            if name is None:
                yield target
            elif not name:
                continue
            elif name in seen or (inner := self._alias(name)) is None:
                yield name
            elif inner not in seen:
                seen.add(inner)
                yield from self._targets(inner, seen)

    def _local(self, target: str) -> str | None:
        """Return the local part of a target that is here; None if it is elsewhere."""
        if SEPARATOR_OF_DOMAIN not in target:
            return target
        try:
            mailbox = parse_mailbox(target, smtputf8=True)
        except SmtpSyntaxError:  # nothing that mail could go to
            return ""
        return _lower(mailbox.local_part) if self.own_domain(mailbox.domain) else None

    def own_domain(self, domain: str) -> str:
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


def _base(name: str) -> str:
    """Return the local part without the subaddress."""
    return name.partition(SEPARATOR)[0]


def _lower(local_part: str) -> str:
    # Only ASCII: beyond it some letters become ASCII ones (the Kelvin sign a "k"), and
    # one user's address would reach another's mailbox.
    return local_part.lower() if local_part.isascii() else local_part
