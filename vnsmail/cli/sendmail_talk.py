"""``sendmail -bs``: SMTP on standard input and output.

Rules of this file: the session is the one that the servers use; each message goes the
way of any other that the command is given, and 250 means the same.
"""

import io
import os
import socket
import sys

from vnsmail.cli import sendmail
from vnsmail.cli.sendmail_options import Options
from vnsmail.drop import form
from vnsmail.drop.writer import CannotDrop, Place, Writer
from vnsmail.smtp.replies import Reply
from vnsmail.smtp.server_session import (
    BodyReceived,
    Connected,
    DataRequested,
    Event,
    MailRequested,
    MessageReceived,
    RecipientRequested,
    ServerConfig,
    ServerSession,
    TransactionAborted,
)

MAX_MESSAGE = 50 * 1024 * 1024
"""Bytes, where the daemon's own limit is not known."""

_ENHANCED = {os.EX_NOPERM: (550, "5.7.1"), os.EX_DATAERR: (554, "5.6.0")}
_LATER = (451, "4.3.0")


class _Talk:
    """One session."""

    def __init__(
        self, place: Place, options: Options, stream: io.BufferedReader
    ) -> None:
        self._stream = stream
        self._place = place
        self._options = options
        self._folder = place.folder()
        self._max_size = place.max_size() or MAX_MESSAGE
        name = socket.getfqdn()
        name = name if name.isascii() else "localhost"
        self._session = ServerSession(ServerConfig(name, self._max_size))
        self._sender = ""
        self._recipients: list[str] = []
        self._writer: Writer | None = None
        self._trouble: CannotDrop | None = None

    def run(self) -> int:
        """Talk until the other end leaves; return the exit code."""
        output = sys.stdout.buffer
        while True:
            while (event := self._session.next_event()) is not None:
                self._on(event)
            output.write(self._session.data_to_send())
            output.flush()
            if self._session.closing:
                return os.EX_OK
            if data := self._stream.read1(sendmail.PIECE):
                self._session.receive_data(data)
            else:
                self._session.receive_eof()

    def discard(self) -> None:
        """Throw away a message that did not come to its end."""
        if self._writer is not None:
            self._writer.discard()
        self._writer = self._trouble = None

    def _on(self, event: Event) -> None:
        match event:
            case Connected():
                self._session.accept()
            case MailRequested(sender):
                self._sender, self._recipients = str(sender or ""), []
                self._session.accept()
            case RecipientRequested(recipient):
                self._recipients.append(str(recipient))
                self._session.accept()
            case DataRequested():
                self._begin()
                self._session.accept()
            case BodyReceived(data):
                self._write(data)
            case MessageReceived():
                self._end()
            case TransactionAborted():
                self.discard()
            case _:
                pass

    def _failed(self) -> tuple[int, str]:
        if self._trouble is None:
            return os.EX_SOFTWARE, "there is no message"
        return self._trouble.code, self._trouble.reason

    def _begin(self) -> None:
        self.discard()
        sender = self._options.sender
        request = form.Request(
            self._sender if sender is None else sender,
            tuple(self._recipients),
            name=self._options.name,
        )
        try:
            self._writer = Writer(self._folder, request, self._max_size)
        except CannotDrop as error:
            self._trouble = error

    def _write(self, data: bytes) -> None:
        if self._writer is not None and self._trouble is None:
            try:
                self._writer.write(data)
            except CannotDrop as error:
                self._trouble = error

    def _end(self) -> None:
        try:
            if self._trouble is not None or self._writer is None:
                code, text = self._failed()
            else:
                code, text = sendmail.named(self._place, self._writer)
        except CannotDrop as error:
            code, text = error.code, error.reason
        self.discard()
        if code == os.EX_OK:
            self._session.accept(text)
        else:
            reply, enhanced = _ENHANCED.get(code, _LATER)
            plain = text.encode("ascii", "replace").decode()[:400]
            self._session.reject(Reply(reply, (plain,), enhanced))


def talk(place: Place, options: Options, stream: io.BufferedReader) -> int:
    """Speak SMTP with whoever called us; return the exit code.

    Raises:
        CannotDrop: the account is no user.
    """
    session = _Talk(place, options, stream)
    try:
        return session.run()
    finally:
        session.discard()
