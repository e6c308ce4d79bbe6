"""What is done with a message before it is kept, by who brought it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address

import dkim as dkimpy
import pytest
from cryptography.hazmat.primitives import serialization

from tests.authentication.messages import ED25519, MESSAGE, NOW, RSA, record
from vnsmail.authentication.questions import Answer
from vnsmail.inbound.accept import AcceptPolicy
from vnsmail.inbound.authenticate import AuthenticationFacts, Authenticator
from vnsmail.inbound.examination import Examining
from vnsmail.inbound.policy import Client, Examined, HousePolicy, Role
from vnsmail.inbound.signing import Signer, signing_key
from vnsmail.model import Authentication, Envelope, Owner
from vnsmail.queue.body import INCOMING, Body, BodyWriter
from vnsmail.smtp.replies import Reply

HOST = Owner("alpha.example")
ENVELOPE = Envelope("id", HOST, "ann@alpha.example", ("bob@beta.example",), NOW)
FORGED = b"Authentication-Results: alpha.example; dmarc=pass\r\n"
NAMES = {
    "r._domainkey.alpha.example": record(RSA),
    "e._domainkey.alpha.example": record(ED25519),
}


def private(key):
    return key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@dataclass(frozen=True, slots=True)
class Completing(HousePolicy):
    """Adds what was missing, as the rules of submission do."""

    async def examine(self, client, envelope, body, front):
        if b"refuse" in front:
            return Reply(550, ("no",), "5.7.1")
        return Examined(body.prefixed(b"Reply-To: ann@alpha.example\r\n"))


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as made:
        yield made


@pytest.fixture
def examining(executor, tmp_path):
    async def ask(question):
        return Answer(exists=False)

    (tmp_path / INCOMING).mkdir()
    names = frozenset({HOST})
    facts = AuthenticationFacts(
        HOST, HOST, names, Authentication.MARK, frozenset(), tmp_path
    )
    keys = [
        signing_key("alpha.example", name, private(key))
        for name, key in (("r", RSA), ("e", ED25519))
    ]
    return Examining(
        Completing(AcceptPolicy.of(["alpha.example"], ["ann"])),
        Authenticator(facts, ask, executor),
        Signer(HOST, [key for key in keys if key], executor, lambda: NOW),
    )


def lookup(name, timeout=5):
    return NAMES.get(name.decode().rstrip("."), "").encode() or None


@pytest.mark.parametrize(
    "client",
    [
        Client(ip_address("192.0.2.1"), Role.SUBMISSION, user="ann@alpha.example"),
        Client(None, Role.SUBMISSION),
    ],
)
@pytest.mark.parametrize("size", [0, 400_000])
async def test_what_users_send_is_signed_as_it_was_completed(
    examining, client, size, tmp_path
):
    message = FORGED + MESSAGE + b"x" * 70 * (size // 70) + b"\r\n"
    writer = BodyWriter(tmp_path)
    writer.write(message)
    body = writer.finish()
    assert (body.file is not None) == (size > 0)

    found = await examining.examine(client, ENVELOPE, body, message[:65536])

    assert isinstance(found, Examined)
    whole = b"".join(found.body.prefixed(found.fields).chunks())
    assert whole.endswith(message.removeprefix(FORGED))
    assert FORGED not in whole
    assert b"Authentication-Results" not in whole
    for number in range(2):
        assert dkimpy.DKIM(whole).verify(idx=number, dnsfunc=lookup)
    changed = whole.replace(b"Reply-To: ann@", b"Reply-To: eve@")
    assert not dkimpy.DKIM(changed).verify(dnsfunc=lookup)


async def test_what_strangers_bring_is_looked_at_and_not_signed(examining):
    client = Client(ip_address("192.0.2.1"), helo="x.example")

    found = await examining.examine(client, ENVELOPE, Body(FORGED + MESSAGE), MESSAGE)

    assert isinstance(found, Examined)
    assert found.fields.startswith(b"Authentication-Results: alpha.example;\r\n")
    assert b"DKIM-Signature" not in found.fields
    assert b"".join(found.body.chunks()).endswith(MESSAGE)
    assert FORGED not in b"".join(found.body.chunks())


async def test_over_a_unix_socket_nothing_is_looked_at(examining):
    found = await examining.examine(Client(None), ENVELOPE, Body(MESSAGE), MESSAGE)

    assert isinstance(found, Examined)
    assert b"" == found.fields


async def test_what_the_rules_refuse_is_refused(examining):
    client = Client(ip_address("192.0.2.1"))

    assert isinstance(
        await examining.examine(client, ENVELOPE, Body(MESSAGE), b"refuse"), Reply
    )


@pytest.mark.parametrize("author", [b"ann@beta.example", b"", b"ann"])
async def test_nothing_is_signed_for_others(examining, author):
    message = MESSAGE.replace(b"ann@alpha.example", author)

    assert b"" == await examining.signer.fields(Body(message))


async def test_a_header_block_that_is_none_is_not_signed(examining):
    message = MESSAGE.replace(b"Subject:", b"no field\r\nSubject:")

    assert b"" == await examining.signer.fields(Body(message))


def test_a_key_that_is_none():
    assert signing_key("alpha.example", "s", b"junk") is None
