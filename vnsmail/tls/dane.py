"""TLSA records, and whether what a server shows is what they say (RFC 6698, 7671, 7672).

Rules of this file: only usages 2 (DANE-TA) and 3 (DANE-EE) count for SMTP (RFC 7672
section 3.1.3); a chain is followed by signatures and dates, never by names alone. Pure.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vnsmail.tls.names import matches

TRUST_ANCHOR, END_ENTITY = 2, 3
_SIZES = {1: 32, 2: 64}
_HASHES = {1: hashlib.sha256, 2: hashlib.sha512}
_LONGEST_CHAIN = 10


@dataclass(frozen=True, slots=True)
class Tlsa:
    """One TLSA record."""

    usage: int
    selector: int
    """0: of the whole certificate; 1: of its public key."""
    matching: int
    """0: the octets themselves; 1: SHA-256; 2: SHA-512."""
    data: bytes

    def __str__(self) -> str:
        return f"{self.usage} {self.selector} {self.matching} {self.data.hex()}"

    @property
    def usable(self) -> bool:
        """Whether it says something that can be looked at (RFC 7671 section 5)."""
        size = _SIZES.get(self.matching, len(self.data))
        return (
            self.usage in {TRUST_ANCHOR, END_ENTITY}
            and self.selector in {0, 1}
            and self.matching in {0, 1, 2}
            and len(self.data) == size > 0
        )

    def is_of(self, certificate: x509.Certificate) -> bool:
        """Say whether it is the record of a certificate."""
        if self.selector == 0:
            content = certificate.public_bytes(Encoding.DER)
        else:
            content = certificate.public_key().public_bytes(
                Encoding.DER, PublicFormat.SubjectPublicKeyInfo
            )
        make = _HASHES.get(self.matching)
        return self.data == (make(content).digest() if make else content)


def problem(
    records: Sequence[Tlsa], chain: Sequence[bytes], names: Sequence[str], now: datetime
) -> str:
    """Return why a server is not the one that the records speak of; empty if it is.

    Args:
        records: usable ones.
        chain: what the server showed, its own certificate first, as DER.
        names: one of which the certificate has to be for, with usage 2.
        now: with a time zone.
    """
    try:
        shown = [x509.load_der_x509_certificate(each) for each in chain]
        if not shown:
            return "it shows no certificate"
        if any(r.usage == END_ENTITY and r.is_of(shown[0]) for r in records):
            # RFC 7671 section 5.1: names and dates of it do not matter.
            return ""
        anchors = [r for r in records if r.usage == TRUST_ANCHOR]
        if not anchors:
            return "its certificate is not the one that DNS names (TLSA)"
        return _by_anchor(anchors, shown, names, now)
    except ValueError as error:
        return f"its certificate cannot be read: {error}"


def _by_anchor(
    anchors: Sequence[Tlsa],
    shown: Sequence[x509.Certificate],
    names: Sequence[str],
    now: datetime,
) -> str:
    leaf = shown[0]
    if not any(matches(own, each) for own in _names(leaf) for each in names):
        return f"its certificate is not for {names[0]}"
    at, seen = leaf, 0
    while seen < _LONGEST_CHAIN:
        if not at.not_valid_before_utc <= now <= at.not_valid_after_utc:
            return "its certificate, or one above it, is out of date"
        if any(each.is_of(at) for each in anchors):
            return ""
        issuer = next((c for c in shown[1:] if c != at and _signed(at, c, seen)), None)
        if issuer is None:
            break
        at, seen = issuer, seen + 1
    return "its certificate is of no authority that DNS names (TLSA)"


def _signed(child: x509.Certificate, issuer: x509.Certificate, below: int) -> bool:
    """Say whether an authority issued a certificate, ``below`` others being between."""
    try:
        basic = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        if not basic.ca or (
            basic.path_length is not None and basic.path_length < below
        ):
            return False
        try:
            usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
            if not usage.key_cert_sign:
                return False
        except x509.ExtensionNotFound:
            pass
        child.verify_directly_issued_by(issuer)
    except (x509.ExtensionNotFound, InvalidSignature, ValueError, TypeError):
        return False
    return True


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return ()
    return tuple(n.lower() for n in found.value.get_values_for_type(x509.DNSName))
