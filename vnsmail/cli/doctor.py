"""``vnsmail doctor``: is all as it should be?"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import apsw
import typer

from vnsmail import database, settings
from vnsmail.cli import client, render
from vnsmail.cli.dkim_records import findings as dkim_findings
from vnsmail.cli.doctor_names import look_up
from vnsmail.cli.options import AsJson, layout_of
from vnsmail.cli.render import as_json, progress, remark
from vnsmail.directory import open_to_read
from vnsmail.errors import DaemonNotRunning, VnsmailError
from vnsmail.lab import start as lab
from vnsmail.model import HostName, IPAddress, Owner, VirtualHost, ip_address
from vnsmail.queue import tables
from vnsmail.settings import Layout, Settings
from vnsmail.supervisor import control, examine
from vnsmail.supervisor.examine import Finding

BROKER = "broker"
RUNNING = "running"


def doctor(
    context: typer.Context,
    reach: Annotated[
        str | None,
        typer.Option(
            help="Address of a mail server to connect to from every host's own address; "
            "without it nobody outside hears of this."
        ),
    ] = None,
    json: AsJson = False,
    inside: Annotated[bool, typer.Option("--inside-lab", hidden=True)] = False,
) -> None:
    """Look whether all is as it should be; exit 1 if anything is not, or is unknown.

    It needs root, and works while vnsmail is down too: then what can be seen without it
    is looked at.
    """
    layout = layout_of(context)
    target = None if reach is None else ip_address(reach)
    found = None if inside else lab.running(layout)
    if found is not None:
        # Its network and its processes are to be seen from inside only.
        raise typer.Exit(
            _within(lab.enter_command(found, ""), layout, reach, json=json)
        )
    findings: list[Finding] = []
    with progress("doctor") as tell:
        looks = list(_Patient(layout, target, in_lab=inside).looks())
        for number, (what, look) in enumerate(looks):
            if sys.stderr.isatty():  # elsewhere the findings themselves are enough
                tell(what, number, len(looks))
            findings += look()
    if json:
        as_json(findings)
    else:
        _show(findings)
    if any(finding.verdict != "ok" for finding in findings):
        raise typer.Exit(1)


def _within(enter: list[str], layout: Layout, reach: str | None, *, json: bool) -> int:
    command = [*enter, sys.executable, "-P", "-m", "vnsmail.cli.app"]
    command += ["--root", str(layout.state), "doctor", "--inside-lab"]
    sys.stdout.flush()
    done = subprocess.run(  # noqa: S603  nsenter(1) and our own module
        [
            *command,
            *(["--json"] if json else []),
            *(["--reach", reach] if reach is not None else []),
        ],
        check=False,
    )
    return done.returncode


class _Patient:
    """A root, and what was learnt of it so far."""

    def __init__(
        self, layout: Layout, target: IPAddress | None = None, *, in_lab: bool = False
    ) -> None:
        self._layout = layout
        self._target = target
        self._in_lab = in_lab
        self._settings = Settings()
        self._status: control.Status | None = None
        self._hosts: tuple[VirtualHost, ...] = ()
        self._readable = False

    def looks(self) -> Iterator[tuple[str, Callable[[], list[Finding]]]]:
        """Give what is looked at, and how, in order."""
        for name, look in (
            ("settings", self._look_at_settings),
            ("daemon", self._look_at_daemon),
            ("directory", self._look_at_directory),
            ("processes", self._look_at_processes),
            ("network", self._look_at_network),
            ("addresses", self._look_at_doors),
            ("hosts", self._look_at_hosts),
            ("certificates", self._look_at_certificates),
            ("guard", self._look_at_guard),
            ("names", self._look_at_names),
            ("reach", self._look_outside),
            ("DKIM", self._look_at_keys),
            ("machine", self._look_at_machine),
        ):
            yield name, lambda look=look: list(look())  # type: ignore[misc]

    def _look_at_settings(self) -> Iterator[Finding]:
        file = str(self._layout.settings_file)
        try:
            self._settings = settings.load(self._layout.settings_file)
        except VnsmailError as error:
            yield Finding("settings", file, "wrong", str(error), "mend the file")
        else:
            yield Finding("settings", file, "ok", "readable")

    def _look_at_daemon(self) -> Iterator[Finding]:
        try:
            status = client.ask(self._layout, control.GetStatus(), control.Status)
        except DaemonNotRunning:
            yield Finding("daemon", "vnsmail", "wrong", "not running", "vnsmail up")
        except VnsmailError as error:
            yield examine.failed("daemon", "vnsmail", error)
        else:
            self._status = status
            yield Finding("daemon", "vnsmail", "ok", f"process {status.pid}")

    def _look_at_directory(self) -> Iterator[Finding]:
        path = str(self._layout.directory_db)
        try:
            with open_to_read(self._layout.directory_db) as directory:
                self._hosts = directory.hosts()
                unfinished = directory.unfinished()
        except VnsmailError as error:
            yield Finding("directory", path, "wrong", str(error), "see the text")
            return
        self._readable = True
        yield Finding("directory", path, "ok", f"{len(self._hosts)} hosts")
        for name in unfinished:
            text, remedy = "half made or destroyed", f"vnsmail host destroy {name}"
            yield Finding("directory", name, "wrong", text, remedy)

    def _look_at_processes(self) -> Iterator[Finding]:
        if self._status is None:
            return
        for process in self._status.processes:
            yield from self._look_at_process(process, self._status.pid)

    def _look_at_process(
        self, process: control.ProcessStatus, supervisor: int
    ) -> Iterator[Finding]:
        from vnsmail.supervisor import probe  # noqa: PLC0415  as in daemon.py

        name = process.name
        if process.state != RUNNING or process.pid is None:
            text = f"{process.state}, started again {process.restarts} times"
            yield Finding("processes", name, "wrong", text, "see why in the log")
            return
        try:
            facts = probe.process(process.pid, supervisor)
        except OSError as error:
            yield examine.failed("processes", name, error)
            return
        if facts is None:
            text = f"process {process.pid} is not to be seen from here"
            yield Finding("processes", name, "unknown", text, "look again")
            return
        told = examine.restarted(name, process.restarts, facts.age)
        yield told or Finding("processes", name, "ok", f"process {process.pid}")
        if name == BROKER:
            yield examine.privileges(name, facts, probe.broker_capabilities())
        else:
            yield examine.confinement(name, facts)
        # The broker keeps no socket, and what it opens passes through its hands.
        yield examine.descriptors(name, facts, len(process.owners))

    def _look_at_network(self) -> Iterator[Finding]:
        from vnsmail.supervisor import probe  # noqa: PLC0415

        if self._readable:
            yield from probe.network(self._layout, self._hosts)
        if self._status is not None:
            yield from examine.drift(self._status.drifts, time.time())

    def _look_at_doors(self) -> Iterator[Finding]:
        from vnsmail.supervisor import probe  # noqa: PLC0415

        served = self._status is not None
        port = self._settings.smtp.port
        yield from probe.doors(self._layout, self._hosts, port, served=served)

    def _look_at_hosts(self) -> Iterator[Finding]:
        names = [host.name for host in self._hosts]
        try:
            there = os.listdir(self._layout.hosts)
        except FileNotFoundError:
            there = []
        except OSError as error:
            yield examine.failed("orphans", "folders", error)
            return
        if self._readable:
            yield from examine.folders(there, names, str(self._layout.hosts))
        for name in names:
            if self._status is not None:
                yield from _service(name, self._status)
            elif name in there:
                yield self._queue(name)

    def _queue(self, name: HostName) -> Finding:
        """Look at a queue that no worker has open."""
        path = self._layout.owner_folder(Owner(name)) / "queue.db"
        if not path.exists():
            return Finding("queue", name, "ok", "not used yet")
        try:
            connection = database.open_read_only(path, tables.VERSION)
            try:
                ((count,),) = connection.execute("SELECT count(*) FROM message")
            finally:
                connection.close()
        except (apsw.Error, OSError) as error:
            text = f"{path}: {database.reason(error)}"
            return Finding("queue", name, "wrong", text, "free it, or put back a copy")
        return Finding("queue", name, "ok", f"{count} messages")

    def _look_at_certificates(self) -> Iterator[Finding]:
        from vnsmail.supervisor.certificates import (  # noqa: PLC0415
            Certificates,
            judged,
        )

        certificates = Certificates(self._layout)
        for host in self._hosts:
            yield from judged(host.name, certificates.listed(host.name), time.time())

    def _look_at_guard(self) -> Iterator[Finding]:
        if self._status is None:
            return
        for host in self._hosts:
            request = control.GetGuard(host.name)
            try:
                found = client.ask(self._layout, request, control.Guarded)
            except VnsmailError as error:
                yield examine.failed("guard", host.name, error)
                continue
            yield examine.guarded(
                host.name,
                found.problem,
                found.dropped_packets,
                found.borrowed_packets,
            )

    def _look_outside(self) -> Iterator[Finding]:
        from vnsmail.supervisor import probe  # noqa: PLC0415

        if self._target is not None:
            port = self._settings.smtp.port
            yield from probe.reach(self._layout, self._hosts, self._target, port)

    def _look_at_names(self) -> Iterator[Finding]:
        from vnsmail.supervisor.main import resolvers  # noqa: PLC0415

        yield from look_up(self._hosts, resolvers(self._settings))

    def _look_at_keys(self) -> Iterator[Finding]:
        from vnsmail.supervisor.main import resolvers  # noqa: PLC0415

        if self._status is None:
            return
        try:
            keys = client.ask(self._layout, control.ListDkim(), control.DkimKeys).keys
        except VnsmailError as error:
            yield examine.failed("dkim", "keys", error)
            return
        yield from dkim_findings(keys, resolvers(self._settings))

    def _look_at_machine(self) -> Iterator[Finding]:
        from vnsmail.supervisor import probe  # noqa: PLC0415

        yield from probe.machine(self._layout)
        if not self._in_lab:  # a lab has the clock of who tries it
            yield probe.clock(self._layout)


def _service(name: HostName, status: control.Status) -> Iterator[Finding]:
    """Judge what the supervisor says of a host."""
    report = next((r for r in status.owners if r.owner == name), None)
    problem = dict(status.problems).get(name, "")
    remedy = f"vnsmail host show {name}"
    if report is None or problem:
        yield Finding("served", name, "wrong", problem or "by no worker", remedy)
        return
    how = (
        "suspended: nothing is sent or received" if report.suspended else "by a worker"
    )
    yield Finding("served", name, "ok", how)
    if report.problem:
        yield Finding("queue", name, "wrong", report.problem, remedy)
    else:
        yield Finding("queue", name, "ok", f"{report.messages} messages")


def _show(findings: list[Finding]) -> None:
    for finding in findings:
        render.finding(finding.verdict, finding.check, finding.subject, finding.text)
        if finding.remedy:
            render.change(" ", f"        what to do: {finding.remedy}")
    counts = {
        v: sum(1 for f in findings if f.verdict == v) for v in ("wrong", "unknown")
    }
    if any(counts.values()):
        remark(
            f"{counts['wrong']} wrong, {counts['unknown']} unknown, of {len(findings)}"
        )
    else:
        remark(f"all is well: {len(findings)} checks")
