"""TLS below the session: handshakes with real clients over a socket pair."""

import asyncio
import contextlib
import ssl
from dataclasses import replace

import pytest

from tests.inbound.helpers import GREETING, HELLO_TLS, TlsClient
from vnsmail.inbound.policy import HousePolicy
from vnsmail.inbound.shared import Door
from vnsmail.inbound.tls import (
    CertificateUnusable,
    Credentials,
    KeyPair,
    TlsFailed,
    TlsLayer,
    server_context,
)
from vnsmail.model import Role
from vnsmail.supervisor.x509 import self_signed

NOW = 1_800_000_000.0
ALPHA = self_signed(["alpha.example"], NOW)
BETA = self_signed(["beta.example", "*.wild.example"], NOW)
HIDDEN = Door(Role.SUBMISSION, implicit_tls=True)


def context_of(*pairs: KeyPair) -> ssl.SSLContext:
    context = server_context(pairs)
    assert context is not None
    return context


def both(layer, client, incoming, outgoing):
    """Shake hands in memory."""
    for _ in range(10):
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        layer.receive(outgoing.read())
        incoming.write(layer.outgoing())
        if layer.established and client.version():
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
            return


def client_context(**changes):
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for name, value in changes.items():
        setattr(context, name, value)
    return context


def shaken(context, name=None, **changes):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(**changes).wrap_bio(
        incoming, outgoing, server_hostname=name
    )
    layer = TlsLayer(context)
    both(layer, client, incoming, outgoing)
    return layer, client, incoming, outgoing


def shown(context, name):
    _, client, *_ = shaken(context, name)
    return ssl.DER_cert_to_PEM_cert(client.getpeercert(binary_form=True)).encode()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, ALPHA),
        ("alpha.example", ALPHA),
        ("other.example", ALPHA),
        ("beta.example", BETA),
        ("BETA.example", BETA),
        ("x.wild.example", BETA),
        ("x.y.wild.example", ALPHA),
    ],
)
def test_certificate_by_name(name, expected):
    """Who asks for a name gets its certificate, all others the first (RFC 6066)."""
    context = context_of(
        KeyPair(ALPHA), KeyPair(BETA, ("beta.example", "*.wild.example"))
    )

    assert expected.startswith(shown(context, name))


def test_no_certificate():
    assert server_context([]) is None


@pytest.mark.parametrize(
    "pem", [b"", b"nonsense", ALPHA[: ALPHA.index(b"-----BEGIN PRIV")], BETA[-250:]]
)
def test_unusable_certificate(pem):
    """One line, and no question to a terminal; nobody is served with nothing."""
    with pytest.raises(CertificateUnusable) as caught:
        server_context([KeyPair(pem)])
    assert "\n" not in str(caught.value)
    assert Credentials([KeyPair(pem)]).context is None


def test_keys_do_not_show():
    assert "PRIVATE" not in repr(KeyPair(ALPHA))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_versions():
    """1.3 and 1.2 with forward secrecy; nothing older (RFC 9325)."""
    context = context_of(KeyPair(ALPHA))
    layer, *_ = shaken(context)
    assert layer.version == "TLSv1.3"
    layer, *_ = shaken(context, maximum_version=ssl.TLSVersion.TLSv1_2)
    assert (layer.version, layer.cipher[:5]) == ("TLSv1.2", "ECDHE")
    old = client_context()
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = old.wrap_bio(incoming, outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    with pytest.raises(TlsFailed):
        TlsLayer(context).receive(outgoing.read())


def test_weak_ciphers_are_refused():
    """No CBC, no key exchange without forward secrecy."""
    context = context_of(KeyPair(ALPHA))
    weak = client_context(maximum_version=ssl.TLSVersion.TLSv1_2)
    weak.set_ciphers("ECDHE-ECDSA-AES128-SHA:AES128-SHA")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = weak.wrap_bio(incoming, outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    with pytest.raises(TlsFailed):
        TlsLayer(context).receive(outgoing.read())


def test_bytes_in_any_pieces():
    """What is said within does not depend on how the records are cut."""
    layer, client, _, outgoing = shaken(context_of(KeyPair(ALPHA)))
    client.write(b"x" * 40_000)
    client.write(b"end")
    data = outgoing.read()
    said = b"".join(layer.receive(data[at : at + 7]) for at in range(0, len(data), 7))

    assert said == b"x" * 40_000 + b"end"
    with contextlib.suppress(ssl.SSLWantReadError):
        client.unwrap()
    assert layer.receive(outgoing.read()) == b""
    assert layer.ended


def test_no_tls():
    layer = TlsLayer(context_of(KeyPair(ALPHA)))
    with pytest.raises(TlsFailed):
        layer.receive(b"EHLO b.example\r\n" * 4)


# In a session --------------------------------------------------------------------------


@pytest.fixture
def tls_house(houses):
    return houses(tls=Credentials([KeyPair(ALPHA)]))


async def upgraded(house):
    client = await house.greeted()
    await client.ask("EHLO b.example")
    assert await client.ask("STARTTLS") == b"220 2.0.0 begin TLS\r\n"
    secure = TlsClient(client, client_context())
    await secure.shake_hands()
    return secure


async def test_starttls(tls_house):
    """A message by STARTTLS says so in its trace header (RFC 3848)."""
    secure = await upgraded(tls_house)
    await secure.say(HELLO_TLS + b"Subject: x\r\n\r\nx\r\n.\r\nQUIT\r\n")
    said = await secure.rest()

    assert b"STARTTLS" not in said
    assert b"queued as" in said
    assert said.endswith(b"221 2.0.0 alpha.example closing\r\n")
    assert b" with ESMTPS (TLSv1.3, " in tls_house.kept.messages[0]


async def test_injected_plaintext(tls_house):
    """What stands behind STARTTLS is never heard, in the clear or within TLS."""
    client = await tls_house.greeted()
    await client.say(b"EHLO b\r\nSTARTTLS\r\nMAIL FROM:<eve@e.example>\r\n")
    said = await client.rest()

    assert said.endswith(b"554 5.5.1 nothing may follow STARTTLS but TLS\r\n")
    assert b"220 2.0.0" not in said


async def test_plaintext_in_the_handshake(tls_house):
    """A client that goes on in the clear is cut off."""
    client, receiver = await tls_house.connect()
    await client.hear(GREETING)
    await client.ask("EHLO b")
    await client.ask("STARTTLS")
    await client.say(b"MAIL FROM:<eve@e.example>\r\n" * 3)
    await receiver.gone

    assert b"250" not in await client.rest()


async def test_implicit_tls(tls_house):
    """The handshake comes before the greeting, and there is no STARTTLS (RFC 8314)."""
    client, _ = await tls_house.connect(door=HIDDEN)
    secure = TlsClient(client, client_context())
    await secure.shake_hands()
    assert await secure.hear(b"\r\n") == GREETING
    await secure.say(b"EHLO b\r\nMAIL FROM:<>\r\nQUIT\r\n")
    said = await secure.rest()

    assert b"STARTTLS" not in said
    assert b"530 5.7.0 sign in first" in said


async def test_implicit_tls_without_a_certificate(houses):
    """Never in the clear where the client believes otherwise."""
    client, receiver = await houses().connect(door=HIDDEN)
    await receiver.gone
    assert await client.rest() == b""


@pytest.mark.parametrize("door", [Door(), HIDDEN])
async def test_handshake_that_never_comes(houses, door):
    """It has a deadline of its own."""
    house = houses(tls=Credentials([KeyPair(ALPHA)]), handshake_timeout=0.05)
    client, receiver = await house.connect(door=door)
    if not door.implicit_tls:
        await client.hear(GREETING)
        await client.ask("EHLO b")
        await client.ask("STARTTLS")
    await receiver.gone
    assert house.shared.admission.sessions == 0


async def test_certificate_taken_away(tls_house):
    """Between EHLO and STARTTLS: the session goes on as it is."""
    client = await tls_house.greeted()
    await client.ask("EHLO b")
    tls_house.shared.facts = replace(tls_house.shared.facts, tls=None)

    assert (await client.ask("STARTTLS")).startswith(b"454 4.7.0 ")
    assert (await client.ask("NOOP")).startswith(b"250 ")


async def test_renewal_breaks_no_session(tls_house):
    """Who is here keeps the certificate; who comes gets the new one."""
    secure = await upgraded(tls_house)
    renewed = Credentials([KeyPair(BETA)])
    tls_house.shared.facts = replace(tls_house.shared.facts, tls=renewed)
    later = await upgraded(tls_house)
    await secure.say(b"NOOP\r\n")

    assert (await secure.hear(b"\r\n")).startswith(b"250 ")
    assert secure.certificate != later.certificate


async def test_large_message(tls_house):
    """Pressure and order are as without TLS."""
    secure = await upgraded(tls_house)
    body = b"large line of text\r\n" * 50_000
    sending = asyncio.ensure_future(secure.say(HELLO_TLS + body + b".\r\nQUIT\r\n"))
    said = await secure.rest()
    await sending

    assert b"queued as" in said
    assert tls_house.kept.bodies == [body]


async def test_shutdown_in_the_handshake(tls_house):
    client, receiver = await tls_house.connect(door=HIDDEN)
    receiver.shutdown()
    await receiver.gone
    assert await client.rest() == b""


async def test_hung_up_in_the_handshake(tls_house):
    client, receiver = await tls_house.connect(door=HIDDEN)
    client.hang_up()
    await receiver.gone


def test_default_rules_let_nobody_sign_in(tls_house):
    assert isinstance(tls_house.shared.facts.asked, HousePolicy)
    assert tls_house.shared.facts.asked.mechanisms == ()
