"""Queued mail that moves to another host: once, from its address, whatever is killed."""

import os
import random
import re
import signal
import subprocess
import time

import pytest

from integration.labs import VNSMAIL, Lab, eventually

ALPHA, BETA = "alpha.example", "beta.example"
FROM_BETA = re.compile(rb"\[(10\.77\.0\.12|IPv6:fd77::12)\]")
COUNT = 12
KILLS = 4
LARGE = "a line of a large message\n" * 12_000


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    found = Lab(tmp_path_factory.mktemp("lab"), hosts=2)
    try:
        yield found
    finally:
        found.stop()


def queued(lab, host):
    return lab.json("queue", "list", "--host", host, "--limit", "1000")


def move(lab, *words, check=True):
    given = ("queue", "move", "--host", ALPHA, "--to", BETA, "--yes", *words)
    return lab.vnsmail(*given, check=check)


def test_only_for_whom_the_other_host_sends(lab):
    """A sender of its domains goes; another stays, and is told of."""
    lab.vnsmail("host", "set", ALPHA, "--domain", "shared.example")
    lab.vnsmail("user", "allow-from", f"user@{ALPHA}", "user@shared.example")
    lab.vnsmail("queue", "hold", "--host", ALPHA)
    own = lab.send(f"user@{ALPHA}", "own@north.example")
    shared = lab.send("user@shared.example", "shared@north.example")
    lab.vnsmail("host", "set", ALPHA, "--domain", "none")
    lab.vnsmail("host", "set", BETA, "--domain", "shared.example")
    words = ("dkim", "create", BETA, "--domain", "shared.example", "--activate")
    lab.vnsmail(*words, "--algorithm", "ed25519")

    done = move(lab, "--all", check=False)
    assert done.returncode == 1
    assert own in done.stderr
    assert [each["envelope"]["id"] for each in queued(lab, ALPHA)] == [own]
    (mail,) = eventually(lambda: lab.remote_mail("shared"), "what was moved")
    text = re.sub(rb"\s+", b" ", mail)
    assert b"from beta.example" in text
    assert FROM_BETA.search(text)
    assert b"d=shared.example" in text
    told = lab.vnsmail("trace", shared).stdout
    assert "moved" in told
    assert BETA in told

    move(lab, own, "--force")
    (mail,) = eventually(lambda: lab.remote_mail("own"), "what was moved by force")
    assert FROM_BETA.search(mail)
    assert queued(lab, ALPHA) == []


def test_refused(lab):
    """With a reason; nothing is changed."""
    for words, reason in (
        (("--to", "gamma.example"), "gamma.example"),
        (("--to", ALPHA), "it is there already"),
        (("--to", "machine"), "never leaves as the machine"),
    ):
        given = ("queue", "move", "--host", ALPHA, "--all", "--yes", *words)
        done = lab.vnsmail(*given, check=False)
        assert done.returncode
        assert reason in done.stderr
    assert "--all of this host" in move(lab, check=False).stderr


def test_part_of_a_message(lab):
    """Recipients that are not meant stay."""
    lab.vnsmail("queue", "hold", "--host", BETA)
    lab.send(f"user@{ALPHA}", "part@north.example", "part@south.example")
    move(lab, "--domain", "south.example", "--force")
    (stays,) = queued(lab, ALPHA)
    (gone,) = queued(lab, BETA)
    assert stays["envelope"]["recipients"] == ["part@north.example"]
    assert gone["envelope"]["recipients"] == ["part@south.example"]
    move(lab, "--all", "--force")
    assert len(queued(lab, BETA)) == 2
    assert queued(lab, ALPHA) == []


def test_kills(lab, tmp_path):
    """Worker and supervisor are killed while mail moves; each message is there once."""
    for number in range(COUNT):
        file = tmp_path / "message"
        file.write_text("Subject: x\n\n" + (LARGE if number % 4 == 0 else "x\n"))
        words = ("--as", f"user@{ALPHA}", "--to", f"m{number}@north.example")
        lab.vnsmail("send", *words, "--file", str(file))
    chance = random.Random(5)  # noqa: S311  moments to kill at
    for number in range(KILLS):
        given = ("queue", "move", "--host", ALPHA, "--to", BETA, "--yes", "--all")
        command = [*VNSMAIL, "--root", str(lab.root), *given, "--force"]
        moving = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(chance.uniform(0.5, 1.2))
        victim = "supervisor" if number % 3 == 2 else "worker-0"
        os.kill(lab.outer_pid(victim), signal.SIGKILL)
        moving.wait(60)
        if victim == "supervisor":
            eventually(lambda: not running(lab), "its end")
            lab.up()
        eventually(lambda: served(lab), "both hosts")
    eventually(lambda: not move(lab, "--all", "--force", check=False).returncode, "it")
    eventually(lambda: not queued(lab, ALPHA), "nothing is left")

    lab.vnsmail("queue", "release", "--host", BETA)
    wanted = [f"m{number}" for number in range(COUNT)]
    eventually(lambda: all(map(lab.remote_mail, wanted)), "all of it")
    lab.settle()
    mails = [lab.remote_mail(user) for user in wanted]
    assert [len(each) for each in mails] == [1] * COUNT
    assert all(FROM_BETA.search(mail) for (mail,) in mails)


def running(lab):
    return lab.vnsmail("status", check=False).returncode == 0


def served(lab):
    status = lab.vnsmail("queue", "list", "--host", ALPHA, check=False)
    other = lab.vnsmail("queue", "list", "--host", BETA, check=False)
    return not (status.returncode or other.returncode)
