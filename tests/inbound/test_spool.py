import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inbound.helpers import HeldExecutor
from vnsmail.errors import QueueUnavailable
from vnsmail.inbound import spool as spool_module
from vnsmail.inbound.spool import FRONT, Spool
from vnsmail.message.complete import Completion, Missing
from vnsmail.queue.body import INCOMING

SMALL = 10


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(spool_module, "PIECE", SMALL)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / INCOMING).mkdir()
    return tmp_path


def files(folder):
    return list((folder / INCOMING).iterdir())


def content(body):
    return b"".join(body.chunks())


async def test_small_body_stays_in_memory(folder, executor):
    """No file is made for it."""
    spool = Spool(folder, executor, lambda: None)
    spool.add(b"0123")
    spool.add(b"456789")

    body = await spool.finish()
    assert (b"0123456789", None) == (body.head, body.file)
    assert b"0123456789" == spool.front
    assert [] == files(folder)


async def test_large_body_goes_to_a_file(folder, executor):
    """A piece is written when it is full, and the front is kept to look at."""
    idle = asyncio.Event()
    spool = Spool(folder, executor, idle.set)
    spool.add(b"x" * SMALL)
    busy = [spool.busy]
    spool.add(b"y")
    busy.append(spool.busy)
    await idle.wait()
    busy.append(spool.busy)
    spool.add(b"z")
    body = await spool.finish()

    assert [False, True, False] == busy
    assert b"x" * SMALL + b"yz" == content(body)
    assert [body.file] == files(folder)
    assert spool.front.startswith(b"x" * SMALL)


async def test_what_comes_while_a_piece_is_written(folder, executor):
    """It is gathered, written next, and in order."""
    held = HeldExecutor(executor)
    spool = Spool(folder, held, lambda: None)
    for number in range(50):
        spool.add(b"%02d" % number)
    held.go_on()

    body = await spool.finish()
    assert b"".join(b"%02d" % number for number in range(50)) == content(body)


async def test_front_is_bounded(folder, executor):
    """Not more is kept of a large body than is looked at."""
    spool = Spool(folder, executor, lambda: None)
    spool.add(b"x" * (FRONT + 1))
    await spool.finish()

    assert FRONT == len(spool.front)


async def test_disk_that_fails(folder, executor):
    """The error comes at the end; what comes before it is dropped, and no file left."""
    (folder / INCOMING).rmdir()
    idle = asyncio.Event()
    spool = Spool(folder, executor, idle.set)
    spool.add(b"x" * 100)
    await idle.wait()
    spool.add(b"x" * 100)

    assert not spool.busy
    with pytest.raises(QueueUnavailable):
        await spool.finish()


@pytest.mark.parametrize("when", ["before", "while", "after"])
async def test_discard(folder, executor, when):
    """Nothing is left, whether a piece is on its way to the disk or not."""
    held = HeldExecutor(executor)
    spool = Spool(folder, held, lambda: None)
    if when != "before":
        spool.add(b"x" * 100)
    if when == "while":
        spool.discard()
    if held.held:
        held.go_on()
    while spool.busy:
        await asyncio.sleep(0)
    if when == "after":
        assert files(folder)
        spool.discard()
    spool.discard()
    executor.shutdown()

    assert [] == files(folder)


async def test_executor_that_is_gone(folder):
    """A worker that ends throws away what is arriving."""
    executor = ThreadPoolExecutor(1)
    idle = asyncio.Event()
    spool = Spool(folder, executor, idle.set)
    spool.add(b"x" * 100)
    await idle.wait()
    executor.shutdown()
    spool.add(b"x" * 100)

    with pytest.raises(QueueUnavailable):
        await spool.finish()
    assert [] == files(folder)


@settings(max_examples=30)
@given(pieces=st.lists(st.binary(max_size=3 * SMALL)))
def test_any_cut_gives_the_same_body(tmp_path_factory, pieces):
    """However the bytes are cut, they come out as they went in."""
    folder = tmp_path_factory.mktemp("owner")
    os.mkdir(folder / INCOMING)

    async def spooled(executor):
        spool = Spool(folder, executor, lambda: None)
        for number, piece in enumerate(pieces):
            spool.add(piece)
            if number % 3 == 0:
                await asyncio.sleep(0)
        return await spool.finish()

    with ThreadPoolExecutor(1) as executor, pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module, "PIECE", SMALL)
        body = asyncio.run(spooled(executor))

    assert b"".join(pieces) == content(body)


# Completed on its way -----------------------------------------------------------------

MISSING = Missing("d", "<m>", "ann@alpha.example")
ADDED = b"Date: d\r\nFrom: ann@alpha.example\r\nMessage-ID: <m>\r\n"


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("text", [b"", b"text\r\n" * 50])
async def test_completed(folder, executor, size, text):
    """However it comes, and wherever it goes; and the front is the completed one."""
    idle = asyncio.Event()
    spool = Spool(folder, executor, idle.set, Completion(MISSING))
    message = b"Subject: x\r\nBcc: eve@e.example\r\n\r\n" + text
    for at in range(0, len(message), size):
        spool.add(message[at : at + size])
        while spool.busy:
            await idle.wait()
            idle.clear()
    body = await spool.finish()

    assert ADDED + b"Subject: x\r\n\r\n" + text == content(body)
    assert spool.front == content(body)[: len(spool.front)]
    assert spool.front.startswith(ADDED)
    body.discard()


async def test_header_that_does_not_end(folder, executor, monkeypatch):
    """It is kept as it came, for whoever looks at it to refuse; not in memory."""
    monkeypatch.setattr("vnsmail.message.complete.MAX_HEADER", 40)
    idle = asyncio.Event()
    spool = Spool(folder, executor, idle.set, Completion(MISSING))
    message = b"X-Field: 1234567\r\n" * 5
    for at in range(0, len(message), 9):
        spool.add(message[at : at + 9])
        while spool.busy:
            await idle.wait()
            idle.clear()
    body = await spool.finish()

    assert message == content(body)
    body.discard()
