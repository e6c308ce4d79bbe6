import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from vnsmail.engines.counters import FILE, Counters
from vnsmail.model import Outcome, Verdict

NOW = 1_800_000_000.0
SENT = Outcome(
    Verdict.DELIVERED, 250, "2.0.0", "ok", "mx.example [10.0.0.1]", "10.0.0.2"
)
HERE = Outcome(Verdict.DELIVERED, 250, "2.0.0", "put into the mailbox of ann")
LATER = Outcome(Verdict.DEFERRED, 451, "4.0.0", "later")
NEVER = Outcome(Verdict.FAILED, 550, "5.0.0", "no")


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as found:
        yield found


async def test_kept(tmp_path, executor):
    """What was counted is there after a restart, with when it began."""
    counters = Counters.load(tmp_path, executor, NOW)
    counters.accepted(100)
    counters.refused()
    for outcome in (SENT, SENT, HERE, LATER, NEVER):
        counters.outcome(outcome, 10)
    counters.came_in()
    counters.went_out()
    counters.hour.add(NOW)
    await counters.close()
    tally = Counters.load(tmp_path, executor, NOW + 99).tally

    assert tally == counters.tally
    assert (NOW, 1, 100, 1) == (
        tally.since,
        tally.accepted,
        tally.accepted_octets,
        tally.refused,
    )
    assert (2, 20, 1, 1, 1) == (
        tally.sent,
        tally.sent_octets,
        tally.delivered,
        tally.deferred,
        tally.failed,
    )
    assert (1, 1) == (tally.connections_in, tally.connections_out)
    assert 1 == Counters.load(tmp_path, executor, NOW).hour.count(NOW)
    assert [FILE] == [path.name for path in tmp_path.iterdir()]


async def test_nothing_to_keep(tmp_path, executor):
    """Where nothing was counted, nothing is written."""
    await Counters.load(tmp_path, executor, NOW).close()

    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{}", "\xff", json.dumps({"tally": 1})])
async def test_damaged(tmp_path, executor, text):
    """It is begun anew, and says since when."""
    (tmp_path / FILE).write_bytes(text.encode("latin-1"))

    assert NOW == Counters.load(tmp_path, executor, NOW).tally.since


async def test_a_disk_that_is_full(tmp_path, executor):
    """Counting goes on; nobody fails for it."""
    counters = Counters.load(tmp_path / "gone", executor, NOW)
    counters.accepted(1)
    await counters.close()

    assert 1 == counters.tally.accepted
