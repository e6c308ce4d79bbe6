"""Which way a packet would go, as the kernel says.

Rules of this file: the kernel is asked where the socket would be, with the source it
would have, so that rules and tables by source count; nothing is changed.
"""

import errno
import os
from dataclasses import dataclass

from pyroute2.netlink.exceptions import NetlinkError

from vnsmail.model import IPAddress
from vnsmail.net import namespaces
from vnsmail.net.observe import open_kernel


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
    except (OSError, NetlinkError) as error:
        number = getattr(error, "code", None) or getattr(error, "errno", None)
        return Way("", "", os.strerror(number or errno.EINVAL))


def _look_up(destination: IPAddress, source: IPAddress | None) -> Way:
    words = {"dst": str(destination), "family": 2 if destination.version == 4 else 10}
    if source is not None:
        words["src"] = str(source)
    with open_kernel() as kernel:
        (route,) = kernel.route("get", **words)
        (link,) = kernel.get_links(route.get_attr("RTA_OIF"))
    via = route.get_attr("RTA_VIA") or {}
    gateway = route.get_attr("RTA_GATEWAY") or via.get("addr", "")
    return Way(str(link.get_attr("IFLA_IFNAME")), str(gateway or ""))
