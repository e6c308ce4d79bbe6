"""A message as signatures see it: its whole header block, and the hashes of its body.

Rules of this file: what is in memory is looked at at once; what is in a file is read in
the executor, piece by piece.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from vnsmail.authentication.canonical import Form
from vnsmail.authentication.dkim import BodyHashes, hash_body
from vnsmail.authentication.header_block import MAX_HEADER, HeaderBlock
from vnsmail.queue.body import Body

T = TypeVar("T")


async def in_executor(executor: Executor, work: Callable[[], T]) -> T:
    """Return what some blocking work comes to."""
    return await asyncio.get_running_loop().run_in_executor(executor, work)


async def front_of(body: Body, front: bytes, executor: Executor) -> bytes:
    """Return the front of a message with its whole header block, if that is bearable.

    Args:
        body: the message.
        front: what is known of its front already.
        executor: reads what is in a file.

    Raises:
        QueueUnavailable: it cannot be read.
    """
    if b"\r\n\r\n" in front or front[:2] == b"\r\n" or len(front) == body.size:
        return front
    if body.file is None:
        return body.head[:MAX_HEADER]
    return await in_executor(executor, partial(read_front, body))


async def hashes_of(
    body: Body, block: HeaderBlock | None, forms: frozenset[Form], executor: Executor
) -> BodyHashes:
    """Return the hashes of what follows the header block, in some canonical forms.

    Raises:
        QueueUnavailable: it cannot be read.
    """
    if block is None or not forms:
        return {}
    work = partial(read_hashes, body, block.body_at, forms)
    return work() if body.file is None else await in_executor(executor, work)


def read_hashes(body: Body, at: int, forms: frozenset[Form]) -> BodyHashes:
    """Do the same, blocking."""
    return hash_body(_behind(body, at), forms)


def _behind(body: Body, at: int) -> Iterator[bytes]:
    """Give a message in pieces, without its first octets."""
    for piece in body.chunks():
        if at < len(piece):
            yield piece[at:] if at else piece
        at = max(0, at - len(piece))


def read_front(body: Body) -> bytes:
    """Return a message up to its first empty line, or so much as we look at; blocking."""
    front = b""
    for piece in body.chunks():
        looked_at = max(0, len(front) - 3)
        front += piece
        if front.find(b"\r\n\r\n", looked_at) >= 0 or len(front) >= MAX_HEADER:
            break
    return front[:MAX_HEADER]
