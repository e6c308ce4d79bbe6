"""Making, looking at and removing the network of many virtual hosts.

Usage: unshare --net --mount --pid --fork --mount-proc \
           .venv/bin/python scripts/bench_network.py [--hosts 1 100 1000]

Run without unshare(1) it puts itself into namespaces of its own, as root. The same
links, addresses and routes are made with ``ip -batch`` in the same run: one batch for
the machine and one in each namespace, which is the fastest that ip(8) can do.
"""

import argparse
import ctypes
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_network

from rich.console import Console
from rich.progress import Progress

from vnsmail.model import Context, HostName, SourceAddress, Uplink, VirtualHost
from vnsmail.net import names
from vnsmail.net.apply import apply
from vnsmail.net.facts import Desired
from vnsmail.net.observe import observe
from vnsmail.net.plan import plan

INSTANCE = "be7c40"
IPV4, IPV6 = ip_network("10.64.0.0/16"), ip_network("fd64::/64")
GATEWAYS = (ip_address("10.64.0.1"), ip_address("fd64::1"))
MOST_ON_A_BRIDGE = 1000
"""A bridge of Linux has 1023 ports at most."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-ip", action="store_true", help="leave ip(8) out")
    arguments = parser.parse_args()
    if max(arguments.hosts) > MOST_ON_A_BRIDGE:
        parser.error(f"a bridge has room for {MOST_ON_A_BRIDGE}")
    _be_alone()
    found = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=2 * len(arguments.hosts))
        for count in arguments.hosts:
            for context in Context:
                progress.update(task, description=f"{count} in {context}")
                found.append(measure(count, context, with_ip=not arguments.no_ip))
                progress.advance(task)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for row in found:
        print("  ".join(f"{key} {_shown(value)}" for key, value in row.items()))
    print("load of the machine:", *(f"{x:.1f}" for x in os.getloadavg()))


def measure(count: int, context: Context, *, with_ip: bool) -> dict[str, object]:
    """Return the seconds of each stage for so many hosts."""
    desired = Desired(tuple(_host(number, context) for number in range(count)))
    before = _resident()
    seconds: dict[str, float] = {}
    _timed(seconds, "make", lambda: _converge(desired))
    _timed(seconds, "again", lambda: _nothing(desired))
    _timed(seconds, "one", lambda: _one(desired))
    memory = (_resident() - before) / count
    _timed(seconds, "destroy", lambda: _converge(Desired(())))
    if with_ip:
        _wait_until_clean()
        _timed(seconds, "ip_make", lambda: _with_ip(desired))
        _timed(seconds, "ip_destroy", lambda: _without_ip(desired))
        _wait_until_clean()
    return {
        "hosts": count,
        "context": context.value,
        **seconds,
        "ms_each": seconds["make"] / count * 1000,
        **(_ratios(seconds) if with_ip else {}),
        "bytes_each": memory,
    }


def _ratios(seconds: dict[str, float]) -> dict[str, float]:
    return {
        "times_ip": seconds["ip_make"] / seconds["make"],
        "times_ip_cpu": seconds["ip_make_cpu"] / seconds["make_cpu"],
    }


def _timed(found: dict[str, float], key: str, function: Callable[[], int]) -> int:
    begin, busy = time.perf_counter(), _busy()
    count = function()
    found[key] = time.perf_counter() - begin
    found[f"{key}_cpu"] = _busy() - busy
    return count


def _busy() -> float:
    """Return the seconds of processor time used, which a loaded machine lengthens less."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    used = [resource.getrusage(each) for each in who]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _converge(desired: Desired) -> int:
    steps = plan(desired, observe(INSTANCE), INSTANCE)
    apply(steps, INSTANCE)
    return len(steps)


def _nothing(desired: Desired) -> int:
    steps = plan(desired, observe(INSTANCE), INSTANCE)
    if steps:
        sys.exit(f"not as planned: {steps[0].describe()}")
    return 0


def _one(desired: Desired) -> int:
    """Look at what concerns one host, as its making and its end do."""
    only = desired.hosts[0].name
    steps = plan(desired, observe(INSTANCE, only), INSTANCE, only)
    if steps:
        sys.exit(f"not as planned: {steps[0].describe()}")
    return 0


def _host(number: int, context: Context) -> VirtualHost:
    inside = context is Context.NAMESPACE
    name = HostName(f"host{number}.example")
    return VirtualHost(
        name=name,
        context=context,
        addresses=tuple(
            SourceAddress(network[number + 256], network.prefixlen)
            for network in (IPV4, IPV6)
        ),
        domains=(name,),
        link="br0",
        uplink=Uplink.BRIDGE if inside else None,
        gateways=GATEWAYS if inside else (),
    )


# The same with ip(8) ---------------------------------------------------------------


def _with_ip(desired: Desired) -> int:
    if desired.hosts[0].context is Context.ALIAS:
        _batch(_alias_lines(desired.hosts))
        return 0
    outer = []
    for host in desired.hosts:
        space, port = _names(host)
        outer += [
            f"netns add {space}",
            f"link add {port} type veth peer name eth0 netns {space}",
            f"link set {port} master br0 group 77 alias {space} addrgenmode none up",
        ]
    _batch(outer)
    for host in desired.hosts:
        lines = ["link set lo up group 77"]
        for address in host.addresses:
            nodad = " nodad" if address.family == 6 else ""
            lines.append(f"addr add {address} dev eth0{nodad}")
        lines.append("link set eth0 up")
        lines += [f"route add default via {gateway}" for gateway in host.gateways]
        _batch(lines, "-n", _names(host)[0])
    return 0


def _alias_lines(hosts: Sequence[VirtualHost]) -> list[str]:
    return [
        f"addr add {each.address}/{each.address.max_prefixlen} dev br0"
        + (" scope host" if each.family == 4 else " nodad preferred_lft 0")
        for host in hosts
        for each in host.addresses
    ]


def _without_ip(desired: Desired) -> int:
    if desired.hosts[0].context is Context.ALIAS:
        lines = _alias_lines(desired.hosts)
        _batch([" ".join(["addr del", *line.split()[2:5]]) for line in lines])
        return 0
    # All ports go in one message; ip(8) has that for a group of links.
    _run("ip link del group 77")
    _batch([f"netns del {_names(host)[0]}" for host in desired.hosts])
    return 0


def _names(host: VirtualHost) -> tuple[str, str]:
    return names.namespace(INSTANCE, host.name), names.link(INSTANCE, host.name)


def _batch(lines: Sequence[str], *options: str) -> None:
    text = "\n".join(lines)
    command = ["ip", *options, "-batch", "-"]
    subprocess.run(command, input=text, text=True, check=True)  # noqa: S603


# The machine -----------------------------------------------------------------------


def _be_alone() -> None:
    """Leave the real machine's network; everything made dies with this process."""
    if os.getpid() != 1:
        alone = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child"]
        command = [*alone, "--mount-proc", sys.executable, *sys.argv]
        os.execvp(command[0], command)  # noqa: S606
    ctypes.CDLL(None).prctl(1, 9)
    for words in (
        "mount -t tmpfs tmpfs /run",
        "ip link set lo up",
        "ip link add br0 type bridge",
        f"ip addr add {GATEWAYS[0]}/16 dev br0",
        f"ip addr add {GATEWAYS[1]}/64 dev br0 nodad",
        "ip link set br0 up",
    ):
        _run(words)


def _run(words: str) -> None:
    subprocess.run(words.split(), check=True)  # noqa: S603  our own words


def _wait_until_clean() -> None:
    """Let the kernel finish what it does in the background, so that nobody pays twice."""
    for _ in range(50):
        time.sleep(0.1)
        if len(socket.if_nameindex()) <= 2:
            time.sleep(1)
            return


def _resident() -> int:
    pages = int(open("/proc/self/statm").read().split()[1])  # noqa: SIM115
    return pages * resource.getpagesize()


def _shown(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
