import os
import stat
from dataclasses import replace
from ipaddress import ip_address

import pytest

from vnsmail import database
from vnsmail.directory import Directory, open_to_read
from vnsmail.directory.store import VERSION
from vnsmail.errors import BadInput, NotFound, NotPrivileged, StateUnusable, Taken
from vnsmail.model import (
    Authentication,
    Context,
    HostName,
    Limits,
    SourceAddress,
    SourceCheck,
    Uplink,
    User,
    VirtualHost,
)

ALPHA = HostName("alpha.example")
BETA = HostName("beta.example")


def virtual_host(name=ALPHA, addresses=("10.77.0.11/24", "fd77::11/64"), domains=()):
    return VirtualHost(
        name=name,
        context=Context.NAMESPACE,
        addresses=tuple(SourceAddress.parse(address) for address in addresses),
        domains=(name, *map(HostName, domains)),
        link="br0",
        uplink=Uplink.BRIDGE,
        gateways=(ip_address("10.77.0.1"), ip_address("fd77::1")),
    )


VERSION_1 = """
CREATE TABLE host (
    name TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('creating', 'active', 'destroying')),
    context TEXT NOT NULL,
    link TEXT NOT NULL,
    uplink TEXT
) STRICT;
CREATE TABLE address (
    address TEXT PRIMARY KEY,
    prefix_length INTEGER NOT NULL,
    host TEXT NOT NULL REFERENCES host ON DELETE CASCADE,
    position INTEGER NOT NULL
) STRICT;
CREATE TABLE gateway (
    address TEXT NOT NULL,
    host TEXT NOT NULL REFERENCES host ON DELETE CASCADE,
    position INTEGER NOT NULL
) STRICT;
CREATE TABLE domain (
    name TEXT PRIMARY KEY,
    host TEXT NOT NULL REFERENCES host ON DELETE CASCADE,
    position INTEGER NOT NULL
) STRICT;
CREATE TABLE user (
    host TEXT NOT NULL REFERENCES host ON DELETE CASCADE,
    local_part TEXT NOT NULL,
    PRIMARY KEY (host, local_part)
) STRICT;
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "directory.db"


@pytest.fixture
def directory(path):
    directory = Directory(path)
    yield directory
    directory.close()


def add(directory, host, *users):
    directory.add_host(host)
    directory.activate(host.name)
    for local_part in users:
        directory.add_user(User(host.name, local_part))
    return host


class TestOlderFile:
    """A file that an older vnsmail wrote."""

    def test_is_brought_to_this_version(self, path):
        """Hosts and users are there, and what they did not have is as if not given."""
        connection = database.open_file(path, VERSION_1, 1)
        for line in (
            "INSERT INTO host VALUES ('alpha.example', 'active', 'alias', 'br0', NULL)",
            "INSERT INTO address VALUES ('10.77.0.11', 24, 'alpha.example', 0)",
            "INSERT INTO domain VALUES ('alpha.example', 'alpha.example', 0)",
            "INSERT INTO user VALUES ('alpha.example', 'ann')",
        ):
            connection.execute(line)
        connection.close()

        directory = Directory(path)
        addresses = (SourceAddress.parse("10.77.0.11/24"),)
        (host,) = directory.hosts()
        assert VirtualHost(ALPHA, Context.ALIAS, addresses, (ALPHA,), "br0") == host
        assert (User(ALPHA, "ann"),) == directory.users(ALPHA)
        directory.close()

    def test_has_the_tables_of_a_new_one(self, path, tmp_path):
        """However a file came about, its tables have the same columns."""
        database.open_file(path, VERSION_1, 1).close()
        Directory(path).close()
        other = tmp_path / "new.db"
        Directory(other).close()

        assert columns(other) == columns(path)


def columns(path):
    connection = database.open_read_only(path, VERSION)
    tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
    found = {
        table: sorted(connection.execute(f"PRAGMA table_info({table})"), key=by_name)
        for (table,) in tables.fetchall()
    }
    connection.close()
    return {
        table: [
            (name, kind, needed, default) for _, name, kind, needed, default, _ in c
        ]
        for table, c in found.items()
    }


def by_name(row):
    return row[1]


class TestHosts:
    def test_host_comes_back_as_it_was(self, path, directory):
        """Every fact of a host, and their order, outlives the process."""
        host = replace(
            virtual_host(domains=["b.example", "a.example"]),
            mtu=1400,
            vlan=7,
            resolvers=(ip_address("10.77.0.5"), ip_address("10.77.0.4")),
            source_check=SourceCheck.NAT,
            public_addresses=(ip_address("203.0.113.7"),),
            limits=Limits(1000, 20, 2**30),
            suspended=True,
            helo=HostName("mx.alpha.example"),
            authentication=Authentication.REJECT,
        )
        add(directory, host)
        directory.close()

        directory = Directory(path)
        assert directory.hosts() == (host,)
        assert directory.host(ALPHA) == directory.find(ALPHA) == host
        directory.close()

    def test_alias_host(self, directory):
        """A host without uplink and gateways is kept as such."""
        host = VirtualHost(
            ALPHA,
            Context.ALIAS,
            (SourceAddress.parse("10.77.0.11/24"),),
            (ALPHA,),
            "eth0",
        )
        add(directory, host)

        assert directory.host(ALPHA) == host

    def test_hosts_by_name(self, directory):
        """Hosts come sorted."""
        beta = add(directory, virtual_host(BETA, ["10.77.0.12/24"]))
        alpha = add(directory, virtual_host())

        assert directory.hosts() == (alpha, beta)

    def test_unknown(self, directory):
        """A name nobody has is not found."""
        assert directory.find(ALPHA) is None
        for attempt in (
            directory.host,
            directory.activate,
            directory.begin_destroy,
            directory.remove_host,
        ):
            with pytest.raises(NotFound, match=ALPHA):
                attempt(ALPHA)


class TestJournal:
    def test_creating_is_no_host_yet(self, directory):
        """A host that is being made should not exist to anybody else."""
        directory.add_host(virtual_host())

        assert directory.hosts() == ()
        assert directory.domain_owner(ALPHA) is None
        assert directory.unfinished() == (ALPHA,)
        assert directory.being_destroyed() == ()
        with pytest.raises(NotFound):
            directory.add_user(User(ALPHA, "ann"))

    def test_destroying_is_no_host_any_more(self, directory):
        """A host whose destruction was begun is to be removed, and still known."""
        host = add(directory, virtual_host(), "ann")
        directory.begin_destroy(ALPHA)
        directory.begin_destroy(ALPHA)

        assert directory.hosts() == ()
        assert directory.find_user("ann@alpha.example") is None
        assert directory.unfinished() == directory.being_destroyed() == (ALPHA,)
        assert directory.host(ALPHA) == host
        with pytest.raises(NotFound):
            directory.activate(ALPHA)

    def test_removed_host_leaves_nothing(self, directory):
        """After removal name, addresses, domains and users are free."""
        host = add(directory, virtual_host(domains=["a.example"]), "ann")
        directory.begin_destroy(ALPHA)
        directory.remove_host(ALPHA)

        assert directory.unfinished() == ()
        add(directory, host)
        assert directory.users(ALPHA) == ()

    def test_half_made_host_is_known_after_a_crash(self, path, directory):
        """What was begun is found by the next process."""
        directory.add_host(virtual_host())
        directory.close()

        directory = Directory(path)
        assert directory.unfinished() == (ALPHA,)
        directory.close()


class TestTaken:
    @pytest.mark.parametrize(
        ("other", "what", "value"),
        [
            (virtual_host(addresses=["10.77.0.99/24"]), "virtual host", ALPHA),
            (virtual_host(BETA, ["10.77.0.11/16"]), "address", "10.77.0.11"),
            (virtual_host(BETA, ["fd77:0::11/64"]), "address", "fd77::11"),
            (
                virtual_host(BETA, ["10.77.0.12/24"], ["shop.example"]),
                "domain",
                "shop.example",
            ),
            (
                virtual_host(HostName("shop.example"), ["10.77.0.12/24"]),
                "domain",
                "shop.example",
            ),
            (
                virtual_host(BETA, ["10.77.0.12/24"], ["alpha.example"]),
                "domain",
                "alpha.example",
            ),
        ],
    )
    def test_names_the_holder_and_changes_nothing(self, directory, other, what, value):
        """What is taken is refused with its holder; the holder is untouched."""
        host = add(directory, virtual_host(domains=["shop.example"]))

        for attempt in (directory.check_free, directory.add_host):
            with pytest.raises(Taken) as caught:
                attempt(other)
            assert (caught.value.what, caught.value.value) == (what, value)
            assert ALPHA in str(caught.value)
        assert directory.hosts() == (host,)
        assert directory.unfinished() == ()

    def test_holder_half_destroyed(self, directory):
        """Who holds it may be on its way out; then that is what to finish."""
        add(directory, virtual_host())
        directory.begin_destroy(ALPHA)

        with pytest.raises(Taken, match=r"half made or destroyed.*destroy alpha"):
            directory.check_free(virtual_host(BETA))

    def test_free(self, directory):
        """Another name, address and domain are free."""
        add(directory, virtual_host())

        directory.check_free(virtual_host(BETA, ["10.77.0.12/24"]))

    def test_address_given_twice(self, directory):
        """One host cannot have an address twice; nothing is left of it."""
        with pytest.raises(StateUnusable):
            directory.add_host(virtual_host(addresses=["10.0.0.1/8", "10.0.0.1/24"]))

        assert directory.unfinished() == ()


class TestUsers:
    def test_found_at_every_domain_of_the_host(self, directory):
        """A user is one person at all domains of a host, in any case of letters."""
        add(directory, virtual_host(domains=["shop.example"]), "ann")

        for address in ("ann@alpha.example", "Ann@SHOP.example", "ANN@shop.example."):
            assert directory.find_user(address) == User(ALPHA, "ann")

    @pytest.mark.parametrize(
        "address",
        [
            "ann",
            "ann@",
            "@alpha.example",
            "bob@alpha.example",
            "ann@b.example",
            "ann@beta.example",
            "ann@alpha.example@x",
            "ann@[10.77.0.11]",
            "ann@a\tb",
        ],
    )
    def test_not_found(self, directory, address):
        """Whoever is no user of a host is nobody."""
        add(directory, virtual_host(), "ann")
        add(directory, virtual_host(BETA, ["10.77.0.12/24"]))

        assert directory.find_user(address) is None

    def test_users_of_one_host(self, directory):
        """Users come sorted, and are those of their host."""
        add(directory, virtual_host(), "bob", "ann")
        add(directory, virtual_host(BETA, ["10.77.0.12/24"]), "ann")

        assert directory.users(ALPHA) == (User(ALPHA, "ann"), User(ALPHA, "bob"))
        assert directory.users(BETA) == (User(BETA, "ann"),)

    def test_removed(self, directory):
        """A removed user is gone, at this host only, and cannot be removed twice."""
        add(directory, virtual_host(), "ann")
        add(directory, virtual_host(BETA, ["10.77.0.12/24"]), "ann")
        directory.remove_user(User(ALPHA, "ann"))

        assert directory.users(ALPHA) == ()
        assert directory.find_user("ann@beta.example") == User(BETA, "ann")
        with pytest.raises(NotFound, match="ann@alpha"):
            directory.remove_user(User(ALPHA, "ann"))

    def test_twice(self, directory):
        """A user there already is refused by address."""
        add(directory, virtual_host(), "ann")

        with pytest.raises(Taken, match=r"ann@alpha\.example"):
            directory.add_user(User(ALPHA, "ann"))

    @pytest.mark.parametrize(
        "local_part",
        [
            "",
            *["..", ".", "a/b", "../x", "a..b", ".a", "a.", "Ann", "ü", "a@b", '"a"'],
            "a b",
            "a\0",
            "a\n",
            "x" * 65,
        ],
    )
    def test_local_part_that_is_no_mailbox(self, directory, local_part):
        """A user's name can neither leave its folder nor need quoting."""
        add(directory, virtual_host())

        with pytest.raises(BadInput):
            directory.add_user(User(ALPHA, local_part))
        assert directory.users(ALPHA) == ()

    @pytest.mark.parametrize("local_part", ["a", "a.b", "o'neil", "x" * 64, "a+b", "-"])
    def test_local_part_of_a_mailbox(self, directory, local_part):
        """What SMTP writes without quotes is a user, but for the slash."""
        add(directory, virtual_host(), local_part)

        assert directory.users(ALPHA) == (User(ALPHA, local_part),)


class TestFile:
    def test_only_the_owner_reads_it(self, path, directory):
        """The directory is nobody else's business."""
        add(directory, virtual_host())

        assert {
            stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()
        } == {0o600}

    def test_no_directory(self, path):
        """A file that is none is reported and left as it is."""
        path.write_bytes(b"x" * 10000)

        with pytest.raises(StateUnusable, match="not a database"):
            Directory(path)
        with pytest.raises(StateUnusable, match="not a database"), open_to_read(path):
            pass
        assert path.read_bytes() == b"x" * 10000

    def test_failed_change_leaves_nothing(self, directory, monkeypatch):
        """A change that breaks off in the middle is not half there."""
        host = virtual_host()
        broken = VirtualHost(
            host.name, host.context, host.addresses, (ALPHA, ALPHA), host.link
        )
        with pytest.raises(StateUnusable):
            directory.add_host(broken)

        assert directory.find(ALPHA) is None
        add(directory, host)


class TestReading:
    def test_while_the_supervisor_has_it_open(self, path, directory):
        """A command sees what was written last, while the supervisor goes on."""
        host = add(directory, virtual_host(), "ann")

        with open_to_read(path) as reader:
            assert reader.hosts() == (host,)
            directory.add_user(User(ALPHA, "bob"))
            assert reader.users(ALPHA) == (User(ALPHA, "ann"), User(ALPHA, "bob"))

    def test_after_the_supervisor_has_ended(self, path, directory):
        """A command needs no supervisor to read."""
        host = add(directory, virtual_host())
        directory.close()

        with open_to_read(path) as reader:
            assert reader.host(ALPHA) == host

    def test_before_there_is_one(self, path):
        """A directory that is not there yet is empty, and is not made."""
        with open_to_read(path) as reader:
            assert reader.hosts() == ()
            assert reader.find_user("ann@alpha.example") is None
        assert not path.exists()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_of_another_user(self, path, directory):
        """Who may not read it is told who may."""
        path.chmod(0)

        with pytest.raises(NotPrivileged, match="root"), open_to_read(path):
            pass


class TestDeclare:
    """All hosts at once, as a file has them."""

    def test_new_changed_and_gone(self, directory):
        """Afterwards there are the declared hosts, and one that is to go."""
        add(directory, virtual_host(), "ann")
        add(directory, virtual_host(BETA, ["10.77.0.12/24"], ["b.example"]), "bob")
        other = virtual_host(ALPHA, ["10.77.0.21/24"], ["b.example"])
        directory.declare([(other, ("eve", "zoe"))], [BETA])

        assert (other,) == directory.hosts()
        assert ["eve", "zoe"] == [u.local_part for u in directory.users(ALPHA)]
        assert (BETA,) == directory.being_destroyed()
        assert ALPHA == directory.domain_owner(HostName("b.example"))

    def test_who_stays_keeps_what_is_theirs(self, directory):
        """A file names users and says nothing of them: what they have is kept."""
        add(directory, virtual_host(), "ann", "bob")
        directory.add_user(User(ALPHA, "eve", suspended=True, quota=5000))

        directory.declare([(virtual_host(), ("ann", "eve", "zoe"))], [])

        eve = User(ALPHA, "eve", suspended=True, quota=5000)
        assert (User(ALPHA, "ann"), eve, User(ALPHA, "zoe")) == directory.users(ALPHA)
        assert eve == directory.find_user("eve@alpha.example")

    def test_addresses_of_one_that_goes(self, directory):
        """They are free at once, for a host of the same file."""
        add(directory, virtual_host())
        heir = virtual_host(BETA)
        directory.declare([(heir, ())], [ALPHA])

        assert (heir,) == directory.hosts()
        assert () == directory.host(ALPHA).addresses

    def test_two_change_places(self, directory):
        """Each gets what the other had."""
        one, other = virtual_host(ALPHA, ["10.0.0.1"]), virtual_host(BETA, ["10.0.0.2"])
        add(directory, one)
        add(directory, other)
        one, other = virtual_host(ALPHA, ["10.0.0.2"]), virtual_host(BETA, ["10.0.0.1"])
        directory.declare([(one, ()), (other, ())], [])

        assert (one, other) == directory.hosts()

    def test_all_or_nothing(self, directory):
        """Two that claim the same are refused, and nothing is changed."""
        add(directory, virtual_host(), "ann")
        twice = [(virtual_host(ALPHA), ()), (virtual_host(BETA), ())]
        with pytest.raises(StateUnusable):
            directory.declare(twice, [])

        assert (virtual_host(),) == directory.hosts()
        assert ["ann"] == [u.local_part for u in directory.users(ALPHA)]

    def test_half_made_ones_become_whole(self, directory):
        """What was being made when it was cut off can be declared."""
        directory.add_host(virtual_host())
        directory.declare([(virtual_host(), ())], [])

        assert ((virtual_host(),), ()) == (directory.hosts(), directory.unfinished())

    def test_removing_several(self, directory):
        """They are forgotten together; one that is forgotten already is no matter."""
        add(directory, virtual_host(), "ann")
        add(directory, virtual_host(BETA, ["10.0.0.2"]))
        directory.remove_hosts([ALPHA, HostName("never.example")])

        assert [BETA] == [host.name for host in directory.hosts()]
        assert () == directory.users(ALPHA)


class TestChanges:
    def test_change(self, directory):
        """All facts are the new ones, and the users stay."""
        add(directory, virtual_host(domains=["b.example"]), "ann")
        other = replace(
            virtual_host(addresses=["10.77.0.14/24"]), suspended=True, helo=BETA
        )
        directory.change(other)

        assert (other,) == directory.hosts()
        assert (User(ALPHA, "ann"),) == directory.users(ALPHA)

    def test_a_change_to_what_is_taken(self, directory):
        """Addresses, domains and the name it says have one holder; nothing is changed."""
        alpha = add(directory, virtual_host())
        beta = replace(
            virtual_host(BETA, ["10.77.0.12/24"], ["b.example"]),
            helo=HostName("mx.b.example"),
        )
        add(directory, beta)
        for change in (
            {"addresses": (SourceAddress.parse("10.77.0.12/16"),)},
            {"domains": (ALPHA, HostName("b.example"))},
            {"domains": (ALPHA, HostName("mx.b.example"))},
            {"helo": BETA},
            {"helo": HostName("mx.b.example")},
        ):
            with pytest.raises(Taken, match=BETA):
                directory.change(replace(alpha, **change))
            assert (alpha, beta) == directory.hosts()

    def test_a_change_of_nobody(self, directory):
        """One that is half made or unknown cannot be changed."""
        with pytest.raises(NotFound):
            directory.change(virtual_host())
        directory.add_host(virtual_host())
        with pytest.raises(NotFound):
            directory.change(virtual_host())

    def test_rename(self, path, directory):
        """What belongs to it has the new name; what is left to do is written down."""
        add(directory, virtual_host(domains=["b.example"]), "ann")
        new = replace(virtual_host(BETA, ["10.77.0.11/24"], ["b.example", ALPHA]))
        directory.rename(ALPHA, new)
        directory.close()
        directory = Directory(path)

        assert (new,) == directory.hosts()
        assert directory.find(ALPHA) is None
        assert ((ALPHA, BETA),) == directory.renamed()
        assert (User(BETA, "ann"),) == directory.users(BETA)
        assert BETA == directory.domain_owner(ALPHA)
        directory.finish_rename(BETA)
        assert () == directory.renamed()
        directory.close()

    def test_rename_to_what_is_taken(self, directory):
        """Neither a host nor a domain is taken from another."""
        alpha = add(directory, virtual_host(), "ann")
        beta = add(directory, virtual_host(BETA, ["10.77.0.12/24"], ["b.example"]))
        for name in (BETA, HostName("b.example")):
            with pytest.raises(Taken):
                directory.rename(ALPHA, replace(alpha, name=name, domains=(name,)))
        with pytest.raises(NotFound):
            directory.rename(HostName("c.example"), alpha)

        assert (alpha, beta) == directory.hosts()
        assert (User(ALPHA, "ann"),) == directory.users(ALPHA)
