"""What may follow what in a server session: the whole of it, as a table.

Rules of this file: it knows nothing of replies or bytes. A step that is not in the
table is refused; there is no other place that forbids or allows one.
"""

from collections.abc import Mapping
from enum import IntEnum, auto
from typing import TypeAlias

from vnsmail.smtp import commands as said
from vnsmail.smtp.server_events import Connected, MessageReceived


class State(IntEnum):
    """Where the session is.

    Whole numbers, as their hash costs nothing: the table is asked for every command.
    """

    NEW = auto()
    """The greeting is not given yet."""
    GREETED = auto()
    """No EHLO or HELO yet."""
    IDLE = auto()
    """Between transactions."""
    SENDER = auto()
    """A transaction without a recipient."""
    RECIPIENTS = auto()
    """A transaction with a recipient at least."""
    BODY = auto()
    """The body is coming, by DATA."""
    CHUNK = auto()
    """A piece of the body is coming, by BDAT."""
    CHUNKS = auto()
    """Between two pieces of a body."""
    WHOLE = auto()
    """The body is whole, and was not answered yet."""
    AUTH = auto()
    """Somebody is signing in: lines are responses, not commands."""
    TLS = auto()
    """The handshake of TLS: nothing that comes is for the session."""
    ENDED = auto()


class EndOfBody:
    """No command: CRLF "." CRLF, or the last octet of the last chunk."""


class EndOfChunk:
    """No command: the last octet of a chunk that is not the last."""


class EndOfAuth:
    """No command: an exchange came to its end, whatever that was."""


class TlsStarted:
    """No command: the handshake is done."""


Step: TypeAlias = (
    type[said.Command]
    | type[Connected]
    | type[EndOfBody]
    | type[EndOfChunk]
    | type[EndOfAuth]
    | type[TlsStarted]
    | type[MessageReceived]
)

# RFC 5321 section 4.1.4: these may come at any time, and change nothing.
_ALWAYS: tuple[Step, ...] = (said.Noop, said.Help, said.Vrfy, said.Unknown)


def _steps(state: State, reset: State, more: Mapping[Step, State]) -> dict[Step, State]:
    steps = dict.fromkeys(_ALWAYS, state)
    # RFC 5321 section 4.1.4: EHLO in a transaction ends it, as RSET does.
    steps |= {said.Ehlo: State.IDLE, said.Helo: State.IDLE}
    steps |= {said.Rset: reset, said.Quit: State.ENDED}
    return steps | dict(more)


TRANSITIONS: Mapping[State, Mapping[Step, State]] = {
    State.NEW: {Connected: State.GREETED},
    State.GREETED: _steps(State.GREETED, State.GREETED, {}),
    State.IDLE: _steps(
        State.IDLE,
        State.IDLE,
        {
            said.Mail: State.SENDER,
            # RFC 4954 section 4: not in a transaction. RFC 3207 section 4.2 begins anew.
            said.Auth: State.AUTH,
            said.Starttls: State.TLS,
        },
    ),
    State.SENDER: _steps(State.SENDER, State.IDLE, {said.Rcpt: State.RECIPIENTS}),
    State.RECIPIENTS: _steps(
        State.RECIPIENTS,
        State.IDLE,
        {
            said.Rcpt: State.RECIPIENTS,
            said.Data: State.BODY,
            said.Bdat: State.CHUNK,
        },
    ),
    State.BODY: {EndOfBody: State.WHOLE},
    State.CHUNK: {EndOfChunk: State.CHUNKS, EndOfBody: State.WHOLE},
    # RFC 3030 section 2: neither DATA nor another envelope comes in between.
    State.CHUNKS: _steps(State.CHUNKS, State.IDLE, {said.Bdat: State.CHUNK}),
    State.WHOLE: {MessageReceived: State.IDLE},
    State.AUTH: {EndOfAuth: State.IDLE},
    # RFC 3207 section 4.2: the session begins anew, but for the greeting.
    State.TLS: {TlsStarted: State.GREETED},
    State.ENDED: {},
}
"""The state after each step that is allowed, if the step succeeds."""

IN_TRANSACTION = {
    State.SENDER,
    State.RECIPIENTS,
    State.BODY,
    State.CHUNK,
    State.CHUNKS,
}
"""States in which a transaction can come to nothing."""

OUT_OF_PLACE: Mapping[State, str] = {
    State.GREETED: "say EHLO first",
    State.IDLE: "say MAIL first",
    State.SENDER: "there is no recipient yet",
    State.RECIPIENTS: "a transaction is under way",
    State.CHUNKS: "the message is coming by BDAT",
}
"""What is said to a command that is not allowed in a state."""
