"""Whether DNS says of each virtual host what is true, for ``vnsmail doctor``.

Mail from an address whose name does not lead back to it is refused by many. The
questions go out as any of this machine's, to the name servers that the workers ask.
"""

import asyncio
import socket
from collections.abc import Sequence

from vnsmail.errors import ResolveError
from vnsmail.model import Family, IPAddress, SourceCheck, VirtualHost
from vnsmail.resolve.backend import Transport
from vnsmail.resolve.resolver import Resolver
from vnsmail.supervisor.examine import Finding

AT_ONCE = 20
"""Hosts that are asked about at a time."""

PATIENCE = 4.0
"""Seconds for one question."""

GIVE_UP = 3
"""Questions in vain after which no more are asked, if none was answered."""


def look_up(hosts: Sequence[VirtualHost], servers: Sequence[str]) -> list[Finding]:
    """Return how the names and addresses of hosts agree."""
    return asyncio.run(_Names(servers, PATIENCE).look_up(hosts))


async def connected(transport: Transport, server: str) -> socket.socket:
    """Return a socket to a name server, from this machine."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
    sock = socket.socket(family, kind)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (server, 53))
    except BaseException:
        sock.close()
        raise
    return sock


class _Names:
    """Questions about hosts, and how many were answered."""

    def __init__(self, servers: Sequence[str], timeout: float) -> None:
        self._resolver = Resolver(connected, servers, timeout)
        self._room = asyncio.Semaphore(AT_ONCE)
        self._answered = 0
        self._in_vain = 0

    async def look_up(self, hosts: Sequence[VirtualHost]) -> list[Finding]:
        return await asyncio.gather(*map(self._host, hosts))

    async def _host(self, host: VirtualHost) -> Finding:
        async with self._room:
            if not self._answered and self._in_vain >= GIVE_UP:
                return _unknown(host, "no name server answers")
            faults: list[str] = []
            try:
                for address in _seen(host):
                    faults += await self._faults(host, address)
            except ResolveError as error:
                self._in_vain += 1
                return _unknown(host, str(error))
            self._answered += 1
        if faults:
            remedy = "mend the zone, or ask who has the address for its pointer"
            return Finding("dns", host.name, "wrong", "; ".join(faults), remedy)
        text = "its name and its addresses lead to each other"
        return Finding("dns", host.name, "ok", text)

    async def _faults(self, host: VirtualHost, address: IPAddress) -> list[str]:
        """Return where the answers are not as they should be.

        Raises:
            ResolveError: nobody can say now.
        """
        faults: list[str] = []
        family = Family(address.version)
        try:
            if address not in await self._resolver.addresses(host.says, family):
                faults.append(f"{host.says} does not lead to {address}")
        except ResolveError as error:
            faults.append(_definite(error))
        try:
            names = await self._resolver.reverse_names(address)
            if host.says not in names:
                called = f"{', '.join(names)}" if names else "nothing"
                faults.append(f"{address} is called {called}")
        except ResolveError as error:
            faults.append(_definite(error))
        return faults


def _seen(host: VirtualHost) -> tuple[IPAddress, ...]:
    """Return the addresses that others know a host by."""
    if host.source_check is SourceCheck.NAT:
        return host.public_addresses
    return tuple(each.address for each in host.addresses)


def _definite(error: ResolveError) -> str:
    """Return what an error says of the name; raise it again if it says nothing."""
    if error.temporary:
        raise error
    return f"{error.name} {error.record}: {error.problem}"


def _unknown(host: VirtualHost, why: str) -> Finding:
    return Finding("dns", host.name, "unknown", why, "ask again; see [dns] servers")
