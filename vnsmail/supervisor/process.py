"""A child process as a named state machine: started, watched, started again.

    stopped ──start──► starting ──ready──► running ──exit──► backoff ──wait──► starting
                          │                   │                                   ▲
                          └──exit─────────────┼──────► backoff ──────────────────┘
    any state ──stop──► stopping ──exit──► stopped

Rules of this file: only processes started here are signalled, by their own pid; the
wait before a restart doubles from RESTART_FIRST to RESTART_LONGEST and falls back
after the child ran for STEADY_AFTER. Whatever a child says or does, and whatever keeps
it from starting, ends no more than that child.
"""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Generic

from vnsmail.channel import Channel, pair
from vnsmail.errors import VnsmailError
from vnsmail.log import logger
from vnsmail.supervisor.peer import AnswerT, Peer

RESTART_FIRST = 0.2
"""Seconds before the first restart: a crash should cost no more than a hiccup."""
RESTART_LONGEST = 30.0
"""Seconds between restarts of a child that keeps dying."""
STEADY_AFTER = 10.0
"""Seconds a child must run before an exit counts as its first."""
STOP_GRACE = 8.0
"""Seconds between asking a child to end and ending it."""
SILENT_GRACE = 1.0
"""Seconds for a child to end that closed its channel, or said what means nothing."""
KILL_GRACE = 2.0
"""Seconds between two ways of ending it, each harder than the one before."""

log = logger("supervisor")


class State(StrEnum):
    """Where a child is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    BACKOFF = "backoff"
    STOPPING = "stopping"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.STOPPED: frozenset({State.STARTING}),
    State.STARTING: frozenset({State.RUNNING, State.BACKOFF, State.STOPPING}),
    State.RUNNING: frozenset({State.BACKOFF, State.STOPPING}),
    State.BACKOFF: frozenset({State.STARTING, State.STOPPING}),
    State.STOPPING: frozenset({State.STOPPED}),
}


def launch_command(
    module: str, channel_fd: int, options: Sequence[str]
) -> tuple[str, ...]:
    """Return the command that runs ``module`` with the privileges in ``options``.

    The launcher (supervisor/launch.py) stands between fork and exec, so that nothing
    runs with more privilege than it keeps.
    """
    python = (sys.executable, "-P", "-m")
    return (
        *python,
        "vnsmail.supervisor.launch",
        *options,
        "--pass-fd",
        str(channel_fd),
        "--",
        *python,
        module,
        "--channel-fd",
        str(channel_fd),
    )


def direct_command(
    module: str, channel_fd: int, options: Sequence[str]
) -> tuple[str, ...]:
    """Return the command that runs ``module`` as we are; it gives up by itself."""
    python = (sys.executable, "-P", "-m", module)
    return (*python, *options, "--channel-fd", str(channel_fd))


class Child(Generic[AnswerT]):
    """One child process that is kept running until it is told to stop."""

    def __init__(
        self,
        name: str,
        module: str,
        options: Sequence[str],
        *,
        peer: Callable[[Channel], Peer[AnswerT]],
        on_start: Callable[[Peer[AnswerT]], Awaitable[None]],
        on_stop: Callable[[Peer[AnswerT]], Awaitable[None]] | None = None,
        on_exit: Callable[[], None],
        launched: bool = True,
    ) -> None:
        """``peer`` speaks the child's protocol over a channel to it.

        ``on_start`` makes a fresh process ready; what it raises ends that process.
        ``on_stop`` asks it to end; then, or without it, its channel is closed.
        ``on_exit`` is called after each exit, before a restart.
        ``launched`` is False for a module that gives up privileges by itself.
        """
        self.name = name
        self.state = State.STOPPED
        self.restarts = 0
        self._module = module
        self._options = tuple(options)
        self._peer = peer
        self._on_start = on_start
        self._on_stop = on_stop
        self._on_exit = on_exit
        self._launched = launched
        self._process: asyncio.subprocess.Process | None = None
        self._stop = asyncio.Event()

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process and process.returncode is None else None

    def stop(self) -> None:
        """End the running process, and start no more."""
        self._stop.set()

    async def kill(self) -> None:
        """End the running process at once, and wait for that; another takes its place.

        What it holds open, the kernel closes.
        """
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def run(self) -> None:
        """Keep the child running until ``stop``; returns when the last one has ended."""
        delay = RESTART_FIRST
        while not self._stop.is_set():
            began = asyncio.get_running_loop().time()
            self._enter(State.STARTING)
            try:
                await self._run_once()
            except OSError as error:  # no memory or no process to be had now
                log.warning("child.not_started", child=self.name, reason=str(error))
            if self._stop.is_set():
                break
            if asyncio.get_running_loop().time() - began > STEADY_AFTER:
                delay = RESTART_FIRST
            self._enter(State.BACKOFF)
            self.restarts += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stop.wait()
            delay = min(delay * 2, RESTART_LONGEST)
        if self.state is not State.STOPPED:
            if self.state is not State.STOPPING:
                self._enter(State.STOPPING)
            self._enter(State.STOPPED)

    async def _run_once(self) -> None:
        """Start a process, and stay with it to its end."""
        ours, theirs = pair()
        try:
            process = await self._spawn(theirs)
        except BaseException:
            ours.close()
            raise
        self._process = process
        peer = self._peer(Channel(ours, large=True))
        try:
            async with asyncio.TaskGroup() as tasks:
                listening = tasks.create_task(peer.listen())
                readying = tasks.create_task(self._make_ready(peer, process))
                ended = tasks.create_task(process.wait())
                stopping = tasks.create_task(self._stop.wait())
                await asyncio.wait(
                    {ended, listening, stopping}, return_when=asyncio.FIRST_COMPLETED
                )
                grace = SILENT_GRACE
                if stopping.done() and not ended.done():
                    grace = STOP_GRACE
                    await self._ask_to_end(peer)
                for task in (stopping, readying, listening):
                    task.cancel()
                await self._end(process, grace)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            peer.close()
            self._on_exit()
        log.info("child.ended", child=self.name, status=process.returncode)

    async def _ask_to_end(self, peer: Peer[AnswerT]) -> None:
        ready = self.state is State.RUNNING
        self._enter(State.STOPPING)
        if ready and self._on_stop is not None:
            with contextlib.suppress(VnsmailError):
                await self._on_stop(peer)

    async def _spawn(self, theirs: socket.socket) -> asyncio.subprocess.Process:
        fd = theirs.fileno()
        command = launch_command if self._launched else direct_command
        try:
            process = await asyncio.create_subprocess_exec(
                *command(self._module, fd, self._options),
                pass_fds=(fd,),
                stdin=asyncio.subprocess.DEVNULL,
                cwd=Path("/"),
            )
        finally:
            theirs.close()
        log.info("child.started", child=self.name, pid=process.pid)
        return process

    async def _make_ready(
        self, peer: Peer[AnswerT], process: asyncio.subprocess.Process
    ) -> None:
        try:
            await self._on_start(peer)
        except Exception as error:  # noqa: BLE001  whatever it was, this child is no use
            log.warning("child.unready", child=self.name, reason=str(error))
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            return
        if self.state is State.STARTING:
            self._enter(State.RUNNING)

    async def _end(self, process: asyncio.subprocess.Process, grace: float) -> None:
        """Wait for a process whose channel is closed, then end it."""
        for signal in (None, process.terminate, process.kill):
            if signal is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace if signal is None else KILL_GRACE):
                    await process.wait()
                    return

    def _enter(self, state: State) -> None:
        if state not in TRANSITIONS[self.state]:
            message = f"{self.name} cannot go from {self.state} to {state}"
            raise RuntimeError(message)
        self.state = state
