"""The server's side of an SMTP session (RFC 5321), as bytes in, events and bytes out.

    session.receive_data(data)
    while (event := session.next_event()) is not None:
        ...                                 # accept() or reject() the events that ask
    transport.write(session.data_to_send())
    if session.closing: ...                 # close when that is written

Rules of this file. What may follow what is in the table of server_states and nowhere
else: a step that is not in it is a 503. Whether someone may send is never decided here. While a
question is open nothing behind it is read, so replies keep the order of the commands
however they were pipelined (RFC 2920), and the same bytes give the same events and
replies however they are cut, with two exceptions: a client that talks before the
greeting is turned away (RFC 5321 section 3.1 makes it wait), and so is one that sends
anything behind STARTTLS: whoever is between could have put it there (CVE-2011-0411).
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, TypeAlias

from vnsmail.model import Role
from vnsmail.smtp import commands as said
from vnsmail.smtp import server_replies as say
from vnsmail.smtp.errors import SmtpSyntaxError
from vnsmail.smtp.replies import Reply
from vnsmail.smtp.server_body import BodyIntake
from vnsmail.smtp.server_events import (
    AuthAborted,
    AuthRequested,
    AuthResponse,
    BodyReceived,
    Connected,
    DataRequested,
    Event,
    MailRequested,
    MessageReceived,
    Question,
    RecipientRequested,
    SessionEnded,
    TlsRequested,
    TransactionAborted,
)
from vnsmail.smtp.server_replies import ServerConfig
from vnsmail.smtp.server_states import (
    IN_TRANSACTION,
    OUT_OF_PLACE,
    TRANSITIONS,
    EndOfAuth,
    EndOfBody,
    EndOfChunk,
    State,
    Step,
    TlsStarted,
)

__all__ = [
    "AuthAborted",
    "AuthRequested",
    "AuthResponse",
    "BodyReceived",
    "Connected",
    "DataRequested",
    "Event",
    "MailRequested",
    "MessageReceived",
    "Question",
    "RecipientRequested",
    "ServerConfig",
    "ServerSession",
    "SessionEnded",
    "TlsRequested",
    "TransactionAborted",
]

_LONGEST_LINE = said.MAX_AUTH


class _Accepted(NamedTuple):
    """What follows if a question is answered with yes."""

    step: Step
    code: int
    enhanced: str
    reply: bytes
    """The reply in full; empty if it has to be made."""


_ACCEPTED: Mapping[type[Question], _Accepted] = {
    Connected: _Accepted(Connected, 220, "", b""),
    TlsRequested: _Accepted(said.Starttls, 220, "2.0.0", say.TLS_GO_AHEAD),
    AuthRequested: _Accepted(EndOfAuth, 235, "2.7.0", say.SIGNED_IN),
    AuthResponse: _Accepted(EndOfAuth, 235, "2.7.0", say.SIGNED_IN),
    MailRequested: _Accepted(said.Mail, 250, "2.1.0", say.SENDER_OK),
    RecipientRequested: _Accepted(said.Rcpt, 250, "2.1.5", say.RECIPIENT_OK),
    DataRequested: _Accepted(said.Data, 354, "", say.GO_AHEAD),
    MessageReceived: _Accepted(MessageReceived, 250, "2.0.0", say.MESSAGE_OK),
}

# Known commands of other extensions: RFC 5321 section 4.2.4 has 502 for them.
_NOT_HERE = {"EXPN", "TURN", "ETRN", "SEND", "SOML", "SAML"}

_IN_BODY = {State.BODY, State.CHUNK}

_Handlers: TypeAlias = Mapping[
    type[said.Command], Callable[["ServerSession", Any], None]
]


class ServerSession:
    """One session, from the connection to its end."""

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
        self._mail = said.Mail(None)
        self._mail_refused = False
        """The last transaction that was asked for did not begin."""
        self._recipients = 0
        self._refused_recipients = 0
        self._failed_auth = 0
        self._body = BodyIntake(0, seven_bit=False)
        self._chunk: said.Bdat | None = None
        """The chunk that begins, or is coming."""
        self._chunk_left = 0
        self._chunk_refused = False
        """A chunk of the last transaction was refused, and with it the transaction."""
        self._skip = 0
        """Octets of a chunk that nobody wants, still to come."""
        self._ask(Connected())

    # What the driver does --------------------------------------------------------------

    @property
    def closing(self) -> bool:
        """Close the connection, once everything in data_to_send() is written."""
        return self._state is State.ENDED

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
        data = b"".join(self._output)
        self._output.clear()
        return data

    def next_event(self) -> Event | None:
        """Return the next event; None while there is none, or a question is open."""
        if not self._events:
            return None
        event = self._events.popleft()
        if event is self._question:
            self._told = True
        return event

    def accept(self, text: str = "", enhanced: str = "") -> None:
        """Answer the open question with yes.

        If the session ended while the answer was sought, this does nothing.

        Args:
            text: of the reply, in place of a standard one.
            enhanced: status code of the reply, in place of the standard one; the
                greeting and 354 have none (RFC 2034 section 4).

        Raises:
            RuntimeError: no question is open.
        """
        question = self._answered()
        if question is None:
            return
        if self._early and isinstance(question, Connected):
            self._end(say.TALKED_EARLY)
            return
        if isinstance(question, TlsRequested) and self.buffered:
            self._end(say.TALKED_BEFORE_TLS)
            return
        if isinstance(question, DataRequested) and self._chunk is not None:
            self._begin_chunk(self._chunk)
            self._advance()  # an empty chunk is whole without any input
            return
        accepted = _ACCEPTED[type(question)]
        if text or enhanced or not accepted.reply:
            self._output.append(self._yes(accepted, text, enhanced))
        else:
            self._output.append(accepted.reply)
        if isinstance(question, RecipientRequested):
            self._recipients += 1
        elif isinstance(question, MessageReceived):
            self._errors = 0
        elif isinstance(question, AuthRequested | AuthResponse):
            self.signed_in = True
        self._state = TRANSITIONS[self._state][accepted.step]
        self._go_on()

    def reject(self, reply: Reply) -> None:
        """Answer the open question with no.

        421 ends the session, and so does any reply to Connected.

        Raises:
            RuntimeError: no question is open.
            ValueError: the reply is not one of refusal (4yz, 5yz).
        """
        if not (reply.is_transient or reply.is_permanent):
            problem = f"{reply.code} is not a refusal"
            raise ValueError(problem)
        question = self._answered()
        if question is None:
            return
        if reply.code == 421 or isinstance(question, Connected):
            self._end(reply)
            return
        self._output.append(reply.encode())
        match question:
            case RecipientRequested():
                self._refused_recipients += 1
            case MailRequested():
                self._mail_refused = True
            case MessageReceived():
                self._message_done()
            case AuthRequested() | AuthResponse():
                self._auth_failed()
            case DataRequested() if self._chunk is not None:
                self._skip = self._chunk.size
                self._refuse_chunks()
            case _:
                pass
        self._go_on()

    def challenge(self, data: bytes) -> None:
        """Answer AuthRequested or AuthResponse: let the client respond to this.

        Raises:
            RuntimeError: no such question is open.
        """
        signing_in = isinstance(self._question, AuthRequested | AuthResponse)
        if not signing_in and self._state is not State.ENDED:
            raise RuntimeError("nobody is signing in")
        if self._answered() is not None:
            self._output.append(f"334 {said.encode_base64(data)}\r\n".encode())
            self._go_on()

    def tls_started(self) -> None:
        """The handshake is done; what comes from now on came within TLS.

        What the client said before is forgotten (RFC 3207 section 4.2).

        Raises:
            RuntimeError: no handshake was to be done.
        """
        if self._state is not State.TLS:
            raise RuntimeError("nobody asked for TLS")
        self._state = TRANSITIONS[self._state][TlsStarted]
        self.secure = True
        self.helo_name, self.extended = "", False
        self._mail_refused = self._chunk_refused = False

    def shutdown(self, reply: Reply = say.SHUTDOWN) -> None:
        """End the session with a reply (RFC 5321 section 3.8).

        A message that is being accepted gets its answer first: it may be on disk
        already, and a client that is not told sends it again.
        """
        if self._state is State.ENDED:
            return
        if isinstance(self._question, MessageReceived):
            self._farewell = reply
        else:
            self._end(reply)

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

    def _yes(self, accepted: "_Accepted", text: str, enhanced: str) -> bytes:
        if accepted.code == 220:
            # RFC 5321 section 4.2: the name is the first word of the greeting.
            text = f"{self._config.name} ESMTP {text or 'vnsmail'}"
        status = accepted.enhanced and (enhanced or accepted.enhanced)
        return Reply(accepted.code, (text or "ok",), status).encode()

    def _go_on(self) -> None:
        if self._farewell is not None:
            self._end(self._farewell)
        elif self._eof or self._at < len(self._input):
            self._advance()

    # Input -------------------------------------------------------------------------------

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
        end = self._input.find(b"\r\n", self._at)
        if end < 0:
            if len(self._input) - self._at > _LONGEST_LINE:
                # What is left is enough to find the CRLF that is cut in two.
                self._skipping_line = True
                self._at = len(self._input) - 1
            return False
        line = self._input[self._at : end]
        self._at = end + 2
        too_long, self._skipping_line = self._skipping_line, False
        if self._state is State.AUTH:
            self._take_response(line, too_long=too_long)
            return True
        if too_long:
            self._complain(say.TOO_LONG)
            return True
        try:
            command = said.parse(line)
        except SmtpSyntaxError as error:
            self._refuse_line(line, error.reply)
            return True
        step = type(command)
        if step not in TRANSITIONS[self._state]:
            self._misplaced(command)
        else:
            self._HANDLERS[step](self, command)
        return True

    def _refuse_line(self, line: bytes, reply: Reply) -> None:
        verb = line[:5].upper()
        if verb.rstrip() == b"BDAT":
            # How much follows is not known, and none of it may be taken for a command.
            self._end(reply)
            return
        self._note_refused(verb)
        self._complain(reply)

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

    # Refusals and ends -------------------------------------------------------------------

    def _complain(self, reply: Reply) -> None:
        """Answer something that makes no sense; hang up if that is too much of it."""
        self._errors += 1
        if self._errors > self._config.max_bad_commands:
            self._end(say.TOO_MANY_ERRORS)
        else:
            self._output.append(reply.encode())

    def _note_refused(self, verb: bytes) -> None:
        """Remember that what a pipelined group is built on does not stand."""
        if verb == b"MAIL " and self._state is State.IDLE:
            self._mail_refused = True
        elif verb == b"RCPT " and self._state is State.SENDER:
            self._refused_recipients += 1

    def _misplaced(self, command: said.Command) -> None:
        """Answer a command that may not come now.

        A client that pipelines has sent RCPT and DATA before it can know that MAIL or
        every RCPT was refused (RFC 2920 section 3.1). That is no error of the client,
        however many recipients there are.
        """
        bdat = isinstance(command, said.Bdat)
        body = bdat or isinstance(command, said.Data)
        pipelined = (
            (body or isinstance(command, said.Rcpt))
            and self._state is State.IDLE
            and self._mail_refused
        ) or (body and self._no_recipient_left)
        if isinstance(command, said.Bdat):
            # Octets that follow are none of a command, whatever the command is worth.
            self._skip = command.size
            pipelined = pipelined or self._chunk_refused
        reply = self._out_of_place(command)
        if pipelined:
            self._output.append(reply.encode())
        else:
            self._complain(reply)

    @property
    def _no_recipient_left(self) -> bool:
        return self._state is State.SENDER and self._refused_recipients > 0

    def _out_of_place(self, command: said.Command) -> Reply:
        in_transaction = self._state in IN_TRANSACTION
        match command:
            case said.Data() | said.Bdat() if self._no_recipient_left:
                return say.NO_RECIPIENT
            case said.Mail() | said.Auth() | said.Starttls() if in_transaction:
                return say.IN_TRANSACTION
        return Reply(503, (OUT_OF_PLACE[self._state],), "5.5.1")

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

    # Commands: each is called in a state that allows it -----------------------------------

    def _ehlo(self, command: said.Ehlo) -> None:
        self._hello(command, command.name, extended=True)
        self._output.append(say.ehlo_reply(self._config, secure=self.secure))

    def _helo(self, command: said.Helo) -> None:
        self._hello(command, command.name, extended=False)
        self._output.append(Reply(250, (self._config.name,)).encode())

    def _hello(self, command: said.Command, name: str, *, extended: bool) -> None:
        self._abort()
        self._mail_refused = self._chunk_refused = False
        self._state = TRANSITIONS[self._state][type(command)]
        self.helo_name, self.extended = name, extended

    def _starttls(self, _: said.Starttls) -> None:
        if self.secure:
            self._complain(say.TLS_ALREADY)
        elif not self._config.starttls:
            self._complain(say.NOT_AVAILABLE)
        else:
            self._ask(TlsRequested())

    def _auth(self, command: said.Auth) -> None:
        refusal = self._no_auth(command.mechanism)
        if refusal is not None:
            self._complain(refusal)
            return
        self._state = TRANSITIONS[self._state][said.Auth]
        self._ask(AuthRequested(command.mechanism, command.initial))

    def _no_auth(self, mechanism: str) -> Reply | None:
        """Return why nobody may sign in so, or now; None if somebody may."""
        config = self._config
        if not say.may_auth(config, secure=True):
            return say.NOT_AVAILABLE
        if not self.secure:
            return say.TLS_BEFORE_AUTH
        if self.signed_in:
            return say.SIGNED_IN_ALREADY
        return None if mechanism in config.mechanisms else say.NO_SUCH_MECHANISM

    def _mail_from(self, command: said.Mail) -> None:
        sender, size = command.sender, command.size
        self._mail_refused = True
        if self._config.role is Role.SUBMISSION and not self.signed_in:
            # RFC 6409 section 4.3, RFC 4954 section 6.
            first = say.AUTH_BEFORE_MAIL if self.secure else say.TLS_BEFORE_MAIL
            self._complain(first)
            return
        if not command.smtputf8 and sender and sender.needs_smtputf8:
            self._output.append(say.NEEDS_SMTPUTF8)
            return
        if size is not None and size > self._config.max_message_size:
            self._output.append(say.TOO_BIG)
            return
        self._mail_refused = self._chunk_refused = False
        self._mail = command
        self._recipients = self._refused_recipients = 0
        eight_bit = command.body == "8BITMIME"
        utf8 = command.smtputf8
        self._ask(
            MailRequested(sender, size, eight_bit, utf8, command.ret, command.envid)
        )

    def _rcpt_to(self, command: said.Rcpt) -> None:
        recipient = command.recipient
        if not self._mail.smtputf8 and recipient.needs_smtputf8:
            self._refused_recipients += 1
            self._output.append(say.NEEDS_SMTPUTF8)
        elif self._recipients >= self._config.max_recipients:
            self._output.append(say.TOO_MANY_RECIPIENTS)
        else:
            self._ask(RecipientRequested(recipient, command.notify, command.orcpt))

    def _data(self, _: said.Data) -> None:
        self._chunk = None
        self._begin_body()

    def _bdat(self, command: said.Bdat) -> None:
        self._chunk = command
        if self._state is State.CHUNKS:
            self._begin_chunk(command)
        else:
            self._begin_body()

    def _begin_body(self) -> None:
        declared = self._mail.body
        seven_bit = declared == "7BIT" or (
            self._config.strict_8bit and declared != "8BITMIME"
        )
        self._body = BodyIntake(self._config.max_message_size, seven_bit=seven_bit)
        self._ask(DataRequested())

    def _rset(self, command: said.Rset) -> None:
        self._abort()
        self._mail_refused = self._chunk_refused = False
        self._state = TRANSITIONS[self._state][type(command)]
        self._output.append(say.OK)

    def _noop(self, _: said.Noop) -> None:
        self._output.append(say.OK)

    def _help(self, _: said.Help) -> None:
        self._output.append(say.HELP)

    def _vrfy(self, _: said.Vrfy) -> None:
        self._output.append(say.TRY_IT)

    def _unknown(self, command: said.Unknown) -> None:
        if command.verb in _NOT_HERE:
            self._complain(say.NOT_AVAILABLE)
        else:
            self._complain(say.NO_SUCH_COMMAND)

    def _quit(self, _: said.Quit) -> None:
        self._output.append(f"221 2.0.0 {self._config.name} closing\r\n".encode())
        self._leave(clean=True)

    _HANDLERS: ClassVar[_Handlers] = {
        said.Ehlo: _ehlo,
        said.Helo: _helo,
        said.Mail: _mail_from,
        said.Rcpt: _rcpt_to,
        said.Data: _data,
        said.Bdat: _bdat,
        said.Starttls: _starttls,
        said.Auth: _auth,
        said.Rset: _rset,
        said.Noop: _noop,
        said.Help: _help,
        said.Vrfy: _vrfy,
        said.Unknown: _unknown,
        said.Quit: _quit,
    }
