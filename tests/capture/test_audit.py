"""The audit: one judgement of each connection, as it begins, in bounded memory."""

import ipaddress
from dataclasses import replace

import pytest

from tests.capture.build import (
    ALPHA4,
    BETA4,
    MACHINE4,
    NOBODY4,
    NORTH4,
    Connection,
    mail,
    parsed,
)
from tests.capture.test_witnesses import ALPHA, BETA
from vnsmail.capture import audit
from vnsmail.capture.audit import Auditor
from vnsmail.model import SourceCheck

MACHINE = replace(
    ALPHA,
    name="machine.example",
    context="machine",
    expected=(ipaddress.ip_address(MACHINE4),),
    addresses=frozenset({ipaddress.ip_address(MACHINE4)}),
)
SENDERS = (MACHINE, ALPHA, BETA)


def found(*connections, auditor=None, ignore=()):
    auditor = auditor or Auditor(SENDERS, (25,), ignore)
    frames = [frame for connection in connections for frame in connection.frames]
    told = (auditor.add(parsed(frame), at) for at, frame in enumerate(frames))
    return [each for each in told if each is not None], auditor


def test_all_is_right():
    wrong, auditor = found(
        mail(), mail(BETA4, "beta.example"), mail(MACHINE4, "machine.example")
    )

    assert [] == wrong
    counts = auditor.counts
    assert (3, 3, 0) == (counts.connections, counts.right, counts.wrong)


def test_an_address_of_nobody_at_its_syn():
    """The very first packet is enough, and one connection is told of once."""
    wrong, _ = found(mail(NOBODY4, "alpha.example"))

    (finding,) = wrong
    assert (0, NOBODY4, 40000, NORTH4, 25) == (
        finding.time,
        str(finding.source),
        finding.source_port,
        str(finding.remote),
        finding.remote_port,
    )
    assert "it is an address of nobody here" == finding.reason


@pytest.mark.parametrize(
    ("client", "name", "host", "reason"),
    [
        (
            BETA4,
            "alpha.example",
            "alpha.example",
            "it is beta.example's address, and says it is alpha.example",
        ),
        (
            MACHINE4,
            "alpha.example",
            "alpha.example",
            "it is the machine's address, and says it is alpha.example",
        ),
        (
            ALPHA4,
            "evil.example",
            "alpha.example",
            "it is alpha.example's address, and evil.example is a name of nobody here",
        ),
    ],
)
def test_a_name_that_does_not_belong_to_the_address(client, name, host, reason):
    (finding,), auditor = found(mail(client, name))

    assert (host, reason, name) == (finding.host, finding.reason, finding.helo)
    assert 0 == auditor.counts.right


def test_mail_that_comes_in_is_not_judged():
    assert [] == found(mail(NORTH4, "mx1.north.example", ALPHA4))[0]


def test_what_passes_by_is_not_judged_where_it_is_known():
    network = ipaddress.ip_network("10.77.0.96/28")

    assert [] == found(mail(NOBODY4, "x.example"), ignore=(network,))[0]


def test_who_is_not_to_be_judged():
    off = replace(ALPHA, check=SourceCheck.OFF)
    auditor = Auditor((off, BETA), (25,))

    assert [] == found(mail(ALPHA4, "other.example"), auditor=auditor)[0]


def test_a_connection_that_was_there_before_is_not_judged_but_a_stranger_s_is():
    older, strange = mail(), mail(NOBODY4)
    older.frames, strange.frames = older.frames[3:], strange.frames[5:]

    assert [NOBODY4] == [str(each.source) for each in found(older, strange)[0]]


def test_seen_at_two_places_and_said_in_pieces():
    """Each packet twice; EHLO octet by octet."""
    connection = Connection(BETA4).open()
    for letter in "EHLO alpha.example\n":
        connection.says(letter)
    connection.frames = [frame for frame in connection.frames for _ in range(2)]
    wrong, auditor = found(connection)

    assert 1 == len(wrong)
    assert 1 == auditor.counts.connections


def test_memory_is_bounded(monkeypatch):
    """Connections that say nothing are given up, and counted."""
    monkeypatch.setattr(audit, "LIMIT", 10)
    silent = [Connection(client_port=1024 + n).open() for n in range(25)]
    _, auditor = found(*silent)

    assert 15 == auditor.counts.given_up
    assert 10 == len(auditor._open)


def test_a_new_host_is_known_at_once():
    auditor = Auditor((), (25,))
    assert 1 == len(found(mail(), auditor=auditor)[0])
    auditor.know(SENDERS)

    assert [] == found(mail(client_port=40001), auditor=auditor)[0]
