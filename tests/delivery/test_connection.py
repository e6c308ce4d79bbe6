import asyncio
import contextlib
import dataclasses
import errno
import ipaddress
import random
import socket
import threading
from pathlib import Path

import pytest

from tests.delivery.helpers import facts
from tests.delivery.remote import CUT, Loopback, Remote
from vnsmail.delivery import connection as module
from vnsmail.delivery.connection import ConnectionFailed, connect
from vnsmail.delivery.route import Hop
from vnsmail.errors import BrokerGone, QueueUnavailable, SourceUnavailable
from vnsmail.model import Family, Verdict
from vnsmail.queue.body import Body
from vnsmail.settings import SmtpSettings
from vnsmail.smtp.client_session import Transaction
from vnsmail.smtp.errors import SmtpProtocolError

# On uvloop a signal, which the usual method sends, is not seen while nothing happens.
pytestmark = pytest.mark.timeout(method="thread")

ALPHA = facts("127.0.0.1")
BOB, EVE = "bob@b.example", "eve@b.example"
MESSAGE = b"Subject: hello\r\n\r\n.dots\r\n..and more\r\n"


@pytest.fixture
async def remote():
    async with Remote() as remote:
        yield remote


@pytest.fixture
def sockets():
    return Loopback()


class Ends:
    """Collects the connections that have ended."""

    def __init__(self):
        self.gone = []

    def __call__(self, connection):
        self.gone.append(connection)


def patience(**seconds):
    usual = {"command_timeout": 30, "connect_timeout": 30, "data_timeout": 30}
    return SmtpSettings(**(usual | seconds))


def hop_to(remote):
    return Hop("mx.b.example", ipaddress.ip_address(remote.address))


@contextlib.asynccontextmanager
async def connected(remote, sockets, on_gone=lambda _: None, **seconds):
    settings = patience(port=remote.port, **seconds)
    connection = await connect(hop_to(remote), ALPHA, sockets, settings, on_gone)
    try:
        yield connection
    finally:
        connection.abort()
        await connection.gone


async def failed(remote, sockets, **seconds):
    """Return the outcome of a connection that could not be made."""
    ends = Ends()
    settings = patience(port=remote.port, **seconds)
    with pytest.raises(ConnectionFailed) as caught:
        await connect(hop_to(remote), ALPHA, sockets, settings, ends)
    assert str(hop_to(remote)) == caught.value.outcome.remote
    # Whatever was opened goes by itself.
    for event in remote.held.values():
        event.set()
    if ends.gone or sockets.given[-1].fileno() >= 0:
        await remote.until(lambda: remote.sessions[-1].verbs[-1:] == ["gone"])
        while not ends.gone:
            await asyncio.sleep(0)
    return caught.value.outcome


def transaction(*recipients, body=MESSAGE, sender="ann@alpha.example", **changed):
    return Transaction(
        **{
            "sender": sender,
            "recipients": recipients or (BOB,),
            "body_size": len(body),
            "eight_bit": False,
            "smtputf8": False,
            **changed,
        }
    )


async def send(connection, *recipients, body=MESSAGE):
    return await connection.send(transaction(*recipients, body=body), Body(body))


def in_file(folder, data):
    path = folder / "body"
    path.write_bytes(data)
    return Body(b"", path, len(data), queued=True)


# Connecting -----------------------------------------------------------------------


@pytest.mark.parametrize("source", ["127.0.0.1", "127.0.0.77"])
async def test_it_comes_from_the_source(remote, source):
    """The remote sees the address that the broker bound, and so does the log."""
    async with connected(remote, Loopback(source)) as connection:
        assert source == connection.source

    assert [(source, "alpha.example")] == [(s.peer, s.helo) for s in remote.sessions]


async def test_unbound(remote):
    """The machine's own socket is not bound, and the kernel says what it became."""
    async with connected(remote, Loopback(claimed=None)) as connection:
        assert "127.0.0.1" == connection.source


async def test_another_source_than_asked_for(remote):
    """A connection from another address is closed before a byte is sent."""
    sockets = Loopback("127.0.0.1", claimed="127.0.0.77")
    with pytest.raises(SourceUnavailable) as caught:
        await connect(
            hop_to(remote), ALPHA, sockets, patience(port=remote.port), Ends()
        )

    assert "127.0.0.77 is not usable here" in str(caught.value)
    assert "the kernel chose 127.0.0.1 instead" in str(caught.value)
    assert -1 == sockets.given[0].fileno()
    await remote.until(lambda: remote.sessions and remote.sessions[0].verbs)
    assert ["gone"] == remote.sessions[0].verbs


@pytest.mark.parametrize("error", [BrokerGone(), SourceUnavailable("a", "b", 1)])
async def test_no_socket(remote, sockets, error):
    """Without a socket nothing is tried."""
    sockets.errors.append(error)
    with pytest.raises(type(error)):
        await connect(
            hop_to(remote), ALPHA, sockets, patience(port=remote.port), Ends()
        )

    assert [("alpha.example", Family.IPV4)] == sockets.asked
    assert [] == remote.sessions


async def test_all_ports_of_the_source_in_use(remote):
    """That says something of the source, and nothing of the remote (ip(7))."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        other.connect((remote.address, remote.port))
        sockets = Loopback()
        sockets.port = other.getsockname()[1]
        with pytest.raises(SourceUnavailable) as caught:
            await connect(
                hop_to(remote), ALPHA, sockets, patience(port=remote.port), Ends()
            )

    assert errno.EADDRNOTAVAIL == caught.value.errno
    assert -1 == sockets.given[0].fileno()


async def test_source_gone_from_the_machine(remote, sockets):
    """An address that was taken away between bind and connect gives EINVAL."""
    sockets.connect_errno = errno.EINVAL
    with pytest.raises(SourceUnavailable) as caught:
        await connect(
            hop_to(remote), ALPHA, sockets, patience(port=remote.port), Ends()
        )

    assert errno.EINVAL == caught.value.errno
    assert -1 == sockets.given[0].fileno()


async def test_no_ports_for_the_machine(remote):
    """Nothing was bound, so there is no source to blame."""
    sockets = Loopback(claimed=None)
    sockets.connect_errno = errno.EADDRNOTAVAIL
    outcome = await failed(remote, sockets)

    assert (Verdict.DEFERRED, "4.4.1") == (outcome.verdict, outcome.enhanced)


async def test_nobody_listens(sockets):
    """A refused connection is deferred, with the system's words."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        remote = Remote(port=taken.getsockname()[1])
        outcome = await failed(remote, sockets)

    assert (Verdict.DEFERRED, 421, "4.4.1", "connection refused") == (
        outcome.verdict,
        outcome.reply_code,
        outcome.enhanced,
        outcome.text,
    )
    assert -1 == sockets.given[0].fileno()


async def test_nobody_answers(sockets):
    """A remote that drops packets is given up after the timeout."""
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # the kernel then drops further SYNs
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        remote = Remote(port=full.getsockname()[1])
        outcome = await failed(remote, sockets, connect_timeout=0.05)

    assert "no answer to the connection attempt" == outcome.text
    assert -1 == sockets.given[0].fileno()


@pytest.mark.parametrize(
    ("verb", "reply", "expected"),
    [
        ("GREETING", "554 5.7.1 not you", (Verdict.FAILED, 554, "5.7.1", "not you")),
        ("GREETING", "450 later", (Verdict.DEFERRED, 450, "4.0.0", "later")),
        ("GREETING", "421 too busy", (Verdict.DEFERRED, 421, "4.0.0", "too busy")),
        ("GREETING", CUT, (Verdict.DEFERRED, 421, "4.4.1", "connection lost")),
        ("EHLO", "451 4.3.0 later", (Verdict.DEFERRED, 451, "4.3.0", "later")),
        ("EHLO", CUT, (Verdict.DEFERRED, 421, "4.4.1", "connection lost")),
    ],
)
async def test_not_wanted(remote, sockets, verb, reply, expected):
    """What a remote says before any mail is what the attempt comes to."""
    remote.says(verb, reply)
    outcome = await failed(remote, sockets)

    assert expected == (
        outcome.verdict,
        outcome.reply_code,
        outcome.enhanced,
        outcome.text,
    )


async def test_a_refusal_is_answered_with_quit(remote, sockets):
    """RFC 5321 section 3.1: after 554 the client may only say QUIT."""
    remote.says("GREETING", "554 no SMTP service here")
    await failed(remote, sockets)

    assert ["QUIT", "gone"] == remote.sessions[0].verbs


async def test_no_smtp(remote, sockets):
    """A server of something else is no mail host."""
    remote.says("GREETING", "SSH-2.0-OpenSSH_9.2")
    outcome = await failed(remote, sockets)

    assert Verdict.DEFERRED is outcome.verdict
    assert outcome.text.startswith("protocol error: ")


@pytest.mark.parametrize("verb", ["GREETING", "EHLO"])
async def test_silence_at_the_beginning(remote, sockets, verb):
    """A remote that says nothing is given up."""
    remote.held[verb] = asyncio.Event()
    outcome = await failed(remote, sockets, command_timeout=0.03)

    assert "no answer within 0.03 seconds" == outcome.text


async def test_cancelled_while_it_says_hello(remote, sockets):
    """Who gives up cuts the connection."""
    remote.held["EHLO"] = asyncio.Event()
    ends = Ends()
    connecting = asyncio.ensure_future(
        connect(hop_to(remote), ALPHA, sockets, patience(port=remote.port), ends)
    )
    await remote.until(lambda: remote.sessions and remote.sessions[0].verbs)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    remote.held["EHLO"].set()
    await remote.until(lambda: remote.sessions[0].verbs[-1] == "gone")

    assert 1 == len(ends.gone)


async def test_only_helo(remote, sockets):
    """A server of the last century gets mail too (RFC 5321 section 3.2)."""
    remote.says("EHLO", "500 what?")
    async with connected(remote, sockets) as connection:
        result = await send(connection)

    assert 250 == result.replies[BOB].code
    assert ["EHLO", "HELO", "MAIL"] == remote.sessions[0].verbs[:3]


# Sending ----------------------------------------------------------------------------


@pytest.mark.parametrize("extensions", [("PIPELINING",), ()])
async def test_a_message_arrives_byte_for_byte(sockets, extensions):
    """Envelope and body come out as they were, dots and all."""
    async with (
        Remote(extensions=extensions) as remote,
        connected(remote, sockets) as connection,
    ):
        result = await send(connection, BOB, EVE)

        assert {BOB: 250, EVE: 250} == {to: r.code for to, r in result.replies.items()}
        assert result.body_sent
        (arrived,) = remote.messages
        assert ("ann@alpha.example", [BOB, EVE], MESSAGE) == (
            arrived.sender,
            arrived.recipients,
            arrived.body,
        )


async def test_each_recipient_has_its_own_reply(remote, sockets):
    """One refused, one for later, one taken."""
    remote.says(f"RCPT {EVE}", "550 5.1.1 no such user")
    remote.says("RCPT dan@b.example", "451 4.2.1 greylisted")
    async with connected(remote, sockets) as connection:
        result = await send(connection, BOB, EVE, "dan@b.example")

    assert {BOB: 250, EVE: 550, "dan@b.example": 451} == {
        to: reply.code for to, reply in result.replies.items()
    }
    assert [BOB] == remote.messages[0].recipients


async def test_nobody_taken(remote, sockets):
    """If no recipient is taken no body is sent, and the connection goes on."""
    remote.says("RCPT", "550 5.1.1 no such user", "250 ok")
    async with connected(remote, sockets) as connection:
        first = await send(connection)
        assert (550, False) == (first.replies[BOB].code, first.body_sent)
        assert connection.usable
        second = await send(connection)

    assert 250 == second.replies[BOB].code
    # A pipelined DATA was accepted all the same (RFC 2920 section 3.1).
    assert [([], b""), ([BOB], MESSAGE)] == [
        (arrived.recipients, arrived.body) for arrived in remote.messages
    ]


CHUNKING = ("PIPELINING", "CHUNKING", "SIZE 50000000")


@pytest.fixture
def written(monkeypatch):
    """What the connection wrote, write by write."""
    pieces: list[bytes] = []
    flush = module.Connection._flush

    def noted(self):
        if (transport := self._transport) is not None:
            self._transport = _Noted(transport, pieces)
        flush(self)
        self._transport = transport

    monkeypatch.setattr(module.Connection, "_flush", noted)
    return pieces


class _Noted:
    def __init__(self, transport, pieces):
        self._transport, self._pieces = transport, pieces

    def write(self, data):
        self._pieces.append(data)
        self._transport.write(data)

    def __getattr__(self, name):
        return getattr(self._transport, name)


async def test_a_short_message_goes_in_one_write(sockets, written):
    """Envelope and body together, where the remote takes chunks."""
    async with Remote(extensions=CHUNKING) as remote:
        async with connected(remote, sockets) as connection:
            await send(connection)
            await send(connection)

        assert [MESSAGE, MESSAGE] == [each.body for each in remote.messages]
        assert 3 == len(written)  # EHLO and two messages
        assert written[2].startswith(b"MAIL ")
        assert written[2].endswith(MESSAGE)


async def test_a_large_body_in_chunks(sockets, tmp_path):
    body = (b"x" * 70 + b"\r\n.\r\n") * 10_000
    async with Remote(extensions=CHUNKING) as remote:
        async with connected(remote, sockets) as connection:
            result = await connection.send(
                transaction(body=body), in_file(tmp_path, body)
            )

        assert 250 == result.replies[BOB].code
        [arrived] = remote.messages
        assert body == arrived.body
        assert 2 < remote.sessions[0].verbs.count("BDAT")


async def test_a_chunk_refused(sockets, tmp_path):
    """The rest is not sent, and the connection is good for the next message."""
    body = (b"x" * 70 + b"\r\n") * 100_000
    async with Remote(extensions=CHUNKING) as remote:
        remote.says("BDAT", "552 5.3.4 too large", "503 5.5.1 reset first")
        async with connected(remote, sockets) as connection:
            result = await connection.send(
                transaction(body=body), in_file(tmp_path, body)
            )
            assert "too large" == result.replies[BOB].text
            assert not result.body_sent
            assert connection.usable
            await send(connection)

        assert [MESSAGE] == [each.body for each in remote.messages]


async def test_a_message_to_a_connection_that_is_over(sockets):
    """It went out whole, but nobody listened: another connection may be asked."""
    async with Remote(extensions=CHUNKING) as remote:
        remote.says("MAIL", CUT)
        async with connected(remote, sockets) as connection:
            result = await send(connection)

    assert 421 == result.replies[BOB].code
    assert not result.body_sent


async def test_a_store(sockets):
    """LMTP: each recipient has its own reply to the body."""
    async with Remote(lmtp=True) as remote:
        remote.says(f"BODY {EVE}", "452 4.2.2 full")
        hop = Hop("store.example", ipaddress.ip_address(remote.address), remote.port)
        hop = dataclasses.replace(hop, lmtp=True)
        connection = await connect(hop, ALPHA, sockets, patience(), lambda _: None)
        result = await send(connection, BOB, EVE)
        connection.abort()
        await connection.gone

    assert {BOB: 250, EVE: 452} == {to: r.code for to, r in result.replies.items()}
    assert [MESSAGE] == [each.body for each in remote.messages]
    assert ["LHLO", "MAIL", "RCPT", "RCPT", "DATA", "BODY"] == (
        remote.sessions[0].verbs[:6]
    )


async def test_many_messages_on_one_connection(remote, sockets):
    """A connection serves one message after the other."""
    async with connected(remote, sockets) as connection:
        for number in range(5):
            result = await send(connection, body=b"number %d\r\n" % number)
            assert 250 == result.replies[BOB].code
            assert connection.usable
        assert 5 == connection.transactions

    assert [b"number %d\r\n" % n for n in range(5)] == [
        arrived.body for arrived in remote.messages
    ]
    assert 1 == len(remote.sessions)


async def test_a_large_body_from_a_file(remote, sockets, tmp_path):
    """A large body is read from its file as the remote takes it."""
    lines = random.Random(1)  # noqa: S311
    data = b"".join(
        b"." * lines.randrange(3) + b"x" * lines.randrange(900) + b"\r\n"
        for _ in range(6000)
    )
    body = in_file(tmp_path, data)
    async with connected(remote, sockets) as connection:
        result = await connection.send(transaction(body=data), body)

    assert 250 == result.replies[BOB].code
    assert data == remote.messages[0].body


@pytest.mark.parametrize(
    ("verb", "body_sent"), [("MAIL", False), ("DATA", False), ("BODY", True)]
)
async def test_the_connection_breaks(remote, sockets, verb, body_sent):
    """A break before the body's end is told from one after it (RFC 1047)."""
    remote.says(verb, CUT)
    ends = Ends()
    async with connected(remote, sockets, ends) as connection:
        result = await send(connection)
        assert not connection.usable

    reply = result.replies[BOB]
    assert (421, "4.4.2", body_sent) == (reply.code, reply.enhanced, result.body_sent)
    assert reply.text.startswith("connection lost")
    assert body_sent is ("may have been delivered" in reply.text)
    assert [connection] == ends.gone


@pytest.mark.parametrize("verb", ["MAIL", "DATA", "BODY"])
async def test_silence(remote, sockets, verb):
    """A remote that falls silent is given up, and it is said why."""
    remote.held[verb] = asyncio.Event()
    times = {"command_timeout": 0.03, "data_timeout": 0.03}
    async with connected(remote, sockets, **times) as connection:
        result = await send(connection)

    reply = result.replies[BOB]
    assert (421, "4.4.2", "no answer within 0.03 seconds") == (
        reply.code,
        reply.enhanced,
        reply.text,
    )
    assert (verb == "BODY") is result.body_sent


async def test_what_was_said_before_the_silence_counts(remote, sockets):
    """A recipient refused for good stays refused."""
    remote.says(f"RCPT {EVE}", "550 5.1.1 no such user")
    remote.held["BODY"] = asyncio.Event()
    async with connected(remote, sockets, data_timeout=0.03) as connection:
        result = await send(connection, BOB, EVE)

    assert {BOB: 421, EVE: 550} == {to: r.code for to, r in result.replies.items()}


async def test_a_remote_that_stops_reading(remote, sockets, tmp_path):
    """Silence counts as well while we are the one who speaks."""
    data = b"x" * 70 + b"\r\n"
    data *= 300_000
    remote.held["stop"] = asyncio.Event()

    async def stop(*_):
        await remote.held["stop"].wait()

    remote._body = stop
    async with connected(remote, sockets, command_timeout=0.1) as connection:
        result = await connection.send(transaction(body=data), in_file(tmp_path, data))

    assert ("no answer within 0.1 seconds", False) == (
        result.replies[BOB].text,
        result.body_sent,
    )


@pytest.mark.parametrize("early", ["552 5.3.4 too much", "421 4.3.2 going down"])
async def test_refused_before_the_end_of_the_body(remote, sockets, early, tmp_path):
    """The remote's early word counts; the rest of the body is not sent."""
    data = b"x" * 70 + b"\r\n"
    data *= 100_000
    remote.early = (1000, early)
    async with connected(remote, sockets) as connection:
        result = await connection.send(transaction(body=data), in_file(tmp_path, data))
        assert not connection.usable

    assert (early[:3], False) == (str(result.replies[BOB].code), result.body_sent)
    assert [] == remote.messages


class SlowFile(Body):
    """A body whose file has nothing left, which is known only when told."""

    known = threading.Event()

    def chunks(self, n=0):
        yield MESSAGE
        self.known.wait()


@pytest.mark.parametrize("early", ["421 4.3.2 going down", CUT])
async def test_ended_while_the_last_of_a_file_is_read(remote, sockets, early):
    """A body whose end was never sent was not sent."""
    remote.early = (len(MESSAGE), early)
    SlowFile.known.clear()
    async with connected(remote, sockets) as connection:
        connection.gone.add_done_callback(lambda _: SlowFile.known.set())
        body = SlowFile(b"", Path("body"), len(MESSAGE) + 1)
        result = await connection.send(transaction(), body)

    assert (421, False) == (result.replies[BOB].code, result.body_sent)


async def test_a_body_that_cannot_be_sent(remote, sockets):
    """A bare line feed is never sent on, and the message does not arrive cut off."""
    async with connected(remote, sockets) as connection:
        with pytest.raises(SmtpProtocolError):
            await send(connection, body=b"one\r\n" * 10 + b"two\nthree\r\n")
        assert not connection.usable
        await connection.gone

    await remote.until(lambda: remote.sessions[0].verbs[-1] == "gone")
    assert [] == remote.messages


async def test_a_body_that_cannot_be_read(remote, sockets, tmp_path):
    """A file that is short or gone does not become half a message."""
    body = in_file(tmp_path, MESSAGE)
    body.file_size += 1
    async with connected(remote, sockets) as connection:
        with pytest.raises(QueueUnavailable, match="1 bytes short"):
            await connection.send(transaction(), body)
        assert not connection.usable

    await remote.until(lambda: remote.sessions[0].verbs[-1] == "gone")
    assert [] == remote.messages


async def test_cancelled_in_the_middle(remote, sockets):
    """Nobody takes up half a dialogue: the connection is cut and not used again."""
    remote.held["DATA"] = asyncio.Event()
    async with connected(remote, sockets) as connection:
        sending = asyncio.ensure_future(send(connection))
        await remote.until(lambda: "DATA" in remote.sessions[0].verbs)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert not connection.usable

    remote.held["DATA"].set()
    await remote.until(lambda: remote.sessions[0].verbs[-1] == "gone")
    assert [] == remote.messages


# Idle, and the end --------------------------------------------------------------------


async def test_the_remote_ends_it_while_idle(remote, sockets):
    """A connection with 421 or an end on it is of no use."""
    for end in (lambda: remote.tell("421 idle for too long"), remote.cut):
        ends = Ends()
        async with connected(remote, sockets, ends) as connection:
            end()
            await connection.gone

            assert not connection.usable
            assert [connection] == ends.gone
            result = await send(connection)
            assert (421, False) == (result.replies[BOB].code, result.body_sent)


async def test_quit(remote, sockets):
    """QUIT is said, and its answer waited for."""
    async with connected(remote, sockets) as connection:
        connection.quit()
        assert not connection.usable
        await connection.gone
        connection.quit()

    await remote.until(lambda: remote.sessions[0].verbs[-1] == "gone")
    assert ["EHLO", "QUIT", "gone"] == remote.sessions[0].verbs


async def test_quit_is_not_answered(remote, sockets, monkeypatch):
    """The mail is safe, so nobody waits long for the answer to QUIT."""
    monkeypatch.setattr(module, "QUIT_TIMEOUT", 0.03)
    remote.held["QUIT"] = asyncio.Event()
    async with connected(remote, sockets) as connection:
        connection.quit()
        await connection.gone


async def test_silence_does_not_end_an_idle_connection(remote, sockets):
    """An idle connection waits for nothing; how long it is kept is the pool's."""
    async with connected(remote, sockets, command_timeout=0.02) as connection:
        await send(connection)
        await asyncio.sleep(0.05)

        assert connection.usable
        assert 250 == (await send(connection)).replies[BOB].code
