"""TLS as bytes in and bytes out: one connection's layer, certificates with their keys.

The layer is bytes in, bytes out (ssl.MemoryBIO), below the pump of a session: it starts in
the middle of a connection without another transport taking the place of the first, and
what was read before the handshake is never taken for what was said within it.

Rules of this file: no private key is ever in a file that this process could read by
name; TLS 1.2 and later, no renegotiation, no compression.
"""

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vnsmail.errors import VnsmailError

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM"
"""Of TLS 1.2; all of TLS 1.3 are as good."""

_PROC = Path("/proc/self/fd")
_MEMORY = "/dev/shm"  # noqa: S108  of the worker alone

_EXPIRY = {9: "certificate-expired", 10: "certificate-expired"}
"""X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL."""

READ = 256 * 1024
"""Octets taken out of the layer at a time."""


class CertificateUnusable(VnsmailError):
    """A certificate, its chain or its key is not what OpenSSL takes."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the certificate cannot be used: {self.reason}"


class TlsFailed(Exception):
    """The handshake failed, or what came is no TLS; the text says what.

    ``kind`` is a result type of RFC 8460 section 4.3.
    """

    def __init__(self, text: str, kind: str = "validation-failure") -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate with its chain, and its key."""

    pem: bytes = field(repr=False)
    """All of them, one behind the other, the certificate first."""
    names: tuple[str, ...] = ()
    """Names it is for, in lower case; one may begin with ``*.``."""


def use_pair(context: ssl.SSLContext, pair: KeyPair) -> None:
    """Give a context a certificate and its key.

    Raises:
        CertificateUnusable: it cannot be used.
    """
    try:
        with _in_memory(pair.pem) as path:
            context.load_cert_chain(path, password=_no_password)
    except ssl.SSLError as error:
        raise CertificateUnusable((error.reason or str(error)).lower()) from None
    except (OSError, ValueError) as error:
        raise CertificateUnusable(str(error)) from None


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
    """One connection's TLS, from the first octet of the handshake on.

    Args:
        context: what it is served with, or asked with.
        server: we are the one who is connected to.
        name: of the server that a client wants (RFC 6066 section 3).
    """

    def __init__(
        self, context: ssl.SSLContext, *, server: bool = True, name: str | None = None
    ) -> None:
        self.established = False
        """The handshake is done."""
        self.ended = False
        """The other closed its side of it."""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server, server_hostname=name
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
            TlsFailed: it cannot go on; what is in ``outgoing`` tells the other so.
        """
        self._incoming.write(data)
        try:
            if not self.established:
                self._object.do_handshake()
                self.established = True
            return self._read()
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLCertVerificationError as error:
            kind = _EXPIRY.get(error.verify_code, "certificate-not-trusted")
            text = f"its certificate: {error.verify_message}"
            raise TlsFailed(text, kind) from None
        except ssl.SSLError as error:
            raise TlsFailed((error.reason or str(error)).lower()) from None

    def start(self) -> None:
        """As a client, begin; what is to be said is in ``outgoing``."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._object.do_handshake()

    @property
    def alternative_names(self) -> tuple[str, ...]:
        """Names that the other's certificate is for, where it was verified."""
        found: Any = self._object.getpeercert() or {}
        pairs = found.get("subjectAltName", ())
        return tuple(str(name).lower() for kind, name in pairs if kind == "DNS")

    @property
    def chain(self) -> tuple[bytes, ...]:
        """The certificates that the other showed, its own first, as DER."""
        whole: Any = self._object
        if hasattr(whole, "get_unverified_chain"):  # Python 3.13
            return tuple(whole.get_unverified_chain() or ())
        shown = whole._sslobj.get_unverified_chain() or ()  # noqa: SLF001
        return tuple(ssl.PEM_cert_to_DER_cert(each.public_bytes()) for each in shown)

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
