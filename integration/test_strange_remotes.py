"""Remotes misbehave: each message arrives as it should, or comes back, and only so.

Judged by what the remotes took, by the notices, and by the packets.
"""

import json
from pathlib import Path

import pytest

from integration import strange_remotes
from integration.labs import Lab, eventually, syns

NODE = "mx2.south.example"
SENDER = "user@alpha.example"
OWN = {"alpha": {"10.77.0.11", "fd77::11"}, "beta": {"10.77.0.12", "fd77::12"}}
NAMES = sorted(strange_remotes.BEHAVIOURS)
ADDRESSES = {name: f"10.77.0.{201 + at}" for at, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    found = Lab(tmp_path_factory.mktemp("lab") / "root", hosts=2)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def remotes(lab, tmp_path_factory):
    """A remote for each behaviour, known to DNS as BEHAVIOUR.example."""
    folder = tmp_path_factory.mktemp("remotes")
    zone = ["null.example MX 0 .", "loop.example MX 10 lo.example."]
    zone += ["lo.example A 127.0.0.1"]
    for name, address in ADDRESSES.items():
        lab.inside(NODE, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
        zone += [f"{name}.example MX 10 mx.{name}.example."]
        zone += [f"mx.{name}.example A {address}"]
    (lab.root / "lab.zone").write_text("\n".join(zone) + "\n")
    at = [word for n, a in ADDRESSES.items() for word in ("--at", f"{a}={n}")]
    program = strange_remotes.__file__
    process = lab.beside(NODE, lab.python, str(program), "--folder", str(folder), *at)
    assert process.stdout.readline() == "ready\n"
    yield folder
    process.communicate()


COPIES = {
    "greylist": 1,
    "chunklist": 1,
    "middata": 1,
    "lostreply": 2,  # nobody can know: RFC 1047
    "twoonly": 3,
    "tarpit": 1,
    "oldtimer": 1,
    "choosy": 1,
}
REASONS = {
    "toolarge": b"5.3.4",
    "spam": b"5.7.1",
    "closed": b"5.3.2",
    "null": b"5.1.10",
    "loop": b"5.4.6",
}


@pytest.fixture(scope="module")
def sent(lab, remotes):
    """One message to all of them at once, so that each is the others' neighbour.

    The one that says nothing has its own: notices wait for who is in flight together.
    """
    others = [name for name in NAMES if name != "tarpit"]
    to = [f"bob@{name}.example" for name in (*others, "null", "loop")]
    to += ["nobody@choosy.example", "eve@choosy.example"]
    lab.send(SENDER, "bob@tarpit.example", subject="slow")
    lab.send(SENDER, *to, subject="to all", text="line\n" * 20)
    for number in range(2):
        lab.send(SENDER, "bob@twoonly.example", subject=f"further {number}")
    return remotes


def taken(folder, host):
    """Return what a remote accepted."""
    try:
        lines = (folder / "accepted").read_text().splitlines()
    except OSError:
        return []
    found = [json.loads(line) for line in lines]
    return [each for each in found if each["host"] == host]


def notices(lab, recipient):
    """Return the notices about a recipient."""
    line = f"Final-Recipient: rfc822; {recipient}\r\n".encode()
    return [mail for mail in lab.mail("user", "alpha.example") if line in mail]


@pytest.mark.usefixtures("sent")
def test_neighbours_do_not_wait(lab):
    """While one destination says nothing, other hosts and destinations are served."""
    lab.send("user@beta.example", "ann@north.example", subject="neighbour")
    lab.send(SENDER, "ann@north.example", subject="same host")

    def both():
        mail = b"".join(lab.remote_mail("ann"))
        return b"Subject: neighbour" in mail and b"Subject: same host" in mail

    eventually(both, "the mail of neighbours")
    entries = lab.json("queue", "list", "--host", "alpha.example")

    assert "bob@tarpit.example" in {r[0] for e in entries for r in e["recipients"]}


@pytest.mark.parametrize("name", COPIES)
def test_it_arrives(sent, name):
    """From the host's own address, whatever happened on the way."""
    if name == "tarpit":
        (sent / "go").touch()
    eventually(lambda: len(taken(sent, name)) >= COPIES[name], f"{name} has its mail")

    assert {each["peer"] for each in taken(sent, name)} == {"10.77.0.11"}


@pytest.mark.parametrize("name", REASONS)
def test_it_comes_back(lab, sent, name):
    """One notice, which says why; and the remote has nothing."""
    gone = f"bob@{name}.example"
    [notice] = eventually(lambda: notices(lab, gone), f"a notice of {name}")

    about = notice.partition(f"rfc822; {gone}".encode())[2].partition(b"\r\n\r\n")[0]
    assert b"Status: " + REASONS[name] + b"\r\n" in about
    assert [] == taken(sent, name)


def test_some_recipients_are_refused(lab, sent):
    """Those who were taken have one copy together; the notice is of the other alone."""
    eventually(lambda: notices(lab, "nobody@choosy.example"), "a notice")
    [copy] = eventually(lambda: taken(sent, "choosy"), "the copy")

    assert ["bob@choosy.example", "eve@choosy.example"] == sorted(copy["to"])
    assert not notices(lab, "bob@choosy.example")


def test_in_the_end(lab, sent):
    """Nobody has a copy too many, and nothing was tried from anywhere else."""
    (sent / "go").touch()
    lab.settle()
    sources = syns(Path(lab.facts["capture"]))

    assert {name: len(taken(sent, name)) for name in COPIES} == COPIES
    assert not [name for name in COPIES if notices(lab, f"bob@{name}.example")]
    assert OWN["alpha"] & sources
    assert sources <= OWN["alpha"] | OWN["beta"]
