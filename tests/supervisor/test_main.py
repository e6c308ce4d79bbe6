import asyncio
import os
import signal
import socket
import threading
from collections import deque
from typing import ClassVar

import pytest

from tests.supervisor.world import FakeServices, World
from vnsmail.channel import receive_now, send_now
from vnsmail.directory import Directory
from vnsmail.engines.protocol import OwnerReport, QueueEntry
from vnsmail.errors import (
    BadInput,
    DaemonRunning,
    NotFound,
    NotPrivileged,
    SettingsError,
    StateUnusable,
    VnsmailError,
)
from vnsmail.model import Envelope, HostName, Owner, User
from vnsmail.settings import (
    DnsSettings,
    MachineSettings,
    Settings,
    WorkerSettings,
    layout,
)
from vnsmail.supervisor import control
from vnsmail.supervisor import main as module
from vnsmail.supervisor.folders import lock, prepare
from vnsmail.supervisor.main import check, resolvers, run
from vnsmail.supervisor.notify import Manager
from vnsmail.supervisor.privileges import NET_ADMIN, SYS_ADMIN

SETTINGS = Settings(machine=MachineSettings(name="box.example"))
ALPHA = HostName("alpha.example")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "effective", lambda: -1)
    monkeypatch.setattr(module, "worker_account", lambda *_: None)
    monkeypatch.setattr("vnsmail.log.configure", lambda **_: None)
    return layout(tmp_path)


# Before it starts -----------------------------------------------------------------


@pytest.mark.parametrize("held", [0, 1 << NET_ADMIN, 1 << SYS_ADMIN])
def test_without_privilege(root, monkeypatch, held):
    """It says what would do, before it touches anything."""
    monkeypatch.setattr(module, "effective", lambda: held)
    with pytest.raises(NotPrivileged, match=r"run it as root; .* `vnsmail lab up`"):
        check(root, SETTINGS)

    assert [] == list(root.state.iterdir())


def test_checked(root):
    """All is well, and the lock is free again."""
    check(root, SETTINGS)
    check(root, SETTINGS)

    assert root.hosts.is_dir()


def test_already_running(root):
    """A second supervisor is refused."""
    prepare(root)
    with lock(root), pytest.raises(DaemonRunning):
        check(root, SETTINGS)


def test_no_account(root, monkeypatch):
    """An account that is not there is found out at once."""
    monkeypatch.undo()
    monkeypatch.setattr(module, "effective", lambda: -1)
    settings = Settings(worker=WorkerSettings(user="no-such-user"))
    monkeypatch.setattr("vnsmail.supervisor.folders.single_uid", lambda: False)
    with pytest.raises(SettingsError):
        check(root, settings)


# Name servers ---------------------------------------------------------------------


def test_resolvers_of_the_settings():
    """What the settings say goes."""
    settings = Settings(dns=DnsSettings(servers=("192.0.2.53", "fd00::53")))

    assert ("192.0.2.53", "fd00::53") == resolvers(settings)


MANY = """\
# comment
search y
nameserver\t192.0.2.1
  nameserver fd00::1
options edns0
nameserver 192.0.2.3
nameserver 192.0.2.4
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ()),
        ("nameserver 192.0.2.1\n", ("192.0.2.1",)),
        (MANY, ("192.0.2.1", "fd00::1", "192.0.2.3")),
        ("nameserver\n;nameserver 192.0.2.1\nnameserver nonsense\n", ()),
        ("nameserver fe80::1%eth0\nnameserver 192.0.2.1 # x\n", ("192.0.2.1",)),
    ],
)
def test_resolvers_of_the_system(tmp_path, monkeypatch, text, found):
    """Else those of resolv.conf(5): three at most, and nothing that is no address."""
    file = tmp_path / "resolv.conf"
    file.write_text(text)
    monkeypatch.setattr(module, "RESOLV_CONF", file)

    assert found == resolvers(SETTINGS)


def test_no_resolv_conf(tmp_path, monkeypatch):
    """Without the file there is none."""
    monkeypatch.setattr(module, "RESOLV_CONF", tmp_path / "none")

    assert () == resolvers(SETTINGS)


# Requests ---------------------------------------------------------------------------


class Asked(FakeServices):
    """Services that answer questions of the command line."""

    def __init__(self, *_):
        super().__init__()
        self.injected = []
        self.entries: dict[str, list[QueueEntry]] = {}
        self.stopping = asyncio.Event()
        self.ready_errors: deque[Exception] = deque()

    async def run(self):
        await self.stopping.wait()

    def stop(self):
        self.stopping.set()

    async def ready(self):
        if self.ready_errors:
            raise self.ready_errors.popleft()

    async def take(self, mail, fd):
        self.injected.append((mail.owner, mail.sender, mail.recipients, mail.uid, fd))
        return "the-id"

    async def list_queue(self, owner, limit):
        return tuple(self.entries.get(owner, [])[:limit])

    def owners(self):
        return list(self.served)

    async def reports(self):
        return tuple(
            OwnerReport(owner, (), 0, 0, 0, None, "")
            for owner in self.served
            if owner not in self.problems
        )

    def troubles(self, reported):
        return {o: why for o, why in self.problems.items() if o not in reported}

    def processes(self):
        return (control.ProcessStatus("broker", "running", 1, 0, "uid 0"),)


@pytest.fixture
async def supervisor(root, monkeypatch):
    monkeypatch.setattr(module, "Services", Asked)
    World().install(monkeypatch)
    prepare(root)
    directory = Directory(root.directory_db)
    yield module._Supervisor(root, SETTINGS, None, directory, Manager())
    directory.close()


async def ask(supervisor, request, fds=(), uid=1000):
    return await supervisor._handle(request, list(fds), uid)


async def with_alpha(supervisor, *domains):
    request = control.CreateHost(
        ALPHA, ("10.77.0.11/24",), "namespace", domains=domains
    )
    assert (await ask(supervisor, request)).changed


async def test_hosts_and_status(supervisor):
    """A host that was created shows in the status; so does one that is broken."""
    await with_alpha(supervisor)
    supervisor._services.problems["beta.example"] = "port 25 is in use"
    supervisor._hosts.broken[HostName("gamma.example")] = "no link"
    status = await ask(supervisor, control.GetStatus())

    assert (os.getpid(), str(supervisor._layout.state)) == (status.pid, status.root)
    assert [ALPHA] == [report.owner for report in status.owners]
    assert {
        "beta.example": "port 25 is in use",
        "gamma.example": "no link",
    } == dict(status.problems)
    assert (await ask(supervisor, control.DestroyHost(ALPHA))).changed
    assert () == (await ask(supervisor, control.GetStatus())).owners


async def test_users(supervisor):
    """A user is a user of the host whose domain it is, however it is written."""
    await with_alpha(supervisor, "mail.alpha.example")
    assert control.Done() == await ask(
        supervisor, control.AddUser("Ann@Mail.Alpha.Example")
    )
    assert ("ann",) == supervisor._services.served[ALPHA].facts.users
    with pytest.raises(BadInput, match="has this user already"):
        await ask(supervisor, control.AddUser("ann@alpha.example"))
    assert control.Done() == await ask(
        supervisor, control.RemoveUser("ANN@alpha.example")
    )
    assert () == supervisor._services.served[ALPHA].facts.users
    with pytest.raises(NotFound):
        await ask(supervisor, control.RemoveUser("ann@alpha.example"))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ann", "write it as user@alpha.example"),
        ("ann@beta.example", "no virtual host has it"),
        ("@alpha.example", "before the @"),
        ("../ann@alpha.example", "before the @"),
        ("ann@", "domain ''"),
    ],
)
async def test_no_such_user_can_be(supervisor, address, words):
    """A user needs a local part that can be a mailbox, at a domain of ours."""
    await with_alpha(supervisor)
    with pytest.raises(BadInput, match=words):
        await ask(supervisor, control.AddUser(address))


async def test_send(supervisor):
    """A user of a virtual host sends by that host."""
    await with_alpha(supervisor)
    supervisor._directory.add_user(User(ALPHA, "ann"))
    answer = await ask(
        supervisor, control.Send("Ann@alpha.example", ("bob@b.example",)), [7]
    )

    assert control.Queued(ALPHA, "the-id") == answer
    assert [
        (ALPHA, "Ann@alpha.example", ("bob@b.example",), 1000, 7)
    ] == supervisor._services.injected


@pytest.mark.parametrize(
    ("sender", "expected"), [("", "root@box.example"), ("me@x.example", "me@x.example")]
)
async def test_send_as_the_machine(supervisor, sender, expected):
    """The machine's own mail has the machine's own sender, if none is given."""
    request = control.Send(sender, ("bob@b.example",), machine=True)
    answer = await ask(supervisor, request, [7])

    assert "machine" == answer.owner
    assert ("machine", expected) == supervisor._services.injected[0][:2]


@pytest.mark.parametrize(
    ("request_", "fds", "error"),
    [
        (control.Send("eve@alpha.example", ("bob@b.example",)), [7], NotFound),
        (control.Send("ann@beta.example", ("bob@b.example",)), [7], NotFound),
        (control.Send("", ("bob@b.example",)), [7], NotFound),
        (control.Send("ann@alpha.example", ()), [7], BadInput),
        (control.Send("ann@alpha.example", ("bob@b.example",)), [], BadInput),
        (control.Send("ann@alpha.example", ("bob@b.example",)), [7, 8], BadInput),
    ],
)
async def test_not_sent(supervisor, request_, fds, error):
    """Who is no user of a virtual host sends nothing."""
    await with_alpha(supervisor)
    supervisor._directory.add_user(User(ALPHA, "ann"))
    with pytest.raises(error):
        await ask(supervisor, request_, fds)

    assert [] == supervisor._services.injected


def entry(owner, number):
    sent = Envelope(f"id{number}", Owner(owner), "", ("bob@b.example",), float(number))
    return QueueEntry(sent, 1, ())


async def test_queues(supervisor):
    """Of all owners, the oldest come first; of one, only its own."""
    await with_alpha(supervisor)
    supervisor._services.served["machine"] = object()
    supervisor._services.entries = {
        ALPHA: [entry(ALPHA, 1), entry(ALPHA, 3)],
        "machine": [entry("machine", 2), entry("machine", 4)],
    }
    every = await ask(supervisor, control.ListQueue(None, 3))
    one = await ask(supervisor, control.ListQueue("machine", 100))

    assert ["id1", "id2", "id3"] == [each.envelope.id for each in every.entries]
    assert ["id2", "id4"] == [each.envelope.id for each in one.entries]


@pytest.mark.parametrize("owner", ["beta.example", "nonsense"])
async def test_the_queue_of_nobody(supervisor, owner):
    """A name that is none, and one that nobody has, are told apart from empty."""
    with pytest.raises(BadInput):
        await ask(supervisor, control.ListQueue(owner, 1))


async def test_workers_see_what_is_theirs(supervisor):
    """The machine's worker sees the machine's folder, the others those of hosts."""
    layout_ = supervisor._layout
    machine = supervisor._worker_options("worker-machine")
    other = supervisor._worker_options("worker-0")

    assert ["--empty-network", "--reveal", f"{layout_.state}/machine:rw"] == machine
    assert ["--empty-network", "--reveal", f"{layout_.hosts}:rw"] == other


# The whole ---------------------------------------------------------------------------


class Told(Asked):
    """Services whose next instance fails as told."""

    errors_when_ready: ClassVar[deque[Exception]] = deque()

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.ready_errors = self.errors_when_ready


@pytest.fixture
def whole(root, monkeypatch):
    monkeypatch.setattr(module, "Services", Told)
    Told.errors_when_ready.clear()
    World().install(monkeypatch)
    return root


def command(root, request):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(root.control_socket))
        send_now(sock, control.encode(request))
        return control.decode_answer(receive_now(sock)[0])


def test_a_life(whole):
    """It says that it is ready, answers, ends when told to, and leaves no socket."""
    answers = []

    def talk():
        answers.append(command(whole, control.GetStatus()))
        answers.append(command(whole, control.ShutDown()))

    threads = []

    def ready():
        threads.append(threading.Thread(target=talk))
        threads[0].start()

    run(whole, SETTINGS, ready)
    threads[0].join()

    assert ["machine"] == [report.owner for report in answers[0].owners]
    assert control.Done() == answers[1]
    assert not whole.control_socket.exists()
    assert (whole.state / "machine").is_dir()
    check(whole, SETTINGS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ended_by_a_signal(whole, number):
    """A signal ends it in order."""
    run(whole, SETTINGS, lambda: os.kill(os.getpid(), number))

    assert not whole.control_socket.exists()


def test_it_cannot_start(whole):
    """What keeps it from starting is one error, with its words."""
    Told.errors_when_ready.append(StateUnusable("broker", "it ends", "see the log"))
    with pytest.raises(StateUnusable, match="broker: it ends"):
        run(whole, SETTINGS, pytest.fail)

    assert not whole.control_socket.exists()


def test_a_fault(whole):
    """A fault of ours comes out as it is, for whoever mends it."""
    Told.errors_when_ready.append(ZeroDivisionError("a fault"))
    with pytest.raises(ExceptionGroup) as caught:
        run(whole, SETTINGS, pytest.fail)

    assert caught.group_contains(ZeroDivisionError)


def test_nothing_is_begun_while_another_runs(whole):
    """The root's files are not touched."""
    prepare(whole)
    with lock(whole), pytest.raises(DaemonRunning):
        run(whole, SETTINGS, pytest.fail)

    assert not whole.directory_db.exists()


def test_a_damaged_directory(whole):
    """It is told, and left as it is."""
    prepare(whole)
    whole.directory_db.write_bytes(b"nonsense" * 1000)
    with pytest.raises(VnsmailError, match=r"directory\.db"):
        run(whole, SETTINGS, pytest.fail)

    assert b"nonsense" * 1000 == whole.directory_db.read_bytes()
    check(whole, SETTINGS)
