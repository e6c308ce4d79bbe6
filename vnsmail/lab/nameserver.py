"""The lab's name server: authoritative for everything the lab has, and nothing else.

``python -m vnsmail.lab.nameserver --root DIR --address A …``. Names of the lab's own
nodes are fixed; those of virtual hosts come from the directory, so that a host created
in the lab has forward and reverse names at once: an address record for its name, a mail
exchanger for each of its domains, a pointer for each of its addresses, an SPF policy
(RFC 7208) that names its addresses, and the records of its DKIM keys. A file of further
records, ``lab.zone``, is read at each question.

Rules of this file: it answers what it is asked from what it knows (RFC 1034 section
4.3.2) and never asks anybody else; a question it cannot read gets FORMERR, or no answer.
"""

import argparse
import asyncio
import base64
import contextlib
import os
import signal
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset

from vnsmail.directory import open_to_read
from vnsmail.errors import VnsmailError
from vnsmail.lab import topology
from vnsmail.model import SourceAddress, VirtualHost
from vnsmail.settings import Layout, layout
from vnsmail.supervisor.dkim import read_keys

PORT = 53
TTL = 5
"""Seconds: a lab changes while one looks."""
MAX_UDP = 1232
"""Bytes; more is asked again over TCP."""
ZONE = "lab.zone"
"""File in the root with further records, a line each: name, type, value."""
AUTHENTIC = ";authentic"
"""A line of that file: answers say that DNSSEC vouches for them, to who asks for it (RFC
6840 section 5.7), as those of a validating server do."""
TCP_PATIENCE = 10.0
"""Seconds a TCP client may be silent."""

_ROOT = dns.name.root


class Records:
    """A set of records: what there is to answer from."""

    def __init__(self) -> None:
        self._sets: dict[tuple[dns.name.Name, dns.rdatatype.RdataType], list[str]] = {}
        self._names: set[dns.name.Name] = set()

    def add(self, name: str | dns.name.Name, record: str, value: str) -> None:
        """Add one record; ``value`` is written as in a zone file."""
        owner = dns.name.from_text(name) if isinstance(name, str) else name
        kind = dns.rdatatype.from_text(record)
        values = self._sets.setdefault((owner, kind), [])
        if value not in values:
            values.append(value)
        while owner != _ROOT:  # empty non-terminals exist too (RFC 8020)
            self._names.add(owner)
            owner = owner.parent()

    def add_host(self, name: str, addresses: Iterable[SourceAddress]) -> None:
        """Add a host: its name for its addresses, and the other way round."""
        for each in addresses:
            record = "A" if each.address.version == 4 else "AAAA"
            self.add(name, record, str(each.address))
            pointer = dns.reversename.from_address(str(each.address))
            self.add(pointer, "PTR", f"{name}.")

    def add_mail_domain(
        self, domain: str, exchanger: str, addresses: Iterable[SourceAddress]
    ) -> None:
        """Add who takes a domain's mail, and the addresses it may be sent from."""
        self.add(domain, "MX", f"10 {exchanger}.")
        own = " ".join(f"ip{a.address.version}:{a.address}" for a in addresses)
        self.add(domain, "TXT", _text(f"v=spf1 {own} -all"))

    def answer(self, question: dns.message.Message) -> dns.message.Message:
        """Return the authoritative answer to a question."""
        response = dns.message.make_response(question)
        response.flags |= dns.flags.AA
        if len(question.question) != 1 or question.opcode() != 0:
            response.set_rcode(dns.rcode.NOTIMP)
            return response
        asked = question.question[0]
        name = asked.name.canonicalize()
        values = self._sets.get((name, asked.rdtype))
        if values:
            found = dns.rrset.from_text(asked.name, TTL, "IN", asked.rdtype, *values)
            response.answer.append(found)
            return response
        if name not in self._names:
            response.set_rcode(dns.rcode.NXDOMAIN)
        response.authority.append(_start_of_authority())
        return response


def _text(value: str) -> str:
    """Return a text record's value: strings of at most 255 octets (RFC 1035 3.3.14)."""
    pieces = [value[at : at + 255] for at in range(0, len(value), 255)]
    return " ".join(f'"{piece}"' for piece in pieces)


def _start_of_authority() -> dns.rrset.RRset:
    server = topology.NAMESERVER
    # RFC 2308: the last number is how long a "no" may be kept.
    value = f"{server}. postmaster.{server}. 1 3600 600 86400 {TTL}"
    return dns.rrset.from_text(_ROOT, TTL, "IN", "SOA", value)


def records(hosts: Iterable[VirtualHost], further: str = "") -> Records:
    """Return all records of a lab with those virtual hosts.

    Args:
        hosts: who is in the directory.
        further: lines of name, type and value, as in a zone file; what cannot be one is
            passed over.
    """
    made = Records()
    made.add_host(topology.MACHINE_NAME, topology.MACHINE_ADDRESSES)
    made.add_host(topology.NAMESERVER, topology.NAMESERVER_ADDRESSES)
    machine = topology.MACHINE_NAME
    made.add_mail_domain(machine, machine, topology.MACHINE_ADDRESSES)
    for remote in topology.REMOTES:
        made.add_host(remote.name, remote.addresses)
        made.add_mail_domain(remote.domain, remote.name, remote.addresses)
    for host in hosts:
        made.add_host(host.name, host.addresses)
        for domain in host.domains:
            made.add_mail_domain(domain, host.name, host.addresses)
    for line in further.splitlines():
        words = line.split(None, 2)
        if len(words) == 3 and not line.startswith(";"):
            with contextlib.suppress(dns.exception.DNSException):
                made.add(*words)
    return made


def published_keys(root: Layout, hosts: Iterable[VirtualHost]) -> str:
    """Return the records of the hosts' DKIM keys, as if each had been published."""
    lines = []
    for host in hosts:
        for key in read_keys(root, host.name):
            public = base64.b64encode(key.public).decode()
            value = _text(f"v=DKIM1; k={key.algorithm}; p={public}")
            lines.append(f"{key.selector}._domainkey.{key.domain}. TXT {value}")
    return "\n".join(lines)


class NameServer:
    """Answers from the directory as it is at the moment of the question."""

    def __init__(self, root: Layout) -> None:
        self._root = root

    def respond(self, wire: bytes, *, limit: int) -> bytes | None:
        """Return the answer to a question; None if there is no use in answering."""
        try:
            question = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            return None
        if question.flags & dns.flags.QR:
            return None  # an answer: answering it could go on for ever
        try:
            with open_to_read(self._root.directory_db) as directory:
                hosts = directory.hosts()
            further = self._further(hosts)
            response = records(hosts, further).answer(question)
            asked_for = dns.flags.AD in dns.flags.Flag(question.flags)
            if asked_for and AUTHENTIC in further.splitlines():
                response.flags |= dns.flags.AD
        except VnsmailError:
            response = dns.message.make_response(question)
            response.set_rcode(dns.rcode.SERVFAIL)
        try:
            return response.to_wire(max_size=limit)
        except dns.exception.TooBig:
            truncated = dns.message.make_response(question)
            truncated.flags |= dns.flags.TC
            return truncated.to_wire()

    def _further(self, hosts: Iterable[VirtualHost]) -> str:
        lines = published_keys(self._root, hosts)
        with contextlib.suppress(OSError):
            lines += "\n" + (self._root.state / ZONE).read_text("utf-8")
        return lines

    async def serve_tcp(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer the questions of one TCP connection (RFC 7766)."""
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            while True:
                async with asyncio.timeout(TCP_PATIENCE):
                    (size,) = struct.unpack("!H", await reader.readexactly(2))
                    wire = await reader.readexactly(size)
                response = self.respond(wire, limit=65535)
                if response is None:
                    break
                writer.write(struct.pack("!H", len(response)) + response)
                await writer.drain()
        writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: NameServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        response = self._server.respond(data, limit=MAX_UDP)
        if response is not None and self._transport is not None:
            self._transport.sendto(response, addr)


async def _serve(root: Path, addresses: list[str], ready_fd: int) -> None:
    server = NameServer(layout(root))
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    for address in addresses:
        await loop.create_datagram_endpoint(
            lambda: _Datagrams(server), local_addr=(address, PORT)
        )
        await asyncio.start_server(server.serve_tcp, address, PORT)
    os.write(ready_fd, b"ready")
    os.close(ready_fd)
    await ending.wait()


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description="The name server of a vnsmail lab.")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--address", action="append", required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.root, arguments.address, arguments.ready_fd))


if __name__ == "__main__":
    main()
