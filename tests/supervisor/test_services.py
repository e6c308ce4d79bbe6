import asyncio
import contextlib
import socket
from collections import deque
from typing import Any

import pytest

from vnsmail.broker import protocol as broker
from vnsmail.channel import ChannelClosed
from vnsmail.engines import protocol as engine
from vnsmail.errors import BrokerGone, BrokerRefused, NotFound, StateUnusable
from vnsmail.model import MACHINE
from vnsmail.settings import Settings, SmtpSettings, WorkerSettings, from_json
from vnsmail.supervisor import services as module
from vnsmail.supervisor.peer import NoAnswer
from vnsmail.supervisor.process import State
from vnsmail.supervisor.services import (
    MACHINE_WORKER,
    Service,
    Services,
    WorkerRefused,
)

REPORT = engine.OwnerReport("a.example", ("10.0.0.1:25",), 1, 2, 3, None, "")


class FakePeer:
    """The asking end of a channel to a process that answers by the table."""

    def __init__(self, log, name, answers):
        self.log, self.name, self.answers = log, name, answers
        self.last = 0

    async def ask(self, question, fds=(), *, seconds=60.0):
        self.last += 1
        asked = question(self.last)
        kind = type(asked).__name__
        self.log.append((self.name, asked))
        if fds:
            assert 1 == len(fds)
            with socket.socket(fileno=socket.dup(fds[0])) as sock:
                assert socket.SOCK_SEQPACKET == sock.type
        await asyncio.sleep(0)
        answer = self.answers.get(kind)
        if isinstance(answer, deque):
            answer = answer.popleft() if answer else None
        if isinstance(answer, BaseException):
            raise answer
        if answer is not None:
            return answer
        done = broker.Done if isinstance(asked, _BROKER) else engine.Done
        return done(asked.id)

    def close(self):
        pass


_BROKER = (
    *(broker.Configure, broker.Attach, broker.Grant, broker.Revoke),
    broker.ListAttached,
)


class FakeChild:
    """A process that starts and ends when the test says so."""

    log: list[tuple[str, object]]

    def __class_getitem__(cls, _):
        return cls

    def __init__(
        self, name, module_, options, *, peer, on_start, on_exit, on_stop=None
    ):
        self.name, self.module, self.options = name, module_, options
        self.on_start, self.on_stop, self.on_exit = on_start, on_stop, on_exit
        self.state, self.pid, self.restarts = State.STOPPED, None, 0
        self.answers: dict[str, object] = {}
        self.kills = 0
        self.stopping = asyncio.Event()

    async def start(self):
        """Be started, and made ready."""
        self.state, self.pid = State.STARTING, 4711
        self.peer = FakePeer(self.log, self.name, self.answers)
        try:
            await self.on_start(self.peer)
        except Exception:
            self.end()
            raise
        if self.pid:
            self.state = State.RUNNING

    def end(self):
        self.pid, self.state = None, State.BACKOFF
        self.restarts += 1
        self.on_exit()

    async def kill(self):
        self.kills += 1
        self.end()

    def stop(self):
        self.log.append((self.name, "stop"))
        self.stopping.set()

    async def run(self):
        await self.stopping.wait()
        self.state = State.STOPPED


class Below:
    """Services whose processes are fakes."""

    def __init__(self, workers=2):
        self.log: list[tuple[str, object]] = []
        settings = Settings(
            worker=WorkerSettings(count=workers), smtp=SmtpSettings(port=2525)
        )
        FakeChild.log = self.log
        self.services = Services(settings, ["192.0.2.53"], lambda name: ("--for", name))

    def child(self, name: str) -> Any:
        if name == "broker":
            return self.services._broker
        return self.services._workers[name].child

    async def start(self, *names):
        for name in names or ("broker", MACHINE_WORKER, "worker-0", "worker-1"):
            await self.child(name).start()
        self.log.clear()

    @property
    def said(self):
        """Who was told what, without ids."""
        return [
            (name, what if isinstance(what, str) else type(what).__name__)
            for name, what in self.log
        ]

    def grants(self):
        """Return what the broker knows after all that it was told: worker → owners."""
        known: dict[str, set[str]] = {}
        for name, what in self.log:
            if name != "broker":
                continue
            if isinstance(what, broker.Attach):
                known[what.worker] = set()
            elif isinstance(what, broker.Grant):
                owners = {host.name for host in what.hosts}
                for other in known.values():
                    other.difference_update(owners)
                known.setdefault(what.worker, set()).update(owners)
            elif isinstance(what, broker.Revoke):
                known.setdefault(what.worker, set()).discard(what.host)
        return known


@pytest.fixture
async def below(monkeypatch):
    monkeypatch.setattr(module, "Child", FakeChild)
    return Below()


def service(owner="a.example", *, users=()):
    facts = engine.OwnerFacts(
        owner, owner, f"/hosts/{owner}", ("10.0.0.1",), (owner,), tuple(users)
    )
    return Service(facts, f"vns-{owner}")


def machine():
    return Service(
        engine.OwnerFacts(MACHINE, "box", "/m", (), ("box",), (), listen=False), ""
    )


async def turn():
    for _ in range(20):
        await asyncio.sleep(0)


# Starting -------------------------------------------------------------------------


async def test_processes(below):
    """A broker with its capabilities, a worker for the machine, and the others."""
    found = below.services.processes()

    assert ["broker", "worker-machine", "worker-0", "worker-1"] == [
        p.name for p in found
    ]
    assert {"stopped"} == {p.state for p in found}
    assert {""} == {p.privileges for p in found}
    keep = ("--keep-capabilities", "net_admin,sys_admin,net_bind_service,net_raw")
    assert ("vnsmail.broker.server", keep) == (
        below.child("broker").module,
        below.child("broker").options,
    )
    assert ("vnsmail.engines.native", ("--for", "worker-0")) == (
        below.child("worker-0").module,
        below.child("worker-0").options,
    )


@pytest.mark.parametrize(
    "order", [("broker", "worker-0"), ("worker-0", "broker")], ids=" ".join
)
async def test_they_are_introduced(below, order):
    """In whichever order they start, broker and worker get a channel to each other."""
    for name in order:
        await below.child(name).start()
    configure = next(what for name, what in below.log if name == "broker")

    assert (2525, 587, 465) == configure.ports
    assert ("192.0.2.53",) == configure.resolvers
    assert ("broker", "Attach") in below.said
    assert below.said.index(("broker", "Attach")) < below.said.index(
        ("worker-0", "UseBroker")
    )
    assert ("worker-0", "Configure") in below.said


async def test_a_worker_gets_the_settings(below):
    """As they were given, whole."""
    await below.child("worker-0").start()
    (_, configure) = below.log[0]

    assert ("worker-0", ("192.0.2.53",)) == (configure.worker, configure.resolvers)
    assert 2525 == from_json(configure.settings).smtp.port


async def test_ready(below):
    """Ready is when all run."""
    waiting = asyncio.ensure_future(below.services.ready())
    await turn()
    assert not waiting.done()
    await below.start()
    await waiting


async def test_never_ready(below):
    """One that ends as soon as it starts is told by name."""
    below.child("worker-1").restarts = 3
    with pytest.raises(StateUnusable, match="worker-1: it ends as soon as it starts"):
        await below.services.ready()


# Serving ----------------------------------------------------------------------------


async def test_serve(below):
    """The broker knows of an owner before the worker does."""
    await below.start()
    await below.services.serve(service())

    assert [("broker", "Grant"), ("worker-0", "Assign")] == below.said
    (_, grant), (_, assign) = below.log
    assert ("worker-0", "a.example", "vns-a.example", ("10.0.0.1",)) == (
        grant.worker,
        grant.hosts[0].name,
        grant.hosts[0].namespace,
        grant.hosts[0].addresses,
    )
    assert service().facts == assign.facts
    assert service() == below.services.service("a.example")


async def test_hosts_are_spread(below):
    """Each goes to the worker with the fewest; the machine has one to itself."""
    await below.start()
    for number in range(4):
        await below.services.serve(service(f"h{number}.example"))
    await below.services.serve(machine())

    assert {
        "broker": 0,
        "worker-machine": 1,
        "worker-0": 2,
        "worker-1": 2,
    } == {p.name: len(p.owners) for p in below.services.processes()}
    assert MACHINE == below.services.owners()[0]


async def test_changed_facts(below):
    """Whoever serves a host is told of its changed facts."""
    await below.start()
    await below.services.serve(service())
    await below.services.serve(service("b.example"))
    await below.services.serve(service(users=["ann"]))

    name, assign = below.log[-1]
    assert ("worker-0", ("ann",)) == (name, assign.facts.users)
    assert 2 == len(below.services.owners())


async def test_one_that_cannot_be_served(below):
    """It is nobody's, the broker forgets it, and the worker's sentence is told."""
    await below.start()
    failed = engine.Failed(1, "port 25 of 10.0.0.1 is in use", exit_code=2)
    below.child("worker-0").answers["Assign"] = failed
    with pytest.raises(WorkerRefused, match="port 25") as caught:
        await below.services.serve(service())

    assert 2 == caught.value.exit_code
    assert [] == below.services.owners()
    assert set() == below.grants()["worker-0"]
    with pytest.raises(NotFound):
        below.services.service("a.example")


@pytest.mark.parametrize("error", [ChannelClosed(), NoAnswer(60)])
async def test_the_first_failure_is_told(below, error):
    """Even if taking it back fails as well."""
    await below.start()
    worker = below.child("worker-0")
    worker.answers |= {"Assign": error, "Release": engine.Failed(1, "not now")}
    with pytest.raises(type(error)):
        await below.services.serve(service())

    assert [] == below.services.owners()
    assert set() == below.grants()["worker-0"]


async def test_changed_facts_that_do_not_do(below):
    """A host goes on as it was."""
    await below.start()
    await below.services.serve(service())
    below.child("worker-0").answers["Assign"] = engine.Failed(1, "no")
    with pytest.raises(WorkerRefused):
        await below.services.serve(service(users=["ann"]))

    assert service() == below.services.service("a.example")


async def test_noted(below):
    """One that cannot be served now is kept, told, and tried again."""
    await below.start()
    answers = below.child("worker-0").answers
    answers["Assign"] = engine.Failed(1, "port 25 is in use")
    await below.services.serve_or_note(service())

    assert {"a.example": "port 25 is in use"} == below.services.problems
    assert ["a.example"] == below.services.owners()
    del answers["Assign"]
    await mended(below)
    assert {"a.example"} == below.grants()["worker-0"]


async def mended(below):
    """Wait until nothing is a problem any more."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, "RETRY_AFTER", 0.001)
        mending = asyncio.ensure_future(below.services._mend())
        while below.services.problems:
            await asyncio.sleep(0.001)
        mending.cancel()


async def test_a_worker_that_the_broker_dropped(below, monkeypatch):
    """It is ended and comes back with a channel; the others go on."""
    await below.start()
    attached = broker.Attached(1, (MACHINE_WORKER, "worker-1"))
    below.child("broker").answers["ListAttached"] = attached
    monkeypatch.setattr(module, "RETRY_AFTER", 0.001)
    mending = asyncio.ensure_future(below.services._mend())
    while not below.child("worker-0").kills:
        await asyncio.sleep(0.001)
    mending.cancel()
    names = ("broker", MACHINE_WORKER, "worker-0", "worker-1")

    assert [0, 0, 1, 0] == [below.child(name).kills for name in names]


async def test_noted_without_a_broker(below):
    """The worker does not get the duty without the grant, then or later."""
    await below.start(MACHINE_WORKER, "worker-0", "worker-1")
    await below.services.serve_or_note(service())
    assert {"a.example": str(BrokerGone())} == below.services.problems
    assert ("worker-0", "Assign") not in below.said

    await below.child("broker").start()
    await mended(below)
    assert {"a.example"} == below.grants()["worker-0"]
    assert ("worker-0", "Assign") == below.said[-1]


@pytest.mark.parametrize("error", [ChannelClosed(), NoAnswer(60)])
async def test_a_problem_always_has_words(below, error):
    """Silence is told as such."""
    await below.start()
    below.child("worker-0").answers["Assign"] = error
    await below.services.serve_or_note(service())

    assert str(error) == below.services.problems["a.example"]
    assert str(error)


# Letting go ------------------------------------------------------------------------


async def test_release(below):
    """The broker forgets an owner after the worker has let go."""
    await below.start()
    await below.services.serve(service())
    below.log.clear()
    await below.services.release("a.example")

    assert [("worker-0", "Release"), ("broker", "Revoke")] == below.said
    assert [] == below.services.owners()
    await below.services.release("a.example")
    assert 2 == len(below.log)


async def test_release_by_a_worker_that_has_ended(below):
    """It holds nothing any more; the broker forgets all the same."""
    await below.start()
    await below.services.serve(service())
    below.child("worker-0").answers["Release"] = ChannelClosed()
    await below.services.release("a.example")

    assert set() == below.grants()["worker-0"]


async def test_release_by_one_that_does_not_answer(below):
    """It is ended, so that it holds nothing."""
    await below.start()
    await below.services.serve(service())
    below.child("worker-0").answers["Release"] = NoAnswer(30)
    await below.services.release("a.example")

    assert 1 == below.child("worker-0").kills
    assert set() == below.grants()["worker-0"]


async def test_release_with_trouble(below):
    """Trouble in closing is told, after the broker was."""
    await below.start()
    await below.services.serve(service())
    below.child("worker-0").answers["Release"] = engine.Failed(1, "disk full")
    with pytest.raises(WorkerRefused, match="disk full"):
        await below.services.release("a.example")

    assert set() == below.grants()["worker-0"]
    assert [] == below.services.owners()


async def test_release_without_a_broker(below):
    """A broker that is not there has nothing to forget."""
    await below.start()
    await below.services.serve(service())
    below.child("broker").end()
    await below.services.release("a.example")

    assert ("worker-0", "Release") == below.said[-1]


# Crashes ----------------------------------------------------------------------------


async def test_a_worker_that_starts_again(below):
    """It gets its owners back; no other worker notices."""
    await below.start()
    for name in "abc":
        await below.services.serve(service(f"{name}.example"))
    below.child("worker-0").end()
    below.log.clear()
    await below.child("worker-0").start()

    assert {"a.example", "c.example"} == below.grants()["worker-0"]
    assigned = [w.facts.owner for n, w in below.log if isinstance(w, engine.Assign)]
    assert ["a.example", "c.example"] == assigned
    assert {"broker", "worker-0"} == {name for name, _ in below.log}


async def test_a_broker_that_starts_again(below):
    """It is told everything anew."""
    await below.start()
    for name in "abc":
        await below.services.serve(service(f"{name}.example"))
    await below.services.serve(machine())
    below.child("broker").end()
    below.log.clear()
    await below.child("broker").start()

    assert {
        "worker-machine": {MACHINE},
        "worker-0": {"a.example", "c.example"},
        "worker-1": {"b.example"},
    } == below.grants()
    assert 3 == below.said.count(("broker", "Attach"))
    assert ("worker-0", "Assign") not in below.said


async def test_a_thousand_hosts(below):
    """A broker that starts again is told of many at a time."""
    await below.start()
    for number in range(500):
        await below.services.serve(service(f"h{number}.example"))
    below.child("broker").end()
    below.log.clear()
    await below.child("broker").start()

    assert 500 == sum(map(len, below.grants().values()))
    assert below.said.count(("broker", "Grant")) <= 500 / broker.MAX_HOSTS + 2
    for _, what in below.log:
        if isinstance(what, broker.Grant):
            assert what == broker.decode_supervisor_request(broker.encode(what))


@pytest.mark.parametrize("error", [ChannelClosed(), NoAnswer(10), "refused"])
async def test_a_worker_that_does_not_take_its_channel(below, error):
    """It is ended; the broker and the other workers go on."""
    await below.start()
    for name in "ab":
        await below.services.serve(service(f"{name}.example"))
    below.child("broker").end()
    answer = engine.Failed(1, "no") if error == "refused" else error
    below.child("worker-0").answers["UseBroker"] = answer
    below.log.clear()
    await below.child("broker").start()

    assert State.RUNNING is below.child("broker").state
    assert 1 == below.child("worker-0").kills
    assert ("worker-1", "UseBroker") in below.said
    assert {"b.example"} == below.grants()["worker-1"]


async def test_a_broker_that_does_not_do_its_part(below):
    """One that refuses its workers is no broker; the workers go on."""
    await below.start(MACHINE_WORKER, "worker-0")
    below.child("broker").answers["Attach"] = broker.Refused(1, "malformed", "no")
    with pytest.raises(BrokerRefused):
        await below.child("broker").start()

    assert State.RUNNING is below.child("worker-0").state


async def test_a_worker_that_starts_while_the_broker_is_in_trouble(below):
    """It is no worse off than without a broker."""
    await below.start("broker")
    below.child("broker").answers["Attach"] = ChannelClosed()
    await below.child("worker-0").start()

    assert State.RUNNING is below.child("worker-0").state


async def test_a_broker_that_does_not_answer(below):
    """It waits for nothing, so silence means that it hangs: it is ended."""
    await below.start()
    below.child("broker").answers["Grant"] = NoAnswer(10)
    with pytest.raises(BrokerGone):
        await below.services.serve(service())

    assert 1 <= below.child("broker").kills


async def test_served_while_introduced(below):
    """An owner that comes while a broker is told of the others is not forgotten."""
    await below.start("worker-0")
    for name in "abc":
        await below.services.serve_or_note(service(f"{name}.example"))
    starting = asyncio.ensure_future(below.child("broker").start())
    for step in range(30):
        await asyncio.sleep(0)
        with contextlib.suppress(BrokerGone, WorkerRefused):
            await below.services.serve_or_note(service(f"new{step}.example"))
    await starting
    await below.child("worker-1").start()
    await mended(below)
    granted = set().union(*below.grants().values())

    assert set(below.services.owners()) == granted


# Questions ---------------------------------------------------------------------------


MAIL = engine.LocalMail("a.example", "ann@a.example", ("bob@b.example",), 1000)


async def inject(below):
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        return await below.services.take(MAIL, one.fileno())


async def test_inject(below):
    """A message goes to the owner's worker, with its descriptor."""
    await below.start()
    await below.services.serve(service())
    below.child("worker-0").answers["Inject"] = engine.Injected(1, "the-id")

    assert "the-id" == await inject(below)
    _, asked = below.log[-1]
    assert MAIL == asked.mail


async def test_list_queue(below):
    """A listing comes from the owner's worker."""
    await below.start()
    await below.services.serve(service())
    below.child("worker-0").answers["ListQueue"] = engine.QueueListed(1, ())

    assert () == await below.services.list_queue("a.example", 5)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (engine.Failed(1, "the message has no recipients", 2), "no recipients"),
        (engine.Done(1), "unexpected answer Done"),
    ],
)
async def test_questions_that_fail(below, answer, words):
    """The worker's sentence is told; an answer that fits nothing is one too."""
    await below.start()
    await below.services.serve(service())
    below.child("worker-0").answers |= {"Inject": answer, "ListQueue": answer}
    with pytest.raises(WorkerRefused, match=words):
        await below.services.list_queue("a.example", 5)
    with pytest.raises(WorkerRefused, match=words):
        await inject(below)


async def test_questions_for_nobody(below):
    """An owner that nobody serves is not found; one whose worker starts has to wait."""
    with pytest.raises(NotFound):
        await below.services.list_queue("a.example", 5)
    await below.start()
    await below.services.serve(service())
    below.child("worker-0").end()
    with pytest.raises(WorkerRefused, match="worker-0 is being started; try again"):
        await below.services.list_queue("a.example", 5)


# Status ----------------------------------------------------------------------------------


async def test_reports(below):
    """Reports of all workers come together; a silent one keeps no other's."""
    await below.start()
    await below.services.serve(service())
    await below.services.serve(service("b.example"))
    below.child("worker-0").answers["Report"] = engine.Reported(1, (REPORT,))
    below.child("worker-1").answers["Report"] = NoAnswer(10)
    below.child("worker-machine").end()

    assert (REPORT,) == await below.services.reports()
    words = "worker-1 is running, and silent"
    assert {"b.example": words} == below.services.troubles({"a.example"})


async def test_troubles(below):
    """Who is not served is told with the reason, or the state of the worker."""
    await below.start()
    await below.services.serve(service())
    await below.services.serve(service("b.example"))
    below.child("worker-0").end()
    below.services.problems["b.example"] = "port 25 is in use"

    assert {
        "a.example": "worker-0 is backoff, and silent",
        "b.example": "port 25 is in use",
    } == below.services.troubles(())


# The end ---------------------------------------------------------------------------------


async def test_stop(below):
    """Workers end first, the broker when nobody needs it any more."""
    running = asyncio.ensure_future(below.services.run())
    await turn()
    await below.start()
    below.services.stop()
    await running

    assert "broker" == below.said[-1][0]
    assert {"worker-machine", "worker-0", "worker-1"} == {n for n, _ in below.said[:-1]}


async def test_workers_are_asked_to_stop(below):
    """In their own words."""
    await below.start()
    child = below.child("worker-0")
    await child.on_stop(child.peer)

    assert [("worker-0", "Stop")] == below.said
