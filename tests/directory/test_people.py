from dataclasses import replace

import pytest

from tests.directory.test_store import ALPHA, BETA, add, virtual_host
from vnsmail.directory import Directory
from vnsmail.errors import BadInput, NotFound, Taken
from vnsmail.model import Alias, Credentials, HostName, User

ANN = User(ALPHA, "ann")
PROOFS = Credentials("$argon2id$one", "SCRAM-SHA-256$one")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "directory.db"


@pytest.fixture
def directory(path):
    directory = Directory(path)
    add(directory, virtual_host(), "ann", "bob")
    add(directory, virtual_host(BETA, ["10.77.0.12/24"]), "ann")
    yield directory
    directory.close()


class TestCredentials:
    """What users prove who they are with."""

    def test_of_a_new_user(self, directory):
        """They come with the user, and belong to that host's user only."""
        directory.add_user(User(ALPHA, "eve"), PROOFS)

        assert {"eve": PROOFS} == directory.credentials(ALPHA)
        assert {} == directory.credentials(BETA)

    def test_changed_and_taken_away(self, directory):
        """Others take their place; empty ones are none."""
        directory.set_credentials(ANN, PROOFS)
        other = Credentials("$argon2id$two", "SCRAM-SHA-256$two")
        directory.set_credentials(ANN, other)
        assert {"ann": other} == directory.credentials(ALPHA)
        directory.set_credentials(ANN, Credentials("", ""))

        assert {} == directory.credentials(ALPHA)

    def test_are_not_shown(self):
        """What is written into a log or a traceback has no hash in it."""
        assert "argon2id" not in repr(PROOFS)
        assert "SCRAM" not in repr(PROOFS)

    def test_outlive_apply(self, directory):
        """Users that a file names again keep passwords, quota and suspension."""
        directory.set_credentials(ANN, PROOFS)
        directory.set_quota(ANN, 1000)
        directory.set_suspended(ANN, True)
        directory.declare([(virtual_host(), ("ann", "new"))], [])

        assert {"ann": PROOFS} == directory.credentials(ALPHA)
        assert (User(ALPHA, "ann", True, 1000), User(ALPHA, "new")) == directory.users(
            ALPHA
        )

    def test_go_with_the_user(self, directory):
        """Somebody else of that name begins without."""
        directory.set_credentials(ANN, PROOFS)
        directory.allow_sender(ANN, "boss@x.example")
        directory.remove_user(ANN)
        directory.add_user(ANN)

        assert {} == directory.credentials(ALPHA)
        assert {} == directory.senders(ALPHA)


class TestFacts:
    """Suspension, quota and further senders."""

    def test_set_and_unset(self, directory):
        """The user is found with them, at any domain."""
        directory.set_suspended(ANN, True)
        directory.set_quota(ANN, 5)
        found = directory.find_user("Ann@alpha.example")
        assert replace(ANN, suspended=True, quota=5) == found
        directory.set_suspended(ANN, False)
        directory.set_quota(ANN, None)

        assert ANN == directory.find_user("ann@alpha.example")

    def test_senders(self, directory):
        """Allowing twice is allowing; taking back what is not there is said."""
        for address in ("b@x.example", "a@x.example", "b@x.example"):
            directory.allow_sender(ANN, address)
        assert {"ann": ("a@x.example", "b@x.example")} == directory.senders(ALPHA)
        directory.forbid_sender(ANN, "a@x.example")
        assert {"ann": ("b@x.example",)} == directory.senders(ALPHA)
        assert {} == directory.senders(BETA)
        with pytest.raises(NotFound, match="not allowed it"):
            directory.forbid_sender(ANN, "a@x.example")

    @pytest.mark.parametrize(
        "change",
        [
            lambda d, u: d.set_credentials(u, PROOFS),
            lambda d, u: d.set_suspended(u, True),
            lambda d, u: d.set_quota(u, 1),
            lambda d, u: d.allow_sender(u, "a@x.example"),
            lambda d, u: d.forbid_sender(u, "a@x.example"),
            lambda d, u: d.remove_user(u),
        ],
    )
    def test_of_nobody(self, directory, change):
        """A user who is not there is told, and where to look."""
        with pytest.raises(NotFound, match=r"eve@alpha.example.*vnsmail user list"):
            change(directory, User(ALPHA, "eve"))


class TestAliases:
    """Local parts whose mail goes elsewhere."""

    def test_come_and_go(self, directory):
        """Targets keep their order; the catch-all is the first that is listed."""
        directory.add_alias(Alias(ALPHA, "sales", ("b@x.example", "a@x.example")))
        directory.add_alias(Alias(ALPHA, "*", ("ann@alpha.example",)))
        directory.add_alias(Alias(ALPHA, "sales", ("c@x.example",)))
        expected = (
            Alias(ALPHA, "*", ("ann@alpha.example",)),
            Alias(ALPHA, "sales", ("b@x.example", "a@x.example", "c@x.example")),
        )
        assert expected == directory.aliases(ALPHA)
        assert () == directory.aliases(BETA)
        directory.remove_alias(ALPHA, "sales", ("a@x.example",))
        directory.add_alias(Alias(ALPHA, "sales", ("a@x.example",)))
        directory.remove_alias(ALPHA, "*")

        targets = ("b@x.example", "c@x.example", "a@x.example")
        assert (Alias(ALPHA, "sales", targets),) == directory.aliases(ALPHA)

    def test_all_or_nothing(self, directory):
        """One target that is there, or one that is not, and nothing is changed."""
        directory.add_alias(Alias(ALPHA, "sales", ("a@x.example",)))
        before = directory.aliases(ALPHA)
        with pytest.raises(Taken, match="it goes to"):
            directory.add_alias(Alias(ALPHA, "sales", ("b@x.example", "a@x.example")))
        with pytest.raises(NotFound, match="does not go there"):
            directory.remove_alias(ALPHA, "sales", ("a@x.example", "b@x.example"))

        assert before == directory.aliases(ALPHA)

    @pytest.mark.parametrize("local_part", ["", "A", "a b", "a/b", "@"])
    def test_names_that_cannot_be(self, directory, local_part):
        """What no address has in front of its @ is refused."""
        with pytest.raises(BadInput, match="alias"):
            directory.add_alias(Alias(ALPHA, local_part, ("a@x.example",)))

    def test_of_nobody(self, directory):
        """Neither host nor alias is made up."""
        with pytest.raises(NotFound):
            directory.add_alias(Alias(HostName("gamma.example"), "a", ("a@x.example",)))
        with pytest.raises(NotFound, match="vnsmail alias list"):
            directory.remove_alias(ALPHA, "sales")


def test_secret(directory, path):
    """Each host has one of its own, and it is the same after a restart."""
    secret, other = directory.secret(ALPHA), directory.secret(BETA)
    with_another = Directory(path)

    assert secret != other
    assert secret == with_another.secret(ALPHA)
    with_another.close()
