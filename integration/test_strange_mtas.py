"""Postfix, Exim and OpenSMTPD that misbehave on purpose; what they wrote decides."""

import re

import pytest

from integration import mtas
from integration.labs import Lab, eventually

COUNT = 6
USER = "user@alpha.example"
SETTINGS = "\n[queue]\nfirst_retry = 2.0\nlongest_retry = 4.0\n"
CHANGES = {
    # One connection at a time of each client, and TLS that is offered and does not work.
    "postfix": (
        ("connection_count_limit = 0", "connection_count_limit = 1"),
        (
            "in_flow_delay = 0",
            (
                "in_flow_delay = 0\nsmtpd_tls_security_level = may\n"
                "smtpd_tls_cert_file = /etc/postfix/main.cf"
            ),
        ),
    ),
    # Greylisting, a wait at each recipient, and no more than two messages a connection.
    "exim": (
        (
            "rcpt:\n",
            (
                "rcpt:\n  defer message = greylisted, come back later\n"
                "    condition = ${if exists{/var/spool/exim4/seen}{no}{yes}}\n"
                "    set acl_c0 = ${run{/usr/bin/touch /var/spool/exim4/seen}}\n"
                "  warn delay = 1s\n"
            ),
        ),
        (
            "message_size_limit",
            "smtp_accept_max_per_connection = 2\nmessage_size_limit",
        ),
    ),
    # It hangs up when the message is to come.
    "opensmtpd": (
        (
            "listen on 10.",
            (
                'table nobody { "no.such.example" }\n'
                'filter "rude" phase data match !helo <nobody> '
                'disconnect "421 no more today"\n'
                "listen on 10."
            ),
        ),
        ("hostname", 'filter "rude" hostname'),
    ),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    found = Lab(tmp_path_factory.mktemp("lab"), hosts=1)
    try:
        toml = found.root / "vnsmail.toml"
        toml.write_text(re.sub(r"(?ms)^\[queue\]\n.*?(?=^\[|\Z)", "", toml.read_text()))
        found.restart(SETTINGS)
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def remotes(lab):
    with mtas.running(lab, tuple(CHANGES), changes=CHANGES) as found:
        for number in range(COUNT):
            to = [f"u{number}@{each.domain_of(4)}" for each in found.values()]
            for recipient in to:
                lab.send(USER, recipient, subject=f"m{number}")
        yield found


def subjects(mta):
    found = [re.search(rb"(?m)^Subject: (m\d+)", mail) for mail in mta.mails()]
    return sorted(match[1].decode() for match in found if match)


@pytest.mark.parametrize("name", ["postfix", "exim"])
def test_each_message_once(remotes, name):
    """What was refused for a while, or on this connection, came later; nothing twice."""
    wanted = [f"m{number}" for number in range(COUNT)]
    eventually(lambda: subjects(remotes[name]) == wanted, f"all mail at {name}", 120)


def test_greylisted_first(lab, remotes):
    """A retry that its answer asked for, counted."""
    eventually(lambda: len(remotes["exim"].mails()) == COUNT, "all mail", 120)
    log = (lab.root / "log" / "events.jsonl").read_text()
    assert "greylisted, come back later" in log


def test_dropped_at_data(lab, remotes):
    """Nothing is there, and everything waits with what it said."""

    def reasons():
        found = lab.json("queue", "list", "--domain", remotes["opensmtpd"].domain_of(4))
        return [str(each["recipients"]) for each in found]

    eventually(lambda: any("no more today" in each for each in reasons()), "the reason")
    assert len(reasons()) == COUNT
    assert remotes["opensmtpd"].mails() == []
