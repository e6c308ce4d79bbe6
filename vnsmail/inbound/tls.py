"""TLS of received connections: the context of an owner, and one connection's layer.

The layer is bytes in, bytes out (ssl.MemoryBIO), below the session's pump: it starts in
the middle of a connection without another transport taking the place of the first, and
what was read before the handshake is never taken for what was said within it.

Rules of this file: no private key is ever in a file that this process could read by
name; whoever has no certificate for a name gets the owner's first; TLS 1.2 and later,
forward secrecy, authenticated ciphers (RFC 9325), no renegotiation, no compression.
"""

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from vnsmail.errors import VnsmailError
from vnsmail.log import logger

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM"
"""Of TLS 1.2; all of TLS 1.3 are as good."""

_PROC = Path("/proc/self/fd")
_MEMORY = "/dev/shm"  # noqa: S108  of the worker alone

READ = 256 * 1024
"""Octets taken out of the layer at a time."""

log = logger("inbound")


class CertificateUnusable(VnsmailError):
    """A certificate, its chain or its key is not what OpenSSL takes."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the certificate cannot be used: {self.reason}"


class TlsFailed(Exception):
    """The handshake failed, or what came is no TLS; the text says what."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate with its chain, and its key."""

    pem: bytes = field(repr=False)
    """All of them, one behind the other, the certificate first."""
    names: tuple[str, ...] = ()
    """Names it is for, in lower case; one may begin with ``*.``."""


class Credentials:
    """The certificates of an owner; what is made of them is made when it is needed first.

    Most owners of a machine are idle, and a context of OpenSSL is larger than all else
    that an idle one has in memory.
    """

    def __init__(self, pairs: Sequence[KeyPair]) -> None:
        self.pairs = tuple(pairs)

    @cached_property
    def context(self) -> ssl.SSLContext | None:
        """What connections are served with; None if the certificates cannot be used."""
        try:
            return server_context(self.pairs)
        except CertificateUnusable as error:
            log.warning("certificate.unusable", reason=str(error))
            return None


def server_context(pairs: Sequence[KeyPair]) -> ssl.SSLContext | None:
    """Return what connections are served with; None without a certificate.

    The first pair is for whoever names nobody, or nobody known (RFC 6066 section 3);
    each other one for its names.

    Raises:
        CertificateUnusable: one of them cannot be used.
    """
    if not pairs:
        return None
    contexts = [_context(pair) for pair in pairs]
    exact: dict[str, ssl.SSLContext] = {}
    for pair, context in zip(pairs, contexts, strict=True):
        for name in pair.names:
            exact.setdefault(name, context)

    def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        wanted = (name or "").lower().rstrip(".")
        found = exact.get(wanted) or exact.get("*." + wanted.partition(".")[2])
        if found is not None:
            connection.context = found

    if len(contexts) > 1:
        contexts[0].sni_callback = choose
    return contexts[0]


def _context(pair: KeyPair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= (
        ssl.OP_NO_COMPRESSION
        | ssl.OP_NO_RENEGOTIATION
        | ssl.OP_CIPHER_SERVER_PREFERENCE
    )
    try:
        with _in_memory(pair.pem) as path:
            context.load_cert_chain(path, password=_no_password)
    except ssl.SSLError as error:
        raise CertificateUnusable((error.reason or str(error)).lower()) from None
    except (OSError, ValueError) as error:
        raise CertificateUnusable(str(error)) from None
    return context


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """Give a name to what has none: OpenSSL reads files only, as far as Python lets it.

    A worker has no /proc, and a file system of its own in memory (supervisor/view.py);
    elsewhere it is the other way round.
    """
    if _PROC.exists():
        fd = os.memfd_create("certificate", os.MFD_CLOEXEC)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(content)
            yield f"{_PROC}/{fd}"
        finally:
            os.close(fd)
    else:
        with tempfile.NamedTemporaryFile(dir=_MEMORY) as named:
            named.write(content)
            named.flush()
            yield named.name


def _no_password() -> str:
    # Without this OpenSSL would ask the terminal.
    raise ValueError("its key is encrypted; give it without a passphrase")


class TlsLayer:
    """One connection's TLS, from the first octet of the handshake on."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.established = False
        """The handshake is done."""
        self.ended = False
        """The client closed its side of it."""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=True
        )

    @property
    def version(self) -> str:
        """TLSv1.2 or TLSv1.3; empty before the handshake is done."""
        return (self._object.version() or "") if self.established else ""

    @property
    def cipher(self) -> str:
        """Name of the cipher suite; empty before the handshake is done."""
        cipher = self._object.cipher()
        return cipher[0] if self.established and cipher else ""

    def receive(self, data: bytes) -> bytes:
        """Take what came from the network; return what it says.

        Raises:
            TlsFailed: it cannot go on; what is in ``outgoing`` tells the client so.
        """
        self._incoming.write(data)
        try:
            if not self.established:
                self._object.do_handshake()
                self.established = True
            return self._read()
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLError as error:
            raise TlsFailed((error.reason or str(error)).lower()) from None

    def _read(self) -> bytes:
        pieces: list[bytes] = []
        try:
            while piece := self._object.read(READ):
                pieces.append(piece)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as error:
            if not pieces:
                raise TlsFailed((error.reason or str(error)).lower()) from None
        return b"".join(pieces)

    def send(self, data: bytes) -> None:
        """Say something; it goes to ``outgoing``."""
        self._object.write(data)

    def close(self) -> None:
        """Say that nothing more comes (RFC 8446 section 6.1)."""
        with contextlib.suppress(ssl.SSLError, ValueError):
            self._object.unwrap()

    def outgoing(self) -> bytes:
        """Return what is to be written to the network, and forget it."""
        return self._outgoing.read()
