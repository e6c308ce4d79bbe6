"""How one owner's mail is protected on its way out: what the worker has for it.

    tls-report.json  in the owner's folder: how it went, by day (tls/report.py); written some
                     seconds after a change and at the end

Rules of this file: what it puts together is decided and done elsewhere (delivery/security.py,
tls/client.py); nothing here is shared between owners but what the authorities are.
"""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import TypeAlias

import msgspec

from vnsmail.broker.client import SourceSocket
from vnsmail.delivery.explain import TLS
from vnsmail.delivery.facts import AgentFacts
from vnsmail.delivery.fetch import fetch_policy
from vnsmail.delivery.mta_sts import PolicyStore
from vnsmail.delivery.route import Hop
from vnsmail.delivery.security import SMTP_PORT, Security, TlsRules, name_of
from vnsmail.engines.protocol import OwnerFacts, Target
from vnsmail.errors import BrokerGone, ResolveError
from vnsmail.log import logger
from vnsmail.model import Family
from vnsmail.resolve.resolver import Resolver
from vnsmail.settings import DnsSettings, Settings
from vnsmail.tls.client import ClientTls
from vnsmail.tls.layer import KeyPair, TlsFailed
from vnsmail.tls.policy import Step
from vnsmail.tls.report import KINDS, REPORT_FILE, Day, Failure, Report

SAVE_AFTER = 5.0
"""Seconds from a change until it is written."""

Connectable: TypeAlias = Callable[[str, Family], Awaitable[SourceSocket]]

log = logger("owner")


class Protection:
    """What protects one owner's mail.

    Args:
        facts: who it is.
        settings: of the whole system.
        authorities: certificates of those who are trusted, as PEM.
        resolver: who is asked for TLSA records and policies.
        executor: does what waits for a disk.
    """

    def __init__(
        self,
        facts: OwnerFacts,
        settings: Settings,
        authorities: bytes,
        resolver: Resolver,
        executor: Executor,
    ) -> None:
        self.facts: AgentFacts | None = None
        """Who fetches policies; with ``connectable``, given by who delivers."""
        self.connectable: Connectable | None = None
        self._authorities = authorities
        self._resolver = resolver
        self._executor = executor
        self._file = Path(facts.folder) / REPORT_FILE
        self._report: Report | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rules = TlsRules(settings.delivery, facts.owner)
        self._dane = settings.dns.validating and settings.delivery.tls.dane
        self._policies = PolicyStore(
            Path(facts.folder), executor, resolver.answer, self._fetch, self._unfetched
        )
        self.security = Security(
            self._rules,
            resolver if settings.dns.validating else None,
            self._policies,
            self._left_out,
        )
        self.tls = self._client(facts)

    def update(self, facts: OwnerFacts) -> ClientTls:
        """Use a changed certificate from the next connection on."""
        self.tls = self._client(facts)
        return self.tls

    async def told_of(
        self, domain: str, relay: str, targets: Sequence[Target] = ()
    ) -> str:
        """Say how the servers of a destination are spoken to.

        Args:
            domain: of the recipients.
            relay: of the settings or the host; empty: there is none.
            targets: the servers, whose TLSA records are asked for.
        """
        own = self.facts.relay if self.facts is not None else None
        login = own is not None and own.server == relay and own.login is not None
        words = TLS[self._rules.level(domain, name_of(relay), login=login)]
        if not relay and (kept := await self._policies.kept(domain)):
            words += f"; MTA-STS: {kept.mode}, {', '.join(kept.mx)}"
        if targets and self._dane:
            words += f"; DANE: {await self._tlsa_of(domain, relay, targets)}"
        return words

    async def _tlsa_of(self, domain: str, relay: str, targets: Sequence[Target]) -> str:
        """Say which TLSA records the servers have that DNSSEC vouches for."""
        try:
            if not relay and not await self._resolver.mx_is_secure(domain):
                return "DNSSEC does not vouch for its mail exchangers"
        except ResolveError as error:
            return str(error)
        number = relay.rpartition(":")[2]
        port = int(number) if number.isdecimal() else SMTP_PORT
        told: dict[str, str] = {}
        for target in targets:
            if not target.turn or target.exchanger.startswith("["):
                continue
            family = Family(ip_address(target.address).version)
            try:
                found = await self._resolver.tlsa(target.exchanger, port, family)
            except ResolveError as error:
                told[target.exchanger] = f"is not asked ({error})"
                continue
            records = ", ".join(
                f"{each.usage} {each.selector} {each.matching}"
                + ("" if each.usable else " (unusable)")
                for each in found.records
            )
            told[target.exchanger] = f"has {records}" if records else "has no TLSA"
        return ", ".join(f"{name} {words}" for name, words in told.items()) or "nobody"

    async def close(self) -> None:
        """Write what was counted."""
        if self._timer is not None:
            self._timer.cancel()
            self._save()

    def _client(self, facts: OwnerFacts) -> ClientTls:
        own = next((each for each in facts.certificates if not each.name), None)
        shown = own if self._rules.client_certificate else None
        return ClientTls(self._authorities, KeyPair(shown.pem) if shown else None)

    async def _fetch(self, domain: str) -> str:
        if self.facts is None or self.connectable is None:
            raise BrokerGone
        # Its certificate is looked at in any case; ours is nobody's business there.
        tls = ClientTls(self._authorities)
        return await fetch_policy(
            domain, self.facts, self.connectable, self._resolver, tls
        )

    # The report --------------------------------------------------------------------

    def told(self, hop: Hop, step: Step, error: TlsFailed | None) -> None:
        """Count a connection."""
        policy = KINDS.get(step.by, "no-policy-found")
        report, day = self._counted()
        if error is None:
            report.success(day, hop.domain, policy)
            return
        failure = Failure(
            error.kind, hop.name, str(hop.address), reason=str(error)[:200]
        )
        report.failure(day, hop.domain, policy, failure)

    def _left_out(self, hop: Hop, policy: str, kind: str, text: str) -> None:
        report, day = self._counted()
        failure = Failure(kind, hop.name, str(hop.address), reason=text[:200])
        report.failure(day, hop.domain, policy, failure)

    def _unfetched(self, domain: str, kind: str, reason: str) -> None:
        report, day = self._counted()
        report.failure(day, domain, "sts", Failure(kind, "", "", reason=reason[:200]))

    def _counted(self) -> tuple[Report, str]:
        if self._report is None:
            self._report = Report(read_report(self._file))
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(SAVE_AFTER, self._save)
        return self._report, f"{datetime.now(UTC):%Y-%m-%d}"

    def _save(self) -> None:
        self._timer = None
        if self._report is not None:
            data = msgspec.json.encode(self._report.days)
            # The executor ends with the worker.
            with contextlib.suppress(RuntimeError):
                self._executor.submit(_write, self._file, data)


def read_report(file: Path) -> dict[str, Day]:
    """Return what was counted; nothing if it cannot be read."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Day])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("tls_report.begun_anew", file=str(file), reason=str(error))
        return {}


def _write(file: Path, data: bytes) -> None:
    beside = file.with_name(f"{file.name}.new")
    try:
        beside.write_bytes(data)
        os.replace(beside, file)
    except OSError as error:
        log.warning("tls_report.not_kept", file=str(file), reason=str(error))


def believed(dns: DnsSettings, facts: OwnerFacts, server: str) -> bool:
    """Say whether a name server's word that data are authentic counts.

    It does if nobody can stand between: on this machine, at the owner's own address, or
    where the settings say so (RFC 7672 section 1.3.1).
    """
    if not dns.validating:
        return False
    try:
        address = ip_address(server)
    except ValueError:
        return False
    own = {ip_address(each) for each in facts.addresses}
    return address.is_loopback or address in own or str(address) in dns.trusted
