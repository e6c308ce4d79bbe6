import random
import secrets
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import apsw
import pytest

from tests.queue.helpers import DEFERRED, DELIVERED, FAILED, NOW, envelope, spooled
from tests.queue.power import PowerDisk, leave
from vnsmail.queue.body import Body
from vnsmail.queue.store import Accept, QueueStore, Settle, sync_body

BOB = "bob@b.example"
SHORT = 40  # bytes; longer bodies go to a file


def body_of(message_id: str, size: int) -> bytes:
    return (message_id.encode() * size)[: size * 10]


class Work:
    """A queue at work, with a note of everything anybody was told."""

    def __init__(self, disk: PowerDisk, folder: Path) -> None:
        self.disk, self.folder = disk, folder
        self.store = QueueStore(folder)
        self.bodies: dict[str, bytes] = {}

    def message(self, size):
        """Return a change that adds a message, its body synced as the queue does."""
        message = envelope()
        data = body_of(message.id, size)
        self.bodies[message.id] = data
        self.disk.say("began", message.id)
        body = Body(data) if len(data) <= SHORT else spooled(self.folder, data)
        sync_body(body)
        return Accept(message, body)

    def commit(self, *changes):
        for change in changes:
            if isinstance(change, Settle):
                self.disk.say("settling", change.message_id)
        errors = self.store.commit(changes)
        for change, error in zip(changes, errors, strict=True):
            if error is None:
                self._told(change)

    def _told(self, change):
        if isinstance(change, Accept):
            self.disk.say("accepted", change.envelope.id)
            return
        if any(o.verdict is not DEFERRED.verdict for o in change.outcomes.values()):
            self.disk.say("settled", change.message_id)
        for accept in change.accept:
            self._told(accept)


def a_day(work: Work) -> None:
    """Mail comes, goes, is deferred and returned; some of it cannot be taken."""
    first, second, third = work.message(2), work.message(900), work.message(700)
    work.commit(first)
    work.commit(second, work.message(3), Settle("nosuchid", {}, {}), third)
    work.commit(Settle(second.envelope.id, {BOB: DELIVERED}, {}), work.message(800))
    work.commit(Settle(first.envelope.id, {BOB: DEFERRED}, {BOB: NOW + 9}))
    returned = work.message(600)
    work.commit(Settle(third.envelope.id, {BOB: FAILED}, {}, (returned,)))
    work.commit(work.message(500), Accept(returned.envelope, Body(b"taken")))
    work.commit(Settle(returned.envelope.id, {BOB: DELIVERED}, {}))
    last = work.message(1000)
    work.commit(last, work.message(1))
    work.commit(work.message(1), work.message(1000))
    work.store._checkpoint()
    work.commit(Settle(last.envelope.id, {BOB: DELIVERED}, {}), work.message(400))


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """All instants of a day, and the bodies of its messages."""
    with monkeypatch.context() as patch:
        name = "power" + secrets.token_hex(4)
        disk = PowerDisk(name, tmp_path / "host", patch)
        apsw.set_default_vfs(name)
        work = Work(disk, tmp_path / "host")
        disk.say("ready", "")
        a_day(work)
        apsw.set_default_vfs("unix")
        instants = list(disk.instants)
        work.store.close()
        disk.close()
    ready = next(i for i, instant in enumerate(instants) if instant.said)
    return instants[ready:], work.bodies


def faults_found(folder, said, bodies):
    """Open the queue as it was left; return what it does not keep of its promises."""
    store = QueueStore(folder)
    told: dict[str, set[str]] = {
        word: {i for w, i in said if w == word}
        for word in ("began", "accepted", "settling", "settled")
    }
    found = {message.envelope.id for message in store.page(1000)}
    faults = [f"{i} lost" for i in told["accepted"] - told["settling"] - found]
    faults += [f"{i} there again" for i in told["settled"] & found]
    faults += [f"{i} from nowhere" for i in found - told["began"]]
    for message_id in found:
        message, body = store.load(message_id)
        if b"".join(body.chunks()) != bodies[message_id] or not message.recipients:
            faults.append(f"{message_id} is not whole")
    store.close()
    return faults


@pytest.mark.parametrize("way", ["strict", "eager", "mixed"])
def test_power_cut_at_any_instant_loses_nothing_acknowledged(recorded, way):
    """Whatever of the unsynced a disk forgets, every promise is kept."""
    instants, bodies = recorded
    seed = secrets.randbits(32)
    chance = random.Random(seed)  # noqa: S311  any choice will do
    broken: Counter[str] = Counter()
    # Memory where there is some: the disk is simulated, and syncing it takes time.
    memory = Path("/dev/shm")  # noqa: S108  every name below it is random
    place = memory if memory.is_dir() else None
    for instant in instants:
        folder = Path(tempfile.mkdtemp(dir=place)) / "host"
        try:
            leave(instant, folder, way, chance)
            broken.update(faults_found(folder, instant.said, bodies))
        finally:
            shutil.rmtree(folder.parent)

    assert dict(broken) == {}, f"seed {seed}"
    assert len(instants) > 200
