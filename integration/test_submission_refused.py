"""Who may not: without TLS, without the password, as somebody else, to anybody."""

import re
import subprocess

import pytest

from integration.submission import (
    ALPHA,
    ELSEWHERE,
    PASSWORD,
    USER,
    give_passwords,
    submitted,
    talk,
)


@pytest.fixture(scope="module", autouse=True)
def people(lab):
    """Two hosts have a user of the same name, with other passwords."""
    give_passwords(lab)


@pytest.fixture(scope="module", autouse=True)
def scans(lab, people):
    """nmap looks for a way through, all the while."""
    probes = {
        "25": ("25", "smtp-open-relay"),
        "587": ("587", "smtp-open-relay"),
        "users": ("25", "smtp-enum-users"),
    }
    methods = ("--script-args", "smtp-enum-users.methods={EXPN,VRFY}")
    running = {
        name: lab.beside(
            *(ELSEWHERE, "nmap", "-Pn", "-n", "-p", port, "--script", script),
            *(*methods, ALPHA),
        )
        for name, (port, script) in probes.items()
    }
    yield running
    for scan in running.values():
        scan.kill()
        scan.communicate()


# Who may not -------------------------------------------------------------------------


def test_in_the_clear(lab):
    """Without TLS nobody is asked for a password, and nothing is taken."""
    said = talk(lab, mechanism="CLEAR")

    assert "starttls" in said["before"]
    assert "auth" not in said["before"]
    assert "530 b'5.7.0" in said["mail"]


def test_not_signed_in(lab):
    """TLS alone is no permission."""
    assert "530 b'5.7.0" in talk(lab, mechanism="NONE")["mail"]


@pytest.mark.parametrize(
    ("node", "changes"),
    [
        ("ns.example", {"password": "other horse 8"}),
        ("gamma.example", {"name": "nobody"}),
        ("mx2.south.example", {"name": "user@beta.example"}),
        ("machine", {"name": "user@beta.example", "password": "other horse 8"}),
    ],
)
def test_wrong_name_or_password(lab, node, changes):
    """A user of another host, with the right password there, is nobody here.

    Each failure from one place makes the next slower, so all are from elsewhere.
    """
    said = talk(lab, node, **changes)

    assert "535 5.7.8 wrong name or password" == said["auth"]
    assert said["mail"].startswith("530")


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"sender": "postmaster@alpha.example"}, "mail"),
        ({"sender": "user@beta.example"}, "mail"),
        ({"author": "boss@alpha.example"}, "data"),
        ({"author": f"{USER}, boss@north.example"}, "data"),
    ],
)
def test_as_somebody_else(lab, changes, step):
    """Neither the envelope nor From may say it is another."""
    said = talk(lab, to="nobody-else@north.example", **changes)

    assert "235" == said["auth"]
    assert "550" == said[step][:3]
    assert "5.7.1" in said[step]
    assert [] == lab.remote_mail("nobody-else")


def test_as_an_alias(lab):
    """An alias for nobody else is the user's own."""
    alias = "sales@alpha.example"
    to = "from-alias@north.example"
    assert "250" == talk(lab, sender=alias, author=f"S <{alias}>", to=to)["data"][:3]

    submitted(lab, "from-alias")


def test_suspended(lab):
    """Who is suspended signs in no more, and again when it is over."""
    lab.vnsmail("user", "add", "eve@alpha.example", "--password-stdin", stdin=PASSWORD)
    eve = {"name": "eve", "sender": "eve@alpha.example", "author": "eve@alpha.example"}
    assert "235" == talk(lab, **eve)["auth"]
    lab.vnsmail("user", "suspend", "eve@alpha.example")
    assert "535 5.7.13" in talk(lab, **eve)["auth"]
    lab.vnsmail("user", "resume", "eve@alpha.example")

    assert "235" == talk(lab, **eve)["auth"]


def test_another_password(lab):
    """The old one is worth nothing at once."""
    lab.vnsmail("user", "add", "cy@alpha.example", "--password-stdin", stdin=PASSWORD)
    assert "235" == talk(lab, name="cy")["auth"]
    made = lab.vnsmail(
        "user", "passwd", "cy@alpha.example", "--generate"
    ).stdout.strip()

    assert talk(lab, name="cy")["auth"].startswith("535")
    assert "235" == talk(lab, name="cy", password=made)["auth"]


# No relay, no list of users ----------------------------------------------------------


def finished(scan: subprocess.Popen[str]) -> str:
    """Return what nmap found; refusals make it wait."""
    return scan.communicate(timeout=120)[0]


@pytest.mark.parametrize("port", ["25", "587"])
def test_no_relay_for_nmap(scans, port):
    """Of all that nmap tries, nothing gets through."""
    found = finished(scans[port])

    assert f"{port}/tcp open" in found
    assert "smtp-open-relay" in found
    assert "is an open relay" not in found


def test_no_users_for_nmap(scans):
    """VRFY and EXPN tell nobody."""
    found = finished(scans["users"])

    assert "25/tcp open" in found
    assert "smtp-enum-users" in found
    assert not re.search(r"\| +user$", found, re.MULTILINE)


def test_failures_are_counted(lab):
    """They are in status."""
    (alpha,) = (
        r for r in lab.json("status")["owners"] if r["owner"] == "alpha.example"
    )

    assert alpha["failed_sign_ins"] > 0
