"""One owner served by this worker: its queue, its listeners, its delivery.

Rules of this file: opening is whole or not at all; a fault in one owner's delivery is
logged, told in its report, and tried again, and never reaches the worker's own tasks.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from ipaddress import ip_network
from itertools import chain
from pathlib import Path

import msgspec

from vnsmail.broker.client import SocketClient, SourceSocket
from vnsmail.delivery import outcomes as say
from vnsmail.delivery.agent import AgentFacts, DeliveryAgent
from vnsmail.delivery.attempt import rules_of
from vnsmail.delivery.facts import RelayFacts
from vnsmail.delivery.shares import Shares
from vnsmail.engines.authenticity import Authenticity
from vnsmail.engines.counters import Counters
from vnsmail.engines.desk import Desk
from vnsmail.engines.doors import credentials, listen
from vnsmail.engines.explaining import explained
from vnsmail.engines.listing import fitting
from vnsmail.engines.local_mail import given_back, taken_in
from vnsmail.engines.moving import Mover, read_in, token_of
from vnsmail.engines.protection import Protection, believed
from vnsmail.engines.protocol import (
    Adopt,
    Explained,
    LocalMail,
    OwnerFacts,
    OwnerReport,
    QueueEntry,
    Tally,
)
from vnsmail.engines.rules import MAIL, OwnerRules
from vnsmail.errors import (
    AlreadyQueued,
    LimitReached,
    NotServed,
    QueueUnavailable,
    Suspended,
    VnsmailError,
)
from vnsmail.events import record as events
from vnsmail.events.record import Tell, untold
from vnsmail.inbound.accept import Aliased, Taken
from vnsmail.inbound.allowance import HostAllowance
from vnsmail.inbound.inject import Prepared
from vnsmail.inbound.listeners import Reception
from vnsmail.inbound.shared import ReceiverFacts
from vnsmail.inbound.tenant import FULL
from vnsmail.inbound.verifier import Verifier
from vnsmail.log import logger
from vnsmail.mailbox import maildir
from vnsmail.model import (
    Envelope,
    Family,
    IPAddress,
    Outcome,
    Owner,
    TlsWish,
    ip_address,
)
from vnsmail.queue.body import Body, BodyWriter
from vnsmail.queue.envelope import (
    ENTROPY_BYTES,
    QueueCounts,
    new_id,
)
from vnsmail.queue.queue import Queue
from vnsmail.resolve.backend import OpenSocket
from vnsmail.resolve.resolver import Resolver
from vnsmail.sasl.client import Login
from vnsmail.settings import Settings
from vnsmail.smtp.address import Mailbox, parse_mailbox

CLOSE_GRACE = 5.0
"""Seconds that sessions and transactions get to finish when an owner is let go."""

RESTART_AFTER = 5.0
"""Seconds before delivery starts again after a fault of ours."""

RESTING_SHOWN = 20
"""Destinations that are down, told in a report."""

log = logger("owner")


class OwnerService:
    """Serves one owner from ``open`` to ``close``.

    Args:
        facts: who it is.
        settings: of the whole system.
        resolvers: addresses of name servers.
        sockets: where every socket comes from.
        executor: does what waits for a disk.
        verifier: checks passwords; None: one of its own.
        shares: what each owner of a worker may have in memory of mail on its way.
        tell: takes what is to stand in the event log.
        authorities: certificates of those who say who a server is, as PEM.
    """

    def __init__(
        self,
        facts: OwnerFacts,
        settings: Settings,
        resolvers: tuple[str, ...],
        sockets: SocketClient,
        executor: Executor,
        verifier: Verifier | None = None,
        shares: Shares | None = None,
        tell: Tell = untold,
        authorities: bytes = b"",
    ) -> None:
        self._facts = facts
        self._rules = OwnerRules(facts, settings, executor, verifier or Verifier())
        self._tls = credentials(facts.certificates)
        self._settings = settings
        self._sockets = sockets
        self._executor = executor
        self._shares = shares or Shares()
        self._tell = tell
        self._folder = Path(facts.folder)
        self._servers = resolvers
        self._resolver = Resolver(
            *self._asked(facts), settings.dns.timeout, self._believes
        )
        self._protection = Protection(
            facts, settings, authorities, self._resolver, executor
        )
        self._authenticity = Authenticity(
            facts, settings, self._resolver.answer, executor
        )
        self._listening: dict[str, tuple[str, ...]] = {}
        self._queue: Queue | None = None
        self._counters: Counters | None = None
        self._allowance: HostAllowance | None = None
        self._reception: Reception | None = None
        self._agent: DeliveryAgent | None = None
        self._delivering: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._fault = ""
        self._moving = 0
        """Messages on their way to other queues, when it was last looked."""

    def _asked(self, facts: OwnerFacts) -> tuple[OpenSocket, tuple[str, ...]]:
        """Return who opens sockets to name servers, and which these are."""
        if not facts.resolvers:
            return self._sockets.resolver, self._servers
        return partial(self._sockets.resolver, owner=facts.owner), facts.resolvers

    def _believes(self, server: str) -> bool:
        return believed(self._settings.dns, self._facts, server)

    # From the beginning to the end -----------------------------------------------------

    async def open(self) -> None:
        """Open the queue, listen, and deliver; if one of it fails, nothing is open.

        Raises:
            QueueUnavailable: the queue cannot be used.
            PortInUse: another program listens on an address of this owner.
            SourceUnavailable, BrokerGone, BrokerRefused: there is no listening socket.
            NotServed: the kernel does not let us listen.
        """
        try:
            self._queue = await Queue.open(self._folder, self._executor)
            await self._count(self._queue)
            if not self._facts.suspended:
                await self._go_online(self._queue)
        except BaseException:
            await asyncio.shield(self._close_all())
            raise
        # Not before everything is open: an owner that is not served sends nothing.
        if self._agent is not None:
            self._delivering = asyncio.ensure_future(self._deliver(self._agent))
        log.info(
            "owner.opened",
            owner=self._facts.owner,
            listening=[*chain.from_iterable(self._listening.values())],
        )

    async def _count(self, queue: Queue) -> None:
        """Take up what was counted before, and what the queue holds."""
        load = partial(Counters.load, self._folder, self._executor, time.time())
        loop = asyncio.get_running_loop()
        self._counters = await loop.run_in_executor(self._executor, load)
        queued = (await queue.counts()).bytes
        self._moving = len(await queue.moves())
        owner, limits = self._facts.owner, self._facts.limits
        self._allowance = HostAllowance(owner, limits, self._counters.hour, queued)

    async def _go_online(self, queue: Queue) -> None:
        self._reception = Reception(
            self._receiver_facts(),
            keep=self._keep,
            reverse_name=self._resolver.verified_reverse_name,
            executor=self._executor,
            may_begin=self._allowed().may_begin,
            admitted=self._counted().came_in,
            tell=self._tell,
            keep_soon=self._keep_soon,
        )
        if self._facts.listen:
            await self._listen(self._reception, self._facts, self._facts.addresses)
        self._agent = self._new_agent(queue)

    async def close(self) -> None:
        """Finish what is being said, keep the rest queued, and close all files."""
        await self._close_all()
        log.info("owner.closed", owner=self._facts.owner)

    async def _close_all(self) -> None:
        self._closing.set()
        ending = []
        if self._reception is not None:
            ending.append(self._reception.close(CLOSE_GRACE))
        if self._agent is not None:
            ending.append(self._agent.drain(CLOSE_GRACE))
        await asyncio.gather(*ending)
        if self._delivering is not None:
            await self._delivering
        await self._protection.close()
        if self._counters is not None:
            await self._counters.close()
        if self._queue is not None:
            try:
                await self._queue.close()
            except QueueUnavailable as error:
                # What was acknowledged is on disk all the same.
                reason = str(error)
                log.warning("queue.not_closed", owner=self._facts.owner, reason=reason)

    def accepts(self, facts: OwnerFacts) -> bool:
        """Say whether ``update`` can take these facts, or a new service is needed.

        Its folder outlives no change, and a suspended one has nothing to be changed.
        """
        mine = self._facts
        same = all(
            getattr(facts, each) == getattr(mine, each)
            for each in ("owner", "folder", "listen", "suspended")
        )
        # Without a certificate it listens on fewer ports.
        return same and bool(facts.certificates) == bool(mine.certificates)

    async def update(self, facts: OwnerFacts) -> None:
        """Use changed facts from now on.

        Addresses that it has no more are left: what is being said there is finished,
        and nothing is begun from there any more; see ``left``.

        Raises:
            PortInUse, SourceUnavailable, BrokerGone, BrokerRefused, NotServed: it cannot
                listen on a new address; all is as before.
        """
        old, new = self._facts.addresses, facts.addresses
        gone = frozenset(old) - frozenset(new)
        added = tuple(address for address in new if address not in old)
        if self._reception is not None and facts.listen:
            try:
                await self._listen(self._reception, facts, added)
            except BaseException:
                self._stop_listening(added)
                raise
        if facts.certificates != self._facts.certificates:
            self._tls = credentials(facts.certificates)
        if facts.resolvers != self._facts.resolvers:
            self._resolver.ask(*self._asked(facts))
        self._facts = facts
        self._rules.update(facts)
        self._authenticity.update(facts)
        tls = self._protection.update(facts)
        if self._allowance is not None:
            self._allowance.limits = facts.limits
        if self._reception is not None:
            self._reception.update(self._receiver_facts())
        self._stop_listening(gone)
        if self._agent is not None:
            self._agent.tls = tls
            self._agent.update(_agent_facts(facts))
            self._protection.facts = _agent_facts(facts)

    async def left(self, addresses: tuple[str, ...], seconds: float) -> bool:
        """Wait until nothing is said from or to addresses that it had.

        Returns whether all was finished; after so many seconds the rest is cut off.
        """
        gone = frozenset(addresses) - frozenset(self._facts.addresses)
        try:
            async with asyncio.timeout(seconds):
                if self._reception is not None:
                    await self._reception.left(gone)
                if self._agent is not None:
                    await self._agent.left(gone)
        except TimeoutError:
            if self._agent is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0):
                        await self._agent.left(gone)
            return False
        return True

    # What is asked of it ---------------------------------------------------------------

    async def inject(self, fd: int, mail: LocalMail) -> str:
        """Queue a message that a local command hands over; return its queue id.

        On return it is on disk.

        Args:
            fd: a file with the message; it stays the caller's.
            mail: who sends it, and to whom.

        Raises:
            BadInput: the message or an address is not acceptable.
            Suspended: the owner sends nothing now.
            LimitReached: the owner may not send more now.
            QueueUnavailable: it cannot be kept.
        """
        if self._facts.suspended:
            raise Suspended(self._facts.owner)
        prepared = await self._prepared(
            partial(taken_in, os.dup(fd), mail, self._rules.accounts)
        )
        body = await self._authenticity.outgoing(prepared.body)
        wish = TlsWish.REQUIRED if mail.require_tls else prepared.envelope.tls
        envelope = replace(prepared.envelope, priority=mail.priority, tls=wish)
        try:
            await self._keep(envelope, body, mail.token)
        except AlreadyQueued as earlier:
            return earlier.queue_id
        log.info(
            "message.injected",
            owner=self._facts.owner,
            id=prepared.envelope.id,
            sender=prepared.envelope.sender,
            recipients=len(prepared.envelope.recipients),
            size=prepared.body.size,
            uid=mail.uid,
        )
        self._tell_of(envelope, body.size, "local", user=mail.user, uid=mail.uid)
        return prepared.envelope.id

    async def give_back(self, fd: int, mail: LocalMail, reason: str) -> None:
        """Tell the sender of a message that it was refused; on return that is on disk.

        Raises:
            QueueUnavailable: not now.
        """
        prepared = await self._prepared(partial(given_back, os.dup(fd), mail, reason))
        with contextlib.suppress(AlreadyQueued):
            token = mail.token and f"refused {mail.token}"
            body = await self._authenticity.signer.signed(prepared.body)
            await self._keep(prepared.envelope, body, token)
            self._tell_of(prepared.envelope, body.size, "notice", uid=mail.uid)
        log.info("message.given_back", owner=self._facts.owner, uid=mail.uid)

    async def _prepared(self, job: Callable[..., Prepared]) -> Prepared:
        now = time.time()
        queue_id = new_id(now, os.urandom(ENTROPY_BYTES))
        whole = partial(job, self._receiver_facts(), queue_id, now)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, whole)

    async def report(self) -> OwnerReport:
        """Say how the owner is doing. Never fails: trouble is what is reported."""
        agent = self._agent
        unread = False
        problem = self._fault or (agent.problem if agent is not None else "")
        try:
            counts = await self._opened().counts()
            if self._moving:
                self._moving = len(await self._opened().moves())
        except VnsmailError as error:
            problem = problem or str(error)
            counts = QueueCounts(0, 0, 0, 0, None)
            unread = True
        else:
            if self._allowance is not None:
                self._allowance.recount(counts.bytes)
        return OwnerReport(
            owner=self._facts.owner,
            listening=tuple(chain.from_iterable(self._listening.values())),
            sessions=0 if self._reception is None else self._reception.sessions,
            messages=counts.messages,
            deferred=counts.deferred,
            oldest=counts.oldest,
            problem=problem,
            held=agent.held if agent is not None else "",
            held_since=agent.held_since if agent is not None else None,
            resting=tuple(agent.resting()[:RESTING_SHOWN]) if agent is not None else (),
            failed_sign_ins=self._rules.memory.guesses.total,
            octets=counts.bytes,
            suspended=self._facts.suspended,
            unread=unread,
            moving=self._moving,
        )

    async def explain(self, number: int, address: str) -> Explained:
        """Say where a message for an address would go; nothing is sent.

        Raises:
            BadInput: it is no address.
        """
        facts, servers = self._facts, self._asked(self._facts)[1]
        local, resolver = self._rules.local, self._resolver
        agent = _agent_facts(facts)
        rules = rules_of(self._settings.delivery, agent)
        domain = address.rpartition("@")[2].lower()
        found = await explained(number, address, agent, local, resolver, servers, rules)
        if found.mailboxes:
            return found
        relay = rules.relay(domain) or ""
        tls = await self._protection.told_of(domain, relay, found.targets)
        return msgspec.structs.replace(found, tls=tls)

    def tally(self) -> Tally:
        """Return what was counted.

        Raises:
            NotServed: it is not open.
        """
        return self._counted().tally

    def desk(self) -> Desk:
        """Return what does to the queue what an operator wants.

        Raises:
            NotServed: it is not open.
        """
        return Desk(self._facts.owner, self._opened(), self._agent, self._tell)

    def mover(self) -> Mover:
        """Return what moves messages to other hosts' queues.

        Raises:
            NotServed: it is not open.
        """
        self._moving = max(self._moving, 1)
        return Mover(
            self._facts.owner,
            self._opened(),
            self._agent,
            self.desk(),
            self._tell,
            self._executor,
        )

    async def adopt(self, asked: Adopt, fd: int) -> str:
        """Queue a message of another host's, signed as this one's; return its id.

        Raises:
            Suspended, LimitReached: this host may not send now.
            QueueUnavailable: it cannot be kept.
        """
        if self._facts.suspended:
            raise Suspended(self._facts.owner)
        envelope, now = asked.envelope, time.time()
        loop = asyncio.get_running_loop()
        reading = partial(read_in, os.dup(fd), self._folder)
        body = await loop.run_in_executor(self._executor, reading)
        body = await self._authenticity.signer.signed(body)
        envelope = replace(
            envelope,
            # It is as old as it was.
            id=new_id(envelope.received_at, os.urandom(ENTROPY_BYTES)),
            owner=Owner(self._facts.owner),
        )
        try:
            await self._keep(envelope, body, token_of(asked), now)
        except AlreadyQueued as earlier:
            return earlier.queue_id
        about = asked.envelope.id
        self._tell_of(envelope, body.size, "move", about=about)
        return envelope.id

    async def list_queue(self, limit: int) -> tuple[QueueEntry, ...]:
        """Return queued messages, oldest first: as many as one message of ours holds.

        Raises:
            QueueUnavailable: the queue cannot be read.
        """
        queue = self._opened()
        messages = await queue.list(limit)
        return tuple(fitting(messages, self._agent, await queue.holds()))

    # Within ------------------------------------------------------------------------------

    def _opened(self) -> Queue:
        if self._queue is None:
            raise NotServed(self._facts.owner, "its queue is not open")
        return self._queue

    def _counted(self) -> Counters:
        if self._counters is None:
            raise NotServed(self._facts.owner, "it is not open")
        return self._counters

    def _allowed(self) -> HostAllowance:
        if self._allowance is None:
            raise NotServed(self._facts.owner, "it is not open")
        return self._allowance

    def _receiver_facts(self) -> ReceiverFacts:
        smtp = self._settings.smtp
        return ReceiverFacts(
            owner=Owner(self._facts.owner),
            name=self._facts.name,
            policy=self._rules.local,
            rules=self._authenticity.around(self._rules.policy),
            folder=self._folder,
            max_message_size=smtp.max_message_size,
            max_recipients=smtp.max_recipients,
            command_timeout=smtp.command_timeout,
            hide_clients=smtp.hides_clients(self._facts.owner),
            max_sessions=min(
                smtp.max_sessions, self._facts.limits.connections or smtp.max_sessions
            ),
            max_sessions_per_peer=smtp.max_sessions_per_address,
            tls=self._tls,
            handshake_timeout=smtp.handshake_timeout,
            session_timeout=smtp.session_timeout,
            strict_8bit=smtp.is_strict(self._facts.owner),
            proxy_from=tuple(map(ip_network, smtp.proxy_from)),
        )

    async def _listen(
        self, reception: Reception, facts: OwnerFacts, addresses: Iterable[str]
    ) -> None:
        smtp = self._settings.smtp
        for address in addresses:
            self._listening[address] = await listen(
                reception, facts, address, smtp, self._sockets
            )

    def _stop_listening(self, addresses: Iterable[str]) -> None:
        if self._reception is not None:
            self._reception.leave(frozenset(addresses))
        for address in addresses:
            self._listening.pop(address, None)

    async def _keep(
        self,
        envelope: Envelope,
        body: Body,
        token: str = "",
        at: float | None = None,
    ) -> None:
        """Make a message durable, then deliver it.

        Mail for users here takes the same way: 250 is said after one commit, whoever
        the recipients are.
        """
        size = body.size
        queue, allowance = self._opened(), self._allowed()
        try:
            if not allowance.fits(size):
                allowance.recount((await queue.counts()).bytes)
        except BaseException:
            body.discard()
            raise
        sending = self._take_room(envelope, body)
        kept = False
        try:
            await queue.accept(envelope, body, token, at)
            kept = True
        finally:
            self._taken(envelope, body, size, sending=sending, kept=kept)

    def _keep_soon(
        self, envelope: Envelope, body: Body
    ) -> "asyncio.Future[None] | None":
        """Do the same without a task; None where something else is to be waited for."""
        size = body.size
        queue = self._opened()
        if body.file is not None or not self._allowed().fits(size):
            return None
        sending = self._take_room(envelope, body)

        def done(going: "asyncio.Future[None]") -> None:
            kept = not going.cancelled() and going.exception() is None
            self._taken(envelope, body, size, sending=sending, kept=kept)

        try:
            going = queue.accept_soon(envelope, body)
        except QueueUnavailable:
            self._taken(envelope, body, size, sending=sending, kept=False)
            raise
        going.add_done_callback(done)
        return going

    def _take_room(self, envelope: Envelope, body: Body) -> bool:
        """Take room for a message; return whether it counts as one that is sent.

        Raises:
            LimitReached: there is none; the body is discarded.
        """
        sending = self._sends(envelope)
        try:
            self._allowed().take(body.size, time.time(), for_sending=sending)
        except LimitReached:
            body.discard()
            self._counted().refused()
            raise
        return sending

    def _taken(
        self, envelope: Envelope, body: Body, size: int, *, sending: bool, kept: bool
    ) -> None:
        """Go on with a message that is on disk, or is not."""
        self._allowed().done(size, time.time(), for_sending=sending, kept=kept)
        if not kept:
            return
        self._counted().accepted(size)
        if self._agent is not None:
            self._agent.hand_over(envelope, body)

    def _tell_of(
        self,
        envelope: Envelope,
        size: int,
        via: str,
        *,
        about: str = "",
        user: str = "",
        uid: int | None = None,
    ) -> None:
        """Tell the event log of a message that did not come by SMTP."""
        self._tell(
            events.Accepted(
                time=events.at(envelope.received_at),
                host=envelope.owner,
                id=envelope.id,
                via=via,
                sender=envelope.sender,
                recipients=events.named(envelope.recipients),
                recipient_count=len(envelope.recipients),
                size=size,
                user=user,
                uid=uid,
                about=about,
            )
        )

    def _sends(self, envelope: Envelope) -> bool:
        """Say whether any of it goes to somebody who is not here."""
        here = {"", *(domain.lower() for domain in self._facts.domains)}
        return any(
            recipient.rpartition("@")[2].lower() not in here
            for recipient in envelope.recipients
        )

    # Delivery ----------------------------------------------------------------------------

    def _new_agent(self, queue: Queue) -> DeliveryAgent:
        agent = DeliveryAgent(
            facts=_agent_facts(self._facts),
            queue=queue,
            sockets=_Counted(self._sockets, self._counted()),
            resolver=self._resolver,
            local_delivery=self._deliver_here,
            settings=self._settings,
            count=self._counted().outcome,
            sign=self._authenticity.signer.signed,
            shares=self._shares,
            tell=self._tell,
            security=self._protection.security,
            tls=self._protection.tls,
            told=self._protection.told,
        )
        self._protection.facts = _agent_facts(self._facts)
        self._protection.connectable = agent.connectable
        return agent

    async def _deliver(self, agent: DeliveryAgent) -> None:
        """Deliver until ``close``; after a fault of ours start again, with a pause."""
        while True:
            try:
                await agent.run()
            except Exception as error:  # the worker and its other owners go on
                log.exception("delivery.fault", owner=self._facts.owner)
                self._fault = f"delivery had a fault, and starts again soon: {error!r}"
            if self._closing.is_set():
                return
            try:
                async with asyncio.timeout(RESTART_AFTER):
                    await self._closing.wait()
            except TimeoutError:
                pass
            else:
                return
            self._agent = agent = self._new_agent(self._opened())
            self._fault = ""

    async def _deliver_here(
        self, recipient: str, body: Body, envelope: Envelope, again: bool
    ) -> Outcome:
        """Put a message into a user's mailbox, once.

        Raises:
            StateUnusable, QueueUnavailable: not now.
        """
        mailbox = (
            parse_mailbox(recipient, smtputf8=True)
            if "@" in recipient
            else Mailbox(recipient, "")
        )
        match self._rules.local.decide(mailbox):
            case Taken(user):
                return await self._put(user, recipient, body, envelope, again=again)
            case refusal:
                meant = self._rules.local.expand(mailbox)
                if isinstance(meant, Aliased):
                    return await self._forward(meant, recipient, body, envelope)
                return say.failed(refusal.code, refusal.enhanced, refusal.text)

    async def _put(
        self, user: str, recipient: str, body: Body, envelope: Envelope, *, again: bool
    ) -> Outcome:
        folder = self._folder / MAIL / user
        key = f"{envelope.id} {recipient}"

        def put() -> Outcome:
            name = maildir.name_of(envelope.received_at, key)
            if again and maildir.holds(folder, name):
                return say.delivered(f"it is in the mailbox of {user} already")
            if not self._rules.take_room(user, body.size):
                return say.deferred(FULL.code, FULL.enhanced, FULL.text)
            try:
                maildir.deliver(
                    folder,
                    body,
                    return_path=envelope.sender,
                    delivered_to=recipient,
                    name=name,
                )
            except VnsmailError:
                self._rules.usage.give_back(user, body.size)
                raise
            return say.delivered(f"put into the mailbox of {user}")

        return await asyncio.get_running_loop().run_in_executor(self._executor, put)

    async def _forward(
        self, meant: Aliased, recipient: str, body: Body, envelope: Envelope
    ) -> Outcome:
        """Queue a copy for those whom an alias stands for.

        Mail that comes in is taken apart when it is accepted. A notice of failure, whose
        recipient wrote as an alias, gets here.
        """
        now = time.time()

        def copy() -> Body:
            with BodyWriter(self._folder) as writer:
                for chunk in body.chunks():
                    writer.write(chunk)
                return writer.finish()

        loop = asyncio.get_running_loop()
        again = replace(
            envelope,
            id=new_id(now, os.urandom(ENTROPY_BYTES)),
            recipients=meant.addresses,
            received_at=now,
            requests=(),
        )
        whole = await loop.run_in_executor(self._executor, copy)
        size = whole.size
        try:
            await self._keep(again, whole, f"forward {envelope.id} {recipient}")
        except AlreadyQueued as earlier:
            return say.delivered(f"went on as {earlier.queue_id} already")
        self._tell_of(again, size, "forward", about=envelope.id)
        return say.delivered(f"goes on as {again.id} to {', '.join(meant.addresses)}")


class _Counted:
    """Where sockets come from, counting them."""

    def __init__(self, sockets: SocketClient, counters: Counters) -> None:
        self._sockets = sockets
        self._counters = counters

    async def connectable(self, owner: str, family: Family) -> SourceSocket:
        found = await self._sockets.connectable(owner, family)
        self._counters.went_out()
        return found

    async def engine(self, owner: str) -> SourceSocket:
        return await self._sockets.engine(owner)

    async def store(self, owner: str, path: str) -> SourceSocket:
        return await self._sockets.store(owner, path)


def _agent_facts(facts: OwnerFacts) -> AgentFacts:
    return AgentFacts(
        owner=Owner(facts.owner),
        name=facts.name,
        addresses=frozenset(map(ip_address, facts.addresses)),
        domains=frozenset(domain.lower() for domain in facts.domains),
        sources=_sources(facts),
        connections=facts.limits.connections,
        engine=facts.engine,
        relay=_relay(facts),
    )


def _relay(facts: OwnerFacts) -> RelayFacts | None:
    told = facts.relay
    if told is None:
        return None
    login = Login(told.user, told.password) if told.password else None
    return RelayFacts(told.server, login, told.problem)


def _sources(facts: OwnerFacts) -> frozenset[IPAddress]:
    """Return the addresses mail leaves from: the first of each family."""
    found: dict[int, IPAddress] = {}
    for address in map(ip_address, facts.addresses):
        found.setdefault(address.version, address)
    return frozenset(found.values())
