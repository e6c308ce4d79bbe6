"""What one owner's mail has come to, counted and kept.

    counters.json    in the owner's folder, a Tally; written some seconds after a change
                     and at the end, so that a crash loses the last few seconds only

Rules of this file: counting never fails and waits for nothing; a file that cannot be
read is begun anew, and ``since`` says so; no message waits for it to be written.
"""

import asyncio
import contextlib
import os
from concurrent.futures import Executor
from pathlib import Path

import msgspec

from vnsmail.engines.protocol import Tally
from vnsmail.inbound.allowance import Hour
from vnsmail.log import logger
from vnsmail.model import Outcome, Verdict

FILE = "counters.json"

SAVE_AFTER = 5.0
"""Seconds from a change until it is written. With a write for each message, the
counters would cost more than the messages."""

log = logger("counters")


class _Kept(msgspec.Struct, forbid_unknown_fields=True):
    """What the file holds."""

    tally: Tally
    minutes: dict[int, int] = {}
    """Messages taken for sending, by minute; see Hour."""


class Counters:
    """The counters of one owner; made by ``load`` in a thread that may wait."""

    def __init__(self, kept: _Kept, path: Path, executor: Executor) -> None:
        self.tally = kept.tally
        self.hour = Hour(kept.minutes)
        self._path = path
        self._executor = executor
        self._timer: asyncio.TimerHandle | None = None
        self._saving: asyncio.Future[None] | None = None

    @classmethod
    def load(cls, folder: Path, executor: Executor, now: float) -> "Counters":
        """Return the counters kept in an owner's folder; new ones if there are none."""
        path = folder / FILE
        kept = _Kept(Tally(now))
        try:
            kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
        except FileNotFoundError:
            pass
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("counters.begun_anew", file=str(path), reason=str(error))
        return cls(kept, path, executor)

    # Counting --------------------------------------------------------------------

    def accepted(self, octets: int) -> None:
        """Count a message that was taken into the queue."""
        self.tally.accepted += 1
        self.tally.accepted_octets += octets
        self._changed()

    def refused(self) -> None:
        """Count a message that a limit kept out."""
        self.tally.refused += 1
        self._changed()

    def outcome(self, outcome: Outcome, octets: int) -> None:
        """Count what an attempt came to for one recipient."""
        if outcome.verdict is Verdict.DEFERRED:
            self.tally.deferred += 1
        elif outcome.verdict is Verdict.FAILED:
            self.tally.failed += 1
        elif outcome.remote:
            self.tally.sent += 1
            self.tally.sent_octets += octets
        else:
            self.tally.delivered += 1
        self._changed()

    def came_in(self) -> None:
        """Count a connection of a client."""
        self.tally.connections_in += 1
        self._changed()

    def went_out(self) -> None:
        """Count a socket to connect to a remote."""
        self.tally.connections_out += 1
        self._changed()

    # Keeping ---------------------------------------------------------------------

    async def close(self) -> None:
        """Write what was counted."""
        if self._timer is None and self._saving is None:
            return
        while self._saving is not None:
            with contextlib.suppress(OSError):
                await asyncio.shield(self._saving)
            await asyncio.sleep(0)
        self._cancel()
        if (last := self._save()) is not None:
            await asyncio.wait([last])

    def _changed(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(SAVE_AFTER, self._due)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        self._timer = None
        if self._saving is None:
            self._save()
        else:
            self._changed()

    def _save(self) -> asyncio.Future[None] | None:
        data = msgspec.json.encode(_Kept(self.tally, self.hour.minutes))
        loop = asyncio.get_running_loop()
        try:
            saving = loop.run_in_executor(self._executor, _write, self._path, data)
        except RuntimeError:  # the executor ends with the worker
            return None
        self._saving = saving
        saving.add_done_callback(self._saved)
        return saving

    def _saved(self, done: asyncio.Future[None]) -> None:
        self._saving = None
        if not done.cancelled() and (error := done.exception()):
            log.warning("counters.not_kept", file=str(self._path), reason=str(error))


def _write(path: Path, data: bytes) -> None:
    beside = path.with_name(f"{path.name}.new")
    beside.write_bytes(data)
    os.replace(beside, path)
