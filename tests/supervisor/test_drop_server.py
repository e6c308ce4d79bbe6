import asyncio
import os
import socket
import stat

import pytest

from vnsmail.drop.form import NAME_DIGITS
from vnsmail.engines.protocol import QueueEntry
from vnsmail.errors import NotAllowed
from vnsmail.model import Envelope, Owner
from vnsmail.settings import layout
from vnsmail.supervisor import drop_server
from vnsmail.supervisor.drops import Result

NAME = "0" * NAME_DIGITS
ENTRY = QueueEntry(
    Envelope("id-1", Owner("alpha.example"), "", ("bob@b.example",), 1.5),
    9,
    (("bob@b.example", 1, 2.5, "said\nlater\t!"),),
)


class Drops:
    """Answers as told, and knows who asked."""

    def __init__(self):
        self.asked = []
        self.result: Result | None = Result("id-1")
        self.held = asyncio.Event()
        self.held.set()
        self.error: Exception | None = None

    async def take(self, uid, name, *, tell):
        self.asked.append((uid, name, tell))
        await self.held.wait()
        return self.result

    async def queued(self, uid, limit):
        if self.error is not None:
            raise self.error
        return [ENTRY, ENTRY]


class House:
    def __init__(self, path):
        self.path = path
        self.drops = Drops()
        self.socks = []

    def connect(self):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        sock.connect(str(self.path))
        self.socks.append(sock)
        return sock

    async def ask(self, question, sock=None):
        """Return all packets until the other end closes."""
        loop = asyncio.get_running_loop()
        sock = sock or self.connect()
        await loop.sock_sendall(sock, question)
        return await self.rest(sock)

    async def rest(self, sock):
        loop = asyncio.get_running_loop()
        packets = []
        while packet := await loop.sock_recv(sock, 65536):
            packets.append(packet.decode())
        return packets


@pytest.fixture
async def house(tmp_path):
    found = layout(tmp_path)
    found.run.mkdir()
    with drop_server.listen(found) as sock:
        house = House(found.drop_socket)
        serving = asyncio.ensure_future(
            drop_server.serve(sock, house.drops)  # type: ignore[arg-type]
        )
        yield house
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    for sock in house.socks:
        sock.close()


async def test_open_to_all(house):
    """Every account may ask; what it gets is its own."""
    assert 0o666 == stat.S_IMODE(house.path.stat().st_mode)


@pytest.mark.parametrize(
    ("result", "answer"),
    [
        (Result("id-1"), "taken id-1"),
        (Result(problem="why", exit_code=77), "refused 77 why"),
        (Result(later="why"), "later why"),
        (None, f"refused {os.EX_NOINPUT} there is no such message"),
    ],
)
async def test_take(house, result, answer):
    """It is asked for whoever the kernel says, and told what became of it."""
    house.drops.result = result

    assert [answer] == await house.ask(f"take {NAME}".encode())
    assert [(0, NAME, True)] == house.drops.asked  # we are whose the daemon is


async def test_another_account(house, monkeypatch):
    """Each asks for its own folder."""
    monkeypatch.setattr(drop_server, "peer_uid", lambda _: os.geteuid() + 1)
    await house.ask(f"take {NAME}".encode())

    assert [(os.geteuid() + 1, NAME, True)] == house.drops.asked


@pytest.mark.parametrize(
    "question",
    [
        b"take",
        b"take ../../etc/passwd",
        b"take 0 0",
        f"take {NAME}x".encode(),
        b"\xff\xfe",
        b"list all",
        b"x" * 60_000,
    ],
)
async def test_words_that_are_none(house, question):
    """Nothing is looked up for them, and the next is heard."""
    (answer,) = await house.ask(question)

    assert answer.startswith(f"refused {os.EX_PROTOCOL} ")
    assert [] == house.drops.asked
    assert ["taken id-1"] == await house.ask(f"take {NAME}".encode())


async def test_list(house):
    """A packet for each message; what a remote said becomes no line."""
    answers = await house.ask(b"list")

    assert ["id-1\t9\t2\t\nbob@b.example\tsaid later !"] * 2 == answers
    house.drops.error = NotAllowed("account", "uid 7", "no user")
    (refused,) = await house.ask(b"list")
    assert refused.startswith(f"refused {os.EX_NOPERM} ")


async def test_so_many_of_an_account(house, monkeypatch):
    """Who holds them all is not heard any more, until it lets go of one."""
    monkeypatch.setattr(drop_server, "MAX_OF_ACCOUNT", 2)
    house.drops.held.clear()
    waiting = [
        asyncio.ensure_future(house.ask(f"take {NAME}".encode())) for _ in range(2)
    ]
    while len(house.drops.asked) < 2:
        await asyncio.sleep(0)
    assert [] == await house.rest(house.connect())

    monkeypatch.setattr(drop_server, "peer_uid", lambda _: os.geteuid() + 1)
    others = asyncio.ensure_future(house.ask(f"take {NAME}".encode()))
    while len(house.drops.asked) < 3:
        await asyncio.sleep(0)
    house.drops.held.set()
    assert [["taken id-1"]] * 3 == await asyncio.gather(*waiting, others)
    monkeypatch.undo()
    assert ["taken id-1"] == await house.ask(f"take {NAME}".encode())


async def test_who_says_nothing(house, monkeypatch):
    """It is left after a time."""
    monkeypatch.setattr(drop_server, "PATIENCE", 0.01)

    assert [] == await house.rest(house.connect())


async def test_fault_of_ours(house):
    """It ends one connection, and not the supervisor."""
    house.drops.error = ZeroDivisionError()

    assert [] == await house.ask(b"list")
    assert ["taken id-1"] == await house.ask(f"take {NAME}".encode())
