"""Structured events: one name and key=value facts a line, as JSON, on stderr.

Rules of this file: event names are dotted and in the past tense or a state
(``message.accepted``, ``host.created``); values are facts, never message bodies, never
credentials.
"""

import sys
from typing import cast

import msgspec
import structlog

_encode = msgspec.json.Encoder(enc_hook=repr).encode


def configure(*, process: str) -> None:
    """Send this process's events to stderr, each with the name of the process."""

    def name_process(
        _: object, __: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        event["process"] = process
        return event

    structlog.configure(
        processors=[
            name_process,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(_to_json),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def _to_json(event: object, **_: object) -> str:
    # An event is written for each message; json.dumps takes five times as long.
    return _encode(event).decode()


def logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return the logger of one part of the program."""
    return cast(
        "structlog.typing.FilteringBoundLogger", structlog.get_logger(part=name)
    )
