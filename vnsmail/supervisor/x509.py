"""Certificates: what one says, whether it can be used, and one that a host signs itself.

No input or output. Keys of new certificates are ECDSA over P-256, which every client
knows, and which costs a handshake a tenth of what RSA does.

Rules of this file: a pair is taken whole or refused with one reason; nothing is guessed
of a damaged one; an encrypted key is refused, as nobody is there to say the passphrase.
"""

import datetime as dt
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtensionOID, NameOID

from vnsmail.errors import BadInput

OURS = "vnsmail, self-signed"
"""Organization in the subject of certificates that are made here."""

VALID = dt.timedelta(days=3650)
"""Of those. Nobody checks their date who does not trust their key anyway."""

BACKDATED = dt.timedelta(hours=1)
"""Clocks differ."""

_LONGEST_COMMON_NAME = 64  # RFC 5280 appendix A.1


@dataclass(frozen=True, slots=True)
class Facts:
    """What a certificate says."""

    names: tuple[str, ...]
    """DNS names it is for, in lower case; one may begin with ``*.``."""
    issuer: str
    expires: float
    """Seconds since the epoch."""
    fingerprint: str
    """SHA-256, as hexadecimal digits."""
    self_signed: bool
    ours: bool
    """It was made here."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate, its chain and its key, found to belong together."""

    pem: bytes
    """Certificate, chain, key, in this order."""
    facts: Facts

    def __repr__(self) -> str:
        return f"Pair({self.facts!r})"


def read_pair(certificate: bytes, key: bytes, now: float) -> Pair:
    """Return a certificate with its key.

    Args:
        certificate: PEM, with the chain behind it.
        key: PEM.
        now: seconds since the epoch.

    Raises:
        BadInput: it cannot be used: no PEM, another's key, or out of date.
    """
    chain = _chain(certificate)
    leaf = chain[0]
    private = _key(key)
    if private.public_key() != leaf.public_key():
        raise _bad("certificate", "its key is another; give the key that belongs to it")
    at = dt.datetime.fromtimestamp(now, dt.UTC)
    if leaf.not_valid_after_utc <= at:
        when = f"{leaf.not_valid_after_utc:%Y-%m-%d}"
        raise _bad("certificate", f"it expired on {when}; renew it first")
    if leaf.not_valid_before_utc > at:
        when = f"{leaf.not_valid_before_utc:%Y-%m-%d}"
        raise _bad("certificate", f"it is valid only from {when} on; look at the clock")
    _check_chain(chain)
    facts = facts_of(leaf)
    if not facts.names:
        raise _bad(
            "certificate", "it names no host (subjectAltName); have it made anew"
        )
    parts = [one.public_bytes(serialization.Encoding.PEM) for one in chain]
    return Pair(b"".join(parts) + _pem(private), facts)


def read_stored(pem: bytes) -> Facts:
    """Return what the first certificate in a file says, be it expired or not.

    Raises:
        BadInput: there is none.
    """
    return facts_of(_chain(pem)[0])


def facts_of(leaf: x509.Certificate) -> Facts:
    """Return what a certificate says."""
    try:
        extension = leaf.extensions.get_extension_for_oid(
            ExtensionOID.SUBJECT_ALTERNATIVE_NAME
        ).value
        names = extension.get_values_for_type(x509.DNSName)  # type: ignore[attr-defined]
    except (x509.ExtensionNotFound, ValueError):
        names = []
    organizations = leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    self_signed = leaf.issuer == leaf.subject
    return Facts(
        names=tuple(dict.fromkeys(name.lower() for name in names)),
        issuer=leaf.issuer.rfc4514_string(),
        expires=leaf.not_valid_after_utc.timestamp(),
        fingerprint=leaf.fingerprint(hashes.SHA256()).hex(),
        self_signed=self_signed,
        ours=self_signed and any(each.value == OURS for each in organizations),
    )


def covers(names: Sequence[str], wanted: str) -> bool:
    """Say whether a certificate with these names is for a host (RFC 6125 section 6.4)."""
    parent = wanted.partition(".")[2]
    return wanted in names or (bool(parent) and f"*.{parent}" in names)


def self_signed(names: Sequence[str], now: float) -> bytes:
    """Return a new certificate for these names with its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    at = dt.datetime.fromtimestamp(int(now), dt.UTC)
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, OURS),
            x509.NameAttribute(NameOID.COMMON_NAME, names[0][:_LONGEST_COMMON_NAME]),
        ]
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - BACKDATED)
        .not_valid_after(at + VALID)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name) for name in names]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM) + _pem(key)


def _chain(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise _bad("certificate", "this is no certificate in PEM form") from None


def _key(pem: bytes) -> PrivateKeyTypes:
    try:
        key = serialization.load_pem_private_key(pem, None)
    except TypeError:
        raise _bad("key", "it is encrypted; store it without a passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise _bad("key", "this is no private key in PEM form") from None
    return key


def _pem(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _check_chain(chain: Sequence[x509.Certificate]) -> None:
    """Refuse a chain whose parts do not follow one another: clients would, too."""
    for one, above in itertools.pairwise(chain):
        try:
            one.verify_directly_issued_by(above)
        except (ValueError, TypeError, InvalidSignature):
            remedy = "its chain is not in order; give the certificate first, then each issuer"
            raise _bad("certificate", remedy) from None


def _bad(what: str, remedy: str) -> BadInput:
    return BadInput(what, "", remedy)
