"""TLS of connections that go out: what they are made with, and what is looked at.

Rules of this file: a server that has to prove something has done so before anything is said
to it; what fails is told in the words of RFC 8460 section 4.3.
"""

import hashlib
import ssl
from datetime import UTC, datetime

from vnsmail.tls import dane, keys
from vnsmail.tls.layer import KeyPair, TlsFailed, TlsLayer, use_pair
from vnsmail.tls.names import matches
from vnsmail.tls.policy import Check, Step

_CIPHERS = "DEFAULT:!aNULL:!eNULL:!RC4:!3DES"
"""Of TLS 1.2: many old servers have no others, and plain text is worse than each."""

_MANY = 50
_contexts: dict[tuple[bool, bytes, bytes], ssl.SSLContext] = {}
"""Owners have the same one unless each has a certificate: it is large."""


class ClientTls:
    """What one owner's connections are made with.

    Args:
        authorities: certificates of those who are trusted, as PEM.
        pair: what it shows to servers that ask who it is; None: nothing.
    """

    def __init__(self, authorities: bytes = b"", pair: KeyPair | None = None) -> None:
        self._authorities = authorities
        self._pair = pair

    def layer(self, step: Step, exchanger: str) -> TlsLayer:
        """Return the layer of a new connection, which has begun.

        Raises:
            TlsFailed: there is nothing to verify a server with.
            CertificateUnusable: its own certificate cannot be used.
        """
        verified = step.check is Check.NAME
        if verified and not self._authorities:
            text = "no authority is trusted here: set delivery.tls.ca_file"
            raise TlsFailed(text, "certificate-not-trusted")
        name = step.base or exchanger
        is_name = not (name.startswith("[") or name.replace(".", "").isdigit())
        layer = TlsLayer(
            self._context(verified=verified),
            server=False,
            name=name if is_name and len(name) <= 253 else None,
        )
        layer.start()
        return layer

    def _context(self, *, verified: bool) -> ssl.SSLContext:
        pem = self._pair.pem if self._pair else b""
        authorities = self._authorities if verified else b""
        digests = (hashlib.sha256(each).digest() for each in (authorities, pem))
        first, second = digests
        key = (verified, first, second)
        if key not in _contexts:
            if len(_contexts) >= _MANY:
                _contexts.clear()
            _contexts[key] = client_context(authorities, self._pair)
        return _contexts[key]


def client_context(authorities: bytes, pair: KeyPair | None) -> ssl.SSLContext:
    """Return what connections are made with.

    Args:
        authorities: whose certificates are taken, as PEM; empty: anybody's.
        pair: what is shown to a server that asks.

    Raises:
        CertificateUnusable: the pair cannot be used.
        TlsFailed: the authorities cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # names are compared in ``verified``
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if authorities:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(cadata=authorities.decode("ascii", "ignore"))
        except (ssl.SSLError, ValueError) as error:
            text = f"the certificates of trusted authorities cannot be read: {error}"
            raise TlsFailed(text, "certificate-not-trusted") from None
    else:
        context.verify_mode = ssl.CERT_NONE
    if pair is not None:
        use_pair(context, pair)
    keys.apply(context)
    return context


def verified(layer: TlsLayer, step: Step) -> str:
    """Return what a server proved, in a word or two; empty if it had nothing to prove.

    Raises:
        TlsFailed: it did not prove what it has to.
    """
    match step.check:
        case Check.NAME:
            own = layer.alternative_names
            if not any(matches(each, wanted) for each in own for wanted in step.names):
                text = f"its certificate is not for {step.names[0]}"
                raise TlsFailed(text, "certificate-host-mismatch")
            return f"certificate ({step.by})" if step.by else "certificate"
        case Check.DANE:
            now = datetime.now(UTC)
            if problem := dane.problem(step.tlsa, layer.chain, step.names, now):
                raise TlsFailed(problem, "validation-failure")
            return "dane"
        case _:
            return ""
