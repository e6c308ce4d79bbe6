"""Who a stranger's message is really from: the look at it before it is kept.

    forged Authentication-Results of our name    removed, always
    SPF, iprev, DKIM, ARC                        asked side by side
    DMARC                                        of what these found
    policy of the host                           mark: say it; reject: follow the domain's

What is asked and decided is in vnsmail/authentication; this asks the name server and
hashes the body.

Rules of this file: all questions of a message have one deadline, beyond which everything
is "temperror"; nothing temporary refuses a message; a body in a file is read in the
executor, piece by piece.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TypeAlias, TypeVar

from publicsuffixlist import PublicSuffixList

from vnsmail.authentication.arc import Arc, ArcResult, Chain, chain_of, verify_chain
from vnsmail.authentication.author import MAX_AUTHORS, author_domains
from vnsmail.authentication.dkim import (
    BodyHashes,
    Dkim,
    DkimResult,
    signatures,
    verify,
    wanted_forms,
)
from vnsmail.authentication.dmarc import (
    Disposition,
    Dmarc,
    DmarcResult,
    evaluate,
    strictest,
)
from vnsmail.authentication.header_block import (
    HeaderBlock,
    header_block,
    readable_fields,
)
from vnsmail.authentication.iprev import iprev
from vnsmail.authentication.questions import Answer, Asking, Question
from vnsmail.authentication.results import (
    Findings,
    authentication_results,
    cut,
    forged,
    vouches,
)
from vnsmail.authentication.spf import Spf, check_host
from vnsmail.inbound.bodies import front_of, hashes_of, in_executor
from vnsmail.inbound.policy import Client, Examined
from vnsmail.log import logger
from vnsmail.model import Authentication, Envelope, IPAddress, Owner
from vnsmail.queue.body import Body, BodyWriter
from vnsmail.smtp.replies import Reply

DEADLINE = 20.0
"""Seconds for all questions of one message (RFC 7208 section 4.6.4 wants 20 at least);
its sender waits ten minutes (RFC 5321 section 4.5.3.2.6)."""

TOO_LARGE = Reply(552, ("the header block is too large",), "5.3.4")
TOO_LONG = Answer(trouble="DNS took too long")

log = logger("authenticate")

Ask: TypeAlias = Callable[[Question], Awaitable[Answer]]
T = TypeVar("T")


@dataclass(frozen=True)
class AuthenticationFacts:
    """Whose mail is looked at, and what follows from what is found."""

    owner: Owner
    host: str
    """The authserv-id (RFC 8601 section 2.2), and its other names below."""
    names: frozenset[str]
    policy: Authentication
    trusted_sealers: frozenset[str]
    """Domains whose ARC seal counts more than a failure of DMARC."""
    folder: Path
    """For a body that has to be written anew."""

    @cached_property
    def own_names(self) -> frozenset[str]:
        """All names in which nobody else may speak."""
        return self.names | {self.host}


class Authenticator:
    """Looks at the messages of one owner.

    Args:
        facts: whose; put others in their place when they change.
        ask: answers a question of DNS.
        executor: reads and writes bodies that are files.
        clock: seconds since the epoch.
        chance: 0 to 1, for policies that are for some percent of the messages.
    """

    def __init__(
        self,
        facts: AuthenticationFacts,
        ask: Ask,
        executor: Executor,
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.facts = facts
        self._ask = ask
        self._executor = executor
        self._clock = clock
        self._chance = chance

    def is_nothing_to_do(self, body: Body, front: bytes) -> bool:
        """Say whether a stranger's message can be kept as it is, as far as is seen at once."""
        if self.facts.policy is not Authentication.NONE:
            return False
        if b"\r\n\r\n" not in front and len(front) != body.size:
            return False
        return not forged(front, self.facts.own_names)

    async def cleaned(self, body: Body, front: bytes) -> tuple[Body, bytes]:
        """Return a message, and its front, without fields that claim to be ours.

        The one that was given is discarded if another takes its place.

        Raises:
            QueueUnavailable: it cannot be read or written.
        """
        front = await front_of(body, front, self._executor)
        spans = forged(front, self.facts.own_names)
        if not spans:
            return body, front
        log.info("forged.removed", owner=self.facts.owner, fields=len(spans))
        kept = cut(front, spans)
        if body.file is None:
            return Body(cut(body.head, spans)), kept
        write = partial(_rewritten, body, spans, self.facts.folder)
        return await in_executor(self._executor, write), kept

    async def examine(
        self, client: Client, envelope: Envelope, body: Body, front: bytes
    ) -> Examined | Reply:
        """Look at a stranger's message: what to keep, with the field to put on it.

        Raises:
            QueueUnavailable: it cannot be read or written.
        """
        body, front = await self.cleaned(body, front)
        if self.facts.policy is Authentication.NONE or client.address is None:
            return Examined(body)
        if _is_endless(body, front):
            body.discard()
            return TOO_LARGE
        findings = await self._findings(client, client.address, envelope, body, front)
        self._tell(envelope, findings)
        wanted = findings.disposition
        if self.facts.policy is Authentication.REJECT and wanted is Disposition.REJECT:
            body.discard()
            return _refused(findings.dmarc.domain)
        return Examined(body, authentication_results(self.facts.host, findings))

    # Within ------------------------------------------------------------------------

    async def _findings(
        self,
        client: Client,
        address: IPAddress,
        envelope: Envelope,
        body: Body,
        front: bytes,
    ) -> Findings:
        now = self._clock()
        block = header_block(front, whole=len(front) == body.size)
        # What is odd must not be a way around a policy.
        authors = author_domains(block or readable_fields(front))
        found = () if block is None else signatures(block, authors, now)
        chain = None if block is None else chain_of(block, now)
        forms = wanted_forms(found)
        if isinstance(chain, Chain):
            forms |= wanted_forms([chain.newest])
        bodies = await hashes_of(body, block, forms, self._executor)
        deadline = asyncio.get_running_loop().time() + DEADLINE
        drive = partial(self._drive, deadline)
        async with asyncio.TaskGroup() as tasks:
            named = tasks.create_task(drive(iprev(address)))
            spf = tasks.create_task(
                drive(check_host(address, envelope.sender, client.helo))
            )
            arc = tasks.create_task(drive(_chain(block, chain, bodies)))
            verifying = [
                tasks.create_task(drive(verify(block, each, bodies)))
                for each in found
                if block is not None
            ]
        dkim = tuple(each.result() for each in verifying)
        if block is None:
            dkim = (Dkim(DkimResult.PERMERROR, "the header block is not well formed"),)
        dmarc = await self._dmarc(deadline, authors, spf.result(), dkim)
        return Findings(
            iprev=named.result(),
            spf=spf.result(),
            sender=envelope.sender,
            dkim=dkim,
            dmarc=dmarc,
            arc=arc.result(),
            overridden=self._overriding(dmarc, arc.result()),
        )

    async def _dmarc(
        self,
        deadline: float,
        authors: tuple[str, ...],
        spf: Spf,
        dkim: tuple[Dkim, ...],
    ) -> Dmarc:
        if len(authors) > MAX_AUTHORS:
            # Nobody writes in the name of so many but to hide one among them.
            return Dmarc(
                DmarcResult.FAIL,
                authors[0],
                Disposition.REJECT,
                Disposition.REJECT,
                "From has too many domains",
            )
        if not _suffixes.cache_info().currsize:
            await in_executor(
                self._executor, _suffixes
            )  # reading it takes a tenth of a second
        chance = self._chance()
        judging = (
            evaluate(each, spf, dkim, organizational, chance) for each in authors
        )
        driving = [self._drive(deadline, each) for each in judging]
        return strictest(await asyncio.gather(*driving))

    def _overriding(self, dmarc: Dmarc, arc: Arc) -> str:
        """Return the sealer whose word counts more than a failure; empty if none does.

        Only the newest seals, without a gap, of those who are trusted count: whoever
        is not trusted may have changed anything that came before.
        """
        if dmarc.result is not DmarcResult.FAIL:
            return ""
        for sealed in arc.sealed:
            if sealed.domain not in self.facts.trusted_sealers:
                return ""
            if vouches(sealed.results, dmarc.domain):
                return sealed.domain
        return ""

    async def _drive(self, deadline: float, asking: Asking[T]) -> T:
        """Return what an evaluation comes to; beyond the deadline nobody is asked."""
        try:
            question = next(asking)
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        answer = await self._ask(question)
                except TimeoutError:
                    answer = TOO_LONG
                question = asking.send(answer)
        except StopIteration as ended:
            value: T = ended.value
            return value

    def _tell(self, envelope: Envelope, findings: Findings) -> None:
        log.info(
            "message.authenticated",
            owner=self.facts.owner,
            id=envelope.id,
            spf=findings.spf.result.value,
            dkim=[f"{each.domain}={each.result}" for each in findings.dkim],
            dmarc=findings.dmarc.result.value,
            author=findings.dmarc.domain,
            disposition=findings.disposition.word,
            arc=findings.arc.result.value,
            overridden=findings.overridden,
        )


def _chain(
    block: HeaderBlock | None, chain: Chain | str | None, bodies: BodyHashes
) -> Asking[Arc]:
    if block is None or chain is None:
        return Arc(ArcResult.NONE)
    if isinstance(chain, str):
        return Arc(ArcResult.FAIL, chain)
    return (yield from verify_chain(block, chain, bodies))


def _is_endless(body: Body, front: bytes) -> bool:
    """Say whether a header block goes beyond what is looked at, From and all."""
    ended = b"\r\n\r\n" in front or front.startswith(b"\r\n")
    return not ended and len(front) < body.size


def _refused(domain: str) -> Reply:
    # RFC 7489 section 10.3: say whose policy it is, so that its users can be helped.
    text = f"the policy of {domain} (DMARC) refuses this message"
    return Reply(550, (text,), "5.7.1")


def _rewritten(body: Body, spans: tuple[tuple[int, int], ...], folder: Path) -> Body:
    """Return a copy without the octets of some spans; the original is discarded."""
    end = spans[-1][1]
    with BodyWriter(folder) as writer:
        held = b""
        for piece in body.chunks():
            if len(held) < end:
                held += piece
                if len(held) < end:
                    continue
                piece = cut(held, spans)  # noqa: PLW2901  what takes its place
                held = b" " * end
            writer.write(piece)
        made = writer.finish()
    body.discard()
    return made


@lru_cache(maxsize=1)
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()


@lru_cache(maxsize=4096)
def organizational(domain: str) -> str:
    """Return the organizational domain of a domain (RFC 7489 section 3.2).

    One that is a public suffix itself stands for itself.
    """
    return str(_suffixes().privatesuffix(domain) or domain)
