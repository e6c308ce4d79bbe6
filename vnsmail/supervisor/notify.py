"""Tells the service manager how it goes (sd_notify(3)).

    READY=1        everything runs, and every host is served or known not to be
    STATUS=…       a line for ``systemctl status``
    WATCHDOG=1     the loop that serves requests and mends hosts still turns
    STOPPING=1     it ends; workers finish what is being said

Rules of this file: a service manager that is not there, or does not listen, changes
nothing. Only what was started as the main process speaks: the variables are taken out
of the environment, so that no child thinks it is meant.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, MutableMapping
from dataclasses import dataclass

from vnsmail.log import logger

SOCKET = "NOTIFY_SOCKET"
WATCHDOG_MICROSECONDS = "WATCHDOG_USEC"
WATCHDOG_PID = "WATCHDOG_PID"

BEATS = 3
"""Signs of life within the time that the watchdog allows."""

SENDING = 1.0
"""Seconds for the manager to take what is said; READY is said only once."""

log = logger("supervisor")


@dataclass(frozen=True, slots=True)
class Manager:
    """The service manager of this process, or the lack of one.

    Attributes:
        address: where it listens, as in unix(7); empty if nobody does.
        patience: seconds without a sign of life after which it ends us; 0 for ever.
    """

    address: str = ""
    patience: float = 0.0

    def ready(self, status: str) -> None:
        """Everything runs."""
        self._say("READY=1", f"STATUS={status}")

    def stopping(self) -> None:
        """It ends now."""
        self._say("STOPPING=1", "STATUS=ending: workers finish what is being said")

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Give signs of life while the context lasts, if the manager wants them."""
        if not self.address or not self.patience:
            yield
            return
        async with asyncio.TaskGroup() as tasks:
            beating = tasks.create_task(self._beat())
            try:
                yield
            finally:
                beating.cancel()

    async def _beat(self) -> None:
        while True:
            self._say("WATCHDOG=1")
            await asyncio.sleep(self.patience / BEATS)

    def _say(self, *lines: str) -> None:
        if not self.address:
            return
        where = "\0" + self.address[1:] if self.address[0] == "@" else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(SENDING)
                sock.sendto("\n".join(lines).encode(), where)
        except OSError as error:
            log.warning("manager.not_told", said=lines[0], reason=str(error))


def manager(environment: MutableMapping[str, str] | None = None) -> Manager:
    """Return the service manager that the environment names, and forget it there.

    Args:
        environment: variables to read; None for those of this process.
    """
    variables = os.environ if environment is None else environment
    address = variables.pop(SOCKET, "")
    microseconds = variables.pop(WATCHDOG_MICROSECONDS, "")
    meant = variables.pop(WATCHDOG_PID, "")
    if address[:1] not in {"/", "@"}:
        return Manager()
    patience = 0.0
    if microseconds.isascii() and microseconds.isdecimal():
        patience = int(microseconds) / 1_000_000
    return Manager(address, patience if meant in {"", str(os.getpid())} else 0.0)
