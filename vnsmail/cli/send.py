"""``vnsmail send``: hand over a message for a virtual host or the machine to send."""

import io
import shutil
import sys
import tempfile
from email.header import Header
from pathlib import Path
from typing import IO, Annotated

import typer

from vnsmail.cli import client
from vnsmail.cli.options import AsJson, layout_of
from vnsmail.cli.render import as_json, remark
from vnsmail.errors import BadInput
from vnsmail.model import Priority
from vnsmail.supervisor import control

PIECE = 256 * 1024
"""Bytes copied at a time."""


def send(
    context: typer.Context,
    to: Annotated[list[str], typer.Option(help="A recipient; give one or more.")],
    sender: Annotated[
        str | None,
        typer.Option(
            "--as",
            help="Sender: a user of a virtual host, whose address the mail leaves from.",
        ),
    ] = None,
    machine: Annotated[
        bool,
        typer.Option(
            "--machine",
            help="Send as the machine itself: no source is bound, the kernel chooses.",
        ),
    ] = False,
    file: Annotated[
        Path | None,
        typer.Option(help="The message (RFC 5322); else it is read from stdin."),
    ] = None,
    subject: Annotated[
        str | None, typer.Option(help="With --text: make a plain message.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Text of a plain message.")] = None,
    priority: Annotated[
        str,
        typer.Option(
            help="high, normal or bulk: which messages to one destination go first."
        ),
    ] = "normal",
    require_tls: Annotated[
        bool,
        typer.Option(
            "--require-tls",
            help="Only over TLS, all the way, by servers that have proven who they are "
            "(RFC 8689); else it comes back.",
        ),
    ] = False,
    json: AsJson = False,
) -> None:
    """Queue a message. It is durable when this returns, and leaves by itself."""
    if sender is None and not machine:
        raise BadInput("sender", "", "give --as USER@HOST, or --machine")
    for each in to:
        # The sendmail command completes such a name; here it is more likely a slip.
        if "@" not in each:
            raise BadInput("recipient", each, "write it as ann@example.net")
    first = Priority.parse(priority)
    with _opened(file, to, subject, text) as message:
        request = control.Send(
            sender or "",
            tuple(to),
            machine=machine,
            priority=first,
            require_tls=require_tls,
        )
        fds = (message.fileno(),)
        answer = client.ask(layout_of(context), request, control.Queued, fds)
    if json:
        as_json({"owner": answer.owner, "id": answer.queue_id})
    else:
        remark(f"queued as {answer.queue_id} by {answer.owner}")


def _opened(
    file: Path | None, to: list[str], subject: str | None, text: str | None
) -> IO[bytes]:
    """Return an open file with the message, however large it is.

    Raises:
        BadInput: there is no message, or it cannot be read.
    """
    if text is not None or subject is not None:
        if file is not None:
            raise BadInput("file", str(file), "give it, or --subject and --text")
        return _copied(io.BytesIO(_plain(to, subject or "", text or "")))
    if file is not None:
        try:
            return file.open("rb")
        except OSError as error:
            raise BadInput(
                "file", str(file), f"cannot read it: {error.strerror}"
            ) from None
    if sys.stdin.isatty():
        raise BadInput("message", "", "give --text, --file, or a message on stdin")
    return _copied(sys.stdin.buffer)


def _copied(source: IO[bytes]) -> IO[bytes]:
    """Return a file of our own with what can be read once only.

    Raises:
        BadInput: there is no room for it.
    """
    copy = tempfile.TemporaryFile(prefix="vnsmail-")  # noqa: SIM115  the caller's
    try:
        shutil.copyfileobj(source, copy, PIECE)
        copy.seek(0)  # it is written, and the reader shares the offset
    except OSError as error:
        copy.close()
        raise BadInput(
            "message", "", f"cannot keep it for a moment: {error.strerror}"
        ) from None
    return copy


def _plain(to: list[str], subject: str, text: str) -> bytes:
    """Return a small text message; date, id and sender are added where it is queued."""
    if "\n" in subject or "\r" in subject:
        raise BadInput("subject", subject, "a subject is one line")
    if not subject.isascii():
        # RFC 2047: raw UTF-8 would need SMTPUTF8 at every server on the way.
        subject = Header(subject, "utf-8", header_name="Subject").encode(linesep="\n")
    recipients = ",\n ".join(to)
    header = (
        f"To: {recipients}\nSubject: {subject}\nMIME-Version: 1.0\n"
        "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n"
    )
    return f"{header}\n{text}\n".encode()
