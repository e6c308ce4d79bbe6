"""Passwords, and what is kept of them.

Of a password two things are kept: an Argon2id hash, which PLAIN and LOGIN are checked
against, and the keys of SCRAM-SHA-256, which prove to both sides that the other knows
it. Neither gives the password back.

Rules of this file: it computes, and takes its time for it (20 ms and 19 MiB a hash): call
it in a thread; comparing takes the same time whatever is wrong.
"""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from functools import cache

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError
from scramp import ScramMechanism

from vnsmail.errors import BadInput
from vnsmail.model import Credentials
from vnsmail.sasl import prepare

SHORTEST = 8
"""Characters of a password (NIST SP 800-63B section 5.1.1.2)."""

ITERATIONS = 50_000
"""Of SCRAM; only the client computes them. RFC 7677 asks for 4,096 at least, Cyrus SASL's
client for 65,536 at most."""

SALT_BYTES = 16

# Letters and digits that no font makes alike: 5 bits each.
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_GROUPS, _IN_A_GROUP = 4, 5

_SCRAM = "SCRAM-SHA-256"

# The second choice of OWASP's Password Storage Cheat Sheet: 19 MiB, 2 passes, 1 lane.
_hasher = PasswordHasher(
    time_cost=2, memory_cost=19 * 1024, parallelism=1, type=Type.ID
)


@dataclass(frozen=True, slots=True)
class ScramKeys:
    """What a server keeps for SCRAM (RFC 5802 section 3)."""

    salt: bytes
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)
    iterations: int = ITERATIONS


def generate() -> str:
    """Return a new password of 100 random bits, easy to type."""
    return "-".join(
        "".join(secrets.choice(_ALPHABET) for _ in range(_IN_A_GROUP))
        for _ in range(_GROUPS)
    )


def derive(password: str) -> Credentials:
    """Return what is kept of a password.

    Raises:
        BadInput: it cannot be one. What it is, is not said.
    """
    if len(password) < SHORTEST:
        raise BadInput("password", "…", f"use {SHORTEST} characters or more")
    try:
        prepared = prepare.password(password)
    except prepare.Unprepared as error:
        remedy = f"it cannot be used ({error}); choose another"
        raise BadInput("password", "…", remedy) from None
    salt, stored, server, iterations = ScramMechanism(_SCRAM).make_auth_info(
        prepared, iteration_count=ITERATIONS, salt=secrets.token_bytes(SALT_BYTES)
    )
    keys = ScramKeys(salt, stored, server, iterations)
    return Credentials(_hasher.hash(prepared), write_keys(keys))


def verify(password_hash: str, password: str) -> bool:
    """Say whether a password is the one of a hash; an empty hash is nobody's.

    It takes the same time for a hash that nobody has.
    """
    try:
        prepared = prepare.password(password)
    except prepare.Unprepared:
        # Whoever has this for a password has none; the time is spent all the same.
        password_hash, prepared = "", "-"
    nobodys = _nobodys()  # made the first time, whoever it is that comes first
    try:
        _hasher.verify(password_hash or nobodys, prepared)
    except (VerificationError, InvalidHashError):
        return False
    return bool(password_hash)


@cache
def _nobodys() -> str:
    return _hasher.hash(secrets.token_hex())


def write_keys(keys: ScramKeys) -> str:
    """Return keys as RFC 5803 section 2 writes them, with its ``$`` and ``:``."""
    salt, stored, server = (
        base64.b64encode(part).decode()
        for part in (keys.salt, keys.stored_key, keys.server_key)
    )
    return f"{_SCRAM}${keys.iterations}:{salt}${stored}:{server}"


def read_keys(text: str) -> ScramKeys | None:
    """Return keys that ``write_keys`` wrote; None for anything else."""
    try:
        mechanism, parameters, proofs = text.split("$")
        iterations, salt = parameters.split(":")
        parts = [salt, *proofs.split(":")]
        salt_bytes, stored, server = (base64.b64decode(p, validate=True) for p in parts)
        keys = ScramKeys(salt_bytes, stored, server, int(iterations))
    except ValueError:
        return None
    sizes = (len(stored), len(server))
    if mechanism != _SCRAM or sizes != (32, 32) or len(salt_bytes) < SALT_BYTES:
        return None
    return keys


def nobodys_keys(secret: bytes, name: str) -> ScramKeys:
    """Return keys for a name that nobody has: always the same, and right for nobody.

    Real ones are as long and do not change either, so an answer tells nothing of who is
    there (RFC 5802 section 9 warns of it).
    """
    salt, stored, server = (
        hmac.digest(secret, f"{use}\0{name}".encode(), hashlib.sha256)
        for use in ("salt", "stored", "server")
    )
    return ScramKeys(salt[:SALT_BYTES], stored, server)
