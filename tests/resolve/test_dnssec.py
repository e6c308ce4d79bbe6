"""TLSA records, and whose word counts that they are authentic."""

import dns.flags
import dns.rcode
import pytest

from tests.resolve.fake_dns import FakeDns
from vnsmail.errors import ResolveError
from vnsmail.model import Family
from vnsmail.resolve.resolver import Resolver

DIGEST = "ab" * 32
RECORDS = {
    ("b.example", "MX"): ["10 mx.b.example."],
    ("mx.b.example", "A"): ["127.0.0.5"],
    ("_25._tcp.mx.b.example", "TLSA"): [f"3 1 1 {DIGEST}"],
    ("bare.b.example", "A"): ["127.0.0.6"],
}
V4 = Family.IPV4


@pytest.fixture
async def server():
    async with FakeDns(RECORDS) as server:
        server.flags = dns.flags.AD
        yield server


def resolver(server, believed=True):
    return Resolver(server.open_socket, ["192.0.2.53"], 5, lambda _: believed)


async def test_vouched(server):
    asking = resolver(server)
    assert await asking.mx_is_secure("b.example")
    found = await asking.tlsa("mx.b.example", 25, V4)
    assert found.base == "mx.b.example"
    assert [str(each) for each in found.records] == [f"3 1 1 {DIGEST}"]
    assert (await asking.tlsa("bare.b.example", 25, V4)).records == ()


@pytest.mark.parametrize("why", ["no AD", "not believed", "nobody asks"])
async def test_nobody_vouches(server, why):
    """AD of a server that is not believed is as good as none."""
    if why == "no AD":
        server.flags = dns.flags.Flag(0)
    asking = resolver(server, believed=why == "no AD")
    if why == "nobody asks":
        asking = Resolver(server.open_socket, ["192.0.2.53"], 5)
    assert not await asking.mx_is_secure("b.example")
    assert (await asking.tlsa("mx.b.example", 25, V4)).records == ()
    # It was not even asked for (RFC 7672 section 2.2.2).
    assert not [each for each in server.asked if "TLSA" in each]


async def test_unknown(server):
    """That nobody can say is not that there are none."""
    server.rcodes["_25._tcp.mx.b.example"] = dns.rcode.SERVFAIL
    with pytest.raises(ResolveError) as caught:
        await resolver(server).tlsa("mx.b.example", 25, V4)
    assert caught.value.temporary
