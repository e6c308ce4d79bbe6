"""What engines are configured with, and how lists of their queues are read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vnsmail.engines import mta_exim, mta_postfix, mta_sendmail
from vnsmail.engines.mta import missing
from vnsmail.engines.mtas import MTAS, facts_of, mta_of
from vnsmail.model import (
    Context,
    Engine,
    HostName,
    SourceAddress,
    VirtualHost,
    ip_address,
)

NOW = 1795892400.0  # 2026-11-28 19:00 UTC
ALPHA = HostName("alpha.example")


def facts(context, *addresses):
    host = VirtualHost(
        name=ALPHA,
        context=context,
        addresses=tuple(map(SourceAddress.parse, addresses)),
        domains=(ALPHA, HostName("other.example")),
        link="lan0",
        helo=HostName("mx.alpha.example"),
    )
    return facts_of(host, 25, 1000)


BOTH = facts(Context.ALIAS, "10.77.0.11/24", "fd77::11/64")
NAMESPACE = facts(Context.NAMESPACE, "10.77.0.11/24", "fd77::11/64")
IPV6 = facts(Context.ALIAS, "fd77::11/64")


def text(mta, of):
    return "\n".join(mta.files(of).values())


@pytest.mark.parametrize(
    ("engine", "lines"),
    [
        (
            "sendmail",
            (
                "CLIENT_OPTIONS(`Family=inet, Address=10.77.0.11')dnl",
                "CLIENT_OPTIONS(`Family=inet6, Address=fd77::11')dnl",
            ),
        ),
        (
            "postfix",
            (
                "smtp_bind_address = 10.77.0.11",
                "smtp_bind_address6 = fd77::11",
                "smtp_bind_address_enforce = yes",
            ),
        ),
        ("exim", ("  interface = <; 10.77.0.11 ; fd77::11",)),
    ],
)
def test_sources(engine, lines):
    """In an alias context the server is told its source; in a namespace it needs none."""
    mta = MTAS[Engine(engine)]
    there = text(mta, BOTH).splitlines()
    for line in lines:
        assert line in there
        assert line not in text(mta, NAMESPACE).splitlines()


@pytest.mark.parametrize("engine", MTAS)
def test_one_family(engine):
    """What has no address of a family has no source of it either."""
    assert "10.77" not in text(MTAS[engine], IPV6)
    assert "fd77::" in text(MTAS[engine], IPV6)


@pytest.mark.parametrize("engine", MTAS)
def test_what_is_its_own_comes_back(engine):
    """Domains of the host go to the host; the name it says is the one it was given."""
    for domain in ("alpha.example", "other.example", "mx.alpha.example"):
        assert domain in text(MTAS[engine], BOTH)


def test_postfix_has_one_family():
    assert "inet_protocols = ipv6\n" in text(mta_postfix.MTA, IPV6)


def test_missing():
    """It says what to install."""
    said = missing(mta_exim.MTA, lambda _: False)
    assert said == (
        "/usr/sbin/exim4 is not there; install it with "
        "`apt-get install exim4-daemon-light`"
    )
    assert not missing(mta_exim.MTA, lambda _: True)
    assert mta_of(Engine.NATIVE) is None


SENDMAIL = """\
\t\t/var/spool/mqueue (2 requests)
-----Q-ID----- --Size-- -----Q-Time----- ------------Sender/Recipient-----------
6ASJ2L87000021*     355 Sat Nov 28 18:02 <user@alpha.example>
                 (Deferred: Connection refused by mx4.opensmtpd.example.)
\t\t\t\t\t <ann@v6.opensmtpd.example>
\t\t\t\t\t <bob@v6.opensmtpd.example>
5CVJ2L87000022        3 Thu Dec 31 18:02 MAILER-DAEMON
\t\t\t\t\t <eve@north.example>
\t\tTotal requests: 2
"""


def test_mailq_of_sendmail():
    first, second = mta_sendmail.read(SENDMAIL, NOW)
    assert ("6ASJ2L87000021", "user@alpha.example", 355) == (
        first.id,
        first.sender,
        first.size,
    )
    assert NOW - 58 * 60 == first.received_at
    why = "Deferred: Connection refused by mx4.opensmtpd.example."
    assert (
        ("ann@v6.opensmtpd.example", why),
        ("bob@v6.opensmtpd.example", why),
    ) == first.recipients
    assert second.received_at < NOW
    assert not second.sender


def test_postqueue():
    line = (
        '{"queue_name": "deferred", "queue_id": "7F64B22648E", "arrival_time":'
        ' 1795892390, "message_size": 654, "forced_expire": false, "sender":'
        ' "user@beta.example", "recipients": [{"address": "ann@north.example",'
        ' "delay_reason": "connect: refused"}]}'
    )
    [found] = mta_postfix.read(line + "\nnonsense\n", NOW)
    assert found.id == "7F64B22648E"
    assert (("ann@north.example", "connect: refused"),) == found.recipients
    assert found.received_at == 1795892390


def test_mailq_of_exim():
    listing = (
        "25m  2.9K 1xXNjV-000006-2H <user@iota.example>\n"
        "          ann@north.example\n"
        "        D bob@north.example\n\n"
        " 2d    15 1xXNjV-000006-2I <> *** frozen ***\n"
        "          eve@north.example\n"
    )
    first, second = mta_exim.read(listing, NOW)
    assert (first.size, first.received_at) == (2970, NOW - 1500)
    assert (("ann@north.example", ""),) == first.recipients
    assert (second.sender, second.held) == ("", "frozen")


@pytest.mark.parametrize("engine", MTAS)
def test_any_listing_is_read(engine):
    """Whatever is printed, reading it never fails."""

    @given(st.text())
    def run(listing):
        MTAS[engine].read(listing, NOW)

    run()


def test_address_of_the_host():
    assert ip_address("10.77.0.11") == BOTH.home
    assert ip_address("fd77::11") == IPV6.home
