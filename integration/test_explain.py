"""The path that a message would take, against the one that it takes."""

import pytest

HOSTS = {
    "alpha.example": ("namespace", "10.77.0.11", "fd77::11", "eth0"),
    "delta.example": ("alias", "10.77.0.14", "fd77::14", "lan0"),
}


@pytest.mark.parametrize("host", HOSTS)
def test_the_way_it_goes(lab, host):
    """Source and link are the kernel's word; the remote then sees the first turn's."""
    context, ipv4, ipv6, link = HOSTS[host]
    found = lab.json("host", "explain", host, "--to", "way@north.example")
    lab.send(f"user@{host}", "way@north.example")
    lab.settle()

    assert (context, [ipv6, ipv4], host) == (
        found["context"],
        found["sources"],
        found["helo"],
    )
    assert [] == found["refusals"]
    tried = sorted((t["turn"], t["source"], t["link"]) for t in found["targets"])
    assert [(1, ipv6, link), (2, ipv4, link)] == tried
    mail = lab.remote_mail("way")[-1]
    assert f"[IPv6:{ipv6}]".encode() in mail


def test_what_would_be_refused(lab):
    """It is told with the reply it would get, and the exit code is 1."""
    for address, words in (
        ("x@nowhere.example", "5.1.2"),
        ("nobody@alpha.example", "5.1.1 no such user"),
    ):
        done = lab.vnsmail(
            "host", "explain", "alpha.example", "--to", address, check=False
        )
        assert 1 == done.returncode
        assert words in done.stdout
    lab.vnsmail("host", "suspend", "beta.example")
    done = lab.vnsmail(
        "host", "explain", "beta.example", "--to", "x@north.example", check=False
    )
    lab.vnsmail("host", "resume", "beta.example")
    assert 1 == done.returncode
    assert "beta.example is suspended" in done.stdout


def test_a_way_that_is_not_there(lab):
    """What the kernel says of a destination that it has no route to."""
    found = lab.vnsmail(
        "host",
        "explain",
        "alpha.example",
        "--to",
        "x@[203.0.113.9]",
        "--json",
        check=False,
    )
    lab.vnsmail("host", "set", "alpha.example", "--gateway", "none")
    without = lab.vnsmail(
        "host", "explain", "alpha.example", "--to", "x@[203.0.113.9]", check=False
    )

    assert '"gateway": "10.77.0.1"' in found.stdout
    assert 1 == without.returncode
    assert "Network is unreachable" in without.stdout


def test_a_mailbox_here(lab):
    found = lab.json("host", "explain", "alpha.example", "--to", "user@alpha.example")

    assert (["user"], [], []) == (
        found["mailboxes"],
        found["targets"],
        found["refusals"],
    )


def test_no_address(lab):
    done = lab.vnsmail("host", "explain", "alpha.example", "--to", "x y", check=False)

    assert (2, 1) == (done.returncode, len(done.stderr.splitlines()))
