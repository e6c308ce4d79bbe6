"""The rules of one owner, made of what its worker is told of users and aliases.

Rules of this file: what is remembered of clients outlives a change of facts; what was
measured of mailboxes does not.
"""

from concurrent.futures import Executor
from pathlib import Path

from vnsmail.engines.protocol import OwnerFacts
from vnsmail.inbound.accept import AcceptPolicy
from vnsmail.inbound.accounts import Account, Accounts
from vnsmail.inbound.tenant import Allowance, Memory, TenantPolicy
from vnsmail.inbound.verifier import Verifier
from vnsmail.mailbox.usage import Usage
from vnsmail.model import ip_address
from vnsmail.settings import Settings

MAIL = "mail"
"""Folder below the owner's with a Maildir for each user."""


class OwnerRules:
    """What one owner lets in, as its facts are now.

    Args:
        facts: of the owner.
        settings: of the whole system.
        executor: measures mailboxes.
        verifier: checks passwords.
    """

    def __init__(
        self,
        facts: OwnerFacts,
        settings: Settings,
        executor: Executor,
        verifier: Verifier,
    ) -> None:
        self.memory = Memory()
        self.usage = Usage(Path(facts.folder) / MAIL, executor)
        self._settings = settings
        self._verifier = verifier
        self.update(facts)

    def update(self, facts: OwnerFacts) -> None:
        """Use changed facts from now on."""
        self._owner = facts.owner
        self.local = AcceptPolicy.of(
            facts.domains,
            facts.users,
            any_user=facts.any_user,
            addresses=map(ip_address, facts.addresses),
            aliases=dict(facts.aliases),
        )
        accounts = (
            Account(u.local_part, u.password, u.scram, u.suspended, u.quota, u.senders)
            for u in facts.accounts
        )
        self.accounts = Accounts(self.local, accounts, facts.secret)
        self.usage.forget()

    @property
    def policy(self) -> TenantPolicy:
        """The policy by these facts, for the sessions."""
        users = self._settings.users
        return TenantPolicy(
            owner=self._owner,
            local=self.local,
            accounts=self.accounts,
            memory=self.memory,
            verifier=self._verifier,
            allowance=Allowance(
                users.messages_per_hour,
                users.recipients_per_hour,
                users.address_messages_per_hour,
            ),
            is_full=self.is_full,
            current=lambda: self.accounts,
        )

    def is_full(self, user: str) -> bool:
        """Say whether a mailbox has its quota, as far as is known; waits for nothing."""
        return self.usage.is_full(user, self._quota(user))

    def take_room(self, user: str, octets: int) -> bool:
        """Take room in a mailbox; False if it has its quota. Blocks."""
        return self.usage.take(user, octets, self._quota(user))

    def _quota(self, user: str) -> int | None:
        account = self.accounts.of_user(user)
        return account.quota if account else None
