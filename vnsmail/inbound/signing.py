"""DKIM signatures on what an owner's users and the owner itself send.

A message is signed once, on its way into the queue: what lies there is what is sent.

Rules of this file: hashing and signing are the executor's, as an RSA signature takes
longer than all the rest of a message; who has no key costs nothing.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from functools import partial

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_der_private_key

from vnsmail.authentication.header_block import header_block
from vnsmail.authentication.sign import SigningKey, keys_for, sign
from vnsmail.inbound.bodies import in_executor, read_front, read_hashes
from vnsmail.log import logger
from vnsmail.model import Owner
from vnsmail.queue.body import Body

log = logger("signing")


def signing_key(domain: str, selector: str, private: bytes) -> SigningKey | None:
    """Return a key that came as PKCS #8, DER; None if it is none that we sign with."""
    try:
        key = load_der_private_key(private, None)
    except ValueError:
        return None
    if isinstance(key, RSAPrivateKey | Ed25519PrivateKey):
        return SigningKey(domain, selector, key)
    return None


class Signer:
    """Signs the messages of one owner.

    Args:
        owner: whose.
        keys: of its own domains and no others.
        executor: does the work.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        owner: Owner,
        keys: Iterable[SigningKey],
        executor: Executor,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._owner = owner
        self._executor = executor
        self._clock = clock
        self.keys = tuple(keys)
        """Put others in their place when they change."""

    async def fields(self, body: Body) -> bytes:
        """Return the DKIM-Signature fields for a message; nothing if it is not to be signed.

        Raises:
            QueueUnavailable: it cannot be read.
        """
        if not self.keys:
            return b""
        work = partial(_signed, body, self.keys, self._clock())
        fields = await in_executor(self._executor, work)
        if fields is None:
            log.warning("message.unsigned", owner=self._owner, reason="header block")
        return fields or b""

    async def signed(self, body: Body) -> Body:
        """Return a message with its signatures in front.

        Raises:
            QueueUnavailable: it cannot be read.
        """
        fields = await self.fields(body)
        return body.prefixed(fields) if fields else body


def _signed(body: Body, keys: tuple[SigningKey, ...], now: float) -> bytes | None:
    front = read_front(body)
    block = header_block(front, whole=len(front) == body.size)
    if block is None:
        return None
    wanted = keys_for(block, keys)
    if not wanted:
        return b""
    hashes = read_hashes(body, block.body_at, frozenset({"relaxed"}))
    return sign(block, hashes["relaxed"].digest, wanted, now)
