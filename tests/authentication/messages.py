"""Messages, keys and a table of DNS for the tests of authentication."""

import base64

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import (
    RSAPrivateKey,
    generate_private_key,
)

from vnsmail.authentication.arc import Arc, ArcResult, chain_of, verify_chain
from vnsmail.authentication.dkim import Dkim, hash_body, signatures, verify
from vnsmail.authentication.header_block import HeaderBlock, header_block
from vnsmail.authentication.questions import Answer, Question, drive

Key = RSAPrivateKey | Ed25519PrivateKey

NOW = 1_700_000_000.0
RSA = generate_private_key(65537, 2048)
SMALL_RSA = generate_private_key(65537, 1024)  # noqa: S505  what is still accepted
ED25519 = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))

MESSAGE = (
    b"Received: from a.example by b.example; Thu, 1 Jan 1970 00:00:00 +0000\r\n"
    b"From: Ann <ann@alpha.example>\r\n"
    b"To: bob@beta.example,\r\n\tcarl@gamma.example\r\n"
    b"Subject:  two   blanks \r\n"
    b"Date: Thu, 1 Jan 1970 00:00:00 +0000\r\n"
    b"Message-ID: <1@alpha.example>\r\n"
    b"\r\n"
    b"Hello  \t world \r\n\r\n.dots\r\n \t\r\n\r\n\r\n"
)


def record(key: Key) -> str:
    if isinstance(key, Ed25519PrivateKey):
        raw = key.public_key().public_bytes_raw()
        return f"v=DKIM1; k=ed25519; p={base64.b64encode(raw).decode()}"
    der = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return f"v=DKIM1; k=rsa; p={base64.b64encode(der).decode()}"


def pem(key: Key) -> bytes:
    """A key as dkimpy takes it."""
    if isinstance(key, Ed25519PrivateKey):
        return base64.b64encode(key.private_bytes_raw())
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


class Dns:
    """A table of TXT records that counts what it is asked."""

    def __init__(self, **texts: str) -> None:
        self.texts = {k.replace("__", "."): v for k, v in texts.items()}
        self.asked: list[Question] = []
        self.down = False

    def __call__(self, question: Question) -> Answer:
        self.asked.append(question)
        if self.down:
            return Answer(trouble="no name server answered in time")
        text = self.texts.get(question.name)
        return Answer(exists=False) if text is None else Answer((text,))

    def for_dkimpy(self, name: bytes, timeout: int = 5) -> bytes | None:
        text = self.texts.get(name.decode().rstrip("."))
        return None if text is None else text.encode()


def parts(message: bytes) -> tuple[HeaderBlock, bytes]:
    block = header_block(message, whole=True)
    assert block is not None
    return block, message[block.body_at :]


def verified(message: bytes, dns: Dns, *, now: float = NOW) -> list[Dkim]:
    """All verdicts on a message's signatures."""
    block, body = parts(message)
    bodies = hash_body([body], ["simple", "relaxed"])
    found = signatures(block, ("alpha.example",), now)
    return [drive(verify(block, each, bodies), dns) for each in found]


def chain_verified(message: bytes, dns: Dns) -> Arc:
    block, body = parts(message)
    chain = chain_of(block, NOW)
    if chain is None:
        return Arc(ArcResult.NONE)
    if isinstance(chain, str):
        return Arc(ArcResult.FAIL, chain)
    bodies = hash_body([body], ["simple", "relaxed"])
    return drive(verify_chain(block, chain, bodies), dns)
