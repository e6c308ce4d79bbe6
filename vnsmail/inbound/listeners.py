"""Receiving for one owner: its listening sockets, and the sessions they bring.

Rules of this file: a listening socket comes ready from somebody else, who made it
listen, so that a process that may neither bind nor listen can accept; running out of
descriptors stops accepting for a while, and ends nothing.
"""

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from concurrent.futures import Executor
from functools import lru_cache

from vnsmail.events.record import Tell, untold
from vnsmail.inbound.session import MX, Receiver
from vnsmail.inbound.shared import (
    Door,
    Keep,
    KeepSoon,
    MayBegin,
    ReceiverFacts,
    ReverseName,
    Shared,
)
from vnsmail.log import logger
from vnsmail.model import IPAddress

ACCEPT_AT_ONCE = 64
"""Connections accepted before the loop turns to those that are open."""

ACCEPT_PAUSE = 1.0
"""Seconds without accepting when descriptors or memory have run out; asyncio's own
servers pause as long."""

log = logger("inbound")


class Reception:
    """Receives for one owner on any number of listening sockets.

    Args:
        facts: who receives, what it takes, and its limits.
        keep: makes a message durable, or puts it into a mailbox.
        reverse_name: finds the name of a client.
        executor: writes large bodies.
        clock: seconds since the epoch.
        may_begin: turns messages away before their bodies come.
        admitted: called for each client that is let in.
        tell: takes what is to stand in the event log.
        keep_soon: does as ``keep`` without a task, where it can.
    """

    def __init__(
        self,
        facts: ReceiverFacts,
        *,
        keep: Keep,
        reverse_name: ReverseName,
        executor: Executor,
        clock: Callable[[], float] = time.time,
        may_begin: MayBegin | None = None,
        admitted: Callable[[], None] | None = None,
        tell: Tell = untold,
        keep_soon: KeepSoon | None = None,
    ) -> None:
        self._shared = Shared(facts, keep, reverse_name, executor, clock, tell=tell)
        self._shared.keep_soon = keep_soon
        if may_begin is not None:
            self._shared.may_begin = may_begin
        if admitted is not None:
            self._shared.admitted = admitted
        self._loop = asyncio.get_running_loop()
        self._listening: dict[socket.socket, Door] = {}
        self._closing = False

    @property
    def sessions(self) -> int:
        """Sessions that are open."""
        return len(self._shared.receivers)

    def update(self, facts: ReceiverFacts) -> None:
        """Use changed facts, in open sessions too."""
        self._shared.facts = facts

    def listen(self, sock: socket.socket, door: Door = MX) -> None:
        """Accept what comes on a socket that listens already; it is ours from now on."""
        sock.setblocking(False)
        self._listening[sock] = door
        self._loop.add_reader(sock, self._accept, sock)

    def leave(self, addresses: AbstractSet[str]) -> None:
        """Stop listening on addresses; sessions there finish their message and end."""
        for sock, door in list(self._listening.items()):
            if door.address in addresses:
                del self._listening[sock]
                self._loop.remove_reader(sock)
                sock.close()
        for receiver in self._at(addresses):
            receiver.wind_up()

    async def left(self, addresses: AbstractSet[str]) -> None:
        """Wait until no session is at one of these addresses; cancelled, cut them."""
        try:
            while waiting := [receiver.gone for receiver in self._at(addresses)]:
                await asyncio.wait(waiting)
        except asyncio.CancelledError:
            for receiver in self._at(addresses):
                receiver.abort()
            raise

    def _at(self, addresses: AbstractSet[str]) -> list[Receiver]:
        return [r for r in self._shared.receivers if r.door.address in addresses]

    async def close(self, grace: float) -> None:
        """Stop listening, and end all sessions.

        Args:
            grace: seconds for clients to take the last reply; then they are cut off. A
                message that is being kept is kept whatever it takes.
        """
        self._closing = True
        for sock in self._listening:
            self._loop.remove_reader(sock)
            sock.close()
        self._listening.clear()
        for receiver in list(self._shared.receivers):
            receiver.shutdown()
        try:
            async with asyncio.timeout(grace):
                await self._gone()
        except TimeoutError:
            for receiver in list(self._shared.receivers):
                receiver.abort()
        await self._gone()

    async def _gone(self) -> None:
        while waiting := self._shared.tasks | {r.gone for r in self._shared.receivers}:
            await asyncio.wait(waiting)

    # Accepting -----------------------------------------------------------------------

    def _accept(self, sock: socket.socket) -> None:
        for _ in range(ACCEPT_AT_ONCE):
            try:
                accepted, peer = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(sock, error)
                return
            door = self._listening[sock]
            self._shared.start(self._serve(accepted, _address(peer), door))

    async def _serve(
        self, sock: socket.socket, peer: IPAddress | None, door: Door
    ) -> None:
        sock.setblocking(False)
        try:
            _, receiver = await self._loop.connect_accepted_socket(
                lambda: Receiver(self._shared, peer, door), sock
            )
        except OSError:  # the client is gone already
            sock.close()
            return
        if self._closing:
            receiver.shutdown()
        elif door not in self._listening.values():
            receiver.wind_up()

    def _pause(self, sock: socket.socket, error: OSError) -> None:
        """Leave a socket alone for a while: it would be ready and fail, again and again.

        This is what happens when descriptors or memory have run out. accept(2) also
        tells errors of a network that is going away.
        """
        owner = self._shared.facts.owner
        log.error("accept.failed", owner=owner, reason=error.strerror)
        self._loop.remove_reader(sock)
        self._loop.call_later(ACCEPT_PAUSE, self._resume, sock)

    def _resume(self, sock: socket.socket) -> None:
        if sock in self._listening:
            self._loop.add_reader(sock, self._accept, sock)


def _address(peer: object) -> IPAddress | None:
    """Return the IP address in what accept(2) said of a peer; None for a Unix socket."""
    if not isinstance(peer, tuple) or not peer:
        return None
    return _address_of(str(peer[0]))


@lru_cache(maxsize=1024)
def _address_of(text: str) -> IPAddress:
    # A zone names a link of this machine, which is nothing to tell a remote.
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address
