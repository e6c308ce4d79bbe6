import asyncio
from concurrent.futures import Future

import pytest

from vnsmail.mailbox.usage import FRESH, Usage, measure


class Now:
    """An executor that does it at once, and a clock that stands still."""

    def __init__(self):
        self.time = 100.0
        self.measured = 0

    def __call__(self):
        return self.time

    def submit(self, function, *arguments):
        self.measured += 1
        future: Future[object] = Future()
        future.set_result(function(*arguments))
        return future


@pytest.fixture
def now():
    return Now()


@pytest.fixture
def usage(tmp_path, now):
    for part in ("new", "cur", "tmp", ".Sent/cur"):
        (tmp_path / "ann" / part).mkdir(parents=True)
    (tmp_path / "ann" / "new" / "1").write_bytes(b"x" * 100)
    (tmp_path / "ann" / ".Sent" / "cur" / "2").write_bytes(b"x" * 50)
    return Usage(tmp_path, now, now)


def test_measure(usage, tmp_path):
    """All files count, those of its folders too; links are not followed."""
    (tmp_path / "ann" / "cur" / "link").symlink_to("/proc/self/exe")
    size = len("/proc/self/exe")

    assert 150 + size == measure(tmp_path / "ann")
    assert 0 == measure(tmp_path / "nobody")


async def test_full(usage, now):
    """Nobody waits: the first answer is no, the next one is true."""
    assert not usage.is_full("ann", 150)
    await asyncio.sleep(0)
    assert usage.is_full("ann", 150)
    assert not usage.is_full("ann", 151)
    assert not usage.is_full("ann", None)
    await asyncio.sleep(0)

    assert 1 == now.measured


async def test_what_comes_and_goes(usage, now, tmp_path):
    """What is delivered counts at once, what is deleted after a while."""
    assert usage.take("ann", 10, 151)
    assert not usage.take("ann", 10, 151)
    assert usage.take("ann", 10, None)
    usage.give_back("ann", 10)
    usage.give_back("bob", 10)
    assert usage.take("ann", 10, 151)
    (tmp_path / "ann" / "new" / "1").unlink()
    assert usage.is_full("ann", 160)
    now.time += FRESH + 1
    assert usage.is_full("ann", 160)
    await asyncio.sleep(0)

    assert not usage.is_full("ann", 160)
    assert not usage.take("ann", 1, 50)
    usage.forget()
    assert not usage.is_full("ann", 1)
