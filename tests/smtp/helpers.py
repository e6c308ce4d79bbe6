"""Drives sessions: answers what they ask, and writes down what they tell."""

import itertools
from collections.abc import Callable, Iterable

from vnsmail.smtp.replies import Reply
from vnsmail.smtp.server_session import (
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
    ServerConfig,
    ServerSession,
    SessionEnded,
    TlsRequested,
    TransactionAborted,
)

CONFIG = ServerConfig("mx.alpha.example", max_message_size=1000)
GREETING = b"220 mx.alpha.example ESMTP vnsmail\r\n"

SIGNS_IN = b"\0ann\0secret"
WRONG = Reply(535, ("wrong user or password",), "5.7.8")

Answers = Callable[[Question], Reply | None]
"""Returns a refusal, or None to accept."""


class Driver:
    """A server session with somebody who answers its questions at once."""

    def __init__(
        self,
        config: ServerConfig = CONFIG,
        answers: Answers = lambda _: None,
        *,
        secure: bool = False,
    ) -> None:
        self.session = ServerSession(config, secure=secure)
        self.answers = answers
        self.told: list[str] = []
        """The events in words; a body as part of its message."""
        self.bodies: list[bytes] = []
        self.out = b""
        self._body = b""
        self._responses: list[bytes] = []
        self.pump()

    def feed(self, *chunks: bytes) -> bytes:
        """Receive the chunks; return what is sent since the last time."""
        for chunk in chunks:
            self.session.receive_data(chunk)
            self.pump()
        return self.sent()

    def eof(self) -> bytes:
        self.session.receive_eof()
        self.pump()
        return self.sent()

    def sent(self) -> bytes:
        out, self.out = self.out, b""
        return out

    def pump(self) -> None:
        while (event := self.session.next_event()) is not None:
            self._note(event)
            if isinstance(event, AuthRequested | AuthResponse):
                self._sign_in(event)
            elif isinstance(event, Question):
                refusal = self.answers(event)
                if refusal is None:
                    self.session.accept()
                else:
                    self.session.reject(refusal)
        self.out += self.session.data_to_send()

    def _sign_in(self, event: AuthRequested | AuthResponse) -> None:
        """PLAIN asks once if it must; LOGIN asks twice; one user is known."""
        if isinstance(event, AuthRequested):
            self._responses = [event.mechanism.encode()]
            if event.initial is not None:
                self._responses.append(event.initial)
        else:
            self._responses.append(event.data)
        match self._responses:
            case [b"PLAIN"]:
                self.session.challenge(b"")
            case [b"LOGIN"]:
                self.session.challenge(b"Username:")
            case [b"LOGIN", _]:
                self.session.challenge(b"Password:")
            case [b"PLAIN", b"\0ann\0secret"] | [b"LOGIN", b"ann", b"secret"]:
                self.session.accept()
            case _:
                self.session.reject(WRONG)

    def _note(self, event: Event) -> None:
        match event:
            case BodyReceived(data):
                assert data
                self._body += data
                return
            case MessageReceived(size):
                assert size == len(self._body)
                self.told.append(in_words(event, self._body))
                self.bodies.append(self._body)
                self._body = b""
                return
            case TransactionAborted():
                # How much of the body came before depends on how it was cut.
                self._body = b""
            case AuthResponse():
                return
            case _:
                pass
        self.told.append(in_words(event))


def in_words(event: Event, body: bytes = b"") -> str:
    match event:
        case MailRequested(sender, size, eight_bit, smtputf8, ret, envid):
            kind = "mail" if size is None else f"mail({size})"
            told = words(kind, f"<{sender or ''}>", eight_bit, smtputf8)
            told += f" ret={ret}" if ret else ""
            return told + (f" envid={envid}" if envid else "")
        case RecipientRequested(recipient, notify, orcpt):
            told = f"rcpt <{recipient}>"
            told += f" notify={','.join(notify)}" if notify else ""
            return told + (f" orcpt={orcpt}" if orcpt else "")
        case MessageReceived(_, eight_bit, smtputf8):
            return words("message", repr(body), eight_bit, smtputf8)
        case AuthRequested(mechanism):
            return f"auth {mechanism}"
        case SessionEnded(clean):
            return "ended" if clean else "broken off"
        case _:
            return PLAIN_WORDS[type(event)]


PLAIN_WORDS: dict[type, str] = {
    Connected: "connected",
    DataRequested: "data",
    TransactionAborted: "aborted",
    TlsRequested: "starttls",
    AuthAborted: "auth aborted",
}


def words(kind: str, subject: str, eight_bit: bool, smtputf8: bool) -> str:
    marks = " 8bit" * eight_bit + " utf8" * smtputf8
    return f"{kind} {subject}{marks}"


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Return data in pieces, cut at these places."""
    edges = [0, *sorted({p % (len(data) + 1) for p in places}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def in_bytes(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]
