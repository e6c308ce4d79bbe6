"""What all parts of a server session share: its state, what came, what is to be said.

The parts, each built on the one before: SessionCore (here), BodyParts (server_parts:
bodies, chunks, lines of an exchange), Commands (server_commands), ServerSession
(server_session: what its driver sees).

Rules of this file: the session ends in one place, and each open transaction with it.
"""

from collections import deque

from vnsmail.smtp import commands as said
from vnsmail.smtp import server_replies as say
from vnsmail.smtp.replies import Reply
from vnsmail.smtp.server_body import BodyIntake
from vnsmail.smtp.server_events import (
    Connected,
    Event,
    Question,
    SessionEnded,
    TransactionAborted,
)
from vnsmail.smtp.server_replies import ServerConfig
from vnsmail.smtp.server_states import IN_TRANSACTION, State

_IN_BODY = {State.BODY, State.CHUNK}

# What stands where no transaction is; neither is ever fed.
_NO_MAIL = said.Mail(None)
_NO_BODY = BodyIntake(0, seven_bit=False)


class SessionCore:
    """State, input and output of one session."""

    def __init__(self, config: ServerConfig, *, secure: bool = False) -> None:
        """``secure``: the connection is TLS from its beginning (RFC 8314)."""
        self.helo_name = ""
        """What the client calls itself; empty before EHLO or HELO."""
        self.extended = False
        """The client said EHLO."""
        self.secure = secure
        """What is said is said within TLS."""
        self.signed_in = False
        """Somebody signed in."""
        self._config = config
        self._state = State.NEW
        self._input = b""
        self._at = 0
        """Where in _input the next command begins."""
        self._eof = False
        self._skipping_line = False
        self._early = False
        self._output: list[bytes] = []
        self._events: deque[Event] = deque()
        self._question: Question | None = None
        self._told = False
        """The open question was returned by next_event()."""
        self._farewell: Reply | None = None
        self._errors = 0
        self._mail = _NO_MAIL
        self._mail_refused = False
        """The last transaction that was asked for did not begin."""
        self._recipients = 0
        self._refused_recipients = 0
        self._failed_auth = 0
        self._body = _NO_BODY
        self._chunk: said.Bdat | None = None
        """The chunk that begins, or is coming."""
        self._chunk_left = 0
        self._chunk_refused = False
        """A chunk of the last transaction was refused, and with it the transaction."""
        self._skip = 0
        """Octets of a chunk that nobody wants, still to come."""
        self._ask(Connected())

    @property
    def closing(self) -> bool:
        """Close the connection, once everything in data_to_send() is written."""
        return self._state is State.ENDED

    @property
    def going_on(self) -> bool:
        """Neither closing nor starting TLS: what comes is the client's part of a dialogue."""
        return self._state < State.TLS

    @property
    def in_body(self) -> bool:
        """Whether what comes now belongs to a body, wanted or not."""
        return self._state in _IN_BODY or self._skip > 0

    @property
    def starting_tls(self) -> bool:
        """Whether what comes now is the client's part of a handshake."""
        return self._state is State.TLS

    @property
    def buffered(self) -> int:
        """Octets received that wait, for an answer or for the rest of their line."""
        return len(self._input) - self._at

    def receive_data(self, data: bytes) -> None:
        """Take what the client sent; after the session ended it is thrown away."""
        if self._state is State.ENDED or self._eof:
            return
        if self._state is State.NEW and data:
            self._early = True
        elif self._state is State.TLS and data:
            self._leave(clean=False)
            return
        if self._at == len(self._input):
            self._input = data
        else:
            self._input = self._input[self._at :] + data
        self._at = 0
        if self._question is None:
            self._advance()

    def receive_eof(self) -> None:
        """The client sends no more; what it sent before is still answered.

        An open question stays open, as the client may still read the reply. A driver
        that cannot send any more need not answer it: then this session is just dropped,
        with what the driver holds for it.
        """
        self._eof = True
        if self._question is None:
            self._advance()

    def data_to_send(self) -> bytes:
        """Return what is to be written, and forget it."""
        output = self._output
        if not output:
            return b""
        data = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return data

    def next_event(self) -> Event | None:
        """Return the next event; None while there is none, or a question is open."""
        if not self._events:
            return None
        event = self._events.popleft()
        if event is self._question:
            self._told = True
        return event

    def _advance(self) -> None:
        """Work on what came, up to the next question."""
        raise NotImplementedError

    # Questions ---------------------------------------------------------------------------

    def _ask(self, question: Question) -> None:
        self._question = question
        self._told = False
        self._events.append(question)

    def _answered(self) -> Question | None:
        question = self._question
        if question is None and self._state is State.ENDED:
            return None
        if question is None or not self._told:
            raise RuntimeError("no question is open")
        self._question = None
        return question

    # Refusals and ends -------------------------------------------------------------------

    def _complain(self, reply: Reply) -> None:
        """Answer something that makes no sense; hang up if that is too much of it."""
        self._errors += 1
        if self._errors > self._config.max_bad_commands:
            self._end(say.TOO_MANY_ERRORS)
        else:
            self._output.append(reply.encode())

    def _end(self, reply: Reply) -> None:
        self._output.append(reply.encode())
        self._leave(clean=False)

    def _leave(self, *, clean: bool) -> None:
        if self._question is not None and not self._told:
            self._events.pop()  # nothing is behind an open question
        self._question = None
        self._abort()
        self._state = State.ENDED
        self._input, self._at = b"", 0
        self._events.append(SessionEnded(clean))

    def _abort(self) -> None:
        """The transaction, if there is one, comes to nothing."""
        faulty = self._state in _IN_BODY and self._body.faults
        if self._state in IN_TRANSACTION and not faulty:
            self._events.append(TransactionAborted())
