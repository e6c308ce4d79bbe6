"""TLS on the way out, from a namespace and from an alias: judged by packets and remotes.

Remotes of all kinds stand on further addresses of a node of the lab: with good and bad
certificates, without STARTTLS, with TLS that breaks; with MTA-STS policies and TLSA records.
"""

import hashlib
import json
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from integration.labs import Lab, eventually
from tests.delivery.authority import Authority

REMOTE = "mx2.south.example"
ZONE = "tls.example"
ALPHA, DELTA = "10.77.0.11", "10.77.0.14"
HOSTS = {"alpha.example": ALPHA, "delta.example": DELTA}
POLICIES = "10.77.0.100"
KINDS = (
    *("good", "plain", "broken", "stsgood", "stsexpired", "stsname", "stsstripped"),
    *("danegood", "danebad", "stslate"),
)
ADDRESS = {kind: f"10.77.0.{101 + number}" for number, kind in enumerate(KINDS)}
DELIVERED = {
    "good": "tls",
    "plain": "plain",
    "broken": "plain",
    "stsgood": "tls",
    "danegood": "tls",
}
KEPT_BACK = {
    "stsexpired": "expired",
    "stsname": "is not for mx.stsname.tls.example",
    "stsstripped": "does not offer STARTTLS",
    "danebad": "not the one that DNS names",
}
DNSSEC = '[dns]\nvalidating = true\ntrusted = ["10.77.0.2"]\n'
SETTINGS = """
[delivery.tls]
ca_file = "{ca}"

[network]
mend = false
"""


def certificates(authority: Authority, folder: Path) -> dict[str, str]:
    """Write what each server shows; return the files."""
    files = {}
    for kind in KINDS:
        names = ["other.example"] if kind == "stsname" else [f"mx.{kind}.{ZONE}"]
        file = folder / f"{kind}.pem"
        file.write_bytes(
            authority.pem_of(*names, days=-1 if kind == "stsexpired" else 30)
        )
        files[kind] = str(file)
    return files


def zone(files: dict[str, str]) -> str:
    lines = [";authentic"]
    for kind, address in ADDRESS.items():
        name = f"{kind}.{ZONE}"
        lines += [f"{name} MX 10 mx.{name}.", f"mx.{name} A {address}"]
        if kind.startswith("sts"):
            lines += [
                f'_mta-sts.{name} TXT "v=STSv1; id=1;"',
                f"mta-sts.{name} A {POLICIES}",
            ]
        if kind.startswith("dane"):
            shown = files["danegood" if kind == "danegood" else "good"]
            pem = Path(shown).read_text().partition("-----END CERT")[0]
            der = ssl.PEM_cert_to_DER_cert(pem + "-----END CERTIFICATE-----\n")
            digest = hashlib.sha256(der).hexdigest()
            lines.append(f"_25._tcp.mx.{name} TLSA 3 0 1 {digest}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("remotes")


@pytest.fixture(scope="module")
def lab(tmp_path_factory, folder):
    (folder / "mail").mkdir()
    authority = Authority()
    (folder / "ca.pem").write_bytes(authority.pem)
    files = certificates(authority, folder)
    hosts = [f"mta-sts.{kind}.{ZONE}" for kind in KINDS if kind.startswith("sts")]
    (folder / "policy.pem").write_bytes(authority.pem_of(*hosts))
    config = folder / "config.json"
    config.write_text(
        json.dumps(
            {
                "folder": str(folder / "mail"),
                "policy_address": POLICIES,
                "policy_certificate": str(folder / "policy.pem"),
                "policies": {
                    host: "version: STSv1\nmode: enforce\n"
                    f"mx: mx.{host.removeprefix('mta-sts.')}\nmax_age: 86400\n"
                    for host in hosts
                },
                "servers": [
                    {
                        "name": kind,
                        "address": ADDRESS[kind],
                        "certificate": files[kind],
                        "offer": kind not in {"plain", "stsstripped"},
                        "broken": kind == "broken",
                    }
                    for kind in KINDS
                ],
            }
        )
    )
    remotes = None
    found = Lab(tmp_path_factory.mktemp("lab"), hosts=4)
    try:
        for address in (POLICIES, *ADDRESS.values()):
            found.inside(REMOTE, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
        script = Path(__file__).with_name("tls_remotes.py")
        remotes = found.beside(REMOTE, sys.executable, str(script), str(config))
        assert remotes.stdout is not None
        assert remotes.stdout.readline() == "ready\n"
        (found.root / "lab.zone").write_text(zone(files))
        settings = found.root / "vnsmail.toml"
        text = settings.read_text()
        assert "[dns]\n" in text
        settings.write_text(text.replace("[dns]\n", DNSSEC))
        found.restart(SETTINGS.format(ca=folder / "ca.pem"))
        for host in HOSTS:
            to = [f"ann@{kind}.{ZONE}" for kind in (*DELIVERED, *KEPT_BACK)]
            found.send(f"user@{host}", *to)
        yield found
    finally:
        if remotes is not None:
            remotes.communicate()
        found.stop()


def packets(lab, wanted, *fields):
    """Return what tshark finds in what crossed the lab's bridge."""
    words = [word for field in fields for word in ("-e", field)]
    done = subprocess.run(
        ["tshark", "-r", lab.facts["capture"], "-Y", wanted, "-T", "fields", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    return {tuple(line.split("\t")) for line in done.stdout.splitlines()}


def taken(folder, kind):
    """Return how messages came to a server, and from where."""
    files = (folder / "mail").glob(f"{kind}.*")
    return {tuple(file.read_text().split("\n")[0].split()) for file in files}


@pytest.mark.parametrize("kind", DELIVERED)
def test_delivered(lab, folder, kind):
    """Over TLS where it can be, in plain where nothing forbids it; from each own address."""
    wanted = {(DELIVERED[kind], source) for source in HOSTS.values()}
    eventually(lambda: wanted == taken(folder, kind), f"mail for {kind}")


@pytest.mark.parametrize("kind", KEPT_BACK)
@pytest.mark.parametrize("host", HOSTS)
def test_waits(lab, folder, host, kind):
    """With the reason, and nobody got anything."""

    def reason():
        for message in lab.json("queue", "list", "--host", host):
            if f"@{kind}." in json.dumps(message) and KEPT_BACK[kind] in json.dumps(
                message
            ):
                return message
        return None

    eventually(reason, f"the reason of {kind}")
    assert taken(folder, kind) == set()


def test_never_in_plain(lab):
    """No MAIL FROM on the wire but to servers where nothing forbids it."""
    said = packets(lab, 'tcp contains "MAIL FROM"', "ip.dst")
    assert said <= {(ADDRESS["plain"],), (ADDRESS["broken"],)}
    assert (ADDRESS["plain"],) in said


def fetchers(folder):
    """Return who came to the policy host, as it saw them."""
    return (folder / "fetchers").read_text().split()


def test_policies_are_fetched_from_the_own_address(lab, folder):
    """By the policy host's own record."""
    eventually(lambda: set(fetchers(folder)) == {ALPHA, DELTA}, "both fetch")


def test_report(lab):
    """Counted by destination and by what failed (RFC 8460)."""

    def found():
        told = json.loads(lab.vnsmail("tls", "report", "alpha.example").stdout)
        return {each["policy"]["policy-domain"]: each for each in told["policies"]}

    eventually(lambda: "danebad.tls.example" in found(), "the counters")
    eventually(lambda: "stsexpired.tls.example" in found(), "the counters")
    policies = found()
    expired = policies["stsexpired.tls.example"]
    assert expired["policy"]["policy-type"] == "sts"
    assert expired["failure-details"][0]["result-type"] == "certificate-expired"
    dane = policies["danegood.tls.example"]
    assert dane["policy"]["policy-type"] == "tlsa"
    assert dane["summary"]["total-successful-session-count"] == 1


def test_explain_tells_the_policy(lab):
    shown = lab.vnsmail("host", "explain", "alpha.example", "--to", f"x@stsgood.{ZONE}")
    assert "MTA-STS: enforce, mx.stsgood.tls.example" in " ".join(shown.stdout.split())


@pytest.mark.parametrize(
    ("kind", "words"),
    [("danegood", "DANE: mx.danegood.tls.example has 3 0 1"), ("good", "has no TLSA")],
)
def test_explain_tells_tlsa_records(lab, kind, words):
    shown = lab.vnsmail("host", "explain", "alpha.example", "--to", f"x@{kind}.{ZONE}")
    assert words in " ".join(shown.stdout.split())


def test_not_at_all_without_the_address(lab, folder):
    """A policy that cannot be asked for from the own address keeps the mail here."""
    lab.inside("alpha.example", "ip", "addr", "del", f"{ALPHA}/24", "dev", "eth0")
    before = fetchers(folder)
    lab.send("user@alpha.example", f"ann@stslate.{ZONE}")

    def held():
        return "is not usable here" in lab.vnsmail("status").stdout

    eventually(held, "the hold")
    assert before == fetchers(folder)
    syn = f"ip.dst == {ADDRESS['stslate']} && tcp.flags.syn == 1"
    assert packets(lab, syn, "ip.src") == set()
    assert taken(folder, "stslate") == set()
