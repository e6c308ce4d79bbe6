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
replies however they are cut, with one exception: a client that talks before the
greeting is turned away (RFC 5321 section 3.1 makes it wait).
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, TypeAlias

from vnsmail.smtp import commands as said
from vnsmail.smtp.body import BodyDecoder
from vnsmail.smtp.errors import SmtpSyntaxError
from vnsmail.smtp.replies import Reply
from vnsmail.smtp.server_events import (
    BodyReceived,
    Connected,
    DataRequested,
    Event,
    MailRequested,
    MessageReceived,
    Question,
    RecipientRequested,
    SessionEnded,
    TransactionAborted,
)
from vnsmail.smtp.server_states import (
    IN_TRANSACTION,
    OUT_OF_PLACE,
    TRANSITIONS,
    EndOfBody,
    State,
    Step,
)

__all__ = [
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
    "TransactionAborted",
]


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Who the server is, and its limits."""

    name: str
    """Its name in greeting and EHLO."""
    max_message_size: int
    """Octets of a body; announced with SIZE (RFC 1870)."""
    max_recipients: int = 1000
    """Recipients of one transaction (100 at least: RFC 5321 section 4.5.3.1.8)."""
    max_bad_commands: int = 20
    """Commands that make no sense between two messages; Postfix, too, hangs up at 20
    (smtpd_hard_error_limit)."""


_LONGEST_LINE = said.MAX_MAIL

_OK = b"250 2.0.0 ok\r\n"
_SENDER_OK = b"250 2.1.0 sender ok\r\n"
_RECIPIENT_OK = b"250 2.1.5 recipient ok\r\n"
_MESSAGE_OK = b"250 2.0.0 accepted\r\n"
_GO_AHEAD = b"354 end with <CRLF>.<CRLF>\r\n"
# RFC 5321 section 3.5.3: 252 promises nothing, and tells nobody who has a mailbox.
_TRY_IT = b"252 2.5.0 send mail and see\r\n"
_HELP = b"214 2.0.0 see RFC 5321\r\n"

_SHUTDOWN = Reply(421, ("closing down, try again later",), "4.3.2")
_TALKED_EARLY = Reply(554, ("you talked before the greeting",), "5.5.1")
_TOO_MANY_ERRORS = Reply(421, ("too many errors",), "4.7.0")
_TOO_MANY_RECIPIENTS = Reply(452, ("too many recipients",), "4.5.3").encode()
_TOO_BIG = Reply(552, ("the message is too big",), "5.3.4").encode()
# The code that Postfix and Sendmail use as well for this.
_BARE_NEWLINE = Reply(554, ("bare CR or LF in the message",), "5.6.11").encode()
_NEEDS_SMTPUTF8 = Reply(553, ("the address needs SMTPUTF8",), "5.6.7").encode()
_TOO_LONG = Reply(500, ("line too long",), "5.5.2")
_NO_RECIPIENT = Reply(554, ("no valid recipients",), "5.5.1")


class _Accepted(NamedTuple):
    """What follows if a question is answered with yes."""

    step: Step
    code: int
    enhanced: str
    reply: bytes
    """The reply in full; empty if it has to be made."""


_ACCEPTED: Mapping[type[Question], _Accepted] = {
    Connected: _Accepted(Connected, 220, "", b""),
    MailRequested: _Accepted(said.Mail, 250, "2.1.0", _SENDER_OK),
    RecipientRequested: _Accepted(said.Rcpt, 250, "2.1.5", _RECIPIENT_OK),
    DataRequested: _Accepted(said.Data, 354, "", _GO_AHEAD),
    MessageReceived: _Accepted(MessageReceived, 250, "2.0.0", _MESSAGE_OK),
}

# Known commands of other extensions: RFC 5321 section 4.2.4 has 502 for them.
_NOT_HERE = {"EXPN", "TURN", "ETRN", "STARTTLS", "AUTH", "BDAT", "SEND", "SOML", "SAML"}


@lru_cache(maxsize=1024)
def _ehlo_reply(config: ServerConfig) -> bytes:
    extensions = (
        "PIPELINING",
        f"SIZE {config.max_message_size}",
        "8BITMIME",
        "SMTPUTF8",
        "ENHANCEDSTATUSCODES",
        "VRFY",
        "HELP",
    )
    return Reply(250, (config.name, *extensions)).encode()


_Handlers: TypeAlias = Mapping[
    type[said.Command], Callable[["ServerSession", Any], None]
]


class ServerSession:
    """One session, from the connection to its end."""

    def __init__(self, config: ServerConfig) -> None:
        self.helo_name = ""
        """What the client calls itself; empty before EHLO or HELO."""
        self.extended = False
        """The client said EHLO."""
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
        self._body = BodyDecoder()
        self._size = 0
        self._unwanted = False
        """The body is too big or not canonical: it is read, and thrown away."""
        self._ask(Connected())

    # What the driver does --------------------------------------------------------------

    @property
    def closing(self) -> bool:
        """Close the connection, once everything in data_to_send() is written."""
        return self._state is State.ENDED

    @property
    def in_body(self) -> bool:
        """Whether what comes now belongs to a body, wanted or not."""
        return self._state is State.BODY

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
            self._end(_TALKED_EARLY)
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
        if isinstance(question, RecipientRequested):
            self._refused_recipients += 1
        elif isinstance(question, MailRequested):
            self._mail_refused = True
        elif isinstance(question, MessageReceived):
            self._message_done()
        self._go_on()

    def shutdown(self, reply: Reply = _SHUTDOWN) -> None:
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
            in_body = self._state is State.BODY
            if not (self._take_body() if in_body else self._take_line()):
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
        if self._skipping_line:
            self._skipping_line = False
            self._complain(_TOO_LONG)
            return True
        try:
            command = said.parse(line)
        except SmtpSyntaxError as error:
            self._note_refused(line[:5].upper())
            self._complain(error.reply)
            return True
        step = type(command)
        if step not in TRANSITIONS[self._state]:
            self._misplaced(command)
        else:
            self._HANDLERS[step](self, command)
        return True

    def _take_body(self) -> bool:
        """Work on a piece of the body; False if none is there."""
        if self._at == len(self._input):
            return False
        data = self._input[self._at :] if self._at else self._input
        payload, end, self._input = self._body.feed(data)
        self._at = 0
        if payload and not self._unwanted:
            self._size += len(payload)
            too_big = self._size > self._config.max_message_size
            self._unwanted = too_big or self._body.bare_newline
            self._events.append(
                TransactionAborted() if self._unwanted else BodyReceived(payload)
            )
        if end:
            self._end_of_body()
        return True

    def _end_of_body(self) -> None:
        self._state = TRANSITIONS[self._state][EndOfBody]
        if self._unwanted:
            self._message_done()
            # The worse fault is named, wherever in the body it was.
            bare = self._body.bare_newline
            self._output.append(_BARE_NEWLINE if bare else _TOO_BIG)
            return
        mail = self._mail
        self._ask(MessageReceived(self._size, mail.body == "8BITMIME", mail.smtputf8))

    def _message_done(self) -> None:
        # Whatever the answer was, the transaction is over: RFC 5321 section 4.1.1.4.
        self._state = TRANSITIONS[self._state][MessageReceived]

    # Refusals and ends -------------------------------------------------------------------

    def _complain(self, reply: Reply) -> None:
        """Answer something that makes no sense; hang up if that is too much of it."""
        self._errors += 1
        if self._errors > self._config.max_bad_commands:
            self._end(_TOO_MANY_ERRORS)
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
        pipelined = (
            isinstance(command, said.Rcpt | said.Data)
            and self._state is State.IDLE
            and self._mail_refused
        ) or (isinstance(command, said.Data) and self._no_recipient_left)
        reply = self._out_of_place(command)
        if pipelined:
            self._output.append(reply.encode())
        else:
            self._complain(reply)

    @property
    def _no_recipient_left(self) -> bool:
        return self._state is State.SENDER and self._refused_recipients > 0

    def _out_of_place(self, command: said.Command) -> Reply:
        if isinstance(command, said.Data) and self._no_recipient_left:
            return _NO_RECIPIENT
        if isinstance(command, said.Mail) and self._state is State.SENDER:
            return Reply(503, ("a transaction is under way",), "5.5.1")
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
        if self._state in IN_TRANSACTION and not (
            self._state is State.BODY and self._unwanted
        ):
            self._events.append(TransactionAborted())

    # Commands: each is called in a state that allows it -----------------------------------

    def _ehlo(self, command: said.Ehlo) -> None:
        self._hello(command, command.name, extended=True)
        self._output.append(_ehlo_reply(self._config))

    def _helo(self, command: said.Helo) -> None:
        self._hello(command, command.name, extended=False)
        self._output.append(Reply(250, (self._config.name,)).encode())

    def _hello(self, command: said.Command, name: str, *, extended: bool) -> None:
        self._abort()
        self._mail_refused = False
        self._state = TRANSITIONS[self._state][type(command)]
        self.helo_name, self.extended = name, extended

    def _mail_from(self, command: said.Mail) -> None:
        sender, size = command.sender, command.size
        self._mail_refused = True
        if not command.smtputf8 and sender and sender.needs_smtputf8:
            self._output.append(_NEEDS_SMTPUTF8)
            return
        if size is not None and size > self._config.max_message_size:
            self._output.append(_TOO_BIG)
            return
        self._mail_refused = False
        self._mail = command
        self._recipients = self._refused_recipients = 0
        eight_bit = command.body == "8BITMIME"
        self._ask(MailRequested(sender, size, eight_bit, command.smtputf8))

    def _rcpt_to(self, command: said.Rcpt) -> None:
        recipient = command.recipient
        if not self._mail.smtputf8 and recipient.needs_smtputf8:
            self._refused_recipients += 1
            self._output.append(_NEEDS_SMTPUTF8)
        elif self._recipients >= self._config.max_recipients:
            self._output.append(_TOO_MANY_RECIPIENTS)
        else:
            self._ask(RecipientRequested(recipient))

    def _data(self, _: said.Data) -> None:
        self._body = BodyDecoder()
        self._size = 0
        self._unwanted = False
        self._ask(DataRequested())

    def _rset(self, command: said.Rset) -> None:
        self._abort()
        self._mail_refused = False
        self._state = TRANSITIONS[self._state][type(command)]
        self._output.append(_OK)

    def _noop(self, _: said.Noop) -> None:
        self._output.append(_OK)

    def _help(self, _: said.Help) -> None:
        self._output.append(_HELP)

    def _vrfy(self, _: said.Vrfy) -> None:
        self._output.append(_TRY_IT)

    def _unknown(self, command: said.Unknown) -> None:
        if command.verb in _NOT_HERE:
            self._complain(Reply(502, ("this is not available",), "5.5.1"))
        else:
            self._complain(Reply(500, ("there is no such command",), "5.5.1"))

    def _quit(self, _: said.Quit) -> None:
        self._output.append(f"221 2.0.0 {self._config.name} closing\r\n".encode())
        self._leave(clean=True)

    _HANDLERS: ClassVar[_Handlers] = {
        said.Ehlo: _ehlo,
        said.Helo: _helo,
        said.Mail: _mail_from,
        said.Rcpt: _rcpt_to,
        said.Data: _data,
        said.Rset: _rset,
        said.Noop: _noop,
        said.Help: _help,
        said.Vrfy: _vrfy,
        said.Unknown: _unknown,
        said.Quit: _quit,
    }
