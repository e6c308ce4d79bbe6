"""Whose mail is whose, at one owner: what strangers bring is looked at, what it sends is signed.

Rules of this file: it puts together what vnsmail/inbound does, from the facts that the
supervisor tells; a key of a domain that the owner does not have is not used, whoever
sent it.
"""

from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

from vnsmail.authentication.sign import SigningKey
from vnsmail.engines.protocol import OwnerFacts
from vnsmail.inbound.authenticate import Ask, AuthenticationFacts, Authenticator
from vnsmail.inbound.examination import Examining
from vnsmail.inbound.policy import Policy
from vnsmail.inbound.signing import Signer, signing_key
from vnsmail.log import logger
from vnsmail.model import Authentication, Owner
from vnsmail.queue.body import Body
from vnsmail.settings import Settings

log = logger("authenticity")


class Authenticity:
    """Looks and signs for one owner.

    Args:
        facts: who it is.
        settings: of the whole system.
        ask: answers a question of DNS.
        executor: does what computes, or waits for a disk.
    """

    def __init__(
        self, facts: OwnerFacts, settings: Settings, ask: Ask, executor: Executor
    ) -> None:
        self._sealers = frozenset(settings.authentication.trusted_sealers)
        self.signer = Signer(Owner(facts.owner), _keys(facts), executor)
        self._authenticator = Authenticator(self._looked_for(facts), ask, executor)

    def update(self, facts: OwnerFacts) -> None:
        """Use changed facts, from the next message on."""
        self.signer.keys = tuple(_keys(facts))
        self._authenticator.facts = self._looked_for(facts)

    def around(self, policy: Policy) -> Policy:
        """Return a policy that does what another does, and looks and signs besides."""
        return Examining(policy, self._authenticator, self.signer)

    async def outgoing(self, body: Body) -> Body:
        """Return a message of a local command as it is to be kept.

        Forged results go from it as from all others; then it is signed. The one that
        was given is discarded if that fails.

        Raises:
            QueueUnavailable: it cannot be read or written.
        """
        try:
            clean, _ = await self._authenticator.cleaned(body, b"")
        except BaseException:
            body.discard()
            raise
        try:
            return await self.signer.signed(clean)
        except BaseException:
            clean.discard()
            raise

    def _looked_for(self, facts: OwnerFacts) -> AuthenticationFacts:
        return AuthenticationFacts(
            owner=Owner(facts.owner),
            # Not what it says in EHLO, which may change: who reads mail knows its name.
            host=facts.owner,
            names=frozenset({facts.name, *facts.domains}),
            policy=Authentication(facts.authentication),
            trusted_sealers=self._sealers,
            folder=Path(facts.folder),
        )


def _keys(facts: OwnerFacts) -> Iterator[SigningKey]:
    for told in facts.dkim:
        made = signing_key(told.domain, told.selector, told.private)
        if made is None or told.domain not in facts.domains:
            log.error("key.unusable", owner=facts.owner, key=repr(told))
        else:
            yield made
