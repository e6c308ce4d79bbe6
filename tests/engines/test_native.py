import asyncio
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from tests.engines.helpers import Lodging, handed
from tests.inbound.helpers import GREETING
from vnsmail import log as logging
from vnsmail.channel import Channel, pair
from vnsmail.engines import protocol
from vnsmail.engines.native import Worker
from vnsmail.engines.protocol import LocalMail
from vnsmail.errors import BrokerGone, QueueUnavailable
from vnsmail.queue.queue import Queue
from vnsmail.settings import Settings, to_json


class Supervisor:
    """Asks a worker, as the supervisor does."""

    def __init__(self, channel: Channel, worker: Worker) -> None:
        self.channel = channel
        self.worker = worker
        self._last_id = 0

    async def ask(self, kind: Any, *facts: Any, fds: tuple[int, ...] = ()) -> Any:
        self._last_id += 1
        request = kind(self._last_id, *facts)
        await self.channel.send(protocol.encode(request), fds)
        payload, _ = await self.channel.receive()
        answer = protocol.decode_answer(payload)
        assert self._last_id == answer.id
        return answer


@pytest.fixture
async def lodging(tmp_path):
    lodging = Lodging(tmp_path)
    yield lodging
    await lodging.close()


@pytest.fixture
async def supervisor(lodging, monkeypatch):
    """A supervisor with a worker that got its settings, and sockets of ours."""
    monkeypatch.setattr(logging, "configure", lambda process: None)
    ours, theirs = (Channel(end) for end in pair())
    async with asyncio.TaskGroup() as tasks:
        worker = Worker(theirs, tasks)
        running = tasks.create_task(worker.run())
        supervisor = Supervisor(ours, worker)
        settings = to_json(Settings())
        await supervisor.ask(protocol.Configure, "worker-0", settings, ())
        worker._sockets = lodging.sockets
        lodging.sockets.close = lambda: None
        yield supervisor
        worker.end()
        await running
    ours.close()
    theirs.close()


async def test_an_owner_from_assign_to_release(lodging, supervisor):
    """It is served, sends, reports, lists, takes new facts, and is let go."""
    ask = supervisor.ask
    assert isinstance(await ask(protocol.Assign, lodging.facts()), protocol.Done)
    client = lodging.client()
    await client.hear(GREETING)

    fd = handed(b"hi\n")
    recipients = ("bob@[10.77.0.21]",)
    mail = LocalMail("alpha.example", "ann@alpha.example", recipients, 1000)
    injected = await ask(protocol.Inject, mail, fds=(fd,))
    os.close(fd)
    reported = await ask(protocol.Report)
    listed = await ask(protocol.ListQueue, "alpha.example", 10)

    assert ("alpha.example", 1) == (
        reported.owners[0].owner,
        reported.owners[0].messages,
    )
    assert [injected.queue_id] == [entry.envelope.id for entry in listed.entries]

    await ask(protocol.Assign, lodging.facts(users=("eve",)))
    await client.ask("EHLO a.example")
    await client.ask("MAIL FROM:<>")
    assert (await client.ask("RCPT TO:<eve@alpha.example>")).startswith(b"250 ")

    assert isinstance(await ask(protocol.Release, "alpha.example"), protocol.Done)
    assert (await client.rest()).startswith(b"421 4.3.2 ")
    assert () == (await ask(protocol.Report)).owners
    queue = await Queue.open(lodging.folder / "host", lodging.executor)
    await queue.close()


async def test_changed_addresses(lodging, supervisor):
    """What cannot be changed in place is closed and opened anew."""
    await supervisor.ask(protocol.Assign, lodging.facts(addresses=("10.77.0.11",)))
    await supervisor.ask(protocol.Assign, lodging.facts(addresses=("10.77.0.12",)))

    await lodging.client("10.77.0.12").hear(GREETING)
    with pytest.raises(ConnectionRefusedError):
        lodging.client("10.77.0.11")


@pytest.mark.parametrize(
    ("request_", "text", "exit_code"),
    [
        ((protocol.ListQueue, "beta.example", 1), "beta.example is not served now", 1),
        ((protocol.Release, "beta.example"), "", 0),
    ],
)
async def test_owner_that_nobody_knows(supervisor, request_, text, exit_code):
    """To ask for it is refused in words; to let it go is to do nothing."""
    answer = await supervisor.ask(*request_)

    if exit_code:
        assert answer.text.startswith(text)
        assert exit_code == answer.exit_code
    else:
        assert isinstance(answer, protocol.Done)


async def test_owner_that_cannot_be_served(lodging, supervisor):
    """The reason is told, and it can be assigned again later."""
    lodging.sockets.errors["fd77::11"] = BrokerGone()
    failed = await supervisor.ask(protocol.Assign, lodging.facts())
    assert "the socket broker does not answer" in failed.text
    del lodging.sockets.errors["fd77::11"]
    os.unlink(lodging.sockets.path("10.77.0.11"))

    done = await supervisor.ask(protocol.Assign, lodging.facts())
    assert isinstance(done, protocol.Done)


async def test_bad_message(lodging, supervisor):
    """What is wrong with a message is told with the exit code of bad input."""
    await supervisor.ask(protocol.Assign, lodging.facts())
    fd = handed(b"\0")
    mail = LocalMail("alpha.example", "ann@alpha.example", ("bob@b.example",), 0)
    failed = await supervisor.ask(protocol.Inject, mail, fds=(fd,))
    os.close(fd)

    assert (2, True) == (failed.exit_code, "NUL" in failed.text)


async def test_fault_in_one_request(lodging, supervisor, monkeypatch):
    """A fault of ours is told, and the worker goes on."""

    async def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(Queue, "open", broken)
    failed = await supervisor.ask(protocol.Assign, lodging.facts())

    assert "internal fault: ZeroDivisionError" in failed.text
    assert () == (await supervisor.ask(protocol.Report)).owners


async def test_trouble_of_one_owner(lodging, supervisor, monkeypatch):
    """One owner's queue that cannot be used is that owner's problem."""
    await supervisor.ask(protocol.Assign, lodging.facts())

    async def fail(self):
        raise QueueUnavailable("queue.db", "disk I/O error")

    monkeypatch.setattr(Queue, "counts", fail)
    reported = await supervisor.ask(protocol.Report)

    assert "disk I/O error" in reported.owners[0].problem


async def test_end(lodging, supervisor):
    """A worker that is told to stop, or whose supervisor is gone, closes everything."""
    await supervisor.ask(protocol.Assign, lodging.facts())
    client = lodging.client()
    await client.hear(GREETING)
    supervisor.channel._socket.shutdown(socket.SHUT_RDWR)

    assert (await client.rest()).startswith(b"421 4.3.2 ")


HANGS = """
import sys, threading
from vnsmail.engines import native
native.LONGEST_END = 1
threading.Thread(target=threading.Event().wait).start()
sys.argv[1:] = ["--channel-fd", sys.argv[1]]
native.main()
"""


def test_worker_that_cannot_finish():
    """Without a supervisor it ends all the same: the next needs what it holds."""
    ours, theirs = pair()
    with ours, theirs:
        command = [sys.executable, "-c", HANGS, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])  # noqa: S603
    assert -signal.SIGALRM == process.wait(60)
