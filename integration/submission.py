"""A lab whose users have passwords, and a client that says what it is told to."""

import email
import email.policy

from integration.labs import Lab, eventually

PASSWORD = "correct horse 7"  # noqa: S105
OTHER_PASSWORD = "other horse 8"  # noqa: S105
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


def give_passwords(lab: Lab) -> None:
    """Give two hosts a user of the same name, with other passwords."""
    for address, password in ((USER, PASSWORD), ("user@beta.example", OTHER_PASSWORD)):
        lab.vnsmail("user", "passwd", address, "--password-stdin", stdin=password)
    lab.vnsmail("alias", "add", "sales@alpha.example", "user")


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
