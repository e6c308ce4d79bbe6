"""What is not ours is left alone, whatever it is called."""

import errno

import pytest

from integration.net_machine import (
    INSTANCE,
    alone,
    build,
    host,
    inside,
    ip,
    make,
    namespace,
    port,
    snapshot,
    steps_to,
)
from vnsmail.errors import NetworkStepFailed, Taken
from vnsmail.model import Context, SourceAddress
from vnsmail.net import names
from vnsmail.net.apply import apply
from vnsmail.net.choose import choose_link
from vnsmail.net.facts import Desired
from vnsmail.net.observe import observe
from vnsmail.net.plan import plan

pytestmark = pytest.mark.root

OTHER = "ffffff"


def squat():
    """Make things that look like ours but are somebody's, and things of another root."""
    ip(f"netns add {namespace('squat.example')}")
    inside(namespace("squat.example"), "link set lo up")
    ip(f"link add {port('squat.example')} type veth peer name stray")
    ip(f"link set {port('squat.example')} master br0")
    ip("addr add 10.77.0.50/32 dev br0")
    ip("-6 addr add fd77::50/128 dev br0 preferred_lft 0 nodad")
    others = (
        host("other.example", "10.77.0.60/24"),
        host("more.example", "10.77.0.61/24", "fd77::61/64", context="alias"),
    )
    apply(plan(Desired(others), observe(OTHER), OTHER), OTHER)


@alone()
def test_nothing_foreign_is_touched():
    """Making and destroying leaves all that was there as it was."""
    build()
    squat()
    before = snapshot()
    make(
        host("alpha.example", "10.77.0.11/24", "fd77::11/64"),
        host("beta.example", "192.0.2.12/24"),
        host("gamma.example", "10.77.0.13/24", "fd77::13/64", context="alias"),
    )
    make()

    assert before == snapshot()


@alone()
@pytest.mark.parametrize(
    ("addresses", "context", "step"),
    [
        (["10.77.0.11/24"], "namespace", "cannot make namespace"),
        (["10.77.0.50/32"], "alias", "cannot add address 10.77.0.50"),
        (["fd77::50/128"], "alias", "cannot add address fd77::50"),
    ],
)
def test_names_and_addresses_of_others(addresses, context, step):
    """A host that needs what somebody else has is refused; the other keeps it."""
    build()
    if context == "alias":
        wanted = host("squat.example", *addresses, context=context)
        squat()
    else:
        squat()
        wanted = host("squat.example", *addresses, context=context)
    before = snapshot()
    with pytest.raises(NetworkStepFailed, match="not ours") as caught:
        make(wanted)
    make()

    assert str(caught.value).startswith(step)
    assert errno.EEXIST == caught.value.errno
    assert before == snapshot()


@alone()
def test_link_of_another():
    """A link that has the name of a port: refused, kept, and the rest is undone."""
    build()
    ip(f"link add {port()} type veth peer name stray")
    before = snapshot()
    with pytest.raises(NetworkStepFailed, match=r"cannot connect .* not ours"):
        make(host("alpha.example", "10.77.0.11/24"))
    make()

    assert before == snapshot()


@alone()
def test_addresses_that_are_taken():
    """The machine's own addresses and those of another root are refused beforehand."""
    build()
    squat()
    actual = observe(INSTANCE)
    for text in ("10.77.0.1/24", "fd77::1/64", "10.77.0.50/24", "10.77.0.61/24"):
        with pytest.raises(Taken, match=text.partition("/")[0]):
            choose_link((SourceAddress.parse(text),), actual, Context.NAMESPACE, None)


@alone()
@pytest.mark.parametrize(
    ("damage", "text"),
    [
        ("link del br0", "there is no link br0"),
        ("link set br0 down", ""),
    ],
)
def test_link_that_is_gone(damage, text):
    """A missing bridge is a plain error; one that is down is somebody's decision."""
    build()
    hosts = (
        host("alpha.example", "10.77.0.11/24"),
        host("beta.example", "10.77.0.12/24", context="alias"),
    )
    ip(damage)
    if not text:
        make(*hosts)
        assert "UP" not in ip("link show br0")[0]["flags"]
        return
    for each in hosts:
        with pytest.raises(NetworkStepFailed, match=text):
            make(each)
    make()
    assert () == steps_to()


@alone()
def test_marks():
    """Everything of ours carries the number of its instance, as documented."""
    build()
    make(
        host("alpha.example", "10.77.0.11/24"),
        host("beta.example", "10.77.0.12/24", "fd77::12/64", context="alias"),
    )
    mark = names.mark(INSTANCE)

    assert str(mark) == ip(f"link show {port()}")[0]["group"]
    assert str(mark) == inside(namespace(), "link show lo")[0]["group"]
    marked = {
        a["local"]
        for a in ip("addr show br0")[0]["addr_info"]
        if a.get("metric") == mark
    }
    assert {"10.77.0.12", "fd77::12"} == marked
