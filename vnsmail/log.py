"""Structured events: one name and key=value facts a line, as JSON, on stderr.

Rules of this file: event names are dotted and in the past tense or a state
(``message.accepted``, ``host.created``); values are facts, never message bodies, never
credentials.
"""

import sys
from datetime import UTC, datetime
from typing import cast

import msgspec
import structlog

_encode = msgspec.json.Encoder(enc_hook=repr).encode


def configure(*, process: str) -> None:
    """Send this process's events to stderr, each with the name of the process."""

    def line(_: object, level: str, event: structlog.typing.EventDict) -> str:
        # One step instead of structlog's five: an event is written for each message.
        event["process"] = process
        event["level"] = "error" if level == "exception" else level
        event["time"] = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        if event.get("exc_info"):
            event = with_traceback(_, level, event)
        return _encode(event).decode()

    with_traceback = structlog.processors.format_exc_info

    structlog.configure(
        processors=[line],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return the logger of one part of the program."""
    return cast(
        "structlog.typing.FilteringBoundLogger", structlog.get_logger(part=name)
    )
