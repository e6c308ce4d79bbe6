"""The client's side of an SMTP session (RFC 5321), as bytes in, events and bytes out.

LMTP (RFC 2033) is the same but for the hello, and for a reply to the body from each
recipient. Where the server has PIPELINING and CHUNKING (RFC 3030), the body goes in
BDAT commands: a short one along with the envelope, before anything is answered.

    session.receive_data(data)
    while (event := session.next_event()) is not None:
        ...
    transport.write(session.data_to_send())
    if session.closing: ...                 # close when that is written

Rules of this file. A reply belongs to the oldest command without one, and only to a
command that was on its way already when the reply came: what comes too early, or for
nothing, ends the connection, so that no reply is ever taken for another's. A transaction
ends with one reply for each recipient, whatever happens. What was said of a recipient
for good is never replaced by a later accident.
"""

import re
from collections import deque
from collections.abc import Callable, Mapping
from enum import IntEnum, auto
from typing import ClassVar, TypeAlias

from vnsmail.smtp.body import BodyEncoder, ChunkEncoder
from vnsmail.smtp.client_events import (
    BodyWanted,
    Disconnected,
    Event,
    NoTls,
    NotSignedIn,
    Ready,
    Refused,
    SaslExchange,
    SignIn,
    StartTls,
    Transaction,
    TransactionFinished,
    Wish,
)
from vnsmail.smtp.client_work import Work, prepare
from vnsmail.smtp.commands import (
    Auth,
    Data,
    Ehlo,
    Helo,
    Quit,
    Rset,
    Starttls,
    decode_base64,
    encode,
    encode_base64,
)
from vnsmail.smtp.errors import SmtpProtocolError
from vnsmail.smtp.replies import Reply, ReplyParser

__all__ = [
    "BodyWanted",
    "ClientSession",
    "Disconnected",
    "Event",
    "NoTls",
    "NotSignedIn",
    "Ready",
    "Refused",
    "StartTls",
    "Transaction",
    "TransactionFinished",
    "Wish",
]

_EXTENSION = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?: +(.*))?")

AT_ONCE = 65536
"""Octets of a body that go along with the envelope. Should nobody get them, little is
lost; a larger body waits until somebody does."""

_DATA = encode(Data())
_RSET = encode(Rset())
_QUIT = encode(Quit())
_STARTTLS = encode(Starttls())

CONTINUE = 334
"""The server wants an answer (RFC 4954 section 4)."""

MAX_LINE = 512
"""Octets of a command line (RFC 5321 section 4.5.3.1.4)."""

_IN_PLAIN = Reply(454, ("nobody signs in without TLS",), "4.7.4")
_CALLED_OFF = Reply(
    454, ("signing in was called off: what the server said is wrong",), "4.7.0"
)
_UNPROVEN = Reply(
    454, ("the server has not proven that it knows the password",), "4.7.0"
)
_NOBODY = Reply(554, ("there is nobody to send to",), "5.5.1")


class State(IntEnum):
    """Where the session is."""

    OPENING = auto()
    """Greeting and hello."""
    HANDSHAKE = auto()
    """The caller shakes hands; the server can say nothing."""
    IDLE = auto()
    """Between transactions."""
    ENVELOPE = auto()
    """MAIL, RCPT and DATA are said, or their replies awaited."""
    BODY = auto()
    """The caller sends the body."""
    CLOSE = auto()
    """The body was sent; its reply is awaited."""
    UNWANTED = auto()
    """The server refused us and still listens: there is nothing to do but to quit."""
    QUITTING = auto()
    ENDED = auto()


_NOT_READY = {State.OPENING, State.HANDSHAKE}


class _Step(IntEnum):
    """What a reply is awaited for."""

    GREETING = auto()
    EHLO = auto()
    HELO = auto()
    STARTTLS = auto()
    AUTH = auto()
    MAIL = auto()
    RCPT = auto()
    DATA = auto()
    CHUNK = auto()
    """A piece of the body that is not the last."""
    MESSAGE = auto()
    NO_MESSAGE = auto()
    """A dot alone, as the server wants a body for nobody."""
    RSET = auto()
    QUIT = auto()


_OnReply: TypeAlias = Callable[["ClientSession", Reply], None]
_OnTransactionReply: TypeAlias = Callable[["ClientSession", Reply, Work], None]


class ClientSession:
    """One session, from the connection to its end.

    Args:
        helo_name: how we call ourselves: a domain name or an address literal.
        tls: whether STARTTLS (RFC 3207) is said.
        lmtp: the server speaks LMTP.
        implicit: TLS is there from the beginning (RFC 8314 section 3.3); a handshake is
            the first that is asked for.
        sign_in: who signs in (RFC 4954), always within TLS; None: nobody.
        plain: the server will have proven who it is, and may see a password.

    Raises:
        SmtpSyntaxError: it is neither.
    """

    def __init__(
        self,
        helo_name: str,
        tls: Wish = Wish.NEVER,
        *,
        lmtp: bool = False,
        implicit: bool = False,
        sign_in: SignIn | None = None,
        plain: bool = False,
    ) -> None:
        self._sign_in = sign_in
        self._plain = plain
        self._exchange: SaslExchange | None = None
        self._unsaid: bytes | None = None
        """The first response, where it did not fit on the line of AUTH."""
        self._implicit = implicit
        self._lmtp = lmtp
        self._tls = tls
        self._secure = False
        self._ehlo = encode(Ehlo(helo_name))
        if lmtp:
            self._ehlo = b"LHLO" + self._ehlo.removeprefix(b"EHLO")
        self._helo = encode(Helo(helo_name))
        self._state = State.OPENING
        self._replies = ReplyParser()
        self._output: list[bytes] = []
        self._events: deque[Event] = deque()
        self._unsent: list[_Step] = []
        """Steps whose command is in _output."""
        self._awaited: deque[_Step] = deque([_Step.GREETING])
        """Steps whose command was taken to be sent; the oldest first."""
        self._extensions: Mapping[str, str] = {}
        self._work: Work | None = None
        self._body: BodyEncoder | ChunkEncoder = BodyEncoder()
        self._held_back = False
        """The work waits for the reply to RSET."""
        if implicit:
            self._state = State.HANDSHAKE
            self._awaited.clear()
            self._events.append(StartTls())

    # What the driver does --------------------------------------------------------------

    @property
    def closing(self) -> bool:
        """Close the connection, once everything in data_to_send() is written."""
        return self._state is State.ENDED

    @property
    def offers_dsn(self) -> bool:
        """Whether the server takes over notifications (RFC 3461)."""
        return "DSN" in self._extensions

    def tls_established(self) -> None:
        """Go on within TLS: what was said before counts for nothing (RFC 3207 4.2).

        Raises:
            RuntimeError: no handshake was asked for.
        """
        if self._state is not State.HANDSHAKE:
            raise RuntimeError("there was nothing to shake hands for")
        self._secure = True
        self._state = State.OPENING
        if self._implicit:
            self._awaited.append(_Step.GREETING)
        else:
            self._say(self._ehlo, _Step.EHLO)

    def receive_data(self, data: bytes) -> None:
        """Take what the server sent; after the session ended it is thrown away."""
        try:
            while self._state is not State.ENDED:
                replies = self._replies.feed(data)
                if not replies:
                    return
                for reply in replies:
                    self._take(reply)
                data = b""
        except SmtpProtocolError as error:
            text = f"protocol error: {error}"
            self._break(Reply(421, (text,), "4.5.0"), Disconnected(text))

    def receive_eof(self) -> None:
        """The server sends no more."""
        text = "connection lost"
        work = self._work
        if work is not None and work.body_sent and work.answered:
            # RFC 5321 section 4.5.3.2.6, RFC 1047: nobody can know.
            text += " before the reply; the message may have been delivered"
        self._break(_lost(text), Disconnected(text))

    def data_to_send(self) -> bytes:
        """Return what is to be written, and forget it."""
        data = b"".join(self._output)
        self._output.clear()
        self._awaited += self._unsent
        self._unsent.clear()
        return data

    def next_event(self) -> Event | None:
        """Return the next event, None while there is none."""
        return self._events.popleft() if self._events else None

    def begin(self, transaction: Transaction) -> None:
        """Begin a transaction; TransactionFinished will come, BodyWanted may before.

        What this server cannot take is finished at once, and nothing is sent. So is
        everything, with 421, after the session ended.

        Raises:
            RuntimeError: the session is not ready, or in a transaction; or the message
                is only for TLS, and there is none.
        """
        if self._work is not None or self._state in _NOT_READY:
            raise RuntimeError("the session is not ready for a transaction")
        if transaction.require_tls and transaction.sender and not self._secure:
            raise RuntimeError("what is only for TLS is not sent in plain")
        work = prepare(transaction, self._extensions)
        if self._state is not State.IDLE:
            self._finish(work, _lost("connection lost"))
        elif not work.rcpts:
            self._finish(work, _NOBODY)
        else:
            self._work = work
            self._state = State.ENVELOPE
            self._held_back = not self._pipelining and self._waits
            if not self._held_back:
                self._say_envelope(work)

    def send_body(self, chunk: bytes) -> None:
        """Send the next piece of the body, in canonical form (RFC 5321 2.3.8).

        If the transaction is over, as the connection broke, this does nothing.

        Raises:
            SmtpProtocolError: the body has a bare CR or LF. The session is over: the
                connection has to be closed, or what was sent would become a message.
            RuntimeError: no body is wanted.
        """
        if self._send(lambda: self._body.encode(chunk)) and self._chunked:
            self._unsent.append(_Step.CHUNK)

    def finish_body(self) -> None:
        """End the body.

        Raises:
            SmtpProtocolError, RuntimeError: as send_body().
        """
        if self._send(self._body.finish) and self._work is not None:
            self._work.body_sent = True
            self._state = State.CLOSE
            self._unsent.append(_Step.MESSAGE)

    def quit(self) -> None:
        """Say QUIT; ``closing`` becomes true with its reply.

        Raises:
            RuntimeError: a transaction is under way.
        """
        if self._work is not None:
            raise RuntimeError("a transaction is under way")
        if self._state not in {State.QUITTING, State.ENDED}:
            self._state = State.QUITTING
            self._say(_QUIT, _Step.QUIT)

    # Saying ------------------------------------------------------------------------------

    @property
    def _pipelining(self) -> bool:
        return "PIPELINING" in self._extensions

    @property
    def _waits(self) -> bool:
        return bool(self._awaited or self._unsent)

    def _say(self, line: bytes, step: _Step) -> None:
        self._output.append(line)
        self._unsent.append(step)

    @property
    def _chunked(self) -> bool:
        """Whether bodies go in BDAT: with a wait for each reply, it gains nothing."""
        return self._pipelining and "CHUNKING" in self._extensions and not self._lmtp

    def _say_envelope(self, work: Work) -> None:
        self._say(work.mail, _Step.MAIL)
        if not self._pipelining:
            return
        for _, line in work.rcpts:
            self._say(line, _Step.RCPT)
        if not self._chunked:
            self._say(_DATA, _Step.DATA)
        elif work.body_size <= AT_ONCE:
            self._want_body()

    def _want_body(self) -> None:
        self._state = State.BODY
        self._body = ChunkEncoder() if self._chunked else BodyEncoder()
        self._events.append(BodyWanted())

    def _send(self, encoded: Callable[[], bytes]) -> bool:
        """Send what is given; say whether there was something to send."""
        if self._state is State.ENDED or self._refused_in_pieces:
            return False
        if self._state is not State.BODY:
            raise RuntimeError("no body is wanted")
        try:
            data = encoded()
        except SmtpProtocolError:
            self._state, self._work = State.ENDED, None
            raise
        self._output.append(data)
        return bool(data)

    @property
    def _refused_in_pieces(self) -> bool:
        """Whether a chunk was refused: no more of them are sent."""
        return self._work is not None and self._work.chunk_refusal is not None

    # Replies -----------------------------------------------------------------------------

    def _take(self, reply: Reply) -> None:
        """Take the next reply.

        Raises:
            SmtpProtocolError: it makes no sense here.
        """
        if self._state is State.ENDED:
            return
        if reply.code == 421:
            # RFC 5321 section 3.8: it may come at any time, and the server hangs up.
            self._break(reply, Refused(reply))
        elif self._awaited:
            step = self._awaited.popleft()
            if self._state is not State.QUITTING or step is _Step.QUIT:
                _check_kind(step, reply)
                if self._work is not None and step in self._IN_TRANSACTION:
                    self._IN_TRANSACTION[step](self, reply, self._work)
                else:
                    self._OUTSIDE[step](self, reply)
        elif self._state in {State.BODY, State.CLOSE} and reply.code >= 400:
            # Refused before its end; the rest of it would be taken for commands.
            self._break(reply, Refused(reply))
        else:
            raise SmtpProtocolError("the server sent a reply to nothing")

    def _break(self, reply: Reply, event: Event) -> None:
        """End the session: with a reply for each recipient, or else with the event."""
        before, self._state = self._state, State.ENDED
        if self._work is not None:
            self._finish(self._work, reply)
        elif before is State.HANDSHAKE:
            # Said in plain where TLS was to begin: by somebody in between, perhaps.
            self._events.clear()
            self._events.append(NoTls(f"after STARTTLS: {reply.text}"))
        elif before in {State.OPENING, State.IDLE}:
            self._events.append(event)

    def _finish(self, work: Work, last: Reply) -> None:
        if self._work is not None and self._state is not State.ENDED:
            self._state = State.IDLE
        self._work = None
        self._events.append(TransactionFinished(work.replies(last), work.answered))

    # Each is called with a reply of 2yz (3yz for DATA), 4yz or 5yz, but not 421 -----------

    def _on_greeting(self, reply: Reply) -> None:
        if reply.is_positive:
            self._say(self._ehlo, _Step.EHLO)
        else:
            self._unwanted(reply)

    def _on_ehlo(self, reply: Reply) -> None:
        if reply.is_positive:
            found = (_EXTENSION.fullmatch(line) for line in reply.lines[1:])
            self._extensions = {m[1].upper(): m[2] or "" for m in found if m}
            self._greeted()
        elif reply.is_permanent and not self._lmtp:
            # RFC 5321 section 3.2: a server without EHLO says so with 5yz.
            self._say(self._helo, _Step.HELO)
        else:
            self._unwanted(reply)

    def _on_helo(self, reply: Reply) -> None:
        if reply.is_positive:
            self._greeted()
        else:
            self._unwanted(reply)

    def _greeted(self) -> None:
        """Go on after EHLO or HELO: with STARTTLS, if that is wanted and offered."""
        if self._secure or self._tls is Wish.NEVER:
            self._authenticate()
        elif "STARTTLS" in self._extensions:
            self._say(_STARTTLS, _Step.STARTTLS)
        elif self._tls is Wish.ALWAYS:
            self._state = State.UNWANTED
            self._events.append(NoTls("it does not offer STARTTLS"))
        else:
            self._authenticate()

    def _authenticate(self) -> None:
        """Sign in, if somebody is to; nothing of it is ever said in plain."""
        if self._sign_in is None:
            self._ready()
            return
        if not self._secure:
            self._not_signed_in(_IN_PLAIN)
            return
        offered = self._extensions.get("AUTH", "").upper().split()
        self._exchange = self._sign_in.begin(offered, plain=self._plain)
        if self._exchange is None:
            there = ", ".join(offered) or "nothing"
            safe = (
                "" if self._plain else "; its certificate proves nothing, so only SCRAM"
            )
            text = (
                f"the server offers no way to sign in that can be used: {there}{safe}"
            )
            self._not_signed_in(Reply(454, (text,), "4.7.4"))
            return
        first = self._exchange.first()
        line = encode(Auth(self._exchange.mechanism, first))
        if first is not None and len(line) > MAX_LINE:
            # RFC 4954 section 4: what is too long for the line comes by itself.
            self._unsaid = first
            line = encode(Auth(self._exchange.mechanism))
        self._say(line, _Step.AUTH)

    def _on_auth(self, reply: Reply) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            # It was called off; whatever is said to that, it is no success.
            self._not_signed_in(_CALLED_OFF if reply.code < 400 else reply)
        elif reply.code == CONTINUE:
            self._answer(exchange, reply)
        elif not reply.is_positive:
            self._not_signed_in(reply)
        elif not exchange.satisfied:
            self._not_signed_in(_UNPROVEN)
        else:
            self._ready()

    def _answer(self, exchange: SaslExchange, reply: Reply) -> None:
        challenge = decode_base64(reply.text.strip()) if reply.text.strip() else b""
        if self._unsaid is not None and not challenge:
            response: bytes | None = self._unsaid
        else:
            response = None if challenge is None else exchange.respond(challenge)
        self._unsaid = None
        if response is None:
            self._say(b"*\r\n", _Step.AUTH)
            return
        self._exchange = exchange
        self._say(encode_base64(response).encode() + b"\r\n", _Step.AUTH)

    def _not_signed_in(self, reply: Reply) -> None:
        self._state = State.UNWANTED
        self._events.append(NotSignedIn(reply))

    def _on_starttls(self, reply: Reply) -> None:
        if not reply.is_positive:
            self._state = State.UNWANTED
            self._events.append(
                NoTls(f"it refuses STARTTLS: {reply.code} {reply.text}")
            )
            return
        self._state = State.HANDSHAKE
        self._extensions = {}
        # The beginning of a line that came behind the reply was said in plain.
        self._replies = ReplyParser()
        self._events.append(StartTls())

    def _ready(self) -> None:
        self._state = State.IDLE
        self._events.append(Ready(self._extensions))

    def _unwanted(self, reply: Reply) -> None:
        self._state = State.UNWANTED
        self._events.append(Refused(reply))

    def _on_mail(self, reply: Reply, work: Work) -> None:
        work.answered = True
        if not reply.is_positive:
            work.mail_refusal = reply
        if self._pipelining:
            return
        if reply.is_positive:
            self._say_next(work)
        else:
            self._finish(work, reply)

    def _on_rcpt(self, reply: Reply, work: Work) -> None:
        to, _ = work.rcpts.popleft()
        if reply.is_positive:
            work.accepted.append(to)
        elif work.mail_refusal is None:
            work.final[to] = reply
        if not self._pipelining:
            self._say_next(work)
        elif self._chunked and not work.rcpts and self._state is State.ENVELOPE:
            self._say_chunks(work)

    def _say_chunks(self, work: Work) -> None:
        """Go on when all recipients of a large body are answered."""
        if work.accepted and work.mail_refusal is None:
            self._want_body()
            return
        if work.mail_refusal is None or work.accepted:
            self._say(_RSET, _Step.RSET)
        self._finish(work, _NOBODY)

    def _say_next(self, work: Work) -> None:
        """Go on where the server has no PIPELINING."""
        if work.rcpts:
            self._say(work.rcpts[0][1], _Step.RCPT)
        elif work.accepted:
            self._say(_DATA, _Step.DATA)
        else:
            self._say(_RSET, _Step.RSET)
            self._finish(work, _NOBODY)

    def _on_data(self, reply: Reply, work: Work) -> None:
        if reply.code >= 400:
            # A transaction that was begun stays open: RFC 5321 section 3.3.
            if work.mail_refusal is None:
                self._say(_RSET, _Step.RSET)
            self._finish(work, reply)
        elif work.accepted and work.mail_refusal is None:
            self._want_body()
        elif self._lmtp:
            # Nobody is there to answer for.
            self._output.append(b".\r\n")
            self._finish(work, _NOBODY)
        else:
            # RFC 2920 section 3.1: the server waits for a body all the same.
            self._say(b".\r\n", _Step.NO_MESSAGE)

    def _on_chunk(self, reply: Reply, work: Work) -> None:
        if not reply.is_positive and work.chunk_refusal is None:
            work.chunk_refusal = reply
        if work.chunk_refusal is not None:
            self._end_chunks(work)

    def _end_chunks(self, work: Work) -> None:
        """Finish a refused body, when what was sent of it is answered."""
        on_their_way = {*self._awaited, *self._unsent}
        if work.chunk_refusal is None or on_their_way & {_Step.CHUNK, _Step.MESSAGE}:
            return
        # RFC 3030 section 2: what is open then, only RSET settles.
        self._say(_RSET, _Step.RSET)
        self._finish(work, work.chunk_refusal)

    def _on_message(self, reply: Reply, work: Work) -> None:
        if self._lmtp:
            # RFC 2033 section 4.2: one for each who was accepted, in their order.
            work.final[work.accepted.pop(0)] = reply
            if work.accepted:
                self._awaited.appendleft(_Step.MESSAGE)
                return
        elif self._chunked and (work.chunk_refusal or not reply.is_positive):
            work.chunk_refusal = work.chunk_refusal or reply
            self._end_chunks(work)
            return
        self._finish(work, reply)

    def _on_end(self, reply: Reply, work: Work) -> None:
        self._finish(work, reply)

    def _on_rset(self, reply: Reply) -> None:
        if not reply.is_positive:
            # A transaction may be open still: the next MAIL would go wrong.
            raise SmtpProtocolError("the server refuses RSET")
        if self._held_back and self._work is not None:
            self._held_back = False
            self._say_envelope(self._work)

    def _on_quit(self, _: Reply) -> None:
        self._state = State.ENDED

    _OUTSIDE: ClassVar[Mapping[_Step, _OnReply]] = {
        _Step.GREETING: _on_greeting,
        _Step.EHLO: _on_ehlo,
        _Step.HELO: _on_helo,
        _Step.STARTTLS: _on_starttls,
        _Step.AUTH: _on_auth,
        _Step.RSET: _on_rset,
        _Step.QUIT: _on_quit,
    }
    _IN_TRANSACTION: ClassVar[Mapping[_Step, _OnTransactionReply]] = {
        _Step.MAIL: _on_mail,
        _Step.RCPT: _on_rcpt,
        _Step.DATA: _on_data,
        _Step.CHUNK: _on_chunk,
        _Step.MESSAGE: _on_message,
        _Step.NO_MESSAGE: _on_end,
    }


def _check_kind(step: _Step, reply: Reply) -> None:
    """Refuse a reply of a kind that the step cannot have.

    Only DATA and AUTH go on with 3yz, and DATA has no 2yz (RFC 5321 section 4.3.2).
    """
    if step is _Step.AUTH:
        impossible = reply.code // 100 == 3 and reply.code != CONTINUE
    else:
        impossible = reply.is_positive if step is _Step.DATA else reply.code // 100 == 3
    if impossible:
        text = f"the server answered {step.name} with {reply.code}"
        raise SmtpProtocolError(text)


def _lost(text: str) -> Reply:
    return Reply(421, (text,), "4.4.2")
