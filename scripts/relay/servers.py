"""The servers that are compared: how each is told to send a host's mail from its address.

Each takes mail at every host's address, port 25, keeps it on disk before it says 250,
and sends it from that address. What is not said here is as its authors have it; limits
on how many clients there may be are lifted for all.

They are Debian's packages, unpacked into a folder and neither installed nor configured
outside of it: this mount namespace has an /etc and a /var of its own.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from relay.far import host_of

PACKAGES = ("postfix", "exim4-daemon-light", "exim4-base", "opensmtpd")

ACCOUNTS = (
    "postfix", "postdrop", "Debian-exim", "opensmtpd", "opensmtpq", "vnsmail"
)  # fmt: skip
FIRST_ID = 64001

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


@dataclass(frozen=True)
class Load:
    """What a server is to carry."""

    hosts: int
    destinations: int
    many: bool
    """Several messages may take one session."""


@dataclass(frozen=True)
class Place:
    """Where a server runs."""

    folder: Path
    """Its own, on the disk that is measured."""
    packages: Path


@dataclass(frozen=True)
class Peer:
    """One way to run a server."""

    name: str
    messages: int
    """How many it carries in some four seconds on a small machine."""
    most_hosts: int = 1000
    sender: str = "ann@h{host}.example"
    recipient: str = "out@d{n}.example"
    addresses: bool = True
    """The addresses of the hosts are ours to add."""
    one: bool = True
    """It can be told to send one message a session."""


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "vnsmail",
            12_000,
            sender="ann@north.example",
            recipient="to{n}@h{host}.example",
            addresses=False,
        ),
        Peer("postfix", 2_400),
        Peer("postmulti", 2_400, most_hosts=20),
        Peer("exim", 800),
        Peer("opensmtpd", 1_600, one=False),
    )
}


def start(name: str, load: Load, place: Place) -> "subprocess.Popen[bytes]":
    """Start a server; it ends with SIGTERM."""
    return _STARTS[name](load, place)


def _run(
    command: list[str | Path], place: Place, **env: str
) -> "subprocess.Popen[bytes]":
    # What it forks and leaves comes back to the reaper, so that its CPU is counted.
    with (place.folder / "log").open("ab") as log:
        return subprocess.Popen(  # noqa: S603  what stands here
            [sys.executable, __file__, *map(str, command)],
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
        )


# vnsmail --------------------------------------------------------------------------------


def _vnsmail(load: Load, place: Place) -> "subprocess.Popen[bytes]":
    root = place.folder / "root"
    root.mkdir()
    settings = '[dns]\nservers = ["10.9.255.53"]\n'
    if not load.many:
        settings += "[delivery]\nmessages_per_connection = 1\n"
    (root / "vnsmail.toml").write_text(settings)
    program = [sys.executable, "-P", "-m", "vnsmail.cli.app", "--root", root]
    return _run([*program, "up"], place)


def hosts_file(load: Load) -> str:
    """Return the hosts of vnsmail, as `vnsmail apply` reads them."""
    return "".join(
        f'[host."h{n}.example"]\ncontext = "alias"\n'
        f'addresses = ["10.9.1.{n}/16"]\nusers = ["user"]\n'
        for n in range(1, load.hosts + 1)
    )


# Postfix --------------------------------------------------------------------------------

_MAIN_CF = """\
compatibility_level = 3.6
queue_directory = {folder}/spool
data_directory = {folder}/data
daemon_directory = {program}/usr/lib/postfix/sbin
command_directory = {program}/usr/sbin
mail_owner = postfix
setgid_group = postdrop
import_environment = MAIL_CONFIG TZ LANG=C LD_LIBRARY_PATH
maillog_file = {folder}/postfix.log
maillog_file_prefixes = {folder}
inet_protocols = ipv4
myhostname = relay.example
mydestination =
mynetworks = 10.9.0.0/16
alias_maps =
smtp_bind_address_enforce = yes
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
default_process_limit = 250
"""

_MASTER_CF = """\
{listen} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
rewrite unix - - n - - trivial-rewrite
anvil unix - - n - 1 anvil
qmgr unix n - n 300 1 qmgr
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
scache unix - - n - 1 scache
tlsmgr unix - - n 1000? 1 tlsmgr
proxymap unix - - n - - proxymap
error unix - - n - - error
retry unix - - n - - error
smtp unix - - n - - smtp
postlog unix-dgram n - n - 1 postlogd
"""

_SPOOL = (
    "active bounce corrupt defer deferred flush hold incoming maildrop pid private"
    " public saved trace"
)


def _postfix(load: Load, place: Place) -> "subprocess.Popen[bytes]":
    """One instance: a transport for each host, which its senders choose."""
    conf = _instance(load, place, place.folder, "smtp", "inet_interfaces = all\n")
    hosts = range(1, load.hosts + 1)
    (conf / "by_sender").write_text("".join(f"@h{n}.example host{n}:\n" for n in hosts))
    with (conf / "main.cf").open("a") as file:
        file.write(
            f"sender_dependent_default_transport_maps = texthash:{conf}/by_sender\n"
        )
    with (conf / "master.cf").open("a") as file:
        for n in hosts:
            file.write(
                f"host{n} unix - - n - - smtp\n -o smtp_bind_address=10.9.1.{n}\n"
            )
    return _run(_master(conf, place), place, **_postfix_env(conf, place))


def _postmulti(load: Load, place: Place) -> "subprocess.Popen[bytes]":
    """An instance for each host, as postmulti(1) makes them."""
    script = "trap 'kill $(jobs -p); wait; exit' TERM\n"
    for n in range(1, load.hosts + 1):
        folder = place.folder / f"i{n}"
        folder.mkdir()
        more = f"inet_interfaces = 10.9.1.{n}\nsmtp_bind_address = 10.9.1.{n}\n"
        conf = _instance(load, place, folder, f"10.9.1.{n}:smtp", more)
        words = " ".join(map(str, _master(conf, place)))
        script += f"MAIL_CONFIG={conf} {words} &\n"
    env = _postfix_env(place.folder, place)
    return _run(["bash", "-c", f"{script}wait"], place, **env)


def _instance(load: Load, place: Place, folder: Path, listen: str, more: str) -> Path:
    conf = folder / "conf"
    for name in ("conf", "spool", "data"):
        (folder / name).mkdir()
    shutil.chown(folder / "data", "postfix", "postfix")
    for name in _SPOOL.split():
        (folder / "spool" / name).mkdir(mode=0o700)
        if name != "pid":
            shutil.chown(folder / "spool" / name, "postfix", "postfix")
    text = _MAIN_CF.format(folder=folder, program=place.packages) + more
    if not load.many:
        text += "smtp_connection_cache_on_demand = no\n"
    (conf / "main.cf").write_text(text)
    (conf / "master.cf").write_text(_MASTER_CF.format(listen=listen))
    return conf


def _master(conf: Path, place: Place) -> list[str | Path]:
    return [place.packages / "usr/lib/postfix/sbin/master", "-d", "-c", conf]


def _postfix_env(conf: Path, place: Place) -> dict[str, str]:
    library = str(place.packages / "usr/lib/postfix")
    return {"MAIL_CONFIG": str(conf), "LD_LIBRARY_PATH": library}


# Exim -----------------------------------------------------------------------------------

_EXIM = """\
exim_path = {program}/usr/sbin/exim4
primary_hostname = relay.example
spool_directory = /var/spool/exim4
log_file_path = /var/log/exim4/%slog
disable_ipv6 = true
daemon_smtp_ports = 25
smtp_accept_max = 400
smtp_accept_queue_per_connection = 0
tls_advertise_hosts =
acl_smtp_rcpt = all
begin acl
all:
  accept
begin routers
out:
  driver = dnslookup
  transport = out
begin transports
out:
  driver = smtp
  interface = ${{lookup{{$sender_address_domain}}lsearch{{/etc/exim4/sources}}}}
{more}
begin retry
* * F,2h,1s
"""


def _exim(load: Load, place: Place) -> "subprocess.Popen[bytes]":
    for name in ("spool", "log"):
        folder = Path("/var", name, "exim4")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.chown(folder, "Debian-exim", "Debian-exim")
    conf = Path("/etc/exim4")
    conf.mkdir(exist_ok=True)
    more = "" if load.many else "  connection_max_messages = 1"
    text = _EXIM.format(program=place.packages, more=more)
    (conf / "exim4.conf").write_text(text)
    hosts = range(1, load.hosts + 1)
    (conf / "sources").write_text("".join(f"h{n}.example: 10.9.1.{n}\n" for n in hosts))
    return _run([place.packages / "usr/sbin/exim4", "-bdf", "-q30m"], place)


# OpenSMTPD ------------------------------------------------------------------------------


def _opensmtpd(load: Load, place: Place) -> "subprocess.Popen[bytes]":
    shutil.rmtree("/var/spool/smtpd", ignore_errors=True)
    Path("/var/spool/smtpd").mkdir(mode=0o711)
    Path("/var/lib/opensmtpd/empty").mkdir(parents=True, exist_ok=True)
    lines = ["listen on 0.0.0.0"]
    lines += (
        f'action "a{host}" relay src "10.9.1.{host}"'
        for host in range(1, load.hosts + 1)
    )
    for n in range(1, load.destinations + 1):
        host = host_of(n, load.hosts)
        lines.append(f'match from any for domain "d{n}.example" action "a{host}"')
    conf = place.folder / "smtpd.conf"
    conf.write_text("\n".join(lines) + "\n")
    conf.chmod(0o644)
    Path("/etc/mailname").write_text("relay.example\n")
    return _run([place.packages / "usr/sbin/smtpd", "-F", "-f", conf], place)


_STARTS = {
    "vnsmail": _vnsmail,
    "postfix": _postfix,
    "postmulti": _postmulti,
    "exim": _exim,
    "opensmtpd": _opensmtpd,
}


def _reap() -> int:
    """Run a command, and wait for whatever it leaves behind."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)
    process = subprocess.Popen(sys.argv[1:])  # noqa: S603  what was given
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    found = 0
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return found
        if pid == process.pid:
            found = os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(_reap())
