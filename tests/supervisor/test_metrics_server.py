"""GET /metrics, and everything else that somebody may say there."""

import asyncio
import contextlib
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vnsmail.errors import NotFound, StateUnusable
from vnsmail.settings import Listen
from vnsmail.supervisor import metrics_server as module
from vnsmail.supervisor.metrics_server import MetricsServer

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def where(tmp_path):
    return Listen(path=tmp_path / "m.sock")


class Collected:
    def __init__(self):
        self.times = 0
        self.error: Exception | None = None

    async def __call__(self):
        self.times += 1
        if self.error:
            raise self.error
        return "vnsmail_info 1\n"


async def said(where, request):
    """Return what is answered to a request, until the end."""
    reader, writer = await asyncio.open_unix_connection(where.path)
    with contextlib.suppress(OSError):
        writer.write(request)
        await writer.drain()
    answer = b""
    with contextlib.suppress(OSError):
        answer = await reader.read()
    writer.close()
    return answer


async def test_get(where):
    """The text with its kind and length; the socket goes at the end."""
    collect = Collected()
    async with MetricsServer(collect).listening(where):
        answer = await said(where, GET)
        assert 0o660 == where.path.stat().st_mode & 0o777
    head, _, body = answer.partition(b"\r\n\r\n")

    assert b"vnsmail_info 1\n" == body
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Type: text/plain; version=0.0.4; charset=utf-8" in head
    assert b"Content-Length: 15" in head
    assert not where.path.exists()


async def test_many_ask(where):
    """One look serves them all."""
    collect = Collected()
    async with MetricsServer(collect).listening(where):
        answers = await asyncio.gather(*(said(where, GET) for _ in range(10)))

    assert [True] * 10 == [b"vnsmail_info" in each for each in answers]
    assert 1 == collect.times


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"HEAD /metrics HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /metrics?x=1 HTTP/1.1\r\n\r\n", b"200"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /../metrics HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"GET /metrics SIP/2.0\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", b"400"),
    ],
)
async def test_other_requests(where, request_, status):
    """What is not allowed collects nothing."""
    collect = Collected()
    async with MetricsServer(collect).listening(where):
        answer = await said(where, request_)
        # A client that had more to say may lose the answer with the connection.
        assert answer.split(b" ")[1:2] in ([status], [] if len(request_) > 9999 else 0)

    assert collect.times == (status == b"200")


async def test_one_who_says_nothing(where, monkeypatch):
    """He is let go, and keeps nobody waiting; nor do too many of his kind."""
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    monkeypatch.setattr(module, "AT_ONCE", 2)
    async with MetricsServer(Collected()).listening(where):
        silent = [said(where, b"GET /metrics") for _ in range(5)]
        assert [b""] * 5 == await asyncio.gather(*silent)
        assert b"vnsmail_info" in await said(where, GET)


async def test_it_cannot_be_collected(where):
    """That is told as such, and the next time may do."""
    collect = Collected()
    collect.error = NotFound("x", "y", "z")
    async with MetricsServer(collect).listening(where):
        assert b" 503 " in await said(where, GET)
        collect.error = None
        assert b" 200 " in await said(where, GET)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(tmp_path_factory, data):
    """It goes on."""
    where = Listen(path=tmp_path_factory.mktemp("m") / "m.sock")

    async def talk():
        async with MetricsServer(Collected()).listening(where):
            reader, writer = await asyncio.open_unix_connection(where.path)
            writer.write(data)
            writer.write_eof()
            await reader.read()
            writer.close()
            assert b" 200 " in await said(where, GET)

    asyncio.run(talk())


async def test_where_it_cannot_listen(tmp_path):
    """A socket of an earlier process is replaced; anything else is not touched."""
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with MetricsServer(Collected()).listening(Listen(path=path)):
        pass
    path.write_text("mine")
    with pytest.raises(StateUnusable, match=r"set metrics\.listen"):
        async with MetricsServer(Collected()).listening(Listen(path=path)):
            pass
    assert "mine" == path.read_text()


async def test_nowhere():
    """By default nobody listens."""
    async with MetricsServer(Collected()).listening(None):
        pass


async def test_an_address():
    """On the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    async with MetricsServer(Collected()).listening(Listen("127.0.0.1", port)):
        reader, writer = await asyncio.open_connection(  # noqa: TID251  to itself
            "127.0.0.1", port
        )
        writer.write(GET)
        assert b" 200 " in await reader.read()
        writer.close()
