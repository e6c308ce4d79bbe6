"""What the supervisor and the process of the audit say to each other.

Pure. One msgpack value a message over a channel; the supervisor asks, each question has
an answer with its number.
"""

from typing import TypeAlias

import msgspec

from vnsmail.model import SourceCheck


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    id: int


class SenderFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A sender (capture/proof.py)."""

    name: str
    context: str
    helo: str
    expected: tuple[str, ...]
    addresses: tuple[str, ...]
    check: SourceCheck = SourceCheck.STRICT


class Watch(_Message, frozen=True):
    """Look at these rings from now on, whose sockets come with it, and no others."""

    links: tuple[str, ...]
    size: int
    """Octets of each ring."""
    ports: tuple[int, ...]
    ignore: tuple[str, ...] = ()
    """Networks whose connections are somebody else's."""


class Know(_Message, frozen=True):
    """These are the senders from now on."""

    senders: tuple[SenderFacts, ...]


class Report(_Message, frozen=True):
    """What was found since it was last asked?"""


class Found(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A connection that is wrong (capture/audit.py)."""

    time: float
    """Seconds since the epoch."""
    host: str
    source: str
    source_port: int
    remote: str
    remote_port: int
    helo: str
    reason: str


class Reported(_Message, frozen=True):
    """Answer to Report. Numbers are since the process was started."""

    packets: int
    connections: int
    right: int
    wrong: int
    given_up: int
    dropped: int
    """Packets for which there was no room."""
    found: tuple[Found, ...] = ()
    gone: tuple[str, ...] = ()
    """Links that are no more."""


class Done(_Message, frozen=True):
    """It is so now."""


Request: TypeAlias = Watch | Know | Report
Answer: TypeAlias = Reported | Done

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
