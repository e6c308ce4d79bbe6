import asyncio
import os
import socket
import stat
import tempfile
import warnings
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.channel import (
    MAX_LARGE,
    ChannelClosed,
    close_all,
    receive_now,
    send_now,
)
from vnsmail.errors import NotFound, StateUnusable
from vnsmail.settings import layout
from vnsmail.supervisor import control, control_server


class Asked:
    """A handler that does as it is told."""

    def __init__(self):
        self.requests = []
        self.answer: control.Answer | Exception = control.Done()
        self.held = asyncio.Event()
        self.held.set()

    async def __call__(self, request, fds, uid):
        texts = [os.read(fd, 100) for fd in fds]
        self.requests.append((request, texts, uid))
        await self.held.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def asked():
    return Asked()


@pytest.fixture
async def root(tmp_path, asked):
    found = layout(tmp_path)
    found.run.mkdir()
    with control_server.listen(found) as sock:
        serving = asyncio.ensure_future(control_server.serve(sock, asked))
        yield found
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


@pytest.fixture
def connect(root):
    """Return what connects, as a command does; all are closed at the end."""
    opened = []

    def connected():
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        opened.append(sock)
        sock.connect(str(root.control_socket))
        return sock

    yield connected
    for sock in opened:
        sock.close()


async def answer_on(sock):
    payload, fds = await asyncio.to_thread(receive_now, sock, large=True)
    assert [] == fds
    return control.decode_answer(payload)


async def ask(sock, request, fds=()):
    send_now(sock, control.encode(request), fds)
    return await answer_on(sock)


async def dropped(sock):
    with pytest.raises(ChannelClosed):
        await asyncio.to_thread(receive_now, sock)


REQUESTS = [
    control.GetStatus(),
    control.CreateHost("a.example", ("10.0.0.1/24",), "namespace", dry_run=True),
    control.DestroyHost("a.example", discard_queue=True),
    control.ChangeHost("a.example", {"mtu": 1400, "domains": ("b.example",)}),
    control.ChangeAddresses("a.example", ("10.0.0.2/24",), ("10.0.0.1",), 5.0),
    control.RenameHost("a.example", "b.example", keep_domain=False),
    control.GetTally("a.example"),
    control.PackHost("a.example", "/packs"),
    control.UnpackHost("/packs/a.vnsmail-pack"),
    control.FindQueue("a.example"),
    control.WorkQueue("a.example", "retry"),
    control.HoldPlace("a.example", "b.example", "by hand"),
    control.MoveQueue("a.example", "b.example"),
    control.ExplainHost("a.example", "bob@b.example"),
    control.ApplyHosts("hosts", dry_run=True),
    control.GetProgress(),
    control.AddUser("ann@a.example"),
    control.RemoveUser("ann@a.example"),
    control.SetPassword("ann@a.example", control.Proofs("x", "y")),
    control.SuspendUser("ann@a.example", suspended=True),
    control.SetQuota("ann@a.example", 5),
    control.AllowSender("ann@a.example", "us@a.example"),
    control.AddAlias("us@a.example", ("ann",)),
    control.RemoveAlias("us@a.example"),
    control.AddLogin("ann@a.example", 1000, "annie"),
    control.RemoveLogin("annie"),
    control.Send("ann@a.example", ("bob@b.example",)),
    control.ListQueue(None, 5),
    control.GetGuard("a.example"),
    control.GetMetrics(),
    control.SetCertificate("a.example", b"cert", b"key", ("b.example",)),
    control.RemoveCertificate("a.example", "b.example"),
    control.GetCertificates("a.example"),
    control.ChangeDkim("a.example", "rotate", selector="s"),
    control.ListDkim(),
    control.WatchMail(True),
    control.ShutDown(),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: type(r).__name__)
async def test_a_request(connect, asked, request_):
    """The handler gets what was asked, by whom, and what came along."""
    reader, writer = os.pipe()
    os.write(writer, b"message")
    answer = await ask(connect(), request_, (reader,))
    close_all((reader, writer))

    assert control.Done() == answer
    assert [(request_, [b"message"], os.geteuid())] == asked.requests


def test_all_requests_are_tried():
    """The list above is whole."""
    known = control.Request.__args__

    assert set(known) == {type(request) for request in REQUESTS}


async def test_many_at_once(connect, asked):
    """A slow request keeps no other waiting."""
    asked.held.clear()
    slow, quick = connect(), connect()
    send_now(slow, control.encode(control.GetStatus()))
    while not asked.requests:
        await asyncio.sleep(0)
    asked.held.set()
    await ask(quick, control.ShutDown())
    await answer_on(slow)

    assert 2 == len(asked.requests)


async def test_an_error_of_ours(connect, asked):
    """An error comes as its sentence, with its exit code."""
    asked.answer = NotFound("domain", "x.example", "see `vnsmail host list`")
    expected = control.Error("domain 'x.example': see `vnsmail host list`", 2)

    assert expected == await ask(connect(), control.GetStatus())


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(28, "No space left on device"), "cannot do this: [Errno 28] No space"),
        (TimeoutError(), "cannot do this: TimeoutError()"),
        (ValueError("oh"), "internal fault (ValueError('oh')); see the log"),
    ],
)
async def test_a_fault(connect, asked, error, text):
    """A fault is told, and the next request is answered."""
    asked.answer = error
    answer = await ask(connect(), control.GetStatus())

    assert isinstance(answer, control.Error)
    assert answer.text.startswith(text)
    asked.answer = control.Done()
    assert control.Done() == await ask(connect(), control.GetStatus())


@pytest.mark.parametrize(
    "payload",
    [
        b"nonsense",
        b"{}",
        b'{"type": "Format", "disk": "all"}',
        b'{"type": "AddUser"}',
        b'{"type": "AddUser", "address": "a", "extra": 1}',
        b'{"type": "AddUser", "address": "\xff"}',
        b"[" * 50_000,
    ],
)
async def test_malformed(connect, asked, payload):
    """What is no request is told so."""
    sock = connect()
    send_now(sock, payload)
    answer = await answer_on(sock)

    assert isinstance(answer, control.Error)
    assert answer.text.startswith("vnsmail does not understand this request: ")
    assert [] == asked.requests
    assert control.Done() == await ask(connect(), control.GetStatus())


async def test_oversized(connect):
    """A packet that is too long ends that connection, and no other."""
    sock = connect()
    sock.send(b"x" * 150_000)
    await dropped(sock)

    assert control.Done() == await ask(connect(), control.GetStatus())


async def test_too_many_descriptors(connect):
    """So do more descriptors than anybody takes."""
    sock = connect()
    send_now(sock, control.encode(control.GetStatus()), [0] * 100)
    await dropped(sock)


async def test_large_request_and_answer(connect, asked):
    """A message for thousands, and the state of thousands, go through."""
    many = tuple(f"user{n}@b.example" for n in range(20_000))
    asked.answer = control.Planned(many, changed=True)
    request = control.Send("ann@a.example", many)

    assert asked.answer == await ask(connect(), request)
    assert [request] == [each for each, _, _ in asked.requests]


async def test_an_answer_that_fits_nothing(connect, asked):
    """It is said so, and what to do."""
    asked.answer = control.Planned(("x" * MAX_LARGE,), changed=True)
    answer = await ask(connect(), control.GetStatus())

    assert isinstance(answer, control.Error)
    assert answer.text.endswith("; ask for less")


async def test_one_who_says_nothing(connect, monkeypatch):
    """A connection without a request is ended after a while."""
    monkeypatch.setattr(control_server, "PATIENCE", 0.02)
    await dropped(connect())


async def test_one_who_leaves(connect, asked):
    """Who does not wait for the answer does no harm."""
    asked.held.clear()
    sock = connect()
    send_now(sock, control.encode(control.GetStatus()))
    while not asked.requests:
        await asyncio.sleep(0)
    sock.close()
    connect().close()
    asked.held.set()

    assert control.Done() == await ask(connect(), control.GetStatus())


async def test_no_descriptor_is_left(connect, asked):
    """Whatever was sent along, and however it ended, all is closed again."""
    await ask(connect(), control.GetStatus())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        sock = connect()
        await ask(sock, control.GetStatus(), [0, 1, 2])
        sock.close()
        sock = connect()
        send_now(sock, b"nonsense", [0, 1, 2])
        await answer_on(sock)
        sock.close()

    assert before == len(os.listdir("/proc/self/fd"))


async def test_another_user(connect, asked, monkeypatch):
    """Another user who got at the socket is not heard."""
    monkeypatch.setattr(control_server, "peer_uid", lambda _: os.geteuid() + 1)
    sock = connect()
    send_now(sock, control.encode(control.ShutDown()))
    await dropped(sock)

    assert [] == asked.requests


@pytest.fixture
async def open_root(asked):
    """A root whose folders and socket were opened up to everybody by mistake."""
    with tempfile.TemporaryDirectory(prefix="vnsmail-") as folder:
        os.chmod(folder, 0o755)  # noqa: S103  what is tried here
        found = layout(Path(folder))
        found.run.mkdir(mode=0o755)
        with control_server.listen(found) as sock:
            found.control_socket.chmod(0o666)
            serving = asyncio.ensure_future(control_server.serve(sock, asked))
            yield found
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_a_real_other_user(open_root, asked):
    """The kernel says who connects, though the socket and its folder are open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the child makes system calls only
        child = os.fork()
    if not child:
        try:
            os.setuid(65534)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.connect(str(open_root.control_socket))
            sock.send(control.encode(control.ShutDown()))
            os._exit(77 if sock.recv(100) == b"" else 2)
        except (ConnectionResetError, BrokenPipeError):  # hung up on, unread
            os._exit(77)
        finally:
            os._exit(1)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)

    assert 77 == os.waitstatus_to_exitcode(status)
    assert [] == asked.requests


async def test_only_for_the_owner(root):
    """The socket is there for nobody else, from the first moment."""
    assert 0o600 == stat.S_IMODE(root.control_socket.stat().st_mode)


async def test_a_stale_socket_is_replaced(tmp_path):
    """What a dead supervisor left is no obstacle."""
    found = layout(tmp_path)
    found.run.mkdir()
    control_server.listen(found).close()
    assert found.control_socket.exists()

    control_server.listen(found).close()


def test_no_place_for_the_socket(tmp_path):
    """Where it cannot be made, it is said which and why."""
    with pytest.raises(StateUnusable, match=r"control\.sock: No such file"):
        control_server.listen(layout(tmp_path))


async def test_no_descriptor_to_be_had(root, asked, connect, monkeypatch):
    """While no connection can be taken, the supervisor lives on."""
    loop = asyncio.get_running_loop()
    real, errors = loop.sock_accept, [OSError(24, "Too many open files")] * 3
    monkeypatch.setattr(control_server, "ACCEPT_PAUSE", 0.001)

    async def accept(sock):
        if errors:
            raise errors.pop()
        return await real(sock)

    monkeypatch.setattr(loop, "sock_accept", accept)
    await ask(connect(), control.GetStatus())
    while errors:
        await asyncio.sleep(0)

    assert control.Done() == await ask(connect(), control.GetStatus())


@given(st.binary(max_size=60))
def test_any_bytes_are_no_request(data):
    """Decoding random bytes gives a request, or the errors that are answered."""
    try:
        request = control.decode_request(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return
    assert isinstance(request, tuple(control.Request.__args__))
