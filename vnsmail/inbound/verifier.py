"""Checking passwords beside the event loop, so that many of them hold up nothing else.

A hash takes 20 ms and 19 MiB. One thread computes them for all owners of a worker; while
it does, others run (argon2 lets go of the interpreter). What waits is bounded, for each
owner and in all: whoever comes on top is told to come back, and mail goes on.

Rules of this file: a password is remembered as a keyed hash only, with the hash it was
checked against, so that another password makes it worth nothing; failures never are.
"""

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

from vnsmail.sasl.passwords import verify

THREADS = 1

WAITING_OF_OWNER = 16
"""Checks of one owner at a time; the last of them waits a third of a second."""

WAITING = 128
"""Checks in all: two and a half seconds."""

REMEMBERED = 300.0
"""Seconds that a password need not be checked again. Clients sign in for each message."""

MOST_REMEMBERED = 10_000


class Busy(Exception):
    """Too much is waiting already."""


class Verifier:
    """Checks passwords for all owners of a worker."""

    def __init__(
        self,
        executor: Executor | None = None,
        *,
        check: Callable[[str, str], bool] = verify,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._executor = executor or ThreadPoolExecutor(THREADS, "password")
        self._check = check
        self._clock = clock
        self._waiting: Counter[str] = Counter()
        self._key = secrets.token_bytes(32)
        self._remembered: dict[bytes, float] = {}

    async def verify(self, owner: str, password_hash: str, password: str) -> bool:
        """Say whether a password is the one of a hash; an empty hash is nobody's.

        Raises:
            Busy: too many are being checked.
        """
        seen = self._fingerprint(password_hash, password)
        if password_hash and self._remembered.get(seen, 0.0) > self._clock():
            return True
        if self._waiting[owner] >= WAITING_OF_OWNER or self._waiting.total() >= WAITING:
            raise Busy
        self._waiting[owner] += 1
        try:
            loop = asyncio.get_running_loop()
            right = await loop.run_in_executor(
                self._executor, self._check, password_hash, password
            )
        finally:
            self._waiting[owner] -= 1
            if not self._waiting[owner]:
                del self._waiting[owner]
        if right:
            self._remember(seen)
        return right

    def close(self) -> None:
        """Check no more; what is being checked is finished."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _fingerprint(self, password_hash: str, password: str) -> bytes:
        text = f"{password_hash}\0{password}".encode()
        return hmac.digest(self._key, text, hashlib.sha256)

    def _remember(self, seen: bytes) -> None:
        now = self._clock()
        if len(self._remembered) >= MOST_REMEMBERED:
            self._remembered = {
                each: until for each, until in self._remembered.items() if until > now
            }
        if len(self._remembered) < MOST_REMEMBERED:
            self._remembered[seen] = now + REMEMBERED
