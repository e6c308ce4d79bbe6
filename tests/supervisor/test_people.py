import pytest

from tests.cli.test_host import ALPHA as HOST
from tests.cli.test_host import BETA as OTHER
from vnsmail.directory import Directory
from vnsmail.engines.protocol import UserFacts
from vnsmail.errors import BadInput, NotFound, Taken
from vnsmail.model import Alias, User
from vnsmail.supervisor import control
from vnsmail.supervisor.people import People, accounts

ALPHA, BETA = HOST.name, OTHER.name
PROOFS = control.Proofs("$argon2id$x", "SCRAM-SHA-256$x")
SALES = "sales@alpha.example"


@pytest.fixture
def directory(tmp_path):
    directory = Directory(tmp_path / "directory.db")
    for host in (HOST, OTHER):
        directory.add_host(host)
        directory.activate(host.name)
    directory.add_user(User(ALPHA, "ann"))
    directory.add_user(User(ALPHA, "bob"))
    directory.add_user(User(BETA, "eve"))
    yield directory
    directory.close()


@pytest.fixture
def people(directory):
    return People(directory)


def change(people, *requests):
    return {people.change(request) for request in requests}


# Users -------------------------------------------------------------------------------


def test_what_a_worker_is_told(people, directory):
    """Of each user what is special, of those of other hosts nothing; any own domain."""
    told = change(
        people,
        control.AddUser("New@mail.alpha.example", PROOFS, 1000),
        control.SetPassword("ANN@alpha.example", PROOFS),
        control.SuspendUser("ann@alpha.example", True),
        control.AllowSender("ann@mail.alpha.example", "Press@X.example"),
    )

    assert {ALPHA} == told
    assert (
        UserFacts(
            "ann", PROOFS.password, PROOFS.scram, True, None, ("Press@x.example",)
        ),
        UserFacts("new", PROOFS.password, PROOFS.scram, False, 1000),
    ) == accounts(directory, ALPHA)
    assert () == accounts(directory, BETA)


def test_nothing_secret_is_shown():
    """A request or fact in a log or traceback has no hash in it."""
    shown = repr(control.AddUser("a@b.example", PROOFS))
    shown += repr(UserFacts("ann", PROOFS.password, PROOFS.scram))

    assert "argon2id" not in shown
    assert "SCRAM" not in shown


def test_and_taken_back(people, directory):
    """Everything can be undone."""
    change(
        people,
        control.SetPassword("ann@alpha.example", PROOFS),
        control.SuspendUser("ann@alpha.example", True),
        control.SetQuota("ann@alpha.example", 5),
        control.AllowSender("ann@alpha.example", "x@y.example"),
        control.SetPassword("ann@alpha.example", control.Proofs()),
        control.SuspendUser("ann@alpha.example", False),
        control.SetQuota("ann@alpha.example", None),
        control.AllowSender("ann@alpha.example", "x@y.example", allowed=False),
        control.RemoveUser("bob@alpha.example"),
    )

    assert () == accounts(directory, ALPHA)
    assert (User(ALPHA, "ann"),) == directory.users(ALPHA)


def test_sender(people):
    """Who is suspended sends nothing, by whichever way."""
    assert User(ALPHA, "ann") == people.sender("Ann@alpha.example")
    change(people, control.SuspendUser("ann@alpha.example", True))
    with pytest.raises(BadInput, match="vnsmail user resume"):
        people.sender("ann@alpha.example")
    with pytest.raises(NotFound, match="vnsmail user list"):
        people.sender("nobody@alpha.example")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (control.SetQuota("ann@alpha.example", 0), "give bytes"),
        (control.SetPassword("ann@gamma.example", PROOFS), "no virtual host has it"),
        (control.SetPassword("ann", PROOFS), "write it as user@"),
        (control.AllowSender("ann@alpha.example", "x"), "sender 'x'"),
        (control.AllowSender("ann@alpha.example", "a b@x.example"), "sender"),
        (control.AllowSender("ann@alpha.example", "a@x"), "full name"),
        (control.AddAlias("sales", ("ann",)), "write it as sales@"),
        (control.AddAlias("sa les@alpha.example", ("ann",)), "alias 'sa les'"),
        (control.AddAlias(SALES, ()), "at least one target"),
        (control.AddAlias(SALES, ("ann", "Ann@alpha.example")), "given twice"),
        (control.AddAlias(SALES, ("nobody",)), "no such user or alias"),
        (control.AddAlias(SALES, ("sales",)), "no such user or alias"),
        (control.AddAlias(SALES, ("nobody@mail.alpha.example",)), "no such user"),
        (control.AddAlias(SALES, ("x y@x.example",)), "target"),
        (control.AddAlias(SALES, ("*",)), "no such user or alias"),
        (control.AddUser("*@alpha.example"), "this is the catch-all"),
        (control.RemoveAlias(SALES), "vnsmail alias list"),
    ],
)
def test_what_cannot_be(people, directory, request_, words):
    """It is refused, and nothing is changed."""
    with pytest.raises(BadInput, match=words):
        people.change(request_)

    assert ((), ()) == (accounts(directory, ALPHA), directory.aliases(ALPHA))


# Aliases -----------------------------------------------------------------------------


def test_aliases(people, directory):
    """Targets here are kept by local part, others whole; other hosts are elsewhere."""
    told = change(
        people,
        control.AddAlias(
            "Sales@mail.alpha.example",
            ("Ann", "bob+x@mail.alpha.example", "eve@Beta.example", "Eve@x.example"),
        ),
        control.AddAlias("*@alpha.example", ("sales",)),
        control.AddAlias("ann@alpha.example", ("ann", "ann@x.example")),
    )

    assert {ALPHA} == told
    assert (
        Alias(ALPHA, "*", ("sales",)),
        Alias(ALPHA, "ann", ("ann", "ann@x.example")),
        Alias(ALPHA, "sales", ("ann", "bob+x", "eve@beta.example", "Eve@x.example")),
    ) == directory.aliases(ALPHA)
    change(
        people,
        control.RemoveAlias(SALES, ("ANN@alpha.example",)),
        control.RemoveAlias("*@mail.alpha.example"),
        control.RemoveAlias("ann@alpha.example"),
    )

    targets = ("bob+x", "eve@beta.example", "Eve@x.example")
    assert (Alias(ALPHA, "sales", targets),) == directory.aliases(ALPHA)


def test_circles(people):
    """An alias that would come back to itself is refused."""
    change(
        people,
        control.AddAlias("a@alpha.example", ("ann",)),
        control.AddAlias("b@alpha.example", ("a",)),
        control.AddAlias("c@alpha.example", ("b+x",)),
    )
    with pytest.raises(BadInput, match="in a circle"):
        people.change(control.AddAlias("a@alpha.example", ("c",)))
    with pytest.raises(BadInput, match="in a circle"):
        people.change(control.AddAlias("a@alpha.example", ("a+x",)))


def test_twice(people):
    """What is there already is told."""
    change(people, control.AddAlias(SALES, ("ann",)))
    with pytest.raises(Taken, match="goes to ann already"):
        people.change(control.AddAlias(SALES, ("ann", "bob")))
