import asyncio
import contextlib
import fcntl
import os
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail import channel
from vnsmail.channel import (
    MAX_DESCRIPTORS,
    MAX_LARGE,
    MAX_MESSAGE,
    Channel,
    ChannelClosed,
    ChannelMisused,
    MessageTooLong,
    close_all,
    pair,
    receive_now,
    send_now,
)


@pytest.fixture
def ends():
    one, other = pair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


@pytest.fixture
def channels(ends):
    return Channel(ends[0], large=True), Channel(ends[1], large=True)


def descriptors():
    """Return what is open, but for the listing itself."""
    listed = os.listdir("/proc/self/fd")
    return {name for name in listed if os.path.lexists(f"/proc/self/fd/{name}")}


@pytest.fixture(autouse=True)
def _no_descriptor_is_left():
    before = descriptors()
    yield
    assert before >= descriptors()


@contextlib.contextmanager
def pipes(count):
    """Give the reading ends of pipes whose writing ends said their number."""
    fds = []
    for number in range(count):
        reader, writer = os.pipe()
        os.write(writer, b"%d" % number)
        os.close(writer)
        fds.append(reader)
    try:
        yield fds
    finally:
        close_all(fds)


# Messages ------------------------------------------------------------------------


@given(st.lists(st.binary(min_size=1, max_size=3000), max_size=10))
def test_messages_stay_apart(messages):
    """What is sent comes out, in order, each by itself."""
    one, other = pair()
    with one, other:
        for message in messages:
            send_now(one, message)

        assert messages == [receive_now(other)[0] for _ in messages]


def test_descriptors_come_along(ends):
    """Descriptors arrive in order, usable, and closed in any child."""
    one, other = ends
    with pipes(MAX_DESCRIPTORS) as fds:
        send_now(one, b"take these", fds)
    payload, received = receive_now(other)

    assert b"take these" == payload
    assert [b"%d" % n for n in range(MAX_DESCRIPTORS)] == [
        os.read(fd, 9) for fd in received
    ]
    assert not any(os.get_inheritable(fd) for fd in received)
    close_all(received)


def test_the_longest_message(ends):
    """A message of the greatest length fits a packet."""
    one, other = ends
    send_now(one, b"x" * MAX_MESSAGE)

    assert b"x" * MAX_MESSAGE == receive_now(other)[0]


def test_a_packet_that_is_too_long(ends):
    """One that was cut off is an error, and its descriptors are closed."""
    one, other = ends
    with pipes(2) as fds:
        one.sendmsg(
            [b"x" * (MAX_MESSAGE + 1)],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(map(_int, fds)))],
        )
    with pytest.raises(ChannelMisused):
        receive_now(other)

    send_now(one, b"next")
    assert (b"next", []) == receive_now(other)


def _int(number):
    return number.to_bytes(4, "little")


def test_too_many_descriptors(ends):
    """So is one with more descriptors than are taken."""
    one, other = ends
    with pipes(1) as fds:
        send_now(one, b"many", fds * (MAX_DESCRIPTORS + 1))
    with pytest.raises(ChannelMisused):
        receive_now(other)


def test_the_other_end_is_gone(ends):
    """What it said before still comes; then it is gone, both ways."""
    one, other = ends
    send_now(one, b"last words")
    one.close()

    assert (b"last words", []) == receive_now(other)
    for action in (lambda: receive_now(other), lambda: send_now(other, b"hello")):
        with pytest.raises(ChannelClosed):
            action()


def test_gone_with_something_unread(ends):
    """An end that leaves without reading is no other error (ECONNRESET)."""
    one, other = ends
    send_now(other, b"unread")
    one.close()
    for _ in range(2):
        with pytest.raises(ChannelClosed):
            receive_now(other)


def test_nothing_there_yet(ends):
    """A non-blocking end says so."""
    with pytest.raises(BlockingIOError):
        receive_now(ends[0])


def test_an_empty_packet_is_an_end(ends):
    """Nothing of ours is empty, so whoever sends that is not heard further."""
    one, other = ends
    with pipes(1) as fds:
        one.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _int(fds[0]))])
    with pytest.raises(ChannelClosed):
        receive_now(other)


# Large ones ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [MAX_MESSAGE + 1, 1_000_000, MAX_LARGE])
def test_a_large_message(ends, size):
    """What does not fit a packet comes all the same, with its descriptors."""
    one, other = ends
    data = b"0123456789abcdef" * (size // 16) + b"." * (size % 16)
    with pipes(3) as fds:
        send_now(one, data, fds)
    payload, received = receive_now(other, large=True)

    assert data == payload
    assert [b"0", b"1", b"2"] == [os.read(fd, 9) for fd in received]
    close_all(received)


def test_larger_than_that(ends):
    """There is a limit, and nothing is sent beyond it."""
    one, other = ends
    with pytest.raises(MessageTooLong, match="ask for less"):
        send_now(one, b"x" * (MAX_LARGE + 1))
    with pytest.raises(BlockingIOError):
        receive_now(other, large=True)


def test_who_does_not_take_large_ones(ends):
    """Such a receiver, as the broker is, gets a packet that means nothing."""
    one, other = ends
    send_now(one, b"x" * (MAX_MESSAGE + 1))
    payload, received = receive_now(other)

    assert b"\xc1" == payload
    close_all(received)


def memory(size, seals):
    fd = os.memfd_create("hostile", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


ALL = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@pytest.mark.parametrize(
    "make",
    [
        lambda: os.pipe()[0],
        lambda: os.open("/dev/zero", os.O_RDONLY),
        lambda: os.open("/proc/self/exe", os.O_RDONLY),
        lambda: memory(MAX_MESSAGE + 1, 0),
        lambda: memory(MAX_MESSAGE + 1, fcntl.F_SEAL_WRITE),
        lambda: memory(MAX_LARGE + 1, ALL),
        lambda: memory(0, ALL),
        lambda: memory(MAX_MESSAGE, ALL),
    ],
)
def test_what_only_looks_like_a_large_message(ends, make):
    """Nothing but sealed memory of a fair size is read; all is closed."""
    one, other = ends
    before = descriptors()
    fd = make()
    send_now(one, b"\xc1", [fd])
    assert str(fd) in descriptors() - before
    for name in descriptors() - before:
        os.close(int(name))
    with pytest.raises(ChannelMisused):
        receive_now(other, large=True)


def test_a_large_message_without_memory(ends):
    """The mark alone is no message."""
    send_now(ends[0], b"\xc1")
    with pytest.raises(ChannelMisused):
        receive_now(ends[1], large=True)


@given(st.binary(max_size=50), st.integers(0, 3))
def test_any_packet(data, count):
    """Whatever a peer sends is a message or one of the two errors."""
    one, other = pair()
    with one, other, pipes(count) as fds:
        other.setblocking(False)
        one.sendmsg(
            [data],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(map(_int, fds)))],
        )
        try:
            payload, received = receive_now(other, large=True)
        except (ChannelClosed, ChannelMisused):
            return
        close_all(received)
        assert (data, count) == (payload, len(received))


# For coroutines ------------------------------------------------------------------------


async def turn():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_asked_and_answered(channels):
    """Coroutines wait for messages."""
    one, other = channels
    receiving = asyncio.ensure_future(other.receive())
    await turn()
    assert not receiving.done()
    await one.send(b"hello")

    assert (b"hello", []) == await receiving


async def test_a_slow_reader_is_waited_for(channels):
    """While the buffer is full the sender waits, and nothing is lost or mixed up."""
    one, other = channels
    sending = [
        asyncio.ensure_future(one.send(b"%03d" % n + b"x" * MAX_MESSAGE))
        for n in range(20)
    ]
    small = asyncio.ensure_future(one.send(b"the last"))
    packets = [asyncio.ensure_future(one.send(b"y" * 100_000)) for _ in range(20)]
    await turn()
    assert not packets[-1].done()
    found = [(await other.receive())[0] for _ in range(41)]
    await asyncio.gather(*sending, small, *packets)

    assert [b"%03d" % n for n in range(20)] == [each[:3] for each in found[:20]]
    assert b"the last" == found[20]
    assert {b"y" * 100_000} == set(found[21:])


async def test_cancelled_while_it_waits(channels):
    """A sender that gave up takes nothing of what comes after with it."""
    one, other = channels
    sending = [asyncio.ensure_future(one.send(b"%d" % n * 90_000)) for n in range(9)]
    await turn()
    waiting = [task for task in sending if not task.done()]
    waiting[0].cancel()
    await turn()
    found = [(await other.receive())[0][:1] for _ in range(8)]

    gone = str(sending.index(waiting[0])).encode()
    assert [b"%d" % n for n in range(9) if b"%d" % n != gone] == found
    receiving = asyncio.ensure_future(other.receive())
    await turn()
    receiving.cancel()
    await turn()
    await one.send(b"after")
    assert b"after" == (await other.receive())[0]


async def test_the_other_end_closes(channels):
    """Who waits is told, whichever way."""
    one, other = channels
    receiving = asyncio.ensure_future(one.receive())
    await turn()
    other.close()
    with pytest.raises(ChannelClosed):
        await receiving
    with pytest.raises(ChannelClosed):
        await one.send(b"hello")


async def test_our_end_is_closed(channels):
    """A closed end neither sends nor receives."""
    one, _ = channels
    one.close()
    for action in (one.receive, lambda: one.send(b"hello")):
        with pytest.raises(ChannelClosed):
            await action()


async def test_too_long_for_a_coroutine(channels):
    """The sender can say so in a shorter message."""
    one, other = channels
    with pytest.raises(MessageTooLong):
        await one.send(b"x" * (MAX_LARGE + 1))
    await one.send(b"too much")

    assert b"too much" == (await other.receive())[0]


def test_close_all_of_closed_ones():
    """What is closed already is no trouble."""
    reader, writer = os.pipe()
    close_all([reader, writer, reader])


def test_between_threads(ends):
    """A blocking end waits."""
    one, other = ends
    other.setblocking(True)
    sender = threading.Thread(target=lambda: send_now(one, b"hello"))
    sender.start()

    assert b"hello" == receive_now(other)[0]
    sender.join()


def test_errors_are_told_apart():
    """A closed channel may work again, a misused one will not."""
    assert (True, False) == (ChannelClosed.retry_helps, ChannelMisused.retry_helps)
    assert all(str(e()) for e in (channel.ChannelClosed, channel.ChannelMisused))
