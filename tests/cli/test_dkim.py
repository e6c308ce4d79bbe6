"""``vnsmail dkim``: what it asks for, and what it prints."""

import pytest

from tests.cli.supervisor import FakeSupervisor
from vnsmail.cli import dkim_records
from vnsmail.supervisor.control import ChangeDkim, DkimFacts, DkimKeys, Error, ListDkim

KEY = DkimFacts(
    "alpha.example", "alpha.example", "s1", "ed25519", "pending", 0.0, "QUJD"
)
LINE = 's1._domainkey.alpha.example. IN TXT "v=DKIM1; k=ed25519; p=QUJD"'


@pytest.fixture
def supervisor(root):
    with FakeSupervisor(root) as found:
        found.answers[ListDkim] = found.answers[ChangeDkim] = DkimKeys((KEY,))
        yield found


@pytest.fixture(autouse=True)
def dns(monkeypatch):
    """What DNS shows of the key."""
    said = ["published"]
    monkeypatch.setattr(dkim_records, "shown", lambda keys, servers: said * len(keys))
    return said


@pytest.mark.parametrize(
    ("words", "request_"),
    [
        (["create", "alpha.example"], ChangeDkim("alpha.example", "create")),
        (
            ["create", "a.example", "--domain", "b.example", "--algorithm", "rsa"],
            ChangeDkim("a.example", "create", "b.example", algorithms=("rsa",)),
        ),
        (
            ["rotate", "alpha.example", "--selector", "s2", "--activate"],
            ChangeDkim("alpha.example", "rotate", None, "s2", active=True),
        ),
    ],
)
def test_records_are_printed_ready_to_paste(vnsmail, supervisor, words, request_):
    done = vnsmail("dkim", *words)

    assert (0, LINE + "\n") == (done.code, done.out)
    assert "then `vnsmail dkim activate" in done.err
    assert [request_] == supervisor.requests


def test_activate_asks_dns_first(vnsmail, supervisor, dns):
    assert 0 == vnsmail("dkim", "activate", "alpha.example").code
    assert isinstance(supervisor.requests[-1], ChangeDkim)
    supervisor.requests.clear()
    dns[0] = "missing"

    done = vnsmail("dkim", "activate", "alpha.example")

    assert 2 == done.code
    assert "DNS: missing" in done.err
    assert [ListDkim("alpha.example")] == supervisor.requests, "nothing was changed"
    assert 0 == vnsmail("dkim", "activate", "alpha.example", "--unchecked").code


def test_list(vnsmail, supervisor):
    done = vnsmail("dkim", "list", "alpha.example", "--json")

    assert ["published"] == [row["dns"] for row in done.json]
    assert "s1" in vnsmail("dkim", "list").out
    assert LINE + "\n" == vnsmail("dkim", "list", "--records").out


def test_remove(vnsmail, supervisor):
    done = vnsmail("dkim", "remove", "alpha.example", "s1")

    assert [ChangeDkim("alpha.example", "remove", None, "s1")] == supervisor.requests
    assert "s1._domainkey.alpha.example is removed" in done.err


def test_what_is_refused_is_one_line(vnsmail, supervisor):
    supervisor.answers[ChangeDkim] = Error("no such key", 1)

    done = vnsmail("dkim", "remove", "alpha.example", "s9")

    assert 1 == done.code
    assert done.err.count("\n") == 1
