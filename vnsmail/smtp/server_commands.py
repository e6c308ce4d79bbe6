"""The commands of a server session, each called in a state that allows it.

Rules of this file: what may follow what is in the table of server_states and nowhere
else; what a client pipelined before it could know of a refusal is no error of its own.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias

from vnsmail.model import Role
from vnsmail.smtp import commands as said
from vnsmail.smtp import server_replies as say
from vnsmail.smtp.errors import SmtpSyntaxError
from vnsmail.smtp.replies import Reply
from vnsmail.smtp.server_body import BodyIntake
from vnsmail.smtp.server_events import (
    AuthRequested,
    DataRequested,
    MailRequested,
    RecipientRequested,
    TlsRequested,
)
from vnsmail.smtp.server_parts import BodyParts
from vnsmail.smtp.server_states import (
    IN_TRANSACTION,
    OUT_OF_PLACE,
    TRANSITIONS,
    State,
)

_LONGEST_LINE = said.MAX_AUTH

# Known commands of other extensions: RFC 5321 section 4.2.4 has 502 for them.
_NOT_HERE = {"EXPN", "TURN", "ETRN", "SEND", "SOML", "SAML"}

_Handlers: TypeAlias = Mapping[type[said.Command], Callable[["Commands", Any], None]]


class Commands(BodyParts):
    """Takes lines, and does what they say."""

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
        if command.require_tls and not self.secure:
            # RFC 8689 section 4.1: it is there within TLS only.
            self._complain(say.REQUIRETLS_IN_PLAIN)
            return
        if size is not None and size > self._config.max_message_size:
            self._output.append(say.TOO_BIG)
            return
        self._mail_refused = self._chunk_refused = False
        self._mail = command
        self._recipients = self._refused_recipients = 0
        eight_bit = command.body == "8BITMIME"
        utf8 = command.smtputf8
        asked = (command.ret, command.envid, command.require_tls)
        self._ask(MailRequested(sender, size, eight_bit, utf8, *asked))

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
