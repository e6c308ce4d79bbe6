"""Mail servers that others wrote, as remotes of a lab: Postfix, Exim, OpenSMTPD, Sendmail.

They are Debian's packages, fetched once into the user's cache, unpacked and never
installed. Each runs in a node of a lab, in mount and process namespaces of its own in
which it is as if installed: its files over /usr, an /etc with its configuration and its
accounts, spool and logs of its own.

    with mtas.running(lab) as remotes:
        lab.send("user@alpha.example", f"ann@{remotes['exim'].domain}")
        ...
        remotes["exim"].mails()

As a program it fetches (``python -m integration.mtas``, all of MTAS or those named), or
is the first process of such a namespace (``--be``, started by ``running``); then it ends,
with all it started, when its input does. Standard library only.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from integration.labs import Lab

PACKAGE = {
    "postfix": "postfix",
    "exim": "exim4-daemon-light",
    "opensmtpd": "opensmtpd",
    "sendmail": "sendmail-bin",
}
MTAS = tuple(PACKAGE)
FIRST = 150
"""Last part of the address of the first of them; the others follow."""
READY = 60.0
"""Seconds for one to listen, on a busy machine."""
ACCOUNTS = {
    "postfix": 64001,
    "postdrop": 64002,
    "Debian-exim": 64003,
    "opensmtpd": 64004,
    "opensmtpq": 64005,
    "smmta": 64006,
    "smmsp": 64007,
    "vmail": 64008,
}
NAMESERVER = "10.77.0.2"


# Fetching -----------------------------------------------------------------------------


def cache() -> Path:
    """Return where what was fetched lies."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "vnsmail-tests")


def unpacked(name: str) -> Path:
    """Return a folder that has /usr and /etc as a server's packages bring them.

    What is not there is fetched, by one process at a time. What its packages need and
    this machine lacks comes with them.
    """
    target = cache() / "mtas" / name
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return target
        half = target.with_suffix(".new")
        shutil.rmtree(half, ignore_errors=True)
        (half / "debs").mkdir(parents=True)
        _fetch(PACKAGE[name], half / "debs")
        for package in sorted((half / "debs").glob("*.deb")):
            subprocess.run(["dpkg", "-x", package, half / "files"], check=True)
        # /lib is a link to /usr/lib here, and their files are shown over /usr.
        for folder in ("lib", "bin", "sbin"):
            if (half / "files" / folder).is_dir():
                shutil.copytree(
                    half / "files" / folder,
                    half / "files" / "usr" / folder,
                    dirs_exist_ok=True,
                    symlinks=True,
                )
        (half / "files").rename(target)
        shutil.rmtree(half)
    return target


def _fetch(package: str, folder: Path) -> None:
    """Download a package and what it needs that is not installed."""
    words = ["apt-get", "install", "--simulate", "--no-install-recommends", package]
    problem = ""
    for attempt in range(2):
        if attempt:  # its lists are missing, or too old
            subprocess.run(["apt-get", "update", "-qq"], check=False)
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        problem = done.stderr
        if done.returncode:
            continue
        lines = [line.split() for line in done.stdout.splitlines()]
        wanted = [words[1] for words in lines if words[:1] == ["Inst"]]
        got = subprocess.run(
            ["apt-get", "download", "-q", *(wanted or [package])],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        problem = got.stderr
        if not got.returncode:
            return
    raise RuntimeError(f"cannot fetch {package}: {problem.strip()}")


def installed(names: Sequence[str]) -> tuple[str, ...]:
    """Return a command that runs another where these servers are as if installed."""
    lower = ":".join(str(unpacked(name) / "usr") for name in names)
    mounting = f"mount -t overlay -o lowerdir={lower}:/usr overlay /usr"
    return ("unshare", "--mount", "sh", "-ec", f'{mounting}; exec "$@"', "sh")


# From a test --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Mta:
    """A server that runs in a lab, and takes all mail for its domains."""

    name: str
    number: int
    folder: Path
    changes: tuple[tuple[str, str], ...] = ()
    """Words of its configuration, and what stands in their place."""

    @property
    def domain(self) -> str:
        """A domain whose server has an address of each family."""
        return f"{self.name}.example"

    def domain_of(self, version: int) -> str:
        """Return a domain whose server has an address of one family alone."""
        return f"v{version}.{self.name}.example"

    @property
    def addresses(self) -> tuple[str, str]:
        """Its IPv4 and its IPv6 address."""
        return f"10.77.0.{self.number}", f"fd77::{self.number}"

    def zone(self) -> str:
        """Return its records."""
        ipv4, ipv6 = self.addresses
        host = f"mx.{self.domain}"
        lines = [
            f"{self.domain} MX 10 {host}.",
            f"{host} A {ipv4}",
            f"{host} AAAA {ipv6}",
        ]
        for version, address in ((4, f"A {ipv4}"), (6, f"AAAA {ipv6}")):
            lines.append(f"{self.domain_of(version)} MX 10 mx{version}.{self.domain}.")
            lines.append(f"mx{version}.{self.domain} {address}")
        return "\n".join(lines) + "\n"

    def changed(self, text: str) -> str:
        """Return a configuration with its changes."""
        for old, new in self.changes:
            assert old in text, f"{old} is not in the configuration of {self.name}"
            text = text.replace(old, new)
        return text

    def mails(self) -> list[bytes]:
        """Return the messages it wrote to disk, each once it is whole."""
        files = sorted((self.folder / "mail" / "all" / "new").glob("*"))
        return [file.read_bytes() for file in files]

    def log(self) -> str:
        """Return what it logged."""
        files = sorted((self.folder / "log").rglob("*"))
        return "\n".join(f.read_text(errors="replace") for f in files if f.is_file())


@contextlib.contextmanager
def running(
    lab: "Lab",
    names: Sequence[str] = MTAS,
    *,
    node: str = "mx1.north.example",
    changes: Mapping[str, tuple[tuple[str, str], ...]] = MappingProxyType({}),
) -> Iterator[dict[str, Mta]]:
    """Run servers in a node of a lab, each at addresses of its own; they end with this.

    The lab's name server knows their domains while they run.
    """
    zone = lab.root / "lab.zone"
    before = zone.read_text() if zone.exists() else ""
    found = {
        name: Mta(
            name, FIRST + position, lab.root / "mtas" / name, changes.get(name, ())
        )
        for position, name in enumerate(names)
    }
    addresses = [
        f"ip addr add {address}/{length} dev eth0 {flag}"
        for mta in found.values()
        for address, length, flag in zip(
            mta.addresses, (24, 64), ("", "nodad"), strict=True
        )
    ]
    lab.inside(node, "sh", "-ec", "\n".join(addresses))
    with contextlib.ExitStack() as stack:
        processes = {}
        for name, mta in found.items():
            unpacked(name)
            mta.folder.mkdir(parents=True)
            facts = {
                "name": name,
                "number": mta.number,
                "folder": str(mta.folder),
                "changes": mta.changes,
            }
            processes[name] = lab.beside(
                node,
                *("unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child"),
                *("--mount-proc", sys.executable, "-P", __file__, "--be"),
                json.dumps(facts),
            )
            stack.callback(processes[name].communicate)
        for name, process in processes.items():
            assert process.stdout is not None
            said = process.stdout.readline()
            assert said == "ready\n", f"{name}: {said} {found[name].log()}"
        zone.write_text(before + "".join(mta.zone() for mta in found.values()))
        yield found
    zone.write_text(before)


# Inside -------------------------------------------------------------------------------


def mount(*words: object) -> None:
    """Run mount(8)."""
    subprocess.run(["mount", *map(str, words)], check=True)


def overlay(lower: Path | None, place: str, scratch: Path) -> None:
    """Show a folder's files over those of a place; what is written there goes nowhere."""
    upper, work = scratch / "upper", scratch / "work"
    for folder in (upper, work):
        folder.mkdir(parents=True)
    lowers = f"{lower}:{place}" if lower else place
    options = f"lowerdir={lowers},upperdir={upper},workdir={work}"
    mount("-t", "overlay", "-o", options, "overlay", place)


def be(mta: Mta) -> None:
    """Be the first process of a server's namespaces."""
    files = unpacked(mta.name)
    scratch = mta.folder / "scratch"
    scratch.mkdir()
    mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", scratch)
    overlay(files / "usr", "/usr", scratch / "usr")
    (files / "etc").mkdir(exist_ok=True)
    overlay(files / "etc", "/etc", scratch / "etc")
    for name, place in (("spool", "/var/spool"), ("log", "/var/log")):
        (mta.folder / name).mkdir()
        mount("--bind", mta.folder / name, place)
    mail = mta.folder / "mail"
    for part in ("tmp", "new", "cur"):
        (mail / "all" / part).mkdir(parents=True)
    for folder in (mail, mail / "all", *(mail / "all").iterdir()):
        os.chown(folder, ACCOUNTS["vmail"], ACCOUNTS["vmail"])
        folder.chmod(0o777)
    mount("--bind", mail, "/var/mail")
    overlay(None, "/dev", scratch / "dev")
    _keep_syslog(mta.folder / "log" / "syslog")
    for place in ("/var/lib", "/run"):
        mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", place)
    _accounts()
    Path("/etc/resolv.conf").unlink(missing_ok=True)
    Path("/etc/resolv.conf").write_text(f"nameserver {NAMESERVER}\n")
    # Sendmail waits for a minute if it cannot find out its own full name.
    socket.sethostname(f"mx.{mta.domain}")
    names = [f"{address} mx.{mta.domain} mx" for address in mta.addresses]
    hosts = "\n".join(["127.0.0.1 localhost", "::1 localhost", *names])
    Path("/etc/hosts").write_text(hosts + "\n")
    command = START[mta.name](mta)
    with (mta.folder / "log" / "output").open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    if _listens(mta, process):
        sys.stdout.write("ready\n")
    else:
        sys.stdout.write(f"it does not listen; status {process.poll()}\n")
    sys.stdout.flush()
    # What a daemon leaves behind is ours to wait for, as we are process 1 here.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sys.stdin.read()


def _accounts() -> None:
    passwd, group = Path("/etc/passwd"), Path("/etc/group")
    users = [passwd.read_text()]
    groups = [group.read_text()]
    for name, number in ACCOUNTS.items():
        home = "/var/lib/opensmtpd/empty" if name.startswith("opensmtp") else "/"
        users.append(f"{name}:x:{number}:{number}::{home}:/usr/sbin/nologin\n")
        groups.append(f"{name}:x:{number}:\n")
    # If a package is installed here, its own account is the one that counts elsewhere;
    # the first line of a name wins, so ours come first.
    for file, lines in ((passwd, users), (group, groups)):
        file.write_text("".join([*lines[1:], lines[0]]))


def _listens(mta: Mta, process: "subprocess.Popen[bytes]") -> bool:
    deadline = time.monotonic() + READY
    waiting = list(mta.addresses)
    while waiting and time.monotonic() < deadline and process.poll() is None:
        if _greets(waiting[0]):
            waiting.pop(0)
        else:
            time.sleep(0.05)
    return not waiting


def _greets(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family) as sock:
        sock.settimeout(10)
        sock.connect((address, 25))
        if sock.recv(512).startswith(b"220"):
            sock.sendall(b"QUIT\r\n")
            return bool(sock.recv(512))
    return False


def _keep_syslog(file: Path) -> None:
    """Write to a file what is told to /dev/log here."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind("/dev/log")
    Path("/dev/log").chmod(0o666)

    def keep() -> None:
        with file.open("ab", buffering=0) as log:
            while True:
                log.write(sock.recv(65536) + b"\n")

    threading.Thread(target=keep, daemon=True).start()


def domains(mta: Mta) -> list[str]:
    """Return the domains that a server takes mail for."""
    return [mta.domain, mta.domain_of(4), mta.domain_of(6)]


POSTFIX = """\
compatibility_level = 3.6
mail_owner = postfix
setgid_group = postdrop
maillog_file = /var/log/postfix.log
inet_interfaces = {ipv4}, {ipv6}
inet_protocols = all
myhostname = mx.{domain}
mydestination =
alias_maps =
virtual_mailbox_domains = {domains}
virtual_mailbox_base = /var/mail
virtual_mailbox_maps = static:all/
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{uid}
smtpd_relay_restrictions = reject_unauth_destination
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
message_size_limit = 52428800
virtual_mailbox_limit = 0
in_flow_delay = 0
"""
POSTFIX_SERVICES = """\
smtp inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
rewrite unix - - n - - trivial-rewrite
anvil unix - - n - 1 anvil
qmgr unix n - n 300 1 qmgr
proxymap unix - - n - - proxymap
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
error unix - - n - - error
retry unix - - n - - error
smtp unix - - n - - smtp
virtual unix - n n - - virtual
postlog unix-dgram n - n - 1 postlogd
"""
SPOOL = (
    "active bounce corrupt defer deferred flush hold incoming maildrop pid private"
    " public saved trace"
)


def postfix(mta: Mta) -> list[str]:
    """Configure Postfix; return the command that runs it."""
    ipv4, ipv6 = mta.addresses
    Path("/etc/postfix").mkdir(exist_ok=True)
    main = POSTFIX.format(
        ipv4=ipv4,
        ipv6=ipv6,
        domain=mta.domain,
        domains=" ".join(domains(mta)),
        uid=ACCOUNTS["vmail"],
    )
    Path("/etc/postfix/main.cf").write_text(mta.changed(main))
    Path("/etc/postfix/master.cf").write_text(POSTFIX_SERVICES)
    spool, owner = Path("/var/spool/postfix"), ACCOUNTS["postfix"]
    for name in SPOOL.split():
        (spool / name).mkdir(parents=True, mode=0o700)
        if name != "pid":
            os.chown(spool / name, owner, owner)
    Path("/var/lib/postfix").mkdir()
    os.chown("/var/lib/postfix", owner, owner)
    return ["/usr/lib/postfix/sbin/master", "-d"]


EXIM = """\
primary_hostname = mx.{domain}
domainlist ours = {domains}
local_interfaces = <; {ipv4} ; {ipv6}
spool_directory = /var/spool/exim4
log_file_path = /var/log/exim-%slog
pid_file_path = /run/exim.pid
host_lookup = *
rfc1413_query_timeout = 0s
tls_advertise_hosts =
smtp_accept_max = 0
smtp_accept_queue_per_connection = 0
message_size_limit = 50M
acl_smtp_rcpt = rcpt
never_users =
keep_environment =
begin acl
rcpt:
  accept domains = +ours
  deny message = not here
begin routers
all:
  driver = accept
  transport = maildir
begin transports
maildir:
  driver = appendfile
  directory = /var/mail/all
  maildir_format
  user = vmail
  delivery_date_add
begin retry
* * F,1h,1m
"""


def exim(mta: Mta) -> list[str]:
    """Configure Exim; return the command that runs it."""
    ipv4, ipv6 = mta.addresses
    Path("/etc/exim4").mkdir(exist_ok=True)
    text = EXIM.format(
        ipv4=ipv4, ipv6=ipv6, domain=mta.domain, domains=" : ".join(domains(mta))
    )
    Path("/etc/exim4/exim4.conf").write_text(mta.changed(text))
    for folder in ("/var/spool/exim4", "/var/log"):
        Path(folder).mkdir(exist_ok=True)
        os.chown(folder, ACCOUNTS["Debian-exim"], ACCOUNTS["Debian-exim"])
    return ["/usr/sbin/exim4", "-bdf", "-q30m"]


OPENSMTPD = """\
listen on {ipv4} hostname mx.{domain}
listen on {ipv6} hostname mx.{domain}
table ours {{ {domains} }}
table users {{ "@" = "vmail" }}
action "keep" maildir "/var/mail/all" virtual <users>
match from any for domain <ours> action "keep"
"""


def opensmtpd(mta: Mta) -> list[str]:
    """Configure OpenSMTPD; return the command that runs it."""
    ipv4, ipv6 = mta.addresses
    quoted = ", ".join(f'"{domain}"' for domain in domains(mta))
    text = OPENSMTPD.format(ipv4=ipv4, ipv6=ipv6, domain=mta.domain, domains=quoted)
    Path("/etc/smtpd.conf").write_text(mta.changed(text))
    Path("/etc/mailname").write_text(f"mx.{mta.domain}\n")
    Path("/var/lib/opensmtpd/empty").mkdir(parents=True)
    return ["/usr/sbin/smtpd", "-d", "-f", "/etc/smtpd.conf"]


SENDMAIL = """\
include(`/usr/share/sendmail/cf/m4/cf.m4')dnl
OSTYPE(`debian')dnl
define(`confDOMAIN_NAME', `mx.{domain}')dnl
define(`confTO_IDENT', `0')dnl
define(`confPID_FILE', `/run/sendmail.pid')dnl
undefine(`confHOST_STATUS_DIRECTORY')dnl
define(`STATUS_FILE', `')dnl
undefine(`ALIAS_FILE')dnl
define(`confQUEUE_LA', `1000')dnl
define(`confREFUSE_LA', `1000')dnl
define(`LOCAL_MAILER_PATH', `/etc/mail/keep')dnl
define(`LOCAL_MAILER_ARGS', `keep $u')dnl
define(`LOCAL_MAILER_FLAGS', `SPn')dnl
FEATURE(`no_default_msa')dnl
DAEMON_OPTIONS(`Name=v4, Family=inet, Addr={ipv4}, Port=25')dnl
DAEMON_OPTIONS(`Name=v6, Family=inet6, Addr={ipv6}, Port=25')dnl
{domains}
MODIFY_MAILER_FLAGS(`LOCAL', `-w5')dnl
MAILER(`local')dnl
MAILER(`smtp')dnl
"""
KEEP = """\
#!/bin/sh
cat > /var/mail/all/tmp/$$ && mv /var/mail/all/tmp/$$ /var/mail/all/new/$(date +%s.%N).$$
"""


def sendmail(mta: Mta) -> list[str]:
    """Configure Sendmail; return the command that runs it."""
    ipv4, ipv6 = mta.addresses
    local = "\n".join(f"LOCAL_DOMAIN(`{domain}')dnl" for domain in domains(mta))
    text = SENDMAIL.format(ipv4=ipv4, ipv6=ipv6, domain=mta.domain, domains=local)
    folder = Path("/etc/mail")
    folder.mkdir(exist_ok=True)
    made = subprocess.run(
        ["m4"], input=text, capture_output=True, text=True, check=True
    )
    (folder / "sendmail.cf").write_text(made.stdout)
    (folder / "keep").write_text(KEEP)
    (folder / "keep").chmod(0o755)
    Path("/var/spool/mqueue").mkdir(mode=0o700)
    command = ["/usr/libexec/sendmail/sendmail", "-C/etc/mail/sendmail.cf", "-bD"]
    return [*command, "-q30m", "-L", "sendmail"]


START = {
    "postfix": postfix,
    "exim": exim,
    "opensmtpd": opensmtpd,
    "sendmail": sendmail,
}


def main() -> None:
    """Fetch, or be a server."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--be")
    arguments = parser.parse_args()
    if arguments.be:
        facts = json.loads(arguments.be)
        changes = tuple((old, new) for old, new in facts["changes"])
        be(Mta(facts["name"], facts["number"], Path(facts["folder"]), changes))
        return
    for name in arguments.names or MTAS:
        if not (cache() / "mtas" / name).is_dir():
            sys.stderr.write(f"fetching {PACKAGE[name]} (once, into {cache()})\n")
        unpacked(name)


if __name__ == "__main__":
    main()
