"""What others took away is put back and told, in a network made of values."""

import asyncio
import contextlib
import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.supervisor.test_hosts import ALPHA, BETA, Root, wanted
from vnsmail.model import MACHINE
from vnsmail.net import guard, guard_rules, names
from vnsmail.net.events import Event, Kind
from vnsmail.net.watch import Heard, Lost
from vnsmail.settings import NetworkSettings
from vnsmail.supervisor import mending as module
from vnsmail.supervisor.drift import QUIET
from vnsmail.supervisor.mending import NOBODY, Mending

OFF = "not mended: network.mend is off"


class FakeWatch:
    """A watch that hears what a test says."""

    everywhere = True

    def __init__(self):
        self.said: list[Heard | Lost] = []
        self.followed: set[str] = set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def filenos(self):
        return []

    def read(self):
        said, self.said = self.said, []
        return said

    def follow(self, spaces):
        fresh = set(spaces) - self.followed
        self.followed = set(spaces)
        return fresh


class Machine(Root):
    """A root whose network is watched."""

    def __init__(self, folder):
        super().__init__(folder)
        self.watch = FakeWatch()
        self.now = 1000.0
        self.rewritten: list[str] = []

    async def start(self, **settings):
        await self.hosts.create(wanted())
        await self.hosts.create(wanted(BETA, "10.77.0.12/24", context="alias"))
        options = NetworkSettings(**settings)
        self.mending = Mending(self.hosts.ward(), self.layout.instance, options)
        self.mending._begin(asyncio.get_running_loop(), contextlib.ExitStack())
        await self.look()

    async def look(self, *said, sweep=False):
        """Let something be heard, and be looked at."""
        self.watch.said += said
        self.mending._hear()
        if sweep:
            self.mending._pending.everything = True
        await self.mending._look_soon(sweep=sweep)

    @property
    def told(self):
        return [(d.host, " ".join(d.missing), d.problem) for d in self.mending.drifts]

    @property
    def space(self):
        return names.namespace(self.layout.instance, ALPHA)

    def take_address(self):
        """Be somebody who removes an address; returns what is heard of it."""
        inside = self.world.kernel.namespaces[self.space]
        assert inside.link is not None
        bare = replace(inside, link=replace(inside.link, addresses=()))
        self.world.kernel.namespaces[self.space] = bare
        return Heard(self.space, Event(Kind.ADDRESS, gone=True))

    def take_alias(self):
        self.world.kernel.aliases.clear()

    def guard(self, hosts, *_, anew=False):
        self.rewritten += [host.name for host in hosts if anew]
        return guard.Guarded(changed=False, unguarded={})

    def guard_host(self, host, *_, anew=False):
        self.rewritten += [host.name] if anew else []
        return True


@pytest.fixture
def machine(tmp_path, monkeypatch):
    machine = Machine(tmp_path)
    machine.world.install(monkeypatch)
    monkeypatch.setattr(guard, "apply", machine.guard)
    monkeypatch.setattr(guard, "apply_host", machine.guard_host)
    monkeypatch.setattr(module, "Watch", lambda: machine.watch)
    monkeypatch.setattr(module, "SETTLE", 0)
    clock = SimpleNamespace(monotonic=lambda: machine.now, time=lambda: machine.now)
    monkeypatch.setattr(module, "time", clock)
    yield machine
    machine.directory.close()


async def test_our_own_changes(machine):
    """They are heard too, cost a look, and are no drift."""
    await machine.start()
    done = list(machine.world.done)
    await machine.look(Heard(machine.space, Event(Kind.ADDRESS)))

    assert [] == machine.told
    assert done == machine.world.done
    assert "all namespaces" in machine.mending.watching


async def test_what_was_taken(machine):
    """It is back after one look, and told; sockets stay, for the namespace did."""
    await machine.start()
    await machine.look(machine.take_address())

    assert {ALPHA, BETA} == set(machine.services.served)
    assert [] == machine.services.released
    ((name, missing, problem),) = machine.told
    assert (ALPHA, "") == (name, problem)
    assert "add address 10.77.0.11/24" in missing
    assert 1 == machine.mending.counts[ALPHA]


async def test_only_the_host_in_doubt_is_looked_at(machine):
    """What nobody has told of waits for the sweep, which finds it."""
    await machine.start()
    machine.take_alias()
    await machine.look(Heard(machine.space, Event(Kind.ROUTE)))
    assert [] == machine.told
    await machine.look(sweep=True)

    assert [BETA] == [name for name, _, _ in machine.told]
    assert "10.77.0.12" in machine.made


async def test_a_namespace_made_anew(machine):
    """Sockets of the old one reach nothing: they are opened anew."""
    await machine.start()
    del machine.world.kernel.namespaces[machine.space]
    gone = Event(Kind.NAMESPACE, gone=True, name=machine.space)
    await machine.look(Heard(machine.space, gone))

    machine.all_of(ALPHA)
    assert [ALPHA] == machine.services.released


async def test_what_cannot_be_put_back(machine):
    """It is told, stands in nobody's way, and is tried again when a link comes."""
    await machine.start()
    machine.world.refuse = {"add address 10.77.0.11"}
    machine.take_alias()
    await machine.look(machine.take_address(), sweep=True)
    problems = {name: problem for name, _, problem in machine.told}

    assert "" == problems[BETA]
    assert problems[ALPHA].startswith("not mended: cannot add address 10.77.0.11")
    assert [ALPHA] == list(machine.hosts.broken)
    machine.world.refuse = set()
    machine.now += 100
    link = Event(Kind.LINK, name="br0", state=(True, 1500, 0))
    await machine.look(Heard("", link))
    assert {} == machine.hosts.broken
    machine.all_of(ALPHA)


async def test_mending_is_off(machine):
    """All is told, once, and nothing done."""
    await machine.start(mend=False)
    done = list(machine.world.done)
    for _ in range(3):
        await machine.look(machine.take_address(), sweep=True)
    own = guard_rules.table_name(machine.layout.instance)
    await machine.look(Heard(machine.space, Event(Kind.FILTER, name=own, sender=9)))

    assert done == machine.world.done
    assert [(ALPHA, OFF)] * 2 == [(name, said) for name, _, said in machine.told]
    assert [] == machine.rewritten


async def test_one_who_does_not_give_up(machine):
    """He is answered less and less often; that is told once, not each time."""
    await machine.start()
    for _ in range(40):
        await machine.look(machine.take_address())
        machine.now += 0.2
    mended = [name for name, _, problem in machine.told if not problem]
    held = [problem for _, _, problem in machine.told if problem]

    assert 5 <= len(mended) <= 6
    assert {"held back: it was taken away again and again"} == set(held)
    assert len(held) <= len(mended)
    machine.now += QUIET
    await machine.look()
    inside = machine.world.kernel.namespaces[machine.space]
    assert inside.link is not None
    assert ["10.77.0.11"] == [str(a.address) for a in inside.link.addresses]


async def test_rules_of_the_guard(machine):
    """They are written anew, of the host or of all with aliases; by whom is told."""
    await machine.start()
    own = guard_rules.table_name(machine.layout.instance)
    for place in ("", machine.space):
        await machine.look(
            Heard(place, Event(Kind.FILTER, name=own, sender=9)),
            Heard(place, Event(Kind.FILTER, sender=9, process="nft")),
        )

    assert [BETA, ALPHA] == machine.rewritten
    assert [MACHINE, ALPHA] == [name for name, _, _ in machine.told]
    assert {"rules of the guard changed by nft"} == {
        what for _, what, _ in machine.told
    }


async def test_something_was_not_heard(machine):
    """Everything is looked at, and all rules are written anew."""
    await machine.start()
    machine.take_alias()
    machine.now += 100
    await machine.look(Lost())

    assert [BETA] == [name for name, _, _ in machine.told]
    assert {ALPHA, BETA} == set(machine.rewritten)


async def test_a_link_that_flaps(machine):
    """Looks at everything keep their distance, and the last one is not forgotten."""
    await machine.start()
    ticking = itertools.count(1000)
    machine.mending._rested_at = 5000.0
    looks = machine.world.looks
    for up in (True, False) * 20:
        machine.now = float(next(ticking))
        event = Event(Kind.LINK, name="br0", state=(up, 1500, 0))
        await machine.look(Heard("", event))
    assert looks == machine.world.looks
    machine.take_alias()
    machine.now = 6000.0
    await machine.look()

    assert [BETA] == [name for name, _, _ in machine.told]


async def test_a_network_that_cannot_be_seen(machine):
    """It is tried again."""
    await machine.start()
    machine.world.blind = True
    await machine.look(machine.take_address())
    assert [] == machine.told
    machine.world.blind = False
    machine.now += 100
    await machine.look()

    assert [ALPHA] == [name for name, _, _ in machine.told]


async def test_no_watch(machine, monkeypatch):
    """Where the kernel lets nobody listen there is the sweep, and it is said."""

    def refused():
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(module, "Watch", refused)
    await machine.start()
    machine.take_alias()
    await machine.look(sweep=True)

    assert "every 60 s only" in machine.mending.watching
    assert [BETA] == [name for name, _, _ in machine.told]


async def test_left_over(machine):
    """What is nobody's goes, and is told."""
    await machine.start()
    gamma = "gamma.example"
    await machine.hosts.create(wanted(gamma, "10.77.0.13/24"))
    machine.directory.begin_destroy(gamma)
    machine.directory.remove_host(gamma)
    await machine.look(sweep=True)

    assert {NOBODY} == {name for name, _, _ in machine.told}
    assert 1 == len(machine.world.ports)
