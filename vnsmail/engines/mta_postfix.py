"""Postfix 3.7 as an engine. Pure.

Its master must be root to start its other programs as another account, so its first
process keeps a few capabilities; what it sees is its queue and its own programs.
"""

import json
from typing import Any

from vnsmail.engines.mta import Mta, MtaFacts, Queued
from vnsmail.model import Engine

PROGRAMS = "/usr/lib/postfix/sbin"
SPOOL = "/var/spool/postfix"
DATA = "/var/lib/postfix"

_SERVICES = """\
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 60 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
"""


def files(facts: MtaFacts) -> dict[str, str]:
    """Return main.cf and master.cf."""
    families = [n for n, a in (("ipv4", facts.ipv4), ("ipv6", facts.ipv6)) if a]
    back = " ".join(
        f"{{ {domain} = smtp:[{facts.home}]:{facts.port} }},"
        for domain in dict.fromkeys((facts.says, *facts.domains))
    ).rstrip(",")
    options = {
        "compatibility_level": "3.6",
        "mail_owner": "postfix",
        "setgid_group": "postdrop",
        "queue_directory": SPOOL,
        "data_directory": DATA,
        "daemon_directory": PROGRAMS,
        "command_directory": "/usr/sbin",
        "shlib_directory": "/usr/lib/postfix",
        "meta_directory": "/etc/postfix",
        # Not the name of the host: what answers by that name would be taken for a loop.
        "myhostname": f"postfix.{facts.owner}",
        "smtp_helo_name": facts.says,
        "myorigin": facts.owner,
        "mydestination": "",
        "relay_domains": "",
        "inet_interfaces": "loopback-only",
        "inet_protocols": ", ".join(families),
        "local_transport": "error:nothing is delivered here",
        "transport_maps": f"inline:{{ {back} }}",
        "alias_maps": "",
        "alias_database": "",
        "notify_classes": "",
        "local_header_rewrite_clients": "",
        "smtp_tls_security_level": "may",
        "smtp_tls_CApath": "/etc/ssl/certs",
        "message_size_limit": str(facts.max_size),
        "mailbox_size_limit": "0",
        "in_flow_delay": "0",
        "queue_run_delay": "60s",
        "minimal_backoff_time": "60s",
        "maximal_queue_lifetime": "5d",
    }
    if facts.binds:
        # Without enforcement it would go on with another source if a bind fails.
        options["smtp_bind_address_enforce"] = "yes"
        if facts.ipv4:
            options["smtp_bind_address"] = str(facts.ipv4)
        if facts.ipv6:
            options["smtp_bind_address6"] = str(facts.ipv6)
    main = "".join(f"{key} = {value}\n" for key, value in options.items())
    return {"/etc/postfix/main.cf": main, "/etc/postfix/master.cf": _SERVICES}


def read(text: str, now: float) -> tuple[Queued, ...]:
    """Understand what ``postqueue -j`` prints: an object of JSON a line."""
    found = []
    for line in text.splitlines():
        try:
            entry: Any = json.loads(line)
            found.append(
                Queued(
                    id=str(entry["queue_id"]),
                    sender=_sender(str(entry["sender"])),
                    recipients=tuple(
                        (str(each["address"]), str(each.get("delay_reason", "")))
                        for each in entry["recipients"]
                    ),
                    size=int(entry["message_size"]),
                    received_at=float(entry.get("arrival_time", now)),
                    held="hold" if entry.get("queue_name") == "hold" else "",
                )
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return tuple(found)


def _sender(text: str) -> str:
    return "" if text == "MAILER-DAEMON" else text


_OWN = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold"),
    *("incoming", "private", "saved", "trace"),
)

MTA = Mta(
    engine=Engine.POSTFIX,
    package="postfix",
    programs=(f"{PROGRAMS}/master", f"{PROGRAMS}/smtpd", "/usr/sbin/postqueue"),
    account="postfix",
    group="postdrop",
    capabilities=("chown", "dac_override", "fowner", "kill", "setgid", "setuid"),
    spool=SPOOL,
    queued=tuple(
        f"{name}/**/*"
        for name in ("active", "deferred", "hold", "incoming", "maildrop")
    ),
    folders=(
        *((f"{SPOOL}/{name}", 0o700, False) for name in _OWN),
        (f"{SPOOL}/maildrop", 0o730, True),
        (f"{SPOOL}/public", 0o710, True),
        (f"{SPOOL}/pid", 0o755, False),
        (DATA, 0o700, False),
    ),
    files=files,
    steps=(),
    run=(f"{PROGRAMS}/master", "-d"),
    submit=(f"{PROGRAMS}/smtpd", "-S"),
    listing=("/usr/sbin/postqueue", "-j"),
    flush=("/usr/sbin/postqueue", "-f"),
    read=read,
)
