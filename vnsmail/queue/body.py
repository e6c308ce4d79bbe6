"""The bytes of a message: in memory while small, in a file while large.

Rules of this file: nothing here is durable; queue/store.py makes it so. The bytes are
never changed. A body that is handed to the queue belongs to the queue, whatever
becomes of it there.
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from vnsmail.errors import QueueUnavailable

THRESHOLD = 256 * 1024
"""Bytes up to which a body lies in the queue's database; measured: DESIGN.md."""

INCOMING = "incoming"
"""Folder below the owner's for bodies that nobody has accepted yet."""

CHUNK = 65536


@dataclass(slots=True)
class Body:
    """The bytes of a message: a head in memory, then a file if there is one."""

    head: bytes
    file: Path | None = None
    """Where the rest lies. The queue changes it when it takes the body over."""
    file_size: int = 0
    queued: bool = False
    """The file is the queue's."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self.head) + self.file_size

    def chunks(self, n: int = CHUNK) -> Iterator[bytes]:
        """Return the bytes in pieces of at most ``n``.

        Raises:
            QueueUnavailable: the file cannot be read, or not to its end.
        """
        for start in range(0, len(self.head), n):
            yield self.head[start : start + n]
        if self.file is None:
            return
        left = self.file_size
        try:
            with self.file.open("rb", buffering=0) as file:
                while left and (chunk := file.read(min(n, left))):
                    left -= len(chunk)
                    yield chunk
        except OSError as error:
            raise QueueUnavailable(str(self.file), _words(error)) from None
        if left:
            problem = f"the file of a body is {left} bytes short"
            raise QueueUnavailable(str(self.file), problem)

    def prefixed(self, data: bytes) -> "Body":
        """Return a body with ``data`` in front. It takes the place of this one."""
        return Body(data + self.head, self.file, self.file_size, self.queued)

    def discard(self) -> None:
        """Remove the file, unless it is the queue's."""
        if self.file is not None and not self.queued:
            with contextlib.suppress(OSError):
                self.file.unlink()


class BodyWriter:
    """Takes the bytes of one message as they arrive.

    As a context manager it throws away what was not finished.

    Args:
        folder: the owner's folder.
        threshold: bytes up to which all is kept in memory.
    """

    def __init__(self, folder: Path, threshold: int = THRESHOLD) -> None:
        self._owner = folder
        self._threshold = threshold
        self._chunks: list[bytes] = []
        self._fd = -1
        self._path: Path | None = None
        self.size = 0

    def write(self, chunk: bytes) -> None:
        """Add bytes.

        Raises:
            QueueUnavailable: the file cannot be written; the body is thrown away.
        """
        self.size += len(chunk)
        if self._path is None:
            self._chunks.append(chunk)
            if self.size <= self._threshold:
                return
            chunk = b"".join(self._chunks)
        try:
            if self._path is None:
                self._spool()
            view = memoryview(chunk)
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self.discard()
            raise QueueUnavailable(str(self._folder), _words(error)) from None

    def finish(self) -> Body:
        """Return the body with all that was written."""
        if self._path is None:
            head, self._chunks = b"".join(self._chunks), []
            return Body(head)
        body = Body(b"", self._path, self.size)
        self._close()
        self._path = None
        return body

    def discard(self) -> None:
        """Throw away what was written; nothing to do after ``finish``."""
        self._close()
        self._chunks.clear()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._path = None
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

    @property
    def _folder(self) -> Path:
        # Most messages never ask: paths cost more than all else here.
        return self._owner / INCOMING

    def _spool(self) -> None:
        path = self._folder / secrets.token_hex(16)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        self._path = path
        self._chunks.clear()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _words(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
