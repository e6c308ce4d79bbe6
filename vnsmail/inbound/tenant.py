"""What one virtual host lets in, and from whom: users, aliases, limits.

    on the MX          mail for users and aliases here, and for nobody else
    on submission      from who signed in, as an address of theirs, to anybody

Rules of this file: there is no way from a stranger to another domain; what is refused for
the time being says so (4yz), so that nothing is lost; whoever looks for users by trying
names waits longer and longer; all that is remembered is bounded and fades.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from vnsmail.inbound import authorship, sign_in
from vnsmail.inbound.accept import (
    NO_SUCH_USER,
    RELAYING_DENIED,
    AcceptPolicy,
    Aliased,
    Taken,
)
from vnsmail.inbound.accounts import Account, Accounts
from vnsmail.inbound.guesses import Guesses
from vnsmail.inbound.policy import (
    NO_SIGN_IN,
    Client,
    Examined,
    Later,
    Recipient,
    Relayed,
    Role,
    SignIn,
)
from vnsmail.inbound.scores import Rates, Scores, network
from vnsmail.inbound.verifier import Verifier
from vnsmail.log import logger
from vnsmail.message.headers import parse_header
from vnsmail.model import Envelope
from vnsmail.queue.body import Body
from vnsmail.sasl.mechanisms import MECHANISMS
from vnsmail.smtp.address import Mailbox
from vnsmail.smtp.replies import Reply

MISSES_OF_SESSION = 10
"""Unknown recipients after which a session is ended; Postfix ends one at 20 errors."""

MISSES_OF_NETWORK = 50
"""Unknown recipients lately after which each ends the session."""

MISSES_FADE = 1800.0
"""Seconds until half of a count of them is left."""

SLOWEST = 10.0
"""Seconds that the refusal of an unknown recipient waits at most."""

NOT_YOURS = Reply(550, ("this address is not yours to send as",), "5.7.1")
NOT_SIGNED_IN = Reply(530, ("sign in first",), "5.7.0")
NO_MORE_YOURS = Reply(550, ("this account may not send any more",), "5.7.1")
TOO_MUCH = Reply(450, ("you have sent too much lately, try again later",), "4.7.1")
FULL = Reply(452, ("the mailbox is full",), "4.2.2")
LOOKING_AROUND = Reply(421, ("too many unknown recipients",), "4.7.1")

IsFull: TypeAlias = Callable[[str], bool]
"""Says whether a user's mailbox has no room, as far as is known."""

log = logger("inbound")


@dataclass(frozen=True, slots=True)
class Allowance:
    """What may be sent by who signed in."""

    user_messages: int = 500
    """Messages an hour of each user."""
    user_recipients: int = 5000
    """Recipients an hour of each user."""
    address_messages: int = 1000
    """Messages an hour of all users at one address (IPv6: one /64)."""


@dataclass(slots=True)
class Memory:
    """What an owner's policy remembers, however often its facts change."""

    guesses: Guesses = field(default_factory=Guesses)
    misses: Scores[str] = field(default_factory=lambda: Scores(MISSES_FADE))
    user_messages: Rates[str] = field(default_factory=Rates)
    user_recipients: Rates[str] = field(default_factory=Rates)
    address_messages: Rates[str] = field(default_factory=Rates)


@dataclass(frozen=True)
class TenantPolicy:
    """The policy of one virtual host (inbound/policy.py).

    Args:
        owner: the virtual host.
        local: its domains, users and aliases.
        accounts: who can sign in.
        memory: what is remembered of clients; it outlives this policy.
        verifier: checks passwords.
        allowance: what users may send.
        is_full: which mailboxes have no room.
        clock: seconds, from wherever.
        current: returns the accounts as they are now, for an exchange that outlives
            this policy; None: they do not change.
    """

    owner: str
    local: AcceptPolicy
    accounts: Accounts
    memory: Memory
    verifier: Verifier
    allowance: Allowance = Allowance()
    is_full: IsFull = lambda _: False
    clock: Callable[[], float] = time.monotonic
    current: Callable[[], Accounts] | None = None

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """See Policy. Nothing is announced where nobody has a password."""
        return MECHANISMS if self.accounts.anybody else ()

    def sign_in(self, client: Client, mechanism: str) -> SignIn | Reply:
        """Begin an exchange; see Policy."""
        current = self.current or (lambda: self.accounts)
        exchange = sign_in.begin(mechanism, current())
        if exchange is None:
            return NO_SIGN_IN
        return sign_in.PasswordSignIn(
            self.owner,
            current,
            self.memory.guesses,
            self.verifier,
            client,
            exchange,
            self.clock,
        )

    # Senders ------------------------------------------------------------------------

    def may_send(
        self, client: Client, sender: Mailbox | None, size: int | None
    ) -> Reply | Later | None:
        """Return why a sender may not begin; see Policy."""
        if client.role is not Role.SUBMISSION:
            return None
        account = self._account(client)
        if isinstance(account, Reply):
            return account
        if sender is not None and not self.accounts.may_send_as(account, sender):
            self._tell("sender.refused", client, sender=str(sender))
            return NOT_YOURS
        memory, allowed, now = self.memory, self.allowance, self.clock()
        place = network(client.address)
        if not (
            memory.user_messages.take(account.user, now, allowed.user_messages)
            and memory.address_messages.take(place, now, allowed.address_messages)
        ):
            self._tell("rate.exceeded", client)
            return TOO_MUCH
        return None

    def _account(self, client: Client) -> Account | Reply:
        """Return the account of who signed in, or why it is none any more."""
        if not client.user:
            return NOT_SIGNED_IN
        account = self.accounts.of_user(self.accounts.named(client.user))
        if account is None or account.suspended or not account.password:
            return NO_MORE_YOURS
        return account

    # Recipients ---------------------------------------------------------------------

    def may_receive(
        self, client: Client, sender: Mailbox | None, recipient: Mailbox
    ) -> Recipient | Reply | Later:
        """Return where mail for a recipient goes; see Policy."""
        decision = self.local.expand(recipient)
        if isinstance(decision, Taken | Aliased) and self._has_no_room(decision):
            self._tell("mailbox.full", client, recipient=str(recipient))
            return FULL
        if client.role is Role.SUBMISSION:
            return self._submitted(client, recipient, decision)
        if isinstance(decision, Reply):
            return self._missed(client, recipient, decision)
        return decision

    def _submitted(
        self, client: Client, recipient: Mailbox, decision: Taken | Aliased | Reply
    ) -> Recipient | Reply:
        account = self._account(client)
        if isinstance(account, Reply):
            return account
        if decision is NO_SUCH_USER:
            return NO_SUCH_USER
        if not self.memory.user_recipients.take(
            account.user, self.clock(), self.allowance.user_recipients
        ):
            self._tell("rate.exceeded", client)
            return TOO_MUCH
        return Relayed(str(recipient)) if isinstance(decision, Reply) else decision

    def _has_no_room(self, decision: Taken | Aliased) -> bool:
        if isinstance(decision, Taken):
            return self.is_full(decision.user)
        # One of several that is full is tried again for itself.
        here = decision.users
        return len(decision.addresses) == len(here) and all(map(self.is_full, here))

    def _missed(self, client: Client, recipient: Mailbox, reply: Reply) -> Later:
        """Refuse a recipient who is not here: later and later, and at last for good."""
        place = network(client.address)
        client.misses += 1
        score = self.memory.misses.add(place, self.clock())
        event = "relay.refused" if reply is RELAYING_DENIED else "recipient.unknown"
        self._tell(event, client, recipient=str(recipient))
        ended = client.misses >= MISSES_OF_SESSION or score >= MISSES_OF_NETWORK
        # One wrong address, or two, is a mistake and no search.
        wait = min(SLOWEST, max(0.0, client.misses - 2, score / 10 - 1))
        return Later(LOOKING_AROUND if ended else reply, wait)

    # Messages -----------------------------------------------------------------------

    async def examine(
        self, client: Client, envelope: Envelope, body: Body, front: bytes
    ) -> Examined | Reply:
        """Look at a message that is whole; see Policy."""
        return self.examine_at_once(client, envelope, body, front)

    def examine_at_once(
        self, client: Client, envelope: Envelope, body: Body, front: bytes
    ) -> Examined | Reply:
        """Do so; there is nothing to wait for."""
        if client.role is not Role.SUBMISSION:
            return Examined(body)
        account = self._account(client)
        if isinstance(account, Reply):
            return account
        header = parse_header(front)  # a longer one was refused before
        belongs = partial(self.accounts.may_send_as, account)
        refusal = authorship.refusal(header, envelope.sender, belongs)
        if refusal is not None:
            self._tell("author.refused", client, id=envelope.id, reason=refusal.text)
            return refusal
        return Examined(body)

    def _tell(self, event: str, client: Client, **facts: str) -> None:
        log.warning(
            event,
            owner=self.owner,
            peer=client.literal,
            **({"user": client.user} if client.user else {}),
            **facts,
        )
