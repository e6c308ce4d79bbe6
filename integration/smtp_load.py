"""A real SMTP client that sends without end, and notes what it was told.

``python -m integration.smtp_load NAME ADDRESS RECIPIENT …`` writes ``try TOKEN SUM``
before the end of a message, and ``ack TOKEN`` when it read 250. No message is sent
twice. Each holds the digest of its text, so that whoever gets it can tell whether it
is whole. It ends with its standard input.
"""

import hashlib
import os
import random
import smtplib
import sys
import threading
import time

SESSION = 5
"""Messages on a connection."""

LARGE = 300_000
"""Octets of one text in ten: its body lies in a file."""


def say(*words: str) -> None:
    # One write(2) a line: no line is half there.
    os.write(1, f"{' '.join(words)}\n".encode())


def message(token: str, chance: random.Random) -> tuple[bytes, str]:
    """Return a message, and the digest of its text."""
    size = LARGE if chance.random() < 0.1 else chance.randrange(2000)
    text = b"\r\n".join(
        chance.randbytes(36).hex().encode() for _ in range(size // 74 + 1)
    )
    digest = hashlib.sha256(text).hexdigest()
    head = f"Subject: {token}\r\nX-Sum: {digest}\r\n\r\n"
    return head.encode() + text + b"\r\n", digest


def _until_told(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


def main() -> None:
    name, address, *recipients = sys.argv[1:]
    ended = threading.Event()
    threading.Thread(target=_until_told, args=(ended,)).start()
    chance = random.Random(name)  # noqa: S311  any messages will do
    number = 0
    while not ended.is_set():
        try:
            with smtplib.SMTP(address, 25, "mx1.north.example", timeout=20) as client:
                for _ in range(SESSION):
                    token = f"{name}-{number:05}"
                    number += 1
                    whole, digest = message(token, chance)
                    say("try", token, digest)
                    if not client.sendmail("load@north.example", recipients, whole):
                        say("ack", token)
                    if ended.wait(0.01):
                        return
        except (smtplib.SMTPException, OSError) as error:
            say("trouble", type(error).__name__)
            time.sleep(0.1)


if __name__ == "__main__":
    main()
