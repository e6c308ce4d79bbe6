"""DKIM against dkimpy, in both directions, and against what attackers send."""

import base64
import hashlib
import itertools

import dkim as dkimpy
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from hypothesis import given, settings
from hypothesis import strategies as some

from tests.authentication.messages import (
    ED25519,
    MESSAGE,
    NOW,
    RSA,
    SMALL_RSA,
    Dns,
    parts,
    pem,
    record,
    verified,
)
from vnsmail.authentication.canonical import BodyHash
from vnsmail.authentication.dkim import DkimResult, hash_body
from vnsmail.authentication.header_block import header_block
from vnsmail.authentication.sign import SigningKey, keys_for, sign
from vnsmail.authentication.tags import parse_tags

SELECTORS: dict[str, RSAPrivateKey | Ed25519PrivateKey] = {
    "r": RSA,
    "e": ED25519,
    "s": SMALL_RSA,
}
FORMS = [(h, b) for h in (b"simple", b"relaxed") for b in (b"simple", b"relaxed")]


def dns() -> Dns:
    found = Dns()
    found.texts = {
        f"{name}._domainkey.alpha.example": record(key)
        for name, key in SELECTORS.items()
    }
    return found


def by_dkimpy(message=MESSAGE, selector="r", forms=(b"relaxed", b"relaxed"), **more):
    key = SELECTORS[selector]
    algorithm = b"ed25519-sha256" if selector == "e" else b"rsa-sha256"
    field = dkimpy.sign(
        message,
        selector.encode(),
        b"alpha.example",
        pem(key),
        canonicalize=forms,
        signature_algorithm=algorithm,
        include_headers=[b"from", b"to", b"subject", b"date"],
        **more,
    )
    return field + message


def by_us(message=MESSAGE, keys=None):
    block, body = parts(message)
    keys = keys or [SigningKey("alpha.example", n, k) for n, k in SELECTORS.items()]
    digest = hash_body([body], ["relaxed"])["relaxed"].digest
    return sign(block, digest, keys_for(block, keys), NOW) + message


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("forms", FORMS)
def test_what_dkimpy_signs_is_verified(selector, forms):
    (found,) = verified(by_dkimpy(selector=selector, forms=forms), dns(), now=4e9)

    assert found.result is DkimResult.PASS, found.reason
    assert (found.domain, found.selector) == ("alpha.example", selector)


@pytest.mark.parametrize("selector", SELECTORS)
def test_what_we_sign_is_verified_by_dkimpy_and_by_us(selector):
    signed = by_us(keys=[SigningKey("alpha.example", selector, SELECTORS[selector])])

    assert dkimpy.DKIM(signed).verify(dnsfunc=dns().for_dkimpy)
    assert [DkimResult.PASS] == [each.result for each in verified(signed, dns())]
    assert all(len(line) <= 78 for line in signed.split(b"\r\n")[:-1])


def test_one_signature_a_key():
    assert 3 == sum(each.result == "pass" for each in verified(by_us(), dns()))


@pytest.mark.parametrize(
    "change",
    [
        (b"Subject:", b"subject: another\r\nSubject:"),
        (b"Subject:", b"Reply-To: mallory@evil.example\r\nSubject:"),
        (b"From: Ann", b"From: mallory@evil.example\r\nFrom: Ann"),
        (b"two", b"three"),
        (b"world", b"moon"),
        (b"\r\n\r\n\r\n", b"\r\n\r\nmore\r\n"),
        (b"Message-ID: <1", b"Message-ID: <2"),
        (b"Subject:", b"Content-Type: text/html\r\nSubject:"),
    ],
)
def test_a_change_that_a_reader_sees_is_found(change):
    changed = by_us().replace(*change)

    assert all(each.result is DkimResult.FAIL for each in verified(changed, dns()))


@pytest.mark.parametrize(
    "change",
    [
        (b"two   blanks ", b"two blanks"),
        (b"Hello  \t world ", b"Hello world\t"),
        (b"\r\n\r\n\r\n", b"\r\n"),
        (b"Received:", b"Received: by c.example\r\nReceived:"),
    ],
)
def test_what_hosts_on_the_way_do_is_no_change(change):
    changed = by_us().replace(*change)

    assert all(each.result is DkimResult.PASS for each in verified(changed, dns()))


def test_nobody_signs_for_a_domain_it_does_not_have():
    block, _ = parts(MESSAGE.replace(b"ann@alpha", b"ann@other"))

    assert () == keys_for(block, [SigningKey("alpha.example", "r", RSA)])


def test_a_subdomain_is_signed_by_the_domain_above():
    block, _ = parts(MESSAGE.replace(b"ann@alpha", b"ann@news.alpha"))
    keys = [SigningKey("alpha.example", "r", RSA), SigningKey("example", "x", RSA)]

    assert (keys[0],) == keys_for(block, keys)


def changed_tag(message: bytes, name: bytes, value: bytes) -> bytes:
    field, rest = message.split(b"Received:", 1)
    return field.replace(name, value) + b"Received:" + rest


@pytest.mark.parametrize(
    ("change", "result", "reason"),
    [
        ((b"v=1", b"v=2"), "permerror", "version"),
        ((b"a=rsa-sha256", b"a=rsa-sha1"), "policy", "SHA-1"),
        ((b"a=rsa-sha256", b"a=rsa-md5"), "permerror", "algorithm"),
        ((b"d=alpha.example", b"d=com"), "permerror", "name"),
        ((b"q=dns/txt", b"q=http"), "permerror", "q="),
        ((b"; t=", b"; x=5; t="), "permerror", "expired"),
        ((b"; t=", b"; l=99999; t="), "fail", "shorter"),
        ((b"; t=", b"; l=3; t="), "policy", "not signed"),
        ((b"; t=", b"; l=x; t="), "permerror", "l="),
        ((b" i=@alpha.example", b" i=@evil.example"), "permerror", "i="),
        ((b"; t=", b"; c=odd; t="), "permerror", "list of tags"),
        ((b"; t=", b"; t=4; t="), "permerror", "list of tags"),
        ((b"s=r", b"s=gone"), "permerror", "no key"),
        ((b"h=from", b"h=x-from"), "permerror", "From"),
    ],
)
def test_tags_that_are_not_as_they_should_be(change, result, reason):
    message = changed_tag(by_dkimpy(), *change)

    (found,) = verified(message, dns(), now=4e9)

    assert result == found.result
    assert reason in found.reason


def test_from_the_future():
    (found,) = verified(
        by_us(keys=[SigningKey("alpha.example", "r", RSA)]), dns(), now=9
    )

    assert "future" in found.reason


@pytest.mark.parametrize(
    ("text", "result", "reason"),
    [
        ("v=DKIM1; p=", "permerror", "revoked"),
        ("v=DKIM2; p=AAAA", "permerror", "well formed"),
        ("p=!", "permerror", "well formed"),
        ("garbage", "permerror", "well formed"),
        ("v=DKIM1; k=ed25519; p=AAAA", "permerror", "not for mail"),
        ("v=DKIM1; s=tlsrpt; p=AAAA", "permerror", "not for mail"),
        ("v=DKIM1; h=sha1; p=AAAA", "permerror", "not for mail"),
        ("v=DKIM1; p=" + "A" * 9000, "policy", "bits"),
    ],
)
def test_key_records(text, result, reason):
    names = dns()
    names.texts["r._domainkey.alpha.example"] = text

    (found,) = verified(by_dkimpy(), names, now=4e9)

    assert result == found.result
    assert reason in found.reason


def test_dns_is_down():
    names = dns()
    names.down = True

    (found,) = verified(by_dkimpy(), names, now=4e9)

    assert found.result is DkimResult.TEMPERROR


def test_many_signatures_cost_little_and_those_of_the_author_count():
    flood = b"".join(
        b"DKIM-Signature: v=1; a=rsa-sha256; d=evil.example; s=%d; h=from; bh=AAAA; "
        b"b=AAAA\r\n" % n
        for n in range(40)
    )
    names = dns()

    found = verified(flood + by_us(), names)

    assert 10 == len(found) == len(names.asked)
    assert 3 == sum(each.result is DkimResult.PASS for each in found)


# Bodies -------------------------------------------------------------------------------

bodies = some.lists(
    some.sampled_from([b"a", b"\r\n", b" ", b"\t", b"\r", b"\n", b"b  c", b"\r\n\r\n"]),
    max_size=40,
).map(b"".join)


@given(bodies, some.lists(some.integers(0, 60), max_size=6))
def test_any_cut_gives_the_same_hash(body, cuts):
    whole = hash_body([body], ["simple", "relaxed"])
    at = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    pieces = [body[a:b] for a, b in itertools.pairwise(at)]

    assert whole == hash_body(pieces, ["simple", "relaxed"])


lines = some.lists(some.text("ab \t", max_size=6), max_size=12)


@given(lines)
def test_bodies_are_as_the_rfc_has_them(lines):
    body = "".join(f"{line}\r\n" for line in lines).encode()
    simple = "".join(f"{line}\r\n" for line in lines)
    while simple.endswith("\r\n"):
        simple = simple[:-2]
    kept = [" ".join(("x" + line.replace("\t", " ") + "x").split())[1:-1].rstrip()
            if line.strip() else "" for line in lines]  # fmt: skip
    while kept and not kept[-1]:
        kept.pop()
    relaxed = "".join(f"{line}\r\n" for line in kept)

    assert hash_body([body], ["simple"])["simple"].digest == sha(f"{simple}\r\n")
    assert hash_body([body], ["relaxed"])["relaxed"].digest == sha(relaxed)


def sha(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def test_hostile_white_space_takes_linear_time():
    """With a pattern that tries again this would take hours."""
    hashing = BodyHash("relaxed")
    for _ in range(40):
        hashing.update(b" " * 65536)
        hashing.update(b"\r\n" * 32768)
    hashing.finish()
    field = b"DKIM-Signature:" + b" \t" * 100_000 + b"b=;" + b" " * 100_000 + b"\r\n"

    (found,) = verified(field + MESSAGE, dns())

    assert found.result is DkimResult.PERMERROR


@given(some.binary(max_size=200))
def test_any_field_has_a_verdict(junk):
    field = b"DKIM-Signature: v=1; a=rsa-sha256; " + junk.replace(b"\n", b"") + b"\r\n"
    if header_block(field + MESSAGE, whole=True) is not None:
        for found in verified(field + MESSAGE, dns()):
            assert found.result is not DkimResult.PASS


@given(some.text(max_size=60))
def test_any_tags(text):
    found = parse_tags(text)

    assert found is None or all("=" not in name for name in found)


@given(bodies, some.sampled_from(sorted(SELECTORS)))
@settings(max_examples=30, deadline=None)
def test_any_body_is_signed_as_dkimpy_verifies(body, selector):
    message = MESSAGE.split(b"\r\n\r\n")[0] + b"\r\n\r\n"
    message += body.replace(b"\r", b"").replace(b"\n", b"\r\n") + b"\r\n"
    signed = by_us(
        message, [SigningKey("alpha.example", selector, SELECTORS[selector])]
    )

    assert dkimpy.DKIM(signed).verify(dnsfunc=dns().for_dkimpy)
    assert [DkimResult.PASS] == [each.result for each in verified(signed, dns())]


def test_base64_of_a_signature_is_short_in_results():
    (found,) = verified(by_us(keys=[SigningKey("alpha.example", "r", RSA)]), dns())

    assert len(found.short) == 8
    assert base64.b64decode(found.short)
