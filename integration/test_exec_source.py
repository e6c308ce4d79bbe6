"""Unmodified programs run as a virtual host: who the others say they are."""

import shutil
import subprocess
import sys

import pytest

from integration.exec_programs import (
    command,
    instance,
    observer,
    opened,
    opened_since,
    python,
)
from vnsmail.net import names
from vnsmail.net.guard_rules import socket_mark

HOSTS = {
    "alpha.example": ("10.77.0.11", "fd77::11"),  # a namespace
    "delta.example": ("10.77.0.14", "fd77::14"),  # an alias
}
SERVERS = {4: "10.77.0.3", 6: "fd77::3"}

BASH = r"""
exec 3<>"/dev/tcp/$1/25"
say() { printf '%s\r\n' "$1" >&3; }
answer() { read -r line <&3; while [ "${line:3:1}" = - ]; do read -r line <&3; done; }
answer; say "EHLO $2"; answer; say "MAIL FROM:<user@$2>"; answer
say "RCPT TO:<ann@north.example>"; answer; say DATA; answer
say "Subject: $3"; say ""; say .; answer; say QUIT; answer
"""
SMTPLIB = """
import smtplib, sys
with smtplib.SMTP(sys.argv[1]) as client:
    text = f"Subject: {sys.argv[3]}\\r\\n\\r\\n"
    client.sendmail(f"user@{sys.argv[2]}", ["ann@north.example"], text)
"""


def curl(server, host, subject):
    at = f"[{server}]" if ":" in server else server
    mail = f"printf 'Subject: %s\\r\\n\\r\\n' {subject}"
    return [
        *("sh", "-c", f'{mail} | curl -sS -T - "$@"', "sh", f"smtp://{at}"),
        *("--mail-from", f"user@{host}", "--mail-rcpt", "ann@north.example"),
    ]


def swaks(server, host, subject):
    return [
        *("swaks", "--server", server, "--from", f"user@{host}", "--hide-all"),
        *("--to", "ann@north.example", "--header", f"Subject: {subject}"),
    ]


def bash(server, host, subject):
    return ["bash", "-c", BASH, "bash", server, host, subject]


def smtplib(server, host, subject):
    return [sys.executable, "-c", SMTPLIB, server, host, subject]


@pytest.fixture(scope="module")
def _observer(lab):
    with observer(lab):
        yield


def received(lab, subject):
    (mail,) = [
        m for m in lab.remote_mail("ann") if f"Subject: {subject}\r\n".encode() in m
    ]
    return mail.partition(b"Received: ")[2].partition(b"\tby ")[0].decode()


# Swaks speaks IPv6 only with a Perl module that Debian does not install with it.
CASES = [
    *((program, family) for program in (curl, bash, smtplib) for family in (4, 6)),
    (swaks, 4),
]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(("program", "family"), CASES)
def test_mail_leaves_from_the_host(lab, host, program, family):
    """The capture and the remote say the host's address, of the family spoken."""
    before = opened(lab)
    subject = f"{program.__name__}{family}{host}"
    done = lab.vnsmail("exec", host, "--", *program(SERVERS[family], host, subject))
    source = HOSTS[host][family == 6]
    shown = f"IPv6:{source}" if family == 6 else source

    assert "" == done.stderr
    assert f"({host} [{shown}])" in received(lab, subject)
    assert [(source, SERVERS[family])] == opened_since(lab, before)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("program", [curl, swaks, smtplib])
def test_by_name(lab, host, program):
    """The name server is asked over UDP, from the host too; its own name is in EHLO."""
    subject = f"name{program.__name__}{host}"
    lab.vnsmail("exec", host, "--", *program("mx1.north.example", host, subject))
    said = received(lab, subject)

    assert any(address in said for address in HOSTS[host])
    # curl says what stands before the first dot.
    assert said.startswith(f"from {host if program is not curl else host[:5]} ")


SOCKETS = """
import json, socket, struct, sys
own4, own6 = sys.argv[1:]
S4, S6 = ("10.77.0.3", 7777), ("fd77::3", 7777)
MAPPED = ("::ffff:10.77.0.3", 7777)
INET, INET6 = socket.AF_INET, socket.AF_INET6
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
found = {}

def case(name):
    def keep(function):
        try:
            found[name] = function().removeprefix("::ffff:")
        except OSError as error:
            found[name] = error.strerror
    return keep

def opened(family, kind):
    sock = socket.socket(family, kind)
    sock.settimeout(20)
    if family == INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return sock

def heard(sock):
    with sock:
        return sock.recv(100).decode()

def connected(sock, server):
    sock.connect(server)
    if sock.type == UDP:
        sock.send(b"?")
    return heard(sock)

def sent(sock, server, control=()):
    sock.sendmsg([b"?"], control, 0, server) if server else sock.sendmsg([b"?"], control)
    return heard(sock)

WAYS = {"4": (INET, S4), "6": (INET6, S6), "mapped": (INET6, MAPPED)}
# The machine's address, as a source that a program asks for.
PKTINFO4 = (socket.IPPROTO_IP, 8, struct.pack("=I4s4s", 0, bytes((10, 77, 0, 1)), bytes(4)))
PKTINFO6 = (socket.IPPROTO_IPV6, 50, socket.inet_pton(INET6, "fd77::1") + bytes(4))

for way, (family, server) in WAYS.items():
    any_address = "::" if family == INET6 else "0.0.0.0"
    own = own6 if way == "6" else own4
    info = PKTINFO6 if way == "6" else PKTINFO4

    case(f"tcp {way}")(lambda: connected(opened(family, TCP), server))
    case(f"udp connected {way}")(lambda: connected(opened(family, UDP), server))
    case(f"udp sent {way}")(lambda: sent(opened(family, UDP), server))
    case(f"udp sent with source {way}")(lambda: sent(opened(family, UDP), server, [info]))

    def and_source():
        sock = opened(family, UDP)
        sock.connect(server)
        return sent(sock, None, [info])
    case(f"udp connected with source {way}")(and_source)

    def again():
        sock = opened(family, UDP)
        sock.connect(server)
        # struct sockaddr of family AF_UNSPEC: only libc's connect(2) takes it.
        import ctypes
        assert ctypes.CDLL(None).connect(sock.fileno(), bytes(16), 16) == 0
        return connected(sock, server)
    case(f"udp connected again {way}")(again)

    def bound(kind, address, no_port):
        sock = opened(family, kind)
        if no_port:
            sock.setsockopt(socket.SOL_IP, 24, 1)
        sock.bind((address, 0))
        return connected(sock, server)
    mine = f"::ffff:{own}" if way == "mapped" else own
    for name, kind in (("tcp", TCP), ("udp", UDP)):
        for no_port in (False, True):
            case(f"{name} bound {no_port} {way}")(lambda: bound(kind, mine, no_port))
        if way != "mapped":
            case(f"{name} bound to any {way}")(lambda: bound(kind, any_address, False))
    if way != "mapped":
        sock = opened(family, UDP)
        sock.bind((any_address, 0))
        case(f"udp bound to any, sent {way}")(lambda: sent(sock, server))

print(json.dumps(found))
"""


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.usefixtures("_observer")
def test_every_way_to_send(lab, host):
    """TCP and UDP, connected or not, bound or not: what the remote saw as source.

    In a namespace a program that asks for the machine's address as source of one
    datagram is refused by the kernel; as an alias it gets its own.
    """
    found = python(lab, host, SOCKETS, *HOSTS[host])
    expected = dict.fromkeys(found, HOSTS[host][0])
    expected |= {name: HOSTS[host][1] for name in found if name.endswith(" 6")}
    asked = [name for name in found if "with source" in name]
    if host == "alpha.example":
        expected |= {name: found[name] for name in asked}
        assert {"Invalid argument", "Network is unreachable"} >= {
            found[name] for name in asked
        }

    assert expected == found
    assert 36 == len(found)


MARKED = """
import encodings.idna, json, os, socket
os.setuid(65534)  # after which there may be no way to Python's files
sock = socket.create_connection(("10.77.0.3", 25))
sock.recv(100)
listener = socket.create_server(("127.0.0.1", 0))
inside = socket.create_connection(listener.getsockname())
print(json.dumps([os.geteuid(), *(s.getsockopt(1, 12) for s in (sock, inside))]))
"""


def test_the_guard_knows_it(lab):
    """An account without privilege has the mark of the host; on the loopback nobody."""
    mark = socket_mark(instance(lab), "delta.example")

    assert [65534, mark, 0] == python(lab, "delta.example", MARKED)


def test_what_it_sees(lab):
    """Its own name, hosts file and name server; in a namespace its own links too."""
    look = "hostname; cat /etc/hosts /etc/resolv.conf; ls /sys/class/net; pwd"
    for host, (address4, address6) in HOSTS.items():
        done = subprocess.run(
            [*command(lab), "exec", host, "--", "sh", "-c", look],
            capture_output=True,
            text=True,
            check=True,
            cwd="/usr",
        )
        lines = done.stdout.splitlines()
        short = host.partition(".")[0]

        assert [
            host,
            "127.0.0.1 localhost",
            "::1 localhost ip6-localhost ip6-loopback",
            f"{address4} {host} {short}",
            f"{address6} {host} {short}",
            "nameserver 10.77.0.2",
        ] == lines[:6]
        assert "/usr" == lines[-1]
        assert host == "delta.example" or ["eth0", "lo"] == lines[6:-1]


def test_files_of_the_administrator(lab, tmp_path):
    """As with ip-netns(8): what lies in /etc/netns/NAMESPACE stands in for /etc."""
    etc = tmp_path / "etc"
    shutil.copytree("/etc", etc, symlinks=True, ignore_dangling_symlinks=True)
    folder = etc / "netns" / names.namespace(instance(lab), "alpha.example")
    folder.mkdir(parents=True)
    (folder / "hosts").write_text("192.0.2.1 mine\n")
    look = f'mount --bind {etc} /etc; "$@" sh -c "cat /etc/hosts /etc/resolv.conf"'
    words = ["unshare", "--mount", "sh", "-c", look, "sh", *command(lab)]
    done = lab.inside("machine", *words, "exec", "alpha.example", "--")

    assert "192.0.2.1 mine\nnameserver 10.77.0.2\n" == done.stdout
