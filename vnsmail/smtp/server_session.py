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

from collections.abc import Mapping
from typing import NamedTuple

from vnsmail.smtp import commands as said
from vnsmail.smtp import server_replies as say
from vnsmail.smtp.replies import Reply
from vnsmail.smtp.server_commands import Commands
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
    TRANSITIONS,
    EndOfAuth,
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


_HINDERED = {Connected, TlsRequested, DataRequested}
"""Where a yes may not come to what was asked."""


class ServerSession(Commands):
    """One session, from the connection to its end."""

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
        kind = type(question)
        if kind in _HINDERED and self._hindered(question):
            return
        accepted = _ACCEPTED[kind]
        if text or enhanced or not accepted.reply:
            self._output.append(self._yes(accepted, text, enhanced))
        else:
            self._output.append(accepted.reply)
        if kind is RecipientRequested:
            self._recipients += 1
        elif kind is MessageReceived:
            self._errors = 0
        elif accepted.step is EndOfAuth:
            self.signed_in = True
        self._state = TRANSITIONS[self._state][accepted.step]
        if self._eof or self._at < len(self._input) or self._farewell is not None:
            self._go_on()

    def _hindered(self, question: Question) -> bool:
        """Do what follows from a yes where that is no reply, or another one."""
        kind = type(question)
        if self._early and kind is Connected:
            self._end(say.TALKED_EARLY)
        elif kind is TlsRequested and self.buffered:
            self._end(say.TALKED_BEFORE_TLS)
        elif kind is DataRequested and self._chunk is not None:
            self._begin_chunk(self._chunk)
            self._advance()  # an empty chunk is whole without any input
        else:
            return False
        return True

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
