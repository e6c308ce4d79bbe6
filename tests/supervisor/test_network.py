import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.net.networks import INSTANCE, host
from tests.supervisor.world import World
from vnsmail.errors import GuardUnavailable, NetworkStepFailed
from vnsmail.net import guard
from vnsmail.supervisor import network as module
from vnsmail.supervisor.network import Network

HOSTS = tuple(
    host(f"{name}.example", f"10.77.0.{number}/24", uplink=uplink)
    for number, (name, uplink) in enumerate(
        [("alpha", "bridge"), ("beta", "bridge"), ("gamma", ""), ("delta", "bridge")],
        11,
    )
)


@pytest.fixture
def world(monkeypatch):
    world = World()
    world.install(monkeypatch)
    return world


@pytest.fixture
def network(world):
    return Network(INSTANCE)


def everything():
    return {"alpha.example", "beta.example", "10.77.0.13", "delta.example"}


async def test_converge(world, network):
    """All hosts are made; doing it again does nothing; without hosts all is gone."""
    assert {} == await network.converge(HOSTS)
    assert everything() == world.hosts(INSTANCE)
    done = len(world.done)
    assert {} == await network.converge(HOSTS)
    assert done == len(world.done)
    assert {} == await network.converge(())
    assert (set(), []) == (world.hosts(INSTANCE), world.ports)


@pytest.mark.parametrize(
    ("refused", "name"),
    [
        ("make namespace vns1a2b3c-beta", "beta.example"),
        ("connect vns1a2b3c-beta", "beta.example"),
        ("add address 10.77.0.12/24", "beta.example"),
        ("10.77.0.13", "gamma.example"),
    ],
)
async def test_one_that_cannot_be_made(world, network, refused, name):
    """It stands in nobody's way, leaves nothing half made, and is told by name."""
    world.refuse = {refused}
    problems = await network.converge(HOSTS)

    assert [name] == list(problems)
    assert refused in problems[name]
    assert problems[name].endswith("Device or resource busy")
    missing = {"beta.example": "beta.example", "gamma.example": "10.77.0.13"}[name]
    assert everything() - {missing} == world.hosts(INSTANCE)
    assert 3 - (name == "beta.example") == len(world.ports)
    world.refuse = set()
    assert {} == await network.converge(HOSTS)
    assert everything() == world.hosts(INSTANCE)


async def test_one_that_cannot_be_removed(world, network):
    """What should be gone and stays keeps nobody from being made."""
    await network.converge([host("old.example", "10.77.0.99/24")])
    world.refuse = {"remove namespace"}

    assert {} == await network.converge(HOSTS)
    assert everything() | {"old.example"} == world.hosts(INSTANCE)


async def test_many_that_cannot_be_made(world, network):
    """However many there are, the network is looked at no more than twice."""
    world.refuse = {"connect"}
    problems = await network.converge(HOSTS)

    assert {"alpha.example", "beta.example", "delta.example"} == set(problems)
    assert {"10.77.0.13"} == world.hosts(INSTANCE)
    assert 2 == world.looks


async def test_a_network_that_cannot_be_seen(world, network):
    """Nobody can be had then, and each is told why."""
    world.blind = True
    words = "cannot look at the network: Operation not permitted"

    with pytest.raises(NetworkStepFailed, match=words):
        await network.observe()
    assert dict.fromkeys((h.name for h in HOSTS), words) == await network.converge(
        HOSTS
    )


@given(
    st.lists(st.sampled_from(HOSTS), unique_by=lambda h: h.name),
    st.lists(st.sampled_from(HOSTS), unique_by=lambda h: h.name),
    st.sets(
        st.sampled_from(
            ["make namespace", "connect", "beta", "10.77.0.1", "remove", "set", "add"]
        )
    ),
)
async def test_whatever_the_kernel_refuses(before, after, refused):
    """It ends; who has no problem is there; and when all goes well, all is well."""
    world = World()
    with pytest.MonkeyPatch.context() as monkeypatch:
        world.install(monkeypatch)
        network = Network(INSTANCE)
        await network.converge(before)
        world.refuse = refused
        problems = await network.converge(after)
        steps = network.steps(
            [h for h in after if h.name not in problems], await network.observe()
        )
        for step in steps:
            assert any(words in step.describe() for words in refused)
        world.refuse = set()
        assert {} == await network.converge(after)

        assert () == network.steps(after, await network.observe())


@pytest.mark.parametrize("fails", [False, True])
async def test_a_change_is_waited_for(monkeypatch, network, fails):
    """Who is cancelled in the middle of a change ends after it, not before."""
    begun, goes_on, ended = threading.Event(), threading.Event(), []

    def apply(*_):
        begun.set()
        goes_on.wait()
        ended.append(True)
        if fails:
            raise NetworkStepFailed("do it", 16)

    monkeypatch.setattr(module, "apply", apply)
    applying = asyncio.ensure_future(network.apply([object()]))
    await asyncio.to_thread(begun.wait)
    applying.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    early = applying.done()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await applying

    assert not early
    assert [True] == ended


async def test_nothing_to_do(world, network):
    """No step, no thread, no netlink socket."""
    await network.apply(())

    assert 0 == world.applied


# The guard ------------------------------------------------------------------------


async def test_every_host_is_guarded(world, network):
    """Whatever brings the network about has the kernel guard it, too."""
    await network.converge(HOSTS)

    assert {host.name for host in HOSTS} == world.guarded


@pytest.mark.usefixtures("world")
async def test_no_guard_is_told_and_stops_nothing(monkeypatch, network):
    """Where the kernel cannot guard, hosts are made all the same, and it is known."""

    def unavailable(*_, **__):
        raise GuardUnavailable("no nftables here")

    monkeypatch.setattr(guard, "apply", unavailable)
    monkeypatch.setattr(guard, "counters", lambda *_: {})

    assert {} == await network.converge(HOSTS)
    problem = (await network.guarded(HOSTS[0])).problem
    assert "cannot guard source addresses: no nftables here" == problem


# The fence ------------------------------------------------------------------------

ROUTED = host("routed.example", "192.0.2.11/24", link="eth0", uplink="routed")


async def test_nobody_is_routed_without_a_fence(world, network):
    """Who cannot be fenced is not made; the others are."""
    world.no_fence = "no nftables here"
    problems = await network.converge([*HOSTS, ROUTED])

    assert [ROUTED.name] == list(problems)
    assert everything() == world.hosts(INSTANCE)
    world.no_fence = ""
    assert {} == await network.converge([*HOSTS, ROUTED])
    assert {ROUTED.name} == world.fenced
    assert ROUTED.name in world.hosts(INSTANCE)


async def test_the_fence_stays_until_its_host_is_gone(world, network):
    await network.converge([ROUTED])
    seen = []
    perform = world.kernel.perform

    def watched(step):
        seen.append(set(world.fenced))
        perform(step)

    world.kernel.perform = watched
    await network.converge([], [ROUTED])

    assert [{ROUTED.name}] * len(seen) == seen
    assert set() == world.fenced
