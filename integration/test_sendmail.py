"""Programs of local accounts hand over mail as to /usr/sbin/sendmail.

What account it is decides which virtual host's address the mail leaves from; who is
nobody's user sends nothing. All of it as the programs themselves do it, each under an
account of its own.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

import vnsmail
from integration.labs import Lab, eventually

PYTHON = "/usr/bin/python3"
"""One that every account may run."""

ANN = 5
"""games, of user@alpha.example; programs want a name for their account."""
WEB = 33
"""www-data, of user@beta.example."""
NOBODYS = 31009

PROGRAM = """\
#!{python} -P
import sys
sys.path.insert(0, {folder!r})
from vnsmail.cli.sendmail import main
main()
"""


class Sendmail:
    """A lab, and the command as the accounts of a machine see it."""

    def __init__(self, folder: Path) -> None:
        shutil.copytree(
            Path(vnsmail.__file__).parent,
            folder / "vnsmail",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        # Of what an installation has, -bs needs this; without it the system's Python does.
        shutil.copytree(Path(msgspec.__file__).parent, folder / "msgspec")
        self.program = folder / "sendmail"
        self.program.write_text(PROGRAM.format(python=PYTHON, folder=str(folder)))
        self.program.chmod(0o755)
        for name in ("mailq", "newaliases"):
            (folder / name).symlink_to(self.program)
        self.folder = folder
        self.lab = Lab(folder / "root", hosts=2)
        self.lab.vnsmail("login", "add", "user@alpha.example", "games")
        self.lab.vnsmail("login", "add", "user@beta.example", "www-data")

    def run(self, uid, *command, stdin="", cwd=None):
        """Run any program under an account."""
        home = self.folder / f"home-{uid}"
        home.mkdir(exist_ok=True)
        os.chown(home, uid, uid)
        return subprocess.run(
            ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *command],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd or home,
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": str(home),
                "VNSMAIL_ROOT": str(self.lab.root),
                "LC_ALL": "C.UTF-8",
            },
        )

    def __call__(self, uid, *words, stdin=""):
        return self.run(uid, str(self.program), *words, stdin=stdin)

    def arrived(self, subject, user="ann", domain="north.example"):
        """Wait for a message at a remote, and return it."""

        def look():
            found = [
                mail.decode().replace("\r\n", "\n")
                for mail in self.lab.remote_mail(user, domain)
                if f"Subject: {subject}\r\n".encode() in mail
            ]
            return found and found[0]

        return eventually(look, f"{subject} at {user}@{domain}")


@pytest.fixture(scope="module")
def sendmail():
    with tempfile.TemporaryDirectory(prefix="vnsmail-sendmail-") as name:
        os.chmod(name, 0o755)  # noqa: S103  other accounts run what is in it
        found = Sendmail(Path(name))
        try:
            yield found
        finally:
            found.lab.stop()


def host_in(mail):
    """Return the name and the address that a remote wrote of who brought a message."""
    received = re.search(
        r"^Received: from \S+ \((\S+) \[(?:IPv6:)?(\S+)\]\)", mail, re.MULTILINE
    )
    assert received, mail
    return received[1], received[2]


ALPHA = [("alpha.example", "10.77.0.11"), ("alpha.example", "fd77::11")]
BETA = [("beta.example", "10.77.0.12"), ("beta.example", "fd77::12")]
MACHINE = [("machine.example", "10.77.0.1"), ("machine.example", "fd77::1")]


def test_script(sendmail):
    """A shell script's message leaves from the address of its account's host."""
    message = "To: ann@north.example\nBcc: bob@north.example\nSubject: script\n\nhi\n"
    done = sendmail(ANN, "-t", "-i", stdin=message)
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
    mail = sendmail.arrived("script")

    assert host_in(mail) in ALPHA
    assert "Return-Path: <user@alpha.example>\n" in mail
    assert re.search(r"\nFrom: (\S+ )?<?user@alpha\.example>?\n", mail)
    assert re.search(r"\nMessage-ID: <\S+@alpha\.example>\n", mail)
    assert "Bcc" not in mail
    assert "bob@" not in mail
    assert sendmail.arrived("script", "bob")


def test_account_of_nobody(sendmail):
    """It is refused, with what to do, and nothing is sent."""
    message = "To: ann@north.example\nSubject: refused\n\nhi\n"
    for words in (["-t"], ["-t", "-f", "user@alpha.example"]):
        done = sendmail(NOBODYS, *words, stdin=message)
        assert os.EX_NOPERM == done.returncode
        assert "no user of a virtual host" in done.stderr
    sendmail(ANN, "-t", stdin=message.replace("refused", "after it"))
    sendmail.arrived("after it")

    assert not [m for m in sendmail.lab.remote_mail("ann") if b"refused" in m]


@pytest.mark.parametrize(
    ("words", "header"),
    [
        (["-f", "user@beta.example"], ""),
        (["-f", "root@machine.example"], ""),
        ([], "From: user@beta.example\n"),
        ([], "From: user@alpha.example\nSender: user@beta.example\n"),
    ],
)
def test_user_of_another_host(sendmail, words, header):
    """A user of one host sends as another neither in the envelope nor in From."""
    message = f"{header}To: ann@north.example\nSubject: forged\n\nhi\n"
    done = sendmail(ANN, "-t", *words, stdin=message)

    assert os.EX_NOPERM == done.returncode
    assert "user@alpha.example only" in done.stderr
    assert not [m for m in sendmail.lab.remote_mail("ann") if b"forged" in m]
    folder = sendmail.lab.root / "drop" / str(ANN)
    assert [] == os.listdir(folder)


def test_another_account_of_another_host(sendmail):
    """Each account has the host it belongs to."""
    done = sendmail(WEB, "ann@north.example", stdin="Subject: web\n\nhi\n.\nnot this\n")
    mail = sendmail.arrived("web")

    assert 0 == done.returncode
    assert host_in(mail) in BETA
    assert mail.endswith("\n\nhi\n")


def test_root(sendmail):
    """Root is the machine, and may be any user; not one that is none."""
    assert 0 == sendmail(0, "ann@north.example", stdin="Subject: r1\n\n").returncode
    as_alpha = ("-f", "user@alpha.example", "ann@north.example")
    assert 0 == sendmail(0, *as_alpha, stdin="Subject: r2\n\n").returncode
    unknown = sendmail(0, "-f", "x@alpha.example", "ann@north.example", stdin="\n")

    assert host_in(sendmail.arrived("r1")) in MACHINE
    assert host_in(sendmail.arrived("r2")) in ALPHA
    assert os.EX_NOUSER == unknown.returncode


def test_cron(sendmail):
    """The output of a job reaches the user whose account it is."""
    message = (
        "From: root (Cron Daemon)\nTo: www-data\nSubject: Cron <www-data@box> job\n"
        "Content-Type: text/plain; charset=UTF-8\nX-Cron-Env: <SHELL=/bin/sh>\n\n"
        "10%\r20%\rdone\n"
    )
    words = ("-FCronDaemon", "-i", "-B8BITMIME", "-oem", "www-data")
    assert 0 == sendmail(WEB, *words, stdin=message).returncode
    mail = eventually(
        lambda: [
            m for m in sendmail.lab.mail("user", "beta.example") if b"X-Cron" in m
        ],
        "the output of the job",
    )[0]

    assert b"From: Cron Daemon <user@beta.example>\r\n" in mail
    assert mail.endswith(b"\r\n10%\r\n20%\r\ndone\r\n")


@pytest.mark.skipif(not shutil.which("s-nail"), reason="s-nail is not installed")
def test_mailx(sendmail):
    done = sendmail.run(
        ANN,
        *("s-nail", "-n", "-S", f"mta={sendmail.program}", "-s", "from mailx"),
        "ann@north.example",
        stdin="Grüße\n",
    )
    assert 0 == done.returncode, done.stderr

    assert host_in(sendmail.arrived("from mailx")) in ALPHA


@pytest.mark.skipif(not shutil.which("php"), reason="php-cli is not installed")
def test_php(sendmail):
    """mail() of PHP, as any web application calls it."""
    code = (
        'exit(mail("ann@north.example", "from php", "line 1\\nline 2\\n",'
        ' "From: Shop <user@beta.example>\\r\\nX-App: shop") ? 0 : 1);'
    )
    path = f"sendmail_path={sendmail.program} -t -i"
    done = sendmail.run(WEB, "php", "-d", path, "-r", code)
    assert 0 == done.returncode, done.stderr
    mail = sendmail.arrived("from php")

    assert host_in(mail) in BETA
    assert "\nFrom: Shop <user@beta.example>\nX-App: shop\n" in mail
    assert "\n\nline 1\nline 2\n" in mail


@pytest.mark.skipif(
    not Path("/usr/lib/git-core/git-send-email").exists(),
    reason="git-email is not installed",
)
def test_git_send_email(sendmail):
    home = sendmail.folder / f"home-{ANN}"
    patch = home / "0001.patch"
    sendmail.run(ANN, "true")
    patch.write_text(
        "From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001\n"
        "From: Ann <user@alpha.example>\nDate: Mon, 5 Jan 2026 10:00:00 +0000\n"
        "Subject: [PATCH] a change\n\n---\n x | 1 +\n\n--\n2.39.5\n"
    )
    words = (
        *("git", "-c", f"sendemail.smtpserver={sendmail.program}"),
        *("-c", "user.name=Ann", "-c", "user.email=user@alpha.example", "send-email"),
    )
    options = ("--confirm=never", "--from", "Ann <user@alpha.example>")
    done = sendmail.run(ANN, *words, *options, "--to", "ann@north.example", str(patch))
    assert 0 == done.returncode, done.stderr
    mail = sendmail.arrived("[PATCH] a change")

    assert host_in(mail) in ALPHA
    assert "\nFrom: Ann <user@alpha.example>\n" in mail


def test_smtp_on_standard_input(sendmail):
    """-bs speaks the same protocol as the servers, with the same answers."""
    talk = (
        "EHLO here\r\nMAIL FROM:<user@alpha.example>\r\nRCPT TO:<ann@north.example>\r\n"
        "DATA\r\nSubject: talked\r\n\r\n..dot\r\n.\r\n"
        "MAIL FROM:<user@beta.example>\r\nRCPT TO:<ann@north.example>\r\n"
        "DATA\r\nSubject: forged talk\r\n\r\nx\r\n.\r\nQUIT\r\n"
    )
    done = sendmail(ANN, "-bs", stdin=talk)
    replies = [line[:3] for line in done.stdout.splitlines() if line[3:4] == " "]
    mail = sendmail.arrived("talked")

    assert ["220", "250", "250", "250", "354", "250"] == replies[:6]
    assert ["250", "250", "354", "550", "221"] == replies[6:]
    assert mail.endswith("\n\n.dot\n")


def test_other_names(sendmail):
    """mailq shows an account its own mail; newaliases has nothing to do."""
    sendmail.lab.vnsmail("queue", "wait", "--timeout", "40")
    assert 0 == sendmail.run(ANN, str(sendmail.folder / "newaliases")).returncode
    sendmail.lab.inside("mx2.south.example", "ip", "link", "set", "eth0", "down")
    try:
        sendmail(ANN, "ann@south.example", stdin="Subject: waits\n\n")
        mine = sendmail.run(ANN, str(sendmail.folder / "mailq")).stdout
        others = sendmail.run(WEB, str(sendmail.folder / "mailq")).stdout
        all_ = sendmail(0, "-bp").stdout
        nobody = sendmail.run(NOBODYS, str(sendmail.folder / "mailq"))
    finally:
        sendmail.lab.inside("mx2.south.example", "ip", "link", "set", "eth0", "up")

    assert "ann@south.example" in mine
    assert "ann@south.example" in all_
    assert "Mail queue is empty\n" == others
    assert os.EX_NOPERM == nobody.returncode


def kill_supervisor(sendmail):
    os.kill(sendmail.lab.outer_pid("supervisor"), signal.SIGKILL)
    eventually(
        lambda: sendmail.lab.vnsmail("status", check=False).returncode == 3, "it ended"
    )


@pytest.mark.timeout(180)
def test_down_and_up_again(sendmail):
    """Whatever is killed: each message is taken once; what is wrong is told later."""
    names = [f"n{number}@south.example" for number in range(12)]
    sendmail.lab.inside("mx2.south.example", "ip", "link", "set", "eth0", "down")
    with ThreadPoolExecutor(4) as threads:
        sent = [
            threads.submit(sendmail, ANN, name, stdin="Subject: n\n\n")
            for name in names
        ]
        eventually(lambda: sum(each.done() for each in sent) >= 4, "some are sent")
        os.kill(sendmail.lab.outer_pid("supervisor"), signal.SIGKILL)
    eventually(
        lambda: sendmail.lab.vnsmail("status", check=False).returncode == 3, "it ended"
    )
    left = sendmail(ANN, "-v", "ann@north.example", stdin="Subject: left\n\n")
    forged = "From: user@beta.example\nSubject: forged left\nTo: ann@north.example\n\n"
    wrong = sendmail(ANN, "-t", stdin=forged)
    listed = sendmail.run(ANN, str(sendmail.folder / "mailq")).stdout
    refused = sendmail(NOBODYS, "ann@north.example", stdin="\n")
    sendmail.lab.up()
    folder = sendmail.lab.root / "drop" / str(ANN)
    eventually(lambda: not os.listdir(folder), "all are taken", 90)
    queued = sendmail.lab.json("queue", "list", "--host", "alpha.example")
    sendmail.lab.inside("mx2.south.example", "ip", "link", "set", "eth0", "up")
    notice = eventually(
        lambda: [
            m
            for m in sendmail.lab.mail("user", "alpha.example")
            if b"Subject: Your message was not sent" in m
        ],
        "a notice",
    )[0]

    assert [0] * len(names) == [each.result().returncode for each in sent]
    found = [r[0] for m in queued for r in m["recipients"] if r[0].startswith("n")]
    assert sorted(names) == sorted(found)
    assert (0, 0) == (left.returncode, wrong.returncode)
    assert "vnsmail is not running" in left.stderr
    assert "left for the daemon to take" in listed
    assert os.EX_NOPERM == refused.returncode
    assert host_in(sendmail.arrived("left")) in ALPHA
    assert b"| Subject: forged left\r\n" in notice
    assert not [m for m in sendmail.lab.remote_mail("ann") if b"forged left" in m]


def test_files_that_are_no_messages(sendmail, tmp_path):
    """Links, pipes and files of others in an account's folder are not read."""
    folder = sendmail.lab.root / "drop" / str(ANN)
    secret = tmp_path / "secret"
    front = "vnsmail-drop 1 0000000000000018\nto ann@north.example\n\n"
    secret.write_text(f"{front}Subject: secret\n\n\n")
    (folder / ("a" * 32)).symlink_to(secret)
    os.mkfifo(folder / ("b" * 32))
    shutil.copy(secret, folder / ("c" * 32))
    sendmail(ANN, "-t", stdin="To: ann@north.example\nSubject: after them\n\n")
    answers = [
        sendmail.run(
            ANN, PYTHON, "-c", ASK, str(sendmail.lab.root / "run" / "drop.sock"), name
        ).stdout
        for name in ("a" * 32, "b" * 32, "c" * 32, "../" + "d" * 29)
    ]
    sendmail.arrived("after them")

    assert {"refused"} == {answer.split()[0] for answer in answers}
    assert not [m for m in sendmail.lab.remote_mail("ann") if b"secret" in m]
    assert secret.exists()


ASK = """
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1])
s.send(b"take " + sys.argv[2].encode())
print(s.recv(1000).decode())
"""


def test_login_that_is_taken_away(sendmail):
    """An account that is no user any more sends nothing."""
    sendmail.lab.vnsmail("login", "remove", "www-data")
    done = sendmail(WEB, "ann@north.example", stdin="Subject: late\n\n")
    sendmail.lab.vnsmail("login", "add", "user@beta.example", "www-data")

    assert os.EX_NOPERM == done.returncode
    assert (
        0 == sendmail(WEB, "ann@north.example", stdin="Subject: again\n\n").returncode
    )
    assert host_in(sendmail.arrived("again")) in BETA
