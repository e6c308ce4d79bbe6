import asyncio
import contextlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.delivery.helpers import NOW, Table, envelope, facts, server_failure
from tests.delivery.remote import CUT, PATIENCE, Loopback, Remote
from vnsmail.delivery import agent as module
from vnsmail.delivery.agent import DeliveryAgent
from vnsmail.errors import BrokerGone, QueueUnavailable, SourceUnavailable
from vnsmail.model import Family, Outcome, Verdict
from vnsmail.queue.body import Body, BodyWriter
from vnsmail.queue.queue import Queue
from vnsmail.settings import QueueSettings, Settings, SmtpSettings

# On uvloop a signal, which the usual method sends, is not seen while nothing happens.
pytestmark = pytest.mark.timeout(method="thread")

BOB, EVE, ANN = "bob@b.example", "eve@b.example", "ann@alpha.example"
MESSAGE = b"Subject: hello\r\nMessage-ID: <1@alpha.example>\r\n\r\nhello\r\n"
SOURCE = "127.0.0.1"
IN_A_MAILBOX = Outcome(Verdict.DELIVERED, 250, "2.1.5", "in the mailbox")
ALPHA = facts(SOURCE)


class WatchedQueue:
    """A queue whose settling can be watched, and made to fail."""

    def __init__(self, queue):
        self._queue = queue
        self.settled = []
        self.loaded = []
        self.settle_errors: deque[Exception] = deque()
        self.due_errors: deque[Exception] = deque()
        self.happened = asyncio.Condition()

    def __getattr__(self, name):
        return getattr(self._queue, name)

    async def settle(self, message_id, outcomes, retry_at, accept=()):
        if self.settle_errors:
            raise self.settle_errors.popleft()
        await self._queue.settle(message_id, outcomes, retry_at, accept)
        self.settled.append((message_id, outcomes, retry_at, accept))
        async with self.happened:
            self.happened.notify_all()

    async def due(self, *arguments):
        if self.due_errors:
            raise self.due_errors.popleft()
        return await self._queue.due(*arguments)

    async def load(self, message_id):
        self.loaded.append(message_id)
        return await self._queue.load(message_id)

    async def until_settled(self, count):
        async with asyncio.timeout(PATIENCE), self.happened:
            await self.happened.wait_for(lambda: len(self.settled) >= count)

    async def empty(self):
        """Wait until nothing is queued."""
        async with asyncio.timeout(PATIENCE):
            while (await self._queue.counts()).messages:
                async with self.happened:
                    await self.happened.wait()


class Post:
    """An owner's delivery, with everything around it."""

    def __init__(self, queue, remote, sockets):
        self.queue: Any = WatchedQueue(queue)
        self.remote = remote
        self.sockets = sockets
        self.now = NOW
        self.dns = Table({}, {"b.example": ["127.0.0.2"]})
        self.mailboxes: list[tuple[str, bytes, str]] = []
        self.mailbox_errors: deque[Exception] = deque()
        self.rules = QueueSettings(first_retry=300, lifetime=86400)
        self.agent: DeliveryAgent
        self._running: asyncio.Task[None]

    def make(self, who=ALPHA):
        self.agent = DeliveryAgent(
            facts=who,
            queue=self.queue,
            sockets=self.sockets,
            resolver=self.dns,
            local_delivery=self._deliver_here,
            settings=Settings(
                smtp=SmtpSettings(port=self.remote.port), queue=self.rules
            ),
            clock=lambda: self.now,
            chance=lambda: 0.5,
        )

    async def _deliver_here(self, recipient, body, sent):
        if self.mailbox_errors:
            raise self.mailbox_errors.popleft()
        self.mailboxes.append((recipient, b"".join(body.chunks()), sent.sender))
        return IN_A_MAILBOX

    async def start(self):
        self._running = asyncio.ensure_future(self.agent.run())
        await turn()

    async def stop(self):
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    async def send(self, *recipients, body=None, **changed):
        """Accept a message and hand it over, as the receiving side does."""
        sent = envelope(*recipients, **changed)
        body = body or Body(MESSAGE)
        await self.queue.accept(sent, body)
        self.agent.hand_over(sent, body)
        return sent

    def forward(self, seconds):
        """Let time pass."""
        self.now += seconds
        self.agent._look.set()

    async def waiting(self):
        """Return what is queued: (recipient, attempts, wait, last words)."""
        return [
            (
                r.address,
                r.attempts,
                r.next_attempt_at - self.now,
                r.last and r.last.text,
            )
            for message in await self.queue.list(100)
            for r in message.recipients
        ]


async def turn():
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
async def remote():
    async with Remote("127.0.0.2") as remote:
        yield remote


@pytest.fixture
async def post(tmp_path, remote):
    with ThreadPoolExecutor(2) as executor:
        queue = await Queue.open(tmp_path / "alpha.example", executor)
        post = Post(queue, remote, Loopback(SOURCE))
        post.make()
        yield post
        await queue.close()


@contextlib.asynccontextmanager
async def running(post):
    await post.start()
    try:
        yield
    finally:
        await post.stop()


def verdicts(outcomes):
    return {to: each.verdict.value for to, each in outcomes.items()}


# Handing over -------------------------------------------------------------------


async def test_a_message_is_delivered(post):
    """What was accepted leaves from the owner's address, and leaves the queue."""
    async with running(post):
        sent = await post.send(BOB, EVE)
        await post.queue.empty()

        (arrived,) = post.remote.messages
        assert (ANN, [BOB, EVE], MESSAGE, SOURCE) == (
            arrived.sender,
            arrived.recipients,
            arrived.body,
            arrived.peer,
        )
        ((message_id, outcomes, retry_at, notices),) = post.queue.settled
        assert (sent.id, {}, ()) == (message_id, retry_at, notices)
        assert {
            Outcome(
                Verdict.DELIVERED,
                250,
                "2.0.0",
                "taken",
                "b.example [127.0.0.2]",
                SOURCE,
            )
        } == set(outcomes.values())
        await turn()
        assert (0, "") == (post.agent.in_flight, post.agent.problem)


async def test_it_is_not_read_again(post):
    """A message that was handed over is delivered from memory."""
    async with running(post):
        await post.send(BOB)
        await post.queue.empty()

    assert [] == post.queue.loaded


async def test_a_large_message(post, tmp_path):
    """A body in a file goes out byte for byte."""
    writer = BodyWriter(tmp_path / "alpha.example", threshold=0)
    data = b"".join(b"line %d\r\n" % n for n in range(50_000))
    writer.write(data)
    async with running(post):
        await post.send(BOB, body=writer.finish())
        await post.queue.empty()

    assert data == post.remote.messages[0].body


async def test_what_was_queued_before(post):
    """After a start, what is in the queue is delivered."""
    sent = envelope(BOB)
    await post.queue.accept(sent, Body(MESSAGE))
    async with running(post):
        await post.queue.empty()

    assert [sent.id] == post.queue.loaded
    assert MESSAGE == post.remote.messages[0].body


async def test_handed_over_twice(post):
    """A message in flight is not attempted a second time."""
    post.remote.held["DATA"] = asyncio.Event()
    async with running(post):
        sent = await post.send(BOB)
        post.agent.hand_over(sent, Body(MESSAGE))
        await post.remote.until(
            lambda: post.remote.sessions and "DATA" in post.remote.sessions[0].verbs
        )
        post.forward(0)
        await turn()
        assert 1 == post.agent.in_flight
        post.remote.held["DATA"].set()
        await post.queue.empty()

    assert 1 == len(post.remote.messages)


async def test_a_backlog(post, monkeypatch):
    """A long queue is worked off, each message once, over few connections."""
    monkeypatch.setattr(module, "MAX_FROM_QUEUE", 20)
    monkeypatch.setattr(module, "BATCH", 7)
    ids = set()
    for number in range(60):
        sent = envelope(BOB)
        ids.add(sent.id)
        await post.queue.accept(sent, Body(b"number %d\r\n" % number))
    async with running(post):
        await post.queue.empty()

    assert {b"number %d\r\n" % n for n in range(60)} == {
        arrived.body for arrived in post.remote.messages
    }
    assert 60 == len(post.remote.messages)
    assert len(post.remote.sessions) <= 10


async def test_too_much_in_flight(post, monkeypatch):
    """What is handed over beyond the limit waits in the queue, and is not forgotten."""
    monkeypatch.setattr(module, "MAX_IN_FLIGHT", 3)
    monkeypatch.setattr(module, "MAX_FROM_QUEUE", 2)
    post.remote.held["DATA"] = asyncio.Event()
    async with running(post):
        for number in range(10):
            await post.send(BOB, body=Body(b"number %d\r\n" % number))
        assert 3 == post.agent.in_flight
        post.remote.held["DATA"].set()
        await post.queue.empty()

    assert 10 == len({arrived.body for arrived in post.remote.messages})
    assert 10 == len(post.remote.messages)


async def test_too_much_in_memory(post, monkeypatch):
    """Bodies beyond the limit are read when they are needed."""
    monkeypatch.setattr(module, "MAX_HELD", len(MESSAGE))
    post.remote.held["DATA"] = asyncio.Event()
    async with running(post):
        await post.send(BOB)
        second = await post.send(EVE)
        await turn()
        post.remote.held["DATA"].set()
        await post.queue.empty()

        assert [second.id] == post.queue.loaded
        await turn()
        assert 0 == post.agent._held


# Deferred -----------------------------------------------------------------------


async def test_tried_again(post):
    """A deferred recipient is tried again when it is due, and the others are not."""
    post.remote.says(f"RCPT {EVE}", "451 4.7.1 greylisted", "250 ok")
    async with running(post):
        await post.send(BOB, EVE)
        await post.queue.until_settled(1)
        assert [(EVE, 1, 300, "greylisted")] == await post.waiting()
        post.forward(299)
        await turn()
        assert 1 == len(post.remote.messages)
        post.forward(1)
        await post.queue.empty()

    assert [[BOB], [EVE]] == [a.recipients for a in post.remote.messages]


async def test_each_wait_is_longer(post):
    """Waits double from attempt to attempt."""
    post.remote.says("RCPT", "451 4.7.1 later")
    async with running(post):
        await post.send(BOB)
        for attempt, wait in enumerate((300, 600, 1200), 1):
            await post.queue.until_settled(attempt)
            assert [(BOB, attempt, wait, "later")] == await post.waiting()
            post.forward(wait)


async def test_a_remote_that_is_down(post):
    """Nobody listens: the message waits, and the hop is left alone for a while."""
    post.dns.hosts["b.example"] = ["127.0.0.3"]
    async with running(post):
        await post.send(BOB)
        await post.send(EVE)
        await post.queue.until_settled(2)

        assert 2 == len(await post.waiting())
        assert {"connection refused"} == {row[3] for row in await post.waiting()}
        assert "" == post.agent.problem


async def test_given_up(post):
    """A message whose lifetime is over goes back, with what was met last."""
    post.dns.hosts["b.example"] = server_failure("b.example", "A")
    async with running(post):
        await post.send(BOB)
        await post.queue.until_settled(1)
        post.forward(post.rules.lifetime)
        await post.queue.empty()

    ((to, notice, sender),) = post.mailboxes
    assert (ANN, "") == (to, sender)
    words = b"given up after 24 hours; the last answer was: cannot resolve b.example A"
    assert words in b" ".join(notice.split())
    assert b"Status: 4.4.7" in notice


# Failed -------------------------------------------------------------------------


async def test_the_sender_is_told(post):
    """A notice goes to the sender in the transaction that takes the recipient out."""
    post.remote.says("RCPT", "550 5.1.1 no such user")
    async with running(post):
        sent = await post.send(BOB)
        await post.queue.until_settled(1)
        message_id, outcomes, _, ((notice, body),) = post.queue.settled[0]
        await post.queue.empty()

    assert (sent.id, {BOB: "failed"}) == (message_id, verdicts(outcomes))
    assert ("", (ANN,), "alpha.example") == (
        notice.sender,
        notice.recipients,
        notice.owner,
    )
    for words in (b"no such user", b"Status: 5.1.1", b"<1@alpha.example>"):
        assert words in body.head
    assert [(ANN, body.head, "")] == post.mailboxes


async def test_a_notice_is_never_answered_by_a_notice(post):
    """A message with the null reverse-path that fails just leaves (RFC 5321 4.5.5)."""
    post.remote.says("RCPT", "550 5.1.1 no such user")
    async with running(post):
        await post.send(BOB, sender="")
        await post.queue.empty()

    ((_, outcomes, _, notices),) = post.queue.settled
    assert ({BOB: "failed"}, ()) == (verdicts(outcomes), notices)
    assert [] == post.mailboxes


async def test_one_notice_for_one_attempt(post):
    """Failures wait for the other domains, so that the sender gets one notice."""
    post.dns.hosts["c.example"] = ["127.0.0.2"]
    post.remote.says(f"RCPT {BOB}", "550 5.1.1 no such user")
    post.remote.says("RCPT dan@c.example", "550 5.7.1 not wanted")
    post.remote.held["RCPT"] = asyncio.Event()
    async with running(post):
        await post.send(BOB, "dan@c.example", "eve@d.example", ANN)
        await post.queue.until_settled(1)
        assert {ANN: "delivered"} == verdicts(post.queue.settled[0][1])
        post.remote.held["RCPT"].set()
        await post.queue.until_settled(2)

    _, outcomes, _, ((_, notice),) = post.queue.settled[1]
    assert {"failed"} == set(verdicts(outcomes).values())
    assert 3 == len(outcomes)
    for recipient in outcomes:
        assert 1 == notice.head.count(
            b"Final-Recipient: rfc822; %b" % recipient.encode()
        )


async def test_failed_and_deferred(post):
    """Each recipient of one domain goes its own way."""
    post.remote.says(f"RCPT {BOB}", "550 5.1.1 no such user")
    post.remote.says(f"RCPT {EVE}", "451 4.2.1 later")
    async with running(post):
        await post.send(BOB, EVE, "dan@b.example")
        await post.queue.until_settled(1)

    _, outcomes, retry_at, notices = post.queue.settled[0]
    assert {BOB: "failed", EVE: "deferred", "dan@b.example": "delivered"} == verdicts(
        outcomes
    )
    assert {EVE: NOW + 300} == retry_at
    assert 1 == len(notices)


async def test_no_headers_to_return(post, tmp_path):
    """If the message cannot be read, its sender is told all the same."""
    post.dns.hosts.clear()
    writer = BodyWriter(tmp_path / "alpha.example", threshold=0)
    writer.write(MESSAGE)
    sent = envelope(BOB)
    body = writer.finish()
    await post.queue.accept(sent, body)
    assert body.file is not None
    body.file.unlink()
    async with running(post):
        await post.queue.until_settled(1)

    assert 1 == len(post.queue.settled[0][3])


# The source ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [SourceUnavailable("alpha.example", SOURCE, 99, "no such address"), BrokerGone()],
)
async def test_without_a_source(post, error):
    """The message waits, with a reason; no retry is used up; it goes when it can."""
    post.sockets.errors.append(error)
    async with running(post):
        await post.send(BOB)
        await post.queue.until_settled(1)

        assert [(BOB, 0, 30, str(error))] == await post.waiting()
        assert [] == post.remote.sessions
        assert 1 == len(post.sockets.asked)
        assert str(error) == post.agent.problem
        post.forward(30)
        await post.queue.empty()
        assert "" == post.agent.problem

    assert SOURCE == post.remote.messages[0].peer


async def test_without_a_source_no_other_family(post):
    """A host with two families whose IPv6 address is missing does not use IPv4."""
    post.make(facts(SOURCE, "fd00::1"))
    post.dns.hosts["b.example"] = ["fd00::2", "127.0.0.2"]
    post.sockets.errors.append(SourceUnavailable("alpha.example", "fd00::1", 99))
    async with running(post):
        await post.send(BOB)
        await post.queue.until_settled(1)

    assert [("alpha.example", Family.IPV6)] == post.sockets.asked
    assert [] == post.remote.sessions
    ((_, _, _, words),) = await post.waiting()
    assert words.startswith("cannot send as alpha.example: fd00::1 is not usable here")


async def test_another_source_than_the_own(post):
    """If the kernel chose another address, nothing is said to the remote."""
    post.sockets.claimed = "127.0.0.9"
    async with running(post):
        await post.send(BOB)
        await post.queue.until_settled(1)

        ((_, attempts, _, words),) = await post.waiting()
        assert 0 == attempts
        assert "the kernel chose 127.0.0.1 instead" in words
        await post.remote.until(lambda: post.remote.sessions)
        await post.remote.until(lambda: post.remote.sessions[0].verbs)
        assert ["gone"] == post.remote.sessions[0].verbs


# Here ---------------------------------------------------------------------------


async def test_local_recipients(post):
    """Mail for the owner's own domains goes to mailboxes, never to a remote."""
    async with running(post):
        await post.send("ann@Alpha.Example", "postmaster")
        await post.queue.empty()

    assert [
        ("ann@Alpha.Example", MESSAGE, ANN),
        ("postmaster", MESSAGE, ANN),
    ] == post.mailboxes
    assert [] == post.dns.asked


async def test_one_mailbox_in_trouble(post):
    """Trouble with one mailbox keeps nobody else's mail."""
    post.mailbox_errors.append(QueueUnavailable("/mail/ann", "disk full"))
    async with running(post):
        await post.send(ANN, "dan@alpha.example")
        await post.queue.until_settled(1)

        assert ["dan@alpha.example"] == [to for to, *_ in post.mailboxes]
        words = "cannot use the queue /mail/ann: disk full"
        assert [(ANN, 1, 300, words)] == await post.waiting()


async def test_changed_facts(post):
    """A new domain is the owner's from the next attempt on."""
    async with running(post):
        post.agent.update(facts(SOURCE, domains=("alpha.example", "b.example")))
        await post.send(BOB)
        await post.queue.empty()

    assert [BOB] == [to for to, *_ in post.mailboxes]


# Trouble with ourselves ---------------------------------------------------------


async def test_a_fault_of_ours(post):
    """A fault defers the message with a reason; it is neither lost nor in a circle."""
    post.mailbox_errors.append(RuntimeError("a fault"))
    async with running(post):
        await post.send(ANN, BOB)
        await post.queue.until_settled(2)

        words = "RuntimeError('a fault')"
        assert [(ANN, 1, 300, words)] == await post.waiting()
        assert 1 == len(post.remote.messages)
        post.forward(300)
        await post.queue.empty()
    assert [ANN] == [to for to, *_ in post.mailboxes]


async def test_a_fault_in_settling(post, monkeypatch):
    """Even then the message stays in the queue, and other mail flows."""
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.01)
    post.queue.settle_errors.append(RuntimeError("a fault"))
    async with running(post):
        await post.send(ANN)
        await post.send("dan@alpha.example")
        await post.queue.until_settled(1)
        assert 1 <= len(await post.waiting())
        post.forward(0)
        while post.agent.in_flight:
            await asyncio.sleep(0)
        post.forward(0)
        await post.queue.empty()


async def test_the_queue_cannot_be_written(post, monkeypatch):
    """What was delivered is settled as soon as that can be, and not sent again."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    error = QueueUnavailable("/q", "disk full")
    post.queue.settle_errors.extend([error] * 3)
    async with running(post):
        await post.send(BOB)
        while post.queue.settle_errors:
            await asyncio.sleep(0)
        assert str(error) == post.agent.problem
        await post.queue.empty()
        post.forward(0)
        while post.agent.problem:
            await asyncio.sleep(0)

    assert 1 == len(post.remote.messages)


async def test_the_queue_cannot_be_written_and_a_notice_is_due(post, monkeypatch):
    """The notice is written once, however often it is tried."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.001)
    post.queue.settle_errors.extend([QueueUnavailable("/q", "disk full")] * 3)
    post.remote.says("RCPT", "550 5.1.1 no such user")
    async with running(post):
        await post.send(BOB)
        await post.queue.empty()

    assert 1 == len(post.mailboxes)


async def test_the_queue_cannot_be_read(post, monkeypatch):
    """It is asked again soon, and the trouble is told meanwhile."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    error = QueueUnavailable("/q", "input/output error")
    post.queue.due_errors.extend([error] * 2)
    await post.queue.accept(envelope(BOB), Body(MESSAGE))
    async with running(post):
        assert str(error) == post.agent.problem
        await post.queue.empty()
        assert "" == post.agent.problem


async def test_withdrawn(post):
    """A message that left the queue while it was in flight is no trouble."""
    post.remote.held["BODY"] = asyncio.Event()
    async with running(post):
        sent = await post.send(BOB)
        await post.remote.until(
            lambda: post.remote.sessions and "BODY" in post.remote.sessions[0].verbs
        )
        await post.queue._queue.settle(
            sent.id, {BOB: Outcome(Verdict.FAILED, 550, "5.0.0", "withdrawn")}, {}
        )
        post.remote.held["BODY"].set()
        while post.agent.in_flight:
            await asyncio.sleep(0)

        assert [] == post.queue.settled
        await post.send(EVE)
        await post.queue.until_settled(1)


async def test_a_body_that_cannot_be_read(post, tmp_path):
    """Its local recipients wait, with a reason; other mail flows."""
    writer = BodyWriter(tmp_path / "alpha.example", threshold=0)
    writer.write(MESSAGE)
    body = writer.finish()
    await post.queue.accept(envelope(ANN), body)
    assert body.file is not None
    body.file.unlink()
    async with running(post):
        await post.queue.until_settled(1)
        ((to, attempts, wait, words),) = await post.waiting()
        await post.send("dan@alpha.example")
        await post.queue.until_settled(2)

    assert (ANN, 1, 300) == (to, attempts, wait)
    assert words.endswith("no such file or directory")
    assert ["dan@alpha.example"] == [who for who, *_ in post.mailboxes]


# The end ------------------------------------------------------------------------


async def test_drain_finishes_what_is_in_flight(post):
    """What is being said is finished; what comes then stays in the queue."""
    post.remote.held["BODY"] = asyncio.Event()
    await post.start()
    await post.send(BOB)
    await post.remote.until(
        lambda: post.remote.sessions and "BODY" in post.remote.sessions[0].verbs
    )
    draining = asyncio.ensure_future(post.agent.drain(30))
    await turn()
    late = await post.send(EVE)
    assert not draining.done()
    post.remote.held["BODY"].set()
    await draining
    await post._running

    assert [[BOB]] == [arrived.recipients for arrived in post.remote.messages]
    assert [late.id] == [m.envelope.id for m in await post.queue.list(9)]
    assert "QUIT" in post.remote.sessions[0].verbs


async def test_drain_cuts_what_takes_too_long(post):
    """After the grace it is cut off, and the queue has it all."""
    post.remote.held["DATA"] = asyncio.Event()
    await post.start()
    await post.send(BOB)
    await post.remote.until(
        lambda: post.remote.sessions and "DATA" in post.remote.sessions[0].verbs
    )
    await post.agent.drain(0.01)
    await post._running

    assert 0 == post.agent.in_flight
    assert [(BOB, 0, 0, None)] == await post.waiting()


async def test_cancelled(post):
    """A run that is cancelled leaves everything in the queue, for the next."""
    post.remote.held["DATA"] = asyncio.Event()
    async with running(post):
        await post.send(BOB)
        await post.remote.until(
            lambda: post.remote.sessions and "DATA" in post.remote.sessions[0].verbs
        )
    assert [(BOB, 0, 0, None)] == await post.waiting()
    post.remote.held["DATA"].set()

    async with running(post):
        await post.queue.empty()
    assert 1 == len(post.remote.messages)


async def test_a_drain_that_comes_first(post):
    """An agent told to end before it runs ends at once."""
    await post.agent.drain(30)
    await post.queue.accept(envelope(BOB), Body(MESSAGE))
    await post.agent.run()

    assert [] == post.remote.sessions


async def test_a_drain_of_a_second_run(post):
    """An agent that ran before is waited for like any other."""
    async with running(post):
        await post.send(BOB)
        await post.queue.empty()
    async with running(post):
        await post.send(EVE)
        await post.queue.empty()
        await turn()
        await post.agent.drain(30)

        assert post._running.done()


async def test_not_running(post):
    """What is handed over to an agent that does not run stays in the queue."""
    await post.send(BOB)

    assert (0, [(BOB, 0, 0, None)]) == (post.agent.in_flight, await post.waiting())


async def test_lost_after_the_body(post):
    """If nobody can know, it is tried again later, and nowhere else now."""
    post.remote.says("BODY", CUT, "250 ok")
    post.dns.exchangers["b.example"] = [(1, "b.example"), (2, "other.example")]
    post.dns.hosts["other.example"] = ["127.0.0.2"]
    async with running(post):
        await post.send(BOB)
        await post.queue.until_settled(1)

        ((_, attempts, wait, words),) = await post.waiting()
        assert (1, 300) == (attempts, wait)
        assert "the message may have been delivered" in words
        assert 1 == len(post.remote.sessions)
