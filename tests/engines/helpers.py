"""An owner's service without a broker: sockets are Unix sockets, or errors."""

import asyncio
import errno
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from tests.inbound.helpers import Client
from vnsmail.broker.client import SocketClient
from vnsmail.engines.owner import OwnerService
from vnsmail.engines.protocol import OwnerFacts
from vnsmail.errors import BrokerGone, SourceUnavailable
from vnsmail.settings import Settings


class FakeSockets:
    """Listens on Unix sockets; has no source to send from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.errors: dict[str, Exception] = {}
        """What happens instead of listening, by address."""
        self.asked: list[tuple[str, str, int]] = []
        self.listening: dict[str, socket.socket] = {}

    def path(self, address: str) -> str:
        return str(self._folder / f"door-{address}")

    async def listener(self, owner, address, port):
        self.asked.append((owner, address, port))
        if address in self.errors:
            raise self.errors[address]
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(self.path(address))
        sock.listen(1024)
        self.listening[address] = sock
        return sock

    async def connectable(self, owner, family):
        raise SourceUnavailable(owner, "10.77.0.11", errno.EADDRNOTAVAIL)

    async def resolver(self, transport, server):
        raise BrokerGone


class Lodging:
    """Services in one folder, one after the other, and clients of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sockets = FakeSockets(folder)
        self.executor = ThreadPoolExecutor(2)
        self.clients: list[Client] = []
        self.open: list[OwnerService] = []

    def facts(self, **changes: Any) -> OwnerFacts:
        usual: dict[str, Any] = {
            "owner": "alpha.example",
            "name": "alpha.example",
            "folder": str(self.folder / "host"),
            "addresses": ("10.77.0.11", "fd77::11"),
            "domains": ("alpha.example",),
            "users": ("ann", "cy"),
        }
        return OwnerFacts(**(usual | changes))

    def service(self, settings: Settings | None = None, **changes: Any) -> OwnerService:
        return OwnerService(
            self.facts(**changes),
            settings or Settings(),
            (),
            cast("SocketClient", self.sockets),
            self.executor,
        )

    async def opened(self, **changes: Any) -> OwnerService:
        service = self.service(**changes)
        await service.open()
        self.open.append(service)
        return service

    def client(self, address: str = "10.77.0.11") -> Client:
        client = Client(socket.socket(socket.AF_UNIX))
        self.clients.append(client)
        client.sock.connect(self.sockets.path(address))
        return client

    async def mail(self, user: str, count: int = 1) -> list[bytes]:
        """Wait until a user has so many messages; return them."""
        new = self.folder / "host" / "mail" / user / "new"
        while not new.is_dir() or len(os.listdir(new)) < count:
            await asyncio.sleep(0.001)
        return [path.read_bytes() for path in sorted(new.iterdir())]

    async def close(self) -> None:
        for service in self.open:
            await service.close()
        for client in self.clients:
            client.hang_up()
        self.executor.shutdown()


def handed(message: bytes) -> int:
    fd = os.memfd_create("message")
    os.write(fd, message)
    return fd
