import pytest

from tests.directory.test_store import ALPHA, BETA, add, virtual_host
from vnsmail.directory import Directory
from vnsmail.errors import BadInput, NotFound, Taken
from vnsmail.model import HostName, Login, User

ANN = User(ALPHA, "ann")
LOGIN = Login(1001, "annie", ANN)


@pytest.fixture
def directory(tmp_path):
    directory = Directory(tmp_path / "directory.db")
    add(directory, virtual_host(), "ann", "bob")
    add(directory, virtual_host(BETA, ["10.77.0.12/24"]), "ann")
    yield directory
    directory.close()


def test_account_of_a_user(directory):
    """It is found by its uid, and is nobody else's."""
    directory.add_login(LOGIN)
    directory.add_login(LOGIN)

    assert LOGIN == directory.login(1001)
    assert directory.login(1002) is None
    assert (LOGIN,) == directory.logins() == directory.logins(ALPHA)
    assert () == directory.logins(BETA)


def test_several_accounts_of_a_user(directory):
    """A person may have more than one, and each is that person."""
    other = Login(33, "www-data", ANN)
    directory.add_login(LOGIN)
    directory.add_login(other)

    assert (other, LOGIN) == directory.logins()


@pytest.mark.parametrize("user", [User(BETA, "ann"), User(ALPHA, "bob")])
def test_account_is_one_user(directory, user):
    """The holder is named, with what to do."""
    directory.add_login(LOGIN)
    with pytest.raises(
        Taken, match=r"it is ann@alpha\.example; run `vnsmail login remove"
    ):
        directory.add_login(Login(1001, "annie", user))

    assert LOGIN == directory.login(1001)


@pytest.mark.parametrize(
    "user", [User(ALPHA, "eve"), User(HostName("gone.example"), "ann")]
)
def test_user_that_is_none(directory, user):
    with pytest.raises(NotFound, match="user"):
        directory.add_login(Login(1001, "annie", user))


@pytest.mark.parametrize("name", ["", "a b", "-x", "a\n", "a/b", "x" * 70])
def test_names_that_are_none(directory, name):
    with pytest.raises(BadInput, match="account"):
        directory.add_login(Login(1001, name, ANN))


@pytest.mark.parametrize("account", ["annie", "1001"])
def test_removed(directory, account):
    """By name or by number."""
    directory.add_login(LOGIN)
    directory.remove_login(account)

    assert directory.login(1001) is None
    with pytest.raises(NotFound, match="account"):
        directory.remove_login(account)


def test_goes_with_its_user(directory):
    """Who comes later under the same name is somebody else."""
    directory.add_login(LOGIN)
    directory.remove_user(ANN)
    directory.add_user(ANN)

    assert directory.login(1001) is None


def test_goes_with_a_user_that_a_file_leaves_out(directory):
    directory.add_login(LOGIN)
    directory.declare([(directory.host(ALPHA), ("bob",))], [])
    directory.declare([(directory.host(ALPHA), ("ann", "bob"))], [])

    assert directory.login(1001) is None


def test_stays_with_a_user_that_a_file_has(directory):
    directory.add_login(LOGIN)
    directory.declare([(directory.host(ALPHA), ("ann",))], [])

    assert LOGIN == directory.login(1001)


def test_host_that_goes(directory):
    """An account of a host half destroyed sends nothing."""
    directory.add_login(LOGIN)
    directory.begin_destroy(ALPHA)
    assert directory.login(1001) is None

    directory.remove_host(ALPHA)
    assert () == directory.logins()
