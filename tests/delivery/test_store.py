"""A mail store that listens on a Unix socket of this machine."""

import asyncio
import socket

import pytest

from tests.delivery.helpers import ALPHA
from vnsmail.broker.client import SourceSocket
from vnsmail.delivery.attempt import rules_of
from vnsmail.delivery.connection import ConnectionFailed, connect
from vnsmail.delivery.route import route
from vnsmail.errors import SettingsError
from vnsmail.model import Outcome
from vnsmail.queue.body import Body
from vnsmail.settings import DeliverySettings, Settings, checked
from vnsmail.smtp.client_session import Transaction

DATA = b"Subject: x\r\n\r\nhello\r\n"


class Nobody:
    """A store has a path, so DNS is not asked."""

    async def mx(self, domain):
        raise AssertionError

    async def addresses(self, name, family):
        raise AssertionError


class Broker:
    """Connects, as the broker does; workers cannot."""

    def __init__(self):
        self.asked: list[tuple[str, str]] = []

    async def connectable(self, owner, family):
        raise AssertionError

    async def engine(self, owner):
        raise AssertionError

    async def store(self, owner: str, path: str) -> SourceSocket:
        self.asked.append((owner, path))
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(path)
        except OSError:
            sock.close()
            raise
        sock.setblocking(False)
        return SourceSocket(sock, owner, None)


async def hop_of(path):
    routes = {"route": {"store.example": f"lmtp:unix:{path}"}}
    rules = rules_of(checked(DeliverySettings, routes), ALPHA)
    found = await route("store.example", ALPHA, Nobody(), lambda _: None, rules)
    assert not isinstance(found, Outcome)
    return found[0]


async def store(reader, writer):
    """Take mail for ann, and have no room for bob."""
    writer.write(b"220 store\r\n")
    while line := await reader.readline():
        if line == b"DATA\r\n":
            writer.write(b"354 go\r\n")
            await reader.readuntil(b"\r\n.\r\n")
            writer.write(b"250 2.0.0 kept\r\n452 4.2.2 bob is full\r\n")
        else:
            writer.write(b"250 ok\r\n")
    writer.close()


async def test_an_outcome_for_each(tmp_path):
    path = str(tmp_path / "lmtp")
    broker = Broker()
    serving: list[asyncio.Task[None]] = []

    def serve(*streams):
        serving.append(asyncio.ensure_future(store(*streams)))

    async with await asyncio.start_unix_server(serve, path):
        hop = await hop_of(path)
        connection = await connect(hop, ALPHA, broker, Settings().smtp, lambda _: None)
        to = ("ann@store.example", "bob@store.example")
        sending = Transaction("a@x.example", to, len(DATA), False, False)
        result = await connection.send(sending, Body(DATA))
        connection.abort()
        await connection.gone
        await asyncio.gather(*serving)
    assert [result.replies[each].code for each in to] == [250, 452]
    assert broker.asked == [(ALPHA.owner, path)]
    assert result.contact.remote == f"unix:{path}"


async def test_nobody_listens(tmp_path):
    """It waits, with the reason."""
    hop = await hop_of(str(tmp_path / "nothing"))
    with pytest.raises(ConnectionFailed) as failed:
        await connect(hop, ALPHA, Broker(), Settings().smtp, lambda _: None)
    assert "no such file" in failed.value.outcome.text
    assert failed.value.outcome.unreachable


def test_settings():
    given: dict[str, object] = {
        "route": {"a.example": "LMTP:unix:/Run/A", "b.example": "lmtp:s.example:24"}
    }
    given["host"] = {"alpha.example": {"route": {"*": "lmtp:unix:/run/b"}}}
    found = checked(DeliverySettings, given)
    assert found.stores == (("", "/Run/A"), ("alpha.example", "/run/b"))


@pytest.mark.parametrize(
    "route_to",
    ["lmtp:unix:run/a", "lmtp:/run/a", "unix:/run/a", "lmtp:unix:/" + "x" * 108],
)
def test_no_store(route_to):
    with pytest.raises(SettingsError):
        checked(DeliverySettings, {"route": {"a.example": route_to}})
