"""Somebody takes away what is a host's: it is back at once, and told."""

import json
import os
import re
from pathlib import Path

import pytest

from integration.labs import eventually
from vnsmail.net import guard_rules, names
from vnsmail.settings import layout

ALPHA, BETA, GAMMA = "alpha.example", "beta.example", "gamma.example"
DELTA, EPSILON = "delta.example", "epsilon.example"
ADDRESS = {ALPHA: "10.77.0.11", BETA: "10.77.0.12", GAMMA: "10.77.0.13"}
ADDRESS |= {DELTA: "10.77.0.14"}

HELLO = (
    "import socket, sys; s = socket.create_connection((sys.argv[1], 25), 5); "
    "print(s.recv(99).decode())"
)


def space(lab, host):
    return names.namespace(layout(lab.root).instance, host)


def port(lab, host):
    return names.link(layout(lab.root).instance, host)


def table(lab):
    return guard_rules.table_name(layout(lab.root).instance)


def drifts(lab):
    """Return what was told of drift: host, what was missing, whether it was mended."""
    lines = [json.loads(x) for x in lab.log().splitlines() if x.startswith("{")]
    told = [line for line in lines if line["event"] == "network.drift"]
    return [(x["host"], " ".join(x["missing"]), x["mended"]) for x in told]


def output(lab, node, words):
    return lab.inside(node, *words.split(), check=False).stdout


def rules(lab, node):
    """Return the rules of our table without what is counted."""
    text = output(lab, node, f"nft -j list table inet {table(lab)}")
    found = json.loads(text or '{"nftables": []}')["nftables"]
    return sorted(json.dumps(each["rule"]["expr"]) for each in found if "rule" in each)


# Each host is left in peace after few deeds, for it is put back at once three times.
VANDALISM = {
    "addresses": (
        ALPHA,
        ALPHA,
        (
            "ip addr del {address}/24 dev eth0; ip addr del fd77::11/64 dev eth0; "
            "ip addr add 10.77.0.99/24 dev eth0"
        ),
        ("add address 10.77.0.11", "add address fd77", "remove address 10.77.0.99"),
    ),
    "link": (ALPHA, ALPHA, "ip link del eth0", ("connect",)),
    "aliases": (
        DELTA,
        "machine",
        "ip addr del {address}/32 dev lan0; ip addr del fd77::14/128 dev lan0",
        ("add address 10.77.0.14", "add address fd77::14"),
    ),
    "route": (BETA, BETA, "ip route del default; ip link set eth0 down", ("set eth0",)),
    "port": (
        BETA,
        "machine",
        "ip link set {port} nomaster; ip link set {port} down",
        ("a port of bridge", "up"),
    ),
    "port gone": (BETA, "machine", "ip link del {port}", ("connect",)),
    "name": (GAMMA, "machine", "ip netns del {space}", ("make namespace",)),
}


def network(lab, host):
    """Return what a host has, without numbers that the kernel gives."""
    node, link = ("machine", "lan0") if host == DELTA else (host, "eth0")
    text = output(lab, node, f"ip -j addr show dev {link}")
    links = json.loads(text) if text.strip() else []
    addresses = sorted(
        a["local"]
        for each in links
        for a in each["addr_info"]
        if not a["local"].startswith("fe80")
    )
    up = [("UP" in each["flags"], each["operstate"]) for each in links]
    routes = [output(lab, node, f"ip -{family} route") for family in (4, 6)]
    words = [line.split(" ", 3)[:3] for text in routes for line in text.splitlines()]
    return addresses, up, sorted(w for w in words if not w[0].startswith("fe80"))


@pytest.mark.parametrize("what", VANDALISM)
def test_it_is_put_back(lab, what):
    """As it was, within a moment; told with the host; and the host has its mail."""
    host, node, words, told = VANDALISM[what]
    before, known = network(lab, host), len(drifts(lab))
    assert before[0]
    facts = {"port": port(lab, host), "space": space(lab, host)}
    script = words.format(address=ADDRESS[host], **facts)
    lab.inside(node, "sh", "-ec", script)

    def as_it_was():
        said = " ".join(missing for _, missing, _ in drifts(lab)[known:])
        return all(each in said for each in told) and network(lab, host) == before

    eventually(as_it_was, "it is as it was, and told")
    assert {(host, True)} == {(name, done) for name, _, done in drifts(lab)[known:]}
    hello = ("machine", "/usr/bin/python3", "-c", HELLO, ADDRESS[host])
    eventually(lambda: "220" in lab.inside(*hello, check=False).stdout, "it takes mail")


@pytest.mark.parametrize(
    "words",
    ["nft flush ruleset", "nft flush chain inet {table} {chain}"],
)
@pytest.mark.parametrize("host", [ALPHA, DELTA])
def test_rules_of_the_guard(lab, host, words):
    """All of them, or one by one: they are as before, in both contexts."""
    node = ALPHA if host == ALPHA else "machine"
    before, known = rules(lab, node), len(drifts(lab))
    said = (
        host if host == ALPHA else "machine",
        "rules of the guard changed by nft",
        True,
    )
    listed = json.loads(output(lab, node, "nft -j list chains inet"))["nftables"]
    chains = [each["chain"] for each in listed if "chain" in each]
    (hooked,) = [c["name"] for c in chains if c["table"] == table(lab) and "hook" in c]
    assert before
    lab.inside(node, *words.format(table=table(lab), chain=hooked).split())

    eventually(
        lambda: drifts(lab)[known:] and rules(lab, node) == before,
        "as before, and told",
    )
    assert {said} == set(drifts(lab)[known:])


ROUTED, BY_SOURCE = "routed.example", "bysource.example"
MADE = {
    ROUTED: ("10.77.0.70/24", "--uplink", "routed", "--link", "lan0"),
    BY_SOURCE: ("10.77.0.71/24", "--context", "alias", "--gateway", "10.77.0.2"),
}


def ways(lab, address):
    """Return what the machine has for an address: routes, rules, tables, proxies."""
    rules = json.loads(output(lab, "machine", f"ip -j rule show from {address}"))
    tables = sorted({each["table"] for each in rules} - {"main"})
    return [
        output(lab, "machine", f"ip {words}")
        for words in (
            f"route show {address}",
            f"rule show from {address}",
            "neigh show proxy",
            *(f"route show table {table}" for table in tables),
        )
    ]


@pytest.mark.parametrize(
    ("host", "script", "told"),
    [
        (ROUTED, "ip route del {address}", "add route to 10.77.0.70"),
        (ROUTED, "ip link del {port}", "connect"),
        (BY_SOURCE, "ip rule del from {address}", "10.77.0.71"),
        (BY_SOURCE, "ip route flush table {table}", "table"),
    ],
)
def test_ways_of_the_machine(lab, host, script, told):
    """Routes of a routed host, rules and tables of one that is routed by source."""
    address = MADE[host][0].partition("/")[0]
    lab.vnsmail("host", "create", host, "--address", *MADE[host])
    try:
        before, known = ways(lab, address), len(drifts(lab))
        assert any(before)
        (table, *_) = re.findall(r"lookup (\d+)", before[1]) or [""]
        facts = {"address": address, "port": port(lab, host), "table": table}
        lab.inside("machine", "sh", "-ec", script.format(**facts))

        def as_it_was():
            said = " ".join(missing for _, missing, _ in drifts(lab)[known:])
            return told in said and ways(lab, address) == before

        eventually(as_it_was, "it is as it was, and told")
        assert all(mended for _, _, mended in drifts(lab)[known:])
    finally:
        lab.vnsmail("host", "destroy", host)


def test_our_own_changes_are_no_drift(lab):
    """A host comes and goes: nothing is told."""
    known = drifts(lab)
    for context in ("namespace", "alias"):
        lab.vnsmail(
            *("host", "create", "new.example", "--address", "10.77.0.90/24"),
            *("--context", context),
        )
        lab.vnsmail("host", "destroy", "new.example")
    lab.inside("machine", "ip", "netns", "add", "theirs")
    lab.inside("machine", "ip", "netns", "del", "theirs")
    # The next drift is told after all that was heard before it.
    lab.inside(GAMMA, "ip", "route", "del", "default")
    eventually(lambda: len(drifts(lab)) > len(known), "the drift is told")

    assert {GAMMA} == {host for host, _, _ in drifts(lab)[len(known) :]}


def test_told_everywhere(lab):
    """Log, status and doctor; and mail sent meanwhile arrives from its own address."""
    known = len(drifts(lab))
    lab.inside("machine", "ip", "addr", "del", "10.77.0.15/32", "dev", "lan0")
    lab.send("user@epsilon.example", "ann@north.example", subject="after the drift")
    lab.settle()
    ((host, missing, mended),) = eventually(lambda: drifts(lab)[known:], "it is told")
    findings = json.loads(lab.vnsmail("doctor", "--json", check=False).stdout)
    bad = {(f["check"], f["subject"]) for f in findings if f["verdict"] != "ok"}

    assert (EPSILON, True) == (host, mended)
    assert "add address 10.77.0.15" in missing
    assert ("drift", EPSILON) in bad
    assert "changed by others" in lab.vnsmail("status").stdout
    assert b"after the drift" in b"".join(lab.remote_mail("ann"))


def test_descriptors(lab):
    """Few, and none is left behind by all of the above."""
    folder = Path(f"/proc/{lab.outer_pid('supervisor')}/fd")

    assert len(os.listdir(folder)) < 30


def test_who_does_not_give_up(lab):
    """He is answered less and less often, and others are not kept waiting."""
    loop = "while ip addr flush dev eth0 scope global; do sleep 0.05; done"
    with lab.beside(GAMMA, "timeout", "60", "sh", "-c", loop) as vandal:
        eventually(
            lambda: any(
                host == GAMMA and not mended for host, _, mended in drifts(lab)
            ),
            "he is held back",
        )
        known = len(drifts(lab))
        lab.inside("machine", "ip", "addr", "del", "fd77::15/128", "dev", "lan0")
        eventually(
            lambda: (
                (EPSILON, True)
                in {(host, mended) for host, _, mended in drifts(lab)[known:]}
            ),
            "another is mended",
        )
        vandal.kill()
    eventually(lambda: ADDRESS[GAMMA] in output(lab, GAMMA, "ip addr"), "it is back")
