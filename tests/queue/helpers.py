"""Messages to queue, and a disk that fails when told to."""

import itertools
from pathlib import Path

import apsw

from vnsmail.model import Envelope, Outcome, Owner, Verdict
from vnsmail.queue.body import Body, BodyWriter
from vnsmail.queue.envelope import new_id
from vnsmail.queue.store import QueueStore

DELIVERED = Outcome(Verdict.DELIVERED, 250, "2.0.0", "ok")
FAILED = Outcome(Verdict.FAILED, 550, "5.1.1", "no such user")
DEFERRED = Outcome(Verdict.DEFERRED, 451, "4.3.0", "later", "mx.b.example [10.0.0.2]")
NO_SOURCE = Outcome(Verdict.DEFERRED, 451, "4.4.0", "no source", not_an_attempt=True)

NOW = 1_800_000_000.0

_numbers = itertools.count()


def envelope(*recipients, at=NOW, number=None, **facts):
    number = next(_numbers) if number is None else number
    return Envelope(
        id=new_id(at, (number << 3).to_bytes(6, "big")),
        owner=Owner("alpha.example"),
        sender="ann@alpha.example",
        recipients=recipients or ("bob@b.example",),
        received_at=at,
        **facts,
    )


def spooled(folder: Path, data: bytes) -> Body:
    """Return a body in a file, however small."""
    writer = BodyWriter(folder, threshold=0)
    writer.write(data)
    return writer.finish()


def content(store: QueueStore, message_id: str) -> bytes:
    return b"".join(store.load(message_id)[1].chunks())


def ids(store: QueueStore) -> list[str]:
    return [message.envelope.id for message in store.page(1000)]


class FaultyDisk(apsw.VFS):
    """The default VFS, but that ``fault(operation, file)`` may raise.

    ``operation`` is ``write`` or ``sync``; ``file`` is ``queue.db`` or ``queue.db-wal``.
    """

    def __init__(self, name, fault):
        self.fault = fault
        super().__init__(name, "unix")

    def xOpen(self, name, flags):  # noqa: N802  SQLite's name
        return _FaultyFile(name, flags, self)


class _FaultyFile(apsw.VFSFile):
    def __init__(self, name, flags, disk):
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._name = Path(path or "").name
        self._disk = disk
        super().__init__("unix", name, flags)

    def xWrite(self, data, offset):  # noqa: N802
        self._disk.fault("write", self._name)
        super().xWrite(data, offset)

    def xSync(self, flags):  # noqa: N802
        self._disk.fault("sync", self._name)
        super().xSync(flags)
