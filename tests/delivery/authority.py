"""An authority for tests, and the certificates it issues."""

import datetime as dt
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAY = dt.timedelta(days=1)


class Authority:
    """Issues certificates; ``pem`` is its own."""

    def __init__(self, name="authority.test"):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.certificate = self._signed(self.name, self.key, [], ca=True)
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)

    def _signed(self, subject, key, names, *, ca=False, days=30):
        now = dt.datetime.now(dt.UTC)
        end = now + days * DAY
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, end) - DAY)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )
        if names:
            alternative = x509.SubjectAlternativeName([x509.DNSName(n) for n in names])
            made = made.add_extension(alternative, critical=False)
        return made.sign(self.key, hashes.SHA256())

    def issue(self, *names, days=30):
        """Return a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
        return self._signed(subject, key, names, days=days), key

    def pem_of(self, *names, days=30):
        """Return certificate, authority and key in one file."""
        certificate, key = self.issue(*names, days=days)
        return (
            certificate.public_bytes(serialization.Encoding.PEM)
            + self.pem
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )

    def server(self, folder, *names, days=30):
        """Return what a server of that name serves with."""
        file = folder / f"{names[0]}.{days}.pem"
        file.write_bytes(self.pem_of(*names, days=days))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context
