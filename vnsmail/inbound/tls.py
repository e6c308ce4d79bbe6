"""TLS of received connections: what an owner serves them with.

Rules of this file: whoever has no certificate for a name gets the owner's first; TLS 1.2
and later, forward secrecy, authenticated ciphers (RFC 9325), no renegotiation, no
compression. The layer itself is vnsmail/tls.
"""

import ssl
from collections.abc import Sequence
from functools import cached_property

from vnsmail.log import logger
from vnsmail.tls import keys
from vnsmail.tls.layer import (
    CIPHERS,
    CertificateUnusable,
    KeyPair,
    TlsFailed,
    TlsLayer,
    use_pair,
)

__all__ = [
    "CertificateUnusable",
    "Credentials",
    "KeyPair",
    "TlsFailed",
    "TlsLayer",
    "server_context",
]

log = logger("inbound")


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
    use_pair(context, pair)
    keys.apply(context)
    return context
