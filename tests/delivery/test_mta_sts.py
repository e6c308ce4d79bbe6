"""MTA-STS: records, policies, what is kept, and what it does to hops."""

import asyncio
import ipaddress
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.authentication.questions import Answer
from vnsmail.delivery import fetch
from vnsmail.delivery.fetch import FetchFailed
from vnsmail.delivery.mta_sts import FETCH_AGAIN, REFRESH, PolicyStore
from vnsmail.delivery.route import Hop
from vnsmail.delivery.security import Security, TlsRules
from vnsmail.errors import ResolveError, SourceUnavailable
from vnsmail.model import Outcome, Verdict
from vnsmail.resolve.tlsa import TlsaFound
from vnsmail.settings import DeliverySettings, checked
from vnsmail.tls.dane import Tlsa
from vnsmail.tls.policy import Check
from vnsmail.tls.sts import MAX_AGE, Mode, Policy, PolicyInvalid, parse, policy_id

ENFORCE = "version: STSv1\r\nmode: enforce\r\nmx: *.b.example\r\nmax_age: 604800\r\n"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["v=STSv1; id=20260101;"], "20260101"),
        (["v=spf1 -all", "v=STSv1;id=a"], "a"),
        (["v=STSv1; id=a", "v=STSv1; id=b"], None),
        (["v=STSv1; id=not-one"], None),
        (["v=STSv10; id=a"], None),
        ([], None),
    ],
)
def test_records(texts, expected):
    assert policy_id(texts) == expected


@given(st.text(max_size=300))
def test_any_text(text):
    """Whatever comes is a policy within bounds, or refused."""
    policy_id([text, "v=STSv1;" + text])
    try:
        found = parse("version: STSv1\n" + text)
    except PolicyInvalid:
        return
    assert found.max_age <= MAX_AGE


@pytest.mark.parametrize(
    "text",
    [
        "",
        ENFORCE.replace("STSv1", "STSv2"),
        ENFORCE.replace("enforce", "sometimes"),
        ENFORCE.replace("604800", "-1"),
        ENFORCE.replace("mx: *.b.example\r\n", ""),
        ENFORCE.replace("*.b", "*.*.b"),
        "<html>",
    ],
)
def test_no_policy(text):
    with pytest.raises(PolicyInvalid):
        parse(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("MX.b.example", True), ("b.example", False), ("a.mx.b.example", False)],
)
def test_matching(name, expected):
    """A wildcard stands for one label (section 4.1)."""
    assert parse(ENFORCE).matches(name) is expected


class House:
    def __init__(self, folder):
        self.folder = folder
        self.executor = ThreadPoolExecutor(1)
        self.now = 1_800_000_000.0
        self.record = "v=STSv1; id=1"
        self.text: str | Exception = ENFORCE
        self.fetched = 0
        self.failures = []
        self.store = self.again()

    def again(self):
        self.store = PolicyStore(
            self.folder,
            self.executor,
            self.ask,
            self.fetch,
            lambda *told: self.failures.append(told[1]),
            lambda: self.now,
        )
        return self.store

    async def ask(self, question):
        assert question.name == "_mta-sts.b.example"
        return Answer((self.record,) if self.record else ())

    async def fetch(self, domain):
        self.fetched += 1
        await asyncio.sleep(0)
        if isinstance(self.text, Exception):
            raise self.text
        return self.text

    async def mode(self):
        found = await self.store.policy("b.example")
        return found and str(found.mode)


@pytest.fixture
def house(tmp_path):
    house = House(tmp_path)
    yield house
    house.executor.shutdown()


async def test_kept_and_renewed(house):
    """Fetched once, by many at a time; again with a new id, and after a day."""
    assert await asyncio.gather(*(house.mode() for _ in range(5))) == ["enforce"] * 5
    assert house.fetched == 1
    house.again()
    assert (await house.mode(), house.fetched) == ("enforce", 1)
    house.record, house.text = "v=STSv1; id=2", ENFORCE.replace("enforce", "none")
    assert (await house.mode(), house.fetched) == ("none", 2)
    house.now += REFRESH + 1
    assert (await house.mode(), house.fetched) == ("none", 3)


@pytest.mark.parametrize(
    "trouble",
    [
        FetchFailed("404"),
        FetchFailed("x", "sts-webpki-invalid"),
        "nonsense",
        "no record",
    ],
)
async def test_nobody_takes_a_policy_away(house, trouble):
    """What cannot be had now leaves what is kept, until it is too old."""
    assert await house.mode() == "enforce"
    if trouble == "no record":
        house.record = ""
    else:
        house.record, house.text = "v=STSv1; id=2", trouble
    for _ in range(3):
        assert await house.mode() == "enforce"
    # A fetch that failed is not repeated at once.
    assert house.fetched == (1 if trouble == "no record" else 2)
    house.now += FETCH_AGAIN + 1
    assert await house.mode() == "enforce"
    house.now += 604800
    assert await house.mode() is None


async def test_without_a_source(house):
    """It is fetched from the owner's own address, or the mail waits."""
    house.text = SourceUnavailable("alpha.example", "10.0.0.1", 99)
    with pytest.raises(SourceUnavailable):
        await house.mode()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: https://b.example/\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\nversion: STSv1",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 900\r\n\r\nv",
    ],
)
def test_answers_without_a_policy(answer):
    with pytest.raises(FetchFailed):
        fetch._policy_in(answer)


def test_answer_in_chunks():
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n"
    answer = head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    assert fetch._policy_in(answer) == "abc"


class Dnssec:
    def __init__(self, secure, records):
        self.secure, self.records = secure, records

    async def mx_is_secure(self, domain):
        return self.secure

    async def tlsa(self, name, port, family):
        if isinstance(self.records, Exception):
            raise self.records
        return TlsaFound(self.records, name)


class Policies:
    def __init__(self, policy):
        self.found = policy

    async def policy(self, domain):
        return self.found


def hop(name):
    return Hop(name, ipaddress.ip_address("10.0.0.9"))


MX, OTHER = hop("mx.b.example"), hop("mx.evil.example")
STS = Policy(Mode.ENFORCE, ("mx.b.example",), 86400)
RECORD = (Tlsa(3, 1, 1, bytes(32)),)


async def protected(
    settings=None, dnssec=None, policy=None, hops=(MX, OTHER), relay=""
):
    rules = TlsRules(checked(DeliverySettings, settings or {}), "alpha.example")
    told = []
    security = Security(
        rules, dnssec, Policies(policy), lambda *each: told.append(each)
    )
    return await security.protect("b.example", hops, relay)


def checks(hops):
    return [[str(step.check) for step in hop.tls.steps] for hop in hops]


async def test_enforced_policy_leaves_out_other_servers():
    found = await protected(policy=STS)
    assert [h.name for h in found] == ["mx.b.example"]
    assert checks(found) == [["name"]]
    refused = await protected(policy=STS, hops=(OTHER,))
    assert isinstance(refused, Outcome)
    assert refused.verdict is Verdict.DEFERRED
    assert "not in the MTA-STS policy" in refused.text


async def test_tested_policy_loses_nothing():
    found = await protected(policy=Policy(Mode.TESTING, STS.mx, 86400))
    assert checks(found) == [["name", "any", "plain"], ["any", "plain"]]


async def test_dane_goes_before_mta_sts():
    found = await protected(dnssec=Dnssec(True, RECORD), policy=STS)
    assert checks(found) == [["dane"], ["dane"]]
    assert found[0].tls.steps[0].check is Check.DANE


async def test_insecure_names_have_no_dane():
    found = await protected(dnssec=Dnssec(False, RECORD))
    assert checks(found) == [["any", "plain"]] * 2


async def test_unknown_tlsa_is_no_permission():
    """A server whose records cannot be looked up is not asked (RFC 7672 2.1.2)."""
    trouble = ResolveError("_25._tcp.mx", "TLSA", "SERVFAIL", temporary=True)
    found = await protected(dnssec=Dnssec(True, trouble))
    assert isinstance(found, Outcome)
    assert found.verdict is Verdict.DEFERRED


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"tls": {"policy": "none"}}, ["plain"]),
        ({"tls": {"policy": "encrypt"}}, ["any"]),
        ({"tls": {"plain_after_failure": False}}, ["any"]),
        ({"tls": {"destination": {"b.example": "verify"}}}, ["name"]),
        (
            {
                "tls": {"destination": {"b.example": "verify"}},
                "host": {
                    "alpha.example": {"tls": {"destination": {"b.example": "none"}}}
                },
            },
            ["plain"],
        ),
        ({"host": {"beta.example": {"tls": {"policy": "none"}}}}, ["any", "plain"]),
    ],
)
async def test_settings(settings, expected):
    found = await protected(settings, hops=(MX,))
    assert checks(found) == [expected]


async def test_relay():
    """The policy of a domain is not that of a relay, which has a name of its own."""
    settings = {"tls": {"destination": {"relay.example": "encrypt"}}}
    found = await protected(
        settings, policy=STS, hops=(OTHER,), relay="relay.example:587"
    )
    assert checks(found) == [["any"]]
