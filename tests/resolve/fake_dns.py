"""A name server on loopback that answers from a table, over UDP and TCP."""

import asyncio
import socket
import struct

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

TTL = 300


class FakeDns:
    """Started by ``async with``. Names are written without the dot at the end.

    A name with any record exists; others get NXDOMAIN. ``rcodes`` overrules the
    answer of a name, ``silent`` names get none, and ``truncated`` ones are told to ask
    again over TCP.
    """

    def __init__(self, records: dict[tuple[str, str], list[str]] | None = None):
        self.records = records or {}
        self.rcodes: dict[str, dns.rcode.Rcode] = {}
        self.flags = dns.flags.Flag(0)
        """What answers are marked with."""
        self.silent: set[str] = set()
        self.negative = 0
        """Seconds that a missing name is missing (RFC 2308); 0: it is not said."""
        self.truncated: set[str] = set()
        self.asked: list[tuple[str, str, str]] = []
        self.edns: set[int] = set()
        self.held = asyncio.Event()
        self.held.set()

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        fake = self

        class Datagrams(asyncio.DatagramProtocol):
            def connection_made(self, transport):
                self.transport = transport

            def datagram_received(self, data, addr):
                task = loop.create_task(fake._respond(self.transport, data, addr))
                fake._tasks.add(task)
                task.add_done_callback(fake._tasks.discard)

        self._tasks = set()
        self._udp, _ = await loop.create_datagram_endpoint(
            Datagrams, local_addr=("127.0.0.1", 0)
        )
        self._tcp = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._ports = {
            "udp": self._udp.get_extra_info("sockname")[1],
            "tcp": self._tcp.sockets[0].getsockname()[1],
        }
        return self

    async def __aexit__(self, *_):
        for task in self._tasks:
            task.cancel()
        self._udp.close()
        self._tcp.close()
        await asyncio.sleep(0)

    async def open_socket(self, transport, server):
        """Be the callback that a Resolver gets its sockets from."""
        kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
        sock = socket.socket(socket.AF_INET, kind)
        sock.connect(("127.0.0.1", self._ports[transport]))
        return sock

    async def _respond(self, transport, data, addr):
        if answer := await self._answer(data, "udp"):
            transport.sendto(answer, addr)

    async def _serve(self, reader, writer):
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        answer = await self._answer(await reader.readexactly(length), "tcp")
        if answer:
            writer.write(struct.pack("!H", len(answer)) + answer)
        writer.close()

    async def _answer(self, data: bytes, transport: str) -> bytes:
        query = dns.message.from_wire(data)
        self.edns.add(query.payload)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        record = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((transport, name, record))
        await self.held.wait()
        if name in self.silent:
            return b""
        response = dns.message.make_response(query)
        response.flags |= self.flags
        if name in self.rcodes:
            response.set_rcode(self.rcodes[name])
        elif name in self.truncated and transport == "udp":
            response.flags |= dns.flags.TC
        elif found := self.records.get((name, record)):
            response.answer.append(
                dns.rrset.from_text_list(question.name, TTL, "IN", record, found)
            )
        elif not any(known == name for known, _ in self.records):
            response.set_rcode(dns.rcode.NXDOMAIN)
            if self.negative:
                soa = f"ns.example. root.example. 1 60 60 60 {self.negative}"
                response.authority.append(
                    dns.rrset.from_text("example.", TTL, "IN", "SOA", soa)
                )
        return response.to_wire()
