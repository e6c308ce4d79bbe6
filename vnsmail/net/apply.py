"""Performs the steps of a network plan. PRIVILEGED.

Rules of this file: one small function a step; what is already as the step wants it is
not an error, so a plan can be applied twice, or again after it was cut off; what bears
the name of a thing of ours but not its mark is never touched; no thread of the caller
changes its namespace.
"""

import contextlib
import errno
import itertools
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vnsmail.errors import NetworkStepFailed
from vnsmail.model import IPAddress, Uplink
from vnsmail.net import names, namespaces
from vnsmail.net.facts import NO_GATEWAY
from vnsmail.net.observe import open_kernel
from vnsmail.net.steps import (
    AddAddress,
    AddAlias,
    Connect,
    JoinBridge,
    MakeNamespace,
    RemoveAddress,
    RemoveAlias,
    RemoveGateway,
    RemoveLink,
    RemoveNamespace,
    SetGateway,
    SetMtu,
    SetPortUp,
    SetUp,
    Step,
)

# Numbers of linux/if_addr.h, linux/rtnetlink.h.
_NODAD = 0x02
_NOPREFIXROUTE = 0x200
_SCOPE_HOST = 254
_ONLINK = 4
_FOREVER = 0xFFFFFFFF
_LABEL_LIMIT = 15  # bytes; IFNAMSIZ is 16 with the final NUL

_SYSCTL = Path("/proc/sys/net")

INSIDE = {
    # A host has the addresses it was given, and no others.
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/default/autoconf": "0",
    # Neighbours learn at once where an address is now that was elsewhere before.
    "ipv4/conf/default/arp_notify": "1",
    # Else the kernel removes all addresses of a network with the first one of it.
    "ipv4/conf/all/promote_secondaries": "1",
    # A host is no router. The kernel copies this from the machine, which may be one.
    "ipv4/conf/all/forwarding": "0",
}
"""How a namespace differs from one that is new (ip-sysctl in the kernel's manual)."""


def apply(steps: Iterable[Step], instance: str) -> None:
    """Perform steps in their order.

    Raises:
        NetworkStepFailed: the kernel refused one; those after it were not tried.
    """
    for where, group in itertools.groupby(steps, key=lambda step: step.namespace):
        batch = list(group)
        if not where:
            _perform_all(batch, instance)
            continue
        try:
            namespaces.inside(where, partial(_perform_all, batch, instance))
        except FileNotFoundError:
            for step in batch:
                if not isinstance(step, _GONE_WITH_NAMESPACE):
                    detail = f"there is no namespace {where}"
                    raise _failed(step, errno.ENOENT, detail) from None


_GONE_WITH_NAMESPACE = (RemoveLink, RemoveAddress, RemoveGateway)


def _perform_all(steps: Sequence[Step], instance: str) -> None:
    """Perform steps in the namespace of the calling thread."""
    with open_kernel() as kernel:
        for step in steps:
            perform, done = _PERFORM[type(step)]
            try:
                perform(step, kernel, instance)
            except NetlinkError as error:
                if error.code not in done:
                    raise _failed(step, error.code, str(error.args[-1])) from None
            except OSError as error:
                number = error.errno or errno.EIO
                if number not in done:
                    raise _failed(step, number, error.strerror or "") from None


def _failed(step: Step, number: int, detail: str) -> NetworkStepFailed:
    return NetworkStepFailed(step.describe(), number, detail)


# Namespaces ------------------------------------------------------------------------


def _make_namespace(step: MakeNamespace, _: IPRoute, instance: str) -> None:
    def prepare() -> None:
        for name, value in INSIDE.items():
            _write_sysctl(name, value)
        with open_kernel() as kernel:
            kernel.link(
                "set",
                index=socket.if_nametoindex("lo"),
                state="up",
                group=names.mark(instance),
                ifalias=names.remark(instance, step.host),
            )

    if namespaces.make(step.name, prepare):
        return
    if not namespaces.inside(step.name, lambda: _is_ours("lo", instance)):
        raise _foreign("namespace")


def _remove_namespace(step: RemoveNamespace, _: IPRoute, instance: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not namespaces.inside(step.name, lambda: _is_ours("lo", instance)):
            raise _foreign("namespace")
    namespaces.remove(step.name)


# Links -----------------------------------------------------------------------------


def _connect(step: Connect, kernel: IPRoute, instance: str) -> None:
    fd = namespaces.open_namespace(step.into)
    try:
        try:
            _add_link(step, kernel, instance, fd)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
            if namespaces.inside(step.into, lambda: _exists(names.INSIDE_LINK)):
                return
            # What is left of an earlier namespace of this name, not yet cleared away.
            _remove_port(step.port, kernel, instance)
            _add_link(step, kernel, instance, fd)
    finally:
        os.close(fd)


def _add_link(step: Connect, kernel: IPRoute, instance: str, fd: int) -> None:
    """Make the link where it belongs from the start, so that nothing has to move."""
    mark = names.mark(instance)
    index = _index(step.link)
    if step.uplink is Uplink.BRIDGE:
        kernel.link(
            "add",
            kind="veth",
            ifname=step.port,
            group=mark,
            master=index,
            mtu=step.mtu,
            address=names.port_address(step.link),
            peer={"ifname": names.INSIDE_LINK, "mtu": step.mtu, "net_ns_fd": fd},
        )
    else:
        kernel.link(
            "add",
            kind="macvlan",
            ifname=names.INSIDE_LINK,
            group=mark,
            link=index,
            macvlan_mode="bridge",
            net_ns_fd=fd,
        )


def _join_bridge(step: JoinBridge, kernel: IPRoute, _: str) -> None:
    kernel.link("set", index=_index(step.port), master=_index(step.bridge))


def _remove_link(step: RemoveLink, kernel: IPRoute, instance: str) -> None:
    if step.namespace:
        kernel.link("del", index=_index(step.link))
    else:
        _remove_port(step.link, kernel, instance)


def _remove_port(name: str, kernel: IPRoute, instance: str) -> None:
    if not _is_ours(name, instance):
        raise _foreign("link")
    kernel.link("del", index=_index(name))


def _set_mtu(step: SetMtu, kernel: IPRoute, _: str) -> None:
    kernel.link("set", index=_index(step.link), mtu=step.mtu)


def _set_up(step: SetUp, kernel: IPRoute, _: str) -> None:
    kernel.link("set", index=_index(step.link), state="up")


def _set_port_up(step: SetPortUp, kernel: IPRoute, instance: str) -> None:
    # A port needs no address; with one it would speak to the host behind it.
    _write_sysctl(f"ipv6/conf/{step.port}/disable_ipv6", "1")
    remark = names.remark(instance, step.host)
    kernel.link("set", index=_index(step.port), state="up", ifalias=remark)


# Addresses and routes --------------------------------------------------------------


def _add_address(step: AddAddress, kernel: IPRoute, _: str) -> None:
    address, length = step.address.address, step.address.prefix_length
    # Without NODAD an IPv6 address cannot be bound while the kernel asks the network
    # whether somebody has it (RFC 4862 section 5.4), and mail would wait a second or
    # two, or for ever if the link is not connected. The directory says whose it is.
    flags = {"flags": _NODAD} if address.version == 6 else {}
    kernel.addr(
        "add",
        index=_index(names.INSIDE_LINK),
        address=str(address),
        prefixlen=length,
        **flags,
    )


def _remove_address(step: RemoveAddress, kernel: IPRoute, _: str) -> None:
    kernel.addr(
        "del",
        index=_index(names.INSIDE_LINK),
        address=str(step.address.address),
        prefixlen=step.address.prefix_length,
    )


def _set_gateway(step: SetGateway, kernel: IPRoute, _: str) -> None:
    flags = {"flags": _ONLINK} if step.on_link else {}
    kernel.route(
        "replace",
        dst="default",
        family=_family(step.gateway),
        gateway=str(step.gateway),
        oif=_index(names.INSIDE_LINK),
        **flags,
    )


def _remove_gateway(step: RemoveGateway, kernel: IPRoute, _: str) -> None:
    gateway = {} if step.gateway in NO_GATEWAY else {"gateway": str(step.gateway)}
    kernel.route(
        "del",
        dst="default",
        family=_family(step.gateway),
        oif=_index(names.INSIDE_LINK),
        **gateway,
    )


def _add_alias(step: AddAlias, kernel: IPRoute, instance: str) -> None:
    """Add an address that is used by who binds it and by nobody else.

    The machine's own sockets must never get it, whatever happens to the machine's own
    addresses. So it is never a choice for the kernel: IPv4 has scope host, which no
    route to another machine accepts, and the whole address as its network, so that it
    is neither primary nor secondary to another; IPv6 is deprecated from the start,
    which loses against any other address (RFC 6724 section 5, rule 3).
    """
    index, address = _index(step.link), str(step.address)
    mark = names.mark(instance)
    try:
        if step.address.version == 4:
            kernel.addr(
                "add",
                index=index,
                family=socket.AF_INET,
                local=address,
                address=address,
                prefixlen=32,
                scope=_SCOPE_HOST,
                rt_priority=mark,
                **_label(step.link),
            )
        else:
            kernel.addr(
                "add",
                index=index,
                family=socket.AF_INET6,
                address=address,
                prefixlen=128,
                flags=_NODAD | _NOPREFIXROUTE,
                preferred=0,
                valid=_FOREVER,
                rt_priority=mark,
            )
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
        family = _family(step.address)
        if not any(
            message.get("IFA_ADDRESS") == address
            and message.get("IFA_RT_PRIORITY") == mark
            for message in kernel.get_addr(index=index, family=family)
        ):
            raise _foreign("address") from None


def _label(link: str) -> dict[str, str]:
    """Return what keeps a legacy question for the link's address from finding an alias.

    SIOCGIFADDR (netdevice(7)) returns the first address whose label is the link's
    name, and addresses of scope host come first.
    """
    label = f"{link}:vns"
    return {"label": label} if len(label) <= _LABEL_LIMIT else {}


def _remove_alias(step: RemoveAlias, kernel: IPRoute, _: str) -> None:
    address = str(step.address)
    kernel.addr(
        "del",
        index=_index(step.link),
        family=_family(step.address),
        local=address,
        address=address,
        prefixlen=step.address.max_prefixlen,
    )


# The table -------------------------------------------------------------------------

_Perform: TypeAlias = Callable[[Any, IPRoute, str], None]

_NO_DEVICE = {errno.ENODEV, errno.ENXIO}

_PERFORM: dict[type[Step], tuple[_Perform, set[int]]] = {
    MakeNamespace: (_make_namespace, set()),
    RemoveNamespace: (_remove_namespace, set()),
    Connect: (_connect, set()),
    JoinBridge: (_join_bridge, set()),
    RemoveLink: (_remove_link, _NO_DEVICE),
    SetMtu: (_set_mtu, set()),
    SetUp: (_set_up, set()),
    SetPortUp: (_set_port_up, set()),
    AddAddress: (_add_address, {errno.EEXIST}),
    RemoveAddress: (_remove_address, _NO_DEVICE | {errno.EADDRNOTAVAIL}),
    SetGateway: (_set_gateway, {errno.EEXIST}),
    RemoveGateway: (_remove_gateway, _NO_DEVICE | {errno.ESRCH}),
    AddAlias: (_add_alias, set()),
    RemoveAlias: (_remove_alias, _NO_DEVICE | {errno.EADDRNOTAVAIL}),
}
"""How each step is performed, and the errors that say it is as wanted already."""


# Within ----------------------------------------------------------------------------


def _index(link: str) -> int:
    """Return the index of a link in the namespace of the calling thread."""
    try:
        return socket.if_nametoindex(link)
    except OSError:
        raise OSError(errno.ENODEV, f"there is no link {link}") from None


def _exists(link: str) -> bool:
    return any(name == link for _, name in socket.if_nameindex())


def _is_ours(link: str, instance: str) -> bool:
    """Return whether a link in the namespace of the calling thread has our mark."""
    with open_kernel() as kernel:
        (message,) = kernel.link("get", index=_index(link))
    return bool(message.get("group") == names.mark(instance))


def _foreign(what: str) -> OSError:
    return OSError(errno.EEXIST, f"a {what} of that name is there and is not ours")


def _family(address: IPAddress) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _write_sysctl(name: str, value: str) -> None:
    # A kernel without IPv6 has no settings for it.
    with contextlib.suppress(FileNotFoundError):
        (_SYSCTL / name).write_text(value)
