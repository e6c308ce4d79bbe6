"""Certificates: which are taken, where they lie, and what is told of them."""

import datetime as dt
import time
from typing import Any

import pytest
from cryptography import x509 as library
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from vnsmail.errors import BadInput, NotFound
from vnsmail.model import Context, HostName, SourceAddress, VirtualHost
from vnsmail.settings import layout
from vnsmail.supervisor import x509
from vnsmail.supervisor.certificates import Certificates, judged

NOW = time.time()
DAY = 86400.0
ALPHA = VirtualHost(
    HostName("alpha.example"),
    Context.NAMESPACE,
    (SourceAddress.parse("10.77.0.11/24"),),
    (HostName("alpha.example"), HostName("b.example")),
    "br0",
)


def pem(key, password=None):
    how: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        how = serialization.BestAvailableEncryption(password)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how
    )


def issued(
    *names: str,
    start: float = -DAY,
    end: float = 90 * DAY,
    key: Any = None,
    by: Any = None,
) -> tuple[bytes, bytes]:
    """Return a certificate and its key, from an authority (name, key) or itself."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = library.Name([library.NameAttribute(NameOID.COMMON_NAME, names[0])])
    issuer, signer = by or (subject, key)
    at = dt.datetime.fromtimestamp(NOW, dt.UTC)
    builder = (
        library.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(library.random_serial_number())
        .not_valid_before(at + dt.timedelta(seconds=start))
        .not_valid_after(at + dt.timedelta(seconds=end))
    )
    if "no names" not in names:
        builder = builder.add_extension(
            library.SubjectAlternativeName([library.DNSName(n) for n in names]), False
        )
    made = builder.sign(signer, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM), pem(key)


@pytest.fixture
def certificates(tmp_path):
    return Certificates(layout(tmp_path))


# Pairs ---------------------------------------------------------------------------------


def test_pair():
    """What it says is what was put into it."""
    certificate, key = issued("mail.b.example", "*.C.example")
    found = x509.read_pair(certificate, key, NOW)

    assert found.pem == certificate + key
    assert found.facts.names == ("mail.b.example", "*.c.example")
    assert int(NOW + 90 * DAY) == found.facts.expires
    assert found.facts.self_signed
    assert not found.facts.ours
    assert len(found.facts.fingerprint) == 64
    assert "PRIVATE" not in repr(found)


def test_chain():
    """A chain goes from the certificate up, and no other way."""
    root_key = ec.generate_private_key(ec.SECP256R1())
    root, _ = issued("root", key=root_key)
    name = library.Name([library.NameAttribute(NameOID.COMMON_NAME, "root")])
    leaf, key = issued("a.example", by=(name, root_key))

    assert x509.read_pair(leaf + root, key, NOW).facts.names == ("a.example",)
    with pytest.raises(BadInput, match="key is another"):
        x509.read_pair(root + leaf, key, NOW)
    with pytest.raises(BadInput, match="not in order"):
        x509.read_pair(leaf + issued("other")[0], key, NOW)


ONE, ONE_KEY = issued("a.example")


@pytest.mark.parametrize(
    ("certificate", "key", "problem"),
    [
        (ONE, issued("a.example")[1], "its key is another"),
        (ONE_KEY, ONE_KEY, "no certificate"),
        (ONE, ONE, "no private key"),
        (b"", b"", "no certificate"),
        (b"\xff\0", ONE_KEY, "no certificate"),
        (ONE, ONE_KEY[:-40], "no private key"),
        (*issued("a.example", end=-60), "expired on"),
        (*issued("a.example", start=DAY), "valid only from"),
        (*issued("no names"), "names no host"),
    ],
)
def test_pairs_that_are_refused(certificate, key, problem):
    """One reason, one line."""
    with pytest.raises(BadInput, match=problem) as caught:
        x509.read_pair(certificate, key, NOW)
    assert "\n" not in str(caught.value)


def test_encrypted_key():
    key = ec.generate_private_key(ec.SECP256R1())
    certificate, _ = issued("a.example", key=key)
    with pytest.raises(BadInput, match="encrypted"):
        x509.read_pair(certificate, pem(key, b"secret"), NOW)


def test_rsa_is_taken():
    key = rsa.generate_private_key(65537, 2048)
    assert x509.read_pair(*issued("a.example", key=key), NOW).facts.names


def test_self_signed():
    """ECDSA, for all names, and recognized as made here."""
    made = x509.self_signed(["alpha.example", "b.example"], NOW)
    found = x509.read_pair(made, made, NOW)

    assert found.facts.names == ("alpha.example", "b.example")
    assert found.facts.ours
    assert found.facts.expires > NOW + 3000 * DAY
    assert x509.self_signed(["a" * 60 + ".example"], NOW)


@pytest.mark.parametrize(
    ("names", "wanted", "fits"),
    [
        (("a.example",), "a.example", True),
        (("*.example",), "a.example", True),
        (("*.example",), "b.a.example", False),
        (("*.example",), "example", False),
        ((), "a.example", False),
    ],
)
def test_covers(names, wanted, fits):
    assert x509.covers(names, wanted) is fits


# On disk -------------------------------------------------------------------------------


def test_made_once(certificates, tmp_path):
    """A host has one from the beginning, which stays, and nobody else can read it."""
    (first,) = certificates.serve(ALPHA)
    (again,) = certificates.serve(ALPHA)
    file = tmp_path / "tls/alpha.example/default.pem"

    assert first == again
    assert first.name == ""
    assert file.read_bytes() == first.pem
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert "PRIVATE" not in repr(first)
    ((name, facts),) = certificates.listed(ALPHA.name)
    assert (name, facts.names) == ("", ("alpha.example", "b.example"))


def test_made_anew_when_names_change(certificates):
    """One that was made here follows the host's names; one that was given does not."""
    before = certificates.serve(ALPHA)
    more = VirtualHost(
        ALPHA.name, ALPHA.context, ALPHA.addresses, (ALPHA.name,), ALPHA.link
    )
    assert certificates.serve(more) != before
    certificate, key = issued("other.example")
    certificates.put(ALPHA.name, certificate, key, ())

    assert [each.pem for each in certificates.serve(ALPHA)] == [certificate + key]


def test_for_names(certificates):
    """A pair may be for some names only, the default comes first."""
    certificates.serve(ALPHA)
    certificate, key = issued("*.b.example", "c.example")
    certificates.put(
        ALPHA.name, certificate, key, ["mail.B.example", "*.b.example", "c.example"]
    )
    served = certificates.serve(ALPHA)

    assert [c.name for c in served] == [
        "",
        "*.b.example",
        "c.example",
        "mail.b.example",
    ]
    assert {c.pem for c in served[1:]} == {certificate + key}
    certificates.remove(ALPHA.name, "c.example")
    assert "c.example" not in [c.name for c in certificates.serve(ALPHA)]
    with pytest.raises(NotFound):
        certificates.remove(ALPHA.name, "c.example")


@pytest.mark.parametrize(
    "name", ["d.example", "../../etc/passwd", "a", "*.*.b.example"]
)
def test_names_that_do_not_fit(certificates, name, tmp_path):
    """A name is a name that the certificate is for, and never a path."""
    with pytest.raises(BadInput):
        certificates.put(ALPHA.name, *issued("a.example"), [name])
    assert not list(tmp_path.rglob("*.pem"))


def test_a_bad_pair_changes_nothing(certificates):
    before = certificates.serve(ALPHA)
    with pytest.raises(BadInput):
        certificates.put(ALPHA.name, *issued("a.example", end=-5), ())
    assert certificates.serve(ALPHA) == before


def test_removed_default_is_made_anew(certificates):
    given = issued("alpha.example")
    certificates.put(ALPHA.name, *given, ())
    certificates.remove(ALPHA.name, "")
    (made,) = certificates.serve(ALPHA)

    assert made.pem != b"".join(given)


def test_damaged_file(certificates, tmp_path):
    """It costs TLS, not the host; doctor tells."""
    certificates.serve(ALPHA)
    (tmp_path / "tls/alpha.example/default.pem").write_text("no")

    assert certificates.serve(ALPHA) == ()
    assert certificates.listed(ALPHA.name) == [("", None)]


@pytest.mark.parametrize(
    ("days", "verdict", "text"),
    [(90, "ok", "valid until"), (13, "wrong", "expires"), (-1, "wrong", "expired")],
)
def test_doctor(days, verdict, text):
    """It warns before, not only after."""
    certificate, _ = issued("a.example", start=-90 * DAY, end=days * DAY)
    listed = [("", x509.read_stored(certificate))]
    (finding,) = judged(ALPHA.name, listed, NOW)

    assert finding.verdict == verdict
    assert text in finding.text
    assert bool(finding.remedy) == (verdict != "ok")
