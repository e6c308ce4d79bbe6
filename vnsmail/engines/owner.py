"""One owner served by this worker: its queue, its listeners, its delivery.

Rules of this file: opening is whole or not at all; a fault in one owner's delivery is
logged, told in its report, and tried again, and never reaches the worker's own tasks.
"""

import asyncio
import os
import socket
from concurrent.futures import Executor
from pathlib import Path

from vnsmail.broker.client import SocketClient
from vnsmail.delivery.agent import AgentFacts, DeliveryAgent
from vnsmail.engines.protocol import OwnerFacts, OwnerReport, QueueEntry
from vnsmail.errors import BrokerRefused, VnsmailError
from vnsmail.inbound.accept import AcceptPolicy
from vnsmail.inbound.inject import InjectRequest, prepare
from vnsmail.inbound.session import Receiver, ReceiverFacts
from vnsmail.log import logger
from vnsmail.mailbox import maildir
from vnsmail.model import Envelope, Owner
from vnsmail.queue.body import Body
from vnsmail.queue.queue import Queue
from vnsmail.resolve.resolver import Resolver
from vnsmail.settings import Settings

CLOSE_GRACE = 5.0
"""Seconds that sessions and transactions get to finish when an owner is let go."""

RESTART_AFTER = 5.0
"""Seconds before delivery starts again after a fault of ours."""

log = logger("owner")


class PortInUse(VnsmailError):
    """Somebody else listens where this host must."""

    def __init__(self, owner: str, address: str, port: int) -> None:
        super().__init__(owner, address, port)
        self.owner, self.address, self.port = owner, address, port

    def __str__(self) -> str:
        return (
            f"cannot receive for {self.owner}: port {self.port} of {self.address} is in "
            "use by another program; stop it, or make it listen on other addresses "
            "(`ss -ltnp` tells which it is)"
        )
