"""PROXY version 2: the header, and who is believed."""

import ipaddress
import itertools
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.inbound.helpers import GREETING, PEER, TO_ANN, TlsClient
from tests.inbound.test_tls import ALPHA, HIDDEN, client_context
from vnsmail.inbound.proxy import (
    MAX_LENGTH,
    SIGNATURE,
    NotProxied,
    Proxied,
    ProxyReader,
)
from vnsmail.inbound.tls import Credentials, KeyPair

CLIENT = "198.51.100.7"
HERE = (ipaddress.ip_network("10.77.0.0/24"),)


def header(client=CLIENT, *, command=0x21, family=None, more=b"", length=None):
    version = ipaddress.ip_address(client).version
    kind = socket.AF_INET6 if version == 6 else socket.AF_INET
    packed = socket.inet_pton(kind, client)
    content = packed + packed + struct.pack("!HH", 1234, 25) + more
    code = (0x21 if version == 6 else 0x11) if family is None else family
    size = len(content) if length is None else length
    return SIGNATURE + bytes([command, code]) + struct.pack("!H", size) + content


@pytest.mark.parametrize("client", [CLIENT, "2001:db8::7"])
def test_addresses(client):
    found = ProxyReader().feed(header(client) + b"rest")
    assert found == Proxied(ipaddress.ip_address(client), b"rest")


def test_mapped_address():
    found = ProxyReader().feed(header("::ffff:198.51.100.7"))
    assert found == Proxied(ipaddress.ip_address(CLIENT), b"")


@pytest.mark.parametrize("kept", [header(command=0x20), header(family=0)])
def test_no_client(kept):
    """A health check, or an address that the proxy does not know."""
    assert ProxyReader().feed(kept) == Proxied(None, b"")


@pytest.mark.parametrize(
    "bad",
    [
        b"EHLO b.example\r\n",
        b"PROXY TCP4 198.51.100.7 10.77.0.11 1 25\r\n",
        header(command=0x11),
        header(command=0x22),
        header(family=0x12),
        header(family=0x31),
        header(length=11),
        header(length=MAX_LENGTH + 1),
    ],
)
def test_not_a_header(bad):
    with pytest.raises(NotProxied):
        ProxyReader().feed(bad)


@given(
    st.ip_addresses().filter(lambda a: not getattr(a, "ipv4_mapped", None)),
    st.binary(max_size=100),
    st.binary(max_size=50),
    st.lists(st.integers(0, 250)),
)
def test_any_header_in_any_pieces(client, more, rest, places):
    """Fields behind the addresses are skipped, and what follows is kept."""
    data = header(str(client.exploded), more=more) + rest
    reader, found = ProxyReader(), None
    edges = sorted({0, len(data), *(p for p in places if p < len(data))})
    left = b""
    for a, b in itertools.pairwise(edges):
        if found is None:
            found = reader.feed(data[a:b])
        else:
            left += data[a:b]

    assert found is not None
    assert found.client == client
    assert found.rest + left == rest


@given(st.binary(max_size=80))
def test_any_octets(data):
    """A header, none yet, or an error: nothing else comes out."""
    try:
        found = ProxyReader().feed(data)
    except NotProxied:
        return
    assert found is None or data.startswith(SIGNATURE)


# In a session --------------------------------------------------------------------------


async def test_client_behind_a_proxy(houses):
    """Trace, limits and rules are about the client."""
    house = houses(proxy_from=HERE, max_sessions_per_peer=1)
    client, _ = await house.connect(PEER)
    await client.say(header()[:20])
    await client.say(header()[20:])
    await client.hear(GREETING)
    await client.say(TO_ANN + b"x\r\n.\r\n")
    await client.hear(b"queued")
    assert b"([198.51.100.7])" in house.kept.messages[0]

    second, _ = await house.connect(PEER)
    await second.say(header())
    assert (await second.rest()).startswith(b"421 4.7.0 too many connections from")
    other, _ = await house.connect(PEER)
    await other.say(header("198.51.100.8"))
    await other.hear(GREETING)


async def test_proxy_before_tls(houses):
    house = houses(proxy_from=HERE, tls=Credentials([KeyPair(ALPHA)]))
    client, receiver = await house.connect(PEER, HIDDEN)
    await client.say(header())
    secure = TlsClient(client, client_context())
    await secure.shake_hands()
    await secure.hear(GREETING)
    assert str(receiver._client.address) == CLIENT


async def test_talking_behind_the_header(houses):
    """Who talks before the greeting is turned away, behind a proxy too."""
    house = houses(proxy_from=HERE)
    client, _ = await house.connect(PEER)
    await client.say(header() + b"EHLO b\r\n")
    assert (await client.rest()).startswith(b"554 5.5.1 you talked before")


@pytest.mark.parametrize("said", [b"EHLO b.example\r\n", b""])
async def test_proxy_that_is_none(houses, said):
    """No header, or none in time: nobody is served."""
    house = houses(proxy_from=HERE, handshake_timeout=0.05)
    client, receiver = await house.connect(PEER)
    await client.say(said)
    await receiver.gone
    assert await client.rest() == b""


async def test_stranger_with_a_header(houses):
    """From elsewhere it is nonsense, and says nothing of who is there."""
    house = houses(proxy_from=(ipaddress.ip_network("192.0.2.0/24"),))
    client, receiver = await house.connect(PEER)
    await client.hear(GREETING)
    await client.say(header() + b"\r\nQUIT\r\n")
    said = await client.rest()

    assert b"500 5.5.2" in said
    assert b"250" not in said
    assert receiver._client.address == PEER
