"""Users and aliases, as far as mail that comes in goes."""

import asyncio
import os
import time
from concurrent.futures import Future

import pytest

from tests.engines.helpers import Lodging, handed
from tests.inbound.helpers import GREETING, without_trace
from vnsmail.engines.protocol import LocalMail, UserFacts
from vnsmail.inbound.policy import Client
from vnsmail.inbound.sign_in import BUSY
from vnsmail.inbound.verifier import WAITING_OF_OWNER, Verifier
from vnsmail.model import Envelope, Owner, Role, ip_address
from vnsmail.queue.body import Body
from vnsmail.queue.envelope import ENTROPY_BYTES, new_id
from vnsmail.smtp.replies import Reply

HELLO = b"Subject: hi\r\n\r\nhello\r\n"
LARGE = HELLO + b"text\r\n" * 100_000
ALIASES = (
    ("team", ("ann", "cy", "eve@x.example")),
    ("sales", ("ann",)),
    ("*", ("cy",)),
)


@pytest.fixture
async def lodging(tmp_path):
    lodging = Lodging(tmp_path)
    yield lodging
    await lodging.close()


async def send(client, *recipients, message=HELLO):
    """Say a message; return the replies to the recipients and to the end."""
    await client.hear(GREETING)
    await client.say(b"EHLO mx1.north.example\r\nMAIL FROM:<bob@north.example>\r\n")
    await client.hear(b"sender ok\r\n")
    said = []
    for recipient in recipients:
        await client.say(f"RCPT TO:<{recipient}>\r\n".encode())
        said.append(await client.hear(b"\r\n"))
    if any(reply.startswith(b"250") for reply in said):
        await client.say(b"DATA\r\n")
        await client.hear(b"354 end with <CRLF>.<CRLF>\r\n")
        await client.say(message + b".\r\n")
        said.append(await client.hear(b"\r\n"))
    return [reply[:9] for reply in said]


async def queued(service):
    """Return what is left in the queue once all was tried."""
    while True:
        entries = await service.list_queue(10)
        if all(
            attempts or text for e in entries for _, attempts, _, text in e.recipients
        ):
            return entries
        await asyncio.sleep(0.001)


async def test_aliases(lodging):
    """Each target here gets it once; the one elsewhere waits for a source, alone."""
    service = await lodging.opened(aliases=ALIASES)
    said = await send(
        lodging.client(),
        "Team@alpha.example",
        "ann+x@alpha.example",
        "who@alpha.example",
    )

    assert [b"250 2.1.5"] * 3 + [b"250 2.0.0"] == said
    mail = await lodging.mail("ann", 2)
    assert [HELLO.decode()] * 2 == [
        without_trace(m.split(b"Delivered-To: ")[1].partition(b"\r\n")[2]).decode()
        for m in mail
    ]
    assert {b"ann@alpha.example", b"ann+x@alpha.example"} == {
        m.split(b"Delivered-To: ")[1].partition(b"\r\n")[0] for m in mail
    }
    (cys,) = await lodging.mail("cy")
    assert b"Delivered-To: cy@alpha.example\r\n" in cys
    (entry,) = await queued(service)
    assert ["eve@x.example"] == [address for address, *_ in entry.recipients]
    assert "bob@north.example" == entry.envelope.sender


@pytest.mark.parametrize("message", [HELLO, LARGE], ids=["small", "large"])
async def test_a_notice_for_an_alias(lodging, message):
    """What was queued for an alias by ourselves goes to whom it stands for."""
    service = await lodging.opened(aliases=ALIASES)
    envelope = Envelope(
        new_id(time.time(), b"x" * ENTROPY_BYTES),
        Owner("alpha.example"),
        "",
        ("sales@alpha.example",),
        time.time(),
    )
    await service._keep(envelope, Body(message))
    (mail,) = await lodging.mail("ann")

    assert mail.endswith(message)
    assert mail.startswith(b"Return-Path: <>\r\nDelivered-To: ann@alpha.example\r\n")


async def test_full(lodging):
    """A mailbox takes mail while it is below its quota; then it is refused for now."""
    accounts = (UserFacts("ann", quota=100),)
    service = await lodging.opened(accounts=accounts)
    await send(lodging.client(), "ann@alpha.example")
    await lodging.mail("ann")
    while (await send(lodging.client(), "ann@alpha.example"))[0] != b"452 4.2.2":
        await asyncio.sleep(0.001)
    assert [b"250 2.1.5", b"250 2.0.0"] == await send(
        lodging.client(), "cy@alpha.example"
    )
    await service.update(lodging.facts())

    assert b"250 2.1.5" == (await send(lodging.client(), "ann@alpha.example"))[0]


async def test_full_for_mail_from_here(lodging):
    """Mail that nobody refused at the door waits in the queue, and says why."""
    service = await lodging.opened(accounts=(UserFacts("ann", quota=1),))
    for _ in range(2):
        fd = handed(HELLO)
        mail = LocalMail(
            "alpha.example", "cy@alpha.example", ("ann@alpha.example",), 1000
        )
        await service.inject(fd, mail)
        os.close(fd)
    await lodging.mail("ann")
    entries = await queued(service)

    texts = [text for e in entries for *_, text in e.recipients]
    assert ["the mailbox is full"] == texts
    assert 1 == len(await lodging.mail("ann"))


class Stuck:
    """An executor that never finishes by itself."""

    def __init__(self):
        self.futures: list[Future[bool]] = []

    def submit(self, *_):
        self.futures.append(Future())
        return self.futures[-1]


async def test_a_flood_of_sign_ins(lodging):
    """However many sign in, so many are checked, others come back, and mail flows."""
    service = await lodging.opened(accounts=(UserFacts("ann", password="hash"),))  # noqa: S106
    stuck = Stuck()
    service._rules._verifier = Verifier(stuck)  # type: ignore[arg-type]

    async def sign_in():
        client = Client(ip_address("192.0.2.7"), Role.SUBMISSION)
        exchange = service._rules.policy.sign_in(client, "PLAIN")
        assert not isinstance(exchange, Reply)
        return await exchange.respond(b"\0ann\0guess")

    async with asyncio.TaskGroup() as tasks:
        waiting = {tasks.create_task(sign_in()) for _ in range(3 * WAITING_OF_OWNER)}
        while len([task for task in waiting if task.done()]) < 2 * WAITING_OF_OWNER:
            await asyncio.sleep(0)
        said = await send(lodging.client(), "cy@alpha.example")
        assert [b"250 2.1.5", b"250 2.0.0"] == said
        assert 1 == len(await lodging.mail("cy"))
        assert WAITING_OF_OWNER == len(stuck.futures)
        refused = [task.result() for task in waiting if task.done()]
        for future in stuck.futures:
            future.set_result(False)

    assert {BUSY} == set(refused)
    assert WAITING_OF_OWNER == (await service.report()).failed_sign_ins
