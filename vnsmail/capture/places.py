"""Where packets are recorded: links, each in a network namespace, with words for people.

Pure. The document that the recorder is started with.
"""

from collections.abc import Iterable, Sequence

import msgspec

from vnsmail.model import Context, VirtualHost
from vnsmail.net import names


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A link to record on."""

    link: str
    namespace: str = ""
    """Name of the network namespace that has it; empty: the machine's."""
    name: str = ""
    """What it is called in the capture (if_name); empty: as the link."""
    description: str = ""
    """What it is, for people (if_description)."""

    @property
    def shown(self) -> str:
        """Return its name in the capture."""
        return self.name or self.link


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a recorder is told."""

    places: tuple[Place, ...]
    ports: tuple[int, ...]
    names: dict[str, str] = {}
    """Names of addresses, for whoever looks at the capture."""


encode = msgspec.json.encode
decode = msgspec.json.Decoder(Plan).decode


def of_hosts(
    hosts: Iterable[VirtualHost], instance: str, machine_links: Sequence[str] = ()
) -> tuple[Place, ...]:
    """Return the places at which all mail of these hosts and of the machine is seen.

    The link of each namespace, and the machine's links that hosts use or that have its
    addresses. What passes two of them is the same packet, and counts once.
    """
    hosts = tuple(hosts)
    links = dict.fromkeys([*machine_links, *(host.link for host in hosts)])
    users = {link: sum(host.link == link for host in hosts) for link in links}
    places = [
        Place(link, description=f"the machine; {users[link]} virtual hosts")
        for link in links
    ]
    places += [of_host(host, instance) for host in hosts if _has_namespace(host)]
    return tuple(places)


def of_host(host: VirtualHost, instance: str) -> Place:
    """Return the place of a host in a namespace: the link within."""
    space = names.namespace(instance, host.name)
    return Place(
        names.INSIDE_LINK,
        space,
        name=f"{host.name}/{names.INSIDE_LINK}",
        description=f"virtual host {host.name}, namespace {space}",
    )


def _has_namespace(host: VirtualHost) -> bool:
    return host.context is Context.NAMESPACE
