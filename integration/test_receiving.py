"""Mail comes in on a host's own address, and failures come back as notices."""

import email
import email.policy
from typing import Any

import pytest

from integration.labs import eventually

TALK = """
import smtplib, sys
to = sys.argv[2]
s = smtplib.SMTP(sys.argv[1], 25, "mx1.north.example", timeout=20)
s.ehlo()
print(s.docmd("MAIL FROM:<ann@north.example>")[0], *s.docmd("RCPT TO:<" + to + ">"))
s.quit()
"""


def test_delivery_between_hosts_goes_over_the_network(lab):
    """Two hosts of one machine are two hosts: SMTP, with the sender's own address."""
    lab.send("user@alpha.example", "USER@Beta.Example", subject="hello", text="Grüße")
    lab.settle()
    (mail,) = lab.mail("user", "beta.example")
    message = email.message_from_bytes(mail, policy=email.policy.default)

    assert mail.startswith(b"Return-Path: <user@alpha.example>\r\n")
    received = " ".join(message.get_all("Received", [])[0].split())
    assert received.startswith(
        "from alpha.example (alpha.example [IPv6:fd77::11]) by beta.example with ESMTPS (TLSv1."
    )
    assert "Grüße\n" == message.get_content().replace("\r\n", "\n")
    assert "user@alpha.example" == message["From"].addresses[0].addr_spec
    assert message["Message-ID"].endswith("@alpha.example>")
    assert message["Date"]


def test_unknown_user_comes_back(lab):
    """The host says 550, and the sender gets a delivery status notification."""
    lab.send("user@gamma.example", "nosuch@beta.example", subject="to nobody")
    lab.settle()
    (mail,) = eventually(lambda: lab.mail("user", "gamma.example"), "a notice")
    message = email.message_from_bytes(mail, policy=email.policy.default)
    report: Any = message.get_payload(1)

    assert mail.startswith(b"Return-Path: <>\r\n")
    assert "multipart/report" == message.get_content_type()
    assert "delivery-status" == message.get_param("report-type")
    assert "message/delivery-status" == report.get_content_type()
    fields = report.get_payload(1)
    assert "rfc822; nosuch@beta.example" == fields["Final-Recipient"]
    assert "failed" == fields["Action"]
    assert "5.1.1" == fields["Status"]
    assert "550" in fields["Diagnostic-Code"]


def test_domain_that_is_not_there(lab):
    """A name that DNS does not know fails at once, and says so."""
    lab.send("user@delta.example", "ann@nowhere.example", subject="to nowhere")
    lab.settle()
    (mail,) = eventually(lambda: lab.mail("user", "delta.example"), "a notice")

    assert b"Status: 5.1.2" in mail


@pytest.mark.parametrize(
    ("recipient", "code"),
    [
        ("user@alpha.example", 250),
        ("postmaster@alpha.example", 250),
        ("nobody@alpha.example", 550),
        ("user@beta.example", 550),
        ("ann@south.example", 550),
    ],
)
@pytest.mark.parametrize("address", ["10.77.0.11", "fd77::11"])
def test_who_is_taken(lab, recipient, code, address):
    """A host takes mail for its own users, and relays for nobody."""
    done = lab.inside(
        "mx1.north.example", "/usr/bin/python3", "-c", TALK, address, recipient
    )
    said = done.stdout.split()

    assert ["250", str(code)] == said[:2]


def test_the_machine_receives_nothing(lab):
    """No worker listens on the machine's own address."""
    done = lab.inside(
        *("mx1.north.example", "/usr/bin/python3", "-c", TALK),
        *("10.77.0.1", "user@alpha.example"),
        check=False,
    )

    assert "ConnectionRefusedError" in done.stderr
