"""Processes are killed: nothing acknowledged is lost, and everything comes back."""

import os
import signal

import pytest

from integration.labs import eventually


@pytest.mark.parametrize("victim", ["worker-0", "broker", "worker-machine"])
def test_killed_process_comes_back(lab, victim):
    """The supervisor starts it again, and mail that was queued meanwhile leaves."""
    before = next(p for p in lab.json("status")["processes"] if p["name"] == victim)
    sender = "machine" if victim == "worker-machine" else "user@alpha.example"
    lab.send(sender, "ann@north.example", subject=f"before {victim}")
    os.kill(lab.outer_pid(victim), signal.SIGKILL)

    def restarted():
        found = next(p for p in lab.json("status")["processes"] if p["name"] == victim)
        return found["restarts"] > before["restarts"] and found["state"] == "running"

    eventually(restarted, f"{victim} runs again")
    eventually(lambda: not lab.json("status")["problems"], "every host is served again")
    lab.send(sender, "ann@north.example", subject=f"after {victim}")
    lab.settle()
    subjects = b"".join(lab.remote_mail("ann"))

    assert b"Subject: before " + victim.encode() in subjects
    assert b"Subject: after " + victim.encode() in subjects


def test_acknowledged_mail_survives_kill(lab):
    """What ``send`` said is queued arrives, whenever the worker is killed."""
    sent = []
    for number in range(12):
        done = lab.vnsmail(
            *("send", "--as", "user@delta.example", "--to", "kim@south.example"),
            *("--subject", f"number {number:02}", "--text", "x"),
            check=False,
        )
        if done.returncode == 0:
            sent.append(f"number {number:02}")
        if number in {3, 7}:
            os.kill(lab.outer_pid("worker-0"), signal.SIGKILL)
            eventually(
                lambda: all(
                    p["state"] == "running" for p in lab.json("status")["processes"]
                ),
                "the worker runs again",
            )
    lab.settle()
    got = b"".join(lab.remote_mail("kim", "south.example")).decode()

    assert len(sent) >= 10
    assert [] == [subject for subject in sent if subject not in got]


def test_stop_and_start_again(lab):
    """Mail that waits while vnsmail is down leaves when it is up again."""
    lab.inside("mx2.south.example", "ip", "link", "set", "eth0", "down")
    lab.send("user@alpha.example", "ann@south.example", subject="overnight")
    lab.vnsmail("down")
    refused = lab.vnsmail("status", check=False)
    lab.inside("mx2.south.example", "ip", "link", "set", "eth0", "up")
    python = "import sys; from vnsmail.cli.app import main; main()"
    lab.inside(
        *("machine", lab.python, "-P", "-c", python),
        *("--root", str(lab.root), "up", "--detach"),
    )
    lab.settle()

    assert 3 == refused.returncode
    assert b"Subject: overnight" in b"".join(lab.remote_mail("ann", "south.example"))
