import asyncio
import sys
from dataclasses import dataclass
from itertools import pairwise

import msgspec
import pytest

from vnsmail.channel import ChannelClosed
from vnsmail.errors import VnsmailError
from vnsmail.supervisor import process as module
from vnsmail.supervisor.peer import Peer
from vnsmail.supervisor.process import TRANSITIONS, Child, State, launch_command


class Hello(msgspec.Struct, frozen=True, tag=True):
    id: int


# What a child does; ``channel`` is its end.
CHILD = """
import os, signal, socket, sys
channel = socket.socket(fileno=int(sys.argv[1]))
def answer():
    packet = channel.recv(1000)
    channel.send(packet) if packet else sys.exit()
"""
ANSWERS = "while True: answer()"
ENDS = "answer()"
MISSPEAKS = "answer(); channel.send(b'nonsense'); signal.pause()"
CLOSES = "answer(); channel.close(); signal.pause()"
DEAF = "answer(); signal.pause()"
DEAF_TO_TERM = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
answer()
while True: signal.pause()
"""


@dataclass
class Nursery:
    """A child, with what happened to it."""

    child: Child[Hello]
    asked_to_end: int = 0
    exits: int = 0

    def __post_init__(self):
        self.states: list[State] = []
        self.happened = asyncio.Condition()


@pytest.fixture
def nursery(monkeypatch):
    """Make a child that runs a script, and end it with the test."""
    monkeypatch.setattr(module, "RESTART_FIRST", 0.001)
    monkeypatch.setattr(module, "RESTART_LONGEST", 0.004)
    monkeypatch.setattr(module, "SILENT_GRACE", 0.05)
    monkeypatch.setattr(module, "STOP_GRACE", 30)
    monkeypatch.setattr(module, "KILL_GRACE", 0.1)

    def make(script, on_start=None, on_stop=None):
        monkeypatch.setattr(
            module,
            "launch_command",
            lambda name, fd, options: (
                *(sys.executable, "-I", "-S", "-c", CHILD + script),
                str(fd),
            ),
        )

        def exited():
            found.exits += 1

        found = Nursery(
            Child(
                "child",
                "some.module",
                (),
                peer=lambda channel: Peer(
                    channel,
                    msgspec.msgpack.encode,
                    msgspec.msgpack.Decoder(Hello).decode,
                ),
                on_start=on_start or hello,
                on_stop=on_stop,
                on_exit=exited,
            )
        )
        enter = found.child._enter

        def entered(state):
            enter(state)
            found.states.append(state)

        monkeypatch.setattr(found.child, "_enter", entered)
        return found

    return make


async def hello(peer):
    await peer.ask(Hello)


async def until(nursery, condition):
    """Wait for a state of the child; the loop turns meanwhile."""
    while not condition(nursery.child):
        await asyncio.sleep(0.001)


async def stopped(nursery, running):
    nursery.child.stop()
    await running
    assert State.STOPPED is nursery.child.state
    assert nursery.child.pid is None


def start(nursery):
    return asyncio.ensure_future(nursery.child.run())


def test_the_state_machine():
    """From every state a child can be stopped, and from stopped be started."""
    assert set(State) == set(TRANSITIONS)
    for state in State:
        reached, left = set[State](), [state]
        while left:
            reached |= (new := set(TRANSITIONS[left.pop()]) - reached)
            left += new
        assert {State.STOPPED, State.STARTING} <= reached
    assert State.RUNNING not in TRANSITIONS[State.BACKOFF]


def test_launch_command():
    """A child is started by the launcher, with its options and the channel alone."""
    command = launch_command("some.module", 7, ["--user", "99"])

    assert (
        *(sys.executable, "-P", "-m", "vnsmail.supervisor.launch", "--user", "99"),
        *("--pass-fd", "7", "--", sys.executable, "-P", "-m", "some.module"),
        *("--channel-fd", "7"),
    ) == command


async def test_a_life(nursery):
    """Stopped, starting, running; stopped again when its channel was closed."""
    found = nursery(ANSWERS)
    assert (State.STOPPED, None) == (found.child.state, found.child.pid)
    running = start(found)
    await until(found, lambda child: child.state is State.RUNNING)
    assert found.child.pid
    await stopped(found, running)

    assert [
        State.STARTING,
        State.RUNNING,
        State.STOPPING,
        State.STOPPED,
    ] == found.states
    assert (0, 1) == (found.child.restarts, found.exits)


@pytest.mark.parametrize("script", [ENDS, MISSPEAKS, CLOSES])
async def test_one_that_is_no_use_is_started_again(nursery, script):
    """One that ended, talks nonsense or does not listen makes room for another."""
    found = nursery(script)
    running = start(found)
    await until(found, lambda child: child.restarts >= 2)
    await stopped(found, running)

    assert found.exits >= 2
    for one, two in pairwise([State.STOPPED, *found.states]):
        assert two in TRANSITIONS[one]
    assert State.BACKOFF in found.states


async def test_one_that_cannot_be_made_ready(nursery):
    """A process that did not become ready is ended, whatever was wrong."""
    errors = [VnsmailError("no"), ChannelClosed(), ValueError("no"), OSError(5)]

    async def fails(peer):
        await hello(peer)
        if errors:
            raise errors.pop()

    found = nursery(ANSWERS, on_start=fails)
    running = start(found)
    await until(found, lambda child: child.state is State.RUNNING)

    assert 4 == found.child.restarts
    await stopped(found, running)


async def test_one_that_cannot_be_started(nursery, monkeypatch):
    """If there is no process to be had now, there may be one later."""
    found = nursery(ANSWERS)
    command, tries = module.launch_command, []

    def launch(*arguments):
        tries.append(arguments)
        return command(*arguments) if len(tries) > 3 else ("/nonexistent/python",)

    monkeypatch.setattr(module, "launch_command", launch)
    running = start(found)
    await until(found, lambda child: child.state is State.RUNNING)

    assert 3 == found.child.restarts
    await stopped(found, running)


async def test_waits_double(nursery, monkeypatch):
    """Each wait is twice as long, up to the longest; steadiness is rewarded."""
    found = nursery(ENDS)
    monkeypatch.setattr(module, "RESTART_FIRST", 0.001)
    waits, real = [], asyncio.timeout

    def timeout(seconds):
        if found.child.state is State.BACKOFF:
            waits.append(seconds)
            if len(waits) == 5:
                monkeypatch.setattr(module, "STEADY_AFTER", -1.0)
            if len(waits) == 7:
                found.child.stop()
        return real(seconds)

    monkeypatch.setattr(asyncio, "timeout", timeout)
    await found.child.run()

    assert [0.001, 0.002, 0.004, 0.004, 0.004, 0.001, 0.001] == waits
    assert State.STOPPED is found.child.state


async def test_asked_to_end(nursery):
    """A ready child is asked in its own words first."""
    asked = []

    async def ask(peer):
        asked.append(await peer.ask(Hello))

    found = nursery(ANSWERS, on_stop=ask)
    running = start(found)
    await until(found, lambda child: child.state is State.RUNNING)
    await stopped(found, running)

    assert 1 == len(asked)


async def test_one_that_will_not_be_asked(nursery):
    """Trouble in asking does not keep it from being ended."""

    async def ask(_):
        raise ChannelClosed

    found = nursery(ANSWERS, on_stop=ask)
    running = start(found)
    await until(found, lambda child: child.state is State.RUNNING)
    await stopped(found, running)


@pytest.mark.parametrize("script", [DEAF, DEAF_TO_TERM])
async def test_one_that_does_not_end_by_itself(nursery, monkeypatch, script):
    """After the grace it is told by signal, then killed."""
    monkeypatch.setattr(module, "STOP_GRACE", 0.01)
    found = nursery(script)
    running = start(found)
    await until(found, lambda child: child.state is State.RUNNING)
    process = found.child._process
    await stopped(found, running)

    assert process.returncode == (-15 if script == DEAF else -9)


async def test_stopped_while_starting(nursery):
    """One that is not ready yet is not asked, and ends."""

    async def never(peer):
        await hello(peer)
        await asyncio.Event().wait()

    async def ask(_):
        raise AssertionError

    found = nursery(ANSWERS, on_start=never, on_stop=ask)
    running = start(found)
    await until(found, lambda child: child.pid is not None)
    await stopped(found, running)


async def test_stopped_before_it_ran(nursery):
    """Nothing is started."""
    found = nursery(ANSWERS)
    found.child.stop()
    await found.child.run()

    assert ([], 0) == (found.states, found.exits)


async def test_stopped_while_it_waits(nursery, monkeypatch):
    """A wait for the next start ends at once."""
    found = nursery(ENDS)
    monkeypatch.setattr(module, "RESTART_FIRST", 1000)
    running = start(found)
    await until(found, lambda child: child.state is State.BACKOFF)
    await stopped(found, running)


async def test_killed(nursery):
    """Who is killed is gone when that returns, and another takes its place."""
    found = nursery(DEAF_TO_TERM)
    await found.child.kill()
    running = start(found)
    await until(found, lambda child: child.state is State.RUNNING)
    first = found.child.pid
    await found.child.kill()
    assert not found.child.pid
    await until(found, lambda child: child.restarts == 1)
    await until(found, lambda child: child.state is State.RUNNING)

    assert found.child.pid not in {first, None}
    await found.child.kill()
    await stopped(found, running)


async def test_a_run_that_is_cancelled_leaves_no_process(nursery):
    """Whatever ends the supervisor's loop ends the child too."""
    found = nursery(DEAF_TO_TERM)
    running = start(found)
    await until(found, lambda child: child.state is State.RUNNING)
    process = found.child._process
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert -9 == process.returncode
    assert 1 == found.exits


def test_impossible_transitions_are_faults(nursery):
    """A step that is not in the table is a fault of ours, told by name."""
    found = nursery(ANSWERS)
    with pytest.raises(RuntimeError, match="child cannot go from stopped to running"):
        found.child._enter(State.RUNNING)
