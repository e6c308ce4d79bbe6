"""Four mail servers that others wrote receive from every virtual host, and from the machine.

What they wrote into Received decides: who it was, by its own address and HELO.
"""

import ipaddress
import re

import pytest

from integration import mtas
from integration.labs import eventually

HOSTS = {
    "alpha.example": 11,
    "beta.example": 12,
    "gamma.example": 13,
    "delta.example": 14,
    "epsilon.example": 15,
    "machine.example": 1,
}
"""Last part of their addresses; delta and epsilon are aliases."""


@pytest.fixture(scope="module")
def remotes(lab):
    with mtas.running(lab) as found:
        to = [f"ann@{m.domain_of(v)}" for m in found.values() for v in (4, 6)]
        for host in HOSTS:
            sender = "machine" if host == "machine.example" else f"user@{host}"
            lab.send(sender, *to, subject=f"from {host}")
        yield found


def witness(mail: bytes) -> tuple[str, str]:
    """Return the HELO and the address in the trace header that is on top."""
    head = mail.partition(b"\r\n\r\n" if b"\r\n\r\n" in mail else b"\n\n")[0]
    fields = re.sub(rb"\r?\n[ \t]+", b" ", head).decode()
    top = re.search(r"^Received: from (.*?) by ", fields, re.MULTILINE | re.IGNORECASE)
    assert top, fields
    address = re.search(r"\[(?:IPv6:)?([0-9a-f.:]+)\]", top[1], re.IGNORECASE)
    assert address, top[1]
    # Exim names the HELO apart if it is not the name that DNS has for the address.
    helo = re.search(r"helo=([^ )]+)", top[1])
    name = helo[1] if helo else top[1].split()[0]
    # Sendmail writes all of it: fd77:0:0:0:0:0:0:11.
    return name, str(ipaddress.ip_address(address[1]))


@pytest.mark.parametrize("name", mtas.MTAS)
def test_claim_02_as_seen_by(remotes, name, shows):
    """In both families: its own Received shows the address and HELO of each host."""
    mta = remotes[name]
    wanted = {
        (host, address)
        for host, number in HOSTS.items()
        for address in (f"10.77.0.{number}", f"fd77::{number}")
    }
    eventually(lambda: len(mta.mails()) >= len(wanted), f"all mail at {name}", 120)
    mails = mta.mails()
    assert {witness(mail) for mail in mails} == wanted
    assert len(mails) == len(wanted)
    for mail in mails:
        assert f"Subject: from {witness(mail)[0]}".encode() in mail
    helo, address = witness(mails[0])
    shows(f"{name}: {len(mails)} messages; of one it wrote {helo} [{address}]")
