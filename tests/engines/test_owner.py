import asyncio
import errno
import os
import threading

import pytest
import uvloop

from tests.engines.helpers import Lodging, handed
from tests.inbound.helpers import GREETING, TO_ANN, without_trace
from vnsmail.channel import MAX_MESSAGE
from vnsmail.delivery.agent import DeliveryAgent
from vnsmail.engines import owner as owner_module
from vnsmail.engines import protocol
from vnsmail.engines.doors import PortInUse
from vnsmail.engines.protocol import LocalMail
from vnsmail.errors import (
    BadInput,
    BrokerRefused,
    LimitReached,
    NotServed,
    QueueUnavailable,
    SourceUnavailable,
    Suspended,
)
from vnsmail.model import Limits, Priority
from vnsmail.queue.queue import Queue
from vnsmail.queue.store import QueueStore

HELLO = b"Subject: hi\r\n\r\nhello\r\n"
LARGE = HELLO + b"\xfftext\r\n" * 100_000
HEAD = b"Return-Path: <bob@north.example>\r\nDelivered-To: ann@alpha.example\r\n"


@pytest.fixture
async def lodging(tmp_path):
    lodging = Lodging(tmp_path)
    yield lodging
    await lodging.close()


async def inject(service, message, *recipients, sender="ann@alpha.example"):
    fd = handed(message)
    try:
        return await service.inject(
            fd, LocalMail("alpha.example", sender, recipients, 1000)
        )
    finally:
        os.close(fd)


async def send(client, message):
    await client.hear(GREETING)
    await client.say(TO_ANN)
    await client.hear(b"354 end with <CRLF>.<CRLF>\r\n")
    await client.say(message + b".\r\n")
    return await client.hear(b"\r\n")


async def trouble(service):
    """Wait until something is wrong, and return what."""
    while not (problem := (await service.report()).problem):
        await asyncio.sleep(0.001)
    return problem


async def empty(service):
    """Wait until nothing is queued."""
    while (await service.report()).messages:
        await asyncio.sleep(0.001)


# Mail comes in ------------------------------------------------------------------------


@pytest.mark.parametrize("message", [HELLO, LARGE], ids=["small", "large"])
async def test_from_smtp_to_a_mailbox(lodging, message):
    """What is in the Maildir behind the trace headers is what was sent."""
    await lodging.opened()
    reply = await send(lodging.client(), message)
    (mail,) = await lodging.mail("ann")

    assert reply.startswith(b"250 2.0.0 queued as ")
    assert mail.startswith(HEAD)
    assert message == without_trace(mail.removeprefix(HEAD))


async def test_250_is_said_after_the_commit(lodging, monkeypatch):
    """A message that the queue did not take is not acknowledged."""
    await lodging.opened()

    async def full(self, envelope, body, token="", at=None):
        body.discard()
        raise QueueUnavailable("queue.db", "its disk is full")

    monkeypatch.setattr(Queue, "accept", full)

    assert (await send(lodging.client(), LARGE)).startswith(b"452 4.3.1 ")
    assert [] == list((lodging.folder / "host" / "incoming").iterdir())


async def test_250_of_a_small_message_waits_for_the_commit(lodging, monkeypatch):
    """Nothing is said while the disk is at it, and other sessions go on."""
    await lodging.opened()
    entered, released = threading.Event(), threading.Event()
    commit = QueueStore.commit

    def slow(store, changes):
        entered.set()
        released.wait(60)
        return commit(store, changes)

    monkeypatch.setattr(QueueStore, "commit", slow)
    sending = asyncio.ensure_future(send(lodging.client(), HELLO))
    await asyncio.to_thread(entered.wait, 60)
    await lodging.client().hear(GREETING)
    assert not sending.done()
    released.set()
    assert (await sending).startswith(b"250 2.0.0 queued as ")


async def test_a_small_message_that_the_queue_did_not_take(lodging, monkeypatch):
    """It is not acknowledged, and the room it took is given back."""
    service = await lodging.opened(limits=Limits(queue_bytes=1000))
    commit = QueueStore.commit
    error = QueueUnavailable("queue.db", "its disk is full")
    monkeypatch.setattr(QueueStore, "commit", lambda _, changes: [error] * len(changes))
    for _ in range(5):
        assert (await send(lodging.client(), HELLO)).startswith(b"452 4.3.1 ")
    monkeypatch.setattr(QueueStore, "commit", commit)

    assert (await send(lodging.client(), HELLO)).startswith(b"250 2.0.0 queued as ")
    assert 1 == service.tally().accepted


async def test_acknowledged_is_on_disk(lodging):
    """When 250 is read, the message is in the queue file, whoever delivers it."""
    service = await lodging.opened()
    service._agent.hand_over = lambda envelope, body: None
    reply = await send(lodging.client(), LARGE)
    await lodging.open.pop().close()
    again = await Queue.open(lodging.folder / "host", lodging.executor)
    (message,) = await again.list(10)
    _, body = await again.load(message.envelope.id)
    stored = b"".join(body.chunks())
    await again.close()

    assert message.envelope.id.encode() in reply
    assert ("ann@alpha.example",) == message.envelope.recipients
    assert LARGE == without_trace(stored)


async def test_end_that_is_none_smuggles_nothing(lodging):
    """The recipient of the first message gets nothing, that of the second nothing."""
    await lodging.opened()
    client = lodging.client()
    await client.hear(GREETING)
    hidden = (
        b"MAIL FROM:<e@e.example>\r\nRCPT TO:<cy@alpha.example>\r\nDATA\r\nx\r\n.\r\n"
    )
    await client.say(TO_ANN + b"text\n.\r\n" + hidden + b"QUIT\r\n")
    said = await client.rest()

    assert b"554 5.6.11 " in said
    assert b"queued as" not in said


async def test_listening_on_each_address(lodging):
    """Every address of the owner takes mail, and the report says where."""
    service = await lodging.opened()
    clients = [lodging.client("10.77.0.11"), lodging.client("fd77::11")]
    for client in clients:
        await client.hear(GREETING)
    report = await service.report()

    assert [
        ("alpha.example", "10.77.0.11", 25),
        ("alpha.example", "fd77::11", 25),
    ] == lodging.sockets.asked
    assert ("10.77.0.11:25", "[fd77::11]:25") == report.listening
    assert (2, 0, 0, None, "") == (
        report.sessions,
        report.messages,
        report.deferred,
        report.oldest,
        report.problem,
    )


async def test_owner_that_does_not_listen(lodging):
    """The machine sends and receives nothing."""
    facts = {"owner": "machine", "addresses": (), "listen": False, "any_user": True}
    service = await lodging.opened(**facts, users=())
    await inject(service, b"", "root@alpha.example", sender="cron@alpha.example")
    await lodging.mail("root")

    assert [] == lodging.sockets.asked
    assert () == (await service.report()).listening


# Opening is whole or not at all ----------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EADDRINUSE, "in use"), PortInUse),
        (OSError(errno.EACCES, "no"), NotServed),
        (SourceUnavailable("alpha.example", "fd77::11", 99), SourceUnavailable),
        (BrokerRefused("not_owned", "no"), BrokerRefused),
    ],
)
async def test_address_that_cannot_be_listened_on(lodging, error, expected):
    """If one address fails, no other is listened on and the queue is free again."""
    lodging.sockets.errors["fd77::11"] = error
    service = lodging.service()
    with pytest.raises(expected) as caught:
        await service.open()

    assert "\n" not in str(caught.value)
    assert "fd77::11" in str(caught.value) or expected is BrokerRefused
    with pytest.raises(ConnectionRefusedError):
        lodging.client()
    queue = await Queue.open(lodging.folder / "host", lodging.executor)
    await queue.close()


async def test_port_in_use_is_told_in_words(lodging):
    """Who reads it knows which address, and how to find the program."""
    lodging.sockets.errors["10.77.0.11"] = OSError(errno.EADDRINUSE, "in use")
    with pytest.raises(
        PortInUse, match=r"port 25 of 10\.77\.0\.11 is in use.*ss -ltnp"
    ):
        await lodging.service().open()


async def test_queue_that_is_damaged(lodging):
    """Nothing is listened on for an owner whose mail could not be kept."""
    (lodging.folder / "host").mkdir()
    (lodging.folder / "host" / "queue.db").write_bytes(b"not a database " * 100)
    with pytest.raises(QueueUnavailable, match=r"queue\.db"):
        await lodging.service().open()

    assert [] == lodging.sockets.asked


async def test_cancelled_while_it_opens(lodging):
    """An opening that is given up leaves nothing open."""
    waiting = asyncio.Event()

    async def listener(owner, address, port):
        waiting.set()
        await asyncio.Event().wait()

    lodging.sockets.listener = listener
    opening = asyncio.ensure_future(lodging.service().open())
    await waiting.wait()
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)

    queue = await Queue.open(lodging.folder / "host", lodging.executor)
    await queue.close()


# A message handed over --------------------------------------------------------------------


async def test_message_for_somebody_here(lodging):
    """It goes through the queue to the mailbox, with what was missing."""
    service = await lodging.opened()
    queue_id = await inject(service, b"Subject: hi\n\nhello\n", "CY@alpha.example")
    (mail,) = await lodging.mail("cy")

    assert mail.startswith(
        b"Return-Path: <ann@alpha.example>\r\nDelivered-To: cy@alpha.example\r\n"
        b"Received: by alpha.example (local, uid 1000)\r\n"
    )
    assert f"Message-ID: <{queue_id}@alpha.example>\r\n".encode() in mail
    assert mail.endswith(b"Subject: hi\r\n\r\nhello\r\n")


async def test_message_for_somebody_elsewhere(lodging):
    """It is in the queue with the reason why it waits, and the report says it too."""
    service = await lodging.opened()
    queue_id = await inject(service, b"hi\n", "bob@[10.77.0.21]")
    problem = await trouble(service)
    report = await service.report()
    (entry,) = await service.list_queue(10)

    assert "cannot send as alpha.example: 10.77.0.11 is not usable here" in problem
    assert (1, 0) == (report.messages, report.deferred)
    assert problem == report.held
    assert report.held_since is not None
    assert report.oldest == entry.envelope.received_at
    assert queue_id == entry.envelope.id
    (recipient,) = entry.recipients
    assert ("bob@[10.77.0.21]", 0) == recipient[:2]
    assert "10.77.0.11 is not usable" in recipient[3]


async def test_handed_over_is_on_disk(lodging):
    """When its id is known, the message outlives the worker."""
    service = await lodging.opened()
    queue_id = await inject(service, LARGE, "bob@[10.77.0.21]")
    await lodging.open.pop().close()
    service = await lodging.opened(addresses=())
    (entry,) = await service.list_queue(10)

    assert queue_id == entry.envelope.id


async def test_user_who_is_not_there(lodging):
    """The sender gets a notice, which nobody answers."""
    service = await lodging.opened()
    await inject(service, b"Subject: lunch\n\n", "nobody@alpha.example")
    (mail,) = await lodging.mail("ann")

    assert mail.startswith(b"Return-Path: <>\r\nDelivered-To: ann@alpha.example\r\n")
    assert b"Status: 5.1.1" in mail
    assert b"Subject: lunch" in mail
    await empty(service)


async def test_postmaster_without_domain_has_mail(lodging):
    """<postmaster> is the owner's (RFC 5321 section 4.5.1)."""
    await lodging.opened()
    client = lodging.client()
    await client.hear(GREETING)
    await client.say(
        b"HELO a.example\r\nMAIL FROM:<>\r\nRCPT TO:<Postmaster>\r\nDATA\r\n"
    )
    await client.hear(b"354 end with <CRLF>.<CRLF>\r\n")
    await client.say(HELLO + b".\r\n")
    (mail,) = await lodging.mail("postmaster")

    assert b"Delivered-To: postmaster@alpha.example\r\n" in mail
    assert b"Received: from a.example by alpha.example with SMTP id" in mail


async def test_bad_message(lodging):
    """It is refused with a reason, and nothing of it is left."""
    service = await lodging.opened()
    with pytest.raises(BadInput, match="NUL"):
        await inject(service, b"\0", "bob@b.example")
    with pytest.raises(BadInput, match="no such user"):
        await inject(service, b"", "bob@b.example", sender="bob@beta.example")

    assert 0 == (await service.report()).messages
    assert [] == list((lodging.folder / "host" / "incoming").iterdir())


async def test_descriptor_stays_the_callers(lodging):
    """It is neither closed nor moved."""
    service = await lodging.opened()
    before = len(os.listdir("/proc/self/fd"))
    fd = handed(b"hi\n")
    await service.inject(
        fd,
        LocalMail("alpha.example", "ann@alpha.example", ("cy@alpha.example",), 0),
    )
    await empty(service)

    assert 3 == os.lseek(fd, 0, os.SEEK_CUR)
    os.close(fd)
    assert before == len(os.listdir("/proc/self/fd"))


# Changed facts ------------------------------------------------------------------------------


async def test_which_facts_can_change(lodging):
    """Files outlive no change; users, domains, addresses and the name may change."""
    service = await lodging.opened()

    assert service.accepts(lodging.facts())
    assert service.accepts(
        lodging.facts(users=("eve",), domains=("b.example",), name="b.example")
    )
    assert service.accepts(lodging.facts(addresses=("10.77.0.12",)))
    assert not service.accepts(lodging.facts(suspended=True))
    assert not service.accepts(lodging.facts(folder="/elsewhere"))
    assert not service.accepts(lodging.facts(listen=False))
    assert not service.accepts(lodging.facts(owner="beta.example"))


async def test_update(lodging):
    """New users get mail at new domains at once, those that went get none."""
    service = await lodging.opened()
    await service.update(
        lodging.facts(users=("eve",), domains=("alpha.example", "new.example"))
    )
    client = lodging.client()
    await client.hear(GREETING)
    await client.ask("EHLO a.example")
    await client.ask("MAIL FROM:<>")

    assert (await client.ask("RCPT TO:<ann@alpha.example>")).startswith(b"550 5.1.1")
    assert (await client.ask("RCPT TO:<eve@new.example>")).startswith(b"250 ")
    await inject(service, b"hi\n", "eve@new.example", sender="eve@new.example")
    assert 1 == len(await lodging.mail("eve"))


# Faults --------------------------------------------------------------------------------------


async def test_fault_in_delivery(lodging, monkeypatch):
    """It is told, mail is taken and kept all the same, and delivery starts again."""
    monkeypatch.setattr(owner_module, "RESTART_AFTER", 0.01)
    run, broken = DeliveryAgent.run, asyncio.Event()

    async def faulty(self):
        if broken.is_set():
            return await run(self)
        raise ZeroDivisionError("told to fail")

    monkeypatch.setattr(DeliveryAgent, "run", faulty)
    service = await lodging.opened()
    assert "told to fail" in await trouble(service)
    assert (await send(lodging.client(), HELLO)).startswith(b"250 ")
    assert 1 == (await service.report()).messages
    broken.set()

    assert 1 == len(await lodging.mail("ann"))
    assert "" == (await service.report()).problem


async def test_close_while_delivery_is_to_start_again(lodging, monkeypatch):
    """An owner that is let go does not wait for the pause to end."""

    async def faulty(self):
        raise ZeroDivisionError

    monkeypatch.setattr(DeliveryAgent, "run", faulty)
    service = await lodging.opened()
    await trouble(service)
    await lodging.open.pop().close()

    assert service._delivering.done()


async def test_report_of_a_queue_that_fails(lodging, monkeypatch):
    """A report is made in any case, and says why mail does not flow."""
    service = await lodging.opened()

    async def fail(self):
        raise QueueUnavailable("queue.db", "disk I/O error")

    monkeypatch.setattr(Queue, "counts", fail)
    report = await service.report()

    assert "cannot use the queue queue.db: disk I/O error" == report.problem


async def test_list_fits_one_message(lodging):
    """However much is queued, the list can be sent to the supervisor."""
    service = await lodging.opened()
    service._agent.hand_over = lambda envelope, body: None
    recipients = [f"{'x' * 50}{number}@[10.77.0.21]" for number in range(120)]
    for _ in range(10):
        await inject(service, b"hi\n", *recipients)
    entries = await service.list_queue(100)

    assert 0 < len(entries) < 10
    assert all(100 == len(entry.recipients) for entry in entries)
    assert len(protocol.encode(protocol.QueueListed(1, entries))) < MAX_MESSAGE


async def test_close_tells_clients(lodging):
    """Sessions end with 421, files are free, and nothing is accepted."""
    await lodging.opened()
    client = lodging.client()
    await client.hear(GREETING)
    await lodging.open.pop().close()

    assert b"421 4.3.2 closing down, try again later\r\n" == await client.rest()
    queue = await Queue.open(lodging.folder / "host", lodging.executor)
    await queue.close()


def test_on_uvloop(tmp_path):
    """The loop of the workers does all of it."""

    async def live():
        lodging = Lodging(tmp_path)
        service = await lodging.opened()
        reply = await send(lodging.client(), LARGE)
        await inject(service, b"hi\n", "ann@alpha.example")
        mails = await lodging.mail("ann", 2)
        await lodging.close()
        return reply, mails

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        reply, mails = runner.run(live())

    assert reply.startswith(b"250 ")
    assert any(mail.endswith(LARGE) for mail in mails)


@pytest.mark.parametrize("seen", [False, True])
async def test_a_mailbox_gets_it_once(lodging, monkeypatch, seen):
    """Who dies between mailbox and queue makes no second copy."""
    monkeypatch.setattr(owner_module, "CLOSE_GRACE", 0.001)
    service = await lodging.opened()
    with monkeypatch.context() as patch:

        async def died(*_arguments, **_more):
            await asyncio.Event().wait()

        patch.setattr(Queue, "settle", died)
        await inject(service, HELLO, "ann@alpha.example")
        (first,) = await lodging.mail("ann")
        await lodging.open.pop().close()
    if seen:
        new = lodging.folder / "host" / "mail" / "ann" / "new"
        (file,) = new.iterdir()
        file.rename(new.parent / "cur" / f"{file.name}:2,S")
    for address in ("10.77.0.11", "fd77::11"):
        os.unlink(lodging.sockets.path(address))
    again = await lodging.opened()
    await empty(again)
    mails = [p.read_bytes() for p in lodging.folder.glob("host/mail/ann/[nc]*/*")]

    assert [first] == mails


# Suspended ------------------------------------------------------------------------------------


async def test_suspended(lodging):
    """Its doors are closed, what is handed over is refused, and the queue is kept."""
    service = await lodging.opened()
    await inject(service, HELLO, "bob@north.example")
    await service.close()
    lodging.open.clear()
    for address in service._facts.addresses:
        os.unlink(lodging.sockets.path(address))
    suspended = await lodging.opened(suspended=True)
    report = await suspended.report()

    assert ((), 1, True, "") == (
        report.listening,
        report.messages,
        report.suspended,
        report.problem,
    )
    with pytest.raises(FileNotFoundError):
        lodging.client()
    with pytest.raises(Suspended, match="`vnsmail host resume"):
        await inject(suspended, HELLO, "bob@north.example")
    assert 1 == len(await suspended.list_queue(5))


# Limits ---------------------------------------------------------------------------------------


async def test_a_queue_that_is_full(lodging):
    """452, and nothing is kept; a message that can never fit is told so at MAIL."""
    service = await lodging.opened(limits=Limits(queue_bytes=1000))
    service._agent.hand_over = lambda envelope, body: None
    assert (await send(lodging.client(), HELLO)).startswith(b"250 ")
    reply = await send(lodging.client(), HELLO + b"x" * 800 + b"\r\n")

    assert reply == b"452 4.3.1 the queue is full, try again later\r\n"
    assert [] == list((lodging.folder / "host" / "incoming").iterdir())
    with pytest.raises(LimitReached, match="may have 1000 octets"):
        await inject(service, HELLO + b"x" * 800, "bob@north.example")
    client = lodging.client()
    await client.hear(GREETING)
    await client.ask("EHLO mx1.north.example")
    reply = await client.ask("MAIL FROM:<bob@north.example> SIZE=1001")
    assert reply == b"452 4.3.1 the queue is full, try again later\r\n"
    tally = service.tally()
    assert (1, 2) == (tally.accepted, tally.refused)


async def test_room_again(lodging):
    """When mail has left the queue there is room, without anybody being told."""
    await lodging.opened(limits=Limits(queue_bytes=1000))
    message = HELLO + b"x" * 500 + b"\r\n"
    for count in range(1, 4):
        assert (await send(lodging.client(), message)).startswith(b"250 ")
        await lodging.mail("ann", count)
        await empty(lodging.open[0])


async def test_messages_per_hour(lodging):
    """Mail that goes elsewhere counts, mail for users here does not."""
    service = await lodging.opened(limits=Limits(messages_per_hour=1))
    await inject(service, HELLO, "bob@north.example")
    with pytest.raises(LimitReached, match="the 1 messages that it may send"):
        await inject(service, HELLO, "bob@north.example", "ann@alpha.example")
    await inject(service, HELLO, "cy@alpha.example")
    assert (await send(lodging.client(), HELLO)).startswith(b"250 ")
    await service.update(lodging.facts(limits=Limits(messages_per_hour=2)))
    await inject(service, HELLO, "bob@north.example")


async def test_the_hour_outlives_the_worker(lodging):
    """Whoever was at the limit is there still after a restart."""
    service = await lodging.opened(limits=Limits(messages_per_hour=1))
    await inject(service, HELLO, "bob@north.example")
    await service.close()
    lodging.open.clear()
    again = lodging.service(limits=Limits(messages_per_hour=1), listen=False)
    await again.open()
    lodging.open.append(again)

    with pytest.raises(LimitReached):
        await inject(again, HELLO, "bob@north.example")


async def test_connections_at_a_time(lodging):
    """One more is turned away before it can say anything."""
    await lodging.opened(limits=Limits(connections=1))
    first = lodging.client()
    await first.hear(GREETING)

    assert (await lodging.client().rest()).startswith(b"421 4.7.0 too many connections")


# Other addresses ------------------------------------------------------------------------------


async def test_other_addresses(lodging):
    """It listens on new ones at once, and leaves the old ones; the queue stays open."""
    service = await lodging.opened()
    old = lodging.client()
    await old.hear(GREETING)
    await service.update(lodging.facts(addresses=("fd77::11", "10.77.0.14")))

    assert ("[fd77::11]:25", "10.77.0.14:25") == (await service.report()).listening
    assert (await old.rest()).startswith(b"421 ")
    assert await service.left(("10.77.0.11",), 30)
    await lodging.client("10.77.0.14").hear(GREETING)


async def test_an_address_that_is_in_use(lodging):
    """All is as before, and it is told."""
    service = await lodging.opened()
    before = (await service.report()).listening
    lodging.sockets.errors["10.77.0.15"] = OSError(errno.EADDRINUSE, "in use")
    with pytest.raises(PortInUse):
        await service.update(lodging.facts(addresses=("10.77.0.14", "10.77.0.15")))

    assert before == (await service.report()).listening
    await lodging.client().hear(GREETING)


async def test_leaving_too_slowly(lodging):
    """After its time, whoever still speaks is cut off."""
    service = await lodging.opened()
    client = lodging.client()
    await client.hear(GREETING)
    await client.say(TO_ANN)
    await client.hear(b"354 end with <CRLF>.<CRLF>\r\n")
    await service.update(lodging.facts(addresses=("fd77::11",)))

    assert not await service.left(("10.77.0.11",), 0.01)
    assert b"" == await client.rest()


async def test_priority_is_kept(lodging):
    """A message has the priority that it was handed over with, in its queue."""
    service = await lodging.opened()
    fd = handed(b"hi\n")
    mail = LocalMail(
        "alpha.example",
        "ann@alpha.example",
        ("bob@[10.77.0.21]",),
        1000,
        priority=Priority.HIGH,
    )
    try:
        await service.inject(fd, mail)
    finally:
        os.close(fd)
    (entry,) = await service.list_queue(10)

    assert Priority.HIGH is entry.envelope.priority
