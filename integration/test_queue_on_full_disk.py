"""A disk that is really full: nothing acknowledged is lost, and outcomes are kept."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

INSIDE = """
import subprocess, sys, time, os
from pathlib import Path
from vnsmail.errors import QueueUnavailable
from vnsmail.model import Envelope, Outcome, Owner, Verdict
from vnsmail.queue import store as module
from vnsmail.queue.body import Body, BodyWriter
from vnsmail.queue.envelope import new_id
from vnsmail.queue.store import Accept, QueueStore, Settle, sync_body

disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], check=True)
folder, bodies = disk / "host", {}
delivered = Outcome(Verdict.DELIVERED, 250, "2.0.0", "ok")

def fill(store):
    for number in range(10_000):
        now = time.time()
        envelope = Envelope(new_id(now, os.urandom(6)), Owner("alpha.example"),
            "", ("bob@b.example",), now)
        data = os.urandom(9000 + 30_000 * (number % 2))
        writer = BodyWriter(folder, 20_000)
        try:
            writer.write(data)
            body = writer.finish()
            sync_body(body)
        except QueueUnavailable as error:
            return error
        (error,) = store.commit([Accept(envelope, body)])
        if error:
            return error
        bodies[envelope.id] = data
    raise AssertionError("the disk never got full")

def check(store):
    found = {message.envelope.id for message in store.page(100_000)}
    assert found == set(bodies), (len(found), len(bodies))
    for i, data in bodies.items():
        assert b"".join(store.load(i)[1].chunks()) == data
    assert {p.name for p in (folder / "body").iterdir()} == {
        i for i, data in bodies.items() if len(data) > 20_000}

def settle(store, message_id):
    change = Settle(message_id, {"bob@b.example": delivered}, {})
    (error,) = store.commit([change])
    assert error is None, error
    del bodies[message_id]

# With the reserve: mail is refused early, and every outcome can be written down.
module.RESERVE = 2 << 20
store = QueueStore(folder)
print(fill(store), len(bodies))
check(store)
for message_id in list(bodies)[::2]:
    settle(store, message_id)
check(store)

# Without: full to the last byte. What was acknowledged is there, now and later.
module.RESERVE = 0
print(fill(store), len(bodies))
check(store)
store.close()
store = QueueStore(folder)
check(store)

# Room again: the same queue goes on.
subprocess.run(["mount", "-o", "remount,size=60m", disk], check=True)
for message_id in list(bodies):
    settle(store, message_id)
check(store)
module.RESERVE = 50 << 20
print(fill(store), len(bodies))
check(store)
store.close()
"""


@pytest.mark.root
def test_full_disk(tmp_path):
    """Full by reserve, full to the last byte, and room again: promises are kept."""
    done = subprocess.run(
        ["unshare", "--mount", "--", sys.executable, "-c", INSIDE, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    reasons = [line for line in lines if line.startswith("cannot use the queue")]
    assert len(reasons) == 3
    assert "less than 2 MiB left" in reasons[0]
    assert "full" in reasons[1] or "no space left" in reasons[1]
    assert "less than 50 MiB left" in reasons[2]
