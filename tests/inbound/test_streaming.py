"""A message of 50 MiB on its way in: memory does not grow with it."""

import asyncio
import resource

from tests.inbound.helpers import TO_ANN

SIZE = 50 * 1024 * 1024
LINE = b"x" * 76 + b"\r\n"
PIECE = LINE * 2048


async def test_large_message_in_little_memory(houses):
    """It goes through to the disk; what is in memory are a few pieces."""
    house = houses(max_message_size=2 * SIZE)
    sizes = []

    async def keep(envelope, body):
        sizes.append(body.size)
        body.discard()

    house.shared.keep = keep
    client = await house.greeted()
    await client.say(TO_ANN)
    await client.hear(b"354 end with <CRLF>.<CRLF>\r\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sent = 0
    while sent < SIZE:
        await client.say(PIECE)
        sent += len(PIECE)
        await asyncio.sleep(0)
    await client.say(b".\r\n")
    await client.hear(b"queued")

    assert sizes[0] > sent
    # KiB: a tenth of the message is far more than is needed, and far less than all.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 12 * 1024
