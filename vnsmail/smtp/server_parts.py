"""What comes in a server session besides commands: bodies, chunks, responses.

Rules of this file: octets of a body or chunk are never taken for a command, whatever
became of the message; a message that comes to nothing is told once.
"""

from vnsmail.smtp import commands as said
from vnsmail.smtp import server_replies as say
from vnsmail.smtp.server_core import SessionCore
from vnsmail.smtp.server_events import (
    AuthAborted,
    AuthResponse,
    BodyReceived,
    MessageReceived,
    TransactionAborted,
)
from vnsmail.smtp.server_states import (
    TRANSITIONS,
    EndOfAuth,
    EndOfBody,
    EndOfChunk,
    State,
)


class BodyParts(SessionCore):
    """Takes what is no command."""

    def _advance(self) -> None:
        """Work on what came, up to the next question."""
        while self._question is None and self._state is not State.ENDED:
            if self._skip:
                more = self._take_unwanted()
            elif self._state is State.BODY:
                more = self._take_body()
            elif self._state is State.CHUNK:
                more = self._take_chunk()
            else:
                more = self._take_line()
            if not more:
                break
        if self._eof and self._question is None and self._state is not State.ENDED:
            self._leave(clean=False)

    def _take_line(self) -> bool:
        """Work on one line; False if no whole one is there."""
        raise NotImplementedError

    def _take_body(self) -> bool:
        """Work on a piece of the body; False if none is there."""
        if self._at == len(self._input):
            return False
        data = self._input[self._at :] if self._at else self._input
        sound = not self._body.faults
        payload, end, self._input = self._body.feed(data)
        self._at = 0
        self._give_out(payload, sound=sound)
        if end:
            self._end_of_body()
        return True

    def _take_chunk(self) -> bool:
        """Work on octets of a chunk; False if none are there, and some are missing."""
        data = self._input[self._at : self._at + self._chunk_left]
        if not data and self._chunk_left:
            return False
        self._at += len(data)
        self._chunk_left -= len(data)
        whole = not self._chunk_left
        chunk = self._chunk
        last = whole and chunk is not None and chunk.last
        sound = not self._body.faults
        payload = self._body.feed_chunk(data, last=last)
        self._give_out(payload, sound=sound)
        if last:
            self._end_of_body()
        elif whole:
            self._end_of_chunk()
        return True

    def _take_unwanted(self) -> bool:
        """Throw away octets of a chunk that was refused; False if none are there."""
        count = min(self._skip, len(self._input) - self._at)
        self._skip -= count
        self._at += count
        return count > 0

    def _give_out(self, payload: bytes, *, sound: bool) -> None:
        """Tell what came, or that the message comes to nothing, which is told once."""
        if self._body.faults:
            if sound:
                self._events.append(TransactionAborted())
        elif payload:
            self._events.append(BodyReceived(payload))

    def _begin_chunk(self, chunk: said.Bdat) -> None:
        self._state = TRANSITIONS[self._state][said.Bdat]
        self._chunk_left = chunk.size
        sound = not self._body.faults
        self._body.expect(chunk.size)
        self._give_out(b"", sound=sound)

    def _end_of_chunk(self) -> None:
        fault = self._body.worst
        if fault is not None:
            self._output.append(fault)
            self._refuse_chunks()
            return
        size = 0 if self._chunk is None else self._chunk.size
        self._state = TRANSITIONS[self._state][EndOfChunk]
        self._output.append(f"250 2.0.0 {size} octets received\r\n".encode())

    def _refuse_chunks(self) -> None:
        """The transaction is over; chunks that were sent already are thrown away."""
        if not self._body.faults:
            self._events.append(TransactionAborted())
        self._chunk_refused = True
        self._state = State.IDLE

    def _end_of_body(self) -> None:
        self._state = TRANSITIONS[self._state][EndOfBody]
        fault = self._body.worst
        if fault is not None:
            self._message_done()
            self._output.append(fault)
            return
        mail = self._mail
        eight_bit = mail.body == "8BITMIME" or self._body.eight_bit
        self._ask(MessageReceived(self._body.size, eight_bit, mail.smtputf8))

    def _message_done(self) -> None:
        # Whatever the answer was, the transaction is over: RFC 5321 section 4.1.1.4.
        self._state = TRANSITIONS[self._state][MessageReceived]

    # Signing in --------------------------------------------------------------------------

    def _take_response(self, line: bytes, *, too_long: bool) -> None:
        """Work on a line of an exchange (RFC 4954 section 4)."""
        if too_long or len(line) > said.MAX_AUTH - len("\r\n"):
            self._abort_auth(say.AUTH_TOO_LONG)
        elif line == b"*":
            self._abort_auth(say.AUTH_CANCELLED)
        else:
            data = said.decode_base64(line.decode("latin-1"))
            if data is None:
                self._abort_auth(say.AUTH_NOT_BASE64)
            else:
                self._ask(AuthResponse(data))

    def _abort_auth(self, reply: bytes) -> None:
        self._output.append(reply)
        self._events.append(AuthAborted())
        self._auth_failed()

    def _auth_failed(self) -> None:
        self._state = TRANSITIONS[self._state][EndOfAuth]
        self._failed_auth += 1
        if self._failed_auth >= self._config.max_failed_auth:
            self._end(say.TOO_MANY_FAILED_AUTH)
