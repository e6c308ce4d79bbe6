"""Users sign in with the programs they have, and what they send leaves from their host."""

import json
import shutil
import subprocess

import pytest

from integration.labs import eventually
from integration.submission import (
    ALPHA,
    BETA,
    FROM,
    PASSWORD,
    USER,
    give_passwords,
    got,
    submitted,
    talk,
)


@pytest.fixture(scope="module", autouse=True)
def people(lab):
    """Two hosts have a user of the same name, with other passwords."""
    give_passwords(lab)


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
    try:
        subprocess.run(
            ["npm", "install", *words, "nodemailer"],
            capture_output=True,
            timeout=50,
            check=True,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip("npm does not find nodemailer")
    return folder / "node_modules"


def test_nodemailer(lab, nodemailer):
    """nodemailer, what most of the web sends with."""
    words = (f"NODE_PATH={nodemailer}", "node", "-e", NODEMAILER)
    to = "nodemailer@north.example"
    lab.inside(FROM, "env", *words, USER, PASSWORD, to)

    submitted(lab, "nodemailer")


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


# What is seen from outside -----------------------------------------------------------


def test_no_secret_is_seen(lab):
    """Neither logs nor the command lines of processes have passwords or hashes."""
    shown = lab.log() + lab.inside("machine", "ps", "axww", "-o", "args").stdout

    assert "vnsmail.engines.native" in shown
    assert PASSWORD not in shown
    assert "argon2id" not in shown
    assert "SCRAM-SHA-256$" not in shown


def test_the_packets(lab):
    """Everything that left is from the address of its host, as captured packets prove."""
    lab.settle()
    proof = json.loads(lab.vnsmail("prove", "--json", check=False).stdout)
    (alpha,) = (row for row in proof["hosts"] if row["name"] == "alpha.example")

    assert ("pass", 0) == (alpha["verdict"], alpha["wrong"]), proof
    assert set(alpha["seen"]) <= {"10.77.0.11", "fd77::11"}
