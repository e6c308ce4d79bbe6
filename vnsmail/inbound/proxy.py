"""The header by which a proxy tells who really connects (PROXY protocol, version 2). Pure.

    12 octets    signature
    1            version (2) and command: 0 LOCAL, 1 PROXY
    1            family and transport: 0x11 TCP over IPv4, 0x21 over IPv6
    2            length of what follows: addresses, ports, further fields (TLV)

Rules of this file: it says what the header says, never whether to believe it: whoever
asks knows where the connection comes from. What is not a header exactly is an error, and
then nothing of the connection is of use. Version 1, which is text, is none.
"""

import ipaddress
from dataclasses import dataclass

from vnsmail.model import IPAddress

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"

MAX_LENGTH = 2048
"""Octets behind the first sixteen. Addresses and ports have 36; the rest is further
fields, of which a certificate's names may be the longest."""

_FIXED = 16
_LOCAL, _PROXY = 0x20, 0x21
_ADDRESSES = {0x11: 4, 0x21: 16}
"""Octets of an address, by family and transport."""


class NotProxied(Exception):
    """What came is no header of version 2; the text says why."""


@dataclass(frozen=True, slots=True)
class Proxied:
    """What a header says."""

    client: IPAddress | None
    """Who connects to the proxy; None: the proxy itself does (a health check), or it does
    not know an address."""
    rest: bytes
    """What came behind the header."""


class ProxyReader:
    """Reads a header from the front of a connection, however it is cut."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> Proxied | None:
        """Take what came; return what the header says, None while it is not whole.

        Raises:
            NotProxied: it is none.
        """
        self._data += data
        begun = self._data[: len(SIGNATURE)]
        if begun != SIGNATURE[: len(begun)]:
            raise NotProxied("it does not begin with the signature of version 2")
        if len(self._data) < _FIXED:
            return None
        command, family = self._data[12], self._data[13]
        length = int.from_bytes(self._data[14:16], "big")
        if command not in {_LOCAL, _PROXY}:
            raise NotProxied("its version or command is not known")
        if length > MAX_LENGTH:
            raise NotProxied("it is too long")
        if len(self._data) < _FIXED + length:
            return None
        content = self._data[_FIXED : _FIXED + length]
        client = _client(content, family) if command == _PROXY else None
        return Proxied(client, self._data[_FIXED + length :])


def _client(content: bytes, family: int) -> IPAddress | None:
    if family == 0:
        return None
    size = _ADDRESSES.get(family)
    if size is None:
        raise NotProxied("it is not about TCP over IPv4 or IPv6")
    if len(content) < 2 * (size + 2):
        raise NotProxied("it is too short for its addresses")
    address = ipaddress.ip_address(content[:size])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address
