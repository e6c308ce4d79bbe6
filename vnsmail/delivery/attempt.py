"""One attempt: one message, one domain, some recipients.

The hops of the domain are tried in order until one takes part in a transaction. What
it then says of a recipient is what counts, but where the connection breaks before the
whole body was sent: nothing can have been delivered, so the next hop is asked.

Rules of this file: without a source nothing is tried further, at no hop and in no
other family. Every attempt ends with one outcome for each recipient.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from vnsmail.delivery import outcomes as say
from vnsmail.delivery.connection import LOST, Connection, ConnectionFailed
from vnsmail.delivery.facts import AgentFacts
from vnsmail.delivery.limits import Allowed, Rates
from vnsmail.delivery.limits import allowed as allowed_by
from vnsmail.delivery.outcomes import Outcomes
from vnsmail.delivery.pool import Pool
from vnsmail.delivery.route import Hop, Questions, Route, RouteRules, Shuffle, route
from vnsmail.delivery.security import (
    Security,
    name_of,
    unknown_to_engine,
    unproven,
)
from vnsmail.errors import (
    BrokerGone,
    BrokerRefused,
    QueueUnavailable,
    SourceUnavailable,
)
from vnsmail.model import Envelope, Outcome, TlsWish
from vnsmail.queue.body import Body
from vnsmail.settings import DeliverySettings, store_path
from vnsmail.smtp.client_session import Transaction
from vnsmail.smtp.client_work import NO_REQUIRETLS
from vnsmail.smtp.errors import SmtpProtocolError
from vnsmail.smtp.replies import Reply
from vnsmail.tls.policy import Level

ROUTE_LIFETIME = 5.0
"""Seconds the hops of a domain are good for. A burst of mail to one domain then costs
one look at them; DNS data that lives shorter is rarer than bursts."""

MANY_ROUTES = 1000

GOING_AWAY = 421
"""RFC 5321 section 4.2.3: service not available, closing transmission channel."""

LoadBody: TypeAlias = Callable[[], Awaitable[Body]]
"""Returns the body when it is needed, and not before: thousands may wait."""


class Attempts:
    """Makes attempts for one owner."""

    def __init__(
        self,
        facts: AgentFacts,
        pool: Pool,
        resolver: Questions,
        settings: DeliverySettings,
        shuffle: Shuffle = random.shuffle,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        security: Security | None = None,
    ) -> None:
        self._security = security
        self._facts = facts
        self._pool = pool
        self._resolver = resolver
        self._settings = settings
        self._rules = rules_of(settings, facts)
        self._rates = Rates()
        self._shuffle = shuffle
        self._pause = pause
        self._routes: dict[tuple[str, TlsWish], tuple[float, Route]] = {}

    def update(self, facts: AgentFacts) -> None:
        """Use changed facts from the next attempt on."""
        self._facts = facts
        self._rules = rules_of(self._settings, facts)
        self._routes.clear()

    async def attempt(
        self,
        domain: str,
        envelope: Envelope,
        recipients: tuple[str, ...],
        load: LoadBody,
    ) -> Outcomes:
        """Try to deliver a message to recipients in one domain.

        Raises:
            NotFound: by ``load``: the message is not in the queue any more.
        """
        # A notice is to arrive (RFC 8689 section 4.2.1 is of other mail); it has no body.
        required = envelope.tls is TlsWish.REQUIRED and not envelope.sender
        wish = TlsWish.USUAL if required else envelope.tls
        hops = await self._route(domain, wish)
        if isinstance(hops, Outcome):
            return say.for_all(recipients, hops)
        allowed = self._allowed(domain, hops)
        await self._keep_pace(domain, hops[0], allowed)
        done: Outcomes = {}
        failures: list[Outcome] = []
        left = recipients
        for hop in hops:
            try:
                said = await self._ask(hop, allowed, envelope, left, load)
            except ConnectionFailed as error:
                failures.append(error.outcome)
                continue
            except (SourceUnavailable, BrokerGone, BrokerRefused) as error:
                return done | say.for_all(left, say.no_source(error))
            except QueueUnavailable as error:
                return done | say.for_all(left, say.trouble_here(error))
            except SmtpProtocolError as error:
                return done | say.for_all(left, say.failed(554, "5.6.0", str(error)))
            again = said.unanswered()
            done |= {to: each for to, each in said.outcomes.items() if to not in again}
            left = tuple(to for to in left if to in again)
            if not left:
                return done
            failures.append(said.outcomes[left[0]])
        return done | say.for_all(left, say.hardest(failures))

    def _allowed(self, domain: str, hops: Sequence[Hop]) -> Allowed:
        names = {hop.name for hop in hops}
        return allowed_by(self._settings, self._facts.owner, domain, names)

    async def _keep_pace(self, domain: str, hop: Hop, allowed: Allowed) -> None:
        """Wait until the destination's rate lets one more message go."""
        now = asyncio.get_running_loop().time()
        key = hop.site or domain
        if wait := self._rates.wait(key, allowed.messages_per_minute, now):
            await self._pause(wait)

    def _beyond_engine(self, domain: str, relay: str) -> Outcome | None:
        """Say why the owner's engine is not given mail that is to be protected."""
        if self._security is None:
            return None
        level = self._security.rules.level(domain, name_of(relay))
        if level in {Level.NONE, Level.MAY}:
            return None
        name = self._facts.engine
        return say.no_tls(unknown_to_engine(domain, level, name), name)

    async def _route(self, domain: str, wish: TlsWish) -> Route:
        now = asyncio.get_running_loop().time()
        known = self._routes.get((domain, wish))
        if known is not None and known[0] > now:
            return known[1]
        relay = self._rules.relay(domain) or ""
        own = self._facts.relay
        login = own.login if own is not None and own.server == relay else None
        if own is not None and own.server == relay and own.problem:
            return say.not_signed_in(own.problem, relay)
        hops = await route(
            domain, self._facts, self._resolver, self._shuffle, self._rules
        )
        if not isinstance(hops, Outcome) and login is not None:
            hops = tuple(replace(hop, login=login) for hop in hops)
        secured = self._security is not None and not self._facts.engine
        here = bool(store_path(relay)) and not self._facts.engine
        if not (secured or here) and wish is TlsWish.REQUIRED:
            return say.failed(550, "5.7.5", unproven(domain))
        if self._facts.engine and (refused := self._beyond_engine(domain, relay)):
            return refused
        if not isinstance(hops, Outcome) and secured:
            assert self._security is not None  # noqa: S101  see the line above
            try:
                hops = await self._security.protect(domain, hops, relay, wish)
            except (SourceUnavailable, BrokerGone, BrokerRefused) as error:
                return say.no_source(error)
        if not isinstance(hops, Outcome):
            if len(self._routes) >= MANY_ROUTES:
                self._routes.clear()
            self._routes[domain, wish] = (now + ROUTE_LIFETIME, hops)
        return hops

    async def _ask(
        self,
        hop: Hop,
        allowed: Allowed,
        envelope: Envelope,
        recipients: tuple[str, ...],
        load: LoadBody,
    ) -> "_Said":
        """Carry out a transaction with a hop.

        A connection that was idle may have ended at the remote a moment ago. That says
        nothing of the hop, so it is asked once more, over a new connection.
        """
        connection = await self._pool.take(hop, allowed)
        used = connection.transactions > 0
        said = await self._transact(connection, envelope, recipients, load)
        if used and len(said.unanswered()) == len(recipients):
            connection = await self._pool.take(hop, allowed, fresh=True)
            said = await self._transact(connection, envelope, recipients, load)
        return said

    async def _transact(
        self,
        connection: Connection,
        envelope: Envelope,
        recipients: tuple[str, ...],
        load: LoadBody,
    ) -> "_Said":
        try:
            body = await load()
            result = await connection.send(
                Transaction(
                    sender=envelope.sender,
                    recipients=recipients,
                    body_size=body.size,
                    eight_bit=envelope.eight_bit,
                    smtputf8=envelope.smtputf8,
                    ret=envelope.ret,
                    envid=envelope.envid,
                    requests=envelope.requests,
                    # A store on this machine is the end of the way.
                    require_tls=envelope.tls is TlsWish.REQUIRED
                    and not connection.hop.path,
                ),
                body,
            )
            if any(_said_421(reply) for reply in result.replies.values()):
                self._pool.pushed_back(connection)
        finally:
            self._pool.release(connection)
        remote, source = str(connection.hop), connection.source
        outcomes = {
            to: say.from_reply(result.replies[to], remote, source, result.contact)
            for to in recipients
        }
        return _Said(outcomes, body_sent=result.body_sent)


def _said_421(reply: Reply) -> bool:
    """Say whether the server gave that reply; one we make up says who lost whom."""
    return reply.code == GOING_AWAY and reply.enhanced not in {LOST, "4.5.0"}


def rules_of(settings: DeliverySettings, facts: AgentFacts) -> RouteRules:
    """Return the routes of one owner: what is said of it goes before the general."""
    host = settings.host.get(facts.owner)
    own = dict(host.route) if host is not None else {}
    if facts.relay is not None:
        own["*"] = facts.relay.server
    return RouteRules({**settings.route, **own}, settings.loopback)


@dataclass(frozen=True, slots=True)
class _Said:
    """What one hop made of a transaction."""

    outcomes: Outcomes
    body_sent: bool

    def unanswered(self) -> frozenset[str]:
        """Return recipients for whom another hop, or connection, may be asked.

        421 means that the remote goes away, or that it is gone; and another may have
        the REQUIRETLS that this one lacks. Once the body was sent
        it may have been accepted all the same: asking again would make a second copy
        (RFC 5321 section 4.5.3.2.6), so that is left to a later attempt.
        """
        if self.body_sent:
            return frozenset()
        return frozenset(
            to
            for to, each in self.outcomes.items()
            if each.reply_code == GOING_AWAY or each.enhanced == NO_REQUIRETLS
        )
