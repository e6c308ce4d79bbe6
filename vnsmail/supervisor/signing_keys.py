"""The DKIM keys of a virtual host, from the first day to the last. Pure.

    pending   made; its record is to be published; nothing is signed with it
    active    what is sent is signed with it; one a domain and algorithm
    retired   another took its place; its private half is gone. Its record has to stay
              in DNS until the last mail that it signed has arrived

Rules of this file: values in, values out; a selector is used once, so that no record in
a cache can be the wrong one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypeAlias, get_args

import msgspec

from vnsmail.errors import BadInput, NotFound

Algorithm: TypeAlias = Literal["rsa", "ed25519"]
State: TypeAlias = Literal["pending", "active", "retired"]

ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)


class StoredKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key, as it lies in its file."""

    domain: str
    selector: str
    algorithm: Algorithm
    state: State
    changed_at: float
    """When it came to this state, seconds since the epoch."""
    public: bytes
    """What p= of its record says: SubjectPublicKeyInfo for RSA, 32 octets for Ed25519."""
    private: bytes
    """PKCS #8, DER; empty when retired."""

    def __repr__(self) -> str:
        """Return whose key it is, and nothing of it."""
        return f"StoredKey({self.selector}._domainkey.{self.domain}, {self.state})"


Keys: TypeAlias = tuple[StoredKey, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A key that is to be made."""

    domain: str
    selector: str
    algorithm: Algorithm


def algorithms(words: Iterable[str]) -> tuple[Algorithm, ...]:
    """Return algorithms by their names; all of them if none is named.

    Raises:
        BadInput: there is no such algorithm.
    """
    named = tuple(words)
    for word in named:
        if word not in ALGORITHMS:
            remedy = f"choose one of {', '.join(ALGORITHMS)}"
            raise BadInput("algorithm", word, remedy)
    return tuple(each for each in ALGORITHMS if not named or each in named)


def to_create(
    keys: Keys,
    domains: Iterable[str],
    kinds: Iterable[Algorithm],
    selector: str | None,
    now: float,
    *,
    asked: bool,
) -> tuple[Wanted, ...]:
    """Return the keys that a host is to get.

    Args:
        keys: those that it has.
        domains: for which.
        kinds: of each algorithm one.
        selector: the name of the key, or none to choose one.
        now: seconds since the epoch.
        asked: the domains were named; else those that have a key are passed over.

    Raises:
        BadInput: there is nothing to make, or the selector is taken.
    """
    made: list[Wanted] = []
    wanted_kinds = tuple(kinds)
    for domain in domains:
        for kind in wanted_kinds:
            held = _living(keys, domain, kind)
            if held is None:
                several = len(wanted_kinds) > 1
                made.append(_named(keys, domain, kind, selector, several, now))
            elif asked:
                remedy = f"it has {kind} key {held.selector}; `vnsmail dkim rotate` makes the next"
                raise BadInput("domain", domain, remedy)
    if not made:
        remedy = "each of its domains has a key; `vnsmail dkim rotate` makes the next"
        raise BadInput("DKIM", "", remedy)
    return tuple(made)


def to_rotate(
    keys: Keys, domain: str | None, selector: str | None, now: float
) -> tuple[Wanted, ...]:
    """Return the keys that are to follow those in use.

    Raises:
        NotFound: nothing is signed.
        BadInput: a key waits already, or the selector is taken.
    """
    active = [k for k in keys if k.state == "active" and domain in {None, k.domain}]
    waiting = [k for k in keys if k.state == "pending" and domain in {None, k.domain}]
    if waiting:
        remedy = (
            "it waits already; publish it, then `vnsmail dkim activate`, or remove it"
        )
        raise BadInput("key", waiting[0].selector, remedy)
    if not active:
        raise NotFound("DKIM key", domain or "", "make one with `vnsmail dkim create`")
    several = len({key.algorithm for key in active}) > 1
    return tuple(
        _named(keys, key.domain, key.algorithm, selector, several, now)
        for key in active
    )


def activated(
    keys: Keys, domain: str | None, selector: str | None, now: float
) -> tuple[Keys, Keys]:
    """Return all keys with pending ones put to use, and those that were.

    Raises:
        NotFound: no such key is pending.
    """
    fresh = [
        key for key in keys if key.state == "pending" and _is(key, domain, selector)
    ]
    if not fresh:
        remedy = "no such key is pending; see `vnsmail dkim list`"
        raise NotFound("DKIM key", selector or domain or "", remedy)
    places = {(key.domain, key.algorithm) for key in fresh}
    changed: list[StoredKey] = []
    used: list[StoredKey] = []
    for key in keys:
        now_is = key
        if key in fresh:
            now_is = msgspec.structs.replace(key, state="active", changed_at=now)
            used.append(now_is)
        elif key.state == "active" and (key.domain, key.algorithm) in places:
            now_is = msgspec.structs.replace(
                key, state="retired", changed_at=now, private=b""
            )
        changed.append(now_is)
    return tuple(changed), tuple(used)


def removed(keys: Keys, domain: str | None, selector: str) -> tuple[Keys, Keys]:
    """Return the keys that are left, and those that go.

    Raises:
        NotFound: there is no such key.
    """
    going = tuple(key for key in keys if _is(key, domain, selector))
    if not going:
        raise NotFound("DKIM key", selector, "see `vnsmail dkim list`")
    return tuple(key for key in keys if key not in going), going


def _is(key: StoredKey, domain: str | None, selector: str | None) -> bool:
    return domain in {None, key.domain} and selector in {None, key.selector}


def _living(keys: Keys, domain: str, kind: Algorithm) -> StoredKey | None:
    return next(
        (
            key
            for key in keys
            if (key.domain, key.algorithm) == (domain, kind) and key.state != "retired"
        ),
        None,
    )


def _named(
    keys: Keys,
    domain: str,
    kind: Algorithm,
    selector: str | None,
    several: bool,
    now: float,
) -> Wanted:
    taken = {key.selector for key in keys if key.domain == domain}
    if selector is None:
        day = datetime.fromtimestamp(now, UTC).strftime("%Y%m%d")
        names = (
            f"{kind}-{day}{suffix}" for suffix in ("", *"bcdefghijklmnopqrstuvwxyz")
        )
        found = next((name for name in names if name not in taken), None)
        if found is None:
            raise BadInput("DKIM", domain, "it has many keys of this day; name one")
        return Wanted(domain, found, kind)
    name = f"{selector}-{kind}" if several and kind != "rsa" else selector
    if name in taken:
        raise BadInput("selector", name, f"{domain} has it already; choose another")
    return Wanted(domain, name, kind)
