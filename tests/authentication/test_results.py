"""Authentication-Results: what is written, and which fields are forgeries."""

from dataclasses import replace

import authres
import pytest
from hypothesis import given
from hypothesis import strategies as some

from vnsmail.authentication.arc import Arc, ArcResult
from vnsmail.authentication.dkim import Dkim, DkimResult
from vnsmail.authentication.dmarc import Disposition, Dmarc, DmarcResult
from vnsmail.authentication.results import (
    Findings,
    Iprev,
    authentication_results,
    authserv_id,
    cut,
    forged,
    vouches,
)
from vnsmail.authentication.spf import Spf, SpfResult

FOUND = Findings(
    iprev=Iprev("pass", "192.0.2.1", "mail.alpha.example"),
    spf=Spf(SpfResult.PASS, "alpha.example"),
    sender="ann+x@alpha.example",
    dkim=(Dkim(DkimResult.PASS, "", "alpha.example", "s", "rsa-sha256", "ab/+=12x"),),
    dmarc=Dmarc(DmarcResult.PASS, "alpha.example", Disposition.REJECT),
    arc=Arc(ArcResult.NONE),
)


def parsed(field: bytes) -> authres.AuthenticationResultsHeader:
    return authres.AuthenticationResultsHeader.parse(field.decode().replace("\r\n", ""))


def test_another_program_reads_it():
    found = parsed(authentication_results("mx.example", FOUND))

    assert "mx.example" == found.authserv_id
    assert ["iprev", "spf", "dkim", "dmarc", "arc"] == [r.method for r in found.results]
    assert ["pass"] * 4 + ["none"] == [r.result for r in found.results]
    properties = {
        f"{p.type}.{p.name}": p.value for r in found.results for p in r.properties
    }
    assert properties == {
        "policy.iprev": "192.0.2.1",
        "smtp.mailfrom": "ann+x@alpha.example",
        "header.d": "alpha.example",
        "header.s": "s",
        "header.a": "rsa-sha256",
        "header.b": "ab/+=12x",
        "header.from": "alpha.example",
    }


hostile = some.text(max_size=40)


@given(hostile, hostile, hostile, hostile)
def test_nothing_a_stranger_says_becomes_structure(a, b, c, d):
    made = authentication_results(
        "mx.example",
        replace(
            FOUND,
            iprev=Iprev("fail", "2001:db8::1", a),
            spf=Spf(SpfResult.TEMPERROR, b, c),
            sender=f"{a}@{b}",
            dkim=(Dkim(DkimResult.FAIL, c, d, a, b, c),),
            dmarc=Dmarc(DmarcResult.FAIL, d, reason=a),
            overridden=b,
        ),
    )

    assert made.isascii()
    lines = made.split(b"\r\n")
    assert b"" == lines.pop()
    assert all(line.startswith(b"\t") and line.isascii() for line in lines[1:])
    assert b"\r" not in b"".join(lines)
    assert b"\n" not in b"".join(lines)
    found = parsed(made)
    assert ["fail", "temperror", "fail", "fail", "none"] == [
        r.result for r in found.results
    ]


@pytest.mark.parametrize(
    "value",
    [
        b" mx.example; spf=pass",
        b" MX.Example; spf=pass",
        b"mx.example",
        b" mx.example 1; spf=pass",
        b" (a (b) comment) mx.example ; spf=pass",
        b' "mx.example"; spf=pass',
        b' "mx.\\example"; spf=pass',
        b"\r\n\tmx.example; spf=pass",
        b" mx.example.; spf=pass",
        b"\tmx.example/1; spf=pass",
        b" mx(x).example; spf=pass",
    ],
)
@pytest.mark.parametrize(
    "name", [b"Authentication-Results:", b"AUTHENTICATION-RESULTS :"]
)
def test_a_field_that_claims_to_be_ours_is_found(name, value):
    field = name + value + b"\r\n"
    message = (
        b"From: a@b.example\r\nno field at all\r\n" + field + b"To: c\r\n\r\nx\r\n"
    )

    spans = forged(message, {"mx.example"})

    assert message.replace(field, b"") == cut(message, spans)


@pytest.mark.parametrize(
    "field",
    [
        b"Authentication-Results: other.example; spf=pass\r\n",
        b"Authentication-Results: mx.example.org; spf=pass\r\n",
        b"X-Authentication-Results: mx.example; spf=pass\r\n",
        b"ARC-Authentication-Results: i=1; mx.example; spf=pass\r\n",
        b"\r\nAuthentication-Results: mx.example; in the body\r\n",
    ],
)
def test_what_is_not_ours_stays(field):
    assert () == forged(field + b"\r\n", {"mx.example"})


@given(some.binary(max_size=100))
def test_any_message_loses_only_forgeries(data):
    message = data + b"\r\nAuthentication-Results: x; a\r\n\r\n"

    assert len(cut(message, forged(message, {"x"}))) >= len(data)
    assert isinstance(authserv_id(data), str)


@pytest.mark.parametrize(
    ("results", "wanted"),
    [
        ("spf=pass; dmarc=pass header.from=alpha.example", True),
        ("spf=pass; DMARC=pass (p=reject) header.from=Alpha.Example; dkim=none", True),
        ("dmarc=fail header.from=alpha.example", False),
        ("dmarc=pass header.from=other.example", False),
        ('spf=pass reason="; dmarc=pass header.from=alpha.example"', False),
        ("spf=pass (; dmarc=pass header.from=alpha.example)", False),
        ("dmarc=pass", False),
    ],
)
def test_who_vouches_for_the_author(results, wanted):
    assert vouches(results, "alpha.example") is wanted
