"""A queue file that is damaged is one host's trouble, told, and over when it is gone."""

import json

import pytest

from integration.labs import Lab, eventually


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    found = Lab(tmp_path_factory.mktemp("damaged") / "root", hosts=2)
    yield found
    found.stop()


@pytest.mark.timeout(400)
def test_damaged_file(lab):
    """Its host stands still and takes nothing; others go on; without it, it goes on."""
    lab.vnsmail("down")
    file = lab.root / "hosts" / "alpha.example" / "queue.db"
    file.write_bytes(b"no database " * 1000)
    damaged = file.read_bytes()
    lab.up()
    lab.send("user@beta.example", "ann@north.example", subject="from beta")
    lab.vnsmail("queue", "wait", "--host", "beta.example", "--timeout", "40")
    refused = lab.vnsmail(
        *("send", "--as", "user@alpha.example", "--to", "ann@north.example"),
        *("--subject", "refused", "--text", "x"),
        check=False,
    )
    problems = eventually(lambda: dict(lab.json("status")["problems"]), "it is told")
    findings = json.loads(lab.vnsmail("doctor", "--json", check=False).stdout)
    told = [f for f in findings if f["verdict"] != "ok" and "queue.db" in str(f)]

    assert 0 != refused.returncode
    assert "queue.db" in problems["alpha.example"]
    assert told
    assert damaged == file.read_bytes()

    file.rename(file.with_name("damaged.db"))
    eventually(lambda: not lab.json("status")["problems"], "alpha is served", 60)
    lab.send("user@alpha.example", "ann@north.example", subject="from alpha")
    lab.settle()
    got = b"".join(lab.remote_mail("ann"))
    assert b"Subject: from beta" in got
    assert b"Subject: from alpha" in got
    assert b"Subject: refused" not in got
