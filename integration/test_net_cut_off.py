"""Cut off anywhere, the network is finished by the next plan, and undone wholly."""

import contextlib
import itertools
import multiprocessing
import os
import signal

import pytest

from integration.net_machine import (
    INSTANCE,
    alone,
    build,
    host,
    ip,
    make,
    namespace,
    port,
    snapshot,
    steps_to,
)
from vnsmail.net import apply as module
from vnsmail.net import namespaces, netlink, sysctl
from vnsmail.net.apply import apply

# ruff: noqa: SLF001  dying in the middle of things needs to know their inside
pytestmark = pytest.mark.root

WAYS = {
    "bridge": (("10.77.0.11/24", "fd77::11/64"), "namespace"),
    "macvlan": (("192.0.2.11/24", "2001:db8::11/64"), "namespace"),
    "alias": (("10.77.0.11/24", "fd77::11/64"), "alias"),
}

each_way = pytest.mark.parametrize("way", WAYS)


def wanted(way):
    addresses, context = WAYS[way]
    return host("alpha.example", *addresses, context=context)


@pytest.mark.timeout(300)
@alone()
@each_way
def test_between_any_two_steps(way):
    """After every number of steps of making and of destroying, both ways out work."""
    build()
    clean = snapshot()
    alpha = wanted(way)
    make(alpha)
    whole = snapshot()
    for goal, start in (((alpha,), ()), ((), (alpha,))):
        make(*start)
        count = len(steps_to(*goal))
        for cut in range(count + 1):
            for way_out in ((alpha,), ()):
                make(*start)
                apply(steps_to(*goal)[:cut], INSTANCE)
                make(*way_out)

                assert () == steps_to(*way_out)
                expected = whole if way_out else clean
                assert expected == snapshot()


@pytest.mark.timeout(300)
@alone()
@each_way
def test_killed_at_any_call(way):
    """kill -9 before any single call to the kernel, also within a step."""
    build()
    clean = snapshot()
    alpha = wanted(way)
    make(alpha)
    whole = snapshot()
    kills = 0
    for goal, start in (((alpha,), ()), ((), (alpha,))):
        for calls in itertools.count():
            make(*start)
            killed = killed_after(calls, goal)
            kills += killed
            way_out = (alpha,) if calls % 2 else ()
            make(*way_out)

            assert () == steps_to(*way_out)
            assert (whole if way_out else clean) == snapshot()
            if not killed:
                break
    assert kills >= {"bridge": 20, "macvlan": 18, "alias": 4}[way]


# Each victim is forked from a process that has no threads and has used no netlink.
_victims = multiprocessing.get_context("forkserver")
_victims.set_forkserver_preload([module.__name__])


def killed_after(calls, goal):
    """Perform a plan in a process that is killed before its next call; say if it was."""
    victim = _victims.Process(target=perform, args=(calls, steps_to(*goal)))
    victim.start()
    victim.join()
    assert victim.exitcode in {0, -signal.SIGKILL}
    return victim.exitcode != 0


def perform(calls, steps):
    die_after(calls)
    apply(steps, INSTANCE)


def die_after(calls):
    """Let this process die at its next change after so many changes to the system."""
    left = itertools.count(calls, -1)

    def counted(function):
        def call(*args, **kwargs):
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    class Libc:
        unshare = staticmethod(counted(namespaces._libc.unshare))
        mount = staticmethod(counted(namespaces._libc.mount))
        umount2 = staticmethod(counted(namespaces._libc.umount2))
        setns = staticmethod(namespaces._libc.setns)

    class Posix:
        def __getattr__(self, name):
            return counted(os.open) if name == "open" else getattr(os, name)

    class Kernel(netlink.Kernel):
        def change(self, requests):
            # One by one: the kernel may be stopped between two messages of a send.
            one = counted(super().change)
            return [answer for request in requests for answer in one([request])]

    patch = pytest.MonkeyPatch()
    patch.setattr(namespaces, "_libc", Libc)
    patch.setattr(namespaces, "os", Posix())
    patch.setattr(sysctl, "write", counted(sysctl.write))
    patch.setattr(module, "Kernel", Kernel)


@alone()
def test_damage_by_hand():
    """Whatever somebody does to a host's things, the next plan mends it."""
    build()
    alpha = wanted("bridge")
    make(alpha)
    whole = snapshot()
    inner = f"-n {namespace()}"
    for damage in (
        [f"netns del {namespace()}"],
        [f"link del {port()}"],
        [f"{inner} link del eth0"],
        [f"{inner} link set eth0 down"],
        [f"{inner} link set lo down"],
        [f"link set {port()} down"],
        [f"link set {port()} nomaster"],
        [f"{inner} addr flush dev eth0 scope global"],
        [f"{inner} addr add 10.77.0.99/24 dev eth0"],
        [f"{inner} addr add fd77::99/64 dev eth0"],
        [f"{inner} -6 addr del fd77::11/64 dev eth0"],
        [f"{inner} route del default"],
        [f"{inner} -6 route del default"],
        [f"{inner} route replace default via 10.77.0.2"],
        [f"{inner} route add default via 10.77.0.2 metric 9"],
        [f"{inner} route replace default dev eth0"],
        [f"{inner} -6 route append default via fd77::2"],
        [f"{inner} link set eth0 mtu 1300"],
        [f"{inner} link set eth0 down", f"{inner} link set eth0 name other"],
    ):
        for words in damage:
            ip(words)
        assert () != steps_to(alpha), damage
        make(alpha)
        # What is not eth0 in there is left alone, and would be in the way of nothing.
        with contextlib.suppress(AssertionError):
            ip(f"{inner} link del other")
        make(alpha)

        assert whole == snapshot(), damage
        assert () == steps_to(alpha)


@alone()
def test_damage_to_alias():
    build()
    alpha = wanted("alias")
    make(alpha)
    whole = snapshot()
    for damage in (
        "addr del 10.77.0.11/32 dev br0",
        "-6 addr del fd77::11/128 dev br0",
        "-6 addr change fd77::11/128 dev br0 preferred_lft forever",
    ):
        ip(damage)
        assert () != steps_to(alpha), damage
        make(alpha)

        assert whole == snapshot(), damage


@alone()
def test_bridge_made_again():
    """A bridge that went and came back gets its port; the namespace is the same."""
    build()
    make(wanted("bridge"))
    before = ip(f"-n {namespace()} link show eth0")
    ip("link del br0")
    ip("link add br0 address 02:00:00:00:00:01 type bridge")
    ip("link set br0 up")
    ip("addr add 10.77.0.1/24 dev br0")
    ip("addr add fd77::1/64 dev br0 nodad")

    alpha = wanted("bridge")
    assert [f"make {port()} a port of bridge br0"] == make(alpha)
    after = ip(f"-n {namespace()} link show eth0")
    assert before[0]["address"] == after[0]["address"]
    assert "br0" == ip(f"link show {port()}")[0]["master"]
