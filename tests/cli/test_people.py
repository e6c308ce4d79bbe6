import getpass
import io
import sys

import pytest

from tests.cli.test_host import ALPHA, BETA
from vnsmail.cli import user
from vnsmail.directory import Directory
from vnsmail.model import Alias, Credentials, User
from vnsmail.sasl.passwords import verify
from vnsmail.supervisor import control

PASSWORD = "correct horse"  # noqa: S105
ANN = "ann@alpha.example"


@pytest.fixture
def directory(root):
    directory = Directory(root / "directory.db")
    for host in (ALPHA, BETA):
        directory.add_host(host)
        directory.activate(host.name)
    directory.add_user(User(ALPHA.name, "bob", quota=5 * 2**20))
    directory.add_user(User(ALPHA.name, "ann"), Credentials("$x", "$y"))
    directory.allow_sender(User(ALPHA.name, "ann"), "press@x.example")
    directory.add_user(User(BETA.name, "eve", suspended=True), Credentials("$x", "$y"))
    yield directory
    directory.close()


@pytest.fixture
def typed(monkeypatch):
    """Type on a terminal that shows nothing."""
    prompts = []

    def type_(*words):
        waiting = iter(words)
        terminal = io.StringIO()
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", terminal)

        def ask(prompt):
            prompts.append(prompt)
            return next(waiting)

        monkeypatch.setattr(getpass, "getpass", ask)
        return prompts

    return type_


def piped(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


# Users -------------------------------------------------------------------------------

USERS = """\
users
address            host           signs in     quota  sends also as
─────────────────────────────────────────────────────────────────────
ann@alpha.example  alpha.example  yes                 press@x.example
bob@alpha.example  alpha.example  no password  5M
eve@beta.example   beta.example   suspended"""


@pytest.mark.usefixtures("directory")
def test_list(vnsmail):
    """Who is there and may do what; no hash is shown to anybody."""
    assert USERS == vnsmail("user", "list").screen()
    assert "eve" not in vnsmail("user", "list", "--host", "alpha.example").out
    assert 2 == vnsmail("user", "list", "--host", "gamma.example").code
    found = vnsmail("user", "list", "--json")
    assert "$" not in found.out
    assert found.json[1] == {
        "address": "bob@alpha.example",
        "host": "alpha.example",
        "sign_in": False,
        "suspended": False,
        "quota": 5 * 2**20,
        "senders": [],
    }


def test_add_without_password(vnsmail, supervisor, monkeypatch):
    """A program that gives none gets a user who cannot sign in, and is told."""
    piped(monkeypatch, "")
    done = vnsmail("user", "add", ANN)

    words = f"user {ANN} is added; without a password it cannot sign in\n"
    assert (0, "", words) == (done.code, done.out, done.err)
    assert [control.AddUser(ANN)] == supervisor.requests


@pytest.mark.parametrize("verb", ["add", "passwd"])
def test_password_from_stdin(vnsmail, supervisor, monkeypatch, verb):
    """What the supervisor hears is a hash of the first line, and never the password."""
    piped(monkeypatch, f"{PASSWORD}\nmore\n")
    done = vnsmail("user", verb, ANN, "--password-stdin")
    (request,) = supervisor.requests

    assert (0, "") == (done.code, done.out)
    assert verify(request.proofs.password, PASSWORD)
    assert request.proofs.scram.startswith("SCRAM-SHA-256$")
    assert PASSWORD not in control.encode(request).decode()
    assert PASSWORD not in done.err


@pytest.mark.parametrize("verb", ["add", "passwd"])
def test_generated(vnsmail, supervisor, verb):
    """The password is the only data, so that a program can take it."""
    done = vnsmail("user", verb, ANN, "--generate")

    assert verify(supervisor.requests[0].proofs.password, done.out.strip())
    assert "shown this once" in done.err


def test_typed(vnsmail, supervisor, typed):
    """A terminal is asked twice."""
    prompts = typed(PASSWORD, PASSWORD)
    done = vnsmail("user", "passwd", ANN)

    assert ["Password: ", "Again: "] == prompts
    assert f"user {ANN} has another password\n" == done.err
    assert verify(supervisor.requests[0].proofs.password, PASSWORD)


def test_none_typed(vnsmail, supervisor, typed):
    """An empty one is none: for a new user that is all right, for passwd an error."""
    typed("", "")

    assert 0 == vnsmail("user", "add", ANN).code
    assert 2 == vnsmail("user", "passwd", ANN).code
    assert [control.AddUser(ANN)] == supervisor.requests


def test_password_taken_away(vnsmail, supervisor):
    """Nobody signs in as this user any more."""
    done = vnsmail("user", "passwd", ANN, "--none")

    assert f"user {ANN} has no password\n" == done.err
    assert [control.SetPassword(ANN, control.Proofs())] == supervisor.requests


@pytest.mark.parametrize(
    ("words", "text", "complaint"),
    [
        (("add", ANN, "--password-stdin"), "", "nothing on the standard input"),
        (("add", ANN, "--password-stdin"), "short\n", "8 characters or more"),
        (("add", ANN, "--password-stdin"), "12345678\x01\n", "it cannot be used"),
        (("add", ANN, "--password-stdin", "--generate"), "", "not both"),
        (("passwd", ANN), "", "give --password-stdin, --generate or --none"),
        (("passwd", ANN, "--none", "--generate"), "", "give --none, or a password"),
        (("add", ANN, "--quota", "5X"), "", "quota '5X': write it as 500M"),
        (("quota", ANN, "0"), "", "write it as 500M"),
        (("quota", ANN, "-1"), "", "no such option"),
    ],
)
def test_mistakes(vnsmail, supervisor, monkeypatch, words, text, complaint):
    """One line, exit code 2, and nobody is asked; the password is not repeated."""
    piped(monkeypatch, text)
    done = vnsmail("user", *words)

    assert (2, "", 1) == (done.code, done.out, len(done.err.splitlines()))
    assert complaint.lower() in done.err.lower()
    assert not text.strip() or text.strip() not in done.err
    assert [] == supervisor.requests


def test_mistyped(vnsmail, supervisor, typed):
    """Two different passwords are none."""
    typed(PASSWORD, PASSWORD + "x")
    done = vnsmail("user", "add", ANN)

    assert (2, []) == (done.code, supervisor.requests)
    assert "these are two different ones" in done.err


@pytest.mark.parametrize(
    ("words", "request_", "remark"),
    [
        (("remove",), control.RemoveUser(ANN), "is removed; the mailbox folder stays"),
        (("suspend",), control.SuspendUser(ANN, True), "is suspended"),
        (("resume",), control.SuspendUser(ANN, False), "may sign in again"),
        (("quota", "2G"), control.SetQuota(ANN, 2 * 2**30), "may have 2G"),
        (("quota", "none"), control.SetQuota(ANN, None), "may have any size"),
        (
            ("allow-from", "x@y.example"),
            control.AllowSender(ANN, "x@y.example"),
            "may send as x@y.example",
        ),
        (
            ("allow-from", "x@y.example", "--remove"),
            control.AllowSender(ANN, "x@y.example", allowed=False),
            "may no more send as x@y.example",
        ),
    ],
)
def test_changes(vnsmail, supervisor, words, request_, remark):
    """The supervisor is asked, and what is done is a remark."""
    done = vnsmail("user", words[0], ANN, *words[1:])

    assert (0, "", [request_]) == (done.code, done.out, supervisor.requests)
    assert remark in done.err


@pytest.mark.parametrize(
    ("text", "octets"),
    [("1", 1), ("10k", 10240), ("500M", 500 * 2**20), ("2 GiB", 2**31), ("1T", 2**40)],
)
def test_sizes(text, octets):
    """Units are binary, as in du(1)."""
    assert octets == user.size(text)


# Aliases -----------------------------------------------------------------------------

ALIASES = """\
aliases
address              goes to
──────────────────────────────────────
*@alpha.example      ann@alpha.example
sales@alpha.example  ann@alpha.example
                     eve@x.example"""


def test_aliases(vnsmail, directory):
    """Where mail goes that has no mailbox of its own."""
    assert "no aliases yet\n" == vnsmail("alias", "list").err
    directory.add_alias(Alias(ALPHA.name, "sales", ("ann", "eve@x.example")))
    directory.add_alias(Alias(ALPHA.name, "*", ("ann",)))

    assert ALIASES == vnsmail("alias", "list").screen()
    assert vnsmail("alias", "list", "--json").json[1] == {
        "address": "sales@alpha.example",
        "host": "alpha.example",
        "targets": ["ann@alpha.example", "eve@x.example"],
    }
    assert "no aliases yet\n" == vnsmail("alias", "list", "--host", BETA.name).err


def test_alias_changes(vnsmail, supervisor):
    """What was typed goes to the supervisor as it is."""
    sales = "sales@alpha.example"
    added = vnsmail("alias", "add", sales, "ann", "eve@x.example")
    vnsmail("alias", "remove", sales, "ann")
    removed = vnsmail("alias", "remove", sales)

    assert f"mail for {sales} goes to ann, eve@x.example\n" == added.err
    assert f"mail for {sales} goes no more to others\n" == removed.err
    assert [
        control.AddAlias(sales, ("ann", "eve@x.example")),
        control.RemoveAlias(sales, ("ann",)),
        control.RemoveAlias(sales),
    ] == supervisor.requests
