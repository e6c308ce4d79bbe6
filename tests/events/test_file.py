"""The event log on disk, and the pipes that lead there."""

import asyncio
import os
import time
from typing import Any

import pytest

from vnsmail.events import pipe as pipe_module
from vnsmail.events import record
from vnsmail.events.file import EventFile
from vnsmail.events.pipe import EventPipe
from vnsmail.events.record import Lost, Withdrawn


def event(name):
    return Withdrawn(time=record.at(0), host="alpha.example", id=name)


def events(path):
    return [record.parse(line) for line in path.read_bytes().splitlines() if line]


def ids(path):
    return [each.id for each in events(path)] if path.exists() else []


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def log(tmp_path):
    file: Any = EventFile(tmp_path / "log" / "events.jsonl", look_every=0.01)
    file.path = file._path
    yield file
    file.close()


@pytest.fixture
def pipe(log):
    pipe = EventPipe()
    pipe.use(log.pipe())
    yield pipe
    pipe.close()


async def say(pipe, *names):
    for name in names:
        pipe.tell(event(name))
    pipe._write()


async def test_lines_of_several_workers(log, pipe):
    """Each line is whole, whoever wrote it."""
    other = EventPipe()
    other.use(log.pipe())
    for number in range(500):
        pipe.tell(event(f"a{number}"))
        other.tell(event(f"b{number}"))
    pipe.close()
    other.close()
    until(lambda: len(ids(log.path)) == 1000)

    found = ids(log.path)
    assert [f"a{n}" for n in range(500)] == [each for each in found if each[0] == "a"]
    assert [f"b{n}" for n in range(500)] == [each for each in found if each[0] == "b"]


async def test_only_root_and_its_group_read_it(log, pipe):
    """Addresses of people stand in it."""
    await say(pipe, "a")
    until(lambda: ids(log.path) == ["a"])

    assert 0 == log.path.stat().st_mode & 0o027


async def test_a_file_that_was_moved_away(log, pipe):
    """What comes after the rotation stands in the new file, by itself."""
    await say(pipe, "a")
    until(lambda: ids(log.path) == ["a"])
    old = log.path.rename(log.path.with_suffix(".1"))
    until(log.path.exists)
    await say(pipe, "b")
    until(lambda: ids(log.path) == ["b"])

    assert ["a"] == ids(old)


async def test_a_file_that_was_emptied(log, pipe):
    """copytruncate of logrotate: no hole, no line of before."""
    await say(pipe, "a")
    until(lambda: ids(log.path) == ["a"])
    os.truncate(log.path, 0)
    await say(pipe, "b")
    until(lambda: ids(log.path) == ["b"])


async def test_a_folder_that_cannot_be_used(tmp_path):
    """What could not be written is counted, and told when it can be."""
    path = tmp_path / "log" / "events.jsonl"
    path.parent.write_text("a file is in the way")
    file = EventFile(path, look_every=0.01)
    pipe = EventPipe()
    pipe.use(file.pipe())
    await say(pipe, "a", "b")
    until(lambda: file.problem and file._lost == 2)
    path.parent.unlink()
    until(path.exists)
    await say(pipe, "c")
    until(lambda: len(events(path)) == 2 if path.exists() else False)
    pipe.close()
    file.close()

    lost, last = events(path)
    assert (2, "c") == (lost.lines, last.id)
    assert "" == file.problem


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
async def test_a_full_disk(tmp_path):
    """A disk that is full costs lines, and nothing waits for it."""
    file: Any = EventFile(tmp_path / "real.jsonl", look_every=0.01)
    until((tmp_path / "real.jsonl").exists)
    full = os.open("/dev/full", os.O_WRONLY)
    mine, file._fd, file._look = file._fd, full, lambda *, anew: None
    pipe = EventPipe()
    pipe.use(file.pipe())
    await say(pipe, "a")
    until(lambda: file._lost == 1)
    assert "no space left" in file.problem.lower()
    file._fd = mine
    await say(pipe, "b")
    until(lambda: len(events(tmp_path / "real.jsonl")) == 2)
    pipe.close()
    os.close(full)
    file.close()


async def test_nobody_takes_the_lines(monkeypatch):
    """A worker goes on: it keeps some, counts the rest, and tells when it can."""
    monkeypatch.setattr(pipe_module, "KEPT", 200_000)
    reading, writing = os.pipe2(os.O_NONBLOCK)
    pipe = EventPipe()
    pipe.use(writing)
    for number in range(10_000):
        pipe.tell(event(f"{number:05}"))
        if number % 100 == 0:
            pipe._write()
    said = b""
    while pipe._lines:
        said += os.read(reading, 65536)
        pipe._write()
    pipe.tell(event("last"))
    pipe._write()
    said += os.read(reading, 65536)
    pipe.close()
    os.close(reading)
    found = [record.parse(line) for line in said.splitlines()]
    kept = [each for each in found if isinstance(each, Withdrawn)]
    lost = sum(each.lines for each in found if isinstance(each, Lost))

    assert 10_001 == len(kept) + lost
    assert [each.id for each in kept] == sorted(each.id for each in kept)
    assert 0 < lost < 10_000


async def test_the_supervisor_is_gone():
    """Its workers end soon; until then nothing fails."""
    reading, writing = os.pipe2(os.O_NONBLOCK)
    os.close(reading)
    pipe = EventPipe()
    pipe.use(writing)
    pipe.tell(event("a"))
    pipe._write()
    pipe.tell(event("b"))
    await asyncio.sleep(0)
    pipe.close()


async def test_before_there_is_a_log():
    """Nothing is kept for it."""
    pipe = EventPipe()
    pipe.tell(event("a"))

    assert not pipe.on
    assert not pipe._lines
