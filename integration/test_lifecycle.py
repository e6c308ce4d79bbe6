"""What becomes of hosts that exist: seen on the wire, in mailboxes and in the kernel."""

import subprocess

import pytest

from integration.labs import VNSMAIL, eventually

SLOW = """
import socket, sys
sock = socket.create_connection(("10.77.0.12", 25))
stream = sock.makefile("rwb", buffering=0)
def say(text):
    stream.write(text.encode() + b"\\r\\n")
def hear():
    while (line := stream.readline())[3:4] == b"-":
        pass
    print(line.decode().rstrip(), flush=True)
hear()
for line in ("EHLO x.example", "MAIL FROM:<x@x.example>", "RCPT TO:<user@beta.example>"):
    say(line)
    hear()
say("DATA")
hear()
sys.stdin.readline()
say("Subject: slow\\r\\n\\r\\nhello\\r\\n.")
hear()
hear()
"""
"""A client that waits in the middle of a message until it is told to go on."""


def connects(lab, address):
    """Say whether somebody listens on port 25 of an address of the lab."""
    script = f"import socket; socket.create_connection(({address!r}, 25), 5)"
    done = lab.inside("machine", "/usr/bin/python3", "-c", script, check=False)
    return done.returncode == 0


def test_suspend_and_resume(lab):
    """The port is closed, sending is refused, the queue waits, and then it goes."""
    lab.inside("mx2.south.example", "ip", "link", "set", "eth0", "down")
    lab.send("user@alpha.example", "eve@south.example", subject="waits")
    lab.vnsmail("host", "suspend", "alpha.example")
    lab.inside("mx2.south.example", "ip", "link", "set", "eth0", "up")
    refused = lab.vnsmail(
        *("send", "--as", "user@alpha.example", "--to", "eve@south.example"),
        *("--subject", "x", "--text", "x"),
        check=False,
    )

    assert 1 == refused.returncode
    assert "alpha.example is not served now: it is suspended" in refused.stderr
    assert not connects(lab, "10.77.0.11")
    assert connects(lab, "10.77.0.12")
    shown = lab.json("host", "show", "alpha.example")
    assert ("suspended", 1, ["user"]) == (
        shown["state"],
        shown["queued"],
        shown["users"],
    )
    assert "suspended = true" in lab.vnsmail("export").stdout
    lab.vnsmail("host", "resume", "alpha.example")
    lab.settle()
    assert connects(lab, "10.77.0.11")
    (mail,) = lab.remote_mail("eve", "south.example")
    assert b"Subject: waits\r\n" in mail


def test_limits(lab):
    """A message beyond the hour's is refused, and a lifted limit is none."""
    lab.vnsmail("host", "limits", "beta.example", "--messages-per-hour", "1")
    lab.send("user@beta.example", "lim@north.example")
    words = ("send", "--as", "user@beta.example", "--to", "lim@north.example")
    refused = lab.vnsmail(*words, "--subject", "x", "--text", "x", check=False)
    assert 1 == refused.returncode
    assert "may send in an hour" in refused.stderr
    lab.vnsmail("host", "limits", "beta.example", "--messages-per-hour", "none")
    lab.send("user@beta.example", "lim@north.example")
    lab.settle()

    assert 2 == len(lab.remote_mail("lim"))
    stats = lab.json("host", "stats", "beta.example")
    assert (2, 1, 2) == (stats["accepted"], stats["refused"], stats["sent"])


def test_helo(lab):
    """Remotes hear another name, and the proof expects it."""
    lab.vnsmail("host", "set", "delta.example", "--helo", "mx.delta.example")
    lab.send("user@delta.example", "helo@north.example")
    lab.settle()
    lab.vnsmail("host", "set", "delta.example", "--helo", "none")

    (mail,) = lab.remote_mail("helo")
    assert b"from mx.delta.example " in mail


def test_addresses(lab):
    """Mail leaves from a new address while what is said at the old one is finished."""
    lab.vnsmail("host", "address", "add", "beta.example", "10.77.0.62/24")
    slow = lab.beside("machine", "/usr/bin/python3", "-c", SLOW)
    assert slow.stdin is not None
    assert slow.stdout is not None
    for code in ("220", "250", "250", "250", "354"):
        assert slow.stdout.readline().startswith(code)
    removing = subprocess.Popen(
        [
            *(*VNSMAIL, "--root", str(lab.root), "host", "address", "remove"),
            *("beta.example", "10.77.0.12"),
        ],
        stdout=subprocess.DEVNULL,
    )
    eventually(
        lambda: (
            "10.77.0.12:25"
            not in str(lab.json("host", "show", "beta.example")["listening"])
        ),
        "it is left",
    )
    lab.vnsmail("host", "set", "alpha.example", "--domain", "other.example")
    lab.send("user@beta.example", "addr@south.example")
    lab.settle()
    assert removing.poll() is None
    assert not connects(lab, "10.77.0.12")
    assert "10.77.0.12/" in lab.inside("beta.example", "ip", "-o", "addr").stdout
    slow.stdin.write("go on\n")
    slow.stdin.flush()
    assert slow.stdout.readline().startswith("250 ")
    assert slow.stdout.readline().startswith("421 ")
    slow.communicate()
    assert 0 == removing.wait()

    assert "10.77.0.12/" not in lab.inside("beta.example", "ip", "-o", "addr").stdout
    (mail,) = lab.remote_mail("addr", "south.example")
    assert b"[10.77.0.62]" in mail
    assert any(b"Subject: slow" in m for m in lab.mail("user", "beta.example"))
    assert connects(lab, "10.77.0.62")


def test_rename(lab):
    """Mailbox, queue and users go with it; mail for the old name is taken still."""
    lab.send("user@alpha.example", "user@gamma.example", subject="kept")
    lab.settle()
    lab.inside("mx2.south.example", "ip", "link", "set", "eth0", "down")
    lab.send("user@gamma.example", "ren@south.example", subject="waiting")
    lab.vnsmail("host", "rename", "gamma.example", "sigma.example")
    lab.inside("mx2.south.example", "ip", "link", "set", "eth0", "up")
    lab.send("user@alpha.example", "user@gamma.example", subject="to the old name")
    lab.send("user@sigma.example", "ren@south.example", subject="from the new name")
    lab.settle()

    mails = b"".join(lab.mail("user", "sigma.example"))
    assert b"Subject: kept" in mails
    assert b"Subject: to the old name" in mails
    got = b"".join(lab.remote_mail("ren", "south.example"))
    assert b"Subject: waiting" in got
    assert b"from sigma.example (" in got
    assert not (lab.root / "hosts" / "gamma.example").exists()
    assert "gamma.example" not in lab.inside("machine", "ip", "netns").stdout
    refused = lab.vnsmail(
        "host", "rename", "sigma.example", "beta.example", check=False
    )
    assert 2 == refused.returncode
    assert "it exists" in refused.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("set", "delta.example", "--mtu", "12"),
        ("set", "delta.example", "--mtu", "much"),
        ("set", "delta.example"),
        ("set", "nobody.example", "--helo", "x.example"),
        ("limits", "delta.example", "--connections", "0"),
        ("limits", "delta.example"),
        ("address", "remove", "delta.example", "10.77.0.99"),
        ("address", "add", "delta.example", "10.77.0.1/24"),
        ("rename", "delta.example", "nodots"),
        ("suspend", "nobody.example"),
        ("stats", "nobody.example"),
    ],
    ids=" ".join,
)
def test_bad_input(lab, words):
    """One line, code 2, and nothing is changed."""
    before = lab.hosts()
    done = lab.vnsmail("host", *words, check=False)

    assert (2, "") == (done.returncode, done.stdout)
    assert 1 == len(done.stderr.splitlines())
    assert before == lab.hosts()
