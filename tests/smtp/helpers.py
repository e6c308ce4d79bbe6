"""Drives sessions: answers what they ask, and writes down what they tell."""

import itertools
from collections.abc import Callable, Iterable

from vnsmail.smtp.replies import Reply
from vnsmail.smtp.server_session import (
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
    TransactionAborted,
)

CONFIG = ServerConfig("mx.alpha.example", max_message_size=1000)
GREETING = b"220 mx.alpha.example ESMTP vnsmail\r\n"

Answers = Callable[[Question], Reply | None]
"""Returns a refusal, or None to accept."""


class Driver:
    """A server session with somebody who answers its questions at once."""

    def __init__(
        self, config: ServerConfig = CONFIG, answers: Answers = lambda _: None
    ) -> None:
        self.session = ServerSession(config)
        self.answers = answers
        self.told: list[str] = []
        """The events in words; a body as part of its message."""
        self.bodies: list[bytes] = []
        self.out = b""
        self._body = b""
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
            if isinstance(event, Question):
                refusal = self.answers(event)
                if refusal is None:
                    self.session.accept()
                else:
                    self.session.reject(refusal)
        self.out += self.session.data_to_send()

    def _note(self, event: Event) -> None:
        match event:
            case BodyReceived(data):
                assert data
                self._body += data
            case MessageReceived(size, eight_bit, smtputf8):
                assert size == len(self._body)
                self.told.append(
                    words("message", repr(self._body), eight_bit, smtputf8)
                )
                self.bodies.append(self._body)
                self._body = b""
            case TransactionAborted():
                # How much of the body came before depends on how it was cut.
                self._body = b""
                self.told.append("aborted")
            case Connected():
                self.told.append("connected")
            case MailRequested(sender, size, eight_bit, smtputf8):
                kind = "mail" if size is None else f"mail({size})"
                self.told.append(words(kind, f"<{sender or ''}>", eight_bit, smtputf8))
            case RecipientRequested(recipient):
                self.told.append(f"rcpt <{recipient}>")
            case DataRequested():
                self.told.append("data")
            case SessionEnded(clean):
                self.told.append("ended" if clean else "broken off")


def words(kind: str, subject: str, eight_bit: bool, smtputf8: bool) -> str:
    marks = " 8bit" * eight_bit + " utf8" * smtputf8
    return f"{kind} {subject}{marks}"


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Return data in pieces, cut at these places."""
    edges = [0, *sorted({p % (len(data) + 1) for p in places}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def in_bytes(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]
