import asyncio
from collections import deque
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import apsw
import pytest

from tests.queue.helpers import (
    DEFERRED,
    DELIVERED,
    FAILED,
    NOW,
    content,
    envelope,
    ids,
    spooled,
)
from vnsmail.errors import NotFound, QueueUnavailable
from vnsmail.queue import queue as queue_module
from vnsmail.queue.body import Body
from vnsmail.queue.queue import Queue
from vnsmail.queue.store import QueueStore

LARGE = b"large " * 1000
BOB = "bob@b.example"


class SteppingExecutor(Executor):
    """Does what it is given only when told to, one after the other, in the caller."""

    def __init__(self) -> None:
        self.waiting: deque[Any] = deque()

    def submit(self, function, /, *args, **kwargs):
        future: Future[object] = Future()
        self.waiting.append((future, function, args, kwargs))
        return future

    def step(self):
        future, function, args, kwargs = self.waiting.popleft()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  as executors do
            future.set_exception(error)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "host"


@pytest.fixture
def executor():
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
async def queue(folder, executor):
    queue = await Queue.open(folder, executor)
    yield queue
    await queue.close()


@pytest.fixture
def stepping():
    return SteppingExecutor()


@pytest.fixture
async def stepped(folder, stepping):
    """A queue that goes to the disk only when told to."""
    opening = asyncio.ensure_future(Queue.open(folder, stepping))
    await turn()
    stepping.step()
    queue = await opening
    yield queue
    closing = asyncio.ensure_future(queue.close())
    while not closing.done():
        await turn()
        while stepping.waiting:
            stepping.step()


async def turn():
    """Let everything that is ready happen."""
    for _ in range(10):
        await asyncio.sleep(0)


def start(*coroutines):
    return [asyncio.ensure_future(coroutine) for coroutine in coroutines]


async def listed(queue):
    return [message.envelope.id for message in await queue.list(1000)]


async def test_a_message_goes_through(queue):
    """Accepted, due, loaded, settled: a message's whole way."""
    message = envelope(BOB, "eve@b.example")
    await queue.accept(message, Body(b"hello"))

    ((due,), _) = await queue.due_in("b.example", NOW, 10, set())
    found, body = await queue.load(message.id)
    await queue.settle(
        message.id,
        {BOB: DELIVERED, "eve@b.example": DEFERRED},
        {"eve@b.example": NOW + 9},
    )

    assert message == due.envelope == found.envelope
    assert b"".join(body.chunks()) == b"hello"
    assert ([], NOW + 9) == await queue.due_in("b.example", NOW, 10, set())
    assert (await queue.counts()).deferred == 1
    await queue.settle(message.id, {"eve@b.example": FAILED}, {})
    assert await listed(queue) == []
    with pytest.raises(NotFound):
        await queue.load(message.id)


async def test_large_body_is_synced_before_it_joins_a_batch(stepped, stepping, folder):
    """The disk works on a large body while small messages are committed."""
    large, small = envelope(), envelope()
    first, second = start(
        stepped.accept(large, spooled(folder, LARGE)),
        stepped.accept(small, Body(b"small")),
    )
    await turn()
    names = [
        getattr(function, "__name__", "partial")
        for _, function, _, _ in stepping.waiting
    ]

    assert sorted(names) == ["partial", "sync_body"]
    while stepping.waiting:
        stepping.step()
        await turn()
    await first
    await second


class TestGroupCommit:
    async def test_what_arrives_during_a_commit_is_one_batch(self, stepped, stepping):
        """Any number of messages that wait for the disk share its next visit."""
        first = start(stepped.accept(envelope(), Body(b"1")))
        await turn()
        rest = start(*(stepped.accept(envelope(), Body(b"x")) for _ in range(50)))
        await turn()

        assert len(stepping.waiting) == 1
        stepping.step()
        await turn()
        assert [task.done() for task in first] == [True]
        assert not any(task.done() for task in rest)
        assert len(stepping.waiting) == 1
        stepping.step()
        await asyncio.gather(*rest)

    async def test_nobody_hears_before_the_commit(self, stepped, stepping, folder):
        """Accept returns after the transaction, not before."""
        message = envelope()
        (task,) = start(stepped.accept(message, Body(b"x")))
        await turn()

        assert not task.done()
        stepping.step()
        await task
        assert await _asked(stepped.list(10), stepping) == [message.id]

    async def test_batches_are_bounded(self, stepped, stepping, monkeypatch):
        """A crowd is committed in several batches, in order of arrival."""
        monkeypatch.setattr(queue_module, "BATCH_CHANGES", 10)
        tasks = start(*(stepped.accept(envelope(), Body(b"x")) for _ in range(25)))
        done = []
        for _ in range(3):
            await turn()
            stepping.step()
            await turn()
            done.append(sum(task.done() for task in tasks))

        assert done == [10, 20, 25]

    async def test_batches_are_bounded_in_bytes(self, stepped, stepping, monkeypatch):
        """Large messages make small batches."""
        monkeypatch.setattr(queue_module, "BATCH_BYTES", 1000)
        tasks = start(*(stepped.accept(envelope(), Body(b"x" * 600)) for _ in range(4)))
        await turn()
        stepping.step()
        await turn()

        assert [t.done() for t in tasks] == [True, True, False, False]
        stepping.step()
        await asyncio.gather(*tasks)

    async def test_questions_see_what_was_committed_before(self, queue):
        """A question asked after accept returned knows the message."""
        for _ in range(20):
            message = envelope()
            await queue.accept(message, Body(b"x"))

            assert (await queue.load(message.id))[0].envelope == message

    async def test_many_queues_share_an_executor(self, tmp_path, executor):
        """Queues of many hosts go to the disk side by side, each with its own mail."""
        queues = [await Queue.open(tmp_path / str(i), executor) for i in range(8)]
        messages = [[envelope() for _ in range(20)] for _ in queues]
        await asyncio.gather(
            *(
                queue.accept(message, Body(message.id.encode()))
                for queue, own in zip(queues, messages, strict=True)
                for message in own
            )
        )

        for queue, own in zip(queues, messages, strict=True):
            assert await listed(queue) == sorted(message.id for message in own)
            await queue.close()


async def _asked(question, stepping):
    (task,) = start(question)
    await turn()
    stepping.step()
    return [message.envelope.id for message in await task]


class TestCancellation:
    async def test_cancelled_caller_leaves_the_batch_whole(self, stepped, stepping):
        """One caller gone, the others of its batch are told as ever."""
        messages = [envelope() for _ in range(3)]
        tasks = start(*(stepped.accept(m, Body(b"x")) for m in messages))
        await turn()
        tasks[1].cancel()
        await turn()
        stepping.step()
        await asyncio.gather(*tasks, return_exceptions=True)

        assert [task.cancelled() for task in tasks] == [False, True, False]
        found = await _asked(stepped.list(10), stepping)
        assert found == [message.id for message in messages]

    async def test_cancelled_while_a_batch_is_on_its_way(self, stepped, stepping):
        """A caller that goes while its batch commits changes nothing for the next."""
        first = start(stepped.accept(envelope(), Body(b"1")))
        await turn()
        first[0].cancel()
        second = start(stepped.accept(envelope(), Body(b"2")))
        await turn()
        stepping.step()
        await turn()
        stepping.step()
        await second[0]

        assert len(await _asked(stepped.list(10), stepping)) == 2

    async def test_cancelled_while_its_body_is_synced(self, stepped, stepping, folder):
        """A message that never joined a batch leaves no file."""
        (task,) = start(stepped.accept(envelope(), spooled(folder, LARGE)))
        await turn()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        assert list((folder / "incoming").iterdir()) == []
        stepping.waiting.clear()

    async def test_cancelled_settle_is_carried_out(self, stepped, stepping):
        """What became of a message is recorded, whoever waits."""
        message = envelope()
        (task,) = start(stepped.accept(message, Body(b"x")))
        await turn()
        stepping.step()
        await task
        (task,) = start(stepped.settle(message.id, {BOB: DELIVERED}, {}))
        await turn()
        task.cancel()
        await turn()
        stepping.step()

        assert await _asked(stepped.list(10), stepping) == []

    async def test_cancelled_open_lets_go_of_the_lock(self, folder, stepping):
        """A queue that was opened for nobody is closed again."""
        (task,) = start(Queue.open(folder, stepping))
        await turn()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        stepping.step()
        await turn()
        stepping.step()

        assert not (folder / "queue.db-wal").exists()


class TestFaults:
    async def test_full_disk_then_room_again(self, faults, folder, executor):
        """Every waiter of a batch hears that the disk is full; later ones succeed."""
        queue = await Queue.open(folder, executor)
        faults.errors["write", "queue.db-wal"] = apsw.FullError
        refused = await asyncio.gather(
            *(queue.accept(envelope(), Body(b"x")) for _ in range(10)),
            queue.accept(envelope(), spooled(folder, LARGE)),
            return_exceptions=True,
        )
        faults.errors.clear()
        message = envelope()
        await queue.accept(message, Body(b"x"))

        assert {type(error) for error in refused} == {QueueUnavailable}
        assert len({id(error) for error in refused}) == len(refused)
        assert await listed(queue) == [message.id]
        await queue.close()

    async def test_one_bad_change_is_told_to_its_caller_only(self, queue):
        """In one batch each caller hears its own result."""
        message = envelope()
        results = await asyncio.gather(
            queue.accept(message, Body(b"x")),
            queue.settle("nosuchid", {BOB: DELIVERED}, {}),
            queue.accept(envelope(), Body(b"x")),
            queue.load("nosuchid"),
            return_exceptions=True,
        )

        kinds = [type(result) for result in results]
        assert kinds == [type(None), NotFound, type(None), NotFound]

    async def test_deferred_without_a_time_is_a_fault_of_the_caller(self, queue):
        """Nothing is put off to no time."""
        with pytest.raises(ValueError, match="no time is given"):
            await queue.settle("x", {BOB: DEFERRED}, {})

    async def test_fault_of_ours_reaches_every_waiter(self, queue, monkeypatch):
        """Nobody waits for ever for a batch that fell to a fault of this program."""

        def fault(_store, _changes):
            raise ZeroDivisionError

        monkeypatch.setattr(QueueStore, "commit", fault)
        results = await asyncio.gather(
            *(queue.accept(envelope(), Body(b"x")) for _ in range(3)),
            return_exceptions=True,
        )

        assert {type(result) for result in results} == {ZeroDivisionError}

    async def test_executor_that_was_shut_down(self, folder):
        """Nobody waits for ever for an executor that takes no more work."""
        executor = ThreadPoolExecutor(1)
        queue = await Queue.open(folder, executor)
        executor.shutdown()

        with pytest.raises(QueueUnavailable, match="shutdown"):
            await queue.accept(envelope(), Body(b"x"))
        with pytest.raises(QueueUnavailable, match="shutdown"):
            await queue.close()
        queue._store.close()

    async def test_body_file_that_vanished(self, queue, folder):
        """A body that is gone before it is accepted is refused."""
        body = spooled(folder, LARGE)
        assert body.file is not None
        body.file.unlink()

        with pytest.raises(QueueUnavailable, match="no such file"):
            await queue.accept(envelope(), body)

    async def test_corrupt_file(self, folder, executor):
        """A file that is no queue is reported."""
        folder.mkdir()
        (folder / "queue.db").write_bytes(b"x" * 5000)

        with pytest.raises(QueueUnavailable, match="not a database"):
            await Queue.open(folder, executor)


class TestClosing:
    async def test_finishes_what_was_handed_over(self, folder, executor):
        """Closing waits for every message that was handed over before."""
        queue = await Queue.open(folder, executor)
        messages = [envelope() for _ in range(300)]
        tasks = start(*(queue.accept(m, Body(m.id.encode())) for m in messages))
        await asyncio.sleep(0)
        await queue.close()
        await asyncio.gather(*tasks)

        store = QueueStore(folder)
        assert ids(store) == [message.id for message in messages]
        assert content(store, messages[7].id) == messages[7].id.encode()
        store.close()

    async def test_closed_queue_refuses(self, folder, executor):
        """After closing nothing is taken, and bodies are thrown away."""
        queue = await Queue.open(folder, executor)
        body = spooled(folder, LARGE)
        await queue.close()
        await queue.close()

        with pytest.raises(QueueUnavailable, match="closed"):
            await queue.accept(envelope(), body)
        with pytest.raises(QueueUnavailable, match="closed"):
            await queue.counts()
        assert list((folder / "incoming").iterdir()) == []

    async def test_cancelled_close_closes(self, folder, executor):
        """Whoever asked may go; the files are closed all the same."""
        queue = await Queue.open(folder, executor)
        (task,) = start(queue.close())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await queue.close()

        assert not (folder / "queue.db-wal").exists()
