"""``vnsmail send``: hand over a message for a virtual host or the machine to send."""

import os
import sys
from email.header import Header
from pathlib import Path
from typing import Annotated

import typer

from vnsmail.cli import client
from vnsmail.cli.options import AsJson, layout_of
from vnsmail.cli.render import as_json, remark
from vnsmail.errors import BadInput
from vnsmail.supervisor import control


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
    json: AsJson = False,
) -> None:
    """Queue a message. It is durable when this returns, and leaves by itself."""
    if sender is None and not machine:
        raise BadInput("sender", "", "give --as USER@HOST, or --machine")
    message = _message(file, subject, text)
    fd = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as writer:
            writer.write(message)
        os.lseek(fd, 0, os.SEEK_SET)  # the reader shares the offset
        request = control.Send(sender or "", tuple(to), machine=machine)
        answer = client.ask(layout_of(context), request, control.Queued, (fd,))
    finally:
        os.close(fd)
    if json:
        as_json({"owner": answer.owner, "id": answer.queue_id})
    else:
        remark(f"queued as {answer.queue_id} by {answer.owner}")


def _message(file: Path | None, subject: str | None, text: str | None) -> bytes:
    if text is not None or subject is not None:
        if file is not None:
            raise BadInput("file", str(file), "give it, or --subject and --text")
        return _plain(subject or "", text or "")
    if file is not None:
        try:
            return file.read_bytes()
        except OSError as error:
            raise BadInput(
                "file", str(file), f"cannot read it: {error.strerror}"
            ) from None
    if sys.stdin.isatty():
        raise BadInput("message", "", "give --text, --file, or a message on stdin")
    return sys.stdin.buffer.read()


def _plain(subject: str, text: str) -> bytes:
    """Return a small text message; date, id and sender are added where it is queued."""
    if "\n" in subject or "\r" in subject:
        raise BadInput("subject", subject, "a subject is one line")
    if not subject.isascii():
        # RFC 2047: raw UTF-8 would need SMTPUTF8 at every server on the way.
        subject = Header(subject, "utf-8", header_name="Subject").encode(linesep="\n")
    header = (
        f"Subject: {subject}\nMIME-Version: 1.0\n"
        "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n"
    )
    return f"{header}\n{text}\n".encode()
