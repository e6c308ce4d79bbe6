import asyncio

import msgspec
import pytest

from tests.supervisor.test_hosts import Root
from tests.supervisor.world import Killed
from vnsmail.directory.declaration import write
from vnsmail.errors import BadInput, StateUnusable, VnsmailError
from vnsmail.model import HostName, User
from vnsmail.supervisor import applying as module
from vnsmail.supervisor.control import ApplyHosts, Progress
from vnsmail.supervisor.folders import remove_owner

ALPHA, BETA, GAMMA, DELTA = map(
    HostName, ("alpha.example", "beta.example", "gamma.example", "delta.example")
)


@pytest.fixture
def root(tmp_path, monkeypatch):
    root = Root(tmp_path)
    root.world.install(monkeypatch)
    yield root
    root.directory.close()


def table(name, number, *lines):
    addresses = f'addresses = ["10.77.0.{number}/24"]'
    return "\n".join([f'[host."{name}"]', addresses, *lines, ""])


THREE = table(ALPHA, 11, 'users = ["ann"]') + table(BETA, 12) + table(GAMMA, 13)
NEXT = (
    table(ALPHA, 21, 'users = ["ann", "bob"]')
    + table(GAMMA, 13)
    + table(DELTA, 12, 'context = "alias"')  # where beta was
)


async def apply(root, text, **options):
    return await root.hosts.apply(ApplyHosts(text, **options))


def told(answer):
    return [(change.action, change.name) for change in answer.changes]


def failures(answer):
    return {change.name: change.problem for change in answer.changes if change.problem}


def exported(root):
    users = root.directory.users
    return write(
        (host, tuple(user.local_part for user in users(host.name)))
        for host in root.directory.hosts()
    )


async def test_addresses_that_somebody_has(root):
    """Each has its line; those that hosts of the root have already are not asked for."""
    await apply(root, THREE)
    root.world.asked.clear()
    root.world.held = {"10.77.0.21": "02:00:00:00:00:09", "10.77.0.13": "never asked"}
    done = list(root.world.done)
    answer = await apply(root, NEXT)
    (problem,) = answer.problems

    assert (2, 'host."alpha.example".addresses[0]') == (problem.line, problem.key)
    assert "02:00:00:00:00:09 has it on br0" in problem.text
    assert [("br0", "10.77.0.21")] == root.world.asked
    assert done == root.world.done
    assert () == (await apply(root, NEXT, no_probe=True)).problems


# All is well -------------------------------------------------------------------------


async def test_from_nothing(root):
    """Each host of the file is there, whole, with one look at the network and one go."""
    answer = await apply(root, THREE)

    for name in (ALPHA, BETA, GAMMA):
        root.all_of(name)
    assert [("create", ALPHA), ("create", BETA), ("create", GAMMA)] == told(answer)
    assert {} == failures(answer)
    assert root.world.done == list(answer.steps)
    assert 1 == root.world.applied
    assert (User(ALPHA, "ann"),) == root.directory.users(ALPHA)
    assert ("ann",) == root.services.served[ALPHA].facts.users


async def test_twice(root):
    """The second time there is nothing to do, also with what was exported."""
    await apply(root, THREE)
    done = list(root.world.done)
    for text in (THREE, exported(root)):
        answer = await apply(root, text)

        assert ((), (), 3) == (answer.changes, answer.steps, answer.unchanged)
    assert done == root.world.done
    assert [] == root.services.released


async def test_what_differs(root):
    """Some come, some change, some go, and an address passes from one to another."""
    await apply(root, THREE)
    (root.layout.hosts / ALPHA / "queue.db").write_text("mail")
    answer = await apply(root, NEXT)

    assert [("create", DELTA), ("change", ALPHA), ("destroy", BETA)] == told(answer)
    assert 1 == answer.unchanged
    assert {} == failures(answer)
    assert BETA not in root.folders
    assert None is root.directory.find(BETA)
    assert {ALPHA, GAMMA, "10.77.0.12"} == root.made
    assert "mail" == (root.layout.hosts / ALPHA / "queue.db").read_text()
    assert ("10.77.0.21",) == root.services.served[ALPHA].facts.addresses
    assert "" == root.services.served[DELTA].namespace
    assert {BETA} == set(root.services.released)


async def test_changes_without_sockets(root):
    """For other users, domains and routers nobody lets go of a socket."""
    await apply(root, THREE)
    text = THREE.replace('["ann"]', '["zoe"]\ndomains = ["x.example"]\ngateways = []')
    answer = await apply(root, text)

    assert [("change", ALPHA)] == told(answer)
    assert [] == root.services.released
    facts = root.services.served[ALPHA].facts
    assert (("zoe",), (ALPHA, "x.example")) == (facts.users, facts.domains)


async def test_two_change_places(root):
    """Addresses can be swapped in one go."""
    await apply(root, THREE)
    swapped = table(ALPHA, 12) + table(BETA, 11) + table(GAMMA, 13)
    answer = await apply(root, swapped)

    assert [("change", ALPHA), ("change", BETA)] == told(answer)
    assert {} == failures(answer)
    assert () == (await apply(root, swapped)).steps


async def test_users_that_the_file_leaves_open(root):
    """They stay; so do those that come while the file is being applied."""
    await apply(root, THREE)
    root.directory.add_user(User(BETA, "eve"))
    list_queue = root.services.list_queue

    async def slow(owner, limit):
        if not root.directory.users(ALPHA)[1:]:
            root.directory.add_user(User(ALPHA, "late"))
        return await list_queue(owner, limit)

    root.services.list_queue = slow
    await apply(root, table(ALPHA, 31) + table(BETA, 32))

    assert {"ann", "late"} == {u.local_part for u in root.directory.users(ALPHA)}
    assert (User(BETA, "eve"),) == root.directory.users(BETA)
    assert {"ann", "late"} == set(root.services.served[ALPHA].facts.users)


async def test_dry_run(root):
    """It says the same, and changes nothing."""
    await apply(root, THREE)
    before = (root.listed, root.made, root.folders, dict(root.services.served))
    planned = await apply(root, NEXT, dry_run=True)

    assert before == (root.listed, root.made, root.folders, root.services.served)
    assert [] == root.services.released
    done = await apply(root, NEXT)
    assert planned == done


async def test_all_gone(root):
    """An empty file is one too."""
    await apply(root, THREE)
    await apply(root, "")

    for name in (ALPHA, BETA, GAMMA):
        root.nothing_of(name)


async def test_what_somebody_changed_by_hand(root):
    """A network that is not as planned is mended, and told as such."""
    await apply(root, THREE)
    for name in list(root.world.kernel.namespaces):
        if BETA in name:
            del root.world.kernel.namespaces[name]
    answer = await apply(root, THREE)

    assert [("mend", BETA)] == told(answer)
    assert 2 == answer.unchanged
    assert BETA in root.made


async def test_who_is_not_served(root):
    """One that its worker did not take is given to it again."""
    await apply(root, THREE)
    root.services.problems[BETA] = "port in use"
    root.services.served.pop(BETA)
    answer = await apply(root, THREE)

    assert [("mend", BETA)] == told(answer)
    assert BETA in root.services.served


# What is wrong -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        (NEXT + "x", None, ""),
        (NEXT + table("e.example", 13), None, 'host."e.example".addresses[0]'),
        (NEXT + table("e.example", 1), None, 'host."e.example".addresses[0]'),
        (table(ALPHA, 21, 'link = "wan9"'), 3, 'host."alpha.example".link'),
    ],
)
async def test_a_wrong_file(root, text, line, key):
    """Nothing is changed, and what is wrong is told with its place."""
    await apply(root, THREE)
    before = (root.listed, root.made, root.folders, list(root.world.done))
    answer = await apply(root, text, discard_queue=True)
    (problem,) = answer.problems

    assert before == (root.listed, root.made, root.folders, root.world.done)
    assert [] == root.services.released
    assert key == problem.key
    assert line in {None, problem.line}
    assert ((), ()) == (answer.changes, answer.steps)


async def test_mail_is_queued(root):
    """Hosts with mail are named, and all stay as they are, unless that is said."""
    await apply(root, THREE)
    root.services.queued[BETA] = ("mail",)
    for options in ({}, {"dry_run": True}):
        with pytest.raises(
            BadInput, match=r"'beta\.example': not in the file, and mail"
        ):
            await apply(root, "", **options)

    assert {ALPHA, BETA, GAMMA} == root.listed
    await apply(root, "", discard_queue=True)
    assert set() == root.listed


async def test_a_queue_that_cannot_be_read(root):
    """What nobody can see may be mail."""
    await apply(root, THREE)
    root.services.served.pop(BETA)
    with pytest.raises(BadInput, match="the queue cannot be read"):
        await apply(root, "")

    assert BETA in root.listed


async def test_many_with_mail(root, monkeypatch):
    """A thousand names are not told."""
    monkeypatch.setattr(module, "NAMED", 1)
    await apply(root, THREE)
    root.services.queued = {ALPHA: ("mail",), GAMMA: ("mail",)}
    with pytest.raises(BadInput, match=r"'alpha\.example and 1 more'"):
        await apply(root, "")


# What fails in the middle ------------------------------------------------------------


@pytest.mark.parametrize("refused", ["10.77.0.21", "10.77.0.12 to", "beta"])
async def test_the_kernel_refuses_one(root, refused):
    """It is told of the one; the others are done; the next time it is finished."""
    await apply(root, THREE)
    root.world.refuse = {refused}
    answer = await apply(root, NEXT)
    name = {"10.77.0.21": ALPHA, "10.77.0.12 to": DELTA, "beta": BETA}[refused]

    assert {name} == set(failures(answer))
    assert {name} == set(root.hosts.broken)
    assert {ALPHA, GAMMA, DELTA} == root.listed
    root.world.refuse = set()
    again = await apply(root, NEXT)
    assert {} == failures(again)
    assert {ALPHA, GAMMA, "10.77.0.12"} == root.made
    assert {ALPHA, GAMMA, DELTA} == root.folders
    assert {} == root.hosts.broken
    assert () == (await apply(root, NEXT)).changes


async def test_a_worker_refuses_one(root):
    """What cannot be served is noted, told, and tried again."""
    root.services.errors.append(VnsmailError("port 25 is in use"))
    answer = await apply(root, THREE)
    ((name, problem),) = failures(answer).items()

    assert "port 25 is in use" == problem
    assert {ALPHA, BETA, GAMMA} == root.listed
    root.services.problems.clear()
    again = await apply(root, THREE)
    assert ([("mend", name)], {}) == (told(again), failures(again))


async def test_files_that_stay(root, monkeypatch):
    """A folder that cannot be removed is told, and tried again by the supervisor."""
    await apply(root, THREE)

    def refuse(*_):
        raise StateUnusable("/x", "busy", "mend it")

    monkeypatch.setattr(module, "remove_owner", refuse)
    answer = await apply(root, table(ALPHA, 11) + table(BETA, 12))

    assert {GAMMA} == set(failures(answer)) == set(root.hosts.broken)
    assert (GAMMA,) == root.directory.unfinished()
    assert GAMMA not in root.made
    # The file may want it back: but not with what was to go.
    both = await apply(root, THREE)
    assert {GAMMA} == set(failures(both))
    assert GAMMA not in root.listed
    monkeypatch.setattr(module, "remove_owner", remove_owner)
    (root.layout.hosts / GAMMA / "old").write_text("mail of somebody else")
    assert {} == failures(await apply(root, THREE))
    root.all_of(GAMMA)
    assert [] == list((root.layout.hosts / GAMMA).iterdir())


@pytest.mark.parametrize("steps", range(0, 24, 3))
async def test_killed(root, steps):
    """Whenever it dies, the next start finishes, and applying again has nothing to do."""
    await apply(root, THREE)
    planned = await apply(root, NEXT, dry_run=True)
    root.world.kill_after = steps
    dead = False
    try:
        await apply(root, NEXT)
    except* Killed:
        dead = True
    root.world.kill_after = -1
    await root.again()
    answer = await apply(root, NEXT)

    assert dead == (steps < len(planned.steps))
    assert () == answer.changes
    assert {ALPHA, GAMMA, "10.77.0.12"} == root.made
    assert {ALPHA, GAMMA, DELTA} == root.folders == root.listed
    assert set(root.services.served) == {ALPHA, GAMMA, DELTA}


async def test_progress(root):
    """While it is under way one can ask how far it is."""
    root.services.held.clear()
    applying = asyncio.ensure_future(apply(root, THREE))
    for _ in range(1000):
        await asyncio.sleep(0)
        if root.hosts.progress.what == "hosts served":
            break
        await asyncio.sleep(0.001)

    assert Progress("hosts served", 0, 3) == root.hosts.progress
    root.services.held.set()
    await applying
    assert Progress() == root.hosts.progress


# Each key of the file ------------------------------------------------------------------

KEYS = {
    "addresses": ('addresses = ["10.77.0.91/24"]', "10.77.0.91"),
    "domains": ('domains = ["b.example"]', "b.example"),
    "helo": ('helo = "mx.alpha.example"', "mx.alpha.example"),
    "mtu": ("mtu = 1300", "1300"),
    "gateways": ('gateways = ["10.77.0.9"]', "10.77.0.9"),
    "resolvers": ('resolvers = ["10.77.0.5"]', "10.77.0.5"),
    "source_check": ('source_check = "off"', "source_check"),
    "public_addresses": (
        'source_check = "nat"\npublic_addresses = ["203.0.113.7"]',
        "203.0.113.7",
    ),
    "limits": ("limits = { connections = 7 }", "7"),
    "suspended": ("suspended = true", "false → true"),
    "users": ('users = ["ann"]', "ann"),
    "context": ('context = "alias"', "alias"),
}
USUAL = {
    "addresses": 'addresses = ["10.77.0.11/24"]',
    "suspended": "suspended = false",
    "users": "users = []",
    "gateways": 'gateways = ["10.77.0.1"]',
}
"""What a file without the key does not take back: it leaves these as they are."""


def one(key="", line=""):
    lines = {each: line for each, line in USUAL.items() if each != key}
    if key == "context":
        del lines["gateways"]
    return "\n".join(['[host."alpha.example"]', *lines.values(), line, ""])


def facts_of(root):
    """Return what the worker is told; a certificate once made for a name is kept."""
    facts = root.services.served[ALPHA].facts
    return msgspec.structs.replace(facts, certificates=())


@pytest.mark.parametrize("key", KEYS)
async def test_each_key(root, key):
    """A value is told, reaches directory, kernel and worker; without it all reverts."""
    line, said = KEYS[key]
    await apply(root, one())
    before = exported(root), facts_of(root), root.made
    answer = await apply(root, one(key, line))

    assert [("change", ALPHA)] == told(answer)
    assert {} == failures(answer)
    (change,) = answer.changes
    assert said in " ".join(change.details)
    assert exported(root) != before[0]
    told_to_worker = facts_of(root) != before[1]
    of_the_network = key in {"mtu", "gateways", "context"}
    of_the_proof = key in {"source_check", "public_addresses"}
    assert told_to_worker or of_the_network or of_the_proof
    assert bool(answer.steps) == (of_the_network or key == "addresses")
    again = await apply(root, one(key, line))
    assert ([], ()) == (told(again), again.steps)

    await apply(root, one())
    while root.hosts._network.lingering:
        await asyncio.sleep(0.001)
    assert before == (exported(root), facts_of(root), root.made)
