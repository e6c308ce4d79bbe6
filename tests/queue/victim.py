"""A process that queues mail until it is killed, and says what was acknowledged.

``python victim.py FOLDER`` forks a child for every line on standard input, and writes
``dead N`` when it has ended. A child writes ``pid N``, then ``began``, ``accepted``,
``settling`` and ``settled``, each with a queue id.
"""

import asyncio
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vnsmail.model import Envelope, Outcome, Owner, Verdict
from vnsmail.queue.body import BodyWriter
from vnsmail.queue.envelope import new_id
from vnsmail.queue.queue import Queue

CALLERS = 12
THRESHOLD = 2000
DELIVERED = Outcome(Verdict.DELIVERED, 250, "2.0.0", "ok")


def body_of(message_id: str) -> bytes:
    """Return the body of a message, large for about one in three."""
    return message_id.encode() * (10 if message_id[-1] < "n" else 500)


def say(word: str, message_id: str) -> None:
    # One write(2) a line: what was said before the kill is read whole.
    os.write(1, f"{word} {message_id}\n".encode())


async def send(queue: Queue, folder: Path) -> None:
    while True:
        now = time.time()
        message_id = new_id(now, os.urandom(6))
        recipients = ("bob@b.example", "eve@b.example")
        owner = Owner("alpha.example")
        envelope = Envelope(message_id, owner, "ann@alpha.example", recipients, now)
        writer = BodyWriter(folder, THRESHOLD)
        writer.write(body_of(message_id))
        say("began", message_id)
        await queue.accept(envelope, writer.finish())
        say("accepted", message_id)
        if message_id[-2] < "g":
            say("settling", message_id)
            await queue.settle(message_id, dict.fromkeys(recipients, DELIVERED), {})
            say("settled", message_id)


async def live(folder: Path) -> None:
    with ThreadPoolExecutor(2) as executor:
        queue = await Queue.open(folder, executor)
        say("pid", str(os.getpid()))
        await asyncio.gather(*(send(queue, folder) for _ in range(CALLERS)))


def main() -> None:
    folder = Path(sys.argv[1])
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            asyncio.run(live(folder))
        os.waitpid(child, 0)
        say("dead", str(child))


if __name__ == "__main__":
    main()
