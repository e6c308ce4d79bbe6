"""Virtual hosts and the machine, as senders that are judged. Pure."""

from collections.abc import Iterable

from vnsmail.capture.proof import Sender
from vnsmail.errors import BadInput
from vnsmail.model import Family, IPAddress, VirtualHost


def of_host(host: VirtualHost) -> Sender:
    """Return what is expected of a virtual host."""
    sources = [host.source(family) for family in Family]
    return Sender(
        name=host.name,
        context=host.context.value,
        expected=tuple(source.address for source in sources if source),
        addresses=frozenset(a.address for a in host.addresses),
        domains=frozenset(host.domains),
        helo=host.says,
        check=host.source_check,
        public=frozenset(host.public_addresses),
    )


def of_machine(
    name: str, addresses: Iterable[IPAddress], hosts: tuple[VirtualHost, ...]
) -> Sender:
    """Return what is expected of the machine.

    Args:
        name: what it calls itself.
        addresses: those on its links, of virtual hosts too.
        hosts: all virtual hosts.

    Raises:
        BadInput: a virtual host has the same name.
    """
    if name.lower() in {host.name for host in hosts}:
        remedy = "a virtual host has it; packets could not tell the two apart"
        raise BadInput("machine name", name, remedy)
    own = frozenset(addresses) - {a.address for host in hosts for a in host.addresses}
    expected = sorted(own, key=lambda address: (address.version, address))
    return Sender(
        name=name.lower(),
        context="machine",
        expected=tuple(expected),
        addresses=own,
        domains=frozenset({name.lower()}),
    )
