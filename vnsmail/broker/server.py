"""The broker process. PRIVILEGED.

``python -m vnsmail.broker.server --channel-fd N``, started by the supervisor through
supervisor/launch.py. It opens sockets for workers, and ends when the supervisor's
channel closes.

Rules of this file: a peer that says what it may not say loses its channel, and nobody
else notices; what a peer has not read stays with that peer, who is not read from
meanwhile, so at most one batch a worker is in our hands; nothing here waits for the
network or a disk.
"""

import argparse
import asyncio
import socket
from collections import Counter
from collections.abc import Sequence

from vnsmail import log as logging
from vnsmail.broker import protocol
from vnsmail.broker.policy import Opening, Policy, Resolver, refused
from vnsmail.broker.sockets import Failed, Opener, Result
from vnsmail.channel import Channel, ChannelClosed, ChannelMisused, close_all
from vnsmail.errors import BrokerRefused

UNREAD_ANSWERS = 16 * 1024
"""Bytes of send buffer a worker's channel has. The kernel counts each message as a
page or so, so that some 500 sockets are on their way to a worker at most: fewer than
a limit of 1,024 open files, which is also that of descriptors in flight (unix(7))."""

_COUNTED = (protocol.Opened, protocol.Unavailable, protocol.Refused)

log = logging.logger("broker")


class Replayed(Exception):
    """A worker's request has an id that it has used, or passed, before."""


class Broker:
    """Everything the broker process does."""

    def __init__(self, supervisor: Channel, opener: Opener) -> None:
        self._supervisor = supervisor
        self._opener = opener
        self._policy = Policy()
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._counts: Counter[type[protocol.WorkerAnswer]] = Counter()

    async def run(self) -> None:
        """Serve until the supervisor is gone."""
        async with asyncio.TaskGroup() as tasks:
            try:
                await self._obey(tasks)
            except ChannelClosed:
                log.info("supervisor.gone")
            except (ChannelMisused, protocol.Malformed) as error:
                # It is of another version: the one that it starts next may fit.
                log.warning("supervisor.misspoke", reason=str(error))
            for worker in self._workers.values():
                worker.cancel()

    # The supervisor -----------------------------------------------------------

    async def _obey(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            payload, fds = await self._supervisor.receive()
            try:
                request = protocol.decode_supervisor_request(payload)
                answer = self._carry_out(request, fds, tasks)
            finally:
                close_all(fds)
            await self._supervisor.send(protocol.encode(answer))

    def _carry_out(
        self,
        request: protocol.SupervisorRequest,
        fds: list[int],
        tasks: asyncio.TaskGroup,
    ) -> protocol.SupervisorAnswer:
        try:
            match request:
                case protocol.Configure():
                    self._policy.configure(
                        request.ports, request.resolvers, request.stores
                    )
                case protocol.Attach():
                    self._attach(request.worker, _channel(fds), tasks)
                case protocol.Grant():
                    self._policy.grant(request.worker, request.hosts)
                case protocol.Revoke():
                    self._policy.revoke(request.worker, request.host)
                case protocol.ListAttached():
                    there = (n for n, task in self._workers.items() if not task.done())
                    counts = (self._counts[kind] for kind in _COUNTED)
                    return protocol.Attached(request.id, tuple(there), *counts)
        except BrokerRefused as error:
            return refused(request.id, error)
        return protocol.Done(request.id)

    def _attach(self, name: str, channel: Channel, tasks: asyncio.TaskGroup) -> None:
        if name in self._workers:
            self._workers[name].cancel()
        self._policy.attach(name)
        task = tasks.create_task(self._serve(name, channel))
        # Not in _serve: a task that is cancelled before its first step never runs.
        task.add_done_callback(lambda _: channel.close())
        self._workers[name] = task

    # Workers ------------------------------------------------------------------

    async def _serve(self, name: str, channel: Channel) -> None:
        """Answer a worker until it is gone or misbehaves."""
        last_id = -1
        try:
            while True:
                payload, fds = await channel.receive()
                close_all(fds)
                requests = protocol.decode_requests(payload)
                last_id = _checked(requests, last_id)
                answers, opened = self._answer(name, requests)
                try:
                    await channel.send(protocol.encode_batch(answers), opened)
                finally:
                    close_all(opened)
        except ChannelClosed:
            log.info("worker.gone", worker=name)
        except (Replayed, ChannelMisused, protocol.Malformed) as error:
            log.warning("worker.dropped", worker=name, reason=str(error))
        except Exception:  # one worker's fault must not be another's
            log.exception("worker.fault", worker=name)

    def _answer(
        self, name: str, requests: Sequence[protocol.WorkerRequest]
    ) -> tuple[list[protocol.WorkerAnswer], list[int]]:
        """Return the answers to a batch, and the descriptors of what was opened."""
        decisions = [self._policy.decide(name, request) for request in requests]
        openings = [d for d in decisions if isinstance(d, Opening)]
        results = iter(self._opener.open(openings))
        answers: list[protocol.WorkerAnswer] = []
        opened: list[int] = []
        for request, decision in zip(requests, decisions, strict=True):
            if not isinstance(decision, Opening):
                answers.append(decision)
                continue
            result = next(results)
            answers.append(_told(request.id, decision, result))
            if isinstance(result, int):
                opened.append(result)
        self._counts.update(map(type, answers))
        return answers, opened


def _told(number: int, opening: Opening, result: Result) -> protocol.WorkerAnswer:
    source = None if isinstance(opening, Resolver) else opening.source
    if isinstance(result, Failed):
        return protocol.Unavailable(number, result.errno, result.reason, source)
    return protocol.Opened(number, source)


def _checked(requests: Sequence[protocol.WorkerRequest], last_id: int) -> int:
    """Return the id of the last request.

    Raises:
        Replayed: an id is not greater than the one before it: the request was
            sent again by somebody, or the worker has lost count.
    """
    for request in requests:
        if request.id <= last_id:
            message = f"request {request.id} after {last_id}"
            raise Replayed(message)
        last_id = request.id
    return last_id


def _channel(fds: list[int]) -> Channel:
    """Take over the one descriptor that came with a request.

    Raises:
        BrokerRefused: there is not exactly one, or it is no channel.
    """
    if len(fds) != 1:
        raise BrokerRefused("malformed", "one descriptor must come with it")
    try:
        sock = socket.socket(fileno=fds[0])
    except OSError:
        raise BrokerRefused("malformed", "the descriptor is no socket") from None
    fds.clear()
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        sock.close()
        raise BrokerRefused("malformed", "the descriptor is no channel")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_ANSWERS)
    return Channel(sock)


async def _main(channel_fd: int) -> None:
    supervisor = Channel(socket.socket(fileno=channel_fd))
    opener = Opener()
    try:
        await Broker(supervisor, opener).run()
    finally:
        opener.close()
        supervisor.close()
    log.info("broker.ended")


def main() -> None:
    """Run the broker on the channel it inherited."""
    parser = argparse.ArgumentParser(description="The socket broker; not for shells.")
    parser.add_argument("--channel-fd", type=int, required=True)
    arguments = parser.parse_args()
    logging.configure(process="broker")
    asyncio.run(_main(arguments.channel_fd))


if __name__ == "__main__":
    main()
