"""ARC against dkimpy, which seals what is verified here."""

import dkim as dkimpy
import pytest
from hypothesis import given
from hypothesis import strategies as some

from tests.authentication.messages import (
    MESSAGE,
    NOW,
    RSA,
    Dns,
    chain_verified,
    pem,
    record,
)
from vnsmail.authentication.arc import ArcResult

RESULTS = (
    b"Authentication-Results: lists.example; spf=pass smtp.mailfrom=x.example;\r\n"
)


def dns() -> Dns:
    found = Dns()
    found.texts = {
        f"s._domainkey.{d}": record(RSA) for d in ("one.example", "two.example")
    }
    return found


def sealed(message: bytes, domain: bytes) -> bytes:
    results = RESULTS + b"\tdmarc=pass header.from=alpha.example"
    results += b";\r\n\tarc=pass\r\n" if b"ARC-Seal" in message else b"\r\n"
    message = results + message
    fields = dkimpy.arc_sign(
        message,
        b"s",
        domain,
        pem(RSA),
        b"lists.example",
        include_headers=[b"from", b"subject", b"date"],
        timestamp=int(NOW),
    )
    return b"".join(fields) + message


ONE = sealed(MESSAGE, b"one.example")
TWO = sealed(ONE, b"two.example")


def test_a_chain_that_holds_tells_who_sealed_and_what_they_found():
    found = chain_verified(TWO, dns())

    assert found.result is ArcResult.PASS, found.reason
    assert ["two.example", "one.example"] == [each.domain for each in found.sealed]
    assert "dmarc=pass header.from=alpha.example" in found.sealed[1].results


def test_no_chain():
    assert chain_verified(MESSAGE, dns()).result is ArcResult.NONE


def without(message: bytes, start: bytes) -> bytes:
    at = message.index(start)
    end = at
    while True:
        end = message.index(b"\r\n", end) + 2
        if message[end : end + 1] not in b" \t":
            return message[:at] + message[end:]


@pytest.mark.parametrize(
    "broken",
    [
        TWO.replace(b"Hello", b"Hallo"),
        TWO.replace(b"Subject:", b"Subject: another "),
        TWO.replace(b"cv=pass", b"cv=none"),
        TWO.replace(b"cv=none", b"cv=fail"),
        TWO.replace(b"dmarc=pass", b"dmarc=fail", 2),
        TWO.replace(b"i=2", b"i=3"),
        TWO.replace(b"i=2", b"i=51"),
        TWO.replace(b"i=1", b"i=x"),
        TWO.replace(b"d=two.example", b"d=one.example"),
        without(TWO, b"ARC-Seal"),
        without(TWO, b"ARC-Message-Signature"),
        without(TWO, b"ARC-Authentication-Results"),
        b"ARC-Seal: i=1; cv=none\r\n" + TWO,
        b"".join(b"ARC-Seal: i=%d; cv=none\r\n" % n for n in range(3, 60)) + TWO,
    ],
)
def test_a_chain_that_is_not_whole_fails(broken):
    found = chain_verified(broken, dns())

    assert found.result is ArcResult.FAIL
    assert () == found.sealed


def test_dns_is_down():
    names = dns()
    names.down = True

    assert chain_verified(TWO, names).result is ArcResult.TEMPERROR


@given(some.binary(max_size=120))
def test_any_seal_has_a_verdict(junk):
    field = b"ARC-Seal: i=3; " + junk.replace(b"\r", b"").replace(b"\n", b"") + b"\r\n"

    assert chain_verified(field + TWO, dns()).result is ArcResult.FAIL
