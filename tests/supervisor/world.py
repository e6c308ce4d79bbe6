"""A kernel made of values behind the supervisor's network, and services that only
remember.
"""

import asyncio
from collections import deque
from dataclasses import replace

from tests.net.kernel import Kernel
from tests.net.networks import BR0, ETH0, LO
from vnsmail.engines import protocol as engine
from vnsmail.errors import GuardUnavailable, NetworkStepFailed, NotFound
from vnsmail.net import cgroups, guard, in_use, names
from vnsmail.net.facts import Actual
from vnsmail.supervisor import network

MACHINE = Actual(links=(LO, BR0, ETH0))


class Killed(BaseException):
    """The supervisor is no more; nothing of it gets another word."""


class World:
    """What outlives a supervisor: the network. ``install`` puts it in its place.

    ``refuse`` holds words of steps that the kernel refuses; ``kill_after`` counts the
    steps until the supervisor dies.
    """

    def __init__(self):
        self.kernel = Kernel(MACHINE)
        self.refuse: set[str] = set()
        self.blind = False
        self.kill_after = -1
        self.done: list[str] = []
        self.applied = 0
        self.looks = 0
        self.guarded: set[str] = set()
        self.fenced: set[str] = set()
        self.no_fence = ""
        self.held: dict[str, str] = {}
        """Hardware addresses of those who have an address, and answer."""
        self.asked: list[tuple[str, str]] = []

    def install(self, monkeypatch):
        monkeypatch.setattr(network, "observe", self.observe)
        monkeypatch.setattr(network, "apply", self.apply)
        monkeypatch.setattr(cgroups, "remove", lambda *_: True)
        monkeypatch.setattr(guard, "apply", self.guard)
        monkeypatch.setattr(guard, "apply_host", self.guard_host)
        monkeypatch.setattr(guard, "fence", self.fence)
        monkeypatch.setattr(in_use, "holders", self.holders)

    def guard(self, hosts, *_, anew=False):
        self.guarded |= {host.name for host in hosts}
        return guard.Guarded(changed=True, unguarded={})

    def guard_host(self, host, *_, anew=False):
        self.guarded.add(host.name)
        return True

    def holders(self, asked):
        self.asked += [(link, str(address)) for link, address in asked]
        return {a: self.held[str(a)] for _, a in asked if str(a) in self.held}

    def fence(self, hosts, *_, **__):
        if self.no_fence:
            raise GuardUnavailable(self.no_fence)
        self.fenced = {host.name for host in hosts}
        return True

    def observe(self, instance, only=None):
        self.looks += 1
        if self.blind:
            raise PermissionError(1, "Operation not permitted")
        seen = self.kernel.observe()
        if only is None:
            return seen
        name = names.namespace(instance, only)
        inside = tuple(each for each in seen.namespaces if each.name == name)
        return replace(seen, namespaces=inside)

    def apply(self, steps, _):
        self.applied += 1
        for step in steps:
            words = step.describe()
            if any(refused in words for refused in self.refuse):
                raise NetworkStepFailed(words, 16)
            if self.kill_after == 0:
                raise Killed
            self.kill_after -= 1
            self.kernel.perform(step)
            self.done.append(words)
        return {}

    def hosts(self, instance):
        """Return the names of those whose namespace is there, and the aliases."""
        prefix = names.namespace(instance, "")
        inside = {name.removeprefix(prefix) for name in self.kernel.namespaces}
        return inside | {str(address) for _, address in self.kernel.aliases}

    @property
    def ports(self):
        return [link for link in self.kernel.links.values() if link.ours]


class FakeServices:
    """Serves nobody, and knows whom it should."""

    def __init__(self):
        self.problems: dict[str, str] = {}
        self.engines = None
        self.served = {}
        self.queued = {}
        self.errors: deque[BaseException | None] = deque()
        self.release_errors: deque[BaseException] = deque()
        self.released: list[str] = []
        self.held = asyncio.Event()
        self.held.set()
        self.answers: dict[type, object] = {}
        self.questions: list[object] = []
        self.talking = asyncio.Event()
        """Set while nobody speaks from or to an address that goes."""
        self.talking.set()

    async def asked(self, owner, question, fds=()):
        if owner not in self.served:
            raise NotFound("virtual host", owner, "it is not served")
        request = question(1)
        self.questions.append(request)
        if isinstance(request, engine.Leave):
            await self.talking.wait()
        return self.answers.get(type(request), engine.Done(1))

    def owners(self):
        return list(self.served)

    async def serve(self, service):
        await self.held.wait()
        if self.errors and (error := self.errors.popleft()):
            raise error
        self.served[service.facts.owner] = service

    async def serve_or_note(self, service):
        try:
            await self.serve(service)
        except Exception as error:  # noqa: BLE001  for the test to see
            self.problems[service.facts.owner] = str(error)

    async def release(self, owner):
        self.released.append(owner)
        self.served.pop(owner, None)
        if self.release_errors:
            raise self.release_errors.popleft()

    async def list_queue(self, owner, limit):
        if owner not in self.served:
            raise NotFound("virtual host", owner, "it is not served")
        return self.queued.get(owner, ())[:limit]
