"""Who mail is really from: what strangers bring is looked at, what hosts send is signed.

The keys and policies of strangers are in the lab's own zone, and what is signed is
verified with somebody else's program.
"""

import base64
import email
import json
from pathlib import Path

import dkim as dkimpy
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from integration.labs import eventually
from vnsmail.lab.nameserver import ZONE

NORTH, SOUTH = "mx1.north.example", "mx2.south.example"
ALPHA = "10.77.0.11"
FORGED = (
    b"Authentication-Results: Alpha.example; dmarc=pass header.from=bank.example\r\n"
)

TALK = """
import smtplib, sys
name, text = sys.argv[1:3]
s = smtplib.SMTP("10.77.0.11", 25, name, timeout=60)
s.ehlo()
s.docmd("MAIL FROM:<ann@north.example>")
s.docmd("RCPT TO:<user@alpha.example>")
code, said = s.data(open(text, "rb").read())
print(code, said.decode())
s.quit()
"""


@pytest.fixture(scope="module")
def key():
    return generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def zoned(lab, key):
    """The lab, whose zone has the key and the policy of north.example."""
    der = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    public = base64.b64encode(der).decode()
    (lab.root / ZONE).write_text(
        '_dmarc.north.example. TXT "v=DMARC1; p=reject"\n'
        f's._domainkey.north.example. TXT "v=DKIM1; p={public[:200]}" "{public[200:]}"\n'
    )
    return lab


def message(subject: str) -> bytes:
    return (
        b"From: Ann <ann@north.example>\r\nTo: user@alpha.example\r\n"
        b"Subject: "
        + subject.encode()
        + b"\r\nDate: Thu, 1 Jan 1970 00:00:00 +0000\r\n"
        b"Message-ID: <" + subject.encode() + b"@north.example>\r\n\r\n"
        b"Hello \r\n.\r\nbye\r\n"
    )


def signed(key, text):
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    return dkimpy.sign(text, b"s", b"north.example", pem) + text


def bring(lab, node, text):
    """Bring a message to alpha from a node; return what alpha says."""
    file = lab.root / "message"
    file.write_bytes(text)
    return lab.inside(node, "/usr/bin/python3", "-c", TALK, node, str(file)).stdout


def arrived(lab, subject):
    wanted = f"Subject: {subject}\r\n".encode()
    found = eventually(
        lambda: [m for m in lab.mail("user", "alpha.example") if wanted in m], subject
    )
    return found[0]


def results(mail: bytes) -> str:
    """The one field with results, which is above our trace header."""
    parsed = email.message_from_bytes(mail)
    (field,) = [
        value
        for value in parsed.get_all("Authentication-Results", [])
        if value.split(";")[0].strip().lower() == "alpha.example"
    ]
    assert mail.index(b"Authentication-Results: alpha.example") < mail.index(
        b"Received:"
    )
    return " ".join(field.split())


def test_what_is_from_where_it_says(zoned):
    assert bring(zoned, NORTH, FORGED + message("honest")).startswith("250")
    mail = arrived(zoned, "honest")

    found = results(mail)
    assert "iprev=pass" in found
    assert "spf=pass smtp.mailfrom=ann@north.example" in found
    assert "dkim=none" in found
    assert "dmarc=pass (p=reject dis=none) header.from=north.example" in found
    assert b"bank.example" not in mail, "a forged field is gone"
    assert mail.endswith(message("honest"))


def test_what_is_signed_and_comes_from_elsewhere(zoned, key):
    text = signed(key, message("signed"))
    assert bring(zoned, SOUTH, text).startswith("250")
    mail = arrived(zoned, "signed")

    found = results(mail)
    assert "spf=fail" in found
    assert "dkim=pass header.d=north.example header.s=s" in found
    assert "dmarc=pass" in found
    assert mail.endswith(text)


def test_what_was_changed_on_the_way(zoned, key):
    text = signed(key, message("changed")).replace(b"Hello", b"Hallo")
    assert bring(zoned, SOUTH, text).startswith("250")

    found = results(arrived(zoned, "changed"))
    assert "dkim=fail" in found
    assert "dmarc=fail (p=reject dis=reject)" in found


def test_the_host_refuses_what_the_domain_wants_refused(zoned, key):
    zoned.vnsmail("host", "set", "alpha.example", "--authentication", "reject")

    said = bring(zoned, SOUTH, message("refused"))
    assert said.startswith("550 5.7.1")
    assert "north.example" in said
    assert bring(zoned, SOUTH, signed(key, message("taken"))).startswith("250")
    arrived(zoned, "taken")
    assert b"Subject: refused" not in b"".join(zoned.mail("user", "alpha.example"))


# What hosts send ---------------------------------------------------------------------


def published(lab, host):
    """The records that ``vnsmail dkim`` prints, joined as DNS joins them."""
    lines = lab.vnsmail("dkim", "list", host, "--records").stdout.splitlines()
    names = [line.split(" ", 1) for line in lines]
    return {name.rstrip("."): "".join(v.split('"')[1::2]) for name, v in names}


def signatures(lab, mail):
    """Which keys have signed a message, all of which somebody else's program verified."""
    names = [
        "".join(field.split()).split(";s=")[1].split(";")[0]
        for field in email.message_from_bytes(mail).get_all("DKIM-Signature", [])
    ]
    zone = published(lab, "alpha.example") if names else {}
    for number in range(len(names)):
        looked_up = dkimpy.DKIM(mail).verify(
            idx=number,
            dnsfunc=lambda name, timeout=5: zone[name.decode().rstrip(".")].encode(),
        )
        assert looked_up, (number, mail)
    return names


def to_north(lab, subject):
    lab.send("user@alpha.example", "x@north.example", subject=subject, text="Grüße ")
    wanted = f"Subject: {subject}\r\n".encode()
    (found,) = eventually(
        lambda: [m for m in lab.remote_mail("x") if wanted in m], subject
    )
    return found


def test_nothing_is_signed_before_a_key_is_in_use(lab):
    assert [] == signatures(lab, to_north(lab, "unsigned"))
    created = lab.json("dkim", "create", "alpha.example")
    assert ["rsa", "ed25519"] == [key["algorithm"] for key in created]
    assert [] == signatures(lab, to_north(lab, "waiting"))


def test_a_key_that_dns_shows_is_put_to_use(lab):
    """From inside, where the lab's name server is: it publishes what was made."""
    activate = (
        "-P",
        "-m",
        "vnsmail.cli.app",
        "--root",
        str(lab.root),
        "dkim",
        "activate",
    )
    lab.inside("machine", lab.python, *activate, "alpha.example")

    signed_with = signatures(lab, to_north(lab, "signed"))
    assert ["rsa", "ed25519"] == [name.partition("-")[0] for name in signed_with]


def test_the_next_key_takes_its_place(lab):
    rotated = lab.json("dkim", "rotate", "alpha.example", "--selector", "next")
    lab.vnsmail("dkim", "activate", "alpha.example", "--unchecked")

    assert ["next", "next-ed25519"] == [key["selector"] for key in rotated]
    assert ["next", "next-ed25519"] == signatures(lab, to_north(lab, "rotated"))


def test_notices_are_signed(lab):
    """What the host itself writes, as what its users write."""
    lab.vnsmail("dkim", "remove", "alpha.example", "next-ed25519")
    lab.send("user@alpha.example", "nosuch@beta.example", subject="lost", text="x")
    (notice,) = eventually(
        lambda: [m for m in lab.mail("user", "alpha.example") if b"5.1.1" in m],
        "notice",
    )

    assert ["next"] == signatures(lab, notice)


SUBMIT = """
import smtplib, ssl, sys
password, text = sys.argv[1:3]
s = smtplib.SMTP("10.77.0.11", 587, "laptop.example", timeout=60)
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
s.starttls(context=context)
s.login("user@alpha.example", password)
s.sendmail("user@alpha.example", ["x@north.example"], open(text, "rb").read())
s.quit()
"""


def test_what_users_submit_is_signed(lab):
    """Signed, not looked at; what it claims in the host's name is gone."""
    word = lab.vnsmail(
        "user", "passwd", "user@alpha.example", "--generate"
    ).stdout.strip()
    text = b"From: user@alpha.example\r\nSubject: submitted\r\n\r\nHello \r\n"
    file = lab.root / "message"
    file.write_bytes(FORGED + text)
    lab.inside(SOUTH, "/usr/bin/python3", "-c", SUBMIT, word, str(file))

    (mail,) = eventually(
        lambda: [m for m in lab.remote_mail("x") if b"Subject: submitted" in m], "mail"
    )
    assert ["next"] == signatures(lab, mail)
    assert b"Authentication-Results" not in mail
    assert mail.endswith(b"\r\n\r\nHello \r\n")


def test_the_keys_are_roots_files(lab):
    file = Path(lab.root) / "dkim" / "alpha.example" / "keys.json"

    assert 0o600 == file.stat().st_mode & 0o777
    assert 0 == file.stat().st_uid
    assert json.loads(file.read_text())


def test_without_dns_nothing_is_refused_or_lost(zoned):
    """The last of this file: alpha asks where no name server listens."""
    zoned.vnsmail("host", "set", "alpha.example", "--resolver", "10.77.0.4")

    assert bring(zoned, SOUTH, message("doubtful")).startswith("250")
    found = results(arrived(zoned, "doubtful"))
    assert "spf=temperror" in found
    assert "dmarc=temperror" in found
