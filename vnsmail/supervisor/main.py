"""The supervisor: checks, starts, serves the control socket, ends.

Rules of this file: it imports no child's code; children are started by exec and told
what they need over their channels. Plain asyncio, for pyroute2's sockets do not work
once uvloop is installed; nothing here is in the path of a message but its hand-over.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from vnsmail import log as logging
from vnsmail.directory import Directory
from vnsmail.engines.protocol import LocalMail, QueueEntry
from vnsmail.errors import BadInput, NotFound, NotPrivileged, VnsmailError
from vnsmail.events.file import EventFile
from vnsmail.model import (
    MACHINE,
    Owner,
    host_name,
    ip_address,
)
from vnsmail.settings import Layout, Settings, event_file
from vnsmail.supervisor import control, control_server, drop_server
from vnsmail.supervisor.auditing import Auditing
from vnsmail.supervisor.desk import Desk
from vnsmail.supervisor.drops import Drops
from vnsmail.supervisor.engines import Engines
from vnsmail.supervisor.folders import (
    Account,
    check_keys,
    empty_folder,
    lock,
    prepare,
    prepare_owner,
    worker_account,
)
from vnsmail.supervisor.hosts import Hosts, machine_service
from vnsmail.supervisor.lifecycle import Lifecycle
from vnsmail.supervisor.mending import Mending
from vnsmail.supervisor.metrics import Metrics
from vnsmail.supervisor.metrics_server import MetricsServer
from vnsmail.supervisor.moving import Moving
from vnsmail.supervisor.network import Network
from vnsmail.supervisor.notify import Manager, manager
from vnsmail.supervisor.people import People
from vnsmail.supervisor.privileges import NET_ADMIN, SYS_ADMIN, effective
from vnsmail.supervisor.queue_moves import QueueMoves
from vnsmail.supervisor.services import MACHINE_WORKER, Services

RESOLV_CONF = Path("/etc/resolv.conf")

MAX_RESOLVERS = 3
"""Name servers that resolv.conf(5) can name (MAXNS)."""

log = logging.logger("supervisor")


def check(layout: Layout, settings: Settings) -> Account | None:
    """Find out what would keep a supervisor from starting; returns the workers' account.

    Raises:
        NotPrivileged: the network cannot be changed by this process.
        SettingsError, StateUnusable, DaemonRunning: as their names say.
    """
    held = effective()
    if not (held >> NET_ADMIN & 1 and held >> SYS_ADMIN & 1):
        raise NotPrivileged(
            "start vnsmail",
            "run it as root; to try it as an ordinary user: `vnsmail lab up`",
        )
    account = worker_account(settings, layout.settings_file)
    check_keys(settings, layout.settings_file)
    prepare(layout)
    lock(layout).close()
    return account


def run(layout: Layout, settings: Settings, ready: Callable[[], None]) -> None:
    """Be the supervisor of a root until SIGTERM, SIGINT or a request to shut down.

    Args:
        layout: where the files lie.
        settings: vnsmail.toml.
        ready: called once everything runs and every host is served or known not to be.

    Raises:
        VnsmailError: it cannot start; everything started is ended again.
    """
    account = check(layout, settings)
    told = manager()
    with lock(layout):
        logging.configure(process="supervisor")
        directory = Directory(layout.directory_db)
        try:
            supervisor = _Supervisor(layout, settings, account, directory, told)
            asyncio.run(supervisor.run(ready))
        except BaseExceptionGroup as group:
            raise _cause(group) from None
        finally:
            directory.close()
            layout.control_socket.unlink(missing_ok=True)
            layout.drop_socket.unlink(missing_ok=True)


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what a person can do something about, out of all that went wrong."""
    for error in group.exceptions:
        found = _cause(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, VnsmailError):
            return found
    return group


def resolvers(settings: Settings) -> tuple[str, ...]:
    """Return the name servers to ask: those of the settings, else resolv.conf(5).

    One with a scope (fe80::1%eth0) is passed over: the broker asks from no link.
    """
    if settings.dns.servers:
        return tuple(str(server) for server in settings.dns.servers)
    try:
        lines = RESOLV_CONF.read_text().splitlines()
    except OSError:
        return ()
    found: list[str] = []
    for line in lines:
        keyword, *values = line.split() or [""]
        if keyword == "nameserver" and values:
            with contextlib.suppress(BadInput):
                found.append(str(ip_address(values[0])))
    return tuple(found[:MAX_RESOLVERS])


class _Supervisor:
    def __init__(
        self,
        layout: Layout,
        settings: Settings,
        account: Account | None,
        directory: Directory,
        told: Manager,
    ) -> None:
        self._layout = layout
        self._settings = settings
        self._account = account
        self._manager = told
        self._directory = directory
        where = event_file(layout, settings)
        self._events = EventFile(where) if where is not None else None
        self._services = Services(
            settings,
            resolvers(settings),
            self._worker_options,
            self._events.pipe if self._events is not None else None,
            Engines(layout),
        )
        network = Network(layout.instance, settings.smtp.port)
        self._hosts = Hosts(layout, directory, self._services, network, account)
        self._people = People(directory)
        self._mending = Mending(self._hosts.ward(), layout.instance, settings.network)
        self._lifecycle = Lifecycle(
            self._hosts, layout, directory, self._services, network
        )
        self._moving = Moving(
            self._hosts, layout, directory, self._services, network, account
        )
        self._queue_moves = QueueMoves(self._services)
        self._drops = Drops(
            layout,
            directory,
            self._services,
            settings.machine.name,
            settings.smtp.max_message_size,
        )
        self._auditing = Auditing(
            directory,
            layout.instance,
            settings,
            self._audit_options(),
            self._events.pipe if self._events is not None else None,
        )
        self._metrics = Metrics(
            directory,
            self._services,
            network,
            lambda: self._hosts.broken,
            self._mending.counts,
            self._auditing,
        )
        self._ending = asyncio.Event()

    def _worker_options(self, worker: str) -> Sequence[str]:
        """Return what the launcher does to a worker before it runs.

        It sees the folders of what it may own, the machine's or the hosts', and no
        other state.
        """
        layout = self._layout
        folder = (
            layout.owner_folder(Owner(MACHINE))
            if worker == MACHINE_WORKER
            else layout.hosts
        )
        options = ["--empty-network", "--reveal", f"{folder}:rw"]
        if self._settings.lab.tls_keys:
            options += ["--reveal", f"{self._settings.lab.tls_keys}:rw"]
        return self._user_options(*options)

    def _audit_options(self) -> Sequence[str]:
        """It sees Python and an empty folder."""
        folder = empty_folder(self._layout, self._account)
        return self._user_options("--empty-network", "--reveal", f"{folder}:rw")

    def _user_options(self, *options: str) -> Sequence[str]:
        if self._account is not None:
            return [*options, "--user", str(self._account.uid)]
        return list(options)

    async def run(self, ready: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        loop.add_signal_handler(signal.SIGHUP, self._reopen_log)
        prepare_owner(self._layout, Owner(MACHINE), self._account)
        told = MetricsServer(self._metrics.text)
        async with told.listening(self._settings.metrics.where):
            with control_server.listen(self._layout) as sock:
                await self._drops.prepare()
                with drop_server.listen(self._layout) as drop_sock:
                    async with self._manager.watched():
                        await self._run(sock, drop_sock, ready)
        if self._events is not None:
            await asyncio.to_thread(self._events.close)
        log.info("supervisor.ended")

    def _reopen_log(self) -> None:
        """Somebody has rotated the event log (SIGHUP)."""
        if self._events is not None:
            self._events.reopen()

    async def _run(
        self, sock: socket.socket, drop_sock: socket.socket, ready: Callable[[], None]
    ) -> None:
        async with asyncio.TaskGroup() as tasks:
            children = tasks.create_task(self._services.run())
            try:
                await self._start(ready)
                beside = [
                    tasks.create_task(control_server.serve(sock, self._handle)),
                    tasks.create_task(self._hosts.mend()),
                    tasks.create_task(self._queue_moves.finish()),
                    tasks.create_task(self._mending.run()),
                    tasks.create_task(self._auditing.run()),
                    tasks.create_task(drop_server.serve(drop_sock, self._drops)),
                    tasks.create_task(self._drops.run()),
                ]
                await self._ending.wait()
                for task in beside:
                    task.cancel()
            finally:
                self._manager.stopping()
                sock.close()
                drop_sock.close()
                self._services.stop()
                await children

    async def _start(self, ready: Callable[[], None]) -> None:
        await self._hosts.recover()
        starting = asyncio.ensure_future(self._services.ready())
        ending = asyncio.ensure_future(self._ending.wait())
        await asyncio.wait({starting, ending}, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if not starting.done():
            starting.cancel()
            return
        starting.result()
        machine = machine_service(self._layout, self._settings.machine)
        await self._services.serve_or_note(machine)
        await self._hosts.serve_all()
        log.info("supervisor.ready", root=str(self._layout.state), pid=os.getpid())
        broken = len(self._hosts.broken)
        served = f"{len(self._services.owners())} owners served"
        self._manager.ready(f"{served}, {broken} hosts not" if broken else served)
        ready()

    # Requests ----------------------------------------------------------------

    async def _handle(  # noqa: C901, PLR0911, PLR0912  one line a request, like a table
        self, request: control.Request, fds: list[int], uid: int
    ) -> control.Answer:
        match request:
            case control.GetStatus():
                return await self._status()
            case control.CreateHost():
                return await self._hosts.create(request)
            case control.DestroyHost():
                return await self._hosts.destroy(request)
            case (
                control.ChangeHost()
                | control.ChangeAddresses()
                | control.RenameHost()
                | control.GetTally()
                | control.ExplainHost()
            ):
                return await self._lifecycle.handle(request)
            case control.PackHost():
                return await self._moving.pack(request)
            case control.UnpackHost():
                return await self._moving.unpack(request)
            case control.ApplyHosts():
                return await self._hosts.apply(request)
            case control.GetProgress():
                return self._hosts.progress
            case control.GetGuard():
                return await self._hosts.guard(request)
            case (
                control.SetCertificate()
                | control.RemoveCertificate()
                | control.GetCertificates()
            ):
                return await self._hosts.certificate(request)
            case control.AddLogin():
                user = self._people.user(request.address)
                return await self._drops.add_login(request, user)
            case control.RemoveLogin():
                return await self._drops.remove_login(request)
            case control.ListDkim():
                return self._hosts.dkim.listed(request)
            case control.ChangeDkim():
                return await self._hosts.change_keys(request)
            case control.Send():
                return await self._send(request, fds, uid)
            case control.ListQueue():
                return await self._list_queue(request)
            case control.MoveQueue():
                return await self._queue_moves.move(request)
            case control.FindQueue() | control.WorkQueue() | control.HoldPlace():
                return await Desk(self._services).handle(request)
            case control.WatchMail():
                return self._auditing.handle(request)
            case control.GetMetrics():
                return control.Measured(await self._metrics.text())
            case control.ShutDown():
                self._ending.set()
                return control.Done()
            case _:
                await self._hosts.refresh(self._people.change(request))
                return control.Done()

    async def _status(self) -> control.Status:
        reports = await self._services.reports()
        problems = self._services.troubles({report.owner for report in reports})
        return control.Status(
            pid=os.getpid(),
            root=str(self._layout.state),
            processes=self._services.processes() + self._auditing.processes(),
            owners=reports,
            problems=tuple(
                (problems | self._hosts.broken | self._auditing.problems()).items()
            ),
            watching=self._mending.watching,
            drifts=tuple(self._mending.drifts),
        )

    async def _send(
        self, request: control.Send, fds: list[int], uid: int
    ) -> control.Queued:
        if len(fds) != 1:
            raise BadInput("message", "", "exactly one descriptor must come with it")
        if not request.recipients:
            raise BadInput("recipient", "", "give at least one")
        if request.machine:
            owner, sender = MACHINE, request.sender
            sender = sender or f"root@{self._settings.machine.name}"
        else:
            owner, sender = self._people.sender(request.sender).host, request.sender
        mail = LocalMail(
            owner,
            sender,
            request.recipients,
            uid,
            priority=request.priority,
            require_tls=request.require_tls,
        )
        queue_id = await self._services.take(mail, fds[0])
        return control.Queued(owner, queue_id)

    async def _list_queue(self, request: control.ListQueue) -> control.QueueListed:
        known = self._services.owners()
        if request.owner is not None and request.owner not in known:
            host_name(request.owner)
            raise NotFound("virtual host", request.owner, "see `vnsmail host list`")
        entries: list[QueueEntry] = []
        for owner in known if request.owner is None else [request.owner]:
            entries += await self._services.list_queue(owner, request.limit)
            if self._services.engines is not None:
                entries += await self._services.engines.entries(owner)
        entries.sort(key=lambda entry: entry.envelope.received_at)
        return control.QueueListed(tuple(entries[: request.limit]))
