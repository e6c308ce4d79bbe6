"""DMARC: alignment, discovery, policies, and which domains are the author's."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from tests.authentication.messages import Dns
from vnsmail.authentication.author import author_domains
from vnsmail.authentication.dkim import Dkim, DkimResult
from vnsmail.authentication.dmarc import (
    Disposition,
    Dmarc,
    DmarcResult,
    evaluate,
    parse_policy,
    strictest,
)
from vnsmail.authentication.header_block import header_block
from vnsmail.authentication.questions import drive
from vnsmail.authentication.spf import Spf, SpfResult

SPF_PASS = Spf(SpfResult.PASS, "bounce.alpha.example")
SPF_NONE = Spf(SpfResult.NONE, "other.example")


def organizational(domain: str) -> str:
    return ".".join(domain.split(".")[-2:])


def judged(
    domain="alpha.example", spf=SPF_NONE, dkim=(), record="p=reject", chance=0.0
):
    names = Dns()
    names.texts = {"_dmarc.alpha.example": f"v=DMARC1; {record}"}
    found = evaluate(domain, spf, dkim, organizational, chance)
    return drive(found, names)


def signed(domain, result=DkimResult.PASS):
    return Dkim(result, domain=domain)


@pytest.mark.parametrize(
    ("spf", "dkim", "record", "wanted"),
    [
        (SPF_PASS, (), "p=reject", "pass"),
        (SPF_PASS, (), "p=reject; aspf=s", "fail"),
        (SPF_NONE, (signed("alpha.example"),), "p=reject; adkim=s", "pass"),
        (SPF_NONE, (signed("news.alpha.example"),), "p=reject", "pass"),
        (SPF_NONE, (signed("news.alpha.example"),), "p=reject; adkim=s", "fail"),
        (SPF_NONE, (signed("evil.example"),), "p=reject", "fail"),
        (SPF_NONE, (signed("alpha.example.evil.test"),), "p=reject", "fail"),
        (SPF_NONE, (signed("alpha.example", DkimResult.POLICY),), "p=reject", "fail"),
        (
            SPF_NONE,
            (signed("alpha.example", DkimResult.TEMPERROR),),
            "p=reject",
            "temperror",
        ),
        (Spf(SpfResult.TEMPERROR, "alpha.example"), (), "p=reject", "temperror"),
        (Spf(SpfResult.TEMPERROR, "evil.example"), (), "p=reject", "fail"),
        (Spf(SpfResult.SOFTFAIL, "alpha.example"), (), "p=reject", "fail"),
    ],
)
def test_alignment(spf, dkim, record, wanted):
    assert wanted == judged(spf=spf, dkim=dkim, record=record).result


@pytest.mark.parametrize(
    ("domain", "record", "chance", "wanted"),
    [
        ("alpha.example", "p=reject", 0.99, Disposition.REJECT),
        ("alpha.example", "p=quarantine", 0.0, Disposition.QUARANTINE),
        ("alpha.example", "p=none", 0.0, Disposition.NONE),
        ("a.alpha.example", "p=none; sp=reject", 0.0, Disposition.REJECT),
        ("a.alpha.example", "p=reject", 0.0, Disposition.REJECT),
        ("alpha.example", "p=reject; pct=20", 0.1, Disposition.REJECT),
        ("alpha.example", "p=reject; pct=20", 0.5, Disposition.QUARANTINE),
        ("alpha.example", "p=quarantine; pct=20", 0.5, Disposition.NONE),
        ("alpha.example", "p=reject; pct=0", 0.0, Disposition.QUARANTINE),
        ("alpha.example", "p=odd; rua=mailto:a@b.example", 0.0, Disposition.NONE),
    ],
)
def test_what_the_domain_wants(domain, record, chance, wanted):
    found = judged(domain, record=record, chance=chance)

    assert (DmarcResult.FAIL, wanted) == (found.result, found.disposition)


@pytest.mark.parametrize("record", ["p=odd", "q=1", "p=reject; p=none", "", "p=a b;;c"])
def test_records_that_are_none(record):
    assert judged(record=record).result is DmarcResult.NONE


def test_dns_is_down():
    names = Dns()
    names.down = True
    found = drive(evaluate("a.example", SPF_NONE, (), organizational, 0), names)

    assert (DmarcResult.TEMPERROR, Disposition.NONE) == (
        found.result,
        found.disposition,
    )


def test_the_strictest_of_those_that_fail_is_followed():
    fine = Dmarc(DmarcResult.PASS, "a.example", Disposition.REJECT)
    bad = Dmarc(DmarcResult.FAIL, "b.example", Disposition.REJECT, Disposition.REJECT)
    mild = Dmarc(DmarcResult.FAIL, "c.example")

    assert strictest([fine, mild, bad]) is bad
    assert strictest([fine, mild]) is mild
    assert strictest([]).result is DmarcResult.PERMERROR


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("ann@alpha.example", ["alpha.example"]),
        ("Ann <ann@Alpha.Example.>", ["alpha.example"]),
        ('"x@evil.example" <ann@alpha.example>', ["alpha.example"]),
        ('"a, b" <ann@alpha.example>', ["alpha.example"]),
        ("(x@evil.example) ann@alpha.example (c (d) e)", ["alpha.example"]),
        ("ann@alpha.example,\r\n bob@beta.example", ["alpha.example", "beta.example"]),
        (
            "group: a@alpha.example, <b@beta.example>;",
            ["alpha.example", "beta.example"],
        ),
        ("<a@alpha.example> <b@beta.example>", ["alpha.example", "beta.example"]),
        ('"a@b"@alpha.example', ["alpha.example"]),
        (
            "<@route.example,@x.example:a@alpha.example>",
            ["route.example", "alpha.example"],
        ),
        ('"open <ann@alpha.example', ["alpha.example"]),
        ("(open ann@alpha.example", ["alpha.example"]),
        ("ann@alpha.example odd", ["alpha.example"]),
        ("ann@b\u00fccher.example", ["xn--bcher-kva.example"]),
        ("ann@[192.0.2.1]", []),
        ("undisclosed", []),
    ],
)
def test_domains_of_the_author(value, wanted):
    block = header_block(f"From: {value}\r\n\r\n".encode())
    assert block is not None

    assert set(wanted) <= set(author_domains(block))
    assert not {"evil.example"} & set(author_domains(block))


def test_two_from_fields_have_two_authors():
    block = header_block(b"From: a@alpha.example\r\nFrom: b@beta.example\r\n\r\n")
    assert block is not None

    assert ("alpha.example", "beta.example") == author_domains(block)


@given(some.text(max_size=80))
def test_any_author(text):
    value = text.replace("\r", "").replace("\n", "").encode("utf-8", "replace")
    block = header_block(b"From: " + value + b"\r\n\r\n")
    if block is not None:
        author_domains(block)


@given(some.text(max_size=80))
def test_any_policy(text):
    found = parse_policy(f"v=DMARC1; {text}")

    assert found is None or 0 <= found.percent <= 100
