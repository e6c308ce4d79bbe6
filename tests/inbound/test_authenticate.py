"""The look at a stranger's message, with DNS and a clock of the test's own."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address

import dkim as dkimpy
import pytest

from tests.authentication.messages import ED25519, MESSAGE, NOW, RSA, pem, record
from vnsmail.authentication.questions import Answer, Question
from vnsmail.inbound import bodies
from vnsmail.inbound.authenticate import AuthenticationFacts, Authenticator
from vnsmail.inbound.policy import Client, Examined
from vnsmail.model import Authentication, Envelope, Owner
from vnsmail.queue.body import INCOMING, Body, BodyWriter
from vnsmail.smtp.replies import Reply

HOST = "beta.example"
GOOD, BAD = ip_address("192.0.2.1"), ip_address("192.0.2.66")
ENVELOPE = Envelope("id", Owner(HOST), "ann@alpha.example", ("bob@beta.example",), NOW)
DNS = {
    ("alpha.example", "TXT"): ("v=spf1 ip4:192.0.2.1 -all",),
    ("_dmarc.alpha.example", "TXT"): ("v=DMARC1; p=reject",),
    ("_dmarc.gamma.example", "TXT"): ("v=DMARC1; p=quarantine",),
    ("s._domainkey.alpha.example", "TXT"): (record(RSA),),
    ("e._domainkey.alpha.example", "TXT"): (record(ED25519),),
    ("s._domainkey.lists.example", "TXT"): (record(RSA),),
    (GOOD.reverse_pointer, "PTR"): ("mail.alpha.example",),
    ("mail.alpha.example", "A"): (str(GOOD),),
}


class Names:
    """DNS; ``trouble`` is what it says to everything."""

    def __init__(self):
        self.trouble = ""
        self.hangs = False

    async def __call__(self, question: Question) -> Answer:
        if self.hangs:
            raise TimeoutError
        if self.trouble:
            return Answer(trouble=self.trouble)
        found = DNS.get((question.name, question.record))
        return Answer(exists=False) if found is None else Answer(found)


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as made:
        yield made


@pytest.fixture
def names():
    return Names()


@pytest.fixture
def looker(executor, names, tmp_path):
    (tmp_path / INCOMING).mkdir()
    facts = AuthenticationFacts(
        Owner(HOST),
        HOST,
        frozenset({HOST, "b.example"}),
        Authentication.REJECT,
        frozenset(),
        tmp_path,
    )
    return Authenticator(facts, names, executor, clock=lambda: NOW, chance=lambda: 0.5)


def signed(message=MESSAGE):
    field = dkimpy.sign(
        message, b"s", b"alpha.example", pem(RSA), include_headers=[b"from", b"subject"]
    )
    return field + message


async def looked(looker, message=MESSAGE, address=GOOD, sender="ann@alpha.example"):
    client = Client(address, helo="mail.alpha.example")
    envelope = replace(ENVELOPE, sender=sender)
    return await looker.examine(client, envelope, Body(message), message[:65536])


def field_of(found):
    assert isinstance(found, Examined)
    return " ".join(found.fields.decode().split())


async def test_what_is_from_whom_it_says(looker):
    field = field_of(await looked(looker))

    assert field.startswith("Authentication-Results: beta.example; iprev=pass")
    assert "spf=pass smtp.mailfrom=ann@alpha.example" in field
    assert "dmarc=pass (p=reject dis=none) header.from=alpha.example" in field


async def test_a_signature_is_enough(looker):
    looker._clock = lambda: 4e9
    found = await looked(looker, signed(), BAD, "bounce@lists.example")

    assert "dkim=pass header.d=alpha.example header.s=s" in field_of(found)
    assert "dmarc=pass" in field_of(found)


async def test_what_its_domain_wants_refused_is_refused(looker):
    found = await looked(looker, address=BAD)

    assert isinstance(found, Reply)
    assert (550, "5.7.1") == (found.code, found.enhanced)
    assert "alpha.example" in found.text


async def test_mark_refuses_nothing(looker):
    looker.facts = replace(looker.facts, policy=Authentication.MARK)

    field = field_of(await looked(looker, address=BAD))

    assert "spf=fail" in field
    assert "dmarc=fail (p=reject dis=reject)" in field


async def test_quarantine_marks(looker):
    message = MESSAGE.replace(b"ann@alpha", b"ann@gamma")

    assert "dis=quarantine" in field_of(await looked(looker, message))


@pytest.mark.parametrize(
    "change",
    [
        (b"Subject:", b"no field\r\nSubject:"),
        (b"From:", b"no field\r\nFrom:"),
        (b"From: Ann <ann@alpha.example>", b"From: x@lists.example, ann@alpha.example"),
        (b"From:", b"From: x@lists.example\r\nFrom:"),
        (b"From: Ann <", b'From: "Ann <'),
        (
            b"From:",
            b"".join(b"From: a@d%d.example\r\n" % n for n in range(9)) + b"From:",
        ),
    ],
)
async def test_what_is_odd_is_no_way_around_a_policy(looker, change):
    found = await looked(looker, MESSAGE.replace(*change), BAD)

    assert isinstance(found, Reply)


@pytest.mark.parametrize("hangs", [True, False])
async def test_with_dns_down_nothing_is_refused(looker, names, hangs):
    looker._clock = lambda: 4e9
    names.trouble, names.hangs = "no name server answered", hangs

    field = field_of(await looked(looker, signed(), BAD))

    for method in ("iprev", "spf", "dkim", "dmarc"):
        assert f"{method}=temperror" in field


FORGED = b"Authentication-Results: Beta.Example;\r\n\tdmarc=pass\r\n"
OTHERS = b"Authentication-Results: elsewhere.example; dmarc=pass\r\n"


@pytest.mark.parametrize("policy", Authentication)
async def test_a_forged_field_goes_and_anothers_stays(looker, policy):
    looker.facts = replace(looker.facts, policy=policy)

    found = await looked(looker, OTHERS + FORGED + MESSAGE)

    assert isinstance(found, Examined)
    assert OTHERS + MESSAGE == b"".join(found.body.chunks())
    assert bool(found.fields) == (policy is not Authentication.NONE)


async def test_a_large_body_is_hashed_and_rewritten_in_its_file(looker, tmp_path):
    looker._clock = lambda: 4e9
    text = b"".join(b"%d\r\n" % n**20 for n in range(9000))
    message = signed(MESSAGE + text)
    long_header = b"".join(b"X-Pad: %s\r\n" % (b"x" * 900) for _ in range(100))
    writer = BodyWriter(tmp_path)
    writer.write(long_header + FORGED + message)
    body = writer.finish()
    assert body.file is not None
    front = (long_header + FORGED + message)[:65536]

    found = await looker.examine(Client(BAD), ENVELOPE, body, front)

    assert "dkim=pass" in field_of(found)
    assert long_header + message == b"".join(found.body.chunks())
    assert [found.body.file] == list((tmp_path / INCOMING).iterdir())


async def test_a_header_without_end_is_refused(looker, monkeypatch):
    monkeypatch.setattr(bodies, "MAX_HEADER", 70_000)
    message = b"X-Pad: x\r\n" * 9000 + MESSAGE

    found = await looked(looker, message)

    assert isinstance(found, Reply)
    assert 552 == found.code


async def test_a_trusted_sealer_is_believed_and_no_other(looker):
    looker._clock = lambda: 4e9
    results = b"Authentication-Results: lists.example; dmarc=pass "
    results += b"header.from=alpha.example\r\n"
    fields = dkimpy.arc_sign(
        results + MESSAGE, b"s", b"lists.example", pem(RSA), b"lists.example"
    )
    message = b"".join(fields) + MESSAGE

    assert isinstance(await looked(looker, message, BAD), Reply)
    looker.facts = replace(looker.facts, trusted_sealers=frozenset({"lists.example"}))
    field = field_of(await looked(looker, message, BAD))
    assert "dmarc=fail (p=reject dis=none arc=lists.example)" in field
    assert "arc=pass" in field
    tampered = message.replace(b"Hello", b"Hallo")
    assert isinstance(await looked(looker, tampered, BAD), Reply)
