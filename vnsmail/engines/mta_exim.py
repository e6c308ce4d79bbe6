"""Exim 4.96 as an engine. Pure.

It runs without any privilege, as the account that it takes for its own
(``deliver_drop_privilege``): it delivers to other servers only.
"""

import re

from vnsmail.engines.mta import RUN, Mta, MtaFacts, Queued
from vnsmail.model import Engine

EXIM = "/usr/sbin/exim4"
SPOOL = "/var/spool/exim4"

_EXIM = """\
primary_hostname = {says}
qualify_domain = {owner}
spool_directory = {spool}
pid_file_path = {run}/exim.pid
log_file_path = syslog
syslog_timestamp = no
syslog_duplication = no
local_interfaces =
disable_ipv6 = {no_ipv6}
deliver_drop_privilege = true
keep_environment =
never_users =
allow_domain_literals = true
untrusted_set_sender = *
local_from_check = false
local_sender_retain = true
message_size_limit = {max_size}
acl_smtp_rcpt = from_here
begin acl
from_here:
  accept hosts = :
  deny
begin routers
back:
  driver = manualroute
  domains = {domains}
  transport = back
  route_list = * {home}
  self = send
  no_more
literal:
  driver = ipliteral
  transport = out
elsewhere:
  driver = dnslookup
  transport = out
  ignore_target_hosts = <; {ignored}
  no_more
begin transports
out:
  driver = smtp
  helo_data = {says}
  hosts_try_fastopen =
{interface}back:
  driver = smtp
  port = {port}
  allow_localhost
  helo_data = {says}
  hosts_try_fastopen =
{interface}begin retry
* * F,2h,1m; G,16h,1h,1.5; F,5d,6h
begin rewrite
"""


def files(facts: MtaFacts) -> dict[str, str]:
    """Return the configuration."""
    own = [str(each) for each in (facts.ipv4, facts.ipv6) if each]
    ignored = ["127.0.0.0/8", "0.0.0.0/8", "::1"]
    # The option interface has no say where it has no address of the family.
    if not facts.ipv4:
        ignored.append("0.0.0.0/0")
    if not facts.ipv6:
        ignored.append("::/0")
    text = _EXIM.format(
        says=facts.says,
        owner=facts.owner,
        spool=SPOOL,
        run=RUN,
        max_size=facts.max_size,
        domains=" : ".join(dict.fromkeys((facts.says, *facts.domains))),
        home=str(facts.home).replace(":", "::"),
        port=facts.port,
        no_ipv6="false" if facts.ipv6 else "true",
        ignored=" ; ".join(ignored),
        interface=f"  interface = <; {' ; '.join(own)}\n" if facts.binds else "",
    )
    return {"/etc/exim4/exim4.conf": text}


_FIRST = re.compile(r"\s*(\d+)([mhd])\s+([\d.]+)([KM]?)\s+(\S+)\s+<(.*?)>(.*)")
_SECONDS = {"m": 60, "h": 3600, "d": 86400}
_OCTETS = {"": 1, "K": 1024, "M": 1024 * 1024}


def read(text: str, now: float) -> tuple[Queued, ...]:
    """Understand what ``exim -bp`` prints: a line with age, size and id, then recipients."""
    found: list[Queued] = []
    for line in text.splitlines():
        first = _FIRST.match(line)
        if first:
            age = int(first[1]) * _SECONDS[first[2]]
            size = round(float(first[3].strip(".") or 0) * _OCTETS[first[4]])
            held = "frozen" if "frozen" in first[7] else ""
            found.append(Queued(first[5], first[6], (), size, now - age, held))
        elif found and line.strip() and not line.strip().startswith("D "):
            last = found[-1]
            to = (line.strip(), "")
            found[-1] = Queued(
                last.id,
                last.sender,
                (*last.recipients, to),
                last.size,
                last.received_at,
                last.held,
            )
    return tuple(found)


MTA = Mta(
    engine=Engine.EXIM,
    package="exim4-daemon-light",
    programs=(EXIM,),
    account="Debian-exim",
    group="",
    capabilities=(),
    spool=SPOOL,
    queued=("input/**/*-H",),
    folders=(),
    files=files,
    steps=(),
    run=(EXIM, "-bdf", "-q1m"),
    submit=(EXIM, "-bs"),
    listing=(EXIM, "-bp"),
    flush=(EXIM, "-qf"),
    read=read,
)
