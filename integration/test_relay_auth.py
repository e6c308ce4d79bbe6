"""A host that sends by a relay where it has to sign in, judged by what the relay wrote."""

import re
import stat

import pytest

from integration.labs import Lab, eventually
from tests.delivery.authority import Authority

RELAY = "beta.example"
SECRET, WRONG = "correct horse 7", "battery staple 8"
SETTINGS = '\n[delivery.tls]\nca_file = "{ca}"\n\n[queue]\nfirst_retry = 2.0\n'
MESSAGE = {"sender": "user@alpha.example"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("relay")
    authority = Authority()
    (folder / "ca.pem").write_bytes(authority.pem)
    (folder / "beta.pem").write_bytes(authority.pem_of(RELAY))
    found = Lab(tmp_path_factory.mktemp("lab"), hosts=2)
    try:
        toml = found.root / "vnsmail.toml"
        toml.write_text(re.sub(r"(?ms)^\[queue\]\n.*?(?=^\[|\Z)", "", toml.read_text()))
        found.restart(SETTINGS.format(ca=folder / "ca.pem"))
        given = str(folder / "beta.pem")
        found.vnsmail("host", "certificate", RELAY, "--cert", given, "--key", given)
        password(found, "user", "passwd", f"user@{RELAY}", SECRET)
        found.vnsmail("user", "allow-from", f"user@{RELAY}", "user@alpha.example")
        yield found
    finally:
        found.stop()


def password(lab, *words_and_secret):
    *words, secret = words_and_secret
    return lab.vnsmail(*words, "--password-stdin", stdin=f"{secret}\n")


def relay(lab, port, secret):
    words = ("host", "relay", "alpha.example", f"{RELAY}:{port}", "--user", "user")
    return password(lab, *words, secret)


def state(lab):
    status = lab.json("status")
    return next(o for o in status["owners"] if o["owner"] == "alpha.example")["problem"]


def trace(lab, user):
    (mail,) = eventually(lambda: lab.remote_mail(user), f"mail for {user}")
    return " ".join(mail.decode().split())


def test_wrong_password(lab):
    """The mail waits, and people are told why; nobody gets anything."""
    relay(lab, 587, WRONG)
    lab.send(MESSAGE["sender"], "wrong@north.example")
    eventually(lambda: "535" in state(lab), "the problem in status")

    def reason():
        (entry,) = lab.json("queue", "list", "--host", "alpha.example")
        return "does not let 'user' sign in" in entry["recipients"][0][3]

    eventually(reason, "the reason")
    assert lab.remote_mail("wrong") == []


def test_signed_in(lab):
    """The right one, and what waited goes at once; the relay writes that somebody did."""
    relay(lab, 587, SECRET)
    found = trace(lab, "wrong")
    assert re.search(rf"from alpha\.example .* by {RELAY} with ESMTPSA", found)
    eventually(lambda: not state(lab), "no problem any more")


def test_tls_from_the_beginning(lab):
    relay(lab, 465, SECRET)
    lab.send(MESSAGE["sender"], "implicit@north.example")
    assert "with ESMTPSA" in trace(lab, "implicit")


def require_tls(lab, to):
    words = (
        "--as",
        MESSAGE["sender"],
        "--to",
        to,
        "--subject",
        "x",
        "--text",
        "secret",
    )
    lab.vnsmail("send", *words, "--require-tls")


def test_tls_is_required_all_the_way(lab):
    """The relay takes it, with REQUIRETLS; the next has no TLS, so it comes back."""
    require_tls(lab, f"user@{RELAY}")
    eventually(lambda: lab.mail("user", RELAY), "what ends at the relay")
    require_tls(lab, "required@north.example")
    (notice,) = eventually(lambda: lab.mail("user", "alpha.example"), "a notice")
    assert b"5.7.5" in notice
    assert b"text/rfc822-headers" in notice
    assert b"\nsecret" not in notice
    assert lab.remote_mail("required") == []


def test_password_is_nowhere_else(lab):
    """In one file of root's, and in nothing that is shown or logged."""
    files = [f for f in lab.root.rglob("*") if f.is_file()]
    holding = [
        f for f in files if any(s.encode() in f.read_bytes() for s in (SECRET, WRONG))
    ]
    assert [f.relative_to(lab.root).parts[0] for f in holding] == ["relay"]
    assert stat.S_IMODE(holding[0].stat().st_mode) == 0o600
    for words in (("export",), ("status", "--json"), ("host", "show", "alpha.example")):
        assert SECRET not in lab.vnsmail(*words).stdout
    assert 'server = "beta.example:465"' in lab.vnsmail("export").stdout


def test_a_relay_that_cannot_be_verified(lab):
    """Its certificate is nobody's: it gets neither the password nor the mail."""
    lab.vnsmail("host", "certificate", RELAY, "--remove")
    relay(lab, 587, SECRET)
    # Connections to the server as it was, proven then, go with the host that is let go.
    lab.vnsmail("host", "suspend", "alpha.example")
    lab.vnsmail("host", "resume", "alpha.example")
    lab.send(MESSAGE["sender"], "unproven@north.example")

    def reason():
        entries = lab.json("queue", "list", "--host", "alpha.example")
        return any("no safe connection" in str(e["recipients"]) for e in entries)

    eventually(reason, "the reason")
    assert lab.remote_mail("unproven") == []


def test_no_relay_any_more(lab):
    """The file goes, and the mail takes its own way."""
    lab.vnsmail("host", "relay", "alpha.example", "--none")
    found = trace(lab, "unproven")
    assert "ESMTPSA" not in found
    assert not list(lab.root.glob("relay/*/*"))
