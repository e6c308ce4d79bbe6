"""A queue in which nothing happens is closed, stays ours, and wakes when it is needed."""

import asyncio
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apsw
import pytest

from tests.queue.helpers import (
    DEFERRED,
    DELIVERED,
    NOW,
    content,
    envelope,
    ids,
    spooled,
)
from vnsmail.errors import QueueUnavailable
from vnsmail.queue import queue as module
from vnsmail.queue.body import Body
from vnsmail.queue.envelope import START, QueueCounts
from vnsmail.queue.queue import Queue
from vnsmail.queue.store import Accept, QueueStore, Settle

NOTHING = QueueCounts(0, 0, 0, 0, None)


@pytest.fixture
def store(tmp_path):
    store = QueueStore(tmp_path)
    yield store
    store.close()


def opened(folder):
    """Return the files of a queue that this process has open."""
    links = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    return sorted(Path(each).name for each in links if each.startswith(f"{folder}/"))


def test_it_is_closed(store, tmp_path):
    """No file of it is open, and the log is in the file."""
    store.commit([Accept(envelope(), Body(b"x"))])
    assert "queue.db" in opened(tmp_path)
    store.rest()

    assert store.resting
    assert [] == opened(tmp_path)
    assert not (tmp_path / "queue.db-wal").exists()


def test_it_wakes(store):
    """What was in it is, and what comes and goes does."""
    first, second = envelope("a@b.example"), envelope("c@d.example")
    store.commit([Accept(first, Body(b"one"))])
    store.rest()
    assert b"one" == content(store, first.id)
    store.rest()
    assert [None] == store.commit([Accept(second, Body(b"two"))])
    store.rest()
    assert [first.id, second.id] == ids(store)
    store.rest()
    done = Settle(first.id, {"a@b.example": DELIVERED}, {})
    assert [None] == store.commit([done])
    store.rest()

    found, _ = store.due_in("d.example", NOW + 1, 9, frozenset())
    assert [second.id] == [message.envelope.id for message in found]


def test_what_is_known_wakes_nobody(store):
    """How much is in it; and of an empty one, that there is nothing."""
    mail = envelope("a@b.example")
    store.rest()
    walk = store.walk(NOW, START, lambda _: 9, {}, (9, 9))
    assert (NOTHING, [], math.inf, [], []) == (
        store.counts(),
        walk.due,
        walk.next_due,
        store.aged("~", "", 9),
        store.page(9),
    )
    assert ([], math.inf) == store.due_in("b.example", NOW, 9, frozenset())
    assert store.resting
    store.commit([Accept(mail, Body(b"x"))])
    store.commit([Settle(mail.id, {"a@b.example": DEFERRED}, {"a@b.example": NOW + 9})])
    before = store.counts()
    store.rest()

    assert before == store.counts() != NOTHING
    assert store.resting
    assert ([], NOW + 9) == store.due_in("b.example", NOW, 9, frozenset())


def test_it_stays_ours(store, tmp_path):
    """While it rests no other process, and nobody in this one, can open it."""
    store.rest()
    code = "import sys; from pathlib import Path; from vnsmail.queue.store import "
    code += "QueueStore; QueueStore(Path(sys.argv[1]))"
    done = subprocess.run(  # noqa: S603  our own interpreter and module
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert "another process has it open" in done.stderr
    with pytest.raises(QueueUnavailable, match="another process has it open"):
        QueueStore(tmp_path)
    store.close()
    QueueStore(tmp_path).close()


def test_bodies_that_arrive_while_it_rests(store, tmp_path):
    """To wake is not to open: what arrives is no left-over."""
    arriving = spooled(tmp_path, b"large")
    store.rest()
    mail = envelope()
    assert [None] == store.commit([Accept(mail, arriving)])

    assert b"large" == content(store, mail.id)


def test_it_cannot_wake(store, tmp_path):
    """What was to be added is refused, its body thrown away; later it goes on."""
    store.rest()
    body = spooled(tmp_path, b"large")
    (tmp_path / "queue.db").rename(tmp_path / "aside")
    (tmp_path / "queue.db").mkdir()
    (error,) = store.commit([Accept(envelope(), body)])

    assert isinstance(error, QueueUnavailable)
    assert [] == list((tmp_path / "incoming").iterdir())
    assert [] == list((tmp_path / "body").iterdir())
    (tmp_path / "queue.db").rmdir()
    (tmp_path / "aside").rename(tmp_path / "queue.db")
    assert [None] == store.commit([Accept(envelope(), Body(b"x"))])


def test_no_rest_over_a_doubtful_commit(tmp_path, faults):
    """A COMMIT that may yet come true keeps its body files: the queue stays open."""
    store = QueueStore(tmp_path)
    faults.errors["sync", "queue.db-wal"] = apsw.IOError
    body = spooled(tmp_path, b"large")
    (error,) = store.commit([Accept(envelope(), body)])
    assert error is not None
    faults.errors.clear()
    store.rest()

    assert not store.resting
    assert 1 == len(list((tmp_path / "body").iterdir()))
    store.close()


async def test_by_itself(tmp_path, monkeypatch):
    """After some time without anything; then it serves as before."""
    monkeypatch.setattr(module, "REST_AFTER", 0.001)
    with ThreadPoolExecutor(1) as executor:
        queue = await Queue.open(tmp_path, executor)
        for _ in range(3):
            while not queue._store.resting:
                await asyncio.sleep(0.001)
            await queue.accept(envelope(), Body(b"x"))
        while not queue._store.resting:
            await asyncio.sleep(0.001)

        assert 3 == (await queue.counts()).messages
        assert queue._store.resting
        assert 3 == len(await queue.list(9))
        await queue.close()


async def test_who_only_counts(tmp_path, monkeypatch):
    """Whoever looks at it all the time, as what draws graphs does, keeps no file open."""
    monkeypatch.setattr(module, "REST_AFTER", 0.05)
    with ThreadPoolExecutor(1) as executor:
        queue = await Queue.open(tmp_path, executor)
        async with asyncio.timeout(60):
            while not queue._store.resting:
                await queue.counts()
        await queue.close()


async def test_not_while_it_is_used(tmp_path, monkeypatch):
    """Changes that come at the same moment are carried out, and closing ends."""
    monkeypatch.setattr(module, "REST_AFTER", 0)
    with ThreadPoolExecutor(4) as executor:
        queue = await Queue.open(tmp_path, executor)
        for _ in range(20):
            async with asyncio.TaskGroup() as tasks:
                for _ in range(5):
                    tasks.create_task(queue.accept(envelope(), Body(b"x")))
        assert 100 == len(await queue.list(1000))
        await queue.close()
    with pytest.raises(QueueUnavailable):
        await queue.counts()
