"""What remotes wrote on top of the messages that they got, read from their Maildirs."""

import os
from pathlib import Path
from typing import BinaryIO

from vnsmail.capture import fields, received
from vnsmail.capture.received import Received
from vnsmail.errors import BadInput

HEADER_LIMIT = 256 * 1024
"""Octets read of a message to find its topmost Received field. Postfix takes 100 KiB of
headers (header_size_limit)."""


def read_received(folder: Path) -> list[Received]:
    """Return the topmost Received field of each message in a folder's Maildirs.

    Args:
        folder: a Maildir, or a folder with Maildirs in it or in its folders.

    Raises:
        BadInput: it is no folder, or it cannot be read.
    """
    found = []
    for parent, folders, files in os.walk(folder, onerror=_cannot_read):
        folders.sort()
        if Path(parent).name not in {"new", "cur"}:
            continue
        for name in sorted(files):
            texts = _trace(Path(parent, name))
            if texts:
                before = fields.origin(texts[1]) if len(texts) > 1 else None
                found.append(received.parse(texts[0], folder.name, before))
    return found


def _trace(message: Path) -> list[str]:
    try:
        with message.open("rb") as file:
            return fields.received(_header(file), 2)
    except FileNotFoundError:  # Its reader moved it from new to cur meanwhile.
        return []
    except OSError as error:
        _cannot_read(error)
        raise


def _header(file: BinaryIO) -> bytes:
    header = b""
    while len(header) < HEADER_LIMIT:
        line = file.readline(HEADER_LIMIT)
        if line in {b"", b"\n", b"\r\n"}:
            break
        header += line
    return header


def _cannot_read(error: OSError) -> None:
    problem = (error.strerror or str(error)).lower()
    raise BadInput("mail", str(error.filename), f"cannot read it: {problem}") from None
