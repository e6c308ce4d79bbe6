"""The server session under any input: ``python -m tests.fuzz.server_session [FOLDER …]``.

With atheris (``pip install atheris``) it looks for input that breaks a promise below,
beginning with the files of the folders; without, tests/smtp/test_fuzz_corpus.py only
replays those that are kept in corpus/server.

The first octet chooses the server, the second how the rest is cut into pieces.
"""

import importlib
import sys

from tests.smtp.helpers import Driver, in_bytes
from vnsmail.model import Role
from vnsmail.smtp.server_session import ServerConfig

CONFIGS = (
    (ServerConfig("mx.alpha.example", 1000, max_recipients=3), False),
    (ServerConfig("mx.alpha.example", 1000, starttls=True, strict_8bit=True), False),
    (
        ServerConfig(
            "mx.alpha.example",
            1000,
            role=Role.SUBMISSION,
            mechanisms=("PLAIN", "LOGIN"),
        ),
        True,
    ),
)

MOST_BUFFERED = 14_000
"""Octets: the longest line there is, and a little."""


def hold(data: bytes, pieces: list[bytes], which: int) -> tuple[object, ...]:
    """Have a session; return all that can be seen of it."""
    config, secure = CONFIGS[which]
    driver = Driver(config, secure=secure)
    said = driver.sent()
    for piece in pieces:
        said += driver.feed(piece)
        if driver.session.starting_tls:
            break
        assert driver.session.buffered < MOST_BUFFERED
    check(driver, said, data)
    return said, driver.told, driver.bodies, driver.session.closing


def check(driver: Driver, said: bytes, data: bytes) -> None:
    """What holds whatever a client sends."""
    assert said.endswith(b"\r\n")
    assert said.isascii()
    assert all(len(line) <= 512 for line in said.splitlines(keepends=True))
    for body in driver.bodies:
        assert len(body) <= 1000
        assert b"\0" not in body
        rest = body.replace(b"\r\n", b"")
        assert b"\r" not in rest
        assert b"\n" not in rest
    told = driver.told
    mails = sum(event.startswith("mail") for event in told)
    ends = sum(event.startswith(("message", "aborted")) for event in told)
    assert 0 <= mails - ends <= 1
    # Nothing comes of nothing: each message was asked for by DATA or a last chunk.
    upper = data.upper()
    assert len(driver.bodies) <= upper.count(b"DATA") + upper.count(b"BDAT")
    if driver.session.closing:
        assert told[-1] in {"ended", "broken off"}
        assert mails == ends


def one(data: bytes) -> None:
    """Hold one session, cut in two ways, which must make no difference."""
    which, size = (data[0] % len(CONFIGS), data[1] or 1) if len(data) > 1 else (0, 1)
    said = data[2:]
    if which == 1 and b"STARTTLS" in said.upper():
        # Where it is cut does matter there: what is behind is never heard.
        hold(said, in_bytes(said), which)
        return
    pieces = [said[at : at + size] for at in range(0, len(said), size)]
    assert hold(said, pieces, which) == hold(said, in_bytes(said), which)


def main() -> None:
    """Look for trouble until told to stop."""
    atheris = importlib.import_module("atheris")  # optional, and without types
    atheris.instrument_all()
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
