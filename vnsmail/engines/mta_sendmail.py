"""Sendmail 8.17 as an engine. Pure.

The configuration is made by m4 from the macros of the sendmail-cf package, which
sendmail-bin depends on: rulesets written by hand would be code of ours that nobody else
has tried. It runs without any privilege: the queue is its account's own.
"""

import re
from datetime import UTC, datetime

from vnsmail.engines.mta import ACCOUNT, RUN, Mta, MtaFacts, Queued, Step, route_back
from vnsmail.model import Engine

SENDMAIL = "/usr/libexec/sendmail/sendmail"
MACROS = "/usr/share/sendmail/cf/m4/cf.m4"
SPOOL = "/var/spool/mqueue"
SOURCE = "/etc/mail/sendmail.mc"
CONFIGURATION = f"{RUN}/sendmail.cf"


def files(facts: MtaFacts) -> dict[str, str]:
    """Return the configuration, as m4 is to read it."""
    options = {
        "confDOMAIN_NAME": facts.says,
        # The name in EHLO; its option is HeloName.
        "confHELO_NAME": facts.says,
        "confDONT_PROBE_INTERFACES": "True",
        "QUEUE_DIR": SPOOL,
        "confPID_FILE": f"{RUN}/sendmail.pid",
        "confTRUSTED_USER": ACCOUNT,
        "confRUN_AS_USER": ACCOUNT,
        "confDEF_USER_ID": ACCOUNT,
        "confTO_IDENT": "0",
        "STATUS_FILE": "",
        # A message is on disk before it is acknowledged, whatever becomes of it at once.
        "confSAFE_QUEUE": "True",
        "confDELIVERY_MODE": "background",
        "confEIGHT_BIT_HANDLING": "pass8",
        "confPRIVACY_FLAGS": "novrfy,noexpn,noetrn",
        "confMAX_MESSAGE_SIZE": str(facts.max_size),
        "confQUEUE_LA": "1000",
        "confREFUSE_LA": "1000",
        "confMIN_QUEUE_AGE": "1m",
        "confTO_CONNECT": "1m",
        "confTO_QUEUERETURN": "5d",
    }
    lines = [f"include(`{MACROS}')dnl", "OSTYPE(`linux')dnl"]
    lines += [f"define(`{key}', `{value}')dnl" for key, value in options.items()]
    lines += [
        "undefine(`ALIAS_FILE')dnl",
        "undefine(`confHOST_STATUS_DIRECTORY')dnl",
        "FEATURE(`no_default_msa')dnl",
        "FEATURE(`nocanonify')dnl",
        # It listens nowhere: who talks with it was let in by us.
        "FEATURE(`promiscuous_relay')dnl",
        "FEATURE(`accept_unresolvable_domains')dnl",
        f"define(`RELAY_MAILER_ARGS', `TCP $h {facts.port}')dnl",
    ]
    if facts.binds:
        # ClientPortOptions; a socket that cannot be bound so is a temporary failure.
        if facts.ipv4:
            lines.append(f"CLIENT_OPTIONS(`Family=inet, Address={facts.ipv4}')dnl")
        if facts.ipv6:
            lines.append(f"CLIENT_OPTIONS(`Family=inet6, Address={facts.ipv6}')dnl")
    # What comes back is taken by a server that has our name: it is no loop.
    lines += ["MODIFY_MAILER_FLAGS(`RELAY', `+k')dnl", "MAILER(`smtp')dnl"]
    lines.append("LOCAL_RULE_0")
    back = f"$#relay $@ {route_back(facts)} $: $1 <@ %s > $2"
    for domain in dict.fromkeys((facts.says, *facts.domains)):
        lines += [f"R$* <@ {domain}{dot} > $*\t{back % domain}" for dot in (" .", "")]
    return {SOURCE: "\n".join(lines) + "\n"}


_FIRST = re.compile(
    r"(\w{6,})([-*X]*)\s*(\d+|\(.*?\))?\s*"
    r"(?:\w{3} (\w{3} [ \d]\d \d\d:\d\d))?\s*<?([^>\s]*)>?"
)


def read(text: str, now: float) -> tuple[Queued, ...]:
    """Understand what mailq prints: a line with the id, then reasons and recipients."""
    found: list[Queued] = []
    reason = ""
    for line in text.splitlines():
        first = _FIRST.match(line)
        if first:
            size = int(first[3]) if first[3] and first[3].isdigit() else 0
            at = _time(first[4], now) if first[4] else now
            sender = "" if first[5] == "MAILER-DAEMON" else first[5]
            found.append(Queued(first[1], sender, (), size, at))
            reason = ""
        elif found and line[:1].isspace():
            words = line.strip()
            if words.startswith("("):
                reason = words[1:].removesuffix(")")
            elif words.startswith("<") or "@" in words.split(" ")[0]:
                last = found[-1]
                to = (words.strip("<>"), reason)
                found[-1] = Queued(
                    last.id,
                    last.sender,
                    (*last.recipients, to),
                    last.size,
                    last.received_at,
                )
    return tuple(found)


_MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"


def _time(text: str, now: float) -> float:
    """Return a time that is written without its year: the last one that was so."""
    month, day, clock = text.split()
    hour, _, minute = clock.partition(":")
    number = _MONTHS.find(month) // 3 + 1
    year = datetime.fromtimestamp(now, UTC).year
    for each in (year, year - 1):
        try:
            moment = datetime(
                each, number, int(day), int(hour), int(minute), tzinfo=UTC
            )
        except ValueError:
            continue
        if (at := moment.timestamp()) <= now + 60:
            return at
    return now


def _sendmail(*options: str) -> tuple[str, ...]:
    return (SENDMAIL, f"-C{CONFIGURATION}", *options)


MTA = Mta(
    engine=Engine.SENDMAIL,
    package="sendmail-bin",
    programs=(SENDMAIL, MACROS, "/usr/bin/m4"),
    account=ACCOUNT,
    group="",
    capabilities=(),
    spool=SPOOL,
    queued=("qf*",),
    folders=(),
    files=files,
    steps=(Step(("/usr/bin/m4",), SOURCE, CONFIGURATION),),
    # Debug flag 99.100: it does not go into the background.
    run=_sendmail("-q1m", "-d99.100", "-L", "sendmail"),
    submit=_sendmail("-bs", "-L", "sendmail"),
    listing=_sendmail("-bp"),
    flush=_sendmail("-q", "-L", "sendmail"),
    read=read,
)
