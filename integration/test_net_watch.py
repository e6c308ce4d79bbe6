"""More happens than a socket holds: it is told as lost, and hearing goes on."""

import itertools
import select

import pytest

from integration.net_machine import alone, ip
from vnsmail.net import watch
from vnsmail.net.events import Kind

pytestmark = pytest.mark.root


@alone()
def test_more_than_the_socket_holds(monkeypatch):
    """The kernel says ENOBUFS once; what comes after it is heard as before."""
    monkeypatch.setattr(watch, "BUFFER", 4096)
    ip("link set lo up")
    with watch.Watch() as found:
        assert [] == [each for each in found.read() if isinstance(each, watch.Lost)]
        for number in range(40):
            ip(f"addr add 127.1.0.{number + 1}/32 dev lo")
        # The kernel says so when what it did keep is read.
        overrun = [*found.read(), *found.read()]
        assert any(isinstance(each, watch.Lost) for each in overrun)

        ip("addr add 127.2.0.1/32 dev lo")
        select.select(list(found.filenos()), [], [], 60)
        heard = itertools.chain(found.read(), found.read())
        kinds = [e.event.kind for e in heard if isinstance(e, watch.Heard)]
        assert Kind.ADDRESS in kinds
