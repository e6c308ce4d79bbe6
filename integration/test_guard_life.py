"""Guards come, change and go; what is not ours stays, and nothing is ever half done."""

import contextlib
import os
import pickle  # what this process wrote itself
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from integration.guard_network import Wire, begin, nft, rules
from integration.net_machine import (
    INSTANCE,
    ROOT,
    alone,
    build,
    host,
    ip,
    make,
    namespace,
)
from vnsmail.errors import GuardUnavailable
from vnsmail.model import HostName, SourceAddress
from vnsmail.net import guard, guard_rules, namespaces
from vnsmail.net.guard import GuardCounter, Guarded

pytestmark = pytest.mark.root

ALPHA, BETA = HostName("alpha.example"), HostName("beta.example")
DELTA, EPSILON = HostName("delta.example"), HostName("epsilon.example")
ADDRESSES = {
    ALPHA: ("10.77.0.11/24", "fd77::11/64"),
    BETA: ("10.77.0.12/24",),
    DELTA: ("10.77.0.14/24", "fd77::14/64"),
    EPSILON: ("10.77.0.15/24",),
}
UNCHANGED = Guarded(changed=False, unguarded={})
CHANGED = Guarded(changed=True, unguarded={})


def hosts(*wanted):
    return tuple(
        host(
            name,
            *ADDRESSES[name],
            context="alias" if name in {DELTA, EPSILON} else "namespace",
        )
        for name in wanted
    )


def situation(*wanted):
    """Make hosts, and guard them."""
    build()
    found = hosts(*(wanted or ADDRESSES))
    make(*found)
    assert CHANGED == guard.apply(found, INSTANCE)
    return found


def borrow(count=1, source="10.77.0.14"):
    for _ in range(count):
        begin(4, source)


def everything():
    """Return all rules of the machine and of every namespace."""
    return {name: rules(name) for name in ["", *namespaces.existing()]}


# Changing ---------------------------------------------------------------------------


@alone()
def test_applied_twice():
    """The second time nothing is touched, in no namespace."""
    found = situation()
    before = everything()

    assert UNCHANGED == guard.apply(found, INSTANCE)
    assert not guard.apply_host(found[0], INSTANCE)
    assert before == everything()


@alone()
def test_counters_outlive_changes():
    """Of a host that stays, whatever comes and goes beside it."""
    delta, alpha = found = situation(DELTA, ALPHA)
    borrow(3)
    counted = guard.counters(found, INSTANCE)
    make(*hosts(*ADDRESSES))
    for others, expected in (
        (hosts(DELTA, EPSILON, ALPHA, BETA), CHANGED),
        (hosts(EPSILON, DELTA, ALPHA), UNCHANGED),
        (hosts(DELTA, ALPHA), CHANGED),
    ):
        assert expected == guard.apply(others, INSTANCE)
        begin(4, "10.77.0.15")
    moved = host(DELTA, "10.77.0.14/24", "10.77.0.24/24", context="alias")
    assert CHANGED == guard.apply([moved, alpha], INSTANCE)
    make(moved, alpha)
    borrow(source="10.77.0.24")

    assert {DELTA: GuardCounter(0, 0, 3), ALPHA: GuardCounter()} == counted
    assert GuardCounter(0, 0, 4) == guard.counters([delta], INSTANCE)[DELTA]
    assert "epsilon" not in rules()


@alone()
def test_ports():
    """Mail may be spoken on another port too; to change that is a change of rules."""
    (delta,) = found = situation(DELTA)
    with contextlib.closing(Wire()) as wire:
        begin(4, "10.77.0.14", port=2525)
        assert CHANGED == guard.apply(found, INSTANCE, (25, 2525))
        begin(4, "10.77.0.14", port=2525)
        begin(4, "10.77.0.14", port=587)

        assert [("10.77.0.14", 2525), ("10.77.0.14", 587)] == wire.arrived()
        assert GuardCounter(0, 0, 1) == guard.counters([delta], INSTANCE)[DELTA]


@alone()
def test_an_older_layout_is_replaced():
    """A table of another version of ours becomes one of this version."""
    found = situation(DELTA)
    state = next(word for word in rules().split() if word.startswith("vnsmail-"))
    nft(f"add chain inet vnsmail_{INSTANCE} vnsmail-0-{state[-32:]}")
    nft(f"delete chain inet vnsmail_{INSTANCE} {state}")
    nft(f"add chain inet vnsmail_{INSTANCE} of_old")

    assert CHANGED == guard.apply(found, INSTANCE)
    assert "of_old" not in rules()
    assert UNCHANGED == guard.apply(found, INSTANCE)


@alone()
def test_rules_that_were_flushed():
    """Whoever loads a rule set of his own flushes ours; the next time it is back."""
    found = situation(DELTA, ALPHA)
    nft("flush ruleset")
    assert {ALPHA} == set(guard.counters(found, INSTANCE))

    assert CHANGED == guard.apply(found, INSTANCE)
    borrow()
    assert 1 == guard.counters(found, INSTANCE)[DELTA].borrowed_packets


# Going ------------------------------------------------------------------------------


@alone()
def test_nothing_is_left():
    """The table goes with the last host it guards."""
    build()
    before = everything()
    found = hosts(*ADDRESSES)
    make(*found)
    guard.apply(found, INSTANCE)
    assert "vnsmail" in rules()
    assert CHANGED == guard.apply(found[:2], INSTANCE)
    assert "" == rules()
    assert UNCHANGED == guard.apply((), INSTANCE)
    make()

    assert before == everything()


@alone()
def test_remove_all():
    """Of this instance, everywhere, and of no other."""
    found = situation()
    guard.apply(found[2:], "ffffff")
    namespaces.make("vns1a2b3c-foreign.example")
    (namespaces.FOLDER / "vns1a2b3c-half.example").touch()

    assert guard.remove_all(INSTANCE)
    assert not guard.remove_all(INSTANCE)
    assert "" == rules(namespace(ALPHA)) == rules(namespace(BETA))
    assert "vnsmail_1a2b3c" not in rules()
    assert "vnsmail_ffffff" in rules()
    assert {} == guard.counters(found, INSTANCE)


# What is not ours -------------------------------------------------------------------


@alone()
def test_tables_of_others():
    """What anybody else has told the kernel is as it was, to the last number."""
    build()
    for family in ("inet", "ip", "ip6", "arp", "bridge", "netdev"):
        nft(f"add table {family} vnsmail")
        nft(f"add table {family} theirs")
    nft("add table inet vnsmail_other")
    nft("add chain inet theirs out { type filter hook output priority 0 ; }")
    nft("add rule inet theirs out tcp dport 25 counter accept")
    nft("add set inet theirs some { type ipv4_addr ; }")
    nft("add element inet theirs some { 10.77.0.14 }")
    nft("add chain ip vnsmail out { type filter hook output priority 0 ; }")
    before = rules()
    found = hosts(*ADDRESSES)
    make(*found)
    guard.apply(found, INSTANCE)
    during = rules()
    guard.apply((), INSTANCE)

    assert during.startswith(before)
    assert before == rules()


@alone()
@pytest.mark.parametrize("content", ["", "chain", "counter"])
@pytest.mark.parametrize("context", [DELTA, ALPHA])
def test_a_table_of_that_name(content, context):
    """Somebody's table with the name of ours: refused and kept; others are guarded."""
    build()
    found = hosts(context, BETA if context == DELTA else EPSILON)
    make(*found)
    where = namespace(ALPHA) if context == ALPHA else ""
    nft(f"add table inet vnsmail_{INSTANCE}", where)
    if content:
        nft(f"add {content} inet vnsmail_{INSTANCE} some", where)
    before = rules(where)
    reason = f"a table inet vnsmail_{INSTANCE} is there and is not ours"

    expected = Guarded(changed=True, unguarded={context: reason})
    assert expected == guard.apply(found, INSTANCE)
    assert [found[1].name] == list(guard.counters(found, INSTANCE))
    guard.remove_all(INSTANCE)
    assert before == rules(where)


@alone()
def test_namespaces_that_cannot_be_guarded():
    """One that is missing, or somebody's: it is said, and stands in nobody's way."""
    build()
    found = hosts(ALPHA, BETA, DELTA)
    make(*found[1:])
    unguarded: dict[str, str] = {ALPHA: "its namespace does not exist"}
    assert Guarded(changed=True, unguarded=unguarded) == guard.apply(found, INSTANCE)
    with pytest.raises(GuardUnavailable, match="its namespace does not exist"):
        guard.apply_host(found[0], INSTANCE)
    ip(f"netns add {namespace(ALPHA)}")
    unguarded = {ALPHA: "its namespace is not ours"}
    assert Guarded(changed=False, unguarded=unguarded) == guard.apply(found, INSTANCE)

    assert "" == rules(namespace(ALPHA))
    assert {BETA, DELTA} == set(guard.counters(found, INSTANCE))


# Half done --------------------------------------------------------------------------

_TOGGLE = """
import itertools, pickle, sys
from vnsmail.net import guard
variants = pickle.load(sys.stdin.buffer)
print(flush=True)
for hosts in itertools.islice(itertools.cycle(variants), int(sys.argv[1])):
    assert guard.apply(hosts, "1a2b3c").changed
"""


@contextlib.contextmanager
def toggling(variants, times):
    """A process that guards now these hosts, now those."""
    command = [sys.executable, "-P", "-c", _TOGGLE, str(times)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(pickle.dumps(variants))
        process.stdin.close()
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def many(*numbers):
    """Return hosts of which only the rules are there."""
    model = host(DELTA, "10.77.0.14/24", context="alias")
    return [
        replace(
            model,
            name=f"h{n}.example",
            addresses=(SourceAddress.parse(f"10.{n // 200 + 1}.{n % 200}.7/24"),),
        )
        for n in range(*numbers)
    ]


def content():
    """Return the machine's rules without the numbers the kernel gives."""
    return sorted(word for word in nft("list ruleset").split() if len(word) > 2)


@alone()
def test_killed_in_the_middle():
    """At any moment there is the one or the other; the next time it is finished."""
    build()
    variants = [many(0, 300), many(100, 400)]
    whole = []
    for variant in variants:
        guard.apply(variant, INSTANCE)
        whole.append(content())
    seen = set()
    for number in range(12):
        guard.apply(variants[0], INSTANCE)
        with toggling(variants[::-1], 1000) as process:
            time.sleep(0.01 * number)  # some moment
            process.send_signal(signal.SIGKILL)
            process.wait()
        seen.add(whole.index(content()))

    assert seen <= {0, 1}
    guard.apply(variants[0], INSTANCE)
    assert content() == whole[0]


@alone()
def test_no_gap_while_rules_change():
    """A host that stays is guarded at every moment, and every packet is counted."""
    build()
    (delta,) = hosts(DELTA)
    make(delta)
    variants = [[delta, *many(0, 100)], [*many(50, 150), delta]]
    guard.apply(variants[1], INSTANCE)
    sent = 0
    with contextlib.closing(Wire()) as wire, toggling(variants, 40) as process:
        while process.poll() is None:
            assert sent < 10**6
            begin(4, "10.77.0.14")
            sent += 1
        assert 0 == process.returncode

        assert [] == wire.arrived()
    assert sent > 40
    assert GuardCounter(0, 0, sent) == guard.counters([delta], INSTANCE)[DELTA]


@alone()
def test_others_change_rules_at_the_same_time():
    """Neither gets into the other's way."""
    build()
    variants = [many(0, 50), many(25, 75)]
    busy = "while nft add table inet busy && nft delete table inet busy; do :; done"
    with subprocess.Popen(["bash", "-c", busy], start_new_session=True) as process:
        try:
            done = [guard.apply(each, INSTANCE) for each in variants * 20]
        finally:
            os.killpg(process.pid, signal.SIGKILL)

    assert [CHANGED] * 40 == done


# Privilege --------------------------------------------------------------------------


@alone(root=False)
def test_in_a_user_namespace():
    """An ordinary user's lab is guarded as well."""
    found = situation()
    borrow(2)

    assert GuardCounter(0, 0, 2) == guard.counters(found, INSTANCE)[DELTA]
    assert 4 == len(guard.counters(found, INSTANCE))


@alone()
def test_without_privilege():
    """Each host is said to be without a guard, and why."""
    build()
    found = hosts(DELTA)
    code = """
import pickle, sys
from vnsmail.net import guard
print(guard.apply(pickle.load(sys.stdin.buffer), "1a2b3c").unguarded)
"""
    done = subprocess.run(
        ["setpriv", "--bounding-set=-net_admin", sys.executable, "-P", "-c", code],
        cwd=ROOT,
        input=pickle.dumps(found),
        capture_output=True,
        check=False,
    )

    assert "Operation not permitted" in done.stdout.decode(), done.stderr
    assert guard_rules.table_name(INSTANCE) not in rules()
