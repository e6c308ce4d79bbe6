"""What a sender wants of TLS, and which servers may be asked then (RFC 8689)."""

import asyncio

import pytest

from vnsmail.delivery.route import Hop
from vnsmail.delivery.security import Security, TlsRules
from vnsmail.model import Family, TlsWish, Verdict, ip_address
from vnsmail.resolve.tlsa import TlsaFound
from vnsmail.sasl.client import Login
from vnsmail.settings import DeliverySettings, checked
from vnsmail.tls.policy import Check, Level
from vnsmail.tls.sts import Mode, Policy

DOMAIN = "north.example"
HOPS = (Hop("mx1.north.example", ip_address("192.0.2.1")),)
LOGIN = Login("ann", "secret")


class Zone:
    """DNSSEC for all, or for nothing; no TLSA records."""

    def __init__(self, *, secure):
        self.secure = secure

    async def mx_is_secure(self, domain: str) -> bool:
        return bool(self.secure)

    async def tlsa(self, name: str, port: int, family: Family) -> TlsaFound:
        return TlsaFound((), name)


class Policies:
    def __init__(self, policy):
        self._policy = policy

    async def policy(self, domain: str) -> Policy | None:
        found: Policy | None = self._policy
        return found


def protect(wish, *, settings=None, secure=False, policy=None, relay="", hops=HOPS):
    rules = TlsRules(checked(DeliverySettings, settings or {}), "alpha.example")
    security = Security(rules, Zone(secure=secure), Policies(policy))
    return asyncio.run(security.protect(DOMAIN, hops, relay, wish))


def steps_of(found):
    return [step.check for hop in found for step in hop.tls.steps]


ENFORCED = Policy(Mode.ENFORCE, ("mx1.north.example",), 86400)


@pytest.mark.parametrize(
    "given",
    [
        {"secure": True},
        {"policy": ENFORCED},
        {"relay": "mx1.north.example:587"},
        {"settings": {"tls": {"policy": "secure"}}},
    ],
    ids=str,
)
def test_required_of_a_server_that_is_vouched_for(given):
    """Its certificate is looked at, and there is no other way to it."""
    assert steps_of(protect(TlsWish.REQUIRED, **given)) == [Check.NAME]


@pytest.mark.parametrize("level", ["none", "may", "encrypt", "verify"])
def test_required_where_anybody_could_have_forged_the_name(level):
    found = protect(TlsWish.REQUIRED, settings={"tls": {"policy": level}})
    assert found.verdict is Verdict.FAILED
    assert found.enhanced == "5.7.5"


def test_what_the_destination_wants_does_not_count():
    """TLS-Required: No (section 4.2.2)."""
    assert steps_of(protect(TlsWish.USUAL, policy=ENFORCED)) == [Check.NAME]
    optional = steps_of(protect(TlsWish.OPTIONAL, policy=ENFORCED))
    assert optional == [Check.ANY, Check.PLAIN]


def test_what_the_postmaster_wants_counts_all_the_same():
    found = protect(TlsWish.OPTIONAL, settings={"tls": {"policy": "secure"}})
    assert steps_of(found) == [Check.NAME]


@pytest.mark.parametrize("level", ["none", "may", "encrypt", "verify"])
def test_who_gets_a_password_proves_who_it_is(level):
    hops = (Hop("relay.example", ip_address("192.0.2.1"), login=LOGIN),)
    settings = {"tls": {"policy": level}}
    relay = "relay.example:587"
    found = protect(TlsWish.USUAL, settings=settings, relay=relay, hops=hops)
    assert steps_of(found) == [Check.NAME]


def test_only_for_the_relay_itself_it_can_be_lowered():
    rules = TlsRules(
        checked(
            DeliverySettings,
            {"tls": {"destination": {"relay.example": "encrypt", DOMAIN: "encrypt"}}},
        ),
        "alpha.example",
    )
    assert rules.level("x.example", "relay.example", login=True) is Level.ENCRYPT
    assert rules.level(DOMAIN, "other.example", login=True) is Level.VERIFY
    assert rules.level(DOMAIN, "other.example") is Level.ENCRYPT
