"""Collecting what is measured: from workers, broker, kernel and our own counts."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from vnsmail.directory import Directory
from vnsmail.errors import VnsmailError
from vnsmail.model import HostName
from vnsmail.supervisor import exposition
from vnsmail.supervisor.auditing import Auditing
from vnsmail.supervisor.control import ProcessStatus
from vnsmail.supervisor.exposition import Facts
from vnsmail.supervisor.network import Network
from vnsmail.supervisor.services import Services


class Metrics:
    """Everything of one root that is measured.

    Args:
        directory: its hosts.
        services: its processes.
        network: its guard.
        broken: hosts whose network could not be made.
        drifts: how often others changed a host's network.
    """

    def __init__(
        self,
        directory: Directory,
        services: Services,
        network: Network,
        broken: Callable[[], Mapping[HostName, str]],
        drifts: Mapping[str, int],
        auditing: Auditing | None = None,
    ) -> None:
        self._directory = directory
        self._services = services
        self._network = network
        self._broken = broken
        self._drifts = drifts
        self._auditing = auditing

    async def text(self) -> str:
        """Return all of it in Prometheus' text format."""
        reports, guards, sockets = await asyncio.gather(
            self._services.reports(),
            self._network.counters(self._directory.hosts()),
            self._sockets(),
        )
        troubles = self._services.troubles({report.owner for report in reports})
        processes = self._services.processes()
        found: Mapping[str, str] = {}
        audited = None
        if self._auditing is not None:
            processes += self._auditing.processes()
            found, audited = self._auditing.problems(), self._auditing.state()
        facts = Facts(
            now=time.time(),
            owners=reports,
            problems=frozenset((*troubles, *self._broken(), *found)),
            processes=processes,
            memory=dict(_memory(processes)),
            drifts=self._drifts,
            guards=None if guards is None else {str(h): g for h, g in guards.items()},
            sockets=sockets,
            audit=audited,
        )
        # Some 100 ms of work with a thousand hosts.
        return await asyncio.to_thread(exposition.text, facts)

    async def _sockets(self) -> dict[str, int] | None:
        try:
            return await self._services.socket_counts()
        except VnsmailError:
            return None


def _memory(processes: Iterable[ProcessStatus]) -> Iterable[tuple[str, int]]:
    for name, pid in [("supervisor", "self"), *((p.name, p.pid) for p in processes)]:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        for line in status.splitlines():
            if line.startswith("VmRSS:"):
                yield name, int(line.split()[1]) * 1024
