"""STARTTLS to a remote: what is said before it, within it, and when it fails."""

import asyncio
import hashlib
import ipaddress
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.delivery.authority import Authority
from tests.delivery.helpers import facts
from tests.delivery.remote import EXTENSIONS, Loopback, Remote
from vnsmail.delivery.connection import ConnectionFailed, connect
from vnsmail.delivery.route import Hop
from vnsmail.model import Verdict
from vnsmail.queue.body import Body
from vnsmail.settings import SmtpSettings
from vnsmail.smtp.client_session import Transaction
from vnsmail.tls.client import ClientTls
from vnsmail.tls.dane import Tlsa
from vnsmail.tls.layer import KeyPair
from vnsmail.tls.policy import Level, by_dane, by_level, by_sts
from vnsmail.tls.sts import Mode, Policy

pytestmark = pytest.mark.timeout(method="thread")
ALPHA = facts("127.0.0.1")
MX = "mx.b.example"
AUTHORITY = Authority()
BODY = b"Subject: hello\r\n\r\nhello\r\n"
TRANSACTION = Transaction(
    "ann@alpha.example", ("bob@b.example",), len(BODY), eight_bit=False, smtputf8=False
)


@pytest.fixture
async def remote(tmp_path):
    async with Remote(extensions=(*EXTENSIONS, "STARTTLS")) as remote:
        remote.tls = AUTHORITY.server(tmp_path, MX)
        yield remote


def level(name, *, plain_after=True):
    return by_level(Level(name), "b.example", MX, plain_after=plain_after)


def sts(mode, *mx):
    return by_sts(Policy(Mode(mode), mx or (MX,), 86400), MX, level("may"))


async def sent(remote, tls, client=None, told=None):
    """Send one message; return the facts of its connection."""
    hop = Hop(MX, ipaddress.ip_address(remote.address), tls=tls)
    settings = SmtpSettings(port=remote.port)
    client = client or ClientTls(AUTHORITY.pem)
    connection = await connect(
        hop, ALPHA, Loopback(), settings, lambda _: None, client, told
    )
    try:
        result = await connection.send(TRANSACTION, Body(BODY))
        assert result.replies["bob@b.example"].code == 250
        return result.contact
    finally:
        connection.quit()
        await connection.gone


async def refused(remote, tls, client=None, told=None):
    with pytest.raises(ConnectionFailed) as caught:
        await sent(remote, tls, client, told)
    outcome = caught.value.outcome
    assert outcome.verdict is Verdict.DEFERRED
    # What counts: nobody said MAIL.
    assert not remote.messages
    assert "MAIL" not in [verb for each in remote.sessions for verb in each.verbs]
    return outcome.text


@pytest.mark.parametrize(
    ("how", "proven"),
    [
        (level("may"), "no"),
        (level("encrypt"), "no"),
        (level("verify"), "certificate (settings)"),
        (sts("enforce"), "certificate (mta-sts)"),
        (sts("testing"), "certificate (mta-sts)"),
    ],
)
async def test_within_tls(remote, how, proven):
    """All but EHLO and STARTTLS is said within TLS, and the record says what was proven."""
    contact = await sent(remote, how)

    verbs = remote.sessions[0].verbs
    assert verbs[:5] == ["EHLO", "STARTTLS", "secure", "EHLO", "MAIL"]
    assert contact.tls.startswith("TLSv1.3 TLS_")
    assert contact.tls_verified == proven
    assert remote.messages[0].body == BODY


async def test_none_says_no_starttls(remote):
    contact = await sent(remote, level("none"))

    assert "STARTTLS" not in remote.sessions[0].verbs
    assert (contact.tls, contact.tls_verified) == ("", "")


async def test_not_offered(remote):
    """What may be plain goes so; what may not waits."""
    remote.extensions = EXTENSIONS
    for how in (level("encrypt"), level("verify"), sts("enforce")):
        assert "it does not offer STARTTLS" in await refused(remote, how)
    assert (await sent(remote, level("may"))).tls == ""
    assert (await sent(remote, sts("testing"))).tls == ""


@pytest.mark.parametrize(
    "broken", ["nonsense", "454 not now", "220 go\r\n250 injected"]
)
async def test_broken(remote, broken):
    """TLS that fails: asked again in plain where that is allowed, and nowhere else."""
    if broken == "nonsense":
        remote.tls = None
    else:
        remote.says("STARTTLS", broken)
    for how in (level("encrypt"), level("may", plain_after=False), sts("enforce")):
        await refused(remote, how)
    assert (await sent(remote, level("may"))).tls == ""
    assert remote.sessions[-1].verbs[:2] == ["EHLO", "MAIL"]


async def test_certificates_that_are_not_good(remote, tmp_path):
    """Expired, for another name, of an unknown authority: told apart, and nothing sent."""
    kinds = []

    def told(hop, step, error):
        kinds.append(error and error.kind)

    for server, client, words, kind in [
        (AUTHORITY.server(tmp_path, MX, days=-1), AUTHORITY, "expired", "expired"),
        (
            AUTHORITY.server(tmp_path, "other.example"),
            AUTHORITY,
            "is not for mx.b.example",
            "host-mismatch",
        ),
        (Authority().server(tmp_path, MX), AUTHORITY, "certificate", "not-trusted"),
    ]:
        remote.tls = server
        text = await refused(remote, sts("enforce"), ClientTls(client.pem), told)
        assert words in text
        assert kinds.pop() == f"certificate-{kind}"
    # Tested policies tell, and the mail goes.
    contact = await sent(remote, sts("testing"), told=told)
    assert contact.tls_verified == "no"
    assert kinds == ["certificate-not-trusted", None]


async def test_secure_believes_no_exchanger(remote, tmp_path):
    """The certificate is for the destination or a name in it (a forged MX has none)."""
    assert (
        await sent(remote, level("secure"))
    ).tls_verified == "certificate (settings)"
    remote.messages.clear()
    remote.sessions.clear()
    remote.tls = AUTHORITY.server(tmp_path, "mx.evil.example")
    assert "is not for b.example" in await refused(remote, level("secure"))


async def test_without_authorities(remote):
    """Nobody is trusted when there is nobody to trust."""
    assert "ca_file" in await refused(remote, level("verify"), ClientTls())


def tlsa(certificate, usage=3):
    der = certificate.public_bytes(Encoding.DER)
    return Tlsa(usage, 0, 1, hashlib.sha256(der).digest())


@pytest.mark.parametrize("usage", [2, 3])
async def test_dane(remote, usage, tmp_path):
    """The certificate that DNS names, or one below it; no authority is asked."""
    context = AUTHORITY.server(tmp_path, MX)
    remote.tls = context
    pem = (tmp_path / f"{MX}.30.pem").read_bytes()
    own = x509.load_pem_x509_certificate(pem)
    good = tlsa(own if usage == 3 else AUTHORITY.certificate, usage)
    bad = tlsa(Authority().certificate, usage)
    matching = by_dane([bad, good], MX, MX, "b.example")
    contact = await sent(remote, matching, ClientTls())
    assert contact.tls_verified == "dane"
    remote.messages.clear()
    remote.sessions.clear()
    assert "TLSA" in await refused(remote, by_dane([bad], MX, MX, "b.example"))


async def test_dane_without_usable_records(remote):
    """TLS with nobody to be proven, but never plain (RFC 7672 section 2.2)."""
    how = by_dane([Tlsa(0, 0, 1, bytes(32))], MX, MX, "b.example")
    assert (await sent(remote, how)).tls_verified == "no"
    remote.messages.clear()
    remote.sessions.clear()
    remote.extensions = EXTENSIONS
    await refused(remote, how)


async def test_client_certificate(remote):
    """The host's own is shown to a server that asks for one."""
    own = AUTHORITY.pem_of("alpha.example")
    remote.tls.verify_mode = ssl.CERT_REQUIRED
    remote.tls.load_verify_locations(cadata=AUTHORITY.pem.decode())
    pair = KeyPair(own)
    contact = await sent(remote, level("encrypt"), ClientTls(AUTHORITY.pem, pair))
    assert contact.tls


async def test_silent_in_the_handshake(remote):
    """Nobody waits for ever."""
    remote.replies["STARTTLS"].append("220 go")
    remote.tls = None
    hop = Hop(MX, ipaddress.ip_address(remote.address), tls=level("encrypt"))
    settings = SmtpSettings(port=remote.port, handshake_timeout=0.2)
    with pytest.raises(ConnectionFailed):
        async with asyncio.timeout(20):
            await connect(hop, ALPHA, Loopback(), settings, lambda _: None, ClientTls())
