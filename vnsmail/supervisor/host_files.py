"""What /etc says to a program that runs as a virtual host. Pure.

Rules of this file: text in, text out; nothing of the machine's own name is in it.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Sequence

from vnsmail.model import VirtualHost

MAX_SERVERS = 3
"""Name servers that resolv.conf(5) takes (MAXNS)."""

_NODENAME_LIMIT = 64  # __NEW_UTS_LEN of linux/utsname.h


def hosts(host: VirtualHost) -> str:
    """Return /etc/hosts: the loopback, and the host at its own addresses."""
    short = host.name.partition(".")[0]
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{each.address} {host.name} {short}" for each in host.addresses]
    return "".join(f"{line}\n" for line in lines)


def resolv_conf(
    servers: Sequence[str], files: Iterable[str], *, own_loopback: bool
) -> str | None:
    """Return /etc/resolv.conf, or None if no name server can be reached.

    Args:
        servers: name servers of the settings; if there are any, only they are asked.
        files: contents of the machine's files, the first that serves is taken.
        own_loopback: the host has a loopback to itself, where the machine's name
            server does not listen.
    """
    if servers:
        return "".join(f"nameserver {server}\n" for server in servers[:MAX_SERVERS])
    for text in files:
        lines = list(_usable(text, own_loopback=own_loopback))
        if any(line.split()[:1] == ["nameserver"] for line in lines):
            return "".join(f"{line}\n" for line in lines)
    return None


def _usable(text: str, *, own_loopback: bool) -> Iterator[str]:
    """Give the lines that say something here; names without a dot stay the machine's.

    ``search`` and ``domain`` are left out: they are of the machine's domain.
    """
    for line in text.splitlines():
        match line.split():
            case ["nameserver", server, *_]:
                if not (own_loopback and _is_loopback(server)):
                    yield line
            case ["options", *_]:
                yield line
            case _:
                pass


def _is_loopback(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    # 0.0.0.0 is asked on the loopback (resolv.conf(5)).
    return address.is_loopback or address.is_unspecified


def node_name(host: str) -> str:
    """Return what uname(2) calls the host: its name, or the first label if too long."""
    return host if len(host) <= _NODENAME_LIMIT else host.partition(".")[0]
