"""A remote mail host of the lab: takes mail for every user of one domain.

``python -m vnsmail.lab.remote --name N --domain D --address A … --mail DIR``, in a
network namespace of its own. It knows its own name, its domain and a name server, and
nothing of who sends: what it writes into ``Received`` it has from the packets, from EHLO
and from DNS.

Rules of this file: it speaks through the code that virtual hosts receive with; 250 is
said when the message is in the Maildir.
"""

import argparse
import asyncio
import ipaddress
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import uvloop

from vnsmail import log as logging
from vnsmail.inbound.accept import AcceptPolicy, Taken
from vnsmail.inbound.listeners import Reception
from vnsmail.inbound.session import ReceiverFacts
from vnsmail.mailbox import maildir
from vnsmail.model import Envelope, Owner
from vnsmail.queue.body import INCOMING, Body
from vnsmail.resolve.backend import Transport
from vnsmail.resolve.resolver import Resolver
from vnsmail.settings import SmtpSettings
from vnsmail.smtp.address import parse_mailbox

DNS_PORT = 53
DNS_TIMEOUT = 5.0
BACKLOG = 1024
"""Connections that wait to be accepted; fewer make a fast sender wait for a second."""
CLOSE_GRACE = 2.0
"""Seconds for clients to take the last reply."""


async def open_socket(transport: Transport, server: str) -> socket.socket:
    """Return a socket connected to a name server."""
    version = ipaddress.ip_address(server).version
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (server, DNS_PORT))
    except BaseException:
        sock.close()
        raise
    return sock


def listening_socket(address: str, port: int) -> socket.socket:
    """Return a socket that listens on an address."""
    version = ipaddress.ip_address(address).version
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


class Mailboxes:
    """Keeps messages in Maildirs below a folder, one for each user."""

    def __init__(
        self, folder: Path, policy: AcceptPolicy, executor: ThreadPoolExecutor
    ) -> None:
        self._folder = folder
        self._policy = policy
        self._executor = executor

    async def keep(self, envelope: Envelope, body: Body) -> None:
        """Deliver a message to each of its recipients.

        Raises:
            StateUnusable: a mailbox cannot be written.
        """
        loop = asyncio.get_running_loop()
        try:
            for recipient in envelope.recipients:
                decision = self._policy.decide(parse_mailbox(recipient, smtputf8=True))
                if isinstance(decision, Taken):
                    put = partial(
                        maildir.deliver,
                        self._folder / decision.user,
                        body,
                        return_path=envelope.sender,
                        delivered_to=recipient,
                        name=maildir.unique_name(envelope.received_at),
                    )
                    await loop.run_in_executor(self._executor, put)
        finally:
            body.discard()


async def _serve(arguments: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    limits = SmtpSettings()
    executor = ThreadPoolExecutor(4, "mail")
    policy = AcceptPolicy.of([arguments.domain], [], any_user=True)
    folder: Path = arguments.mail
    for each in (folder, folder / INCOMING):
        each.mkdir(mode=0o755, parents=True, exist_ok=True)
    facts = ReceiverFacts(
        owner=Owner(arguments.name),
        name=arguments.name,
        policy=policy,
        folder=folder,
        max_message_size=limits.max_message_size,
        max_recipients=limits.max_recipients,
        command_timeout=limits.command_timeout,
    )
    resolver = Resolver(open_socket, [arguments.resolver], DNS_TIMEOUT)
    reception = Reception(
        facts,
        keep=Mailboxes(folder, policy, executor).keep,
        reverse_name=resolver.verified_reverse_name,
        executor=executor,
    )
    for address in arguments.address:
        reception.listen(listening_socket(address, limits.port))
    os.write(arguments.ready_fd, b"ready")
    os.close(arguments.ready_fd)
    await ending.wait()
    await reception.close(CLOSE_GRACE)
    executor.shutdown()


def main() -> None:
    """Receive until SIGTERM."""
    parser = argparse.ArgumentParser(description="A remote mail host of a vnsmail lab.")
    parser.add_argument("--name", required=True)
    parser.add_argument("--domain", required=True)
    parser.add_argument("--address", action="append", required=True)
    parser.add_argument("--resolver", required=True)
    parser.add_argument("--mail", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    arguments = parser.parse_args()
    logging.configure(process=arguments.name)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(arguments))


if __name__ == "__main__":
    main()
