"""Attacks on a receiver, one a test; those on the dialogue alone are in tests/smtp."""

import asyncio
import ipaddress
import resource

import pytest

from tests.inbound.helpers import GREETING, PEER, TO_ANN
from tests.inbound.test_tls import ALPHA, HIDDEN
from vnsmail.inbound.policy import HousePolicy, Later
from vnsmail.inbound.spool import FRONT
from vnsmail.inbound.tls import Credentials, KeyPair
from vnsmail.message.headers import MAX_HOPS
from vnsmail.smtp.replies import Reply

EVE = b"MAIL FROM:<eve@e.example>\r\nRCPT TO:<cy@alpha.example>\r\nDATA\r\nsmuggled\r\n.\r\n"
BODY = b"Subject: x\r\n\r\ntext"


async def said_to(house, data):
    """Say something after the greeting; return all replies, and how many were kept."""
    client = await house.greeted()
    await client.say(data)
    said = await client.rest()
    return said, len(house.kept.messages)


# Smuggling -----------------------------------------------------------------------------

ENDS = [
    *(b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\n.\r"),
    *(b"\r.\n", b"\r\r\n.\r\r\n", b"\n\n.\n\n", b"\r\n\x00.\r\n", b"\r\n.\x00\r\n"),
]


@pytest.mark.parametrize("end", ENDS, ids=repr)
async def test_smuggled_by_data(house, end):
    """No end of a body but the one there is; what stands behind another is body."""
    said, kept = await said_to(house, TO_ANN + BODY + end + EVE + b"QUIT\r\n")

    assert kept == 0
    assert said.count(b"354 ") == 1
    assert b"554 5.6." in said


@pytest.mark.parametrize("end", [*ENDS[:9], b"\r\n.\r\n"], ids=repr)
async def test_smuggled_by_bdat(house, end):
    """A chunk has its length: ends of DATA are text in it, or a reason to refuse it."""
    message = BODY + end + EVE
    chunk = b"BDAT %d LAST\r\n" % len(message) + message
    start = TO_ANN.removesuffix(b"DATA\r\n")
    said, kept = await said_to(house, start + chunk + b"QUIT\r\n")

    assert b"354 " not in said
    assert kept == (end == b"\r\n.\r\n")
    if kept:
        assert house.kept.bodies == [message]
        assert house.kept.envelopes[0].sender == "bob@north.example"
    else:
        assert b"554 5.6.11 " in said


async def test_chunk_shorter_than_its_text(house):
    """What is left over is a command, and the message is what the length says."""
    start = TO_ANN.removesuffix(b"DATA\r\n")
    said, kept = await said_to(house, start + b"BDAT 4 LAST\r\nab\r\nEVIL\r\nQUIT\r\n")

    assert kept == 1
    assert house.kept.bodies == [b"ab\r\n"]
    assert b"500 5.5.1 there is no such command" in said


# Injection through addresses ------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"MAIL FROM:<a@b.example>\rRCPT TO:<x@alpha.example>",
        b"MAIL FROM:<a@b.example>\nRCPT TO:<x@alpha.example>",
        b'MAIL FROM:<"a\rb"@b.example>',
        b'MAIL FROM:<"a\nBcc: x"@b.example>',
        b"MAIL FROM:<a@b.example\0>",
        "MAIL FROM:<a\u2028b@b.example> SMTPUTF8".encode(),
        b"MAIL FROM:<a@b.example> ENVID=x+0D+0AEvil:+20y",
    ],
    ids=repr,
)
async def test_injected_by_an_address(house, line):
    """No line end gets into an envelope or a header."""
    client = await house.greeted()
    await client.say(b"HELO b\r\n" + line + b"\r\nQUIT\r\n")
    said = await client.rest()

    assert b"250 2.1.0" not in said
    assert said.count(b"\r\n") == 3


async def test_injected_by_helo(house):
    """Nothing that a client calls itself becomes structure."""
    client = await house.greeted()
    for name in ("x (y) by z;", "a.example\tb", "x\x0by", "[1.2.3.4] with"):
        assert (await client.ask(f"EHLO {name}"))[:1] == b"5"


# Sizes -----------------------------------------------------------------------------------


async def test_header_without_an_end(house):
    """A header block is bounded: nobody has to hold it whole."""
    line = b"X-Long: " + b"y" * 900 + b"\r\n"
    said, kept = await said_to(
        house, TO_ANN + line * (FRONT // len(line) + 2) + b"\r\nx\r\n.\r\nQUIT\r\n"
    )
    assert kept == 0
    assert b"552 5.3.4 the header of the message is too long" in said


async def test_long_header_that_ends(house):
    line = b"X-Long: " + b"y" * 900 + b"\r\n"
    _, kept = await said_to(house, TO_ANN + line * 120 + b"\r\nx\r\n.\r\nQUIT\r\n")
    assert kept == 1


async def test_line_without_an_end(house):
    said, kept = await said_to(house, TO_ANN + b"x" * 20_000 + b"\r\n.\r\nQUIT\r\n")
    assert kept == 0
    assert b"554 5.6.0 a line of the message is too long" in said


async def test_many_recipients(houses):
    """Over the limit is for later (RFC 5321 section 4.5.3.1.10), not for never."""
    house = houses(max_recipients=2)
    rcpts = b"RCPT TO:<ann@alpha.example>\r\n" * 4
    client = await house.greeted()
    await client.say(b"HELO b\r\nMAIL FROM:<>\r\n" + rcpts + b"QUIT\r\n")
    assert (await client.rest()).count(b"452 4.5.3 ") == 2


async def test_mime_bomb(house):
    """Parts within parts are bytes: whatever they would become is not looked at."""
    deep = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n)
        for n in range(2000)
    )
    message = b"MIME-Version: 1.0\r\n" + deep + b"x\r\n"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, kept = await said_to(house, TO_ANN + message + b".\r\nQUIT\r\n")

    assert kept == 1
    assert house.kept.bodies == [message]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * 1024


@pytest.mark.parametrize(("hops", "kept"), [(MAX_HOPS, 1), (MAX_HOPS + 1, 0)])
async def test_message_in_a_circle(house, hops, kept):
    trace = b"Received: from a.example by b.example; x\r\n" * hops
    said, found = await said_to(house, TO_ANN + trace + b"\r\nx\r\n.\r\nQUIT\r\n")
    assert found == kept
    assert (b"554 5.4.6 " in said) == (not kept)


# Time and number -------------------------------------------------------------------------


async def test_one_byte_at_a_time(houses):
    """Bytes do not move a command's deadline (slow loris)."""
    house = houses(command_timeout=0.15)
    client, receiver = await house.connect()
    await client.hear(GREETING)
    while not receiver.gone.done():
        try:
            await client.say(b"N")
        except OSError:
            break
        await asyncio.sleep(0.01)
    assert b"421 4.4.2 you took too long" in await client.rest()


async def test_commands_for_ever(houses):
    """A session in which no message is taken has an end, however busy it is."""
    house = houses(session_timeout=0.15)
    client, receiver = await house.connect()
    await client.hear(GREETING)
    while not receiver.gone.done():
        try:
            await client.say(b"NOOP\r\n")
        except OSError:
            break
        await asyncio.sleep(0.01)
    assert b"421 4.4.2 you took too long" in await client.rest()


async def test_a_message_moves_the_end(houses):
    """Who brings mail may stay."""
    house = houses(session_timeout=1000.0)
    client, receiver = await house.connect()
    await client.hear(GREETING)
    before = receiver._deadline._end
    await client.say(TO_ANN + BODY + b"\r\n.\r\n")
    await client.hear(b"queued")
    assert receiver._deadline._end > before


async def test_flood_from_one_address(houses):
    """Others get in while one address has more than its share."""
    house = houses(max_sessions=5, max_sessions_per_peer=2)
    for _ in range(2):
        await house.greeted()
    for _ in range(10):
        client, _ = await house.connect()
        said = await client.rest()
        assert said == b"421 4.7.0 too many connections from your address\r\n"
    for last in (1, 2, 3):
        await house.greeted(ipaddress.ip_address(f"192.0.2.{last}"))
    client, _ = await house.connect(ipaddress.ip_address("192.0.2.9"))
    assert (await client.rest()).startswith(b"421 4.7.0 too many connections, ")
    assert house.shared.admission.sessions == 5


async def test_flood_of_handshakes(houses):
    """Who begins none counts from the first moment, and is cut off."""
    house = houses(
        tls=Credentials([KeyPair(ALPHA)]), max_sessions_per_peer=2, handshake_timeout=60
    )
    for _ in range(2):
        await house.connect(door=HIDDEN)
    client, receiver = await house.connect(door=HIDDEN)
    await receiver.gone

    assert await client.rest() == b""
    assert house.shared.admission.sessions == 2


class Slow(HousePolicy):
    """Refuses recipients after a while."""

    def may_receive(self, client, sender, recipient):
        return Later(Reply(550, ("no such user",), "5.1.1"), 0.05)


async def test_slow_refusal(houses):
    """Nothing else is heard in between, and the order of replies stays."""
    house = houses()
    policy = house.shared.facts.policy
    house = houses(rules=Slow(policy))
    client = await house.greeted()
    await client.say(
        b"HELO b\r\nMAIL FROM:<>\r\nRCPT TO:<no@alpha.example>\r\nQUIT\r\n"
    )
    lines = (await client.rest()).splitlines()
    assert [line[:3] for line in lines] == [b"250", b"250", b"550", b"221"]


async def test_gone_in_a_slow_refusal(houses):
    house = houses()
    house = houses(rules=Slow(house.shared.facts.policy))
    client, receiver = await house.connect(PEER)
    await client.say(b"")
    await client.hear(GREETING)
    await client.say(b"HELO b\r\nMAIL FROM:<>\r\nRCPT TO:<no@alpha.example>\r\n")
    await client.hear(b"sender ok\r\n")
    receiver.abort()
    await receiver.gone
    await house.quiet()
