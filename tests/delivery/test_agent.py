import asyncio
import contextlib
import functools
import json
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.delivery.helpers import NOW, Table, envelope, facts, server_failure
from tests.delivery.remote import CUT, PATIENCE, Loopback, Remote
from vnsmail.delivery import agent as module
from vnsmail.delivery import settling, sources, traffic
from vnsmail.delivery.agent import DeliveryAgent
from vnsmail.delivery.pace import FIRST_WINDOW
from vnsmail.delivery.shares import Shares
from vnsmail.errors import BrokerGone, QueueUnavailable, SourceUnavailable
from vnsmail.events import record
from vnsmail.model import DsnRequest, Family, Notify, Outcome, Ret, Verdict
from vnsmail.queue.body import Body, BodyWriter
from vnsmail.queue.queue import Queue
from vnsmail.settings import DeliverySettings, QueueSettings, Settings, SmtpSettings

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

    async def settle(self, message_id, outcomes, retry_at, accept=(), **more):
        if self.settle_errors:
            raise self.settle_errors.popleft()
        await self._queue.settle(message_id, outcomes, retry_at, accept, **more)
        self.settled.append((message_id, outcomes, retry_at, accept))
        async with self.happened:
            self.happened.notify_all()

    async def walk(self, *arguments):
        if self.due_errors:
            raise self.due_errors.popleft()
        return await self._queue.walk(*arguments)

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
        self.signature = b""
        self.rules = QueueSettings(first_retry=300, lifetime=86400)
        self.limits = DeliverySettings(loopback=True)
        self.agent: DeliveryAgent
        self._running: asyncio.Task[None]

    def make(self, who=ALPHA, shares=None, tell=record.untold):
        self.agent = DeliveryAgent(
            facts=who,
            queue=self.queue,
            sockets=self.sockets,
            resolver=self.dns,
            local_delivery=self._deliver_here,
            settings=Settings(
                smtp=SmtpSettings(port=self.remote.port),
                queue=self.rules,
                delivery=self.limits,
            ),
            shares=shares,
            tell=tell,
            sign=self._sign,
            clock=lambda: self.now,
            chance=lambda: 0.5,
        )

    async def _sign(self, body):
        return body.prefixed(self.signature)

    async def _deliver_here(self, recipient, body, sent, _again):
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
        self.agent._traffic.look.set()

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


class Few(Shares):
    """Less than an owner gets in life."""

    def __init__(self, messages, octets=10**9):
        super().__init__()
        self.limits = messages, octets

    @property
    def messages(self):
        return self.limits[0]

    @property
    def octets(self):
        return self.limits[1]


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


async def until(condition):
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


class Probe:
    """Time that passes for a missing address when it is told to."""

    def __init__(self):
        self.ticks = asyncio.Semaphore(0)

    async def sleep(self, _):
        await self.ticks.acquire()

    def tick(self):
        self.ticks.release()


@pytest.fixture
async def probe(post, monkeypatch):
    probe = Probe()
    make = functools.partial(sources.Sources, pause=probe.sleep)
    monkeypatch.setattr(module, "Sources", make)
    post.make()
    return probe


@pytest.fixture
def logged(capsys):
    def events():
        return [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    return events


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
    monkeypatch.setattr(traffic, "LANE_READY", 7)
    post.make(shares=Few(20))
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


async def test_too_much_in_flight(post):
    """What is handed over beyond the limit waits in the queue, and is not forgotten."""
    post.make(shares=Few(3))
    post.remote.held["DATA"] = asyncio.Event()
    async with running(post):
        for number in range(10):
            await post.send(BOB, body=Body(b"number %d\r\n" % number))
        assert 6 == post.agent.in_flight
        post.remote.held["DATA"].set()
        await post.queue.empty()

    assert 10 == len({arrived.body for arrived in post.remote.messages})
    assert 10 == len(post.remote.messages)


async def test_too_much_in_memory(post):
    """Bodies beyond the limit are read when they are needed."""
    post.make(shares=Few(100, len(MESSAGE)))
    post.remote.held["DATA"] = asyncio.Event()
    async with running(post):
        await post.send(BOB)
        second = await post.send(EVE)
        await turn()
        post.remote.held["DATA"].set()
        await post.queue.empty()

        assert [second.id] == post.queue.loaded
        await turn()
        assert 0 == post.agent._traffic._held


async def test_the_event_of_a_delivery(post, logged):
    """The log has the connection as the kernel has it, and how long things took."""
    async with running(post):
        await post.send(BOB)
        await post.queue.empty()

    (event,) = [each for each in logged() if each["event"] == "message.delivered"]
    port = post.remote.sessions[0].port
    assert {
        "source": SOURCE,
        "source_port": port,
        "helo": "alpha.example",
        "remote_name": "b.example",
        "remote_address": "127.0.0.2",
        "remote_port": post.remote.port,
        "tls": "none",
        "reply": "250 2.0.0 taken",
        "attempt": 1,
    }.items() <= event.items()
    times = {name: event[name] for name in ("connect", "hello", "data", "total")}
    assert {} == {name: time for name, time in times.items() if time <= 0}
    assert event["total"] >= event["hello"] + event["data"]
    assert event["queue_age"] == 0


async def test_events(post):
    """The event log has each attempt and each notice, in place of the daemon's log."""
    told: list[record.Event] = []
    post.make(tell=told.append)
    async with running(post):
        message = await post.send(BOB)
        await post.queue.empty()

    (event,) = told
    assert isinstance(event, record.Delivered)
    assert (message.id, BOB, 1) == (event.id, event.recipient, event.attempt)
    assert (SOURCE, post.remote.sessions[0].port) == (event.source, event.source_port)
    assert event.total_seconds > 0


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
        await post.queue.until_settled(1)
        await post.send(EVE)

        refused, untried = await post.waiting()
        assert (BOB, 1, 300, "connection refused") == refused
        assert (EVE, 0, 0, None) == untried
        assert "" == post.agent.problem
        assert [("b.example", NOW + 300, "connection refused")] == post.agent.resting()


async def test_one_asks_for_all(post):
    """A destination that comes back is asked by one message; then the others follow."""
    post.dns.hosts["b.example"] = ["127.0.0.3"]
    async with running(post):
        for _ in range(30):
            await post.send(BOB)
        await post.queue.until_settled(1)
        await turn()
        asked = len(post.queue.settled)
        assert asked <= FIRST_WINDOW
        for number, wait in enumerate((300, 600), 1):
            post.forward(wait)
            await post.queue.until_settled(asked + number)
            await turn()
            assert asked + number == len(post.queue.settled)
        assert asked + 2 == sum(each[1] for each in await post.waiting())
        post.dns.hosts["b.example"] = ["127.0.0.2"]
        post.agent.update(ALPHA)
        post.forward(1200)
        await post.queue.empty()

    assert 30 == len(post.remote.messages)


async def test_one_destination_delays_no_other(post):
    """However many wait for a slow destination, mail for another goes at once."""
    post.make(shares=Few(20))
    post.dns.hosts["c.example"] = ["127.0.0.4"]
    post.remote.held["RCPT"] = asyncio.Event()
    for number in range(60):
        await post.queue.accept(envelope(BOB), Body(b"%d" % number))
    async with Remote("127.0.0.4", post.remote.port) as other, running(post):
        await turn()
        for _ in range(60):
            await post.send(BOB)
        await post.send("dan@c.example")
        queued = envelope("eve@c.example")
        await post.queue.accept(queued, Body(b"from disk"))
        post.agent._traffic.due_again(NOW)
        await other.until(lambda: len(other.messages) >= 2)

        assert {("dan@c.example",), ("eve@c.example",)} == {
            tuple(arrived.recipients) for arrived in other.messages
        }
        assert [] == post.remote.messages
        assert post.agent.in_flight <= 20
        post.remote.held["RCPT"].set()
        await post.queue.empty()

    assert 120 == len(post.remote.messages)


async def test_given_up_while_its_destination_is_down(post):
    """A message that is never tried, as others are, ends with its lifetime too."""
    post.dns.hosts["b.example"] = ["127.0.0.3"]
    post.rules = QueueSettings(
        first_retry=80000, longest_retry=80000, lifetime=100, delay_warning=0
    )
    post.make()
    async with running(post):
        await post.send(BOB)
        await post.queue.until_settled(1)
        await post.send(EVE)
        post.forward(101)
        await post.queue.empty()

    assert 2 == len(post.mailboxes)
    assert all(b"connection refused" in notice for _, notice, _ in post.mailboxes)


async def test_late(post):
    """The sender is told once that a message is late, unless that is not wanted."""
    post.dns.hosts["b.example"] = ["127.0.0.3"]
    quiet = (DsnRequest(EVE, (Notify.FAILURE,)),)
    async with running(post):
        await post.send(BOB)
        await post.send(EVE, requests=quiet)
        await post.queue.until_settled(1)
        for _ in range(3):
            post.forward(post.rules.delay_warning + 1)
            await until(lambda: len(post.mailboxes) == 1)
            await turn()

    ((to, notice, sender),) = post.mailboxes
    assert (ANN, "") == (to, sender)
    assert b"Action: delayed" in notice
    assert b"bob@b.example" in notice
    assert b"connection refused" in notice


@pytest.mark.parametrize(
    ("notify", "told"),
    [((), True), (("NEVER",), False), (("SUCCESS",), False), (("FAILURE",), True)],
)
async def test_who_wants_to_know_of_failure(post, notify, told):
    """A notice goes to whoever did not say that it is not wanted (RFC 3461 4.1)."""
    post.remote.says("RCPT", "550 5.1.1 no such user")
    async with running(post):
        await post.send(BOB, requests=(DsnRequest(BOB, tuple(map(Notify, notify))),))
        await post.queue.empty()

    assert told == bool(post.mailboxes)


async def test_success_is_told_to_whoever_asked(post):
    """What was put into a mailbox is delivered; what a remote took is relayed."""
    asked = tuple(DsnRequest(to, (Notify.SUCCESS,)) for to in (BOB, ANN))
    async with running(post):
        await post.send(BOB, ANN, EVE, requests=asked, sender="dan@alpha.example")
        await post.queue.empty()

    notices = [body for to, body, _ in post.mailboxes if to == "dan@alpha.example"]
    assert [b"delivered", b"relayed"] == sorted(
        notice.partition(b"Action: ")[2].partition(b"\r\n")[0] for notice in notices
    )
    assert EVE.encode() not in b"".join(notices)


async def test_a_server_with_dsn_tells_of_success(post):
    """What was asked is passed on in its words, and nothing is told twice."""
    post.remote.extensions = (*post.remote.extensions, "DSN")
    asked = (
        DsnRequest(BOB, (Notify.SUCCESS, Notify.DELAY), "rfc822;Bob+2BX@b.example"),
    )
    async with running(post):
        await post.send(BOB, EVE, requests=asked, envid="QQ+2B1", ret=Ret.HDRS)
        await post.queue.empty()

    said = post.remote.sessions[0].arguments
    assert any(each.endswith(" RET=HDRS ENVID=QQ+2B1") for each in said)
    assert f"TO:<{BOB}> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Bob+2BX@b.example" in said
    assert f"TO:<{EVE}>" in said
    assert [] == post.mailboxes


async def test_a_server_without_dsn_is_not_asked_for_it(post):
    """Parameters that it does not know would be refused."""
    asked = (DsnRequest(BOB, (Notify.NEVER,)),)
    async with running(post):
        await post.send(BOB, requests=asked, envid="QQ", ret=Ret.FULL)
        await post.queue.empty()

    assert not [
        e for e in post.remote.sessions[0].arguments if "=QQ" in e or "NOT" in e
    ]


async def test_421_after_some_messages(post):
    """A server that wants few messages on a connection gets all, without a retry."""
    post.limits = DeliverySettings(loopback=True, connections=1)
    post.make()
    taken = "250 2.1.0 ok"
    post.remote.says("MAIL", taken, taken, "421 4.7.0 enough", taken)
    async with running(post):
        for _ in range(7):
            await post.send(BOB)
        await post.queue.empty()

    assert 7 == len(post.remote.messages)
    assert {"delivered"} == {
        verdict
        for _, outcomes, *_ in post.queue.settled
        for verdict in verdicts(outcomes).values()
    }
    assert {2} == {each.verbs.count("BODY") for each in post.remote.sessions[:3]}


async def test_the_whole_message_is_returned(post):
    """RET=FULL brings back every octet of a message that failed."""
    post.remote.says("RCPT", "550 5.1.1 no such user")
    async with running(post):
        await post.send(BOB, ret=Ret.FULL, envid="QQ1")
        await post.queue.empty()

    ((_, notice, _),) = post.mailboxes
    assert MESSAGE in notice
    assert b"Original-Envelope-Id: QQ1" in notice


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


async def test_a_notice_is_signed(post):
    """In the queue and on its way alike."""
    post.signature = b"DKIM-Signature: x\r\n"
    post.remote.says("RCPT", "550 5.1.1 no such user")
    async with running(post):
        await post.send(BOB)
        await post.queue.empty()

    ((_, _, _, ((_, notice),)), *_) = post.queue.settled
    assert notice.head.startswith(post.signature)
    assert [(ANN, notice.head, "")] == post.mailboxes


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


async def test_a_failure_holds_up_no_retry(post):
    """While a slow domain is waited for, recipients elsewhere are tried again."""
    post.dns.hosts["c.example"] = ["127.0.0.4"]
    post.remote.says("RCPT dan@d.example", "550 5.1.1 no such user")
    post.remote.says(f"RCPT {BOB}", "451 4.7.1 greylisted", "250 ok")
    slow = Remote("127.0.0.4", post.remote.port)
    slow.held["RCPT"] = asyncio.Event()
    async with slow, running(post):
        await post.send("eve@c.example", "dan@d.example", BOB)
        await post.queue.until_settled(1)
        assert {BOB: "deferred"} == verdicts(post.queue.settled[0][1])
        post.forward(300)
        taken = post.remote.messages
        await post.remote.until(lambda: [BOB] in [each.recipients for each in taken])
        assert [] == slow.messages
        slow.held["RCPT"].set()
        await post.queue.empty()

    assert [["eve@c.example"]] == [arrived.recipients for arrived in slow.messages]
    assert 1 == [each.recipients for each in taken].count([BOB])


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
async def test_without_a_source(post, error, probe, logged):
    """All mail is held, with a reason; no retry is used up; it goes when it can."""
    post.sockets.errors.extend([error] * 3)
    async with running(post):
        for to in (BOB, EVE, "dan@c.example"):
            await post.send(to)
        await until(lambda: post.agent.held)
        await turn()

        assert [(0, 0, None)] * 3 == [row[1:] for row in await post.waiting()]
        assert str(error) == post.agent.problem == post.agent.held
        assert post.agent.held_since is not None
        why: Any = post.agent.why("b.example")
        assert str(error) == why.text
        asked = len(post.sockets.asked)
        await post.send(BOB)
        await turn()
        assert (asked, []) == (len(post.sockets.asked), post.queue.settled)
        for _ in post.sockets.errors.copy():
            probe.tick()
            await turn()
            assert post.agent.held
        probe.tick()
        post.dns.hosts["c.example"] = ["127.0.0.2"]
        await post.queue.empty()
        assert "" == post.agent.problem

    assert 4 == len(post.remote.messages)
    assert SOURCE == post.remote.messages[0].peer
    events = [each["event"] for each in logged()]
    assert (1, 1) == (events.count("delivery.held"), events.count("delivery.resumed"))
    assert "message.deferred" not in events


async def test_without_a_source_local_mail_flows(post, probe):
    """A mailbox here needs no address to send from."""
    post.sockets.errors.append(BrokerGone())
    async with running(post):
        await post.send(BOB)
        await until(lambda: post.agent.held)
        await post.send(ANN)
        queued = envelope("dan@alpha.example")
        await post.queue.accept(queued, Body(MESSAGE))
        post.agent._traffic.due_again(NOW)
        await until(lambda: len(post.mailboxes) == 2)

        assert [(BOB, 0, 0, None)] == await post.waiting()


async def test_without_a_source_no_other_family(post, probe):
    """A host with two families whose IPv6 address is missing does not use IPv4."""
    post.make(facts(SOURCE, "fd00::1"))
    post.dns.hosts["b.example"] = ["fd00::2", "127.0.0.2"]
    post.dns.hosts["c.example"] = ["127.0.0.2"]
    missing = SourceUnavailable("alpha.example", "fd00::1", 99)
    post.sockets.errors.append(missing)
    async with running(post):
        await post.send(BOB)
        await until(lambda: post.agent.held)

        assert [("alpha.example", Family.IPV6)] == post.sockets.asked
        assert [] == post.remote.sessions
        assert post.agent.held.startswith(
            "cannot send as alpha.example: fd00::1 is not usable here"
        )
        await post.send("dan@c.example")
        await post.queue.until_settled(1)
        assert [["dan@c.example"]] == [a.recipients for a in post.remote.messages]
        assert [(BOB, 0, 0, None)] == await post.waiting()


async def test_another_source_than_the_own(post, probe):
    """If the kernel chose another address, nothing is said to the remote."""
    post.sockets.claimed = "127.0.0.9"
    async with running(post):
        await post.send(BOB)
        await until(lambda: post.agent.held)

        assert "the kernel chose 127.0.0.1 instead" in post.agent.held
        assert [(BOB, 0, 0, None)] == await post.waiting()
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
        await post.queue.empty()

    assert {ANN, "dan@alpha.example"} == {to for to, *_ in post.mailboxes}
    assert 3 == len(post.mailboxes)


async def test_the_queue_cannot_be_written(post, monkeypatch):
    """What was delivered is settled as soon as that can be, and not sent again."""
    monkeypatch.setattr(settling, "FIRST_PAUSE", 0.001)
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
    monkeypatch.setattr(settling, "FIRST_PAUSE", 0.001)
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
        await until(lambda: post.agent.problem)
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


async def test_drain_ends_with_the_last_flight(post):
    """Nobody waits for the rest of the grace when nothing is under way any more."""
    put, tell = asyncio.Event(), post.agent._local_delivery

    async def held(*mail):
        await put.wait()
        return await tell(*mail)

    post.agent._local_delivery = held
    await post.start()
    await post.send(ANN)
    await turn()
    draining = asyncio.ensure_future(post.agent.drain(1e6))
    await turn()
    assert not draining.done()
    put.set()
    await draining

    assert [ANN] == [who for who, *_ in post.mailboxes]


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
