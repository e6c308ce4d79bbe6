import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from tests.queue.helpers import (
    DEFERRED,
    DELIVERED,
    FAILED,
    NO_SOURCE,
    NOW,
    content,
    envelope,
    ids,
    spooled,
)
from vnsmail import database
from vnsmail.errors import AlreadyQueued, NotFound, QueueUnavailable
from vnsmail.model import Outcome, Priority, Verdict
from vnsmail.queue import store as store_module
from vnsmail.queue.body import Body
from vnsmail.queue.envelope import (
    START,
    Due,
    Place,
    QueueCounts,
    QueuedRecipient,
    new_id,
)
from vnsmail.queue.store import Accept, Change, QueueStore, Settle

LARGE = b"large " * 1000


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "host"


@pytest.fixture
def store(folder):
    store = QueueStore(folder)
    yield store
    store.close()


def accept(store, *recipients, body=b"hello", **facts):
    message = envelope(*recipients, **facts)
    assert store.commit([Accept(message, Body(body))]) == [None]
    return message


def settle(store, message, outcomes, retry_at=None, accept=()):
    change = Settle(message.id, outcomes, retry_at or {}, tuple(accept))
    return store.commit([change])[0]


def names(folder, below):
    return sorted(path.name for path in (folder / below).iterdir())


class TestTokens:
    """A message that may be handed over twice is taken once."""

    def test_taken_once(self, folder):
        """Also after it has left, and in another life."""
        store = QueueStore(folder)
        message = envelope("bob@b.example")
        again = envelope("bob@b.example")
        assert [None] == store.commit([Accept(message, Body(b"x"), "1000/abc")])
        (error,) = store.commit([Accept(again, Body(b"x"), "1000/abc")])
        assert isinstance(error, AlreadyQueued)
        assert message.id == error.queue_id
        settle(store, message, {"bob@b.example": DELIVERED})
        store.close()

        store = QueueStore(folder)
        (error,) = store.commit([Accept(again, Body(b"x"), "1000/abc")])
        assert isinstance(error, AlreadyQueued)
        assert [None] == store.commit([Accept(again, Body(b"x"), "1000/def")])
        assert 1 == store.counts().messages
        store.close()

    def test_others_of_the_batch(self, store, folder):
        """They are taken, and the body of the one that is not goes."""
        first = envelope("bob@b.example")
        store.commit([Accept(first, Body(b"x"), "t")])
        body = spooled(folder, LARGE)
        errors = store.commit(
            [
                Accept(envelope("a@b.example"), Body(b"x")),
                Accept(envelope("b@b.example"), body, "t"),
                Accept(envelope("c@b.example"), Body(b"x"), "u"),
            ]
        )

        assert [True, False, True] == [error is None for error in errors]
        assert [] == names(folder, "incoming")
        assert [] == names(folder, "body")

    def test_forgotten_after_a_time(self, store):
        """Nothing is remembered for ever."""
        later = {"at": NOW + 31 * 86400}
        store.commit([Accept(envelope("a@b.example"), Body(b"x"), "t")])
        store.commit([Accept(envelope("b@b.example", **later), Body(b"x"), "u")])
        again = Accept(envelope("c@b.example", **later), Body(b"x"), "t")

        assert [None] == store.commit([again])


class TestAccept:
    def test_message_comes_back_as_it_was(self, store):
        """Envelope and bytes are what was accepted, to the last flag and byte."""
        body = bytes(range(256)) * 3
        message = accept(
            store,
            "b@b.example",
            "ü@c.example",
            body=body,
            eight_bit=True,
            smtputf8=True,
        )

        found, loaded = store.load(message.id)

        assert message == found.envelope
        assert body == b"".join(loaded.chunks())
        assert len(body) == found.size == loaded.size
        assert (
            QueuedRecipient("b@b.example", 0, NOW, None),
            QueuedRecipient("ü@c.example", 0, NOW, None),
        ) == found.recipients

    def test_large_body_moves_under_its_id(self, folder, store):
        """A body in a file is kept as body/ID with what stands before it in the row."""
        message = envelope()
        body = spooled(folder, LARGE).prefixed(b"Received: x\r\n")

        assert store.commit([Accept(message, body)]) == [None]
        assert [message.id] == names(folder, "body")
        assert names(folder, "incoming") == []
        assert content(store, message.id) == b"Received: x\r\n" + LARGE
        assert b"".join(body.chunks()) == b"Received: x\r\n" + LARGE

    def test_same_recipient_twice(self, store):
        """A recipient named twice gets the message once."""
        message = accept(store, "b@b.example", "c@b.example", "b@b.example")

        found, _ = store.load(message.id)

        assert found.envelope.recipients == ("b@b.example", "c@b.example")

    def test_same_id_twice_keeps_the_first(self, folder, store):
        """An id that is taken is refused, and nothing of the first is lost."""
        message = envelope()
        store.commit([Accept(message, spooled(folder, LARGE))])

        (error,) = store.commit([Accept(message, spooled(folder, b"other"))])

        assert isinstance(error, QueueUnavailable)
        assert content(store, message.id) == LARGE
        assert names(folder, "incoming") == []

    def test_same_id_twice_small_then_large(self, folder, store):
        """The file of a refused message does not stay."""
        message = accept(store, body=b"first")

        (error,) = store.commit([Accept(message, spooled(folder, LARGE))])

        assert isinstance(error, QueueUnavailable)
        assert content(store, message.id) == b"first"
        assert names(folder, "body") == []

    def test_same_body_twice_keeps_it(self, folder, store):
        """A body that is in the queue is not taken, nor thrown away, a second time."""
        message, body = envelope(), spooled(folder, LARGE)
        store.commit([Accept(message, body)])

        errors = store.commit([Accept(message, body), Accept(envelope(), body)])
        body.discard()

        assert all(isinstance(error, QueueUnavailable) for error in errors)
        assert content(store, message.id) == LARGE

    def test_one_that_cannot_be_added_harms_no_other(self, folder, store):
        """In one batch, what can be made is made, and only the rest is refused."""
        good = [envelope() for _ in range(4)]
        changes = [
            Accept(good[0], Body(b"0")),
            Accept(good[0], Body(b"again")),
            Accept(good[1], spooled(folder, LARGE)),
            Accept(envelope("\ud800@b.example"), Body(b"no text")),
            Accept(envelope(), Body(b"", folder / "incoming" / "gone", 5)),
            Settle("no such id", {}, {}),
            Accept(good[2], Body(b"2")),
            Settle(good[0].id, {"bob@b.example": DELIVERED}, {}),
            Accept(good[3], spooled(folder, LARGE)),
        ]

        errors = store.commit(changes)

        assert [int(e is not None) for e in errors] == [0, 1, 0, 1, 1, 1, 0, 0, 0]
        assert [m.id for m in good[1:]] == ids(store)
        assert [good[1].id, good[3].id] == names(folder, "body")
        assert names(folder, "incoming") == []

    def test_id_that_leaves_the_folder(self, folder, store):
        """An id is a file name and nothing else."""
        outside = folder.parent / "outside"
        message = envelope()
        bad = type(message)("../../outside", *_rest(message))

        (error,) = store.commit([Accept(bad, spooled(folder, LARGE))])

        assert isinstance(error, QueueUnavailable)
        assert not outside.exists()

    def test_nearly_full_disk(self, monkeypatch, folder, store):
        """With the reserve reached mail is refused, and outcomes are still recorded."""
        message = accept(store)
        monkeypatch.setattr(store_module, "RESERVE", 1 << 62)

        errors = store.commit(
            [
                Accept(envelope(), spooled(folder, LARGE)),
                Settle(message.id, {"bob@b.example": DELIVERED}, {}),
            ]
        )

        assert "left" in str(errors[0])
        assert None is errors[1]
        assert [] == ids(store) == names(folder, "body") == names(folder, "incoming")


def _rest(message):
    return [getattr(message, name) for name in list(type(message).__slots__)[1:]]


class TestSettle:
    def test_delivered_and_failed_leave_deferred_stay(self, store):
        """Whoever was reached or refused leaves; whoever was deferred waits."""
        message = accept(store, "a@b.example", "b@b.example", "c@b.example")

        settle(
            store,
            message,
            {"a@b.example": DELIVERED, "b@b.example": DEFERRED, "c@b.example": FAILED},
            {"b@b.example": NOW + 300},
        )
        found, _ = store.load(message.id)

        assert (QueuedRecipient("b@b.example", 1, NOW + 300, DEFERRED),) == (
            found.recipients
        )
        assert found.envelope.recipients == ("b@b.example",)

    def test_recipients_not_named_stay_as_they_are(self, store):
        """An outcome touches its recipient and no other."""
        message = accept(store, "a@b.example", "b@b.example")

        settle(store, message, {"a@b.example": DELIVERED})
        found, _ = store.load(message.id)

        assert (QueuedRecipient("b@b.example", 0, NOW, None),) == found.recipients

    def test_missing_source_is_no_attempt(self, store):
        """Where nobody was asked the attempts stay, and the reason is kept."""
        message = accept(store)
        recipient = "bob@b.example"

        for _ in range(3):
            settle(store, message, {recipient: NO_SOURCE}, {recipient: NOW + 60})
        settle(store, message, {recipient: DEFERRED}, {recipient: NOW + 120})
        settle(store, message, {recipient: NO_SOURCE}, {recipient: NOW + 180})
        ((found,), _) = store.load(message.id)[0].recipients, None

        assert QueuedRecipient(recipient, 1, NOW + 180, NO_SOURCE) == found
        assert found.last.not_an_attempt

    def test_last_recipient_takes_the_message_along(self, folder, store):
        """A message without recipients is gone with its body."""
        message = envelope("a@b.example", "b@b.example")
        store.commit([Accept(message, spooled(folder, LARGE))])

        settle(store, message, {"a@b.example": DELIVERED})
        assert [message.id] == names(folder, "body")
        settle(store, message, {"b@b.example": FAILED})

        assert ids(store) == []
        assert names(folder, "body") == []
        assert QueueCounts(0, 0, 0, 0, None) == store.counts()

    def test_notification_is_added_with_the_outcome(self, store):
        """A message returned to its sender is replaced by the notification."""
        message, notification = accept(store), envelope("ann@alpha.example")

        settle(
            store,
            message,
            {"bob@b.example": FAILED},
            accept=[Accept(notification, Body(b"sorry"))],
        )

        assert [notification.id] == ids(store)
        assert content(store, notification.id) == b"sorry"

    def test_all_or_nothing(self, store):
        """If the notification cannot be added, the outcome is not recorded."""
        message, other = accept(store), accept(store)

        error = settle(
            store,
            message,
            {"bob@b.example": FAILED},
            accept=[Accept(other, Body(b"its id is taken"))],
        )

        assert isinstance(error, QueueUnavailable)
        assert [message.id, other.id] == ids(store)

    @pytest.mark.parametrize("recipient", ["nobody@b.example", "BOB@b.example"])
    def test_unknown_recipient(self, store, recipient):
        """An outcome for somebody who is not in the message changes nothing."""
        message = accept(store)

        error = settle(store, message, {recipient: FAILED, "bob@b.example": FAILED})

        assert isinstance(error, NotFound)
        assert [message.id] == ids(store)

    def test_unknown_message(self, store):
        """An outcome for a message that left is an error that names it."""
        error = settle(store, envelope(number=7), {"bob@b.example": DELIVERED})

        assert isinstance(error, NotFound)
        assert envelope(number=7).id in str(error)

    def test_outcome_text_survives(self, store):
        """What the remote said is kept to the character."""
        said = Outcome(Verdict.DEFERRED, 450, "4.2.1", 'ünï "x"\n', "mx [::1]", "fd::1")
        message = accept(store)

        settle(store, message, {"bob@b.example": said}, {"bob@b.example": NOW})

        assert said == store.load(message.id)[0].recipients[0].last


def walked(store, after=START, room=lambda name: 10, excluding=None, limits=(100, 100)):
    return store.walk(NOW + 5, after, room, excluding or {}, limits)


class TestQuestions:
    def test_due_longest_first(self, store):
        """Messages come in the order in which they fell due, each once."""
        late = accept(store, "a@b.example", "b@b.example", at=NOW + 5)
        early = accept(store, at=NOW + 1)
        accept(store, at=NOW + 100)

        found, next_due = store.due_in("b.example", NOW + 50, 10, frozenset())

        assert [early.id, late.id] == [message.envelope.id for message in found]
        assert NOW + 100 == next_due

    def test_due_leaves_out_what_is_in_flight(self, store):
        """In-flight messages do not take the place of others under the limit."""
        messages = [accept(store, at=NOW + i) for i in range(5)]
        in_flight = {message.id for message in messages[:3]}

        found, _ = store.due_in("b.example", NOW + 50, 1, in_flight)

        assert [messages[3].id] == [message.envelope.id for message in found]

    def test_priority_goes_first(self, store):
        """Within a destination, what is urgent passes what came before it."""
        bulk = accept(store, at=NOW, priority=Priority.BULK)
        normal = accept(store, at=NOW + 1)
        high = accept(store, at=NOW + 2, priority=Priority.HIGH)

        found, _ = store.due_in("b.example", NOW + 50, 10, frozenset())

        assert [high.id, normal.id, bulk.id] == [each.envelope.id for each in found]
        assert Priority.HIGH == found[0].envelope.priority

    def test_a_walk_takes_some_of_each_destination(self, store):
        """However many wait for one destination, another's are found."""
        for _ in range(20):
            accept(store, "x@big.example")
        small = accept(store, "x@small.example", "y@big.example")
        later = accept(store, "x@later.example", at=NOW + 7)

        walk = walked(store, room=lambda name: 3)

        by_destination: dict[str, list[str]] = {}
        for due in walk.due:
            by_destination.setdefault(due.destination, []).append(
                due.message.envelope.id
            )
        assert {"big.example": 3, "small.example": 1} == {
            name: len(found) for name, found in by_destination.items()
        }
        assert [small.id] == by_destination["small.example"]
        assert {"big.example"} == walk.more
        assert (NOW + 7, None) == (walk.next_due, walk.went_on_at)
        assert later.id not in str(walk.due)

    def test_a_walk_passes_by_what_is_closed(self, store):
        """Destinations without room are not read, and what waits there wakes nobody."""
        accept(store, "x@down.example", at=NOW + 3)
        accept(store, "x@up.example")

        walk = walked(store, room=lambda name: 0 if name == "down.example" else 1)

        assert ["up.example"] == [due.destination for due in walk.due]
        assert math.inf == walk.next_due

    def test_a_walk_goes_on_where_it_paused(self, store):
        """In pieces it finds the same as at once, each message once."""
        for number in range(7):
            accept(store, f"x@d{number}.example", "y@d3.example")
        place: Place | None = START
        found: list[Due] = []
        while place is not None:
            walk = walked(store, after=place, limits=(2, 100))
            found += walk.due
            place = walk.went_on_at

        assert found == walked(store).due
        assert 7 + 6 == len(found)

    def test_a_walk_leaves_out_what_is_in_flight(self, store):
        """A message in flight at one destination is still due at another."""
        message = accept(store, "x@b.example", "y@c.example")

        walk = walked(store, excluding={"b.example": {message.id}})

        assert ["c.example"] == [due.destination for due in walk.due]

    def test_aged(self, store):
        """Old messages are found by id, with whether the sender was warned."""
        old, young = accept(store, at=NOW), accept(store, at=NOW + 100)
        notice = envelope(at=NOW + 50, number=5)
        warning = Settle(old.id, {}, {}, (Accept(notice, Body(b"late")),), warned=True)
        before = new_id(NOW + 60, bytes(6))
        assert [(old.id, False)] == store.aged(before, "", 10)

        assert [None] == store.commit([warning])

        assert [(old.id, True), (notice.id, False)] == store.aged(before, "", 10)
        assert [] == store.aged(before, notice.id, 10)
        assert young.id in ids(store)

    def test_deferred_falls_due_at_its_time(self, store):
        """A deferred recipient is left alone until its time."""
        message = accept(store)
        settle(store, message, {"bob@b.example": DEFERRED}, {"bob@b.example": NOW + 9})

        assert ([], NOW + 9) == store.due_in("b.example", NOW + 8.9, 10, frozenset())
        found, next_due = store.due_in("b.example", NOW + 9, 1, frozenset())
        assert ([message.id], math.inf) == ([m.envelope.id for m in found], next_due)

    def test_counts(self, folder, store):
        """Counts are those of what is left."""
        first = accept(store, "a@b.example", "b@b.example", body=b"12345", at=NOW + 3)
        store.commit([Accept(envelope(at=NOW + 4), spooled(folder, LARGE))])
        settle(
            store,
            first,
            {"a@b.example": DEFERRED, "b@b.example": DELIVERED},
            {"a@b.example": NOW},
        )

        assert QueueCounts(2, 2, 1, 5 + len(LARGE), NOW + 3) == store.counts()

    def test_pages(self, store):
        """Pages put together are the whole queue in order of arrival."""
        messages = [accept(store, at=NOW + i) for i in (3, 1, 2, 5, 4)]
        wanted = sorted(message.id for message in messages)

        first = [m.envelope.id for m in store.page(2)]
        second = [m.envelope.id for m in store.page(2, first[-1])]
        third = [m.envelope.id for m in store.page(2, second[-1])]

        assert wanted == first + second + third

    def test_load_unknown(self, store):
        """A message that left is not found."""
        with pytest.raises(NotFound, match="nosuchid"):
            store.load("nosuchid")

    def test_load_without_its_file(self, folder, store):
        """A body somebody removed is an error that names the file."""
        message = envelope()
        store.commit([Accept(message, spooled(folder, LARGE))])
        (folder / "body" / message.id).unlink()

        with pytest.raises(QueueUnavailable, match=message.id):
            store.load(message.id)


class TestOpening:
    def test_nothing_is_lost_by_closing(self, folder):
        """What was accepted is there after opening again."""
        store = QueueStore(folder)
        small, large = accept(store), envelope()
        store.commit([Accept(large, spooled(folder, LARGE))])
        store.close()

        store = QueueStore(folder)

        assert [small.id, large.id] == ids(store)
        assert content(store, large.id) == LARGE
        store.close()

    def test_refuse_is_removed(self, folder):
        """Files nobody was told 250 for are removed, and no others."""
        store = QueueStore(folder)
        kept = envelope()
        store.commit([Accept(kept, spooled(folder, LARGE))])
        spooled(folder, b"arriving when the machine went down")
        store.close()
        (folder / "body" / "moved-and-not-committed").write_bytes(b"x")

        store = QueueStore(folder)

        assert [kept.id] == names(folder, "body")
        assert names(folder, "incoming") == []
        store.close()

    def test_row_without_its_file_stays(self, folder):
        """A lost body is no reason to forget the message."""
        store = QueueStore(folder)
        message = envelope()
        store.commit([Accept(message, spooled(folder, LARGE))])
        store.close()
        (folder / "body" / message.id).unlink()

        store = QueueStore(folder)

        assert [message.id] == ids(store)
        store.close()

    def test_only_the_owner_reads_it(self, folder, store):
        """Folders are 0700 and files 0600, whatever the umask."""
        accept(store)
        modes = {
            path.name: stat.S_IMODE(path.stat().st_mode)
            for path in (folder, *folder.rglob("*"))
        }

        assert modes == {
            "host": 0o700,
            "body": 0o700,
            "incoming": 0o700,
            "queue.db": 0o600,
            "queue.db-wal": 0o600,
        }

    def test_corrupt_file_is_reported_and_left_alone(self, folder):
        """A file that is no database is an error, and stays for a person to look at."""
        folder.mkdir()
        (folder / "queue.db").write_bytes(b"not a database, whatever it is" * 100)

        with pytest.raises(QueueUnavailable, match="not a database"):
            QueueStore(folder)

        assert (folder / "queue.db").read_bytes().startswith(b"not a database")

    def test_damaged_page_is_reported(self, folder):
        """Damage inside the file is an error too, and clean-up removes nothing."""
        store = QueueStore(folder)
        message = envelope()
        store.commit([Accept(message, spooled(folder, LARGE))])
        store.close()
        file = folder / "queue.db"
        data = bytearray(file.read_bytes())
        data[4096:] = b"\xff" * (len(data) - 4096)
        file.write_bytes(data)

        with pytest.raises(QueueUnavailable, match="malformed"):
            QueueStore(folder)

        assert [message.id] == names(folder, "body")

    def test_file_of_another_version(self, folder):
        """A file of a later program is not touched."""
        QueueStore(folder).close()
        connection = apsw.Connection(str(folder / "queue.db"))
        connection.pragma("user_version", 99)
        connection.close()

        with pytest.raises(QueueUnavailable, match="version 99"):
            QueueStore(folder)

    def test_sqlite_that_corrupts_files(self, folder, monkeypatch):
        """A SQLite with the WAL-reset bug opens no queue."""
        monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")

        with pytest.raises(QueueUnavailable, match=r"3\.51\.2"):
            QueueStore(folder)

    def test_two_workers_never_share_a_queue(self, folder, store):
        """A queue that a process has open cannot be opened by another."""
        accept(store)
        code = (
            "import sys, pathlib; from vnsmail.queue.store import QueueStore\n"
            "try: QueueStore(pathlib.Path(sys.argv[1]))\n"
            "except Exception as error: print(type(error).__name__, error)"
        )
        other = subprocess.run(  # noqa: S603  our own interpreter and code
            [sys.executable, "-c", code, str(folder)],
            capture_output=True,
            text=True,
            check=True,
        )

        assert other.stdout.startswith("QueueUnavailable")
        assert "another process" in other.stdout

    def test_folder_that_cannot_be_made(self, tmp_path):
        """A path that is no folder is an error of the queue."""
        (tmp_path / "file").write_bytes(b"")

        with pytest.raises(QueueUnavailable):
            QueueStore(tmp_path / "file" / "host")

    def test_log_is_synced_before_refuse_is_removed(self, folder, monkeypatch):
        """After kill -9 the log may hold what no sync followed; that comes first.

        Otherwise the file of a message could be removed for good, and the removal of
        its row be lost with the power.
        """
        store = QueueStore(folder)
        message = envelope()
        store.commit([Accept(message, spooled(folder, LARGE))])
        settle(store, message, {"bob@b.example": DELIVERED})
        (folder / "body" / message.id).write_bytes(b"not removed yet")
        copy = folder.parent / "copy"
        for path in [p for p in folder.rglob("*") if p.is_file()]:
            to = copy / path.relative_to(folder)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(path.read_bytes())
        store.close()
        happened = []
        sync = os.fsync

        def synced(fd):
            happened.append(Path(f"/proc/self/fd/{fd}").readlink().name)
            sync(fd)

        def remove(path):
            happened.append("removed")
            path.unlink()

        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(store_module, "_remove", remove)
        QueueStore(copy).close()

        assert happened[-2:] == ["queue.db-wal", "removed"]
        assert names(copy, "body") == []


class TestDiskFaults:
    @pytest.mark.parametrize("operation", ["write", "sync"])
    @pytest.mark.parametrize("error", [apsw.FullError, apsw.IOError])
    def test_batch_fails_whole_and_later_ones_work(
        self, faults, folder, operation, error
    ):
        """A disk that fails leaves nothing of the batch; once it works, so do we."""
        store = QueueStore(folder)
        before = accept(store)
        faults.errors[operation, "queue.db-wal"] = error
        batch: list[Change] = [
            Accept(envelope(), Body(b"x" * 9000)),
            Accept(envelope(), spooled(folder, LARGE)),
            Settle(before.id, {"bob@b.example": DELIVERED}, {}),
        ]

        errors = store.commit(batch)
        faults.errors.clear()
        after = accept(store)

        assert all(isinstance(error, QueueUnavailable) for error in errors)
        assert [before.id, after.id] == ids(store)
        assert [] == names(folder, "incoming") == names(folder, "body")
        store.close()
        store = QueueStore(folder)
        assert [before.id, after.id] == ids(store)
        store.close()

    def test_body_is_kept_while_a_failed_commit_may_come_true(self, faults, folder):
        """The file goes only when the failed transaction has been written over."""
        store = QueueStore(folder)
        before, large = accept(store), envelope()
        faults.errors["sync", "queue.db-wal"] = apsw.IOError
        store.commit([Accept(large, spooled(folder, LARGE))])
        faults.errors.clear()

        assert [large.id] == names(folder, "body")
        store.commit([Settle(before.id, {}, {})])  # writes nothing over it
        assert [large.id] == names(folder, "body")
        accept(store)
        assert names(folder, "body") == []
        store.close()

    def test_body_of_a_neighbour_survives_a_failed_commit(self, faults, folder):
        """When a batch is made one by one, only the one that fails loses its file."""
        store = QueueStore(folder)
        accept(store)
        good, bad = envelope(), envelope()
        changes: list[Change] = [
            Settle("no such id", {}, {}),
            Accept(good, spooled(folder, LARGE)),
            Accept(bad, spooled(folder, LARGE)),
        ]
        faults.after["sync", "queue.db-wal"] = [None, apsw.IOError]

        errors = store.commit(changes)
        accept(store)

        assert [error is not None for error in errors] == [True, False, True]
        assert [good.id] == names(folder, "body")
        assert content(store, good.id) == LARGE
        store.close()

    def test_failed_checkpoint_is_no_failed_commit(self, faults, folder, monkeypatch):
        """The log holds what the file could not take."""
        monkeypatch.setattr(store_module, "LOG_PAGES", 1)
        store = QueueStore(folder)
        faults.errors["write", "queue.db"] = apsw.FullError

        message = accept(store)
        faults.errors.clear()

        assert [message.id] == ids(store)
        store.close()
        store = QueueStore(folder)
        assert [message.id] == ids(store)
        store.close()

    def test_log_stays_short(self, folder, monkeypatch):
        """The log is brought into the file from time to time, and used again."""
        monkeypatch.setattr(store_module, "LOG_PAGES", 20)
        store = QueueStore(folder)
        for _ in range(100):
            message = accept(store, body=b"x" * 8000)
            settle(store, message, {"bob@b.example": DELIVERED})

        assert (folder / "queue.db-wal").stat().st_size < 40 * 4200
        store.close()


def test_reason_names_the_system_error():
    """An error of the system is told in its words."""
    assert (
        database.reason(OSError(28, "No space left on device"))
        == "no space left on device"
    )


def test_a_queue_of_version_1(folder):
    """Mail queued by an older version is found at its destination, and goes out."""
    folder.mkdir(parents=True, exist_ok=True)
    old = apsw.Connection(str(folder / "queue.db"))
    old.execute(
        """
        CREATE TABLE message (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
            owner TEXT NOT NULL, sender TEXT NOT NULL, received_at REAL NOT NULL,
            eight_bit INTEGER NOT NULL, smtputf8 INTEGER NOT NULL,
            size INTEGER NOT NULL, file_size INTEGER NOT NULL) STRICT;
        CREATE TABLE head (message INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT;
        CREATE TABLE recipient (message INTEGER NOT NULL, position INTEGER NOT NULL,
            address TEXT NOT NULL, attempts INTEGER NOT NULL,
            next_attempt_at REAL NOT NULL, last TEXT,
            PRIMARY KEY (message, position)) STRICT, WITHOUT ROWID;
        CREATE INDEX due ON recipient (next_attempt_at, message);
        INSERT INTO message VALUES (1, 'old', 'alpha.example', 'a@b.c', 5, 0, 0, 5, 0);
        INSERT INTO head VALUES (1, x'68656c6c6f');
        INSERT INTO recipient VALUES (1, 0, 'Bob@B.Example', 0, 5, NULL),
            (1, 1, '"a@b"@c.example', 0, 5, NULL), (1, 2, 'postmaster', 0, 5, NULL);
        PRAGMA user_version = 1;
        """
    )
    old.close()
    store = QueueStore(folder)
    try:
        found = walked(store).due
        added = accept(store)
        assert {"old", added.id} == set(ids(store))
        assert added == store.load(added.id)[0].envelope
    finally:
        store.close()

    assert ["", "b.example", "c.example"] == [due.destination for due in found]
    assert {"old"} == {due.message.envelope.id for due in found}
