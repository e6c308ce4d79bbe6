import asyncio
import contextlib
import errno
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail import channel as channels
from vnsmail.broker import protocol
from vnsmail.broker.policy import Connectable, Listener
from vnsmail.broker.protocol import (
    Attach,
    Configure,
    Done,
    Grant,
    HostGrant,
    ListAttached,
    OpenConnectable,
    Opened,
    OpenListener,
    OpenResolver,
    Refused,
    Revoke,
    Unavailable,
)
from vnsmail.broker.server import Broker
from vnsmail.broker.sockets import Failed
from vnsmail.channel import MAX_MESSAGE, Channel, ChannelClosed
from vnsmail.model import Family

ALPHA = HostGrant("alpha.example", "vns-alpha", ("10.0.0.1",))
BETA = HostGrant("beta.example", "", ("10.0.0.2",))


class FakeOpener:
    """Opens pipes in place of sockets; fails for the addresses it is told to."""

    def __init__(self):
        self.opened = []
        self.failing = {}

    def open(self, openings):
        return [self._open(opening) for opening in openings]

    def _open(self, opening):
        self.opened.append(opening)
        source = getattr(opening, "source", None)
        if isinstance(self.failing.get(source), Exception):
            raise self.failing[source]
        if source in self.failing:
            return self.failing[source]
        reader, writer = os.pipe()
        os.write(writer, str(source).encode())
        os.close(writer)
        return reader


class Situation:
    """A broker in this process, its supervisor, and its workers."""

    def __init__(self):
        ours, theirs = channels.pair()
        self.supervisor = Channel(ours)
        self.opener = FakeOpener()
        self._theirs = Channel(theirs)
        self._last_id = 0
        self._channels = [self.supervisor, self._theirs]
        self.running = asyncio.ensure_future(
            Broker(self._theirs, self.opener).run()  # type: ignore[arg-type]
        )

    async def ask(self, kind, *arguments, fds=()):
        self._last_id += 1
        request = kind(self._last_id, *arguments)
        await self.supervisor.send(protocol.encode(request), fds)
        answer, got = await self.supervisor.receive()
        assert [] == got
        return protocol.decode_supervisor_answer(answer)

    async def attach(self, name, *hosts):
        """Attach a worker with these hosts; returns its channel."""
        ours, theirs = channels.pair()
        with theirs:
            answer = await self.ask(Attach, name, fds=[theirs.fileno()])
        assert isinstance(answer, Done)
        assert isinstance(await self.ask(Grant, name, hosts), Done)
        worker = Channel(ours)
        self._channels.append(worker)
        return worker

    async def end(self):
        self.supervisor.close()
        await self.running
        for channel in self._channels:
            channel.close()


@pytest.fixture
async def situation():
    situation = Situation()
    yield situation
    await situation.end()


async def asked(worker, *requests):
    """Return the answers to a batch, with what each pipe says."""
    await worker.send(protocol.encode_batch(requests))
    payload, fds = await worker.receive()
    said = []
    for fd in fds:
        said.append(os.read(fd, 99).decode())
        os.close(fd)
    return list(protocol.decode_answers(payload)), said


async def is_dropped(worker):
    try:
        await worker.receive()
    except ChannelClosed:
        return True
    return False


# What is asked is answered ----------------------------------------------------


async def test_a_batch_is_answered_in_order_with_the_descriptors_in_order(situation):
    await situation.ask(Configure, (25,), ("10.0.0.53",))
    worker = await situation.attach("w0", ALPHA, BETA)
    gone = Failed(errno.EADDRNOTAVAIL, "not here")
    situation.opener.failing["10.0.0.2"] = gone

    answers, said = await asked(
        worker,
        OpenListener(1, "alpha.example", "10.0.0.1", 25),
        OpenConnectable(2, "beta.example", 4),
        OpenConnectable(3, "gamma.example", 4),
        OpenConnectable(4, "beta.example", 6),
        OpenResolver(5, "udp", "10.0.0.53"),
        OpenConnectable(6, "alpha.example", 4),
    )

    assert [
        Opened(1, "10.0.0.1"),
        Unavailable(2, errno.EADDRNOTAVAIL, "not here", "10.0.0.2"),
        Refused(3, "not_owned", "w0 does not own gamma.example"),
        Unavailable(4, errno.EAFNOSUPPORT, "it has no IPv6 address", None),
        Opened(5, None),
        Opened(6, "10.0.0.1"),
    ] == answers
    assert ["10.0.0.1", "None", "10.0.0.1"] == said


async def test_only_what_was_granted_reaches_the_kernel(situation):
    await situation.ask(Configure, (25,), ())
    worker = await situation.attach("w0", ALPHA)

    await asked(
        worker,
        OpenConnectable(1, "alpha.example", 4),
        OpenConnectable(2, "beta.example", 4),
        OpenConnectable(3, "machine", 4),
        OpenListener(4, "alpha.example", "10.0.0.1", 25),
        OpenListener(5, "alpha.example", "10.0.0.2", 25),
        OpenResolver(6, "tcp", "10.0.0.53"),
    )

    assert [
        Connectable("vns-alpha", Family.IPV4, "10.0.0.1"),
        Listener("vns-alpha", Family.IPV4, "10.0.0.1", 25),
    ] == situation.opener.opened


async def test_a_revoked_host_is_refused_from_then_on(situation):
    worker = await situation.attach("w0", ALPHA)
    assert Done(3) == await situation.ask(Revoke, "w0", "alpha.example")

    [answer], _ = await asked(worker, OpenConnectable(1, "alpha.example", 4))

    assert isinstance(answer, Refused)


async def test_a_grant_that_cannot_be_is_refused(situation):
    unbound = HostGrant("alpha.example", "", ())
    answer = await situation.ask(Grant, "w0", (unbound,))

    assert Refused(1, "malformed", "alpha.example has no address") == answer


@pytest.mark.parametrize(
    "make", [list, lambda: [os.dup(0)], lambda: [socket.socket()], channels.pair]
)
async def test_a_worker_is_attached_by_one_channel_only(situation, make):
    """Not by nothing, another kind of file, or a pair of them."""
    files = make()
    fds = [f if isinstance(f, int) else f.fileno() for f in files]
    answer = await situation.ask(Attach, "w0", fds=fds)
    for file in files:
        os.close(file) if isinstance(file, int) else file.close()

    assert isinstance(answer, Refused)
    assert "malformed" == answer.kind


# Peers that misbehave ---------------------------------------------------------


async def test_a_worker_that_goes_leaves_the_others_alone(situation):
    one = await situation.attach("w0", ALPHA)
    other = await situation.attach("w1", BETA)
    await one.send(protocol.encode_batch([OpenConnectable(1, "alpha.example", 4)]))
    one.close()

    [answer], _ = await asked(other, OpenConnectable(1, "beta.example", 4))

    assert Opened(1, "10.0.0.2") == answer


def batch(*ids):
    return protocol.encode_batch([OpenConnectable(i, "alpha.example", 4) for i in ids])


@pytest.mark.parametrize(
    "messages",
    [
        [b"\x00"],
        [b"\x91" * 1000],
        [b"x" * (MAX_MESSAGE + 1)],
        [protocol.encode(Grant(1, "w0", (BETA,)))],
        [batch(5), batch(5)],
        [batch(5), batch(4)],
        [batch(1, 1)],
        [protocol.encode_batch([])],
    ],
    ids=lambda messages: repr(messages)[:40],
)
async def test_nonsense_drops_the_worker_and_nobody_else(situation, messages):
    """Malformed, too long, meant for another, or said before."""
    bad = await situation.attach("w0", ALPHA)
    good = await situation.attach("w1", BETA)
    for message in messages[:-1]:
        await bad.send(message)
        channels.close_all((await bad.receive())[1])
    # Not by the channel, which would find a way for one that is too long.
    bad._socket.send(messages[-1])

    assert await is_dropped(bad)
    [answer], _ = await asked(good, OpenConnectable(1, "beta.example", 4))
    assert isinstance(answer, Opened)
    again = await situation.attach("w0", ALPHA)
    [answer], _ = await asked(again, OpenConnectable(1, "alpha.example", 4))
    assert isinstance(answer, Opened)


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=5))
def test_whatever_a_worker_says_the_broker_goes_on(messages):
    async def talk():
        situation = Situation()
        bad = await situation.attach("w0", ALPHA)
        good = await situation.attach("w1", BETA)
        with contextlib.suppress(ChannelClosed):
            for message in messages:
                await bad.send(message)
        [answer], _ = await asked(good, OpenConnectable(1, "beta.example", 4))
        assert isinstance(answer, Opened)
        await situation.end()

    asyncio.run(talk())


async def test_who_is_attached(situation):
    """One that was dropped is not, until it is attached again."""
    bad = await situation.attach("w0", ALPHA)
    await situation.attach("w1", BETA)
    assert ("w0", "w1") == (await situation.ask(ListAttached)).workers
    await bad.send(b"nonsense")
    assert await is_dropped(bad)
    assert ("w1",) == (await situation.ask(ListAttached)).workers
    await situation.attach("w0", ALPHA)

    assert {"w0", "w1"} == set((await situation.ask(ListAttached)).workers)


async def test_descriptors_that_a_worker_sends_are_closed(situation):
    worker = await situation.attach("w0", ALPHA)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            await worker.send(batch(1), [theirs.fileno()])
        channels.close_all((await worker.receive())[1])

        assert b"" == ours.recv(1)


async def test_a_fault_of_ours_costs_the_worker_that_met_it(situation):
    bad = await situation.attach("w0", ALPHA)
    good = await situation.attach("w1", BETA)
    situation.opener.failing["10.0.0.1"] = RuntimeError("a fault")
    await bad.send(batch(1))

    assert await is_dropped(bad)
    [answer], _ = await asked(good, OpenConnectable(1, "beta.example", 4))
    assert isinstance(answer, Opened)


async def test_a_worker_that_reads_no_answers_is_not_read_from(situation):
    """What is on its way to it stays bounded, and others are served meanwhile."""
    ours, theirs = channels.pair()
    with theirs:
        await situation.ask(Attach, "w0", fds=[theirs.fileno()])
    await situation.ask(Grant, "w0", (ALPHA,))
    good = await situation.attach("w1", BETA)
    number = 0
    ours.setblocking(False)
    with ours:
        with contextlib.suppress(BlockingIOError):
            while True:
                numbers = range(number + 1, number + protocol.MAX_BATCH + 1)
                channels.send_now(ours, batch(*numbers))
                number = numbers[-1]
        for turn in range(100):
            request = OpenConnectable(turn, "beta.example", 4)
            [answer], _ = await asked(good, request)
            assert isinstance(answer, Opened)
        for_it = [o for o in situation.opener.opened if o.source == "10.0.0.1"]

    assert protocol.MAX_BATCH <= len(for_it) <= 1024
    assert len(for_it) < number


# Channels come and go ---------------------------------------------------------


async def test_a_worker_attached_again_has_only_the_new_channel(situation):
    old = await situation.attach("w0", ALPHA)
    new = await situation.attach("w0")

    assert await is_dropped(old)
    [answer], _ = await asked(new, OpenConnectable(1, "alpha.example", 4))
    assert isinstance(answer, Refused)


async def test_attached_twice_before_anything_ran(situation):
    """The first channel is closed though nobody ever read from it."""
    pairs = [channels.pair(), channels.pair()]
    for number, (_, theirs) in enumerate(pairs):
        request = protocol.encode(Attach(number, "w0"))
        await situation.supervisor.send(request, [theirs.fileno()])
        theirs.close()
    first, second = (Channel(ours) for ours, _ in pairs)
    for _ in pairs:
        await situation.supervisor.receive()

    assert await is_dropped(first)
    first.close()
    second.close()


async def test_it_ends_with_the_supervisor_and_lets_go_of_all(situation):
    workers = [await situation.attach(f"w{i}", ALPHA) for i in range(3)]
    situation.supervisor.close()
    await situation.running

    assert [True] * 3 == [await is_dropped(worker) for worker in workers]


async def test_a_supervisor_that_speaks_otherwise_is_the_end(situation):
    """It starts the next broker, perhaps one that understands it."""
    await situation.supervisor.send(b"\xc1")
    await situation.running
