"""TLS and submission on the hosts' own addresses, in both contexts, with real clients.

alpha has a namespace, delta an alias of the machine's link.
"""

import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from integration import labs
from integration.labs import Lab, eventually, mails
from vnsmail.supervisor.x509 import self_signed

ALPHA, GAMMA, DELTA = "10.77.0.11", "10.77.0.13", "10.77.0.14"
HOSTS = {"alpha.example": ALPHA, "delta.example": DELTA}
PASSWORD = "correct horse battery"  # noqa: S105

each_host = pytest.mark.parametrize(("host", "address"), HOSTS.items())

SEND = """
import smtplib, ssl, sys
address, port, user, password = sys.argv[1:]
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
if port == "465":
    server = smtplib.SMTP_SSL(address, 465, timeout=20, context=context)
else:
    server = smtplib.SMTP(address, int(port), timeout=20)
    server.starttls(context=context)
server.ehlo("client.example")
server.login(user, password)
server.sendmail(user, ["ann@north.example"], "Subject: signed in\\r\\n\\r\\nhello\\r\\n")
server.quit()
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    found = Lab(tmp_path_factory.mktemp("lab"), hosts=4)
    try:
        for host in HOSTS:
            found.vnsmail(
                "user", "passwd", f"user@{host}", "--password-stdin", stdin=PASSWORD
            )
        yield found
    finally:
        found.stop()


def certificate(lab, address, *, port=25, name=""):
    """Return the certificate that a client is shown, as openssl(1) sees it."""
    how = () if port == 465 else ("-starttls", "smtp")
    sni = ("-servername", name) if name else ("-noservername",)
    done = lab.inside(
        "mx1.north.example",
        *(
            "sh",
            "-c",
            'exec "$@" </dev/null',
            "sh",
            "openssl",
            "s_client",
            "-showcerts",
        ),
        *("-connect", f"{address}:{port}", *how, *sni),
        check=False,
    )
    found = re.search(r"-----BEGIN.*?END CERTIFICATE-----\n", done.stdout, re.DOTALL)
    assert found, done.stderr
    return found[0]


@each_host
def test_listens_everywhere(lab, host, address):
    """Three ports on each address, all made by the broker in the host's context."""
    shown = lab.json("host", "show", host)

    assert {f"{address}:{port}" for port in (25, 465, 587)} <= set(shown["listening"])
    assert shown["certificates"][0]["issuer"] == "self-signed"


@each_host
@pytest.mark.parametrize("port", [25, 465, 587])
def test_certificate_of_each_host(lab, host, address, port):
    """Each host shows its own."""
    shown = certificate(lab, address, port=port)
    names = lab.json("host", "certificate", host)[0]["names"]
    file = lab.root / "tls" / host / "default.pem"

    assert host in names
    assert file.read_text().startswith(shown)


@each_host
@pytest.mark.parametrize("port", ["465", "587"])
def test_a_user_sends(lab, host, address, port):
    """Within TLS and signed in; the remote sees the host's address, the trace says how."""
    user = f"user@{host}"
    before = len(lab.remote_mail("ann"))
    lab.inside(
        "mx2.south.example", sys.executable, "-c", SEND, address, port, user, PASSWORD
    )
    lab.settle()
    message = lab.remote_mail("ann")[before].replace(b"\r\n\t", b" ")

    assert b"with ESMTPSA (TLSv1.3, " in message
    source = re.escape(f"[{address}]|[IPv6:fd77::{address.rpartition('.')[2]}]")
    source = source.replace(r"\|", "|")
    assert re.search(source.encode(), message.partition(b"Subject:")[0])


@each_host
def test_nobody_relays(lab, host, address):
    """Unsigned, at another host, or with a wrong password: nothing is taken."""
    other = next(name for name in HOSTS if name != host)
    for user, password in ((f"user@{other}", PASSWORD), (f"user@{host}", "wrong")):
        done = lab.inside(
            *("mx2.south.example", sys.executable, "-c", SEND, address, "587"),
            *(user, password),
            check=False,
        )
        assert "SMTPAuthenticationError" in done.stderr
    done = swaks(lab, address, "--port", "587", "--to", "ann@north.example")
    assert "530 5.7.0 say STARTTLS first" in done
    done = swaks(lab, address, "--port", "25", "--tls", "--to", "ann@north.example")
    assert "550 5.7.1 relaying denied" in done


def swaks(lab, address, *words):
    done = lab.inside(
        *("mx2.south.example", "swaks", "--server", address, *words),
        *("--from", "x@north.example"),
        check=False,
    )
    return done.stdout + done.stderr


def test_certificates_are_swapped(lab, tmp_path):
    """By name and without a restart; a running session goes on."""
    pid = lab.outer_pid("worker-0")
    talk = lab.beside("mx2.south.example", sys.executable, "-c", TALK, ALPHA)
    assert talk.stdout.readline() == "secure\n"
    main, other = tmp_path / "main.pem", tmp_path / "other.pem"
    main.write_bytes(self_signed(["alpha.example"], 1_790_000_000))
    other.write_bytes(self_signed(["mail.other.example"], 1_790_000_000))
    lab.vnsmail(
        *(
            "host",
            "certificate",
            "alpha.example",
            "--cert",
            str(main),
            "--key",
            str(main),
        )
    )
    lab.vnsmail(
        *("host", "certificate", "alpha.example", "--cert", str(other)),
        *("--key", str(other), "--name", "mail.other.example"),
    )

    assert main.read_text().startswith(certificate(lab, ALPHA))
    assert other.read_text().startswith(
        certificate(lab, ALPHA, name="mail.other.example")
    )
    assert main.read_text().startswith(
        certificate(lab, ALPHA, port=465, name="x.example")
    )
    out, _ = talk.communicate("go on\n", timeout=30)
    assert out == "250\n"
    assert pid == lab.outer_pid("worker-0")


TALK = """
import smtplib, ssl, sys
server = smtplib.SMTP(sys.argv[1], 25, timeout=30)
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
server.starttls(context=context)
print("secure", flush=True)
input()
print(server.ehlo("client.example")[0])
"""


HOOKS = re.findall(
    r"```sh\n(.+?)```",
    (Path(__file__).parents[1] / "docs" / "how-to" / "certificates.md").read_text(),
    re.DOTALL,
)


@pytest.fixture
def hooks(lab, tmp_path):
    """The hooks as they are documented, by their client, and a vnsmail that they find."""
    command = " ".join([*lab.prefix, *labs.VNSMAIL, "--root", str(lab.root)])
    scripts = {
        "vnsmail": f'#!/bin/sh\nexec {command} "$@"\n',
        **dict(zip(("certbot", "lego"), HOOKS, strict=True)),
    }
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("client", "names"),
    [
        ("certbot", {"RENEWED_LINEAGE": "{0}/gamma.example-0001"}),
        (
            "lego",
            {
                "LEGO_CERT_DOMAIN": "gamma.example",
                "LEGO_CERT_PATH": "{0}/gamma.example-0001/fullchain.pem",
                "LEGO_CERT_KEY_PATH": "{0}/gamma.example-0001/privkey.pem",
            },
        ),
        (
            "lego",
            {
                "LEGO_HOOK_CERT_NAME": "gamma.example",
                "LEGO_HOOK_CERT_PATH": "{0}/gamma.example-0001/fullchain.pem",
                "LEGO_HOOK_CERT_KEY_PATH": "{0}/gamma.example-0001/privkey.pem",
            },
        ),
    ],
)
def test_hook_of_an_acme_client(lab, hooks, client, names):
    """Called as the client calls it: no arguments, what is new in the environment."""
    lineage = hooks / "gamma.example-0001"
    lineage.mkdir()
    pem = self_signed(["gamma.example"], 1_790_000_000)
    key = pem.index(b"-----BEGIN PRIVATE KEY")
    (lineage / "fullchain.pem").write_bytes(pem[:key])
    (lineage / "privkey.pem").write_bytes(pem[key:])
    told = {name: value.format(hooks) for name, value in names.items()}
    path = f"{hooks}:{os.environ['PATH']}"
    done = subprocess.run(
        [hooks / client],
        env={**os.environ, "PATH": path, **told},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert pem.decode().startswith(certificate(lab, GAMMA))


def test_hook_of_certbot_for_a_web_site(hooks):
    """A certificate of no virtual host is none of ours, and no error."""
    done = subprocess.run(
        [hooks / "certbot"],
        env={
            **os.environ,
            "PATH": f"{hooks}:{os.environ['PATH']}",
            "RENEWED_LINEAGE": "/etc/letsencrypt/live/www.example",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


def test_bad_certificate_is_refused(lab, tmp_path):
    """One line, exit 2, and what was there stays."""
    before = certificate(lab, DELTA)
    one, two = tmp_path / "one.pem", tmp_path / "two.pem"
    one.write_bytes(self_signed(["delta.example"], 1_790_000_000))
    two.write_bytes(self_signed(["delta.example"], 1_000_000_000))
    for cert, key, problem in ((one, two, "key is another"), (two, two, "expired")):
        done = lab.vnsmail(
            *("host", "certificate", "delta.example"),
            *("--cert", str(cert), "--key", str(key)),
            check=False,
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert problem in done.stderr
    assert before == certificate(lab, DELTA)


def test_the_worker_cannot_read_keys(lab):
    """They are root's; the worker has what it was given, and no path to a file."""
    folder = lab.root / "tls"
    worker = lab.outer_pid("worker-0")
    seen = Path(f"/proc/{worker}/root{folder}")

    assert folder.stat().st_uid == 0
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not seen.exists()


def test_proxy(lab):
    """A proxy that is trusted says who the client is; nobody else does."""
    lab.restart('\n[smtp]\nproxy_from = ["10.77.0.4/32"]\n')
    before = len(mails(lab.root / "hosts/alpha.example/mail/user"))
    header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + socket.inet_aton("198.51.100.7")
    header += socket.inet_aton(ALPHA) + struct.pack("!HH", 40000, 25)
    from_proxy = lab.inside(
        "mx2.south.example", sys.executable, "-c", PROXY, ALPHA, header.hex()
    )
    from_other = lab.inside(
        "mx1.north.example", sys.executable, "-c", PROXY, ALPHA, header.hex()
    )
    plain = lab.inside(
        "mx2.south.example", sys.executable, "-c", PROXY, ALPHA, b"EHLO b\r\n".hex()
    )

    assert "250 2.0.0 queued" in from_proxy.stdout
    (message,) = eventually(
        lambda: lab.mail("user", "alpha.example")[before:], "the message"
    )
    assert b"[198.51.100.7]" in message.partition(b"Subject:")[0]
    assert "250" not in from_other.stdout
    assert plain.stdout.strip() == ""


PROXY = """
import socket, sys
sock = socket.create_connection((sys.argv[1], 25), timeout=20)
try:
    sock.sendall(bytes.fromhex(sys.argv[2]))
    said = sock.recv(1000)
    if said.startswith(b"220"):
        sock.sendall(b"EHLO c.example\\r\\nMAIL FROM:<>\\r\\nRCPT TO:<user@alpha.example>\\r\\n"
            b"DATA\\r\\nSubject: x\\r\\n\\r\\nx\\r\\n.\\r\\nQUIT\\r\\n")
    while data := sock.recv(1000):
        said += data
except ConnectionResetError:
    pass
print(said.decode())
"""
