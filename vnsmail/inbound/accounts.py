"""Who can sign in at one owner, and as whom each may send (RFC 6409 section 6.1). Pure.

Rules of this file: a name without a domain, or at a domain of the owner, is a name here;
any other is nobody's, so nobody signs in with the name of another owner's user. Whoever
is not here gets keys that look like anybody's and fit nobody.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from vnsmail.inbound.accept import AcceptPolicy, Aliased, Taken
from vnsmail.sasl.passwords import ScramKeys, nobodys_keys, read_keys
from vnsmail.smtp.address import Mailbox, parse_mailbox
from vnsmail.smtp.errors import SmtpSyntaxError


@dataclass(frozen=True, slots=True)
class Account:
    """A user, as far as signing in and sending goes."""

    user: str
    """The local part in lower case."""
    password: str = field(default="", repr=False)
    """Argon2 hash; empty: it cannot sign in."""
    scram: str = field(default="", repr=False)
    suspended: bool = False
    quota: int | None = None
    """Octets of the mailbox."""
    senders: tuple[str, ...] = ()
    """Addresses that it may send as besides its own."""


class Accounts:
    """The users of one owner.

    Args:
        local: domains, users and aliases of the owner.
        accounts: what is to be known of users besides; those left out have no password.
        secret: the owner's own.
    """

    def __init__(
        self,
        local: AcceptPolicy,
        accounts: Iterable[Account] = (),
        secret: bytes = b"",
    ) -> None:
        self._local = local
        self._accounts = {account.user: account for account in accounts}
        self._secret = secret

    @property
    def anybody(self) -> bool:
        """Whether there is anybody who can sign in."""
        return any(account.password for account in self._accounts.values())

    def named(self, name: str) -> str:
        """Return the one spelling of a name: the local part of one that is here."""
        local_part, at, domain = name.rpartition("@")
        if not at:
            return name.lower()
        try:
            mailbox = parse_mailbox(f"x@{domain}", smtputf8=True)
        except SmtpSyntaxError:
            return name.lower()
        here = domain and self._local.own_domain(mailbox.domain)
        return local_part.lower() if here else name.lower()

    def of_user(self, user: str) -> Account | None:
        """Return the account of a local part, with a password or without."""
        if user not in self._local.users:
            return None
        return self._accounts.get(user, Account(user))

    def signing_in(self, name: str) -> Account | None:
        """Return the account that signs in with a name; None if nobody does."""
        account = self.of_user(self.named(name))
        return account if account is not None and account.password else None

    def keys(self, name: str) -> ScramKeys:
        """Return the keys of a name for SCRAM; nobody's, if it is nobody's name."""
        account = self.signing_in(name)
        keys = read_keys(account.scram) if account else None
        return keys or nobodys_keys(self._secret, self.named(name))

    def address(self, account: Account) -> str:
        """Return the address that stands for a user."""
        return f"{Mailbox(account.user, self._local.domains[0])}"

    def may_send_as(self, account: Account, mailbox: Mailbox) -> bool:
        """Say whether an address is a user's to send as.

        It is if mail for it comes to this user and to nobody else, or if it was allowed.
        """
        if str(mailbox).lower() in {sender.lower() for sender in account.senders}:
            return True
        if not mailbox.domain:
            return False
        own = self._local.decide(mailbox)
        if isinstance(own, Taken):
            return own.user == account.user
        meant = self._local.expand(mailbox)
        return (
            isinstance(meant, Aliased)
            and meant.users == (account.user,)
            and all(map(self._is_here, meant.addresses))
        )

    def _is_here(self, address: str) -> bool:
        return isinstance(
            self._local.decide(parse_mailbox(address, smtputf8=True)), Taken
        )
