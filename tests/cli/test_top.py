"""What the hosts are doing, out of two looks."""

from tests.cli.test_queue_work import OWNERS
from vnsmail.cli import top
from vnsmail.engines.protocol import Tally
from vnsmail.supervisor import control

BEFORE = Tally(1.0, accepted=10, sent=10, connections_out=3)
AFTER = Tally(1.0, accepted=20, sent=16, delivered=4, deferred=2, connections_out=5)


def look(at, tally):
    return top._Look(at, OWNERS, {"alpha.example": tally})


def test_rates():
    """They are a second; the busiest host is the first; a count begun anew is none."""
    first, second = top.rows(look(100.0, BEFORE), look(102.0, AFTER))
    anew = top.rows(look(100.0, BEFORE), look(102.0, Tally(50.0, accepted=3)))

    assert ("alpha.example", "machine") == (first.host, second.host)
    assert (5.0, 5.0, 1.0, 1.0) == (
        first.accepted,
        first.sent,
        first.deferrals,
        first.connections,
    )
    assert {0.0} == {row.accepted for row in anew}


def test_once(vnsmail, supervisor):
    """One table and the same as JSON."""
    supervisor.answers[control.GetStatus] = control.Status(1, "/", (), OWNERS, ())
    supervisor.answers[control.GetTally] = control.Told(BEFORE)
    shown = vnsmail("top", "--once", "--interval", "0.2", columns="160")
    found = vnsmail("top", "--json", "--interval", "0.2").json

    assert "alpha.example" in shown.out
    assert ["alpha.example", "machine"] == [row["host"] for row in found]
    assert {"queued", "deferred", "state", "resting"} <= set(found[0])
