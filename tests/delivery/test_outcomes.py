import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.delivery import outcomes as say
from vnsmail.errors import BrokerGone, QueueUnavailable, ResolveError, SourceUnavailable
from vnsmail.model import Outcome, Verdict
from vnsmail.smtp.replies import Reply

REMOTE, SOURCE = "mx.b.example [10.0.0.2]", "10.0.0.1"


@pytest.mark.parametrize(
    ("code", "enhanced", "verdict", "shown"),
    [
        (250, "2.1.5", Verdict.DELIVERED, "2.1.5"),
        (250, "", Verdict.DELIVERED, "2.0.0"),
        (451, "4.7.1", Verdict.DEFERRED, "4.7.1"),
        (421, "", Verdict.DEFERRED, "4.0.0"),
        (550, "5.1.1", Verdict.FAILED, "5.1.1"),
        (550, "4.1.1", Verdict.FAILED, "5.0.0"),
        (354, "", Verdict.DEFERRED, "4.0.0"),
    ],
)
def test_a_reply_decides(code, enhanced, verdict, shown):
    """The class of the code decides; a status of another class is put right."""
    found = say.from_reply(Reply(code, ("so", "it is"), enhanced), REMOTE, SOURCE)

    assert Outcome(verdict, code, shown, "so it is", REMOTE, SOURCE) == found


@given(
    st.integers(200, 599),
    st.lists(st.text(), min_size=1).map(tuple),
    st.sampled_from(["", "2.1.5", "4.2.1", "5.7.1", "4.", "junk"]),
)
def test_any_reply_has_an_outcome(code, lines, enhanced):
    """Whatever a remote says, there is one line, and a status that fits the verdict."""
    found = say.from_reply(Reply(code, lines, enhanced), REMOTE, SOURCE)

    assert len(found.text.splitlines()) <= 1
    first = {Verdict.DELIVERED: "2.", Verdict.DEFERRED: "4.", Verdict.FAILED: "5."}
    assert found.enhanced.startswith(first[found.verdict])
    assert (found.verdict is Verdict.DELIVERED) is (200 <= code < 300)


@pytest.mark.parametrize(
    "error", [SourceUnavailable("alpha.example", "10.0.0.1", 99), BrokerGone()]
)
def test_no_source_is_no_attempt(error):
    """Without a source nobody was asked: it is deferred and uses up no retry."""
    found = say.no_source(error)

    assert found.not_an_attempt
    assert (Verdict.DEFERRED, "4.4.0", str(error), "", "") == (
        found.verdict,
        found.enhanced,
        found.text,
        found.remote,
        found.source,
    )


def test_trouble_here_is_deferred():
    """Trouble of this system is no fault of the message."""
    found = say.trouble_here(QueueUnavailable("/q", "disk\nfull"))

    assert (Verdict.DEFERRED, "4.3.0") == (found.verdict, found.enhanced)
    assert "cannot use the queue /q: disk full" == found.text


@pytest.mark.parametrize(
    ("temporary", "verdict", "enhanced"),
    [(True, Verdict.DEFERRED, "4.4.3"), (False, Verdict.FAILED, "5.1.2")],
)
def test_dns_trouble(temporary, verdict, enhanced):
    """A definite answer ends it, trouble of a name server does not."""
    error = ResolveError("b.example", "MX", "no", temporary=temporary)
    found = say.unresolved(error)

    assert (verdict, enhanced, str(error)) == (
        found.verdict,
        found.enhanced,
        found.text,
    )


@pytest.mark.parametrize(
    ("lifetime", "words"),
    [(432000, "5 days"), (86400, "24 hours"), (600, "10 minutes"), (60, "60 seconds")],
)
def test_expired(lifetime, words):
    """What was tried for long enough failed with what was said last (RFC 3464)."""
    last = Outcome(Verdict.DEFERRED, 451, "4.2.1", "greylisted", REMOTE, SOURCE)
    found = say.expired(last, lifetime)

    text = f"given up after {words}; the last answer was: greylisted"
    assert Outcome(Verdict.FAILED, 451, "4.4.7", text, REMOTE, SOURCE) == found


def test_hardest():
    """Only if every hop refused for good, it is for good."""
    never = say.failed(550, "5.7.1", "never")
    later = say.deferred(421, "4.4.1", "later")
    last = say.failed(550, "5.7.1", "the last")

    assert last == say.hardest([never, last])
    assert later == say.hardest([never, later, last])
    assert never == say.hardest(iter([never]))


def test_of():
    """Outcomes are picked by verdict."""
    mixed = {
        "a": say.failed(550, "5.1.1", "no"),
        "b": say.deferred(451, "4.3.0", "later"),
    }

    assert {"a": mixed["a"]} == say.of(mixed, Verdict.FAILED)
    assert mixed == say.of(mixed, Verdict.FAILED, Verdict.DEFERRED)
    assert {} == say.of(mixed, Verdict.DELIVERED)
