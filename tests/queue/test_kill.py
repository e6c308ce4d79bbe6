import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.queue import victim
from vnsmail.queue.store import QueueStore

ROUNDS = 25
ROOT = Path(__file__).parents[2]


class Said:
    """What the victims said of their messages before they died."""

    def __init__(self) -> None:
        self.ids: dict[str, set[str]] = {
            word: set() for word in ("began", "accepted", "settling", "settled")
        }

    def hear(self, line: bytes) -> bool:
        """Note a line; return whether it acknowledges something."""
        word, message_id = line.decode().split()
        self.ids[word].add(message_id)
        return word in {"accepted", "settled"}

    def check(self, folder: Path) -> None:
        store = QueueStore(folder)
        found = {message.envelope.id: message for message in store.page(10**6)}
        kept, left = self.ids["accepted"] - self.ids["settling"], self.ids["settled"]

        assert set() == kept - found.keys(), "acknowledged, and lost"
        assert set() == left & found.keys(), "settled, and there again"
        assert set() == found.keys() - self.ids["began"]
        for message_id, message in found.items():
            _, body = store.load(message_id)
            assert victim.body_of(message_id) == b"".join(body.chunks())
            assert len(message.recipients) == 2
        large = {i for i in found if len(victim.body_of(i)) > victim.THRESHOLD}
        assert large == {path.name for path in (folder / "body").iterdir()}
        assert list((folder / "incoming").iterdir()) == []
        store.close()


def test_kill_nine_at_any_instant_loses_nothing_acknowledged(tmp_path):
    """Killed at random instants, time after time, a queue keeps every promise."""
    folder = tmp_path / "host"
    said = Said()
    with subprocess.Popen(  # noqa: S603  our own interpreter and code
        [sys.executable, "-m", "tests.queue.victim", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines = iter(process.stdout.readline, b"")
        for _ in range(ROUNDS):
            process.stdin.write(b"go\n")
            process.stdin.flush()
            kill_one(lines, said)
            said.check(folder)

    assert len(said.ids["accepted"]) > ROUNDS


def kill_one(lines: Iterator[bytes], said: Said) -> None:
    """Kill a victim after a random number of acknowledgements; hear its last words."""
    pid = int(next(lines).split()[1])
    wait_for = random.randint(0, 150)  # noqa: S311  any instant will do
    while wait_for > 0:
        wait_for -= said.hear(next(lines))
    os.kill(pid, signal.SIGKILL)
    for line in lines:
        if line.startswith(b"dead"):
            return
        said.hear(line)
