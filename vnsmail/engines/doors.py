"""Where an owner can be reached: its listening sockets, and the TLS it speaks there.

Rules of this file: every socket comes from the broker, bound to an address of the owner;
without a certificate there is no port to sign in on.
"""

import errno
import socket
from collections.abc import Iterator
from dataclasses import replace

from vnsmail.broker.client import SocketClient
from vnsmail.engines.protocol import Certificate, OwnerFacts
from vnsmail.errors import NotServed, VnsmailError
from vnsmail.inbound.listeners import Reception
from vnsmail.inbound.shared import Door
from vnsmail.inbound.tls import Credentials, KeyPair
from vnsmail.model import Role
from vnsmail.settings import SmtpSettings


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


def credentials(certificates: tuple[Certificate, ...]) -> Credentials | None:
    """Return what TLS is spoken with; None: it is not."""
    if not certificates:
        return None
    return Credentials(
        [KeyPair(each.pem, (each.name,) if each.name else ()) for each in certificates]
    )


def doors(smtp: SmtpSettings, *, tls: bool) -> Iterator[tuple[int, Door]]:
    """Return the ports to listen on, and what each is for."""
    yield smtp.port, Door(Role.MX)
    if tls and smtp.submission_port:
        yield smtp.submission_port, Door(Role.SUBMISSION)
    if tls and smtp.submissions_port:
        yield smtp.submissions_port, Door(Role.SUBMISSION, implicit_tls=True)


async def listen(
    reception: Reception,
    facts: OwnerFacts,
    address: str,
    smtp: SmtpSettings,
    sockets: SocketClient,
) -> tuple[str, ...]:
    """Listen on one of an owner's addresses; return it with each port, as people read it.

    Raises:
        PortInUse: another program listens there.
        NotServed: the kernel does not let us listen.
        SourceUnavailable, BrokerGone, BrokerRefused: there is no such socket.
    """
    literal = f"[{address}]" if ":" in address else address
    listening: list[str] = []
    for port, door in doors(smtp, tls=bool(facts.certificates)):
        sock = await _socket(sockets, facts.owner, address, port)
        reception.listen(sock, replace(door, address=address))
        listening.append(f"{literal}:{port}")
    return tuple(listening)


async def _socket(
    sockets: SocketClient, owner: str, address: str, port: int
) -> socket.socket:
    try:
        return await sockets.listener(owner, address, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(owner, address, port) from None
        reason = f"cannot listen on {address}: {error.strerror}"
        raise NotServed(owner, reason) from None
