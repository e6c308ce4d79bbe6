"""Messages that go to another host's queue, cut off after each step."""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.queue.helpers import NOW, envelope
from vnsmail.delivery import outcomes as say
from vnsmail.engines.desk import Desk
from vnsmail.engines.moving import Mover, read_in, token_of
from vnsmail.engines.protocol import Adopt, BeginMove, CopyOut, WorkQueue
from vnsmail.errors import AlreadyQueued
from vnsmail.model import Owner
from vnsmail.queue.body import Body
from vnsmail.queue.envelope import Move
from vnsmail.queue.queue import Queue
from vnsmail.queue.selection import Selection

ALPHA, BETA = "alpha.example", "beta.example"
BOB, EVE = "bob@b.example", "eve@c.example"
DATA = b"Subject: x\r\n\r\nhello\r\n"


class Hosts:
    """Two hosts with their queues; ``again`` is what a crash leaves."""

    def __init__(self, folder, executor):
        self.folder, self.executor = folder, executor
        self.told: list[object] = []

    async def open(self):
        self.source = await Queue.open(self.folder / "alpha", self.executor)
        self.target = await Queue.open(self.folder / "beta", self.executor)
        self.desk = Desk(ALPHA, self.source, None, self.told.append)
        self.mover = Mover(
            ALPHA, self.source, None, self.desk, self.told.append, self.executor
        )
        return self

    async def close(self):
        await self.source.close()
        await self.target.close()

    async def again(self):
        await self.close()
        await self.open()

    def begin(self, **given):
        facts = {"target": BETA, "domains": ("a.example",), **given}
        return self.mover.begin(BeginMove(0, ALPHA, **facts))

    async def adopt(self, leaving):
        """Copy a message over, as the supervisor and the target's worker do."""
        with tempfile.TemporaryFile() as file:
            asked = CopyOut(0, ALPHA, leaving.queue_id)
            found = await self.mover.copy(asked, file.fileno())
            if found is None:
                return
            body = read_in(os.dup(file.fileno()), self.folder / "beta")
        wanted = Adopt(0, BETA, found, ALPHA, leaving.nonce)
        message = replace(found, id=f"{found.id[:-3]}bbb", owner=Owner(BETA))
        try:
            await self.target.accept(message, body, token_of(wanted), NOW)
        except AlreadyQueued:
            return

    async def queued(self):
        """Return the recipients in each queue."""
        return [
            sorted(r.address for m in await queue.list(100) for r in m.recipients)
            for queue in (self.source, self.target)
        ]


@pytest.fixture
async def hosts(tmp_path):
    with ThreadPoolExecutor(1) as executor:
        found = await Hosts(tmp_path, executor).open()
        yield found
        await found.close()


async def queue_one(hosts, **facts):
    message = replace(envelope(BOB, EVE), **{"sender": "ann@a.example", **facts})
    await hosts.source.accept(message, Body(DATA))
    return message


@pytest.mark.parametrize("crash_after", range(4))
async def test_cut_off_after_each_step(hosts, crash_after):
    await queue_one(hosts)
    begun = await hosts.begin()
    (leaving,) = begun.leaving
    for step in range(4):
        if step == crash_after:
            await hosts.again()
            # What is begun anew has the same nonce, or the target took it twice.
            (leaving,) = (await hosts.begin(target="")).leaving or (leaving,)
            await hosts.adopt(leaving)
            await hosts.mover.end(leaving.queue_id)
        if step == 1:
            await hosts.adopt(leaving)
        if step == 2:
            await hosts.mover.end(leaving.queue_id)
    assert await hosts.queued() == [[], [BOB, EVE]]
    assert (await hosts.begin(target="")).leaving == ()
    (message,) = await hosts.target.list(1)
    _, body = await hosts.target.load(message.envelope.id)
    assert b"".join(body.chunks()) == DATA


async def test_back_and_forth(hosts):
    """A move is another one each time: it is not taken for the first."""
    await queue_one(hosts)
    (first,) = (await hosts.begin()).leaving
    await hosts.adopt(first)
    await hosts.mover.end(first.queue_id)
    await queue_one(hosts)  # it came back
    (second,) = (await hosts.begin()).leaving
    assert second.nonce != first.nonce


async def test_is_not_sent_meanwhile(hosts):
    await queue_one(hosts)
    await hosts.begin()
    found, _ = await hosts.source.due_in("b.example", NOW + 1e9, 10, frozenset())
    assert found == []


@pytest.mark.parametrize("action", ["hold", "release", "retry"])
async def test_nothing_else_touches_it(hosts, action):
    """Whoever released it could not know whether the other host has sent it."""
    await queue_one(hosts)
    await hosts.begin()
    messages, _, alone, _ = await hosts.desk.work(WorkQueue(0, ALPHA, action))
    assert (messages, alone) == (0, 1)
    messages, *_ = await hosts.desk.work(WorkQueue(0, ALPHA, "delete"))
    assert messages == 1
    assert (await hosts.begin(target="")).leaving == ()


async def test_sender_of_somebody_else(hosts):
    message = await queue_one(hosts, sender="ann@other.example")
    begun = await hosts.begin()
    assert (begun.leaving, begun.refused) == ((), (message.id,))
    assert len((await hosts.begin(force=True)).leaving) == 1


async def test_notices_go_anywhere(hosts):
    await queue_one(hosts, sender="")
    assert len((await hosts.begin()).leaving) == 1


async def test_only_some_recipients(hosts):
    await queue_one(hosts)
    begun = await hosts.begin(selection=Selection(domain="c.example"))
    (leaving,) = begun.leaving
    await hosts.adopt(leaving)
    await hosts.mover.end(leaving.queue_id)
    assert await hosts.queued() == [[BOB], [EVE]]
    due, _ = await hosts.source.due_in("b.example", NOW + 1e9, 10, frozenset())
    assert len(due) == 1


async def test_to_two_hosts_at_once(hosts):
    """What goes to one host is left alone by who wants it elsewhere."""
    await queue_one(hosts)
    await hosts.begin()
    begun = await hosts.begin(target="gamma.example")
    assert (begun.leaving, begun.under_way) == ((), 1)


async def test_dry_run(hosts):
    await queue_one(hosts)
    assert len((await hosts.begin(dry_run=True)).leaving) == 1
    assert (await hosts.begin(target="")).leaving == ()


async def test_cut_off_before_it_was_forgotten(hosts):
    """The message is gone, and what is written of its move is put away."""
    message = await queue_one(hosts)
    (leaving,) = (await hosts.begin()).leaving
    gone = say.for_all((BOB, EVE), say.delivered("moved"))
    await hosts.source.settle(message.id, gone, {})
    lost = Move(BETA, leaving.nonce, (BOB, EVE))
    await hosts.source.alter(
        lambda tables: tables._connection.execute(
            "INSERT OR REPLACE INTO moving VALUES (?, ?, ?, ?)",
            (message.id, lost.target, lost.nonce, '["bob@b.example"]'),
        )
    )
    (leaving,) = (await hosts.begin(target="")).leaving
    await hosts.adopt(leaving)
    await hosts.mover.end(leaving.queue_id)
    assert (await hosts.begin(target="")).leaving == ()
    assert await hosts.queued() == [[], []]
