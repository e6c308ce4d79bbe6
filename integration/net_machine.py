"""A machine of a test's own: network and mount namespaces that die with the test.

A test marked ``@alone()`` runs in a process of its own, inside fresh namespaces, where
/run is an empty tmpfs. Nothing of the real machine is in reach, several tests can run
side by side, and killing the test run leaves nothing.

    far  198.51.100.1  2001:db8:ff::1      neighbour  10.77.0.2  fd77::2
         192.0.2.1     2001:db8::1              │
              │                                 │
            wire0  192.0.2.2  2001:db8::2     br0  10.77.0.1  fd77::1
              └────────────── the machine ──────┘
"""

import ctypes
import functools
import json
import os
import signal
import socket
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

from vnsmail.model import Context, HostName, SourceAddress, Uplink, VirtualHost
from vnsmail.net import names, namespaces
from vnsmail.net.apply import apply
from vnsmail.net.choose import choose_gateways, choose_link
from vnsmail.net.facts import Desired
from vnsmail.net.observe import observe
from vnsmail.net.plan import plan

ROOT = Path(__file__).parents[1]
INSTANCE = "1a2b3c"

_INSIDE = "VNSMAIL_TEST_ALONE"


def alone(*, root=True):
    """Run the test in namespaces of its own, as root or as an ordinary user."""

    def decorate(test):
        @functools.wraps(test)
        def run(*args, **kwargs):
            if os.environ.get(_INSIDE):
                test(*args, **kwargs)
                return
            node = os.environ["PYTEST_CURRENT_TEST"].rsplit(" ", 1)[0]
            python = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
            done = subprocess.run(
                [*_unshare(root=root), *python, "-n0", "--noconftest", node],
                cwd=ROOT,
                env={**os.environ, _INSIDE: "1", "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                text=True,
                check=False,
                preexec_fn=_die_with_parent,
            )
            assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
            assert "1 passed" in done.stdout

        return run

    return decorate


def _unshare(*, root):
    # With process 1 of a process namespace, everything else in it ends.
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
    if root:
        return [*command, "--mount-proc"]
    # A user with no capability, whose files are readable all the same.
    become = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]
    return [*become, *command, "--user", "--map-root-user", "--mount-proc"]


def _die_with_parent():
    # Not SIGTERM, which unshare(1) ignores while it waits for its child.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def ip(words):
    """Run ip(8); returns what it prints as JSON, if anything."""
    done = subprocess.run(
        ["ip", "-j", *words.split()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (words, done.stderr)
    return json.loads(done.stdout) if done.stdout.strip() else []


def inside(namespace, words):
    """Run ip(8) in a namespace."""
    return ip(f"-n {namespace} {words}")


def build():
    """Make the machine of the picture above."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    ip("link set lo up")
    for name in ("far", "neighbour"):
        ip(f"netns add {name}")
        inside(name, "link set lo up")
    ip("link add br0 address 02:00:00:00:00:01 type bridge")
    _cable("port0", "neighbour", "10.77.0.2/24", "fd77::2/64")
    ip("link set port0 master br0")
    _cable("wire0", "far", "192.0.2.1/24", "2001:db8::1/64")
    inside("far", "addr add 198.51.100.1/32 dev lo")
    inside("far", "addr add 2001:db8:ff::1/128 dev lo")
    for link, *addresses in (
        ("br0", "10.77.0.1/24", "fd77::1/64"),
        ("wire0", "192.0.2.2/24", "2001:db8::2/64"),
    ):
        for address in addresses:
            ip(f"addr add {address} dev {link}{_nodad(address)}")
        ip(f"link set {link} up")
    ip("link set port0 up")
    ip("route add default via 192.0.2.1")
    ip("-6 route add default via 2001:db8::1")


def _cable(link, namespace, *addresses):
    ip(f"link add {link} type veth peer name eth0 netns {namespace}")
    for address in addresses:
        inside(namespace, f"addr add {address} dev eth0{_nodad(address)}")
    inside(namespace, "link set eth0 up")


def _nodad(address):
    return " nodad" if ":" in address else ""


def host(name, *addresses, context="namespace", link=None, uplink=None, gateways=()):
    """Return a virtual host with link and gateways as the product chooses them."""
    parsed = tuple(SourceAddress.parse(text) for text in addresses)
    where, actual = Context(context), observe(INSTANCE)
    wanted = None if uplink is None else Uplink(uplink)
    chosen, uplink = choose_link(parsed, actual, where, link, wanted)
    inside = where is Context.NAMESPACE and uplink is not Uplink.ROUTED
    gateways = tuple(map(ip_address, gateways))
    if inside and not gateways:
        gateways = choose_gateways(parsed, actual, chosen)
    return VirtualHost(
        HostName(name), where, parsed, (HostName(name),), chosen, uplink, gateways
    )


def steps_to(*hosts):
    """Return the plan from what is there to exactly these hosts."""
    return plan(Desired(hosts), observe(INSTANCE), INSTANCE)


def make(*hosts):
    """Bring the network to exactly these hosts; returns what was done."""
    steps = steps_to(*hosts)
    apply(steps, INSTANCE)
    return [step.describe() for step in steps]


def namespace(name="alpha.example"):
    return names.namespace(INSTANCE, name)


def port(name="alpha.example"):
    return names.link(INSTANCE, name)


def seen_address(target, source="", where=""):
    """Connect to a neighbour; returns the address that it sees.

    Args:
        target: an address of far or of the neighbour.
        source: what the socket is bound to; empty leaves the choice to the kernel.
        where: the namespace to connect from; empty for the machine.
    """
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    peer = "neighbour" if target in {"10.77.0.2", "fd77::2"} else "far"

    def listen():
        sock = socket.create_server((target, 0), family=family)
        sock.settimeout(20)
        return sock

    def connect(port):
        sock = socket.socket(family)
        sock.settimeout(20)
        if source:
            sock.bind((source, 0))
        sock.connect((target, port))
        return sock

    with namespaces.inside(peer, listen) as listener:
        call = functools.partial(connect, listener.getsockname()[1])
        with namespaces.inside(where, call) if where else call():
            connection, seen = listener.accept()
            connection.close()
    return seen[0]


def snapshot():
    """Return everything the outside can see: links, addresses, routes, names, mounts.

    What changes by itself is left out: lifetimes, states of IPv6 addresses that are
    being checked, routes the kernel learns in passing.
    """
    everywhere = ["", *sorted(each["name"] for each in ip("netns list"))]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return {
        "networks": {name: _network(name) for name in everywhere},
        "files": sorted(os.listdir("/run/netns")),
        "mounts": sorted(line.split()[4] for line in mounts),
    }


def _network(name):
    where = f"-n {name} " if name else ""
    links = []
    for link in ip(f"{where}-d addr show"):
        kind = link.get("linkinfo", {})
        links.append(
            {
                **{
                    key: link.get(key)
                    for key in ("ifname", "mtu", "master", "group", "ifalias", "link")
                },
                "kind": kind.get("info_kind"),
                "up": "UP" in link["flags"],
                "addresses": sorted(
                    (a["local"], a["prefixlen"], a["scope"], bool(a.get("deprecated")))
                    for a in link["addr_info"]
                    if not a["local"].startswith("fe80:")
                ),
            }
        )
    routes = [
        (r["dst"], r.get("gateway"), r.get("dev"), r.get("metric"))
        for family in ("-4", "-6")
        for r in ip(f"{where}{family} route show table all")
        if r.get("type") != "multicast" and not r["dst"].startswith(("fe80", "ff00"))
    ]
    return {
        "links": sorted(links, key=lambda link: link["ifname"]),
        "routes": sorted(map(str, routes)),
    }
