"""How much room mailboxes take, for their quotas.

A mailbox is measured when somebody asks, and not again for a minute; what is delivered
meanwhile is added. Whoever reads mail deletes it behind our back, so nothing is kept of
what was measured that could go wrong for longer than that.

Rules of this file: ``is_full`` never waits: what was not measured yet is not full, and
is measured then; ``measure`` and ``take`` block, so they run in a thread; of two that
take at once, one is the first.
"""

import asyncio
import os
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

FRESH = 60.0
"""Seconds for which a measurement holds."""


def measure(folder: Path) -> int:
    """Return the octets of all files in a Maildir, its folders (Maildir++) among them."""
    total = 0
    waiting = [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    try:
                        facts = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:  # read and moved meanwhile
                        continue
                    if stat.S_ISDIR(facts.st_mode):
                        waiting.append(Path(entry.path))
                    else:
                        total += facts.st_size
        except (FileNotFoundError, NotADirectoryError):
            continue
    return total


@dataclass(slots=True)
class _Measured:
    octets: int
    at: float


class Usage:
    """The mailboxes below one folder.

    Args:
        folder: has a Maildir for each user.
        executor: measures.
        clock: seconds, from wherever.
    """

    def __init__(
        self,
        folder: Path,
        executor: Executor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._executor = executor
        self._clock = clock
        self._measured: dict[str, _Measured] = {}
        self._measuring: set[str] = set()
        self._lock = threading.Lock()

    def is_full(self, user: str, quota: int | None) -> bool:
        """Say whether a mailbox has its quota, as far as is known by now."""
        if quota is None:
            return False
        known = self._measured.get(user)
        if known is None or known.at + FRESH < self._clock():
            self._measure_beside(user)
        return known is not None and known.octets >= quota

    def take(self, user: str, octets: int, quota: int | None) -> bool:
        """Take room for a message; False if the mailbox has its quota. Blocks.

        What is not used after all is to be given back with ``give_back``.
        """
        if quota is None:
            return True
        with self._lock:
            known = self._known(user)
            if known.octets >= quota:
                return False
            known.octets += octets
        return True

    def give_back(self, user: str, octets: int) -> None:
        """Count less: a message was not delivered."""
        with self._lock:
            if user in self._measured:
                self._measured[user].octets -= octets

    def forget(self) -> None:
        """Measure all anew: users came or went, or have other quotas."""
        with self._lock:
            self._measured.clear()

    def _known(self, user: str) -> _Measured:
        known = self._measured.get(user)
        if known is None or known.at + FRESH < self._clock():
            known = _Measured(measure(self._folder / user), self._clock())
            self._measured[user] = known
        return known

    def _refresh(self, user: str) -> None:
        with self._lock:
            self._known(user)

    def _measure_beside(self, user: str) -> None:
        if user in self._measuring:
            return
        self._measuring.add(user)
        work = asyncio.get_running_loop().run_in_executor(
            self._executor, self._refresh, user
        )
        work.add_done_callback(lambda _: self._measuring.discard(user))
