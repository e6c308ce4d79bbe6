"""Signing in: an exchange of SASL, who it is of, and what a failure costs.

Rules of this file: whether a name is somebody's changes neither what is said nor how
long it takes; a suspended user is told so only with the right password; what failed is
counted before it is answered.
"""

from collections.abc import Callable

from vnsmail.inbound.accounts import Accounts
from vnsmail.inbound.guesses import Guesses
from vnsmail.inbound.policy import Challenge, Client, Later, SignedIn, SignInStep
from vnsmail.inbound.verifier import Busy, Verifier
from vnsmail.log import logger
from vnsmail.sasl import mechanisms
from vnsmail.sasl.mechanisms import Ask, Check, Exchange, Failed, Malformed, Proven
from vnsmail.smtp.replies import Reply

WRONG = Reply(535, ("wrong name or password",), "5.7.8")
SUSPENDED = Reply(535, ("this account is suspended",), "5.7.13")
MALFORMED = Reply(501, ("this is no response of this mechanism",), "5.5.2")
BUSY = Reply(454, ("too many are signing in, try again later",), "4.7.0")

log = logger("inbound")


class PasswordSignIn:
    """One exchange with a client that says it is a user of this owner.

    Args:
        owner: whose users these are.
        accounts: asked anew at each step, for they may change meanwhile.
        guesses: what is remembered of failures.
        verifier: checks passwords.
        client: who wants to sign in.
        exchange: the mechanism.
        clock: seconds, from wherever.
    """

    def __init__(
        self,
        owner: str,
        accounts: Callable[[], Accounts],
        guesses: Guesses,
        verifier: Verifier,
        client: Client,
        exchange: Exchange,
        clock: Callable[[], float],
    ) -> None:
        self._owner = owner
        self._accounts = accounts
        self._guesses = guesses
        self._verifier = verifier
        self._client = client
        self._exchange = exchange
        self._clock = clock

    async def respond(self, response: bytes | None) -> SignInStep:
        """Take the client's response; see inbound/policy.py."""
        match self._exchange.respond(response):
            case Ask(data):
                return Challenge(data)
            case Malformed():
                return MALFORMED
            case Check(name, password):
                return await self._checked(name, password)
            case Proven(name):
                return self._refused(name) or self._accepted(name)
            case Failed(name):
                return self._refused(name) or self._failed(name)

    async def _checked(self, name: str, password: str) -> SignInStep:
        if refusal := self._refused(name):
            return refusal
        account = self._accounts().signing_in(name)
        password_hash = account.password if account else ""
        try:
            right = await self._verifier.verify(self._owner, password_hash, password)
        except Busy:
            log.warning("sign_in.busy", owner=self._owner, peer=self._client.literal)
            return BUSY
        # The password may have been changed, or the user suspended, while it was checked.
        now = self._accounts().signing_in(name)
        if right and now and now.password == password_hash:
            return self._accepted(name)
        return self._failed(name)

    def _refused(self, name: str) -> Reply | None:
        user = self._accounts().named(name)
        refusal = self._guesses.refusal(self._client.address, user, self._clock())
        if refusal is not None:
            log.warning(
                "sign_in.refused",
                owner=self._owner,
                user=user,
                peer=self._client.literal,
                reason=refusal.text,
            )
        return refusal

    def _accepted(self, name: str) -> SignInStep:
        accounts = self._accounts()
        account = accounts.signing_in(name)
        if account is None:  # gone since the exchange began
            return self._failed(name)
        if account.suspended:
            log.warning("sign_in.suspended", owner=self._owner, user=account.user)
            return SUSPENDED
        self._guesses.succeeded(self._client.address, account.user)
        log.info(
            "sign_in.succeeded",
            owner=self._owner,
            user=account.user,
            peer=self._client.literal,
        )
        return SignedIn(accounts.address(account))

    def _failed(self, name: str) -> Later:
        user = self._accounts().named(name)
        wait = self._guesses.failed(self._client.address, user, self._clock())
        log.warning(
            "sign_in.failed",
            owner=self._owner,
            user=user,
            peer=self._client.literal,
            wait=wait,
        )
        return Later(WRONG, wait)


def begin(mechanism: str, accounts: Accounts) -> Exchange | None:
    """Return a new exchange of a mechanism; None if there is none of that name."""
    return mechanisms.begin(mechanism, accounts.keys)
