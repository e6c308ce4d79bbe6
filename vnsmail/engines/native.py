"""The native engine: a worker process that owns virtual hosts, or the machine.

``python -m vnsmail.engines.native --channel-fd N``, started by the supervisor through
supervisor/launch.py: without capabilities, in an empty network namespace.

Rules of this file: every socket comes from the broker; one owner's fault is that
owner's problem, told in its report, and touches no other; the loop is uvloop's and
nothing that waits for a disk runs in it.
"""

import argparse
import asyncio
import gc
import os
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import uvloop

from vnsmail import log as logging
from vnsmail.broker.client import SocketClient
from vnsmail.channel import Channel, ChannelClosed, MessageTooLong, close_all
from vnsmail.delivery.shares import Shares
from vnsmail.engines import protocol
from vnsmail.engines.owner import OwnerService
from vnsmail.errors import NotServed, VnsmailError
from vnsmail.events.pipe import EventPipe
from vnsmail.events.record import untold
from vnsmail.inbound.verifier import Verifier
from vnsmail.settings import Settings, from_json
from vnsmail.tls import keys

COMMIT_THREADS = 4
"""Threads that commit queues. A commit waits for the disk, not for the interpreter."""

LONGEST_END = 60
"""Seconds that a worker without a supervisor has to finish. It holds queues that the
next one is to have; then the kernel ends it, whatever it waits for. Nothing that was
acknowledged is lost by that."""

GARBAGE = 20_000
"""Objects that are made and not let go of before cycles among them are looked for."""

log = logging.logger("worker")


class Worker:
    """One worker process."""

    def __init__(
        self,
        channel: Channel,
        tasks: asyncio.TaskGroup,
        orphaned: Callable[[], object] = lambda: None,
    ) -> None:
        """Serve whoever is at the other end of ``channel``.

        ``orphaned`` is called when nobody is there any more.
        """
        self._channel = channel
        self._tasks = tasks
        self._orphaned = orphaned
        self._executor = ThreadPoolExecutor(COMMIT_THREADS, "commit")
        self._verifier = Verifier()
        self._owners: dict[str, OwnerService] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._sockets = SocketClient()
        self._shares = Shares()
        self._events = EventPipe()
        self._settings = Settings()
        self._resolvers: tuple[str, ...] = ()
        self._authorities = b""
        self._ending = asyncio.Event()

    async def run(self) -> None:
        """Carry out what the supervisor asks until it says stop, or is gone."""
        listening = self._tasks.create_task(self._listen())
        await self._ending.wait()
        listening.cancel()
        await asyncio.gather(*(owner.close() for owner in self._owners.values()))
        self._sockets.close()
        self._events.close()
        self._verifier.close()
        self._executor.shutdown()
        log.info("worker.ended")

    def end(self) -> None:
        """Finish what is being said, leave the rest in the queues, and end."""
        self._ending.set()

    async def _listen(self) -> None:
        try:
            while True:
                payload, fds = await self._channel.receive()
                request = protocol.decode_request(payload)
                self._tasks.create_task(self._answer(request, fds))
        except ChannelClosed:
            log.warning("supervisor.gone")
            self._orphaned()
            self.end()

    async def _answer(self, request: protocol.Request, fds: list[int]) -> None:
        answer: protocol.Answer
        try:
            answer = await self._handle(request, fds)
        except VnsmailError as error:
            answer = protocol.Failed(request.id, str(error), error.exit_code)
        except Exception as error:  # one request's fault is not the worker's end
            log.exception("request.fault", request=type(request).__name__)
            answer = protocol.Failed(request.id, f"internal fault: {error!r}")
        finally:
            close_all(fds)
        try:
            await self._say(answer)
        except ChannelClosed:
            self.end()

    async def _say(self, answer: protocol.Answer) -> None:
        try:
            await self._channel.send(protocol.encode(answer))
        except MessageTooLong as error:
            await self._channel.send(
                protocol.encode(protocol.Failed(answer.id, str(error)))
            )

    async def _handle(  # noqa: C901, PLR0911, PLR0912  one line a request, like a table
        self, request: protocol.Request, fds: list[int]
    ) -> protocol.Answer:
        match request:
            case protocol.Configure():
                return self._configure(request)
            case protocol.UseBroker():
                self._use_broker(fds)
            case protocol.UseEvents():
                self._events.use(os.dup(fds[0]))
            case protocol.Assign():
                await self._assign(request.facts)
            case protocol.Release():
                await self._release(request.owner)
            case protocol.Inject():
                owner = self._owner(request.mail.owner)
                queue_id = await owner.inject(fds[0], request.mail)
                return protocol.Injected(request.id, queue_id)
            case protocol.Leave():
                left = self._owner(request.owner).left
                await left(request.addresses, request.seconds)
            case protocol.Explain():
                explain = self._owner(request.owner).explain
                return await explain(request.id, request.address)
            case protocol.Tell():
                tally = self._owner(request.owner).tally()
                return protocol.Told(request.id, request.owner, tally)
            case protocol.GiveBack():
                owner = self._owner(request.mail.owner)
                await owner.give_back(fds[0], request.mail, request.reason)
            case protocol.Report():
                reports = [await owner.report() for owner in self._owners.values()]
                return protocol.Reported(request.id, tuple(reports))
            case protocol.ListQueue():
                entries = await self._owner(request.owner).list_queue(request.limit)
                return protocol.QueueListed(request.id, entries)
            case protocol.FindQueue():
                return await self._found(request)
            case protocol.WorkQueue():
                worked = await self._owner(request.owner).desk().work(request)
                return protocol.QueueWorked(request.id, *worked)
            case protocol.HoldPlace():
                return await self._hold(request)
            case protocol.BeginMove():
                return await self._owner(request.owner).mover().begin(request)
            case protocol.CopyOut():
                copied = await self._owner(request.owner).mover().copy(request, fds[0])
                return protocol.CopiedOut(request.id, copied)
            case protocol.Adopt():
                adopted = await self._owner(request.owner).adopt(request, fds[0])
                return protocol.Injected(request.id, adopted)
            case protocol.EndMove():
                await self._owner(request.owner).mover().end(request.queue_id)
            case protocol.Stop():
                self.end()
        return protocol.Done(request.id)

    async def _found(self, request: protocol.FindQueue) -> protocol.Answer:
        desk = self._owner(request.owner).desk()
        entries, place = await desk.find(request)
        header = ""
        if request.header and entries:
            header = await desk.header(entries[0].envelope.id)
        return protocol.QueueFound(request.id, entries, place, header)

    async def _hold(self, request: protocol.HoldPlace) -> protocol.Answer:
        desk = self._owner(request.owner).desk()
        changed = False
        if request.release and not request.look_only:
            changed = await desk.release_place(request.place)
        elif not request.look_only:
            changed = await desk.hold_place(request.place, request.reason)
        return protocol.PlaceHeld(request.id, changed, await desk.holds())

    def _configure(self, request: protocol.Configure) -> protocol.Answer:
        self._settings = from_json(request.settings)
        self._resolvers = request.resolvers
        self._authorities = request.authorities
        if folder := self._settings.lab.tls_keys:
            keys.tell(f"{folder}/{request.worker}.keys")
        logging.configure(process=request.worker)
        return protocol.Done(request.id)

    def _use_broker(self, fds: list[int]) -> None:
        sock = socket.socket(fileno=os.dup(fds[0]))
        self._sockets.replace_channel(Channel(sock))

    def _owner(self, name: str) -> OwnerService:
        if name not in self._owners:
            raise NotServed(name, "its worker has not taken it yet")
        return self._owners[name]

    async def _assign(self, facts: protocol.OwnerFacts) -> None:
        async with self._locks.setdefault(facts.owner, asyncio.Lock()):
            serving = self._owners.get(facts.owner)
            if serving is not None and serving.accepts(facts):
                await serving.update(facts)
                return
            if serving is not None:
                await self._close(facts.owner)
            service = OwnerService(
                facts,
                self._settings,
                self._resolvers,
                self._sockets,
                self._executor,
                self._verifier,
                self._shares,
                self._events.tell if self._events.on else untold,
                self._authorities,
            )
            await service.open()
            self._owners[facts.owner] = service

    async def _release(self, owner: str) -> None:
        async with self._locks.setdefault(owner, asyncio.Lock()):
            await self._close(owner)

    async def _close(self, owner: str) -> None:
        service = self._owners.pop(owner, None)
        if service is not None:
            await service.close()


async def _main(channel_fd: int) -> None:
    channel = Channel(socket.socket(fileno=channel_fd), large=True)
    async with asyncio.TaskGroup() as tasks:
        worker = Worker(channel, tasks, lambda: signal.alarm(LONGEST_END))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, worker.end)
        await worker.run()


def main() -> None:
    """Run a worker on the channel it inherited."""
    parser = argparse.ArgumentParser(description="A vnsmail worker; not for the shell.")
    parser.add_argument("--channel-fd", type=int, required=True)
    arguments = parser.parse_args()
    logging.configure(process="worker")
    # What is loaded by now stays. And nearly all of a message goes by itself, as nothing
    # of it refers to itself: to look for what does cost a fifth of the CPU of receiving.
    gc.freeze()
    gc.set_threshold(GARBAGE, 50, 50)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(arguments.channel_fd))


if __name__ == "__main__":
    main()
