"""What the network things of a virtual host are called, and how they are known as ours.

    namespace   vns-alpha.example          vns1a2b3c-alpha.example
    link        vns-6dq2vme4xk             vns1a2b3c6dq2vm
    mark        0x57000000                 0x561a2b3c
    remark      vnsmail::alpha.example     vnsmail:1a2b3c:alpha.example
                (the default root)         (another root, instance 1a2b3c)

A name only looks like ours: anybody can make a namespace called vns-test. So each thing
we make carries the mark of its instance, a number the kernel stores from the moment the
thing exists: as group of a link (IFLA_GROUP), as group of a namespace's loopback, as
metric of an alias address (IFA_RT_PRIORITY; IFA_PROTO has only eight bits, too few to
tell instances apart). The remark (IFLA_IFALIAS) is for people.

Rules of this file: pure; a name depends on instance and host and on nothing else, so
that it is the same after a restart.
"""

import base64
import hashlib
import re

INSIDE_LINK = "eth0"
"""The name of a virtual host's link inside its namespace."""

PROTOCOL = 118
"""Who made a route, a rule or a proxy entry (rtm_protocol of rtnetlink(7)); 118 is
nobody else's in iproute2's list. Too short for a mark, so it is never all that counts."""

SPECIFIC_FIRST, THEN_OWN_TABLE = 5550, 5551
"""Priorities of our rules (ip-rule(8)): before the main table, after the local one."""

ROUTER_HARDWARE, INSIDE_HARDWARE = "fe:76:6e:73:00:01", "02:76:6e:73:00:02"
"""Hardware addresses of the two ends of a routed uplink. Each is a wire of its own, so
they are the same for all, and each end knows the other's without asking."""

ROUTERS = {4: "169.254.0.1", 6: "fe80::1"}
"""What a routed namespace calls the machine. The machine does not have these addresses:
they stand for ROUTER_HARDWARE and nothing else."""

LINK_LIMIT = 15
"""Bytes; IFNAMSIZ is 16 with the final NUL."""

_FILE_LIMIT = 255  # NAME_MAX: a namespace is a file in /run/netns
_REMARK_LIMIT = 255  # IFALIASZ is 256
_MARK_OF_ROOT = 0x56 << 24
_MARK_OF_DEFAULT_ROOT = 0x57 << 24
_MARK_OF_WORD = 0x58 << 24
_ROOT = re.compile("[0-9a-f]{6}")


def mark(instance: str) -> int:
    """Return the number that everything of an instance carries in the kernel."""
    if not instance:
        return _MARK_OF_DEFAULT_ROOT
    if _ROOT.fullmatch(instance):
        return _MARK_OF_ROOT | int(instance, 16)
    digest = hashlib.blake2s(instance.encode(), digest_size=3).digest()
    return _MARK_OF_WORD | int.from_bytes(digest)


def rule_mark(instance: str) -> int:
    """Return the number that rules of an instance carry.

    A rule has no field for it, so it is in one that does nothing: suppress_ifgroup, "not
    by a link of this group". No link has this group, for links have the mark itself.
    """
    return mark(instance) ^ 1 << 31


def table(instance: str, link: str, gateway: str) -> int:
    """Return the number of the routing table of what leaves by a router on a link.

    30 bits of hash: nobody else's table has it, nor does another of ours.
    """
    said = f"{instance}:{link}:{gateway}".encode()
    digest = hashlib.blake2s(said, digest_size=4).digest()
    return int.from_bytes(digest) & 0x3FFFFFFF | 0x40000000


def is_mark(number: int) -> bool:
    """Return whether a number is the mark of any instance, this one or another."""
    return number >> 24 in {0x56, 0x57, 0x58}


ALL_MARKS = (0x56 << 24, 0x58FFFFFF)
"""The first and the last number that can be a mark."""


def namespace(instance: str, host: str) -> str:
    """Return the name of a virtual host's namespace, in /run/netns."""
    name = f"vns{instance}-{host}"
    if len(name) <= _FILE_LIMIT:
        return name
    # No host's name has an underscore, so a shortened name is no other's full one.
    digest = _letters(host, 26)
    return f"{name[: _FILE_LIMIT - 1 - len(digest)]}_{digest}"


def is_namespace(instance: str, name: str) -> bool:
    """Return whether a namespace of ours could have this name."""
    prefix = f"vns{instance}-"
    return name.startswith(prefix) and "." in name[len(prefix) :]


def link(instance: str, host: str) -> str:
    """Return the name of the machine's end of a virtual host's veth pair.

    Two hosts in a thousand million share one (30 bits of hash); plan.py refuses the
    second. The hyphen is no hexadecimal digit, so instances cannot meet.
    """
    prefix = f"vns{instance or '-'}"
    return prefix + _letters(host, LINK_LIMIT - len(prefix))


def vlan(instance: str, link: str, tag: int) -> str:
    """Return the name of our link for a tag on a link of the machine.

    The dot tells it from the link of a host.
    """
    prefix = f"vns{instance or '-'}."
    return prefix + _letters(f"{link}.{tag}", LINK_LIMIT - len(prefix))


def remark(instance: str, host: str) -> str:
    """Return what ``ip link`` shows people of a link of ours."""
    return f"vnsmail:{instance}:{host}"[: _REMARK_LIMIT - len(ARRIVING)]


ARRIVING = " (arriving)"
"""Ends the remark of a port that is kept from its siblings for a moment (apply.py)."""


def port_address(bridge: str) -> str:
    """Return the hardware address of our ports of a bridge.

    A bridge takes the lowest hardware address among its ports, and neighbours lose it
    for a while whenever that changes. So ours are high (fe:…), and all of one bridge
    have the same, which the kernel allows: coming and going they change nothing. Nobody
    sends to them.
    """
    digest = hashlib.blake2s(bridge.encode(), digest_size=4).digest()
    return "fe:76:" + digest.hex(":")


def _letters(text: str, count: int) -> str:
    digest = hashlib.blake2s(text.encode()).digest()
    return base64.b32encode(digest).decode().lower()[:count]
