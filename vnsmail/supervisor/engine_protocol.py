"""What the supervisor asks the keeper of a host's engine, and what it answers.

Pure. Each message is one msgpack value over a channel; an answer has the ``id`` of its
question.
"""

from typing import TypeAlias

import msgspec


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    id: int


class Begin(_Message, frozen=True):
    """Say when the server runs."""


class ListMail(_Message, frozen=True):
    """List what the server has queued."""


class Flush(_Message, frozen=True):
    """Have the server try all that it has queued."""


Question: TypeAlias = Begin | ListMail | Flush


class Mail(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message in the queue of a server; see engines/mta.py."""

    id: str
    sender: str
    recipients: tuple[tuple[str, str], ...]
    size: int
    received_at: float
    held: str = ""


class Done(_Message, frozen=True):
    """It is so."""


class Failed(_Message, frozen=True):
    """It is not so."""

    text: str


class Listed(_Message, frozen=True):
    """Answer to ListMail."""

    mail: tuple[Mail, ...]


Answer: TypeAlias = Done | Failed | Listed

encode = msgspec.msgpack.Encoder().encode
decode_question = msgspec.msgpack.Decoder(Question).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
