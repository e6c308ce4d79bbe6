"""The control socket: one request of a command, one answer, each in its own task.

Rules of this file: a malformed or oversized request ends that connection and nothing
else; only the supervisor's own user may connect (mode 0600, and SO_PEERCRED is asked
again, since a folder can be opened up by mistake).
"""

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import msgspec

from vnsmail.channel import (
    Channel,
    ChannelClosed,
    ChannelMisused,
    MessageTooLong,
    close_all,
)
from vnsmail.errors import StateUnusable, VnsmailError
from vnsmail.log import logger
from vnsmail.settings import Layout
from vnsmail.supervisor import control

PATIENCE = 10.0
"""Seconds a command has to say its request after it connected."""

BACKLOG = 1024
"""Scripts send many messages at a time; the kernel has a limit of its own (listen(2))."""

ACCEPT_PAUSE = 0.1
"""Seconds to wait when no connection can be taken: no descriptor is free, say."""

log = logger("control")

Handler: TypeAlias = Callable[
    [control.Request, list[int], int], Awaitable[control.Answer]
]
"""Request, descriptors that came with it, uid of who asks → answer."""


def listen(layout: Layout) -> socket.socket:
    """Return the listening control socket; a stale one of a dead process is replaced.

    Call it only with the root's lock held.
    """
    path = layout.control_socket
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)
    try:
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        raise StateUnusable(
            str(path), error.strerror or str(error), "give another --root"
        ) from None
    finally:
        os.umask(before)
    sock.listen(BACKLOG)
    return sock


async def serve(sock: socket.socket, handler: Handler) -> None:
    """Answer requests until cancelled."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        while True:
            try:
                connection, _ = await loop.sock_accept(sock)
            except OSError as error:
                log.warning("control.not_accepted", reason=str(error))
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            tasks.create_task(_answer(connection, handler))


async def _answer(connection: socket.socket, handler: Handler) -> None:
    channel = Channel(connection, large=True)
    fds: list[int] = []
    try:
        uid = peer_uid(connection)
        if uid not in {0, os.geteuid()}:
            log.warning("control.refused", uid=uid)
            return
        async with asyncio.timeout(PATIENCE):
            payload, fds = await channel.receive()
        answer = await _handled(payload, fds, uid, handler)
        try:
            await channel.send(control.encode(answer))
        except MessageTooLong as error:
            await channel.send(control.encode(control.Error(str(error), 1)))
    except (ChannelClosed, ChannelMisused, TimeoutError):
        return
    finally:
        close_all(fds)
        channel.close()


async def _handled(
    payload: bytes, fds: list[int], uid: int, handler: Handler
) -> control.Answer:
    try:
        request = control.decode_request(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return control.Error(f"vnsmail does not understand this request: {error}", 1)
    try:
        return await handler(request, fds, uid)
    except VnsmailError as error:
        return control.Error(str(error), error.exit_code)
    except OSError as error:
        log.exception("control.failed", request=type(request).__name__)
        return control.Error(f"cannot do this: {str(error) or repr(error)}", 1)
    except Exception as error:
        # A fault of ours must not end the supervisor of everybody's mail.
        log.exception("control.fault", request=type(request).__name__)
        return control.Error(f"internal fault ({error!r}); see the log", 1)


def peer_uid(connection: socket.socket) -> int:
    """Return the uid that the kernel gives for the other end (SO_PEERCRED)."""
    raw = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    uid: int = struct.unpack("3i", raw)[1]
    return uid
