"""Performs the steps of a network plan. PRIVILEGED.

Rules of this file: what is already as the step wants it is not an error, so a plan can
be applied twice, or again after it was cut off; what bears the name of a thing of ours
but not its mark is never touched; no thread of the caller changes its namespace. Steps
for one place go to the kernel together, but never what takes away with what gives: an
address is not added while it may still be somewhere else.
"""

import contextlib
import errno
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Self, TypeAlias

from vnsmail.errors import NetworkStepFailed
from vnsmail.model import Uplink
from vnsmail.net import messages, names, namespaces, requests, sysctl
from vnsmail.net.announce import announce
from vnsmail.net.netlink import Kernel, Refusal
from vnsmail.net.requests import NO_DEVICE, REQUESTS
from vnsmail.net.steps import (
    AddAlias,
    AddProxy,
    Connect,
    MakeNamespace,
    MakeVlan,
    RemoveAddress,
    RemoveAlias,
    RemoveGateway,
    RemoveLink,
    RemoveNamespace,
    RemoveNeighbour,
    RemoveProxy,
    RemoveRoute,
    RemoveRule,
    RemoveTableRoute,
    SetPortUp,
    SetSetting,
    Step,
)

REMOVERS = 48
"""Links removed at a time. The kernel waits some 20 ms for each (rcu_barrier), and no
longer for many."""

FEW = 4
"""Ports that may hear each other's announcements when they come at once."""

CARRIER_LOOKS, CARRIER_PAUSE = 50, 0.002
"""How often, and with what pause in seconds, it is asked whether a link is ready."""

_ALONE = bytes.fromhex(names.INSIDE_HARDWARE.replace(":", ""))


def apply(steps: Iterable[Step], instance: str) -> dict[str, int]:
    """Perform steps in their order; returns which namespaces were made, by name.

    Names may be given anew later; the number (namespaces.identity) is theirs alone.

    Raises:
        NetworkStepFailed: the kernel refused one; of those after it, some for the same
            place may have been performed.
    """
    todo = list(steps)
    if not todo:
        return {}
    with namespaces.Visitor() as visitor:
        return visitor.perform(lambda place: _perform(place, todo, instance))


def _perform(
    place: namespaces.Place, steps: Sequence[Step], instance: str
) -> dict[str, int]:
    with Performer(place, instance) as performer:
        with performer.kept_apart(steps):
            for (where, way), group in itertools.groupby(steps, key=_way):
                way(performer, where, list(group))
            performer.tell_neighbours()
        return performer.made


def _failed(step: Step, number: int, detail: str) -> NetworkStepFailed:
    return NetworkStepFailed(step.describe(), number, detail)


class Performer:
    """A thread that goes about and does things, with a socket where it is."""

    def __init__(self, place: namespaces.Place, instance: str) -> None:
        self._place = place
        self._instance = instance
        self._mark = names.mark(instance)
        self._machine = Kernel()
        self._inside: tuple[str, Kernel] | None = None
        self._changed: dict[str, None] = {}
        self._joined: dict[str, str] = {}
        """Ports that were made now, on bridges, each with its remark."""
        self._many = False
        """More ports come at once than may hear each other."""
        self._settings = sysctl.Writer()
        self.made: dict[str, int] = {}
        """Namespaces that are ours for certain, and which they are."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._machine.close()
        self._leave()
        self._settings.close()

    # Many at once ----------------------------------------------------------------

    @contextlib.contextmanager
    def kept_apart(self, steps: Iterable[Step]) -> Iterator[None]:
        """Keep ports that come at once from hearing each other until all are there.

        A bridge passes what a new host says (its groups, its addresses) on to all its
        ports: a thousand hosts that come at once would hear a million packets. None of
        them has known another before. Should it end in between, the plan finds those
        ports by their remark.
        """
        self._many = sum(isinstance(step, SetPortUp) for step in steps) > FEW
        try:
            yield
        finally:
            if self._many:
                ports = [(port, said) for port, said in self._joined.items() if said]
                ask = requests.port_apart
                self._machine.change([ask(p, said, apart=False) for p, said in ports])

    def change(self, where: str, steps: Sequence[Step]) -> None:
        """Perform steps of one place that are a message each."""
        try:
            kernel = self._kernel(where)
        except FileNotFoundError:
            detail = f"there is no namespace {where}"
            for step in steps:
                if not isinstance(step, _GONE_WITH_NAMESPACE):
                    raise _failed(step, errno.ENOENT, detail) from None
            return
        asked: list[tuple[Step, bytes]] = []
        problem: NetworkStepFailed | None = None
        for step in steps:
            request, done = REQUESTS[type(step)]
            try:
                asked.append((step, request(step, kernel.index, self._mark)))
            except OSError as error:
                number = error.errno or errno.EIO
                if number not in done:
                    problem = _failed(step, number, error.strerror or "")
                    break
        self._send(asked, kernel)
        if problem is not None:
            raise problem
        if where:
            self._changed[where] = None
        elif arrived := [
            (s.link, s.address) for s in steps if isinstance(s, AddAlias | AddProxy)
        ]:
            self._place.go("")
            announce(arrived)

    def _send(self, asked: Sequence[tuple[Step, bytes]], kernel: Kernel) -> None:
        answers = kernel.change([request for _, request in asked])
        for (step, _), refusal in zip(asked, answers, strict=True):
            if refusal is None or refusal.errno in REQUESTS[type(step)][1]:
                continue
            if isinstance(step, MakeVlan):
                self._judge_vlan(step, refusal)
                continue
            if isinstance(step, AddAlias) and refusal.errno == errno.EEXIST:
                if _has_alias(step, kernel, self._mark):
                    continue
                refused = _foreign("address")
                raise _failed(step, errno.EEXIST, refused.strerror or "")
            raise _failed(step, refusal.errno, refusal.reason)

    def _judge_vlan(self, step: MakeVlan, refusal: Refusal) -> None:
        """Raise unless the link is there already, and ours."""
        if refusal.errno == errno.EOPNOTSUPP:
            reason = "this kernel has no VLANs; load the module 8021q"
            raise _failed(step, refusal.errno, reason)
        if refusal.errno != errno.EEXIST:
            raise _failed(step, refusal.errno, refusal.reason)
        # One of that tag is there under another name, or something under this one.
        if not _exists(step.name, self._machine):
            reason = f"somebody else uses tag {step.tag} on {step.link}; give its link"
            raise _failed(step, refusal.errno, reason)
        if not self._is_ours(step.name, self._machine):
            raise _failed(step, errno.EEXIST, _foreign("link").strerror or "")

    def remove_links(self, _: str, steps: Sequence[Step]) -> None:
        """Remove links, many at a time: nearly all of it is waiting."""
        if len(steps) == 1:
            self.remove_link(steps[0])
            return
        # Threads begin where the one is that starts them.
        self._place.go("")
        count = min(REMOVERS, len(steps))
        parts = [self._remover(steps[number::count]) for number in range(count)]
        for problem in namespaces.go_about(parts):
            if problem is not None:
                raise problem

    def _remover(
        self, steps: Sequence[Step]
    ) -> Callable[[namespaces.Place], NetworkStepFailed | None]:
        def remove(place: namespaces.Place) -> NetworkStepFailed | None:
            problem = None
            with Performer(place, self._instance) as performer:
                for step in steps:
                    try:
                        performer.remove_link(step)
                    except NetworkStepFailed as error:
                        problem = problem or error
            return problem

        return remove

    # One at a time ---------------------------------------------------------------

    def act(self, _: str, steps: Sequence[Step]) -> None:
        """Perform steps that are more than a message."""
        for step in steps:
            _guarded(step, set(), partial(_ACTIONS[type(step)], self, step))

    def remove_link(self, step: Step) -> None:
        if isinstance(step, RemoveLink):
            _guarded(step, NO_DEVICE, partial(self._remove_link, step))

    def make_namespace(self, step: MakeNamespace) -> None:
        def prepare() -> None:
            self._settings.prepare_inside()
            self._inside = (step.name, Kernel())
            remark = names.remark(self._instance, step.host)
            self._inside[1].do(requests.loopback_up(self._mark, remark))

        self._leave()
        # The kernel gives the new namespace some settings of the one it is made in.
        self._place.go("")
        try:
            if self._place.make(step.name, prepare):
                self.made[step.name] = namespaces.identity()
                return
        except BaseException:
            self._leave()
            raise
        if not self._is_ours("lo", self._kernel(step.name)):
            raise _foreign("namespace")
        self.made[step.name] = namespaces.identity()

    def remove_namespace(self, step: RemoveNamespace) -> None:
        with contextlib.suppress(FileNotFoundError):
            if not self._is_ours("lo", self._kernel(step.name)):
                raise _foreign("namespace")
        self._leave()
        self._place.go("")
        namespaces.remove(step.name)

    def connect(self, step: Connect) -> None:
        fd = namespaces.open_namespace(step.into)
        try:
            request = requests.connect(step, self._machine.index, self._mark, fd)
            if step.uplink is Uplink.BRIDGE:
                self._joined[step.port] = ""
            try:
                self._machine.do(request)
            except OSError as error:
                if error.errno != errno.EEXIST:
                    raise
                if _exists(names.INSIDE_LINK, self._kernel(step.into)):
                    return
                # What is left of an earlier namespace of this name, not yet cleared.
                self._remove_port(step.port)
                self._machine.do(request)
        finally:
            os.close(fd)

    def set_ports_up(self, _: str, steps: Sequence[Step]) -> None:
        """Set ports up, as many as there are in one go."""
        ports = [step for step in steps if isinstance(step, SetPortUp)]
        asked: list[tuple[Step, bytes]] = []
        for port in ports:
            _guarded(port, set(), partial(self._prepare_port, port, asked))
        answers = self._machine.change([request for _, request in asked])
        for (step, _request), refused in zip(asked, answers, strict=True):
            if refused is not None:
                raise _failed(step, refused.errno, refused.reason)
        for port in ports:
            if port.port in self._joined:
                self._joined[port.port] = names.remark(self._instance, port.host)

    def _prepare_port(self, step: SetPortUp, asked: list[tuple[Step, bytes]]) -> None:
        # A port needs no address; with one it would speak to the host behind it. Where
        # it routes, it must not take the host for its router.
        self._place.go("")
        write = self._settings.write_outside
        if step.ipv6:
            write(f"{step.port}/accept_ra", "0")
        write(f"{step.port}/disable_ipv6", "0" if step.ipv6 else "1")
        remark = names.remark(self._instance, step.host)
        ask = requests.port_apart
        if step.port in self._joined and self._many:
            asked.append((step, ask(step.port, remark, apart=True, up=True)))
            return
        if step.port not in self._joined and self._is_arriving(step.port):
            asked.append((step, ask(step.port, remark, apart=False)))
        asked.append((step, requests.port_up(step.port, remark)))

    def set_setting(self, step: SetSetting) -> None:
        self._place.go("")
        if (step.version, step.name, step.value) != (6, "forwarding", 1):
            sysctl.write(step.path, str(step.value))
            return
        # The kernel now forgets every router it has learned, on all links, but for
        # those links that go on learning while they forward (accept_ra 2); it would
        # take minutes to hear of them again.
        learning = [
            name
            for name in sysctl.links()
            if sysctl.read(f"ipv6/conf/{name}/accept_ra") == "1"
        ]
        for name in learning:
            sysctl.write(f"ipv6/conf/{name}/accept_ra", "2")
        try:
            sysctl.write(step.path, "1")
        finally:
            for name in learning:
                if name != step.link:
                    sysctl.write(f"ipv6/conf/{name}/accept_ra", "1")

    def tell_neighbours(self) -> None:
        """Make the namespaces that were changed announce their addresses.

        The kernel does so when a link comes up, which is too early: a bridge takes
        nothing from a new port before it has heard of its carrier, a moment later. It
        does so too when a link is given a hardware address, be it the one it has.
        """
        for where in self._changed:
            with contextlib.suppress(OSError):
                kernel = self._kernel(where)
                index = kernel.index(names.INSIDE_LINK)
                _, _, facts = messages.link_facts(kernel.ask(requests.question(index)))
                hardware = bytes(facts[messages.HARDWARE])
                # Alone on its wire; and the kernel would forget whom it knows there.
                if hardware == _ALONE:
                    continue
                self._wait_for(messages.number_in(facts, messages.BELOW))
                kernel.do(requests.announce(index, hardware))

    def _wait_for(self, index: int) -> None:
        """Wait until a link of the machine carries packets, if that is soon."""
        for _ in range(CARRIER_LOOKS):
            answer = self._machine.ask(requests.question(index))
            _, _, facts = messages.link_facts(answer)
            if bytes(facts[messages.OPERATES]) in messages.READY:
                return
            time.sleep(CARRIER_PAUSE)

    # Within ----------------------------------------------------------------------

    def _kernel(self, where: str) -> Kernel:
        """Go somewhere; return the socket there."""
        if not where:
            return self._machine
        if self._inside is None or self._inside[0] != where:
            self._leave()
            self._place.go(where)
            self._inside = (where, Kernel())
        return self._inside[1]

    def _leave(self) -> None:
        if self._inside is not None:
            self._inside[1].close()
            self._inside = None

    def _remove_link(self, step: RemoveLink) -> None:
        if not step.namespace:
            self._remove_port(step.link)
            return
        with contextlib.suppress(FileNotFoundError):
            kernel = self._kernel(step.namespace)
            kernel.do(requests.remove_link(kernel.index(step.link)))

    def _remove_port(self, name: str) -> None:
        if not self._is_ours(name, self._machine):
            raise _foreign("link")
        self._machine.do(requests.remove_link(self._machine.index(name)))

    def _is_arriving(self, port: str) -> bool:
        answer = self._machine.ask(requests.question(self._machine.index(port)))
        _, _, facts = messages.link_facts(answer)
        return messages.text_in(facts, messages.REMARK).endswith(names.ARRIVING)

    def _is_ours(self, link: str, kernel: Kernel) -> bool:
        answer = kernel.ask(requests.question(kernel.index(link)))
        _, _, facts = messages.link_facts(answer)
        return messages.number_in(facts, messages.GROUP) == self._mark


def _guarded(step: Step, done: set[int], function: Callable[[], None]) -> None:
    try:
        function()
    except OSError as error:
        number = error.errno or errno.EIO
        if number not in done:
            raise _failed(step, number, error.strerror or "") from None


def _has_alias(step: AddAlias, kernel: Kernel, mark: int) -> bool:
    """Return whether an address that is there is our alias."""
    index = kernel.index(step.link)
    for message in kernel.dump(messages.GET_ADDRESS, bytes(8)):
        _, _, where, facts = messages.address_facts(message)
        if where == index and bytes(facts[messages.FAR]) == step.address.packed:
            return messages.number_in(facts, messages.METRIC) == mark
    return False


def _exists(link: str, kernel: Kernel) -> bool:
    try:
        kernel.index(link)
    except OSError:
        return False
    return True


def _foreign(what: str) -> OSError:
    return OSError(errno.EEXIST, f"a {what} of that name is there and is not ours")


# The tables ------------------------------------------------------------------------

_Action: TypeAlias = Callable[[Performer, Any], None]
_Way: TypeAlias = Callable[[Performer, str, Sequence[Step]], None]

_ACTIONS: dict[type[Step], _Action] = {
    MakeNamespace: Performer.make_namespace,
    RemoveNamespace: Performer.remove_namespace,
    Connect: Performer.connect,
    SetSetting: Performer.set_setting,
}
"""How a step is performed that is more than a message."""

_GONE_WITH_NAMESPACE = (RemoveAddress, RemoveGateway)
_TAKES_AWAY = (
    RemoveAddress,
    RemoveAlias,
    RemoveGateway,
    RemoveNeighbour,
    RemoveProxy,
    RemoveRoute,
    RemoveRule,
    RemoveTableRoute,
)


def _take_away(performer: Performer, where: str, steps: Sequence[Step]) -> None:
    performer.change(where, steps)


def _give(performer: Performer, where: str, steps: Sequence[Step]) -> None:
    performer.change(where, steps)


def _way(step: Step) -> tuple[str, _Way]:
    """Return where a step is performed, and how, alike for what goes together."""
    if isinstance(step, RemoveLink):
        return "", Performer.remove_links
    if isinstance(step, SetPortUp):
        return "", Performer.set_ports_up
    if type(step) in _ACTIONS:
        return "", Performer.act
    way = _take_away if isinstance(step, _TAKES_AWAY) else _give
    return step.namespace, way
