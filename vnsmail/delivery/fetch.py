"""Fetching an MTA-STS policy over HTTPS, from the owner's own address (RFC 8461 3.3).

Rules of this file: the socket comes from the broker, bound, and the kernel is asked what
it is bound to, as for mail; without a source nothing is tried in another family; no
redirect is followed, no more is read than a policy may have, and all of it has an end.
"""

import asyncio
import errno
import http.client
import io
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol, cast

from vnsmail.broker.client import SourceSocket
from vnsmail.delivery.connection import SOURCE_ERRORS, checked_source
from vnsmail.delivery.facts import AgentFacts
from vnsmail.errors import ResolveError, SourceUnavailable, VnsmailError
from vnsmail.model import Family, IPAddress
from vnsmail.tls.client import ClientTls, verified
from vnsmail.tls.layer import CertificateUnusable, TlsFailed, TlsLayer
from vnsmail.tls.policy import Check, Step
from vnsmail.tls.sts import MAX_POLICY

PORT = 443
WITHIN = 30.0
"""Seconds for all of it."""
MOST = MAX_POLICY + 16 * 1024
"""Octets read, with the header."""
MAX_ADDRESSES = 4
FETCH_ERROR, WEBPKI_INVALID = "sts-policy-fetch-error", "sts-webpki-invalid"


class FetchFailed(VnsmailError):
    """There is no policy to be had now; ``kind`` is a result type of RFC 8460."""

    def __init__(self, reason: str, kind: str = FETCH_ERROR) -> None:
        super().__init__(reason)
        self.reason = reason
        self.kind = kind

    def __str__(self) -> str:
        return self.reason


class Addresses(Protocol):
    """Who knows addresses; vnsmail.resolve.resolver.Resolver."""

    async def addresses(self, name: str, family: Family) -> tuple[IPAddress, ...]: ...


async def fetch_policy(
    domain: str,
    facts: AgentFacts,
    connectable: Callable[[str, Family], Awaitable[SourceSocket]],
    addresses: Addresses,
    tls: ClientTls,
    port: int = PORT,
) -> str:
    """Return the text of a domain's policy.

    Args:
        domain: whose mail it is about.
        facts: who asks.
        connectable: gives a socket bound to the owner's address.
        addresses: answers where the policy host is.
        tls: with the authorities that its certificate may be of.
        port: of the policy host.

    Raises:
        FetchFailed: it cannot be had.
        SourceUnavailable, BrokerGone, BrokerRefused: there is no socket.
    """
    host = f"mta-sts.{domain}"
    try:
        async with asyncio.timeout(WITHIN):
            failure = FetchFailed(f"{host} has no address that can be reached")
            for family, address in await _found(host, facts, addresses):
                source = await connectable(facts.owner, family)
                try:
                    return _policy_in(await _get(source, host, address, port, tls))
                except FetchFailed as error:
                    failure = error
                finally:
                    source.sock.close()
            raise failure
    except TimeoutError:
        text = f"{host} gave no policy within {WITHIN:g} seconds"
        raise FetchFailed(text) from None


async def _found(
    host: str, facts: AgentFacts, addresses: Addresses
) -> list[tuple[Family, IPAddress]]:
    found: list[tuple[Family, IPAddress]] = []
    for family in sorted(facts.families, reverse=True):
        try:
            each = await addresses.addresses(host, family)
        except ResolveError as error:
            raise FetchFailed(str(error)) from None
        found += [(family, address) for address in each if not address.is_loopback]
    return found[:MAX_ADDRESSES]


async def _get(
    source: SourceSocket, host: str, address: IPAddress, port: int, tls: ClientTls
) -> bytes:
    """Return what a policy host answers, whole."""
    loop = asyncio.get_running_loop()
    sock = source.sock
    sock.setblocking(False)
    try:
        await loop.sock_connect(sock, (str(address), port))
        checked_source(source)
        step = Step(Check.NAME, names=(host,), base=host, by="mta-sts")
        layer = tls.layer(step, host)
        while not layer.established:
            await loop.sock_sendall(sock, layer.outgoing())
            data = await loop.sock_recv(sock, 65536)
            if not data:
                text = f"{host} ended the connection in the handshake"
                raise FetchFailed(text)
            layer.receive(data)
        verified(layer, step)
        request = (
            f"GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: {host}\r\n"
            "Accept: text/plain\r\nUser-Agent: vnsmail\r\nConnection: close\r\n\r\n"
        )
        layer.send(request.encode("ascii"))
        await loop.sock_sendall(sock, layer.outgoing())
        return await _read(loop, source, layer, host)
    except (TlsFailed, CertificateUnusable) as error:
        text = f"{host}: {error}"
        raise FetchFailed(text, WEBPKI_INVALID) from None
    except SourceUnavailable:
        raise
    except OSError as error:
        if source.source is not None and error.errno in SOURCE_ERRORS:
            number = error.errno or errno.EADDRNOTAVAIL
            raise SourceUnavailable(source.owner, source.source, number) from None
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        text = f"{host} [{address}]: {reason}"
        raise FetchFailed(text) from None


async def _read(
    loop: asyncio.AbstractEventLoop, source: SourceSocket, layer: TlsLayer, host: str
) -> bytes:
    answer = layer.receive(b"")
    while not layer.ended and len(answer) <= MOST:
        data = await loop.sock_recv(source.sock, 65536)
        if not data:
            break
        answer += layer.receive(data)
        if _whole(answer):
            break
    if len(answer) > MOST:
        text = f"{host} answers with more than a policy can have"
        raise FetchFailed(text)
    return answer


class _Said:
    """What http.client takes for a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: object) -> io.BytesIO:
        return io.BytesIO(self._data)


def _whole(answer: bytes) -> bool:
    """Say whether an answer is complete: some servers do not end the connection."""
    try:
        _parsed(answer)
    except (http.client.HTTPException, ValueError, OSError):
        return False
    return b"\r\n\r\n" in answer and b"content-length" in answer.lower()


def _parsed(answer: bytes) -> tuple[int, str, bytes]:

    response = http.client.HTTPResponse(cast("socket.socket", _Said(answer)))
    response.begin()
    body = response.read()
    return response.status, response.headers.get_content_type(), body


def _policy_in(answer: bytes) -> str:
    """Return the policy in an answer.

    Raises:
        FetchFailed: there is none.
    """
    try:
        status, kind, body = _parsed(answer)
    except (http.client.HTTPException, ValueError, OSError) as error:
        text = f"the answer is no HTTP: {type(error).__name__}"
        raise FetchFailed(text) from None
    if status != 200:
        # RFC 8461 section 3.3: redirects are not followed.
        text = f"the policy host answers {status}"
        raise FetchFailed(text)
    if kind != "text/plain":
        text = f"the policy host answers with {kind}, not text/plain"
        raise FetchFailed(text)
    if len(body) > MAX_POLICY:
        raise FetchFailed("the policy is too long")
    return body.decode("utf-8", "replace")
