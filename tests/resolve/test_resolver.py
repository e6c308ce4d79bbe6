import asyncio
import ipaddress

import dns.rcode
import pytest
import uvloop

from tests.resolve.fake_dns import FakeDns
from vnsmail.errors import BrokerGone, ResolveError
from vnsmail.model import Family
from vnsmail.resolve.resolver import MailExchanger, NullMx, Resolver

RECORDS = {
    ("b.example", "MX"): ["20 mx2.b.example.", "10 MX1.b.example."],
    ("mx1.b.example", "A"): ["127.0.0.5", "127.0.0.6"],
    ("mx1.b.example", "AAAA"): ["::1"],
    ("plain.example", "A"): ["127.0.0.7"],
    ("nomail.example", "MX"): ["0 ."],
    ("odd.example", "MX"): ["0 .", "10 mx1.b.example."],
    ("xn--bcher-kva.example", "MX"): ["10 mx1.b.example."],
    ("5.0.0.127.in-addr.arpa", "PTR"): ["liar.example.", "mx1.b.example."],
    ("9.0.0.127.in-addr.arpa", "PTR"): ["plain.example."],
    ("8.0.0.127.in-addr.arpa", "PTR"): ["bad\\010name.example."],
    ("bad\\010name.example", "A"): ["127.0.0.8"],
    ("zero.example", "A"): ["0.0.0.0", "224.0.0.1", "127.0.0.3"],
}


@pytest.fixture
async def dns_server():
    async with FakeDns(RECORDS) as server:
        yield server


@pytest.fixture
def resolver(dns_server):
    return Resolver(dns_server.open_socket, ["192.0.2.53"], timeout=5)


async def test_mx_in_order(resolver):
    """Exchangers come by preference, in lower case and without the last dot."""
    found = await resolver.mx("b.example")

    assert (
        MailExchanger(10, "mx1.b.example"),
        MailExchanger(20, "mx2.b.example"),
    ) == found


async def test_implicit_mx(resolver):
    """A domain without MX records is its own exchanger (RFC 5321 section 5.1)."""
    assert (MailExchanger(0, "plain.example"),) == await resolver.mx("plain.example")


async def test_null_mx(resolver):
    """A lone "." means that the domain takes no mail (RFC 7505), for ever."""
    with pytest.raises(NullMx) as caught:
        await resolver.mx("nomail.example")

    assert not caught.value.retry_helps
    assert "cannot resolve nomail.example MX: it takes no mail" == str(caught.value)


async def test_null_mx_beside_others(resolver):
    """A "." among other exchangers is passed over."""
    found = await resolver.mx("odd.example")

    assert (MailExchanger(10, "mx1.b.example"),) == found


async def test_international_domain(resolver):
    """A domain in U-labels is asked for in A-labels (RFC 5890)."""
    found = await resolver.mx("bücher.example")

    assert (MailExchanger(10, "mx1.b.example"),) == found


async def test_no_such_domain(resolver):
    """A name that does not exist is a definite answer."""
    with pytest.raises(ResolveError) as caught:
        await resolver.mx("gone.example")

    assert not caught.value.temporary
    assert "cannot resolve gone.example MX: the name does not exist" == str(
        caught.value
    )


async def test_a_name_that_is_missing_is_known_to_be(resolver, dns_server):
    """For as long as its zone says (RFC 2308); another server is asked anew."""
    dns_server.negative = 60

    async def asked():
        with pytest.raises(ResolveError, match="does not exist"):
            await resolver.mx("gone.example")
        return len(dns_server.asked)

    assert [1, 1, 1] == [await asked() for _ in range(3)]
    resolver.ask(dns_server.open_socket, ["192.0.2.54"])
    assert 2 == await asked()


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".example", ".".join(["x"] * 200)])
async def test_no_domain_name(resolver, dns_server, name):
    """What cannot be a name is a definite failure, and nobody is asked."""
    with pytest.raises(ResolveError) as caught:
        await resolver.mx(name)

    assert not caught.value.temporary
    assert [] == dns_server.asked


async def test_server_failure(resolver, dns_server):
    """A server that fails may know more later, and the error says what it said."""
    dns_server.rcodes["b.example"] = dns.rcode.SERVFAIL

    with pytest.raises(ResolveError) as caught:
        await resolver.mx("b.example")

    assert caught.value.temporary
    assert "the name server 192.0.2.53 says SERVFAIL" == caught.value.problem


async def test_silent_server(dns_server):
    """A question that nobody answers ends, and may be asked again."""
    dns_server.silent.add("b.example")
    resolver = Resolver(dns_server.open_socket, ["192.0.2.53"], timeout=0.5)

    with pytest.raises(ResolveError) as caught:
        await resolver.mx("b.example")

    assert caught.value.temporary
    assert len(dns_server.asked) >= 2


async def test_no_socket():
    """Without a broker every question fails at once, for now."""

    async def no_socket(transport, server):
        raise BrokerGone

    resolver = Resolver(no_socket, ["192.0.2.53"], timeout=600)

    with pytest.raises(ResolveError) as caught:
        await resolver.mx("b.example")

    assert caught.value.temporary
    assert "the socket broker does not answer" in caught.value.problem


async def test_next_server(dns_server):
    """A server that cannot be reached is passed over for the next."""
    used = []

    async def open_socket(transport, server):
        used.append(server)
        if server == "192.0.2.1":
            raise OSError
        return await dns_server.open_socket(transport, server)

    resolver = Resolver(open_socket, ["192.0.2.1", "2001:db8::53"], timeout=5)
    await resolver.mx("b.example")

    assert ["192.0.2.1", "2001:db8::53"] == used


async def test_no_servers():
    """With nobody to ask, the error says so."""

    async def never(transport, server):
        raise AssertionError

    with pytest.raises(ResolveError, match="there is no name server to ask"):
        await Resolver(never, [], timeout=5).mx("b.example")


async def test_truncated_answer(resolver, dns_server):
    """An answer too long for UDP is fetched over TCP."""
    dns_server.truncated.add("b.example")

    assert 2 == len(await resolver.mx("b.example"))
    assert ["udp", "tcp"] == [transport for transport, _, _ in dns_server.asked]
    assert {1232} == dns_server.edns


async def test_addresses(resolver):
    """Addresses come by family."""
    v4 = await resolver.addresses("mx1.b.example", Family.IPV4)
    v6 = await resolver.addresses("mx1.b.example", Family.IPV6)

    assert {"127.0.0.5", "127.0.0.6"} == set(map(str, v4))
    assert (ipaddress.ip_address("::1"),) == v6


async def test_no_address_of_a_family(resolver):
    """A host without addresses in a family has none, which is no error."""
    assert () == await resolver.addresses("plain.example", Family.IPV6)


async def test_no_host_has_such_an_address(resolver):
    """Unspecified and multicast addresses in DNS are passed over."""
    found = await resolver.addresses("zero.example", Family.IPV4)

    assert (ipaddress.ip_address("127.0.0.3"),) == found


async def test_answers_are_kept(resolver, dns_server):
    """The same question twice is asked once; so is one without records."""
    for _ in range(2):
        await resolver.mx("b.example")
        await resolver.mx("plain.example")

    assert 2 == len(dns_server.asked)


async def test_burst_is_one_question(resolver, dns_server):
    """Who asks what is being asked waits for that answer."""
    dns_server.held.clear()
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(resolver.mx("b.example")) for _ in range(50)]
        while not dns_server.asked:
            await asyncio.sleep(0)
        dns_server.held.set()

    assert {2} == {len(task.result()) for task in asking}
    assert 1 == len(dns_server.asked)


async def test_burst_fails_together(resolver, dns_server):
    """Everybody who waits for an answer gets the failure."""
    dns_server.rcodes["b.example"] = dns.rcode.REFUSED

    found = await asyncio.gather(
        *(resolver.mx("b.example") for _ in range(5)), return_exceptions=True
    )

    assert [ResolveError] * 5 == [type(error) for error in found]
    assert 1 == len(dns_server.asked)


async def test_who_asked_is_cancelled(resolver, dns_server):
    """If whoever asked is cancelled, one of those who wait asks again."""
    dns_server.held.clear()
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(resolver.mx("b.example"))
        second = tasks.create_task(resolver.mx("b.example"))
        while not dns_server.asked:
            await asyncio.sleep(0)
        first.cancel()
        dns_server.held.set()

    assert first.cancelled()
    assert 2 == len(second.result())


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("127.0.0.5", "mx1.b.example"),
        ("127.0.0.9", None),
        ("127.0.0.8", None),
        ("127.0.0.77", None),
        ("2001:db8::1", None),
    ],
    ids=["confirmed", "not confirmed", "no host name", "no name", "no IPv6 name"],
)
async def test_reverse_name(resolver, address, name):
    """A reverse name counts if it leads back (RFC 8601 section 2.7.3)."""
    found = await resolver.verified_reverse_name(ipaddress.ip_address(address))

    assert name == found


async def test_reverse_name_without_dns(resolver, dns_server):
    """A failing name server means no name, and no error."""
    dns_server.rcodes["5.0.0.127.in-addr.arpa"] = dns.rcode.SERVFAIL

    found = await resolver.verified_reverse_name(ipaddress.ip_address("127.0.0.5"))

    assert found is None


async def test_reverse_name_among_many(resolver, dns_server):
    """Of an address with many names, ten are looked at."""
    names = [f"n{number}.example" for number in range(30)]
    dns_server.records["4.0.0.127.in-addr.arpa", "PTR"] = [f"{n}." for n in names]
    for name in names:
        dns_server.records[name, "A"] = ["127.0.0.1"]

    assert None is await resolver.verified_reverse_name(
        ipaddress.ip_address("127.0.0.4")
    )
    assert 10 == len([1 for _, _, record in dns_server.asked if record == "A"])


def test_on_uvloop():
    """The loop of the workers carries UDP and TCP questions too."""

    async def ask():
        async with FakeDns(RECORDS) as server:
            server.truncated.add("b.example")
            resolver = Resolver(server.open_socket, ["192.0.2.53"], timeout=5)
            return len(await resolver.mx("b.example"))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert 2 == runner.run(ask())
