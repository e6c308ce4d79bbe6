"""Users sign in with the programs they have, and what they send leaves from their host."""

import email
import email.policy
import json
import re
import shutil
import subprocess

import pytest

from integration.labs import Lab, eventually

PASSWORD = "correct horse 7"  # noqa: S105
ALPHA, BETA = "10.77.0.11", "10.77.0.12"
USER = "user@alpha.example"
FROM = "mx1.north.example"
"""Where clients are: another machine."""
ELSEWHERE = "mx2.south.example"
SMTPLIB = """
import smtplib, ssl, sys
address, port, mechanism, name, password, sender, author, to = sys.argv[1:]
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
if port == "465":
    s = smtplib.SMTP_SSL(address, 465, "client.example", context=context, timeout=30)
else:
    s = smtplib.SMTP(address, int(port), "client.example", timeout=30)
    s.ehlo()
    print("before", sorted(s.esmtp_features))
    if mechanism != "CLEAR":
        s.starttls(context=context)
s.ehlo()
if mechanism not in ("NONE", "CLEAR"):
    s.user, s.password = name, password
    try:
        auth = getattr(s, "auth_" + mechanism.lower())
        print("auth", s.auth(mechanism, auth)[0])
    except smtplib.SMTPAuthenticationError as error:
        print("auth", error.smtp_code, error.smtp_error.decode())
print("mail", *s.docmd("MAIL FROM:<" + sender + ">"))
print("rcpt", *s.docmd("RCPT TO:<" + to + ">"))
code, text = s.docmd("DATA")
if code == 354:
    s.send(b"From: " + author.encode() + b"\\r\\nSubject: smtplib\\r\\n\\r\\nhello\\r\\n.\\r\\n")
    code, text = s.getreply()
print("data", code, text)
try:
    s.quit()
except smtplib.SMTPServerDisconnected:
    pass
"""


@pytest.fixture(scope="module")
def people(lab):
    """Both hosts have a user of the same name, with other passwords."""
    for address, password in ((USER, PASSWORD), ("user@beta.example", "other horse 8")):
        lab.vnsmail("user", "passwd", address, "--password-stdin", stdin=password)
    lab.vnsmail("alias", "add", "sales@alpha.example", "user")


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


def talk(lab: Lab, node: str = FROM, **changes: str) -> dict[str, str]:
    """Say one message with smtplib; return the replies by command."""
    words = {
        "address": ALPHA,
        "port": "587",
        "mechanism": "PLAIN",
        "name": "user",
        "password": PASSWORD,
        "sender": USER,
        "author": USER,
        "to": "smtplib@north.example",
    }
    words |= changes
    done = lab.inside(node, "/usr/bin/python3", "-c", SMTPLIB, *words.values())
    return {
        line.partition(" ")[0]: line.partition(" ")[2]
        for line in done.stdout.splitlines()
    }


def got(lab: Lab, user: str) -> email.message.Message:
    """Wait for the message that a user of the north got, and return it."""
    (mail,) = eventually(lambda: lab.remote_mail(user), f"mail for {user}")
    return email.message_from_bytes(mail, policy=email.policy.default)


def left_as_its_own(message: email.message.Message) -> bool:
    """Say whether the remote saw the host's address where the message came from."""
    received = " ".join(str(message.get_all("Received", [])[0]).split())
    return "from alpha.example (" in received and (
        "[10.77.0.11]" in received or "[IPv6:fd77::11]" in received
    )


def submitted(lab: Lab, user: str) -> None:
    """Check that a message came to a user of the north, from where it should."""
    message = got(lab, user)

    assert left_as_its_own(message)
    first = " ".join(str(message.get_all("Received", [])[-1]).split())
    assert "by alpha.example with ESMTPSA (TLSv1." in first


# Clients -----------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("port", ["587", "465"])
def test_smtplib(lab, port, mechanism):
    """Python's own, both mechanisms it shares with us, both ways to TLS."""
    to = f"smtplib-{port}-{mechanism.lower()}"
    said = talk(lab, port=port, mechanism=mechanism, to=f"{to}@north.example")

    assert ["235", "250", "250", "250"] == [
        said[step][:3] for step in ("auth", "mail", "rcpt", "data")
    ]
    submitted(lab, to)


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("tls", [("--tls",), ("--tls-on-connect", "--port", "465")])
def test_swaks(lab, mechanism, tls):
    """swaks."""
    to = f"swaks-{mechanism.lower()}{len(tls)}"
    words = ("--server", ALPHA, "--port", "587", *tls, "--auth", mechanism)
    words += ("--auth-user", USER, "--auth-password", PASSWORD)
    lab.inside(FROM, "swaks", *words, "--from", USER, "--to", f"{to}@north.example")

    submitted(lab, to)


@pytest.mark.parametrize(
    ("url", "options"),
    [("smtps://10.77.0.11", ()), ("smtp://10.77.0.11:587", ("--ssl-reqd",))],
)
def test_curl(lab, url, options, tmp_path):
    """curl."""
    to = f"curl-{len(options)}"
    file = tmp_path / "message"
    file.write_bytes(f"From: {USER}\r\nSubject: curl\r\n\r\nhello\r\n".encode())
    lab.inside(
        *(FROM, "curl", "--silent", "--show-error", "--insecure", *options, url),
        *("--user", f"{USER}:{PASSWORD}", "--mail-from", USER),
        *("--mail-rcpt", f"{to}@north.example", "--upload-file", str(file)),
    )

    submitted(lab, to)


@pytest.mark.parametrize("mechanism", ["scram-sha-256", "plain"])
def test_msmtp(lab, mechanism, tmp_path):
    """msmtp, by GNU SASL: here both sides prove that they know the password."""
    if shutil.which("msmtp") is None:
        pytest.skip("msmtp is not installed")
    to = f"msmtp-{mechanism}"
    message = tmp_path / "message"
    message.write_text(f"From: {USER}\nSubject: msmtp\n\nhello\n")
    words = ["msmtp", f"--host={ALPHA}", "--port=587", "--tls=on", "--tls-starttls=on"]
    words += ["--tls-certcheck=off", f"--auth={mechanism}", "--user=user"]
    words += [f"--passwordeval=echo '{PASSWORD}'", f"--from={USER}", "--timeout=30"]
    words += [f"{to}@north.example"]
    line = " ".join(f"'{w}'" if "'" not in w else f'"{w}"' for w in words)
    lab.inside(FROM, "sh", "-c", f"{line} < {message}")

    submitted(lab, to)


def test_s_nail(lab):
    """s-nail, mailx for most."""
    if shutil.which("s-nail") is None:
        pytest.skip("s-nail is not installed")
    words = "s-nail -:/ -S v15-compat -S tls-verify=ignore -S sendwait"
    words += f" -S smtp-auth=plain -S from={USER} -S mta=submissions://user:"
    words += f"{PASSWORD.replace(' ', '%20')}@{ALPHA}:465 -s mailx s-nail@north.example"
    lab.inside(FROM, "sh", "-c", f"echo hello | HOME=/nowhere {words}")

    submitted(lab, "s-nail")


NODEMAILER = """
const [user, pass, to] = process.argv.slice(1);
require("nodemailer").createTransport({
  host: "10.77.0.11", port: 587, requireTLS: true, tls: {rejectUnauthorized: false},
  auth: {user, pass},
}).sendMail({from: user, to, subject: "nodemailer", text: "hello"}).then(
  (info) => console.log(info.response),
  (error) => { console.error(error); process.exit(1); });
"""


@pytest.fixture(scope="module")
def nodemailer(tmp_path_factory):
    """The folder of modules with nodemailer in it, where npm finds it."""
    folder = tmp_path_factory.mktemp("npm")
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm is not installed")
    words = ("--silent", "--no-audit", "--no-fund", "--prefix", str(folder))
    done = subprocess.run(
        ["npm", "install", *words, "nodemailer"],
        capture_output=True,
        timeout=50,
        check=False,
    )
    if done.returncode:
        pytest.skip("npm does not find nodemailer")
    return folder / "node_modules"


def test_nodemailer(lab, nodemailer):
    """nodemailer, what most of the web sends with."""
    words = (f"NODE_PATH={nodemailer}", "node", "-e", NODEMAILER)
    to = "nodemailer@north.example"
    lab.inside(FROM, "env", *words, USER, PASSWORD, to)

    submitted(lab, "nodemailer")


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


# Aliases -----------------------------------------------------------------------------


def test_forwarded(lab):
    """What an alias sends elsewhere leaves from the address of the host it came to."""
    lab.vnsmail("alias", "add", "both@beta.example", "user", "copy@north.example")
    lab.send(USER, "both@beta.example", subject="for both")
    message = got(lab, "copy")
    top = " ".join(str(message.get_all("Received", [])[0]).split())

    assert top.startswith("from beta.example (beta.example [")
    assert "10.77.0.12" in top or "fd77::12" in top
    assert f"<{USER}>" == message["Return-Path"]
    assert eventually(lambda: lab.mail("user", "beta.example"), "the one here")


def test_full_mailbox(lab):
    """It is refused for now, and taken again when there is room."""
    lab.vnsmail("user", "add", "small@beta.example", "--quota", "1")
    here = {"address": BETA, "port": "25", "mechanism": "CLEAR"}
    said: list[str] = []
    while "452 b'4.2.2" not in " ".join(said):
        said.append(talk(lab, **here, to="small@beta.example")["rcpt"])
        assert len(said) < 20
    lab.vnsmail("user", "quota", "small@beta.example", "none")

    assert talk(lab, **here, to="small@beta.example")["rcpt"].startswith("250")


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


# What is seen from outside -----------------------------------------------------------


def test_no_secret_is_seen(lab):
    """Neither logs nor the command lines of processes have passwords or hashes."""
    shown = lab.log() + lab.inside("machine", "ps", "axww", "-o", "args").stdout

    assert "vnsmail.engines.native" in shown
    assert PASSWORD not in shown
    assert "argon2id" not in shown
    assert "SCRAM-SHA-256$" not in shown


def test_failures_are_counted(lab):
    """They are in status."""
    (alpha,) = (
        r for r in lab.json("status")["owners"] if r["owner"] == "alpha.example"
    )

    assert alpha["failed_sign_ins"] > 0


def test_the_packets(lab):
    """Everything that left is from the address of its host, as captured packets prove."""
    lab.settle()
    proof = json.loads(lab.vnsmail("prove", "--json", check=False).stdout)
    (alpha,) = (row for row in proof["hosts"] if row["name"] == "alpha.example")

    assert ("pass", 0) == (alpha["verdict"], alpha["wrong"]), proof
    assert set(alpha["seen"]) <= {"10.77.0.11", "fd77::11"}
