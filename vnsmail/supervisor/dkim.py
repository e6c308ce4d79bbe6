"""The DKIM keys of all virtual hosts: root's files, made, kept and told here.

``dkim/HOST/keys.json`` below the state folder, mode 0600, in a folder that is root's: a
worker gets the keys of the hosts it owns over its channel, and sees no file.

Rules of this file: a file is changed by putting another in its place, on disk before
anybody is told; nothing of a key is ever logged.
"""

import asyncio
import base64
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from vnsmail.database import sync_folder
from vnsmail.directory import DirectoryReader
from vnsmail.engines.protocol import DkimKey
from vnsmail.errors import BadInput, StateUnusable
from vnsmail.log import logger
from vnsmail.model import HostName, VirtualHost, domain_name, host_name
from vnsmail.settings import Layout
from vnsmail.supervisor import control
from vnsmail.supervisor.signing_keys import (
    Algorithm,
    Keys,
    StoredKey,
    Wanted,
    activated,
    algorithms,
    removed,
    to_create,
    to_rotate,
)

FILE = "keys.json"

RSA_BITS = 2048
"""What RFC 8301 wants signers to use; larger keys do not fit all name servers' answers."""

_SELECTOR = re.compile(
    r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[StoredKey, ...]).decode

log = logger("dkim")


class Dkim:
    """What is asked of keys.

    Args:
        layout: where the files lie.
        directory: which hosts have which domains.
    """

    def __init__(self, layout: Layout, directory: DirectoryReader) -> None:
        self._layout = layout
        self._directory = directory

    async def change(self, request: control.ChangeDkim) -> control.DkimKeys:
        """Make, rotate, put to use or remove keys; return those that were.

        Raises:
            NotFound, BadInput: it cannot be; nothing is changed.
            StateUnusable: the keys cannot be read or written.
        """
        host = self._directory.host(host_name(request.name))
        domain = None if request.domain is None else _domain(host, request.domain)
        selector = None if request.selector is None else _selector(request.selector)
        keys, now = read_keys(self._layout, host.name), time.time()
        shown: Keys
        match request.action:
            case "create":
                domains = host.domains if domain is None else (domain,)
                kinds = algorithms(request.algorithms)
                asked = domain is not None
                wanted = to_create(keys, domains, kinds, selector, now, asked=asked)
                keys, shown = await self._made(keys, wanted, now, request)
            case "rotate":
                wanted = to_rotate(keys, domain, selector, now)
                keys, shown = await self._made(keys, wanted, now, request)
            case "activate":
                keys, shown = activated(keys, domain, selector, now)
            case _:
                keys, shown = removed(keys, domain, selector or "")
        write_keys(self._layout, host.name, keys)
        names = [f"{each.selector}._domainkey.{each.domain}" for each in shown]
        log.info("dkim.changed", host=host.name, change=request.action, keys=names)
        return control.DkimKeys(tuple(_told(host.name, shown)))

    def listed(self, request: control.ListDkim) -> control.DkimKeys:
        """Return the keys of a host, or of all.

        Raises:
            NotFound: there is no such host.
            StateUnusable: the keys cannot be read.
        """
        if request.name is None:
            hosts: Iterable[VirtualHost] = self._directory.hosts()
        else:
            hosts = (self._directory.host(host_name(request.name)),)
        return control.DkimKeys(
            tuple(
                told
                for host in hosts
                for told in _told(host.name, read_keys(self._layout, host.name))
            )
        )

    async def _made(
        self,
        keys: Keys,
        wanted: tuple[Wanted, ...],
        now: float,
        request: control.ChangeDkim,
    ) -> tuple[Keys, Keys]:
        """Return all keys with new ones, and the new ones; the search for primes waits."""
        made = await asyncio.to_thread(
            lambda: tuple(_make(each, now) for each in wanted)
        )
        keys = (*keys, *made)
        if not request.active:
            return keys, made
        for each in made:
            keys, _ = activated(keys, each.domain, each.selector, now)
        chosen = {(each.domain, each.selector) for each in made}
        return keys, tuple(k for k in keys if (k.domain, k.selector) in chosen)


def keys_to_tell(layout: Layout, host: VirtualHost) -> tuple[DkimKey, ...]:
    """Return the keys that a host's worker signs with: of its own domains, in use.

    Keys that cannot be read are logged and none: mail goes on, and `vnsmail doctor` and
    `dkim list` say why it is unsigned.
    """
    try:
        keys = read_keys(layout, host.name)
    except StateUnusable as error:
        log.warning("dkim.unreadable", host=host.name, reason=str(error))
        return ()
    return tuple(
        DkimKey(key.domain, key.selector, key.private)
        for key in keys
        if key.state == "active" and key.domain in host.domains
    )


def read_keys(layout: Layout, host: HostName) -> Keys:
    """Return the keys of a host; none if it has no file.

    Raises:
        StateUnusable: the file cannot be read.
    """
    path = layout.dkim / host / FILE
    try:
        return _decode(path.read_bytes())
    except FileNotFoundError:
        return ()
    except (OSError, msgspec.MsgspecError) as error:
        raise _unusable(path, error) from None


def write_keys(layout: Layout, host: HostName, keys: Keys) -> None:
    """Put the keys of a host on disk.

    Raises:
        StateUnusable: it cannot be written; what was there is there still.
    """
    folder = layout.dkim / host
    arriving = folder / f"{FILE}.new"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(folder.parent, 0o700)
        arriving.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(arriving, flags, 0o600), "wb") as file:
            file.write(_encode(keys))
            file.flush()
            os.fsync(file.fileno())
        arriving.replace(folder / FILE)
        for each in (folder, folder.parent, layout.state):
            sync_folder(each)
    except OSError as error:
        raise _unusable(folder / FILE, error) from None


def _make(wanted: Wanted, now: float) -> StoredKey:
    public, private = _pair(wanted.algorithm)
    return StoredKey(
        domain=wanted.domain,
        selector=wanted.selector,
        algorithm=wanted.algorithm,
        state="pending",
        changed_at=now,
        public=public,
        private=private,
    )


def _pair(algorithm: Algorithm) -> tuple[bytes, bytes]:
    # Loading it takes longer than most starts of the supervisor need it.
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa  # noqa: PLC0415

    encoding, none = serialization.Encoding, serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    if algorithm == "ed25519":
        own = ed25519.Ed25519PrivateKey.generate()
        return own.public_key().public_bytes_raw(), own.private_bytes(
            encoding.DER, form, none
        )
    key = rsa.generate_private_key(65537, RSA_BITS)
    public = key.public_key().public_bytes(
        encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return public, key.private_bytes(encoding.DER, form, none)


def _told(host: HostName, keys: Keys) -> Iterable[control.DkimFacts]:
    for key in keys:
        yield control.DkimFacts(
            host=host,
            domain=key.domain,
            selector=key.selector,
            algorithm=key.algorithm,
            state=key.state,
            changed_at=key.changed_at,
            public=base64.b64encode(key.public).decode(),
        )


def _domain(host: VirtualHost, text: str) -> HostName:
    name = domain_name(text)
    if name not in host.domains:
        remedy = f"{host.name} does not have it; it has {', '.join(host.domains)}"
        raise BadInput("domain", text, remedy)
    return name


def _selector(text: str) -> str:
    name = text.lower()
    if not _SELECTOR.fullmatch(name) or len(name) > 120:
        remedy = "use labels of letters, digits and inner hyphens"
        raise BadInput("selector", text, remedy)
    return name


def _unusable(path: Path, error: Exception) -> StateUnusable:
    why = error.strerror if isinstance(error, OSError) else "it is damaged"
    return StateUnusable(str(path), (why or str(error)).lower(), "put back a copy")
