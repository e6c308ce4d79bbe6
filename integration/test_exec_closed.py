"""A program that cannot be held to its host's address sends nothing, or is not run."""

import contextlib
import errno
import ipaddress
import json
import os
import subprocess
import sys

import pytest

from integration.exec_programs import (
    Program,
    cgroups_of,
    command,
    instance,
    opened,
    opened_since,
    python,
)
from integration.labs import Lab
from integration.test_lab_life import AS_USER
from vnsmail.net import cgroups, connect_hook, hook_programs, names

pytestmark = pytest.mark.usefixtures("unmended_lab")

CASES = {
    "gamma.example": ("gamma.example", "eth0", ("10.77.0.13/24", "fd77::13/64")),
    "epsilon.example": ("machine", "lan0", ("10.77.0.15/32", "fd77::15/128")),
}

TRY_ALL = """
import json, socket, sys
print("ready", flush=True)
input()
found = []
def attempt(family, kind, server, send):
    try:
        with socket.socket(family, kind) as sock:
            sock.settimeout(20)
            sock.sendto(b"?", server) if send else sock.connect(server)
            found.append(sock.getsockname()[0])
    except OSError as error:
        found.append(error.errno)
for family, server in (2, ("10.77.0.3", 25)), (10, ("fd77::3", 25)):
    attempt(family, socket.SOCK_STREAM, server, False)
    attempt(family, socket.SOCK_DGRAM, server, False)
    attempt(family, socket.SOCK_DGRAM, server, True)
attempt(10, socket.SOCK_STREAM, ("::ffff:10.77.0.3", 25), False)
print(json.dumps(found))
"""


@contextlib.contextmanager
def without(lab, host):
    """Take the addresses of a host away."""
    node, link, addresses = CASES[host]
    for address in addresses:
        lab.inside(node, "ip", "addr", "del", address, "dev", link)
    try:
        yield
    finally:
        for address in addresses:
            nodad = ["nodad"] if ":" in address else []
            lab.inside(node, "ip", "addr", "add", address, "dev", link, *nodad)


def tried(lab, host):
    """Return what became of each way to send, and the connections that were seen."""
    before = opened(lab)
    with Program(lab, host, sys.executable, "-c", TRY_ALL) as program:
        assert "ready" == program.line()
        with without(lab, host):
            found = json.loads(program.go_on())
            return found, opened_since(lab, before)


def test_an_alias_goes_while_a_program_runs(lab):
    """Connecting fails here, over TCP and UDP, and nobody sees a packet of it.

    An IPv6 datagram sent without connecting leaves, from the host's own address all the
    same: there the kernel does not look whether it has the address.
    """
    found, seen = tried(lab, "epsilon.example")

    assert [] == seen
    assert [errno.EPERM] * 2 == found[:2]
    assert found[2] in {errno.EINVAL, errno.ENETUNREACH}
    assert [errno.EPERM] * 2 == found[3:5]
    assert errno.EPERM == found[6]


def test_the_address_in_a_namespace_goes_while_a_program_runs(lab):
    """There is no other but the link-local one that the kernel makes for the link."""
    found, seen = tried(lab, "gamma.example")
    sources = {ipaddress.ip_address(source) for source, _ in seen}

    assert [errno.ENETUNREACH] * 3 == found[:3]
    assert errno.ENETUNREACH == found[6]
    assert all(source.is_link_local for source in sources)


@pytest.mark.parametrize("host", CASES)
def test_the_address_is_not_there(lab, host, tmp_path):
    """It is said at once, and the program is not started."""
    mark = tmp_path / "started"
    with without(lab, host):
        done = lab.vnsmail("exec", host, "touch", str(mark), check=False)
    address = CASES[host][2][0].partition("/")[0]

    assert (1, "") == (done.returncode, done.stdout)
    assert (
        f"vnsmail: cannot send as {host}: {address} is not usable here "
        f"(Cannot assign requested address); see `vnsmail host show {host}`\n"
    ) == done.stderr
    assert not mark.exists()


def test_no_namespace(lab):
    """Without its namespace a host has no place to be."""
    namespace = names.namespace(instance(lab), "beta.example")
    lab.inside("machine", "ip", "netns", "del", namespace)
    done = lab.vnsmail("exec", "beta.example", "true", check=False)

    assert 1 == done.returncode
    assert f"its network namespace {namespace} does not exist" in done.stderr


def test_another_namespace_of_that_name(lab):
    """One that somebody else made is not entered."""
    namespace = names.namespace(instance(lab), "beta.example")
    lab.inside("machine", "ip", "netns", "del", namespace, check=False)
    lab.inside("machine", "ip", "netns", "add", namespace)
    done = lab.vnsmail("exec", "beta.example", "true", check=False)

    assert 1 == done.returncode
    assert f"{namespace} is not the one that was made for it" in done.stderr


BINDS = """
import json, socket
found = {}
def attempt(kind, family, address):
    try:
        with socket.socket(family, kind) as sock:
            if family == 10:
                sock.setsockopt(41, 26, 0)
            sock.bind((address, 0))
            return sock.getsockname()[0]
    except OSError as error:
        return error.strerror
for address in ("10.77.0.1", "10.77.0.15", "224.0.0.1", "0.0.0.0", "127.0.0.5",
                "10.77.0.14", "fd77::1", "::", "::1", "fd77::14", "ff02::1",
                "::ffff:10.77.0.1", "::ffff:0.0.0.0", "::ffff:127.0.0.5"):
    family = 10 if ":" in address else 2
    tcp = attempt(socket.SOCK_STREAM, family, address)
    udp = attempt(socket.SOCK_DGRAM, family, address)
    found[address] = tcp if tcp == udp else [tcp, udp]
for name, kind in {"raw": (2, 3, 255), "raw6": (10, 3, 58)}.items():
    try:
        socket.socket(*kind).close()
        found[name] = "made"
    except OSError as error:
        found[name] = error.strerror
sock = socket.socket(2, socket.SOCK_DGRAM)
sock.sendto(b"?", ("10.77.0.3", 9))
try:
    sock.connect(("10.77.0.3", 9))
    found["late connect"] = sock.getsockname()[0]
except OSError as error:
    found["late connect"] = error.strerror
listener = socket.create_server(("127.0.0.1", 0))
found["loopback"] = socket.create_connection(listener.getsockname()).getsockname()[0]
print(json.dumps(found))
"""


def test_other_addresses(lab):
    """Bind: the host's and loopback, no other; sockets that nothing steers: none."""
    no = "Operation not permitted"

    assert {
        "10.77.0.1": no,
        "10.77.0.15": no,
        "224.0.0.1": no,
        "0.0.0.0": "10.77.0.14",
        "127.0.0.5": "127.0.0.5",
        "10.77.0.14": "10.77.0.14",
        "fd77::1": no,
        "::": "fd77::14",
        "::1": "::1",
        "fd77::14": "fd77::14",
        "ff02::1": no,
        "::ffff:10.77.0.1": no,
        "::ffff:0.0.0.0": "::ffff:10.77.0.14",
        "::ffff:127.0.0.5": "::ffff:127.0.0.5",
        "raw": no,
        "raw6": no,
        "late connect": no,
        "loopback": "127.0.0.1",
    } == python(lab, "delta.example", BINDS)


def test_no_cgroup_v2(lab, tmp_path):
    """Where it is not mounted there is no hook, and the program is not started."""
    mark = tmp_path / "started"
    hide = 'umount -R /sys/fs/cgroup; "$@"'
    words = ["unshare", "--mount", "sh", "-c", hide, "sh", *command(lab)]
    done = lab.inside(
        *("machine", *words, "exec", "delta.example", "touch", str(mark)), check=False
    )

    assert (1, "") == (done.returncode, done.stdout)
    assert (
        "vnsmail: cannot run programs as delta.example: cgroup v2 is not mounted here; "
        "mount -t cgroup2 none /sys/fs/cgroup/unified\n"
    ) == done.stderr
    assert not mark.exists()


def test_a_hook_that_cannot_be_attached(lab, tmp_path):
    """Somebody's program above in the hierarchy admits no other: nothing is started."""
    mark = tmp_path / "started"
    with cgroups.made(instance(lab), "delta.example") as cgroup:
        above = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=cgroup.fd)
        hooks = hook_programs.hooks([ipaddress.ip_address("192.0.2.1")], 1)
        (connect4,) = [hook for hook in hooks if hook.name == "connect4"]
        connect_hook.attach("somebody", above, [connect4])
        os.mkdir("kept", dir_fd=above)
        # It takes the lock that we hold: it is not a moment too early.
        started = subprocess.Popen(
            [*command(lab), "exec", "delta.example", "touch", str(mark)],
            stderr=subprocess.PIPE,
            text=True,
        )
    _, said = started.communicate(timeout=60)
    os.rmdir("kept", dir_fd=above)
    os.close(above)
    assert cgroups.remove(instance(lab), "delta.example")

    assert (4, False) == (started.returncode, mark.exists())
    assert said.startswith(
        "vnsmail: cannot steer the programs of delta.example without privilege: "
    )
    assert 1 == said.count("\n")


def test_without_privilege(lab, tmp_path):
    """Less than root is told so."""
    mark = tmp_path / "started"
    less = ["setpriv", "--bounding-set=-sys_admin", "--"]
    done = lab.inside(
        *("machine", *less, *command(lab), "exec", "delta.example"),
        *("touch", str(mark)),
        check=False,
    )

    assert (4, False) == (done.returncode, mark.exists())
    assert (
        "vnsmail: cannot run a program as delta.example without privilege: "
        "run it as root\n"
    ) == done.stderr


def test_in_a_user_namespace(tmp_path):
    """There a host in a namespace can be had, and an alias is told why it cannot."""
    lab = Lab(tmp_path / "root", hosts=5, prefix=AS_USER)
    ours = ["nsenter", "--target", str(lab.pid), "--user", "--preserve-credentials"]
    ours += ["--net", "--mount", "--pid", "--", *command(lab), "exec"]
    try:
        apart, alias = (
            subprocess.run(
                [*ours, host, "hostname"], capture_output=True, text=True, check=False
            )
            for host in ("alpha.example", "delta.example")
        )
    finally:
        lab.stop()

    assert ("alpha.example\n", "") == (apart.stdout, apart.stderr)
    assert (4, "") == (alias.returncode, alias.stdout)
    assert (
        "vnsmail: cannot steer the programs of delta.example without privilege: bpf(2) "
        "takes root of the machine itself, not of a user namespace, and no program of "
        "others in a cgroup above\n"
    ) == alias.stderr
    assert [] == cgroups_of(lab)
