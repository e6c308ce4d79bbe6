"""Policy hosts, good and bad, asked over TLS on the loopback (RFC 8461 section 3.3)."""

import asyncio
import socket

import pytest

from tests.delivery.authority import Authority
from vnsmail.broker.client import SourceSocket
from vnsmail.delivery import fetch
from vnsmail.delivery.fetch import FETCH_ERROR, WEBPKI_INVALID, FetchFailed
from vnsmail.errors import SourceUnavailable
from vnsmail.model import ip_address
from vnsmail.tls.client import ClientTls
from vnsmail.tls.sts import MAX_POLICY

HOST = "mta-sts.north.example"
POLICY = b"version: STSv1\nmode: enforce\nmx: mx.north.example\nmax_age: 86400\n"
AUTHORITY = Authority()


def answer(body=POLICY, status=b"200 OK", kind=b"text/plain", length=None, extra=b""):
    size = len(body) if length is None else length
    head = b"HTTP/1.1 " + status + b"\r\nContent-Type: " + kind
    return head + b"\r\nContent-Length: %d\r\n" % size + extra + b"\r\n" + body


async def asked(folder, said, *, names=(HOST,), days=30, trusted=True, claimed=None):
    """Return the policy that a server gives, and what it was asked."""
    heard = []

    async def serve(reader, writer):
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(said)
        await writer.drain()
        writer.close()

    context = AUTHORITY.server(folder, *names, days=days)
    tls = ClientTls(AUTHORITY.pem if trusted else Authority("other").pem)
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        source = SourceSocket(sock, "alpha.example", claimed or "127.0.0.1")
        with sock:
            got = await fetch._get(source, HOST, ip_address("127.0.0.1"), port, tls)
    return fetch._policy_in(got), b"".join(heard)


async def test_a_policy(tmp_path):
    text, heard = await asked(tmp_path, answer())
    assert text.encode() == POLICY
    assert heard.startswith(b"GET /.well-known/mta-sts.txt HTTP/1.1\r\n")
    assert f"Host: {HOST}\r\n".encode() in heard


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"names": ("other.example",)}, WEBPKI_INVALID),
        ({"days": -1}, WEBPKI_INVALID),
        ({"trusted": False}, WEBPKI_INVALID),
    ],
    ids=["another's name", "expired", "of nobody"],
)
async def test_who_it_is_not(tmp_path, given, kind):
    """Nothing is asked of a host that has not proven who it is."""
    with pytest.raises(FetchFailed) as failed:
        await asked(tmp_path, answer(), **given)
    assert failed.value.kind == kind


@pytest.mark.parametrize(
    "said",
    [
        answer(status=b"301 Moved", extra=b"Location: https://evil.example/\r\n"),
        answer(status=b"404 Not Found"),
        answer(kind=b"text/html"),
        answer(body=b"x" * (MAX_POLICY + 1)),
        answer(body=b"x" * (fetch.MOST + 1)),
        answer(length=len(POLICY) + 1),
        b"no HTTP at all\r\n\r\n",
        b"",
    ],
    ids=["moved", "none", "html", "long", "endless", "cut off", "nonsense", "nothing"],
)
async def test_no_policy(tmp_path, said):
    with pytest.raises(FetchFailed) as failed:
        await asked(tmp_path, said)
    assert failed.value.kind == FETCH_ERROR


async def test_from_no_other_address(tmp_path):
    """What the kernel bound it to is what the broker said, or nothing is asked."""
    with pytest.raises(SourceUnavailable):
        await asked(tmp_path, answer(), claimed="127.0.0.2")
