import asyncio
import errno
import ipaddress
import os
import socket
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.inbound.helpers import GREETING, TO_ANN, Client, Kept, Names, facts_in
from vnsmail.inbound import listeners as listeners_module
from vnsmail.inbound import shared
from vnsmail.inbound.listeners import Reception, _address

HELLO = b"Subject: hi\r\n\r\nhello\r\n"


class Door:
    """A reception that listens on a Unix socket, and clients of it."""

    def __init__(self, folder: Path, executor: Executor, **changes: Any) -> None:
        self.kept = Kept()
        self.names = Names()
        self.facts = facts_in(folder, **changes)
        self.reception = Reception(
            self.facts,
            keep=self.kept,
            reverse_name=self.names,
            executor=executor,
            keep_soon=lambda *message: asyncio.ensure_future(self.kept(*message)),
        )
        self.path = str(folder / "door")
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(self.path)
        self.sock.listen(1024)
        self.reception.listen(self.sock, shared.Door(address="10.77.0.11"))
        self.clients: list[Client] = []

    def client(self) -> Client:
        client = Client(socket.socket(socket.AF_UNIX))
        self.clients.append(client)
        client.sock.connect(self.path)
        return client

    async def close(self) -> None:
        await self.reception.close(5)
        for client in self.clients:
            client.hang_up()


@pytest.fixture
async def door(tmp_path, executor):
    door = Door(tmp_path, executor)
    yield door
    await door.close()


async def test_sessions_at_once(door):
    """Each connection gets a session; sessions are counted."""
    clients = [door.client() for _ in range(3)]
    for client in clients:
        await client.hear(GREETING)
    assert 3 == door.reception.sessions

    await clients[0].say(TO_ANN + HELLO + b".\r\nQUIT\r\n")
    await clients[0].rest()
    assert [HELLO] == door.kept.bodies
    assert 2 == door.reception.sessions


async def test_update(door):
    """New sessions have the new name, and the new users are taken."""
    door.reception.update(
        facts_in(door.facts.folder, name="new.example", policy=door.facts.policy)
    )
    client = door.client()

    assert b"220 new.example ESMTP vnsmail\r\n" == await client.hear(b"\r\n")


async def test_close_says_goodbye(door):
    """Clients are told, nobody is accepted any more, and it is over."""
    client = door.client()
    await client.hear(GREETING)
    await door.reception.close(5)

    assert b"421 4.3.2 closing down, try again later\r\n" == await client.rest()
    assert 0 == door.reception.sessions
    with pytest.raises(ConnectionRefusedError):
        door.client()


async def test_close_waits_for_a_message_that_is_kept(door):
    """It gets its 250, whatever the grace; who does not listen is cut off."""
    door.kept.may_go_on.clear()
    client = door.client()
    await client.say(TO_ANN + HELLO + b".\r\n")
    await door.kept.begun.wait()
    closing = asyncio.ensure_future(door.reception.close(0.01))
    await client.rest()
    assert not closing.done()
    door.kept.may_go_on.set()
    await closing

    assert [HELLO] == door.kept.bodies


async def test_close_cuts_off_whom_it_cannot_tell(door):
    """A client that reads nothing does not keep an owner from being let go."""
    client = door.client()
    await client.hear(GREETING)
    (receiver,) = door.reception._shared.receivers
    saying = asyncio.ensure_future(client.say(b"NOOP\r\n" * 100_000))
    while receiver._may_write:
        await asyncio.sleep(0)
    await door.reception.close(0.01)
    await asyncio.gather(saying, return_exceptions=True)

    assert 0 == door.reception.sessions


async def test_client_that_comes_while_it_closes(door):
    """A connection that was just accepted is told as well."""
    client = door.client()
    door.reception._accept(door.sock)
    await door.reception.close(5)

    assert (await client.rest()).endswith(
        b"421 4.3.2 closing down, try again later\r\n"
    )


async def test_out_of_descriptors(door, monkeypatch):
    """It stops accepting for a while, does not spin, and goes on."""
    monkeypatch.setattr(listeners_module, "ACCEPT_PAUSE", 0.001)
    loop = asyncio.get_running_loop()

    class Full:
        calls = 0

        def accept(self):
            self.calls += 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        def fileno(self):
            return door.sock.fileno()

    full = Full()
    door.reception._accept(full)
    assert 1 == full.calls
    assert not loop.remove_reader(door.sock)
    door.reception._resume(full)
    assert 1 == full.calls
    door.reception._accept(full)
    door.reception._resume(door.sock)
    await door.client().hear(GREETING)


@pytest.mark.parametrize(
    ("said", "address"),
    [
        (("10.77.0.21", 4711), "10.77.0.21"),
        (("fd77::11", 4711, 0, 0), "fd77::11"),
        (("fe80::1%eth0", 4711, 0, 2), "fe80::1"),
        (("::ffff:10.77.0.21", 4711, 0, 0), "10.77.0.21"),
    ],
)
def test_peer(said, address):
    """A client has one address, without the zone of a link of ours."""
    assert ipaddress.ip_address(address) == _address(said)


@pytest.mark.parametrize("said", ["", b"\0x", None, ()])
def test_peer_of_a_unix_socket(said):
    """It has none."""
    assert _address(said) is None


def test_on_uvloop(tmp_path, executor):
    """Accepting, talking and closing work in the loop of the workers."""

    async def talk():
        door = Door(tmp_path, executor)
        client, idle = door.client(), door.client()
        await client.say(TO_ANN + HELLO + b".\r\nQUIT\r\n")
        said = await client.rest()
        await door.reception.close(5)
        last = await idle.rest()
        await door.close()
        return said, last

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        said, last = runner.run(talk())

    assert b"250 2.0.0 queued as" in said
    assert said.endswith(b"221 2.0.0 alpha.example closing\r\n")
    assert last.endswith(b"421 4.3.2 closing down, try again later\r\n")


# Addresses that go ------------------------------------------------------------------------


async def test_leaving_an_address(door):
    """Nobody is accepted there; who is in the middle of a message finishes it."""
    idle, busy = door.client(), door.client()
    await idle.hear(GREETING)
    await busy.hear(GREETING)
    await busy.say(TO_ANN)
    await busy.hear(b"354 end with <CRLF>.<CRLF>\r\n")
    door.reception.leave({"10.77.0.11"})
    leaving = asyncio.ensure_future(door.reception.left({"10.77.0.11"}))

    assert (await idle.rest()).startswith(b"421 4.3.2 ")
    with pytest.raises(ConnectionRefusedError):
        door.client()
    assert not leaving.done()
    await busy.say(HELLO + b".\r\n")
    heard = await busy.rest()
    assert heard.startswith(b"250 2.0.0 queued as ")
    assert b"\r\n421 4.3.2 " in heard
    await leaving
    assert [HELLO] == door.kept.bodies


async def test_leaving_while_a_message_is_refused(door):
    """Its refusal is the end of the session too."""
    client = door.client()
    await client.hear(GREETING)
    await client.say(TO_ANN)
    await client.hear(b"354 end with <CRLF>.<CRLF>\r\n")
    door.reception.leave({"10.77.0.11"})
    await client.say(b"Received: x\r\n" * 60 + b"\r\nround and round\r\n.\r\n")

    heard = await client.rest()
    assert heard.startswith(b"554 5.4.6 ")
    assert b"\r\n421 4.3.2 " in heard


async def test_leaving_another_address(door):
    """It is nothing to those who came to this one."""
    client = door.client()
    await client.hear(GREETING)
    door.reception.leave({"10.77.0.12"})
    await door.reception.left({"10.77.0.12"})

    assert (await client.ask("NOOP")).startswith(b"250 ")


async def test_left_too_late(door):
    """Who does not end in time is cut off."""
    client = door.client()
    await client.hear(GREETING)
    await client.say(TO_ANN)
    await client.hear(b"354 end with <CRLF>.<CRLF>\r\n")
    door.reception.leave({"10.77.0.11"})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await door.reception.left({"10.77.0.11"})

    assert b"" == await client.rest()
