"""What the resolver says to questions that are values."""

import asyncio
import socket

import dns.message
import dns.rcode
import dns.rrset
import pytest

from vnsmail.authentication.questions import Answer, Question
from vnsmail.resolve.resolver import Resolver

ZONE = {
    ("a.example.", "TXT"): ['"v=spf1 " "-all"', '"caf\\195\\169"'],
    ("a.example.", "MX"): ["20 B.example.", "10 c.example."],
    ("1.2.0.192.in-addr.arpa.", "PTR"): ["A.example."],
    ("a.example.", "A"): ["192.0.2.1"],
    ("we\\\\ird.example.", "A"): ["192.0.2.2"],
}


@pytest.fixture
async def resolver():
    """One whose server is at the other end of a pair of sockets."""
    servers: list[asyncio.Task[None]] = []

    async def serve(sock):
        loop = asyncio.get_running_loop()
        with sock:
            while wire := await loop.sock_recv(sock, 4096):
                await loop.sock_sendall(sock, answered(wire))

    def answered(wire):
        question = dns.message.from_wire(wire)
        asked = question.question[0]
        name = asked.name.to_text()
        response = dns.message.make_response(question)
        kind = asked.rdtype.name if hasattr(asked.rdtype, "name") else ""
        if name == "down.example.":
            response.set_rcode(dns.rcode.SERVFAIL)
        elif (name, kind) in ZONE:
            values = ZONE[name, kind]
            response.answer.append(
                dns.rrset.from_text(asked.name, 60, "IN", asked.rdtype, *values)
            )
        elif name != "a.example.":
            response.set_rcode(dns.rcode.NXDOMAIN)
        return response.to_wire(want_shuffle=False)

    async def open_socket(transport, server):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        servers.append(asyncio.get_running_loop().create_task(serve(theirs)))
        return ours

    yield Resolver(open_socket, ["192.0.2.53"], 2.0)
    for task in servers:
        task.cancel()
    await asyncio.gather(*servers, return_exceptions=True)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (Question("a.example", "TXT"), Answer(("v=spf1 -all", "caf\u00c3\u00a9"))),
        (Question("a.example", "MX"), Answer(("c.example", "b.example"))),
        (Question("1.2.0.192.in-addr.arpa", "PTR"), Answer(("a.example",))),
        (Question("a.example", "A"), Answer(("192.0.2.1",))),
        (Question("a.example", "AAAA"), Answer()),
        (Question("nosuch.example", "A"), Answer(exists=False)),
        (Question("we\\ird.example", "A"), Answer(("192.0.2.2",))),
        (Question("..", "A"), Answer(exists=False)),
        (Question("x" * 64 + ".example", "A"), Answer(exists=False)),
    ],
)
async def test_answers(resolver, question, answer):
    found = await resolver.answer(question)

    # Records of a set have no order, and come in any.
    assert sorted(answer.values) == sorted(found.values)
    assert (answer.exists, answer.trouble) == (found.exists, found.trouble)


async def test_trouble(resolver):
    found = await resolver.answer(Question("down.example", "TXT"))

    assert "SERVFAIL" in found.trouble
    assert () == found.values
