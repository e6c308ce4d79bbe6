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
    """The body is coming."""
    WHOLE = auto()
    """The body is whole, and was not answered yet."""
    ENDED = auto()


class EndOfBody:
    """The step that is no command: CRLF "." CRLF."""


Step: TypeAlias = (
    type[said.Command] | type[Connected] | type[EndOfBody] | type[MessageReceived]
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
    State.IDLE: _steps(State.IDLE, State.IDLE, {said.Mail: State.SENDER}),
    State.SENDER: _steps(State.SENDER, State.IDLE, {said.Rcpt: State.RECIPIENTS}),
    State.RECIPIENTS: _steps(
        State.RECIPIENTS,
        State.IDLE,
        {said.Rcpt: State.RECIPIENTS, said.Data: State.BODY},
    ),
    State.BODY: {EndOfBody: State.WHOLE},
    State.WHOLE: {MessageReceived: State.IDLE},
    State.ENDED: {},
}
"""The state after each step that is allowed, if the step succeeds."""

IN_TRANSACTION = {State.SENDER, State.RECIPIENTS, State.BODY}
"""States in which a transaction can come to nothing."""

OUT_OF_PLACE: Mapping[State, str] = {
    State.GREETED: "say EHLO first",
    State.IDLE: "say MAIL first",
    State.SENDER: "there is no recipient yet",
    State.RECIPIENTS: "a transaction is under way",
}
"""What is said to a command that is not allowed in a state."""
