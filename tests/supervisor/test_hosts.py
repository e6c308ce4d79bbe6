import asyncio

import pytest

from tests.supervisor.world import FakeServices, Killed, World
from vnsmail.channel import ChannelClosed
from vnsmail.directory import Directory
from vnsmail.errors import (
    BadInput,
    BrokerGone,
    NetworkStepFailed,
    NotFound,
    Taken,
    VnsmailError,
)
from vnsmail.model import HostName, User
from vnsmail.net import names
from vnsmail.settings import MachineSettings, layout
from vnsmail.supervisor import hosts as module
from vnsmail.supervisor.control import CreateHost, DestroyHost, Planned
from vnsmail.supervisor.folders import prepare, remove_owner
from vnsmail.supervisor.hosts import Hosts, machine_service
from vnsmail.supervisor.network import Network
from vnsmail.supervisor.peer import NoAnswer

ALPHA, BETA = HostName("alpha.example"), HostName("beta.example")


class Root:
    """A root, with what outlives its supervisor."""

    def __init__(self, folder):
        self.layout = layout(folder)
        prepare(self.layout)
        self.world = World()
        self.begin()

    def begin(self):
        """Be a new supervisor."""
        self.directory = Directory(self.layout.directory_db)
        self.services = FakeServices()
        self.hosts = Hosts(
            self.layout,
            self.directory,
            self.services,  # type: ignore[arg-type]
            Network(self.layout.instance),
            None,
        )

    async def again(self):
        """Start the supervisor anew, as after a crash."""
        self.directory.close()
        self.begin()
        await self.hosts.recover()
        await self.hosts.serve_all()

    @property
    def made(self):
        return self.world.hosts(self.layout.instance)

    @property
    def folders(self):
        return {path.name for path in self.layout.hosts.iterdir()}

    @property
    def listed(self):
        return {host.name for host in self.directory.hosts()}

    def nothing_of(self, name):
        """Assert that nothing of a host is left, anywhere."""
        assert name not in self.made
        assert name not in self.folders
        assert name not in self.services.served
        assert self.directory.find(name) is None
        assert len(self.world.ports) == len(self.made)

    def all_of(self, name):
        assert name in self.made
        assert name in self.folders
        assert name in self.services.served
        assert name in self.listed


@pytest.fixture
def root(tmp_path, monkeypatch):
    root = Root(tmp_path)
    root.world.install(monkeypatch)
    yield root
    root.directory.close()


def wanted(name=ALPHA, *addresses, **options):
    return CreateHost(
        name, addresses or ("10.77.0.11/24",), **{"context": "namespace", **options}
    )


# Creating ------------------------------------------------------------------------


async def test_create(root):
    """Directory, network, folder and service: all of it, and what was done is told."""
    planned = await root.hosts.create(wanted(domains=("Mail.Alpha.Example", ALPHA)))

    root.all_of(ALPHA)
    assert planned.changed
    assert root.world.done == list(planned.steps)
    service = root.services.served[ALPHA]
    assert names.namespace(root.layout.instance, ALPHA) == service.namespace
    facts = service.facts
    assert (ALPHA, ALPHA, ("10.77.0.11",)) == (facts.owner, facts.name, facts.addresses)
    assert (ALPHA, "mail.alpha.example") == facts.domains
    assert str(root.layout.hosts / ALPHA) == facts.folder
    assert (True, False) == (facts.listen, facts.any_user)
    assert {"10.77.0.1"} == {str(g) for g in root.directory.host(ALPHA).gateways}


async def test_an_engine_that_is_not_here(root, monkeypatch):
    """What to install is told, and nothing is changed."""
    monkeypatch.setattr("vnsmail.supervisor.engines.os.path.exists", lambda _: False)
    with pytest.raises(BadInput, match="apt-get install postfix"):
        await root.hosts.create(wanted(engine="postfix"))

    root.nothing_of(ALPHA)


async def test_an_engine_that_there_is_not(root):
    with pytest.raises(BadInput, match="choose one of native, sendmail"):
        await root.hosts.create(wanted(engine="qmail"))

    root.nothing_of(ALPHA)


async def test_an_address_that_somebody_has(root):
    """Who has it is told, and nothing is changed; it can be taken all the same."""
    root.world.held = {"10.77.0.11": "02:00:00:00:00:09"}
    with pytest.raises(Taken, match=r"10\.77\.0\.11.*02:00:00:00:00:09 has it on br0"):
        await root.hosts.create(wanted())

    root.nothing_of(ALPHA)
    assert [] == root.world.done
    await root.hosts.create(wanted(no_probe=True))
    root.all_of(ALPHA)


async def test_an_alias(root):
    """A host with an alias has no namespace, and no router unless it is given one."""
    await root.hosts.create(wanted(context="alias"))

    assert {"10.77.0.11"} == root.made
    assert "" == root.services.served[ALPHA].namespace
    assert () == root.directory.host(ALPHA).gateways


async def test_twice(root):
    """Creating what exists as asked changes nothing."""
    await root.hosts.create(wanted())
    done = list(root.world.done)

    assert Planned((), changed=False) == await root.hosts.create(
        wanted("ALPHA.example.")
    )
    assert done == root.world.done


@pytest.mark.parametrize(
    "other",
    [
        wanted(ALPHA, "10.77.0.12/24"),
        wanted(ALPHA, domains=("more.example",)),
        wanted(ALPHA, context="alias"),
        wanted(ALPHA, gateways=("10.77.0.9",)),
    ],
)
async def test_the_same_name_with_other_facts(root, other):
    """A host is not changed by creating it again."""
    await root.hosts.create(wanted())
    with pytest.raises(Taken, match="it exists with other facts"):
        await root.hosts.create(other)

    root.all_of(ALPHA)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (wanted(BETA), "address '10.77.0.11': virtual host alpha.example has it"),
        (
            wanted(BETA, "10.77.0.12/24", domains=(ALPHA,)),
            "domain 'alpha.example': virtual host alpha.example has it",
        ),
        (wanted(BETA, "10.77.0.1/24"), "the machine has it itself, on br0"),
    ],
)
async def test_taken(root, request_, words):
    """What somebody has is refused with the name of the holder; nothing is changed."""
    await root.hosts.create(wanted())
    done = list(root.world.done)
    with pytest.raises(Taken, match=words.replace(".", r"\.")):
        await root.hosts.create(request_)

    root.nothing_of(BETA)
    assert done == root.world.done


@pytest.mark.parametrize(
    "request_",
    [
        CreateHost("alpha", ("10.77.0.11/24",), "namespace"),
        CreateHost("alpha.example", (), "namespace"),
        CreateHost("alpha.example", ("10.77.0.11/24", "10.77.0.11/16"), "namespace"),
        CreateHost("alpha.example", ("nonsense",), "namespace"),
        CreateHost("alpha.example", ("203.0.113.5/24",), "namespace"),
        CreateHost("alpha.example", ("10.77.0.11/24",), "jail"),
        CreateHost("alpha.example", ("10.77.0.11/24",), "namespace", uplink="wire"),
        CreateHost("alpha.example", ("10.77.0.11/24",), "namespace", uplink="macvlan"),
        CreateHost("alpha.example", ("10.77.0.11/24",), "alias", uplink="bridge"),
        CreateHost("alpha.example", ("10.77.0.11/24",), "namespace", mtu=9000),
        CreateHost("alpha.example", ("10.77.0.11/24",), "namespace", vlan=7),
        CreateHost(
            "alpha.example", ("10.77.0.11/24",), "namespace", gateways=("fd77::1",)
        ),
        wanted(link="no-such-link"),
        wanted(gateways=("nonsense",)),
        wanted(domains=("nonsense",)),
    ],
)
async def test_bad_input(root, request_):
    """What cannot be is refused before anything is written."""
    with pytest.raises(BadInput):
        await root.hosts.create(request_)

    root.nothing_of(ALPHA)
    assert [] == root.world.done


async def test_dry_run(root):
    """It tells the steps and takes none."""
    planned = await root.hosts.create(wanted(dry_run=True))
    root.nothing_of(ALPHA)

    assert not planned.changed
    assert planned.steps == (await root.hosts.create(wanted())).steps


FAILURES = [
    ("make namespace", None),
    ("connect", None),
    ("add address", None),
    ("", VnsmailError("port 25 is in use")),
    ("", BrokerGone()),
    ("", RuntimeError("a fault")),
]


@pytest.mark.parametrize(("refused", "error"), FAILURES)
async def test_wholly_or_not_at_all(root, refused, error):
    """Whatever fails, all is as before, and the first failure is told."""
    await root.hosts.create(wanted(BETA, "10.77.0.12/24"))
    if refused:
        root.world.refuse = {refused}
    else:
        root.services.errors.append(error)
    with pytest.raises(type(error) if error else NetworkStepFailed):
        await root.hosts.create(wanted())

    root.nothing_of(ALPHA)
    root.all_of(BETA)
    root.world.refuse = set()
    await root.hosts.create(wanted())
    root.all_of(ALPHA)


async def test_a_folder_that_cannot_be_made(root):
    """No folder, no host."""
    (root.layout.hosts / ALPHA).write_text("in the way")
    with pytest.raises(VnsmailError, match="file exists"):
        await root.hosts.create(wanted())

    assert ALPHA not in root.made
    assert ALPHA not in root.services.served


async def test_a_worker_that_does_not_let_go(root):
    """Even then the network is taken back: the failed creation leaves nothing."""
    root.services.errors.append(VnsmailError("port 25 is in use"))
    root.services.release_errors.append(VnsmailError("the worker is gone"))
    with pytest.raises(VnsmailError, match="port 25"):
        await root.hosts.create(wanted())

    root.nothing_of(ALPHA)


async def test_an_undo_that_fails(root):
    """The host stays in the journal; its name says what to do; that helps."""
    root.services.errors.append(VnsmailError("port 25 is in use"))
    root.world.refuse = {"remove"}
    with pytest.raises(VnsmailError, match="port 25"):
        await root.hosts.create(wanted())

    assert (ALPHA,) == root.directory.unfinished()
    with pytest.raises(
        Taken, match="half made or destroyed; run `vnsmail host destroy"
    ):
        await root.hosts.create(wanted())
    root.world.refuse = set()
    await root.hosts.destroy(DestroyHost(ALPHA))
    root.nothing_of(ALPHA)


async def test_one_change_at_a_time(root):
    """Two creations of one address: one of them is refused, neither is half made."""
    results = await asyncio.gather(
        root.hosts.create(wanted()),
        root.hosts.create(wanted(BETA)),
        return_exceptions=True,
    )

    assert isinstance(results[0], Planned)
    assert isinstance(results[1], Taken)
    root.all_of(ALPHA)
    root.nothing_of(BETA)


async def test_cancelled_while_it_is_made(root):
    """A supervisor that ends takes back what it had begun."""
    root.services.held.clear()
    creating = asyncio.ensure_future(root.hosts.create(wanted()))
    while ALPHA not in root.folders:
        await asyncio.sleep(0)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating

    root.nothing_of(ALPHA)


# Destroying ----------------------------------------------------------------------


async def test_destroy(root):
    """Nothing is left of it, and everything of its neighbour."""
    await root.hosts.create(wanted())
    await root.hosts.create(wanted(BETA, "10.77.0.12/24"))
    root.directory.add_user(User(ALPHA, "ann"))
    planned = await root.hosts.destroy(DestroyHost("Alpha.Example"))

    assert planned.changed
    assert any("remove" in step for step in planned.steps)
    root.nothing_of(ALPHA)
    root.all_of(BETA)
    assert [ALPHA] == root.services.released


async def test_destroy_dry_run(root):
    """It tells the steps and takes none."""
    await root.hosts.create(wanted())
    planned = await root.hosts.destroy(DestroyHost(ALPHA, dry_run=True))

    assert not planned.changed
    root.all_of(ALPHA)
    assert planned.steps == (await root.hosts.destroy(DestroyHost(ALPHA))).steps


@pytest.mark.parametrize("name", ["gamma.example", "nonsense", ""])
async def test_destroy_nobody(root, name):
    """Of a host that is not there nothing is removed."""
    with pytest.raises(BadInput):
        await root.hosts.destroy(DestroyHost(name))


async def test_destroy_with_mail(root):
    """Mail in the queue keeps a host, unless it is said to discard it."""
    await root.hosts.create(wanted())
    root.services.queued[ALPHA] = ("a message",)
    with pytest.raises(
        BadInput, match=r"mail is still in its queue .* --discard-queue"
    ):
        await root.hosts.destroy(DestroyHost(ALPHA))
    root.all_of(ALPHA)
    await root.hosts.destroy(DestroyHost(ALPHA, discard_queue=True))

    root.nothing_of(ALPHA)


async def test_destroy_one_that_is_not_served(root):
    """If nobody can look into the queue, it is not taken for empty."""
    await root.hosts.create(wanted())
    root.services.served.clear()
    with pytest.raises(BadInput, match=r"its queue cannot be read .*--discard-queue"):
        await root.hosts.destroy(DestroyHost(ALPHA))
    assert ALPHA in root.made
    await root.hosts.destroy(DestroyHost(ALPHA, discard_queue=True))

    root.nothing_of(ALPHA)


async def test_destroy_though_the_worker_is_gone(root):
    """It held the host's sockets and files, and has ended: the host goes."""
    await root.hosts.create(wanted())
    root.services.release_errors.append(VnsmailError("the worker is gone"))
    await root.hosts.destroy(DestroyHost(ALPHA))

    root.nothing_of(ALPHA)


async def test_destroy_what_the_kernel_keeps(root):
    """It stays marked, is served no more, and destroying again finishes."""
    await root.hosts.create(wanted())
    root.world.refuse = {"remove"}
    with pytest.raises(NetworkStepFailed):
        await root.hosts.destroy(DestroyHost(ALPHA))

    assert (ALPHA,) == root.directory.being_destroyed()
    assert ALPHA not in root.services.served
    root.world.refuse = set()
    await root.hosts.destroy(DestroyHost(ALPHA))
    root.nothing_of(ALPHA)


# Starting again --------------------------------------------------------------------


async def test_a_start_changes_nothing(root):
    """What should exist and does is served, and not touched."""
    await root.hosts.create(wanted())
    await root.hosts.create(wanted(BETA, "10.77.0.12/24", context="alias"))
    done = list(root.world.done)
    await root.again()

    assert done == root.world.done
    assert {ALPHA, BETA} == set(root.services.served)


async def test_after_a_reboot(root, monkeypatch):
    """A machine that lost its namespaces gets them again."""
    await root.hosts.create(wanted())
    root.world = World()
    root.world.install(monkeypatch)
    await root.again()

    root.all_of(ALPHA)


async def killed_in(root, monkeypatch, request):
    """Let the supervisor die in a request; return whether it did."""

    async def no_more_words(*_):
        raise Killed

    monkeypatch.setattr(root.hosts, "undo", no_more_words)
    change = (
        root.hosts.create if isinstance(request, CreateHost) else root.hosts.destroy
    )
    try:
        await change(request)
    except Killed:
        return True
    return False


async def test_killed_while_creating(root, monkeypatch):
    """After kill -9 at any step, the next start leaves a whole host or none."""
    await root.hosts.create(wanted(BETA, "10.77.0.12/24"))
    died = 0
    for step in range(20):
        root.world.kill_after = step
        if not await killed_in(root, monkeypatch, wanted()):
            break
        died += 1
        root.world.kill_after = -1
        await root.again()
        root.nothing_of(ALPHA)
        root.all_of(BETA)
    assert died >= 5

    root.world.kill_after = -1
    root.all_of(ALPHA)


async def test_killed_when_all_is_made(root, monkeypatch):
    """It goes if it was not to be served yet: it has no mail."""

    def killed(name):
        raise Killed

    monkeypatch.setattr(root.directory, "activate", killed)
    assert await killed_in(root, monkeypatch, wanted())
    assert ALPHA in root.made
    await root.again()

    root.nothing_of(ALPHA)


async def test_killed_while_it_begins_to_be_served(root, monkeypatch):
    """It may have taken mail by then, so it stays."""
    root.services.errors.append(Killed())
    assert await killed_in(root, monkeypatch, wanted())
    await root.again()

    root.all_of(ALPHA)


@pytest.mark.parametrize("silence", [ChannelClosed(), NoAnswer(10.0)])
async def test_a_worker_that_falls_silent_over_a_new_host(root, silence):
    """It may have taken mail for it, so the host stays, and is served when it can be."""
    root.services.errors.append(silence)
    assert (await root.hosts.create(wanted())).changed

    root.all_of(ALPHA)


async def test_killed_while_destroying(root, monkeypatch):
    """Destroying that was begun is finished by the next start."""
    died = 0
    for step in range(20):
        await root.hosts.create(wanted())
        root.world.kill_after = step
        if not await killed_in(root, monkeypatch, DestroyHost(ALPHA)):
            break
        died += 1
        root.world.kill_after = -1
        assert (ALPHA,) == root.directory.unfinished()
        await root.again()
        root.nothing_of(ALPHA)
    assert died >= 1


@pytest.mark.parametrize("moment", ["before the folder", "after the folder"])
async def test_killed_around_the_removal_of_files(root, monkeypatch, moment):
    """The name leaves the journal last."""
    await root.hosts.create(wanted())

    def killed(*arguments):
        if moment == "after the folder":
            remove_owner(*arguments)
        raise Killed

    monkeypatch.setattr(module, "remove_owner", killed)
    assert await killed_in(root, monkeypatch, DestroyHost(ALPHA))
    monkeypatch.setattr(module, "remove_owner", remove_owner)
    assert (ALPHA,) == root.directory.unfinished()
    await root.again()

    root.nothing_of(ALPHA)


async def test_a_start_with_what_cannot_be_removed(root):
    """It is told, tried again, and keeps nobody else's mail from flowing."""
    await root.hosts.create(wanted())
    await root.hosts.create(wanted(BETA, "10.77.0.12/24"))
    root.directory.begin_destroy(ALPHA)
    root.world.refuse = {"remove"}
    await root.again()

    assert {BETA} == set(root.services.served)
    assert [ALPHA] == list(root.hosts.broken)
    assert "half made or destroyed: cannot remove" in root.hosts.broken[ALPHA]
    root.world.refuse = set()
    await root.again()
    root.nothing_of(ALPHA)
    assert {} == root.hosts.broken


async def test_a_network_that_comes_later(root, monkeypatch):
    """What could not be made is tried again by itself, and not told any more."""
    await root.hosts.create(wanted())
    await root.hosts.create(wanted(BETA, "10.77.0.12/24", context="alias"))
    root.world = World()
    root.world.install(monkeypatch)
    root.world.refuse = {"connect"}
    monkeypatch.setattr(module, "MEND_AFTER", 0.001)
    await root.again()
    assert {"10.77.0.12"} == root.made
    assert [ALPHA] == list(root.hosts.broken)
    mending = asyncio.ensure_future(root.hosts.mend())
    root.world.refuse = set()
    while root.hosts.broken:
        await asyncio.sleep(0.001)
    mending.cancel()

    root.all_of(ALPHA)


async def test_a_folder_in_trouble_at_the_start(root):
    """One host's trouble is told, and the others are served."""
    await root.hosts.create(wanted())
    await root.hosts.create(wanted(BETA, "10.77.0.12/24"))
    (root.layout.hosts / ALPHA).rmdir()
    (root.layout.hosts / ALPHA).write_text("in the way")
    await root.again()

    assert {BETA} == set(root.services.served)
    assert "file exists" in root.services.problems[ALPHA]


async def test_one_that_cannot_be_served_at_the_start(root):
    """It is told, and the others are served."""
    await root.hosts.create(wanted())
    await root.hosts.create(wanted(BETA, "10.77.0.12/24"))
    root.directory.close()
    root.begin()
    root.services.errors.append(VnsmailError("port 25 is in use"))
    await root.hosts.recover()
    await root.hosts.serve_all()

    assert {BETA} == set(root.services.served)
    assert 1 == len(root.services.problems)


# Users, and the machine ------------------------------------------------------------


async def test_refresh(root):
    """A worker is told of a host's users."""
    await root.hosts.create(wanted())
    root.directory.add_user(User(ALPHA, "ann"))
    await root.hosts.refresh(ALPHA)

    assert ("ann",) == root.services.served[ALPHA].facts.users


async def test_refresh_of_one_being_destroyed(root):
    """A host that goes is not served again."""
    await root.hosts.create(wanted())
    root.directory.begin_destroy(ALPHA)
    root.services.served.clear()
    await root.hosts.refresh(ALPHA)

    assert {} == root.services.served


async def test_refresh_without_a_worker(root):
    """The user is in the directory: the worker is told when it can be."""
    await root.hosts.create(wanted())
    root.services.errors.append(VnsmailError("worker-0 is being started"))
    await root.hosts.refresh(ALPHA)

    assert {ALPHA: "worker-0 is being started"} == root.services.problems


def test_the_machine(tmp_path):
    """It is served unbound, listens nowhere, and every local part is a user."""
    service = machine_service(layout(tmp_path), MachineSettings(name="box.example"))
    facts = service.facts

    assert ("machine", "box.example", (), ("box.example",)) == (
        facts.owner,
        facts.name,
        facts.addresses,
        facts.domains,
    )
    assert (True, False, "") == (facts.any_user, facts.listen, service.namespace)
    assert str(tmp_path / "machine") == facts.folder


async def test_nobody(root):
    """An unknown host is not found."""
    with pytest.raises(NotFound):
        await root.hosts.destroy(DestroyHost("nobody.example"))
