"""The source of the machine's mail is the routing table's answer, and nobody else's."""

from pathlib import Path

from integration.labs import syns


def test_the_machine_follows_the_route_and_hosts_do_not(lab):
    """Another preferred source in the route: the machine's mail comes from there."""
    lab.inside("machine", "ip", "addr", "add", "10.77.0.9/24", "dev", "lan0")
    lab.inside(
        *("machine", "ip", "route", "change", "10.77.0.0/24", "dev", "lan0"),
        *("proto", "kernel", "scope", "link", "src", "10.77.0.9"),
    )
    lab.send("machine", "bob@south.example", subject="machine")
    lab.send("user@alpha.example", "bob@south.example", subject="alpha")
    lab.send("user@delta.example", "bob@south.example", subject="delta")
    lab.settle()
    mails = b"".join(lab.remote_mail("bob", "south.example"))

    assert {"10.77.0.9", "10.77.0.11", "10.77.0.14"} == syns(Path(lab.facts["capture"]))
    assert b"from machine.example ([10.77.0.9])" in mails
    assert b"from delta.example (delta.example [10.77.0.14])" in mails
