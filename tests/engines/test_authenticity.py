"""What one owner's facts make of looking and signing."""

from concurrent.futures import ThreadPoolExecutor

import dkim as dkimpy
import pytest
from cryptography.hazmat.primitives import serialization

from tests.authentication.messages import ED25519, MESSAGE, record
from vnsmail.authentication.questions import Answer
from vnsmail.engines.authenticity import Authenticity
from vnsmail.engines.protocol import DkimKey, OwnerFacts
from vnsmail.queue.body import INCOMING, Body, BodyWriter
from vnsmail.settings import Settings

DER = ED25519.private_bytes(
    serialization.Encoding.DER,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
)
FORGED = b"Authentication-Results: shop.example; dmarc=pass\r\n"


def facts(folder, *keys):
    return OwnerFacts(
        owner="alpha.example",
        name="mx.alpha.example",
        folder=str(folder),
        addresses=("10.77.0.11",),
        domains=("alpha.example", "shop.example"),
        users=("ann",),
        dkim=keys,
    )


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as made:
        yield made


@pytest.fixture
def made(tmp_path, executor):
    async def ask(question):
        return Answer(exists=False)

    (tmp_path / INCOMING).mkdir()
    return Authenticity(facts(tmp_path), Settings(), ask, executor)


async def test_keys_come_with_the_facts_and_go_with_them(made, tmp_path):
    assert MESSAGE == (await made.outgoing(Body(MESSAGE))).head

    made.update(facts(tmp_path, DkimKey("alpha.example", "s", DER)))
    signed = (await made.outgoing(Body(MESSAGE))).head
    assert signed.endswith(MESSAGE)
    assert dkimpy.DKIM(signed).verify(
        dnsfunc=lambda name, timeout=5: record(ED25519).encode()
    )

    made.update(facts(tmp_path))
    assert MESSAGE == (await made.outgoing(Body(MESSAGE))).head


@pytest.mark.parametrize(
    "key", [DkimKey("beta.example", "s", DER), DkimKey("alpha.example", "s", b"junk")]
)
async def test_keys_that_are_not_used(made, tmp_path, key):
    """Of a domain that the owner does not have, and what is no key at all."""
    made.update(facts(tmp_path, key))
    message = MESSAGE.replace(b"ann@alpha", b"ann@beta")

    for text in (MESSAGE, message):
        assert text == (await made.outgoing(Body(text))).head


@pytest.mark.parametrize("size", [0, 400_000])
async def test_what_users_forge_goes(made, tmp_path, size):
    """A field that claims a name of the host is removed from what is sent, too."""
    writer = BodyWriter(tmp_path)
    writer.write(b"Received: by x\r\n" + FORGED + MESSAGE + b"x" * size)
    kept = await made.outgoing(writer.finish())

    assert b"Received: by x\r\n" + MESSAGE + b"x" * size == b"".join(kept.chunks())
    assert (size > 0) == (len(list((tmp_path / INCOMING).iterdir())) == 1)
