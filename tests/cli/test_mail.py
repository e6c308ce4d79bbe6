import io
import sys
import time

import pytest

from vnsmail.cli import client, queue
from vnsmail.engines.protocol import OwnerReport, QueueEntry
from vnsmail.model import Envelope, Owner, Priority
from vnsmail.supervisor import control

NOW = 1_800_000_000.0
SEND = ("send", "--as", "ann@alpha.example", "--to", "bob@b.example")


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: NOW)


@pytest.fixture
def queued(supervisor):
    supervisor.answers[control.Send] = control.Queued("alpha.example", "the-id")
    return supervisor


class Stdin:
    """A standard input with something on it, or a terminal."""

    def __init__(self, data=b"", terminal=False):
        self.buffer = io.BytesIO(data)
        self.isatty = lambda: terminal


# send --------------------------------------------------------------------------


def test_send_a_text(vnsmail, queued):
    """A plain message is made of subject (RFC 2047) and text."""
    done = vnsmail(*SEND, "--subject", "Grüße", "--text", "hello\nyou")

    assert (0, "", "queued as the-id by alpha.example\n") == (
        done.code,
        done.out,
        done.err,
    )
    assert [control.Send("ann@alpha.example", ("bob@b.example",))] == queued.requests
    (message,) = queued.messages
    assert (
        b"To: bob@b.example\nSubject: =?utf-8?b?R3LDvMOfZQ==?=\nMIME-Version: 1.0\n"
        b"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n"
        b"\nhello\nyou\n"
    ) == message


def test_send_a_file(vnsmail, queued, tmp_path):
    """A message in a file goes as it is."""
    file = tmp_path / "message"
    file.write_bytes(b"Subject: x\r\n\r\n\x00\xff")
    vnsmail(*SEND, "--to", "eve@b.example", "--file", file)

    assert [b"Subject: x\r\n\r\n\x00\xff"] == queued.messages
    assert ("bob@b.example", "eve@b.example") == queued.requests[0].recipients


def test_send_standard_input(vnsmail, queued, monkeypatch):
    """So does one on standard input."""
    monkeypatch.setattr(sys, "stdin", Stdin(b"Subject: x\n\nhello\n"))
    vnsmail(*SEND)

    assert [b"Subject: x\n\nhello\n"] == queued.messages


def test_send_as_the_machine(vnsmail, queued):
    """The machine's mail needs no sender."""
    vnsmail("send", "--machine", "--to", "bob@b.example", "--text", "hello")

    assert [control.Send("", ("bob@b.example",), machine=True)] == queued.requests


def test_send_with_priority(vnsmail, queued):
    """A priority goes with the message; another word than the three sends nothing."""
    words = ("send", "--machine", "--to", "bob@b.example", "--text", "x", "--priority")
    assert 0 == vnsmail(*words, "bulk").code
    assert 2 == vnsmail(*words, "urgent").code

    assert [Priority.BULK] == [request.priority for request in queued.requests]


def test_send_json(vnsmail, queued):
    """Owner and queue id."""
    done = vnsmail(*SEND, "--text", "hello", "--json")

    assert {"owner": "alpha.example", "id": "the-id"} == done.json
    assert "" == done.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--text", "x"), "sender '': give --as USER@HOST, or --machine"),
        (
            ("--machine", "--text", "x", "--file", "f"),
            "file 'f': give it, or --subject and --text",
        ),
        (
            ("--machine", "--file", "/no/such/file"),
            "file '/no/such/file': cannot read it: No such file or directory",
        ),
        (
            ("--machine", "--subject", "one\ntwo"),
            r"subject 'one\ntwo': a subject is one line",
        ),
        (
            ("--machine",),
            "message '': give --text, --file, or a message on stdin",
        ),
    ],
)
def test_send_what_cannot_be(vnsmail, queued, monkeypatch, words, sentence):
    """It is told in one line, and nobody is asked."""
    monkeypatch.setattr(sys, "stdin", Stdin(terminal=True))
    done = vnsmail("send", "--to", "bob@b.example", *words)

    assert (2, "", f"vnsmail: {sentence}\n") == (done.code, done.out, done.err)
    assert [] == queued.requests


def test_send_to_many(vnsmail, queued):
    """However long the list is, it goes in one request."""
    many = [f"{'x' * 300}{n}@b.example" for n in range(500)]
    words = [word for to in many for word in ("--to", to)]
    done = vnsmail("send", "--machine", "--text", "x", *words)

    assert 0 == done.code
    assert tuple(many) == queued.requests[0].recipients


# queue list --------------------------------------------------------------------


def entry(number, *recipients, sender="ann@alpha.example", owner="alpha.example"):
    sent = Envelope(
        f"id{number}", Owner(owner), sender, ("x",), NOW - 60 * number, smtputf8=False
    )
    return QueueEntry(sent, 1234, recipients)


ENTRIES = (
    entry(
        90,
        ("bob@b.example", 2, NOW + 100.4, "451 greylisted"),
        ("eve@c.example", 0, NOW - 5, ""),
    ),
    entry(1, ("ann@alpha.example", 0, NOW, ""), sender="", owner="machine"),
)
QUEUE = """\
queue
id    owner          age    sender             recipient          tries  next      last
─────────────────────────────────────────────────────────────────────────────────────────────────
id90  alpha.example  1h30m  ann@alpha.example  bob@b.example      2      in 100 s  451 greylisted
id90  alpha.example  1h30m  ann@alpha.example  eve@c.example      0      now
id1   machine        1m0s   <>                 ann@alpha.example  0      now"""


def test_queue_list(vnsmail, supervisor):
    """A line for each recipient that waits, with what was said last."""
    supervisor.answers[control.ListQueue] = control.QueueListed(ENTRIES)
    done = vnsmail("queue", "list", "--host", "alpha.example", "--limit", "5")

    assert (0, QUEUE, "") == (done.code, done.screen(), done.err)
    assert [control.ListQueue("alpha.example", 5)] == supervisor.requests


def test_queue_list_of_all(vnsmail, supervisor):
    """An empty queue is a remark."""
    supervisor.answers[control.ListQueue] = control.QueueListed(())
    done = vnsmail("queue", "list")

    assert ("", "nothing is queued\n") == (done.out, done.err)
    assert [control.ListQueue(None, 100)] == supervisor.requests


def test_queue_list_json(vnsmail, supervisor):
    """The same with all facts."""
    supervisor.answers[control.ListQueue] = control.QueueListed(ENTRIES)
    first, second = vnsmail("queue", "list", "--json").json

    assert {"envelope", "size", "recipients", "held", "active"} == set(first)
    assert ["bob@b.example", 2, NOW + 100.4, "451 greylisted"] == first["recipients"][0]
    assert ("", "machine") == (
        second["envelope"]["sender"],
        second["envelope"]["owner"],
    )


def test_a_long_queue(vnsmail, supervisor):
    """A listing larger than a packet comes whole."""
    many = tuple(
        entry(n, *[(f"user{k}@b.example", 1, NOW, "451 later") for k in range(100)])
        for n in range(100)
    )
    supervisor.answers[control.ListQueue] = control.QueueListed(many)

    assert 100 == len(vnsmail("queue", "list", "--json").json)


# queue wait ---------------------------------------------------------------------


class Draining:
    """A queue with one message less at each look."""

    def __init__(self, monkeypatch, *counts):
        self.counts = list(counts)
        monkeypatch.setattr(queue, "LOOK_EVERY", 0.0)
        monkeypatch.setattr("vnsmail.cli.client.ask", self.ask)

    def ask(self, _layout, request, _expected):
        if isinstance(request, control.ListQueue):
            return control.QueueListed(())
        left = self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]
        reports = (
            OwnerReport("alpha.example", (), 0, left, 0, None, ""),
            OwnerReport("beta.example", (), 0, 7, 0, None, ""),
        )
        return control.Status(1, "/r", (), reports, ())


def test_wait(vnsmail, monkeypatch):
    """It ends when the host's queue is empty, whatever others have."""
    Draining(monkeypatch, 3, 2, 1, 0)
    done = vnsmail("queue", "wait", "--host", "alpha.example")

    assert (0, "") == (done.code, done.out)
    assert done.err.endswith("nothing is queued\n")


def test_wait_in_vain(vnsmail, monkeypatch):
    """If something is still queued in the end, that is a failure."""
    Draining(monkeypatch, 3)
    done = vnsmail("queue", "wait", "--timeout", "0.01")

    assert (1, "") == (done.code, done.out)
    assert done.err.endswith(
        "vnsmail: 10 messages are still queued after 0.01 s; see `vnsmail queue list`\n"
    )


@pytest.mark.parametrize("words", [(), ("--host", "beta.example")], ids=str)
def test_wait_for_who_is_not_served(vnsmail, monkeypatch, words):
    """Its worker died just now: nobody knows what is queued, so it is not empty."""
    monkeypatch.setattr(queue, "LOOK_EVERY", 0.0)
    silent = (("beta.example", "worker-0 is waiting, and silent"),)
    reports = (OwnerReport("alpha.example", (), 0, 0, 0, None, ""),)
    answers = [control.Status(1, "/r", (), reports, silent)]

    def ask(_layout, request, _expected):
        if isinstance(request, control.ListQueue):
            text = "worker-0 is being started; try again"
            raise client.Refused(text, 1)
        return answers.pop(0) if len(answers) > 1 else answers[0]

    monkeypatch.setattr("vnsmail.cli.client.ask", ask)
    done = vnsmail("queue", "wait", "--timeout", "0.01", *words)
    assert done.code == 1
    assert "nobody knows what is queued of beta.example" in done.err
    both = (*reports, OwnerReport("beta.example", (), 0, 0, 0, None, ""))
    answers.append(control.Status(1, "/r", (), both, ()))
    assert vnsmail("queue", "wait", *words).code == 0


def test_wait_for_an_unreadable_queue(vnsmail, monkeypatch):
    """A disk that fails is no queue that is empty."""
    found = OwnerReport("alpha.example", (), 0, 0, 0, None, "disk full", unread=True)
    status = control.Status(1, "/r", (), (found,), ())
    monkeypatch.setattr("vnsmail.cli.client.ask", lambda *_: status)
    done = vnsmail("queue", "wait", "--timeout", "0.01")
    assert done.code == 1
    assert "disk full" in done.err


def test_wait_for_nobody(vnsmail, supervisor):
    """A wrong name is an error, and not a queue that is empty."""
    supervisor.answers[control.ListQueue] = control.Error("no such host", 2)

    assert 2 == vnsmail("queue", "wait", "--host", "gamma.example").code
