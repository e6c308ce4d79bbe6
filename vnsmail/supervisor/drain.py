"""Addresses that a host has no more, until nothing is said there.

Rules of this file: nobody else waits for it: the lock of whoever changes hosts is held
only while the network is; what lingers is in no file, so a supervisor that starts anew
removes it at once.
"""

import asyncio

from vnsmail.channel import ChannelClosed
from vnsmail.directory import Directory
from vnsmail.engines import protocol as engine
from vnsmail.errors import VnsmailError
from vnsmail.log import logger
from vnsmail.model import HostName
from vnsmail.supervisor.network import Network
from vnsmail.supervisor.services import Services

PATIENCE = 60.0
"""Seconds for what is being said, unless told."""

log = logger("hosts")


class Drain:
    """Waits for the end of what is said at addresses that linger, and removes them."""

    def __init__(
        self,
        directory: Directory,
        services: Services,
        network: Network,
        changing: asyncio.Lock,
    ) -> None:
        self._directory = directory
        self._services = services
        self._network = network
        self._changing = changing

    async def run(self, name: HostName, seconds: float = PATIENCE) -> None:
        """Wait until nothing is said at the addresses that linger; remove them then.

        Raises:
            VnsmailError: they cannot be removed now.
        """
        lingering = self._network.lingering.get(name, ())
        gone = tuple(str(each.address) for each in lingering)
        if not gone:
            return
        try:
            await self._services.asked(
                name, lambda n: engine.Leave(n, name, gone, seconds)
            )
        except (VnsmailError, ChannelClosed) as error:
            # It is not served, so nothing is said.
            log.info("host.not_drained", host=name, reason=str(error))
        await asyncio.shield(self._end(name))
        log.info("host.drained", host=name, addresses=gone)

    async def _end(self, name: HostName) -> None:
        async with self._changing:
            if self._network.lingering.pop(name, None) is None:
                return
            hosts = self._directory.hosts()
            host = next((each for each in hosts if each.name == name), None)
            if host is None:
                return
            actual = await self._network.observe(name)
            await self._network.apply(self._network.steps(hosts, actual, name))
            await self._network.guard_host(host, hosts)
