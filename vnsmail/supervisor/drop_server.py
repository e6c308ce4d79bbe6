"""The socket on which local commands ask for their mail to be taken.

    take NAME      taken QUEUE-ID | refused CODE TEXT | later TEXT
    list           a packet for each queued message, and the end

One packet is asked (SOCK_SEQPACKET, mode 0666). No mail goes over it: a message lies in
the drop already, so whatever goes wrong here costs nobody a message.

Rules of this file: whoever asks is who the kernel says (SO_PEERCRED); a packet is a few
words of ASCII; so many connections in all and of an account, each for so long, and what
is beyond is closed at once.
"""

import asyncio
import contextlib
import os
import socket
from collections import Counter
from functools import partial

from vnsmail.channel import Channel, ChannelClosed, ChannelMisused, close_all
from vnsmail.drop import form
from vnsmail.engines.protocol import QueueEntry
from vnsmail.errors import StateUnusable, VnsmailError
from vnsmail.log import logger
from vnsmail.settings import Layout
from vnsmail.supervisor.control_server import ACCEPT_PAUSE, peer_uid
from vnsmail.supervisor.drops import Drops, sysexit

BACKLOG = 64
MAX_CLIENTS = 128
MAX_OF_ACCOUNT = 16
PATIENCE = 5.0
"""Seconds for a request; the command has it ready."""
SAYING = 30.0
"""Seconds for a command to read what is said to it."""
MAX_LISTED = 1000
MAX_TEXT = 400
"""Characters of an answer of a remote that are shown."""

log = logger("drop")


def listen(layout: Layout) -> socket.socket:
    """Return the listening socket; a stale one is replaced.

    Call it only with the root's lock held.

    Raises:
        StateUnusable: it cannot be made.
    """
    path = layout.drop_socket
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        path.unlink(missing_ok=True)
        sock.bind(str(path))
        path.chmod(0o666)
    except OSError as error:
        sock.close()
        why = error.strerror or str(error)
        raise StateUnusable(str(path), why, "give another --root") from None
    sock.listen(BACKLOG)
    return sock


async def serve(sock: socket.socket, drops: Drops) -> None:
    """Answer local commands until cancelled."""
    loop = asyncio.get_running_loop()
    clients: Counter[int] = Counter()
    async with asyncio.TaskGroup() as tasks:
        while True:
            try:
                connection, _ = await loop.sock_accept(sock)
            except OSError as error:
                log.warning("drop.not_accepted", reason=str(error))
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            uid = peer_uid(connection)
            if clients[uid] >= MAX_OF_ACCOUNT or clients.total() >= MAX_CLIENTS:
                connection.close()
                continue
            clients[uid] += 1
            task = tasks.create_task(_answer(connection, uid, drops))
            task.add_done_callback(partial(_left, clients, uid))


def _left(clients: Counter[int], uid: int, _: asyncio.Task[None]) -> None:
    clients[uid] -= 1
    if not clients[uid]:
        del clients[uid]


async def _answer(connection: socket.socket, uid: int, drops: Drops) -> None:
    channel = Channel(connection)
    try:
        async with asyncio.timeout(PATIENCE):
            payload, fds = await channel.receive()
        close_all(fds)
        words = payload[:100].decode("ascii", "replace").split(" ")
        # A lab of an ordinary user has one account, which is its root.
        uid = 0 if uid == os.geteuid() else uid
        if len(words) == 2 and words[0] == "take" and form.is_name(words[1]):
            await _say(channel, await _taken(drops, uid, words[1]))
        elif words == ["list"]:
            for entry in await drops.queued(uid, MAX_LISTED):
                await _say(channel, _in_lines(entry))
        else:
            await _say(
                channel,
                f"refused {os.EX_PROTOCOL} vnsmail does not understand this request",
            )
    except VnsmailError as error:
        if not isinstance(error, ChannelClosed | ChannelMisused):
            with contextlib.suppress(VnsmailError, TimeoutError):
                await _say(channel, f"refused {sysexit(error)} {error}")
    except TimeoutError:
        pass
    except Exception:  # a fault of ours must not end the supervisor
        log.exception("drop.fault", uid=uid)
    finally:
        channel.close()


async def _taken(drops: Drops, uid: int, name: str) -> str:
    result = await drops.take(uid, name, tell=True)
    if result is None:
        return f"refused {os.EX_NOINPUT} there is no such message"
    if result.problem:
        return f"refused {result.exit_code} {result.problem}"
    if result.later:
        return f"later {result.later}"
    return f"taken {result.queue_id}"


async def _say(channel: Channel, text: str) -> None:
    async with asyncio.timeout(SAYING):
        await channel.send(text.encode("utf-8", "replace"))


def _in_lines(entry: QueueEntry) -> str:
    """Return a queued message: facts in the first line, a recipient in each other."""
    envelope = entry.envelope
    lines = [
        f"{envelope.id}\t{entry.size}\t{envelope.received_at:.0f}\t{envelope.sender}"
    ]
    lines += [
        f"{_plain(address)}\t{_plain(last)}" for address, _, _, last in entry.recipients
    ]
    return "\n".join(lines)


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_TEXT]
