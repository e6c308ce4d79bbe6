"""Which way a packet would go, as the kernel says.

Rules of this file: the kernel is asked where the socket would be, with the source it
would have, so that rules and tables by source count; nothing is changed.
"""

import errno
import os
from dataclasses import dataclass

from vnsmail.model import IPAddress
from vnsmail.net import messages, namespaces, requests
from vnsmail.net.netlink import Kernel


@dataclass(frozen=True, slots=True)
class Way:
    """How a packet would leave."""

    link: str
    gateway: str
    """The first router; empty if the destination is on the link."""
    problem: str = ""
    """Why there is none, in the kernel's words."""


def look_up(namespace: str, destination: IPAddress, source: IPAddress | None) -> Way:
    """Return the way from a source to a destination.

    Args:
        namespace: name of the network namespace; empty for the machine's own.
        destination: where to.
        source: what the socket is bound to; None: the kernel chooses.
    """
    try:
        if namespace:
            return namespaces.inside(namespace, lambda: _look_up(destination, source))
        return _look_up(destination, source)
    except OSError as error:
        return Way("", "", os.strerror(error.errno or errno.EINVAL))


def _look_up(destination: IPAddress, source: IPAddress | None) -> Way:
    with Kernel() as kernel:
        answer = kernel.ask(requests.way(destination, source))
        *_, facts = messages.route_facts(answer)
        out = messages.number_in(facts, messages.OUT_OF)
        _, _, link = messages.link_facts(kernel.ask(requests.question(out)))
    gateway = messages.gateway_in(facts)
    return Way(messages.text_in(link, messages.NAME), str(gateway or ""))
