import asyncio
import contextlib
import errno
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail import channel as channels
from vnsmail.broker import client as module
from vnsmail.broker import protocol
from vnsmail.broker.client import SocketClient, SourceSocket
from vnsmail.broker.protocol import (
    OpenConnectable,
    Opened,
    OpenListener,
    OpenResolver,
    Refused,
    Unavailable,
)
from vnsmail.channel import MAX_DESCRIPTORS, Channel, ChannelClosed
from vnsmail.errors import BrokerGone, BrokerRefused, SourceUnavailable
from vnsmail.model import Family

ALPHA = "alpha.example"


class FakeBroker:
    """The other end of a client's channel, which answers what the test says."""

    def __init__(self, client):
        ours, theirs = channels.pair()
        self.channel = Channel(ours)
        client.replace_channel(Channel(theirs))

    async def requests(self):
        """Return the next message of the client."""
        payload, fds = await self.channel.receive()
        assert [] == fds
        return list(protocol.decode_requests(payload))

    async def answer(self, *answers, fds=()):
        await self.channel.send(protocol.encode_batch(answers), fds)

    async def open(self, *numbers):
        """Answer with sockets; returns the other end of each."""
        ends = [socket.socketpair() for _ in numbers]
        answers = [Opened(number, "10.0.0.1") for number in numbers]
        await self.answer(*answers, fds=[theirs.fileno() for _, theirs in ends])
        for _, theirs in ends:
            theirs.close()
        return [ours for ours, _ in ends]


@pytest.fixture
async def client():
    client = SocketClient()
    yield client
    client.close()
    await settle()


@pytest.fixture
async def broker(client):
    broker = FakeBroker(client)
    yield broker
    broker.channel.close()


async def settle():
    """Let every task and callback that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def asking(*questions):
    """Start coroutines, in order; gives their tasks, which have asked by then."""
    tasks = [asyncio.ensure_future(question) for question in questions]
    await settle()
    yield tasks
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def closed(end):
    """Return whether nobody holds the other end of a socket pair any more."""
    end.setblocking(False)
    try:
        return end.recv(1) == b""
    except BlockingIOError:
        return False


# Asking and being answered ----------------------------------------------------


async def test_what_is_asked_in_one_turn_goes_in_one_message_in_order(client, broker):
    async with asking(
        client.connectable(ALPHA, Family.IPV6),
        client.listener(ALPHA, "10.0.0.1", 25),
        client.resolver("udp", "10.0.0.53"),
        client.connectable("machine", Family.IPV4),
    ):
        assert [
            OpenConnectable(1, ALPHA, 6),
            OpenListener(2, ALPHA, "10.0.0.1", 25),
            OpenResolver(3, "udp", "10.0.0.53"),
            OpenConnectable(4, "machine", 4),
        ] == await broker.requests()


async def test_no_message_has_more_requests_than_descriptors_fit_an_answer(
    client, broker
):
    count = 2 * protocol.MAX_BATCH + 1
    many = [client.connectable(ALPHA, Family.IPV4) for _ in range(count)]
    async with asking(*many):
        sizes = [len(await broker.requests()) for _ in range(3)]

    assert [protocol.MAX_BATCH, protocol.MAX_BATCH, 1] == sizes


async def test_each_gets_its_own_socket_whatever_the_order_of_answers(client, broker):
    many = [client.connectable(ALPHA, Family.IPV4) for _ in range(3)]
    async with asking(*many) as tasks:
        for number, end in zip((3, 1, 2), await broker.open(3, 1, 2), strict=True):
            end.send(b"%d" % number)
            end.close()
        sockets = [await task for task in tasks]

        assert [b"1", b"2", b"3"] == [s.sock.recv(9) for s in sockets]
        assert {(ALPHA, "10.0.0.1")} == {(s.owner, s.source) for s in sockets}
        for source in sockets:
            source.sock.close()


@pytest.mark.parametrize(
    ("question", "family", "kind"),
    [
        (lambda c: c.listener(ALPHA, "10.0.0.1", 25), socket.AF_INET, "stream"),
        (lambda c: c.listener(ALPHA, "fd00::1", 25), socket.AF_INET6, "stream"),
        (lambda c: c.resolver("udp", "10.0.0.53"), socket.AF_INET, "dgram"),
        (lambda c: c.resolver("tcp", "fd00::53"), socket.AF_INET6, "stream"),
    ],
)
async def test_a_socket_is_ready_for_an_event_loop(
    client, broker, question, family, kind
):
    async with asking(question(client)) as [task]:
        [end] = await broker.open(1)
        with end, await task as sock:
            assert not sock.getblocking()
            assert not sock.get_inheritable()
            assert (family, kind) == (
                sock.family,
                "dgram" if sock.type == socket.SOCK_DGRAM else "stream",
            )


async def test_answers_of_all_kinds_in_one_message(client, broker):
    async with asking(
        client.connectable(ALPHA, Family.IPV4),
        client.connectable(ALPHA, Family.IPV6),
        client.connectable("beta.example", Family.IPV4),
        client.connectable("machine", Family.IPV4),
    ) as tasks:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            await broker.answer(
                Unavailable(1, errno.EADDRNOTAVAIL, "not there", "10.0.0.1"),
                Unavailable(2, errno.EAFNOSUPPORT, "it has no IPv6 address", None),
                Refused(3, "not_owned", "w0 does not own beta.example"),
                Opened(4, None),
                fds=[theirs.fileno()],
            )
        results = await asyncio.gather(*tasks, return_exceptions=True)

    gone, no_family, refused, unbound = results
    assert isinstance(gone, SourceUnavailable)
    assert gone.args == (ALPHA, "10.0.0.1", errno.EADDRNOTAVAIL, "not there")
    assert isinstance(no_family, SourceUnavailable)
    assert "IPv6 is not usable here (it has no IPv6 address)" in str(no_family)
    assert isinstance(refused, BrokerRefused)
    assert refused.args == ("not_owned", "w0 does not own beta.example")
    assert isinstance(unbound, SourceSocket)
    assert (unbound.owner, unbound.source) == ("machine", None)
    unbound.sock.close()


async def test_a_port_in_use_is_an_error_of_its_own(client, broker):
    """The address is usable; somebody must be told who else listens."""
    async with asking(client.listener(ALPHA, "10.0.0.1", 25)) as [task]:
        await broker.answer(Unavailable(1, errno.EADDRINUSE, "in use", "10.0.0.1"))
        with pytest.raises(OSError, match="in use") as raised:
            await task

    assert errno.EADDRINUSE == raised.value.errno


async def test_a_listener_whose_address_is_gone_has_no_source(client, broker):
    async with asking(client.listener(ALPHA, "10.0.0.1", 25)) as [task]:
        await broker.answer(Unavailable(1, errno.EADDRNOTAVAIL, "gone", "10.0.0.1"))
        with pytest.raises(SourceUnavailable):
            await task


async def test_a_name_server_without_a_route_is_told_of(client, broker):
    async with asking(client.resolver("tcp", "10.0.0.53")) as [task]:
        await broker.answer(Unavailable(1, errno.ENETUNREACH, "no route", None))
        with pytest.raises(SourceUnavailable, match=r"10\.0\.0\.53"):
            await task


# Without a broker -------------------------------------------------------------


async def test_without_a_channel_there_is_no_broker(client):
    with pytest.raises(BrokerGone):
        await client.connectable(ALPHA, Family.IPV4)


async def test_when_the_broker_ends_all_who_wait_and_all_who_come_are_told(
    client, broker
):
    many = [client.connectable(ALPHA, Family.IPV4) for _ in range(100)]
    async with asking(*many) as tasks:
        broker.channel.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)

    assert {BrokerGone} == {type(result) for result in results}
    with pytest.raises(BrokerGone):
        await client.connectable(ALPHA, Family.IPV4)


async def test_a_new_channel_is_used_at_once_and_the_old_one_closed(client, broker):
    async with asking(client.connectable(ALPHA, Family.IPV4)) as [waiting]:
        second = FakeBroker(client)
        async with asking(client.connectable(ALPHA, Family.IPV4)) as [task]:
            with pytest.raises(BrokerGone):
                await waiting
            [end] = await second.open(1)
            (await task).sock.close()
            end.close()
    await broker.requests()
    with pytest.raises(ChannelClosed):
        await broker.channel.receive()

    second.channel.close()


async def test_closing_before_anything_ran_closes_the_channel(client):
    broker = FakeBroker(client)
    client.close()
    await settle()
    with pytest.raises(ChannelClosed):
        await broker.channel.receive()

    broker.channel.close()


async def test_a_broker_that_does_not_answer_is_as_good_as_none(
    client, broker, monkeypatch
):
    """Its late answer is closed, and it is asked again."""
    monkeypatch.setattr(module, "ANSWER_WITHIN", 0.0)
    with pytest.raises(BrokerGone):
        await client.connectable(ALPHA, Family.IPV4)
    monkeypatch.undo()
    [late] = await broker.open(1)
    async with asking(client.connectable(ALPHA, Family.IPV4)) as [task]:
        [end] = await broker.open(2)
        (await task).sock.close()

    assert closed(late)
    late.close()
    end.close()


async def test_one_who_asked_later_still_has_time(client, broker, monkeypatch):
    """The watch is set anew for the next one."""
    clock = asyncio.get_running_loop()
    async with asking(client.connectable(ALPHA, Family.IPV4)) as [early]:
        now = clock.time()
        monkeypatch.setattr(clock, "time", lambda: now + module.ANSWER_WITHIN / 2)
        async with asking(client.connectable(ALPHA, Family.IPV4)) as [later]:
            when = now + module.ANSWER_WITHIN + 1
            monkeypatch.setattr(clock, "time", lambda: when)
            with pytest.raises(BrokerGone):
                await early
            [end] = await broker.open(2)
            (await later).sock.close()
            end.close()


# Who asked is gone ------------------------------------------------------------


async def test_a_socket_for_one_who_gave_up_is_closed(client, broker):
    async with asking(client.connectable(ALPHA, Family.IPV4)) as [task]:
        await broker.requests()
        task.cancel()
        await settle()
        [end] = await broker.open(1)
        await settle()

        assert closed(end)
        end.close()


async def test_a_socket_that_comes_as_the_asker_gives_up_is_closed(client, broker):
    """Answer and cancellation in the same turn of the loop."""
    async with asking(client.connectable(ALPHA, Family.IPV4)) as [task]:
        await broker.requests()
        [end] = await broker.open(1)
        conversation = client._conversation
        conversation._take(*channels.receive_now(conversation._channel._socket))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert closed(end)
        end.close()


async def test_what_nobody_waits_for_any_more_is_not_asked(client, broker):
    task = asyncio.ensure_future(client.connectable(ALPHA, Family.IPV4))
    await asyncio.sleep(0)
    task.cancel()
    async with asking(client.connectable("beta.example", Family.IPV4)):
        assert [OpenConnectable(2, "beta.example", 4)] == await broker.requests()


# A broker that is not one -----------------------------------------------------


@given(st.binary(min_size=1, max_size=200), st.integers(0, 3))
def test_nonsense_ends_the_conversation_and_leaves_nothing_open(data, count):
    async def talk():
        client = SocketClient()
        broker = FakeBroker(client)
        ends = [socket.socketpair() for _ in range(count)]
        async with asking(client.connectable(ALPHA, Family.IPV4)) as [task]:
            fds = [theirs.fileno() for _, theirs in ends]
            await broker.channel.send(data, fds)
            for _, theirs in ends:
                theirs.close()
            with pytest.raises(BrokerGone):
                await task
        await settle()
        assert [] == [ours for ours, _ in ends if not closed(ours)]
        for ours, _ in ends:
            ours.close()
        broker.channel.close()

    asyncio.run(talk())


async def test_fewer_descriptors_than_sockets_is_nonsense(client, broker):
    many = [client.connectable(ALPHA, Family.IPV4) for _ in range(2)]
    async with asking(*many) as tasks:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            opened = [Opened(1, "10.0.0.1"), Opened(2, "10.0.0.1")]
            await broker.answer(*opened, fds=[theirs.fileno()])
        first, second = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(first, SourceSocket)
    first.sock.close()
    assert isinstance(second, BrokerGone)


async def test_descriptors_that_do_not_fit_fail_those_who_wait_only(client, broker):
    """As when this process has as many open files as it may: the rest goes on."""
    async with asking(client.connectable(ALPHA, Family.IPV4)) as [task]:
        fds = [os.dup(0) for _ in range(MAX_DESCRIPTORS + 1)]
        await broker.answer(Opened(1, "10.0.0.1"), fds=fds)
        channels.close_all(fds)
        with pytest.raises(SourceUnavailable, match="too many open files"):
            await task
    async with asking(client.connectable(ALPHA, Family.IPV4)) as [task]:
        [end] = await broker.open(2)
        (await task).sock.close()
        end.close()
