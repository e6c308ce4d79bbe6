"""MTA-STS policies of one owner's destinations: asked for, fetched, kept (RFC 8461).

    mta-sts.json     in the owner's folder: what is known of each domain, until it is too old

Rules of this file: a policy is fetched from the owner's own address or not at all; what
cannot be asked, fetched or understood changes nothing of what is kept, so that whoever
is in between cannot take a policy away; a fetch that failed is not repeated at once.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeAlias

import msgspec

from vnsmail.authentication.questions import Answer, Question
from vnsmail.delivery.fetch import FetchFailed
from vnsmail.log import logger
from vnsmail.tls.sts import Mode, Policy, PolicyInvalid, parse, policy_id

FILE = "mta-sts.json"

MOST = 2000
"""Domains kept; beyond, those that would be forgotten first go."""

FETCH_AGAIN = 300.0
"""Seconds after a fetch that failed (RFC 8461 section 3.3)."""

REFRESH = 86400.0
"""Seconds after which a policy in use is fetched again though its id is the same: an id
in plain DNS must not keep it from being renewed (section 10.2)."""

Ask: TypeAlias = Callable[[Question], Awaitable[Answer]]
Fetch: TypeAlias = Callable[[str], Awaitable[str]]
"""Given a domain, returns the text of its policy; FetchFailed, or no source."""
Failed: TypeAlias = Callable[[str, str, str], None]
"""Told of a domain, a result type (RFC 8460 section 4.3) and a reason."""

log = logger("delivery")


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A policy as it is kept."""

    id: str
    mode: str
    mx: tuple[str, ...]
    max_age: int
    fetched_at: float

    @property
    def policy(self) -> Policy:
        return Policy(Mode(self.mode), self.mx, self.max_age)

    @property
    def until(self) -> float:
        return self.fetched_at + self.max_age


class PolicyStore:
    """Policies of one owner.

    Args:
        folder: the owner's.
        executor: does what waits for a disk.
        ask: answers questions to DNS.
        fetch: gets a policy.
        failed: told what did not work.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        folder: Path,
        executor: Executor,
        ask: Ask,
        fetch: Fetch,
        failed: Failed,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = folder / FILE
        self._executor = executor
        self._ask = ask
        self._fetch = fetch
        self._failed = failed
        self._clock = clock
        self._known: dict[str, Kept] | None = None
        self._wait_until: dict[str, float] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._writing = asyncio.Lock()

    async def policy(self, domain: str) -> Policy | None:
        """Return the policy of a domain that counts now; None if it has none.

        Raises:
            SourceUnavailable, BrokerGone, BrokerRefused: it could not be fetched from
                the owner's own address.
        """
        known = await self._loaded()
        lock = self._locks.setdefault(domain, asyncio.Lock())
        try:
            async with lock:
                return await self._current(domain, known)
        finally:
            if not lock.locked():
                self._locks.pop(domain, None)

    async def kept(self, domain: str) -> Policy | None:
        """Return the policy that is kept; nobody is asked."""
        kept = (await self._loaded()).get(domain)
        fresh = kept is not None and kept.until > self._clock()
        return kept.policy if kept is not None and fresh else None

    async def _current(self, domain: str, known: dict[str, Kept]) -> Policy | None:
        now = self._clock()
        kept = known.get(domain)
        if kept is not None and kept.until <= now:
            kept = None
        usual = kept.policy if kept is not None else None
        answer = await self._ask(Question(f"_mta-sts.{domain}", "TXT"))
        found = policy_id(answer.values)
        if found is None:
            return usual
        if kept is not None and kept.id == found and now < kept.fetched_at + REFRESH:
            return usual
        if self._wait_until.get(domain, 0.0) > now:
            return usual
        try:
            policy = parse(await self._fetch(domain))
        except PolicyInvalid as error:
            return self._unusable(domain, "sts-policy-invalid", str(error), usual)
        except FetchFailed as error:
            return self._unusable(domain, error.kind, str(error), usual)
        self._wait_until.pop(domain, None)
        known[domain] = Kept(
            found, str(policy.mode), policy.mx, policy.max_age, self._clock()
        )
        log.info("mta_sts.policy", domain=domain, mode=str(policy.mode), id=found)
        await self._save(known)
        return policy

    def _unusable(
        self, domain: str, kind: str, reason: str, usual: Policy | None
    ) -> Policy | None:
        if len(self._wait_until) >= MOST:
            self._wait_until.clear()
        self._wait_until[domain] = self._clock() + FETCH_AGAIN
        log.warning("mta_sts.unfetched", domain=domain, reason=reason, kept=bool(usual))
        self._failed(domain, kind, reason)
        return usual

    async def _loaded(self) -> dict[str, Kept]:
        if self._known is None:
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._executor, _read, self._path)
            if self._known is None:
                self._known = found
        return self._known

    async def _save(self, known: dict[str, Kept]) -> None:
        now = self._clock()
        for domain in [each for each, kept in known.items() if kept.until <= now]:
            del known[domain]
        for domain in sorted(known, key=lambda d: known[d].until)[:-MOST]:
            del known[domain]
        async with self._writing:
            data = msgspec.json.encode(known)
            loop = asyncio.get_running_loop()
            try:
                await loop.run_in_executor(self._executor, _write, self._path, data)
            except (OSError, RuntimeError) as error:  # it is in memory all the same
                log.warning("mta_sts.not_kept", reason=str(error))


def _read(path: Path) -> dict[str, Kept]:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, Kept])
        for kept in found.values():
            Mode(kept.mode)
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        log.warning("mta_sts.begun_anew", file=str(path), reason=str(error))
        return {}
    return found


def _write(path: Path, data: bytes) -> None:
    beside = path.with_name(f"{path.name}.new")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
