import asyncio
import contextlib
import random
import socket
from dataclasses import replace

import pytest
import uvloop

from tests.inbound.helpers import (
    GREETING,
    NOW,
    TO_ANN,
    HeldExecutor,
    House,
    without_trace,
)
from vnsmail.errors import QueueUnavailable, StateUnusable
from vnsmail.inbound import session as session_module
from vnsmail.inbound import shared as shared_module
from vnsmail.inbound.accept import AcceptPolicy
from vnsmail.inbound.spool import PIECE
from vnsmail.queue.envelope import is_id

LARGE = b"large line of text\r\n" * (PIECE // 4)
HELLO = b"Subject: hi\r\n\r\nhello\r\n"


async def send(client, message, start=TO_ANN):
    """Send one message; return the last reply."""
    await client.say(start)
    await client.hear(b"354 end with <CRLF>.<CRLF>\r\n")
    stuffed = message.replace(b"\r\n.", b"\r\n..")
    if stuffed.startswith(b"."):
        stuffed = b"." + stuffed
    await client.say(stuffed + b".\r\n")
    return await client.hear(b"\r\n")


# What a client gets ------------------------------------------------------------------


async def test_message(house):
    """A message is kept with its envelope and a trace header, then 250 is said."""
    client = await house.greeted()
    reply = await send(client, HELLO)
    envelope = house.kept.envelopes[0]

    assert f"250 2.0.0 queued as {envelope.id}\r\n".encode() == reply
    assert is_id(envelope.id)
    assert ("bob@north.example", ("ann@alpha.example",)) == (
        envelope.sender,
        envelope.recipients,
    )
    assert (NOW, "alpha.example") == (envelope.received_at, envelope.owner)
    assert (False, False) == (envelope.eight_bit, envelope.smtputf8)
    trace = house.kept.messages[0].removesuffix(HELLO)
    assert trace.startswith(
        b"Received: from mx1.north.example (mx1.north.example [10.77.0.21])\r\n"
        b"\tby alpha.example with ESMTP id " + envelope.id.encode()
    )
    assert b"for <ann@alpha.example>;" in trace


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\r\n",
        b".\r\n",
        b"..\r\n.\r\n...\r\n",
        b"A: b\r\n\r\n\xff\x01\x80\r\n",
        b"x" * 5000 + b"\r\n",
        LARGE,
        LARGE + b".\r\n",
    ],
    ids=[
        "empty",
        "line",
        "dot",
        "dots",
        "bytes",
        "long line",
        "large",
        "large and dot",
    ],
)
async def test_bytes_are_sacred(house, message):
    """What stands behind the trace header is what was sent, byte for byte."""
    client = await house.greeted()
    reply = await send(client, message)

    assert reply.startswith(b"250 ")
    assert [message] == house.kept.bodies


async def test_many_messages_in_one_session(house):
    """Each has its own envelope, and several recipients are not told of each other."""
    client = await house.greeted()
    await send(client, HELLO)
    start = (
        b"MAIL FROM:<>\r\nRCPT TO:<cy@alpha.example>\r\nRCPT TO:<CY@Alpha.example>\r\n"
    )
    start += b"RCPT TO:<postmaster>\r\nDATA\r\n"
    await send(client, LARGE, start)
    envelope = house.kept.envelopes[1]

    assert [HELLO, LARGE] == house.kept.bodies
    assert "" == envelope.sender
    assert ("cy@alpha.example", "postmaster@alpha.example") == envelope.recipients
    assert b"for <" not in house.kept.messages[1].partition(b"; ")[0]
    assert b"221 2.0.0 alpha.example closing\r\n" == await client.ask("QUIT")
    assert b"" == await client.rest()


async def test_everything_in_one_write(house):
    """A client that pipelines all of it gets all replies, in order."""
    client, _ = await house.connect()
    await client.hear(GREETING)
    await client.say(TO_ANN + HELLO + b".\r\n" + TO_ANN + HELLO + b".\r\nQUIT\r\n")
    codes = [line[:3] for line in (await client.rest()).split(b"\r\n") if line]

    one = [b"250"] * 10 + [b"250", b"250", b"354", b"250"]
    assert one * 2 + [b"221"] == codes
    assert [HELLO, HELLO] == house.kept.bodies


async def test_client_that_closes_its_half(house):
    """What was sent before the end is still kept and answered."""
    client = await house.greeted()
    await client.say(TO_ANN + HELLO + b".\r\n")
    client.sock.shutdown(socket.SHUT_WR)

    assert b"250 2.0.0 queued as" in await client.rest()
    assert [HELLO] == house.kept.bodies


async def test_extensions_reach_the_envelope(house):
    """8BITMIME and SMTPUTF8 are noted (RFC 6152, RFC 6531)."""
    client = await house.greeted()
    start = (
        "EHLO [10.77.0.21]\r\nMAIL FROM:<grü@north.example> BODY=8BITMIME SMTPUTF8\r\n"
    )
    start += "RCPT TO:<ann@alpha.example>\r\nDATA\r\n"
    await send(client, HELLO, start.encode())
    envelope = house.kept.envelopes[0]

    assert (True, True) == (envelope.eight_bit, envelope.smtputf8)
    assert (
        b"from [10.77.0.21] (mx1.north.example [10.77.0.21])"
        in (house.kept.messages[0])
    )
    assert b"with UTF8SMTP id" in house.kept.messages[0]


@pytest.mark.parametrize(
    ("recipient", "reply"),
    [
        ("eve@alpha.example", b"550 5.1.1 no such user\r\n"),
        ("ann@b.example", b"550 5.7.1 relaying denied\r\n"),
        ("postmaster@b.example", b"550 5.7.1 relaying denied\r\n"),
        ("ANN@alpha.EXAMPLE", b"250 2.1.5 recipient ok\r\n"),
    ],
)
async def test_recipients(house, recipient, reply):
    """The policy decides, and a refused recipient is in no envelope."""
    client = await house.greeted()
    await client.ask("EHLO mx1.north.example")
    await client.ask("MAIL FROM:<ann@alpha.example>")

    assert reply == await client.ask(f"RCPT TO:<{recipient}>")


async def test_users_may_change_while_a_session_is_open(house):
    """New users are known at once, and those that went are not."""
    client = await house.greeted()
    await client.ask("HELO mx1.north.example")
    await client.ask("MAIL FROM:<>")
    policy = AcceptPolicy.of(["alpha.example"], ["eve"])
    house.shared.facts = replace(house.shared.facts, policy=policy)

    assert (await client.ask("RCPT TO:<eve@alpha.example>")).startswith(b"250 ")
    assert (await client.ask("RCPT TO:<ann@alpha.example>")).startswith(b"550 ")


# Refusals of a message ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reply"),
    [
        (QueueUnavailable("/secret", "full"), b"452 4.3.1 "),
        (StateUnusable("/secret", "full", "mend"), b"451 4.3.0 "),
        (ZeroDivisionError("secret"), b"451 4.3.0 "),
    ],
)
async def test_message_that_cannot_be_kept(house, error, reply):
    """It is refused for now, why is nobody's business, and the session goes on."""
    client = await house.greeted()
    house.kept.error = error
    said = await send(client, LARGE)
    house.kept.error = None

    assert said.startswith(reply)
    assert b"secret" not in said
    assert [] == house.incoming
    assert (await send(client, HELLO)).startswith(b"250 ")


async def test_body_that_cannot_be_written(house):
    """A full disk in the middle of a body is told at its end."""
    client = await house.greeted()
    (house.folder / "incoming").rmdir()
    reply = await send(client, LARGE)
    (house.folder / "incoming").mkdir()

    assert reply.startswith(b"452 4.3.1 ")
    assert [] == house.kept.envelopes
    assert (await send(client, LARGE)).startswith(b"250 ")


@pytest.mark.parametrize("rest", [HELLO, b"\r\n" + LARGE], ids=["small", "large"])
@pytest.mark.parametrize(("hops", "code"), [(50, b"250 "), (51, b"554 5.4.6 ")])
async def test_loop(house, hops, code, rest):
    """A message that went through more than fifty hosts goes in a circle."""
    client = await house.greeted()
    trace = b"Received: from a.example by b.example; x\r\n" * hops
    reply = await send(client, trace + rest)

    assert reply.startswith(code)
    assert [] == house.incoming


@pytest.mark.parametrize(("hops", "code"), [(5, b"250 "), (6, b"554 5.4.6 ")])
async def test_loop_with_another_host(house, hops, code):
    """One that this host has seen again and again goes in a circle with somebody."""
    client = await house.greeted()
    trace = b"Received: from b.example by Alpha.Example with ESMTP; x\r\n" * hops
    trace += b"Received: from alpha.example by b.example (by alpha.example.x)\r\n" * 9
    reply = await send(client, trace + b"\r\nhello\r\n")

    assert reply.startswith(code)


async def test_too_big(houses):
    """The limit holds, announced or not, and leaves no file."""
    house = houses(max_message_size=len(LARGE) - 1)
    client = await house.greeted()
    reply = await send(client, LARGE)
    size = f"MAIL FROM:<> SIZE={len(LARGE)}"

    assert b"552 5.3.4 the message is too big\r\n" == reply
    assert (await client.ask(size)).startswith(b"552 5.3.4 ")
    assert [] == house.kept.envelopes
    await client.ask("QUIT")
    await client.rest()
    await house.written()
    assert [] == house.incoming


ENDS = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\n.\r",
    b"\r.\n",
    b"\r\r\n.\r\r\n",
    b"\r\n\0.\r\n",
]


@pytest.mark.parametrize("end", ENDS, ids=repr)
async def test_nothing_is_smuggled(house, end):
    """No end of line but CRLF ends a body, so there is no second message in it."""
    client = await house.greeted()
    second = b"MAIL FROM:<eve@e.example>\r\nRCPT TO:<cy@alpha.example>\r\nDATA\r\n"
    await client.say(TO_ANN)
    await client.hear(b"354 end with <CRLF>.<CRLF>\r\n")
    await client.say(HELLO + b"text" + end + second + b"smuggled\r\n.\r\nQUIT\r\n")
    said = await client.rest()

    assert 1 == said.count(b"554 5.6.") + said.count(b"250 2.0.0 queued")
    assert 1 == said.count(b"221 ")
    assert len(house.kept.envelopes) == said.count(b"queued")
    assert all("bob@north.example" == e.sender for e in house.kept.envelopes)


# Who the client is ---------------------------------------------------------------------


async def test_client_without_a_name(house):
    """Only the address is told."""
    house.names.names.clear()
    await send(await house.greeted(), HELLO)

    assert b"from mx1.north.example ([10.77.0.21])\r\n" in house.kept.messages[0]


async def test_name_server_that_is_slow(house, monkeypatch):
    """The dialogue goes on; 250 waits for the name no longer than it is worth."""
    monkeypatch.setattr(shared_module, "REVERSE_TIME", 0.01)
    house.names.may_answer.clear()
    reply = await send(await house.greeted(), HELLO)

    assert reply.startswith(b"250 ")
    assert b"from mx1.north.example ([10.77.0.21])\r\n" in house.kept.messages[0]


async def test_name_that_comes_while_the_client_talks(house):
    """A message that is whole before the name is known waits for it."""
    house.names.may_answer.clear()
    client = await house.greeted()
    await client.say(TO_ANN + HELLO + b".\r\n")
    await client.hear(b"354 end with <CRLF>.<CRLF>\r\n")
    house.names.may_answer.set()
    await client.hear(b"queued")

    assert b"(mx1.north.example [10.77.0.21])" in house.kept.messages[0]


async def test_fault_in_a_look_up(house):
    """A courtesy that fails costs no message."""
    house.names.error = ZeroDivisionError()

    assert (await send(await house.greeted(), HELLO)).startswith(b"250 ")


# Order, pressure and time ----------------------------------------------------------------


async def test_no_250_before_it_is_kept(house):
    """Nothing is said, nor read, while the message is on its way to the disk."""
    house.kept.may_go_on.clear()
    client, receiver = await house.connect()
    await client.say(TO_ANN + HELLO + b".\r\nNOOP\r\n")
    await house.kept.begun.wait()
    said = await client.hear(b"354 end with <CRLF>.<CRLF>\r\n")

    assert b"queued" not in said
    assert b"" == client.seen
    assert not receiver._transport.is_reading()
    assert not receiver._deadline.running
    house.kept.may_go_on.set()
    assert (await client.hear(b"\r\n")).startswith(b"250 2.0.0 queued")
    assert b"250 2.0.0 ok\r\n" == await client.hear(b"\r\n")
    assert receiver._transport.is_reading()


async def test_nothing_is_read_while_a_body_goes_to_the_disk(house):
    """A disk that is slower than the client slows the client down."""
    held = house.shared.executor = HeldExecutor(house.executor)
    client, receiver = await house.connect()
    sending = asyncio.ensure_future(send(client, LARGE))
    while not held.held:
        await asyncio.sleep(0)

    assert not receiver._transport.is_reading()
    assert not receiver._deadline.running
    held.go_on()
    assert (await sending).startswith(b"250 ")
    assert [LARGE] == house.kept.bodies


async def test_client_that_does_not_read(houses):
    """Replies that nobody reads stop the reading of commands, and end in a cut."""
    house = houses(command_timeout=0.05)
    client, receiver = await house.connect()
    commands = b"NOOP\r\n" * 20_000
    with contextlib.suppress(OSError):
        while True:
            await client.say(commands)
    await receiver.gone

    assert receiver._transport.get_write_buffer_size() == 0


@pytest.mark.parametrize(
    "said", [b"", b"EHLO mx1.north.example\r\n", b"EHLO mx", TO_ANN + b"text\r\n"]
)
async def test_client_that_is_silent(houses, said):
    """It is told, and the connection ends (RFC 5321 section 4.5.3.2)."""
    house = houses(command_timeout=0.02)
    client = await house.greeted()
    await client.say(said)
    last = (await client.rest()).split(b"\r\n")[-2]

    assert b"421 4.4.2 you took too long" == last
    assert [] == house.kept.envelopes
    assert 0 == house.shared.admission.sessions


async def drip(client):
    """Say letter after letter until nobody listens any more."""
    with contextlib.suppress(OSError):
        while True:
            await client.say(b"N")
            await asyncio.sleep(0)


async def test_client_that_drips(houses):
    """Bytes that make no command do not keep a session open."""
    house = houses(command_timeout=0.05)
    client = await house.greeted()
    said, _ = await asyncio.gather(client.rest(), drip(client))

    assert said.endswith(b"421 4.4.2 you took too long\r\n")


async def test_client_that_drips_after_a_refused_body(houses):
    """A body that is thrown away is over at its end, for the clock too."""
    house = houses(command_timeout=0.05)
    client = await house.greeted()
    await client.say(TO_ANN + b"bare\n\r\n.\r\n")
    said, _ = await asyncio.gather(client.rest(), drip(client))

    assert b"554 5.6.11 " in said
    assert said.endswith(b"421 4.4.2 you took too long\r\n")


async def test_time_is_given_for_the_bytes_of_a_body_and_for_no_others(house):
    """A body may take longer than a command, if it comes at some rate."""
    client, receiver = await house.connect()
    given: list[int] = []
    receiver._deadline.came = given.append
    await client.ask("NOOP")
    await client.say(TO_ANN)
    await client.hear(b"354 end with <CRLF>.<CRLF>\r\n")
    await client.say(HELLO + b".\r\n")
    await client.hear(b"queued")
    await client.ask("NOOP")

    assert len(HELLO + b".\r\n") == sum(given)


# Ends ------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [HELLO, LARGE], ids=["small", "large"])
async def test_client_that_is_gone_in_the_middle_of_a_body(house, message):
    """Nothing is kept and no file is left."""
    client, receiver = await house.connect()
    await client.say(TO_ANN + message)
    await client.hear(b"354 end with <CRLF>.<CRLF>\r\n")
    client.hang_up()
    await receiver.gone
    await house.written()

    assert [] == house.kept.envelopes
    assert [] == house.incoming
    assert 0 == house.shared.admission.sessions


async def test_client_that_is_gone_while_a_piece_is_written(house):
    """A piece on its way to the disk when the client goes leaves no file either."""
    held = house.shared.executor = HeldExecutor(house.executor)
    client, receiver = await house.connect()
    sending = asyncio.ensure_future(client.say(TO_ANN + LARGE))
    while not held.held:
        await asyncio.sleep(0)
    receiver.abort()
    await receiver.gone
    held.go_on()
    await asyncio.gather(sending, return_exceptions=True)
    await house.written()

    assert [] == house.incoming


async def test_client_that_is_gone_before_the_answer(house):
    """The message is kept all the same: it may be on disk already (RFC 1047)."""
    house.kept.may_go_on.clear()
    client, receiver = await house.connect()
    await client.say(TO_ANN + HELLO + b".\r\n")
    await house.kept.begun.wait()
    receiver.abort()
    await receiver.gone
    house.kept.may_go_on.set()
    await house.quiet()

    assert [HELLO] == house.kept.bodies


async def test_what_a_client_sent_before_it_was_gone(house):
    """What was not begun when the connection broke is not begun any more."""
    house.kept.may_go_on.clear()
    client, receiver = await house.connect()
    await client.say((TO_ANN + HELLO + b".\r\n") * 2)
    await house.kept.begun.wait()
    receiver.abort()
    await receiver.gone
    house.kept.may_go_on.set()
    await house.quiet()

    assert [HELLO] == house.kept.bodies


async def test_shutdown(house):
    """An idle client is told to come back later (RFC 5321 section 3.8)."""
    client, receiver = await house.connect()
    await client.hear(GREETING)
    receiver.shutdown()

    assert b"421 4.3.2 closing down, try again later\r\n" == await client.rest()


async def test_shutdown_while_a_message_is_kept(house):
    """It gets its answer first, as it may be on disk already."""
    house.kept.may_go_on.clear()
    client, receiver = await house.connect()
    await client.say(TO_ANN + HELLO + b".\r\n")
    await house.kept.begun.wait()
    receiver.shutdown()
    house.kept.may_go_on.set()
    lines = (await client.rest()).split(b"\r\n")

    assert lines[-3].startswith(b"250 2.0.0 queued")
    assert b"421 4.3.2 closing down, try again later" == lines[-2]


async def test_last_reply_that_nobody_reads(house, monkeypatch):
    """A client that does not take its last reply is cut off after a while."""
    monkeypatch.setattr(session_module, "LINGER", 0.01)
    client, receiver = await house.connect()
    saying = asyncio.ensure_future(client.say(b"NOOP\r\n" * 100_000))
    while receiver._may_write:
        await asyncio.sleep(0)
    receiver.shutdown()
    await receiver.gone
    await asyncio.gather(saying, return_exceptions=True)

    assert 0 == house.shared.admission.sessions


# How many --------------------------------------------------------------------------------


async def test_too_many_sessions_of_one_address(houses):
    """One address gets its share, others theirs, and a place is free once one ends."""
    house = houses(max_sessions_per_peer=1)
    first = await house.greeted()
    second, _ = await house.connect()
    other = await house.greeted(peer=None)

    refusal = b"421 4.7.0 too many connections from your address\r\n"
    assert refusal == await second.rest()
    assert (await other.ask("NOOP")).startswith(b"250 ")
    await first.ask("QUIT")
    await first.rest()
    await house.greeted()


async def test_too_many_sessions(houses):
    """No owner takes up all that the worker has."""
    house = houses(max_sessions=1)
    await house.greeted()
    client, _ = await house.connect(peer=None)

    assert (await client.rest()).startswith(b"421 4.7.0 too many connections")


# The loop of the workers -----------------------------------------------------------------


def test_on_uvloop(tmp_path):
    """All of it works in the loop that workers use, however the bytes are cut."""

    async def talk():
        house = House(tmp_path)
        client = await house.greeted()
        data = TO_ANN + LARGE + b".\r\nMAIL FROM:<>\r\nRSET\r\nQUIT\r\n"
        chance = random.Random(1)  # noqa: S311  any cuts will do
        sending = asyncio.ensure_future(say_in_pieces(client, data, chance))
        said = await client.rest()
        await sending
        silent, receiver = await house.connect()
        receiver.shutdown()
        await silent.rest()
        bodies = house.kept.messages
        await house.close()
        return said, bodies, house.incoming

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        said, messages, incoming = runner.run(talk())

    assert said.endswith(b"221 2.0.0 alpha.example closing\r\n")
    assert [LARGE] == [without_trace(message) for message in messages]
    assert [] == incoming


async def say_in_pieces(client, data, chance):
    while data:
        cut = chance.choice([1, 2, 3, 1000, 100_000])
        await client.say(data[:cut])
        data = data[cut:]
        if cut < 10:
            await asyncio.sleep(0)


# Mail of users ------------------------------------------------------------------------


async def test_mail_of_a_user_is_completed(house):
    """Date, From and Message-ID are added, Bcc goes; the rest is as it was sent."""
    client, receiver = await house.connect()
    receiver._client.user = "ann@alpha.example"
    await client.hear(GREETING)
    await client.say(TO_ANN)
    await client.hear(b"354 ")
    text = b"Subject: x\r\nBcc: eve@e.example\r\n\r\n  text \t\r\n"
    await client.say(text + b".\r\n")
    await client.hear(b"queued as")
    (message,) = house.kept.bodies
    added, _, rest = message.partition(b"Subject")

    assert b"Subject" + rest == text.replace(b"Bcc: eve@e.example\r\n", b"")
    assert [b"Date", b"From", b"Message-ID"] == [
        line.partition(b":")[0] for line in added.splitlines()
    ]
    assert b"\r\nFrom: ann@alpha.example\r\n" in added
    assert b"@alpha.example>\r\n" in added


@pytest.mark.parametrize("hidden", [False, True])
async def test_address_of_a_user(houses, hidden):
    """Where a user sits is told or not, as the settings say; that it signed in, always."""
    house = houses(hide_clients=hidden)
    client, receiver = await house.connect()
    receiver._client.user = "ann@alpha.example"
    await client.hear(GREETING)
    await client.say(TO_ANN)
    await client.hear(b"354 ")
    await client.say(b"\r\n.\r\n")
    await client.hear(b"queued as")
    (message,) = house.kept.messages
    trace = message.partition(b"\r\nDate")[0]

    assert b"by alpha.example with ESMTPA id " in trace
    assert hidden is not (b"10.77.0.21" in trace)
    assert hidden is not (b"mx1.north.example" in trace)


async def test_mail_of_strangers_is_not_touched(house):
    """What it lacks it lacks, and its Bcc is its own."""
    client = await house.greeted()
    await client.say(TO_ANN)
    await client.hear(b"354 ")
    await client.say(b"Bcc: x@y\r\n\r\n.\r\n")
    await client.hear(b"queued as")

    assert [b"Bcc: x@y\r\n\r\n"] == house.kept.bodies
