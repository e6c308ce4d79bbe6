"""The commands that change a queue: what they ask for, and what they refuse."""

import pytest

from vnsmail.engines.protocol import OwnerReport
from vnsmail.queue.selection import Selection
from vnsmail.supervisor import control

ID = "1k1b3c11sxeszjc2rhrx"
OWNERS = tuple(
    OwnerReport(
        owner=name,
        listening=(),
        sessions=0,
        messages=1,
        deferred=0,
        oldest=None,
        problem="",
    )
    for name in ("machine", "alpha.example")
)


@pytest.fixture
def running(supervisor):
    supervisor.answers[control.GetStatus] = control.Status(1, "/", (), OWNERS, ())
    supervisor.answers[control.WorkQueue] = control.QueueWorked(2, 3, 1, "")
    supervisor.answers[control.HoldPlace] = control.PlaceHeld(True, {})
    supervisor.answers[control.FindQueue] = control.QueuePage((), "")
    return supervisor


def asked(supervisor):
    return [each for each in supervisor.requests if type(each) is not control.GetStatus]


def test_delete_with_filters(vnsmail, running):
    """One page of each host that is meant, and what was left alone is told."""
    done = vnsmail(
        "queue",
        "delete",
        "--host",
        "alpha.example",
        "--domain",
        "B.example",
        "--sender",
        "<>",
        "--yes",
    )

    wanted = Selection(domain="b.example", sender="")
    assert [control.WorkQueue("alpha.example", "delete", wanted)] == asked(running)
    assert 0 == done.code
    assert "2 messages (3 recipients) deleted" in done.err
    assert "1 messages are being sent, and were left alone" in done.err


def test_json(vnsmail, running):
    """The sums over all hosts."""
    done = vnsmail("queue", "retry", "--all", "--json")

    assert {"messages": 4, "recipients": 6, "under_way": 2} == done.json
    assert ["machine", "alpha.example"] == [each.owner for each in asked(running)]


def test_dry_run(vnsmail, running):
    """It needs no confirmation, and says would."""
    done = vnsmail("queue", "bounce", ID, "--dry-run", "--reason", "no")

    assert all(each.dry_run and each.reason == "no" for each in asked(running))
    assert "4 messages (6 recipients) would be returned to their senders" in done.err


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (("hold", "--host", "alpha.example"), "*"),
        (("hold", "--host", "alpha.example", "--domain", "b.example"), "b.example"),
    ],
)
def test_hold_of_a_place(vnsmail, running, words, place):
    """A host, or what it sends to a destination, is held as a whole."""
    vnsmail("queue", *words, "--reason", "busy")
    (request,) = asked(running)
    running.requests.clear()
    vnsmail("queue", "release", *words[1:])
    (release,) = asked(running)

    assert control.HoldPlace("alpha.example", place, "busy") == request
    assert control.HoldPlace("alpha.example", place, "", release=True) == release


def test_hold_of_messages(vnsmail, running):
    """Ids are messages, wherever they are."""
    vnsmail("queue", "hold", ID, "--reason", "looked at")

    assert [(ID,)] * 2 == [each.selection.ids for each in asked(running)]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("delete",), "say which"),
        (("retry",), "say which"),
        (("delete", ID), "give --yes"),
        (("bounce", "--all"), "give --yes"),
        (("delete", "nonsense", "--yes"), "queue id"),
        (("retry", "--older", "soon"), "write it as 90m"),
        (("list", "--status", "gone"), "choose one of deferred, held, active, due"),
        (("retry", "--recipient", "bob"), "user@b.example"),
        (("retry", "--recipient", "bob@b.example", "--domain", "c.example"), "not in"),
        (("retry", "--host", "gamma.example"), "gamma.example"),
    ],
)
def test_refused(vnsmail, running, words, complaint):
    """One line, exit 2 or 1, and nothing was changed."""
    done = vnsmail("queue", *words)

    assert 0 != done.code
    assert complaint in done.err
    assert 1 == done.err.count("\n")
    assert [] == [
        each for each in asked(running) if type(each) is not control.FindQueue
    ]


def test_an_id_that_nobody_has(vnsmail, running):
    """It is an error, with where to look."""
    running.answers[control.WorkQueue] = control.QueueWorked(0, 0, 0, "")
    shown, retried = vnsmail("queue", "show", ID), vnsmail("queue", "retry", ID)

    assert (2, 2) == (shown.code, retried.code)
    assert f"vnsmail trace {ID}" in shown.err
