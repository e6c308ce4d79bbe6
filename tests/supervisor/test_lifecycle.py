"""What becomes of hosts that exist, with a network of values."""

import asyncio
import contextlib
from typing import Any

import pytest

from tests.supervisor.test_hosts import Root, wanted
from tests.supervisor.world import Killed
from vnsmail.directory.declaration import write
from vnsmail.engines import protocol as engine
from vnsmail.errors import BadInput, NetworkStepFailed, NotFound, StateUnusable, Taken
from vnsmail.model import HostName, Limits, User
from vnsmail.supervisor import lifecycle as module
from vnsmail.supervisor.control import (
    ApplyHosts,
    ChangeAddresses,
    ChangeHost,
    DestroyHost,
    GetTally,
    RenameHost,
)
from vnsmail.supervisor.lifecycle import Lifecycle

ALPHA, BETA, GAMMA = map(HostName, ("alpha.example", "beta.example", "gamma.example"))


@pytest.fixture
async def root(tmp_path, monkeypatch):
    root = Root(tmp_path)
    root.world.install(monkeypatch)
    await root.hosts.create(wanted())
    root.directory.add_user(User(ALPHA, "ann"))
    await root.hosts.refresh(ALPHA)
    root.world.done.clear()
    yield root
    root.directory.close()


def lifecycle(root):
    """Return the one of this supervisor."""
    hosts = root.hosts
    if getattr(root, "hosts_of", None) is not hosts:
        root.hosts_of = hosts
        root.lifecycle = Lifecycle(
            hosts, root.layout, root.directory, root.services, hosts._network
        )
    return root.lifecycle


async def change(root, **changes):
    return await lifecycle(root).change(ChangeHost(ALPHA, changes))


async def addresses(root, **words):
    return await lifecycle(root).change_addresses(ChangeAddresses(ALPHA, **words))


async def rename(root, new, **words):
    return await lifecycle(root).rename(RenameHost(ALPHA, new, **words))


def served(root, name=ALPHA):
    return root.services.served[name].facts


def inside(root):
    """Return the addresses that the kernel has in alpha's namespace."""
    (namespace,) = [
        n for n in root.world.kernel.namespaces.values() if "alpha" in n.name
    ]
    return {str(each.address) for each in namespace.link.addresses}


def everything(root):
    return (
        root.directory.hosts(),
        root.world.hosts(root.layout.instance),
        dict(root.services.served),
        root.folders,
    )


# Facts ----------------------------------------------------------------------------


async def test_suspend_and_resume(root):
    """The worker is told, the directory keeps it, and nothing else is touched."""
    done = await change(root, suspended=True)

    assert ("suspended false → true",) == done.details
    assert () == done.steps
    assert served(root).suspended
    assert [] == root.services.released
    await root.again()
    assert served(root).suspended
    assert (await change(root, suspended=True)).changed is False
    await change(root, suspended=False)
    assert not served(root).suspended
    assert (User(ALPHA, "ann"),) == root.directory.users(ALPHA)


async def test_limits(root):
    """One at a time; what is not given stays, and null lifts one."""
    await change(root, **{"limits.connections": 5, "limits.queue_bytes": 10**6})
    await change(root, **{"limits.messages_per_hour": 100, "limits.connections": None})

    assert Limits(100, None, 10**6) == served(root).limits
    assert Limits(100, None, 10**6) == root.directory.host(ALPHA).limits


FACTS = {
    "domains": (("b.example",), None),
    "helo": ("mx.alpha.example", None),
    "gateways": (("10.77.0.9",), ()),
    "mtu": (1400, None),
    "resolvers": (("10.77.0.5", "fd77::5"), None),
    "source_check": ("off", None),
    "public_addresses": (("203.0.113.7",), None),
}


@pytest.mark.parametrize("key", FACTS)
async def test_facts(root, key):
    """A fact can be given and taken away; the file that is exported has it."""
    before = root.directory.host(ALPHA)
    given, taken = FACTS[key]
    done = await change(root, **{key: given})
    file = write([(root.directory.host(ALPHA), ("ann",))])

    assert done.changed
    words = given if isinstance(given, tuple) else (given,)
    for word in words:
        assert str(word) in file
    assert () == (await change(root, **{key: given})).details
    await change(root, **{key: taken})
    after = root.directory.host(ALPHA)
    if key == "gateways":
        assert () == after.gateways
    else:
        assert before == after


async def test_a_gateway_reaches_the_kernel(root):
    """What the network has to know is done before the change is told to be done."""
    done = await change(root, gateways=("10.77.0.9",))

    assert any("10.77.0.9" in step for step in done.steps)
    assert list(done.steps) == root.world.done


async def test_dry_run(root):
    """It says the same, and does nothing."""
    before = everything(root)
    request = ChangeHost(ALPHA, {"gateways": ("10.77.0.9",)}, dry_run=True)
    done = await lifecycle(root).change(request)

    assert ("gateways -10.77.0.1 +10.77.0.9",) == done.details
    assert done.steps
    assert not done.changed
    assert before == everything(root)
    assert [] == root.world.done


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"adress": "x"}, "adress: .*there is no such key"),
    "a bad value": ({"mtu": 12}, "mtu: "),
    "a bad address": ({"resolvers": ("x",)}, r"resolvers\[0\]: 'x': write it as"),
    "addresses": ({"addresses": ("10.77.0.99/24",)}, "use `vnsmail host address`"),
    "an unknown limit": ({"limits.speed": 1}, "limits.speed: .*there is no such key"),
    "a domain twice": ({"domains": ("b.example",) * 2}, "it is given twice"),
    "nat without an address": ({"source_check": "nat"}, "give the public_addresses"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_refused(root, case):
    """What cannot be is refused in the words of the file, and nothing is changed."""
    changes, words = REFUSED[case]
    before = everything(root)
    with pytest.raises(BadInput, match=words):
        await change(root, **changes)

    assert before == everything(root)


async def test_what_another_has(root):
    """A domain has one holder."""
    await root.hosts.create(wanted(BETA, "10.77.0.12/24", domains=("b.example",)))
    before = everything(root)
    with pytest.raises(Taken, match=BETA):
        await change(root, domains=("b.example",))

    assert before == everything(root)


async def test_nobody(root):
    """A host that is not there, or half there, is not changed."""
    for name in (BETA, ALPHA):
        if name == ALPHA:
            root.directory.begin_destroy(ALPHA)
        with pytest.raises(NotFound, match=name):
            await lifecycle(root).change(ChangeHost(name, {"suspended": True}))


async def test_a_kernel_that_refuses(root):
    """The host is as it was, and the reason is told."""
    before = everything(root)
    root.world.refuse.add("10.77.0.9")
    with pytest.raises(NetworkStepFailed):
        await change(root, gateways=("10.77.0.9",))

    assert before == everything(root)


async def test_a_worker_that_refuses(root):
    """The network is as it was, too."""
    before = everything(root)
    root.services.errors.append(StateUnusable("queue", "gone", "mend it"))
    with pytest.raises(StateUnusable):
        await addresses(root, add=("10.77.0.14/24",))

    assert before == everything(root)
    assert {"10.77.0.11"} == inside(root)


# Addresses --------------------------------------------------------------------------


async def test_add_an_address(root):
    """It is last, so mail leaves from where it did; a new family gets a router."""
    await addresses(root, add=("10.77.0.14/24", "fd77::14/64"))

    assert ("10.77.0.11", "10.77.0.14", "fd77::14") == served(root).addresses
    assert {"10.77.0.11", "10.77.0.14", "fd77::14"} == inside(root)
    assert [] == root.services.released


async def test_remove_an_address(root):
    """The worker leaves it, the kernel keeps it until nobody speaks; others go on."""
    await addresses(root, add=("10.77.0.14/24",))
    root.services.talking.clear()
    removing = asyncio.ensure_future(addresses(root, remove=("10.77.0.11",), drain=9))
    while not root.services.questions:
        await asyncio.sleep(0)

    assert [engine.Leave(1, ALPHA, ("10.77.0.11",), 9)] == root.services.questions
    assert ("10.77.0.14",) == served(root).addresses
    assert {"10.77.0.11", "10.77.0.14"} == inside(root)
    await root.hosts.create(wanted(BETA, "10.77.0.12/24"))  # nobody waits
    await root.hosts.recover()
    assert {"10.77.0.11", "10.77.0.14"} == inside(root)
    with pytest.raises(BadInput, match="being drained"):
        await addresses(root, remove=("10.77.0.14",))
    root.services.talking.set()
    await removing
    assert {"10.77.0.14"} == inside(root)


async def test_killed_while_draining(root):
    """The next supervisor removes the address at once."""
    await addresses(root, add=("10.77.0.14/24",))
    root.services.talking.clear()
    removing = asyncio.ensure_future(addresses(root, remove=("10.77.0.11",)))
    while not root.services.questions:
        await asyncio.sleep(0)
    removing.cancel()
    await root.again()

    assert {"10.77.0.14"} == inside(root)


async def test_destroyed_while_draining(root):
    """Nothing of it is left."""
    await addresses(root, add=("10.77.0.14/24",))
    root.services.talking.clear()
    removing = asyncio.ensure_future(addresses(root, remove=("10.77.0.11",)))
    while not root.services.questions:
        await asyncio.sleep(0)
    await root.hosts.destroy(DestroyHost(ALPHA, discard_queue=True))
    root.services.talking.set()
    await removing

    root.nothing_of(ALPHA)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"remove": ("10.77.0.11",)}, "it is the last one"),
        ({"remove": ("10.77.0.99",)}, "it is none of alpha.example"),
        ({"remove": ("x",)}, "write it as"),
        ({"add": ("10.77.0.11/24",)}, "alpha.example has it"),
        ({"add": ("10.77.0.1/24",)}, "the machine has it"),
        ({"add": ("192.0.2.1/24",)}, "no link reaches it|192.0.2.1"),
        ({"remove": ("10.77.0.11",), "drain": -1.0}, "give 0 to 3600 seconds"),
    ],
)
async def test_addresses_that_cannot_be(root, words, said):
    """Nothing is changed."""
    before = everything(root)
    with pytest.raises(BadInput, match=said):
        await addresses(root, **words)

    assert before == everything(root)


async def test_apply_drains_too(root):
    """A file with another address lets finish what is said at the old one."""
    root.services.talking.clear()
    text = write([(root.directory.host(ALPHA), ("ann",))])
    await root.hosts.apply(ApplyHosts(text.replace("10.77.0.11", "10.77.0.14")))

    assert {"10.77.0.11", "10.77.0.14"} == inside(root)
    root.services.talking.set()
    while "10.77.0.11" in inside(root):
        await asyncio.sleep(0.001)
    assert [] == root.services.released


# Another name -------------------------------------------------------------------------


async def test_rename(root):
    """Network, folder, users and service have the new name, and the queue its mail."""
    (root.layout.hosts / ALPHA / "queue.db").write_text("mail")
    done = await rename(root, GAMMA)

    assert done.changed
    root.nothing_of(ALPHA)
    root.all_of(GAMMA)
    assert (User(GAMMA, "ann"),) == root.directory.users(GAMMA)
    assert "mail" == (root.layout.hosts / GAMMA / "queue.db").read_text()
    assert (GAMMA, ALPHA) == served(root, GAMMA).domains
    assert (GAMMA, GAMMA) == (served(root, GAMMA).owner, served(root, GAMMA).name)
    assert () == root.directory.renamed()


async def test_rename_without_the_old_domain(root):
    """Mail to the old name is nobody's any more."""
    await rename(root, GAMMA, keep_domain=False)

    assert (GAMMA,) == served(root, GAMMA).domains
    assert None is root.directory.domain_owner(ALPHA)


async def test_rename_to_a_domain_of_its_own(root):
    """It becomes the first."""
    await change(root, domains=("b.example", GAMMA))
    await rename(root, GAMMA)

    assert (GAMMA, ALPHA, "b.example") == served(root, GAMMA).domains


async def test_dry_rename(root):
    """It says what would be, and nothing is."""
    before = everything(root)
    done = await rename(root, GAMMA, dry_run=True)

    assert f"name {ALPHA} → {GAMMA}" == done.details[0]
    assert done.steps
    assert before == everything(root)


async def test_rename_to_what_is_taken(root):
    """Neither a host's name nor a domain, nor a folder that is in the way."""
    await root.hosts.create(wanted(BETA, "10.77.0.12/24", domains=("b.example",)))
    before = everything(root)
    for name in (BETA, "b.example"):
        with pytest.raises(Taken, match=BETA):
            await rename(root, name)
    with pytest.raises(BadInput):
        await rename(root, "nodots")
    assert before == everything(root)
    (root.layout.hosts / GAMMA).mkdir()
    with pytest.raises(StateUnusable, match="move it away"):
        await rename(root, GAMMA)
    assert before[:3] == everything(root)[:3]


@pytest.mark.parametrize("moment", ["move", "finish", 0, 3, 6, 9])
async def test_killed_while_renaming(root, monkeypatch, moment):
    """At whatever moment: the next start has the host under one name, whole."""
    (root.layout.hosts / ALPHA / "queue.db").write_text("mail")
    if moment == "move":
        monkeypatch.setattr(module, "move_owner", _killed)
    elif moment == "finish":
        monkeypatch.setattr(root.directory, "finish_rename", _killed)
    else:
        root.world.kill_after = moment
    with contextlib.suppress(Killed):
        await rename(root, GAMMA)
    monkeypatch.undo()
    root.world.install(monkeypatch)
    root.world.kill_after = -1
    await root.again()

    root.all_of(GAMMA)
    root.nothing_of(ALPHA)
    assert "mail" == (root.layout.hosts / GAMMA / "queue.db").read_text()
    assert () == root.directory.renamed()
    assert {} == root.hosts.broken


def _killed(*_):
    raise Killed


async def test_a_folder_that_cannot_be_moved(root, monkeypatch):
    """The host is not served from an empty one, and the start tries again."""
    (root.layout.hosts / ALPHA / "queue.db").write_text("mail")
    monkeypatch.setattr(module, "move_owner", _killed)
    with pytest.raises(Killed):
        await rename(root, GAMMA)
    (root.layout.hosts / GAMMA).mkdir()
    await root.again()

    assert GAMMA not in root.services.served
    assert "move it away" in root.services.problems[GAMMA]
    (root.layout.hosts / GAMMA).rmdir()
    await root.again()
    assert "mail" == (root.layout.hosts / GAMMA / "queue.db").read_text()
    root.all_of(GAMMA)


# Numbers ------------------------------------------------------------------------------


async def test_tally(root):
    """What the worker counted comes as it is."""
    tally = engine.Tally(5.0, accepted=3)
    root.services.answers[engine.Tell] = engine.Told(1, ALPHA, tally)

    assert tally == (await lifecycle(root).handle(GetTally(ALPHA))).tally
