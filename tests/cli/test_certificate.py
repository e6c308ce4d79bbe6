"""``vnsmail host certificate``: what is asked of the supervisor, and mistakes."""

import pytest

from vnsmail.supervisor import control

FOUND = control.Certificates(
    (
        control.CertificateFacts(
            "", ("alpha.example",), "O=x", 1_800_000_000.0, "ab" * 32, True
        ),
        control.CertificateFacts(
            "b.example", ("b.example",), "CN=ca", 1.9e9, "cd" * 32
        ),
        control.CertificateFacts("c.example"),
    )
)


@pytest.fixture
def files(tmp_path):
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text(name)
    return ["--cert", str(tmp_path / "cert.pem"), "--key", str(tmp_path / "key.pem")]


@pytest.fixture
def asked(supervisor):
    for kind in (
        control.SetCertificate,
        control.RemoveCertificate,
        control.GetCertificates,
    ):
        supervisor.answers[kind] = FOUND
    return supervisor.requests


def test_set(vnsmail, asked, files):
    """What is in the files is handed over, not their names."""
    done = vnsmail("host", "certificate", "a.example", *files, "--name", "b.example")

    assert done.code == 0
    assert asked == [
        control.SetCertificate("a.example", b"cert.pem", b"key.pem", ("b.example",))
    ]
    assert "from the next connection on" in done.err
    assert "self-signed" in done.out
    assert "2027-01-15" in done.out
    assert "unreadable" in done.out


def test_list(vnsmail, asked):
    found = vnsmail("host", "certificate", "a.example", "--json").json

    assert asked == [control.GetCertificates("a.example")]
    assert found[0]["sha256"] == "ab" * 32
    assert (found[0]["for"], found[1]["for"]) == (None, "b.example")
    assert found[2]["expires"] is None


@pytest.mark.parametrize(
    ("more", "name"), [([], ""), (["--name", "b.example"], "b.example")]
)
def test_remove(vnsmail, asked, more, name):
    assert vnsmail("host", "certificate", "a.example", "--remove", *more).code == 0
    assert asked == [control.RemoveCertificate("a.example", name)]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--cert", "/nonexistent"], "given together"),
        (["--key", "/nonexistent"], "given together"),
        (["--cert", "/nonexistent", "--key", "/nonexistent"], "cannot be read"),
        (["--cert", "/dev/zero", "--key", "/dev/zero"], "too long"),
        (["--name", "b.example"], "give --cert and --key with it"),
        (["--remove", "--name", "b.example", "--name", "c.example"], "one --name"),
        (["--remove", "--cert", "x"], "no --cert"),
    ],
)
def test_mistakes(vnsmail, asked, options, text):
    """One line, and nothing is asked."""
    done = vnsmail("host", "certificate", "a.example", *options)

    assert done.code == 2
    assert text in done.err
    assert done.err.count("\n") == 1
    assert asked == []
