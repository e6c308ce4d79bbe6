"""What the sessions of one owner have in common: who receives, and what it works with.

Rules of this file: values, and the counting of what is open. Facts are replaced as a
whole; whoever needs a fact asks ``Shared.facts`` each time, so open sessions follow.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from vnsmail.errors import VnsmailError
from vnsmail.events.record import Tell, untold
from vnsmail.inbound.accept import AcceptPolicy
from vnsmail.inbound.admission import MAX_SESSIONS, MAX_SESSIONS_PER_PEER, Admission
from vnsmail.inbound.policy import HousePolicy, Policy
from vnsmail.inbound.tls import Credentials
from vnsmail.log import logger
from vnsmail.model import Envelope, IPAddress, IPNetwork, Owner, Role
from vnsmail.queue.body import Body
from vnsmail.smtp.replies import Reply
from vnsmail.smtp.server_session import ServerConfig

if TYPE_CHECKING:
    from vnsmail.inbound.session import Receiver

REVERSE_TIME = 2.0
"""Seconds that the look-up of a client's name may take. It goes on beside the dialogue,
so it delays only a message that is whole sooner, and that one by no more."""

REVERSE_KEPT = 300.0
"""Seconds that a client's name, or that it has none, is remembered."""

REVERSE_NAMES = 4096
"""Clients that are remembered of one owner; those of long ago make room."""

Keep: TypeAlias = Callable[[Envelope, Body], Awaitable[None]]
"""Makes a message durable; the body is its own from then on, also if it fails."""

KeepSoon: TypeAlias = Callable[[Envelope, Body], "asyncio.Future[None] | None"]
"""Does so without a task: the future is done when the message is durable. None: this one
has to wait for something before, ask ``Keep``; the body is still the caller's then."""

ReverseName: TypeAlias = Callable[[IPAddress], Awaitable[str | None]]
"""Returns the verified name of an address (Resolver.verified_reverse_name)."""

MayBegin: TypeAlias = Callable[[int], Reply | None]
"""Given the octets a client announced, 0 if it did not: the reply that turns the
message away, or None."""

log = logger("inbound")


def _always(_: int) -> None:
    return None


def _uncounted() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Door:
    """What a listening socket is for."""

    role: Role = Role.MX
    implicit_tls: bool = False
    """The handshake comes first (RFC 8314 section 3.3)."""
    address: str = ""
    """Where it listens; empty for a Unix socket."""


@dataclass(frozen=True)
class ReceiverFacts:
    """Who receives, what it takes, and its limits."""

    owner: Owner
    name: str
    """Given in the greeting, in the answer to EHLO and in trace headers."""
    policy: AcceptPolicy
    """Who has a mailbox here."""
    folder: Path
    """The owner's; large bodies are written to its incoming/ while they arrive."""
    max_message_size: int
    max_recipients: int
    command_timeout: float
    """Seconds a client gets for each command (RFC 5321 section 4.5.3.2.7)."""
    max_sessions: int = MAX_SESSIONS
    max_sessions_per_peer: int = MAX_SESSIONS_PER_PEER
    rules: Policy | None = None
    """What is asked beyond that; None: mail for mailboxes here is taken, from anybody."""
    tls: Credentials | None = None
    """The owner's certificates; None: no TLS."""
    handshake_timeout: float = 30.0
    """Seconds for a handshake of TLS, and for the header of a proxy."""
    session_timeout: float = 1800.0
    """Seconds of a session without a message that is taken."""
    strict_8bit: bool = False
    """See ServerConfig."""
    proxy_from: tuple[IPNetwork, ...] = ()
    """From where connections begin with a PROXY header, and only from there."""
    hide_clients: bool = False
    """Trace headers do not tell where users who signed in connect from."""

    @cached_property
    def asked(self) -> Policy:
        """Whom sessions ask."""
        return HousePolicy(self.policy) if self.rules is None else self.rules

    @cached_property
    def configs(self) -> dict[Role, ServerConfig]:
        """What a session says and offers, by its door's role."""
        return {role: self._config(role) for role in Role}

    def _config(self, role: Role) -> ServerConfig:
        return ServerConfig(
            self.name,
            self.max_message_size,
            self.max_recipients,
            role=role,
            starttls=self.tls is not None,
            mechanisms=self.asked.mechanisms if role is Role.SUBMISSION else (),
            strict_8bit=self.strict_8bit,
        )

    def is_proxy(self, address: IPAddress | None) -> bool:
        """Say whether a connection from there begins with a PROXY header."""
        if address is None or not self.proxy_from:
            return False
        return any(
            address.version == network.version and address in network
            for network in self.proxy_from
        )


@dataclass(slots=True)
class Shared:
    """What the sessions of one owner have in common."""

    facts: ReceiverFacts
    """Put others in its place when they change: open sessions follow, but for the name
    they greeted with and the sizes they announced."""
    keep: Keep
    reverse_name: ReverseName
    executor: Executor
    """Writes large bodies."""
    clock: Callable[[], float] = time.time
    """Seconds since the epoch."""
    may_begin: MayBegin = _always
    admitted: Callable[[], None] = _uncounted
    """Called for each client that is let in."""
    keep_soon: KeepSoon | None = None
    tell: Tell = untold
    """Takes what is to stand in the event log."""
    admission: Admission[IPAddress | None] = field(default_factory=Admission)
    receivers: set["Receiver"] = field(default_factory=set)
    tasks: set[asyncio.Future[None]] = field(default_factory=set)
    """What is under way for a session, be it open still or not."""
    names: OrderedDict[IPAddress, tuple[str | None, float]] = field(
        default_factory=OrderedDict
    )
    """Verified names of clients, and until when they are good."""

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Do something beside the sessions."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def known_name(self, address: IPAddress) -> tuple[bool, str | None]:
        """Return whether the name of a client is known, and the name."""
        name, until = self.names.get(address, (None, 0.0))
        return self.clock() < until, name

    async def find_name(self, address: IPAddress) -> str | None:
        """Find the name of a client, which is a courtesy and worth no delay."""
        try:
            async with asyncio.timeout(REVERSE_TIME):
                name = await self.reverse_name(address)
        except (TimeoutError, VnsmailError):
            return None
        except Exception:  # a fault of ours in a courtesy must not cost the message
            log.exception("reverse.fault", peer=str(address))
            return None
        self.names[address] = name, self.clock() + REVERSE_KEPT
        while len(self.names) > REVERSE_NAMES:
            self.names.popitem(last=False)
        return name
