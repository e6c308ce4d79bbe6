import asyncio
import os
import socket

import pytest

from vnsmail.supervisor.notify import Manager, manager


@pytest.fixture
def listener(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(20)
        yield sock


def address(listener):
    return str(listener.getsockname())


def test_ready_and_stopping(listener):
    """One packet each, a variable a line."""
    told = manager({"NOTIFY_SOCKET": address(listener)})
    told.ready("3 owners served")
    told.stopping()

    assert b"READY=1\nSTATUS=3 owners served" == listener.recv(512)
    assert listener.recv(512).startswith(b"STOPPING=1\nSTATUS=ending")


def test_abstract_socket(tmp_path):
    """An address with @ is one without a file (unix(7))."""
    name = f"vnsmail-test-{tmp_path.name}-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name)
        sock.settimeout(20)
        manager({"NOTIFY_SOCKET": "@" + name}).ready("")

        assert sock.recv(512).startswith(b"READY=1")


async def test_signs_of_life(listener):
    """While it runs, and more than once in the time that is given."""
    told = manager(
        {
            "NOTIFY_SOCKET": address(listener),
            "WATCHDOG_USEC": "30000",
            "WATCHDOG_PID": str(os.getpid()),
        }
    )
    listener.setblocking(False)
    async with told.watched():
        await _readable(listener)
        assert b"WATCHDOG=1" == listener.recv(512)
        await _readable(listener)
        assert b"WATCHDOG=1" == listener.recv(512)


async def _readable(sock):
    loop = asyncio.get_running_loop()
    there = asyncio.Event()
    loop.add_reader(sock, there.set)
    await asyncio.wait_for(there.wait(), 20)
    loop.remove_reader(sock)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "relative/path", "WATCHDOG_USEC": "1000000"},
        {"NOTIFY_SOCKET": "vsock:2:1234"},
    ],
)
async def test_nobody_listens(environment):
    """Without a service manager nothing is said, and nothing fails."""
    told = manager(environment)
    async with told.watched():
        told.ready("fine")

    assert Manager() == told


async def test_it_has_gone(tmp_path):
    """A manager whose socket is gone keeps nobody from running."""
    told = manager(
        {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "60000000"}
    )
    async with told.watched():
        told.ready("fine")


def test_meant_for_another():
    """The watchdog of another process is none of ours; children see no variable."""
    environment = {
        "NOTIFY_SOCKET": "/run/notify",
        "WATCHDOG_USEC": "5000000",
        "WATCHDOG_PID": str(os.getpid() + 1),
        "HOME": "/root",
    }

    assert Manager("/run/notify", 0.0) == manager(environment)
    assert {"HOME": "/root"} == environment


@pytest.mark.parametrize("text", ["", "-1", "many", "1e6", "\uff11\uff10"])
def test_nonsense_of_a_watchdog(text):
    """What is no number of microseconds wants no signs of life."""
    environment = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": text}

    assert 0.0 == manager(environment).patience
