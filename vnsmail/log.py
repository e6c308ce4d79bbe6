"""Structured events: one name and key=value facts a line, as JSON, on stderr.

Rules of this file: event names are dotted and in the past tense or a state
(``message.accepted``, ``host.created``); values are facts, never message bodies, never
credentials. Every process imports it, so it imports next to nothing.
"""

import contextlib
import sys
from datetime import UTC, datetime

import msgspec

_encode = msgspec.json.Encoder(enc_hook=repr).encode
_process = ""


def configure(*, process: str) -> None:
    """Give this process's events the name of the process."""
    global _process  # noqa: PLW0603  it is one fact of the whole process
    _process = process


class Logger:
    """Writes the events of one part of the program."""

    __slots__ = ("_part",)

    def __init__(self, part: str) -> None:
        self._part = part

    def info(self, event: str, /, **facts: object) -> None:
        """Tell what happened."""
        self._write("info", event, facts)

    def warning(self, event: str, /, **facts: object) -> None:
        """Tell what is not as it should be, and is being dealt with."""
        self._write("warning", event, facts)

    def error(self, event: str, /, **facts: object) -> None:
        """Tell what somebody must look at."""
        self._write("error", event, facts)

    def exception(self, event: str, /, **facts: object) -> None:
        """Tell the exception that is being handled, with where it came from."""
        import traceback  # noqa: PLC0415  faults are rare

        facts["exception"] = traceback.format_exc().rstrip("\n")
        self._write("error", event, facts)

    def _write(self, level: str, event: str, facts: dict[str, object]) -> None:
        time = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        who = {"part": self._part, "process": _process, "level": level, "time": time}
        line = _encode({**facts, "event": event, **who}).decode()
        # Mail goes on where the log cannot: on a full disk, say.
        with contextlib.suppress(OSError):
            sys.stderr.write(line + "\n")
            sys.stderr.flush()


def logger(part: str) -> Logger:
    """Return the logger of one part of the program."""
    return Logger(part)
