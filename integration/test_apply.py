"""All virtual hosts as a file: applied to a running lab, seen from outside."""

import pytest

from integration.labs import eventually, syns

NEW = """
[host."zeta.example"]
addresses = ["10.77.0.71/24", "fd77::71/64"]
domains = ["more.example"]
users = ["user", "zoe"]

[host."eta.example"]
context = "alias"
addresses = ["10.77.0.15/24"]   # epsilon's
users = ["user"]
"""


def state(lab):
    """Return the hosts, the network and the files, as text to compare."""
    return (
        lab.hosts(),
        [
            line.partition("valid_lft")[0]
            for line in lab.inside("machine", "ip", "-o", "addr").stdout.splitlines()
        ],
        lab.inside("machine", "ip", "netns").stdout,
        sorted(path.name for path in (lab.root / "hosts").iterdir()),
    )


def changed(exported):
    """Return a file that asks for two new hosts, another alpha, and no epsilon."""
    text = exported.partition('[host."epsilon.example"]')
    rest = '[host."gamma.example"]' + text[2].partition('[host."gamma.example"]')[2]
    text = text[0] + rest + NEW
    old = '"10.77.0.11/24", "fd77::11/64"]'
    assert old in text
    return text.replace(
        old, '"10.77.0.61/24", "fd77::61/64"]\ndomains = ["new.example"]'
    )


@pytest.fixture
def file(lab, tmp_path):
    """Give the file of the lab as it is."""
    path = tmp_path / "hosts.toml"
    path.write_text(lab.vnsmail("export").stdout)
    return path


def test_what_was_exported_changes_nothing(lab, file):
    """Export and apply are each other's inverse."""
    before = state(lab)
    found = lab.json("apply", str(file))

    assert ([], [], [], 5) == tuple(
        found[key] for key in ("changes", "steps", "problems", "unchanged")
    )
    assert before == state(lab)
    assert file.read_text() == lab.vnsmail("export").stdout


def test_dry_run_changes_nothing(lab, file):
    """It says what would be done."""
    before = state(lab)
    file.write_text(changed(file.read_text()))
    done = lab.vnsmail("apply", "--dry-run", str(file))

    assert before == state(lab)
    assert [
        ("+", "create", "eta.example:"),
        ("+", "create", "zeta.example:"),
        ("~", "change", "alpha.example:"),
        ("-", "destroy", "epsilon.example"),
    ] == [tuple(x.split()[:3]) for x in done.stdout.splitlines() if x[0] != " "]
    assert "2 created, 1 changed, 1 destroyed, 3 as they were" in done.stderr
    assert "\x1b" not in done.stdout


BAD = {
    "no TOML": ("[host\n", 1, ""),
    "a key that is none": (
        '[host."x.example"]\naddresses = ["10.77.0.90/24"]\nadress = 1\n',
        3,
        'host."x.example".adress: ',
    ),
    "an address that is none": (
        '[host."x.example"]\naddresses = [\n  "10.77.0.90/24",\n  "10.77.0.300/24",\n]\n',
        4,
        "host.\"x.example\".addresses[1]: '10.77.0.300/24': ",
    ),
    "an address twice": (
        "".join(f'[host."{n}.example"]\naddresses = ["10.77.0.90"]\n' for n in "xy"),
        4,
        "host.\"y.example\".addresses[0]: '10.77.0.90': x.example has it",
    ),
    "the machine's address": (
        '[host."x.example"]\naddresses = ["10.77.0.1/24"]\n',
        2,
        "host.\"x.example\".addresses[0]: '10.77.0.1': the machine has it",
    ),
    "an address outside every link": (
        '[host."x.example"]\n\naddresses = ["192.0.2.1/24"]\n',
        3,
        "host.\"x.example\".addresses[0]: '192.0.2.1/24': no link reaches it",
    ),
    "a link that is none": (
        '[host."x.example"]\naddresses = ["10.77.0.90/24"]\nlink = "wan9"\n',
        3,
        "host.\"x.example\".link: 'wan9': ",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(lab, tmp_path, case):
    """File, line and key in one line; nothing is changed, though hosts would go."""
    text, line, said = BAD[case]
    file = tmp_path / "bad.toml"
    file.write_text(text)
    before = state(lab)
    done = lab.vnsmail("apply", "--discard-queue", str(file), check=False)

    assert 2 == done.returncode
    assert 1 == len(done.stderr.splitlines())
    assert done.stderr.startswith(f"vnsmail: {file}:{line}: {said}")
    assert "" == done.stdout
    assert before == state(lab)


def test_hosts_with_mail_are_not_destroyed(lab, file):
    """Unless that is said; the refusal names them."""
    before = state(lab)
    lab.inside("mx2.south.example", "ip", "link", "set", "eth0", "down")
    try:
        lab.send("user@beta.example", "ann@south.example")
        file.write_text(file.read_text().partition('[host."beta.example"]')[0])
        refused = lab.vnsmail("apply", str(file), check=False)
    finally:
        lab.inside("mx2.south.example", "ip", "link", "set", "eth0", "up")

    assert 2 == refused.returncode
    assert "'beta.example': not in the file, and mail is still in the queue" in (
        refused.stderr
    )
    assert before == state(lab)
    lab.settle()


def test_six_hosts_over_five(lab, file):
    """Two come, one changes, one goes; mail that was waiting or kept is not lost."""
    lab.send("user@beta.example", "user@alpha.example", subject="kept")
    lab.settle()
    lab.inside("mx2.south.example", "ip", "link", "set", "eth0", "down")
    lab.send("user@alpha.example", "eve@south.example", subject="waiting")
    file.write_text(changed(file.read_text()))
    try:
        lab.vnsmail("apply", str(file))
        waiting = lab.json("queue", "list", "--host", "alpha.example")
    finally:
        lab.inside("mx2.south.example", "ip", "link", "set", "eth0", "up")
    again = lab.json("apply", str(file))

    assert 1 == len(waiting)
    assert ([], 6) == (again["changes"], again["unchanged"])
    for sender in ("user@alpha.example", "zoe@zeta.example", "user@eta.example"):
        lab.send(sender, "eve@south.example", subject=f"from {sender}")
    lab.send("user@beta.example", "user@new.example", subject="to a new domain")
    lab.send("user@beta.example", "zoe@more.example", subject="to a new host")
    lab.settle()
    got = lab.remote_mail("eve", "south.example")

    def received(subject):
        (mail,) = [m for m in got if f"Subject: {subject}\r\n".encode() in m]
        return mail

    for subject, source in (
        ("waiting", b"[10.77.0.61]"),
        ("from user@alpha.example", b"[10.77.0.61]"),
        ("from zoe@zeta.example", b"[10.77.0.71]"),
        ("from user@eta.example", b"[10.77.0.15]"),
    ):
        assert source in received(subject).partition(b"\r\n\r\n")[0]
    kept = b"".join(lab.mail("user", "alpha.example"))
    assert b"Subject: kept" in kept
    assert b"Subject: to a new domain" in kept
    assert 1 == len(lab.mail("zoe", "zeta.example"))
    assert not (lab.root / "hosts" / "epsilon.example").exists()
    names = [host["name"] for host in lab.json("host", "list")]
    assert 6 == len(names)
    assert "epsilon.example" not in names
    assert {"10.77.0.61", "10.77.0.71", "10.77.0.15"} <= syns(lab.facts["capture"])


def test_one_host_that_fails(lab, file):
    """It is told; the others are done; applying again finishes."""
    holder = (
        "import socket, sys; s = socket.socket(); "
        "s.setsockopt(socket.SOL_IP, 15, 1); "  # IP_FREEBIND: before the address is there
        "s.bind(('10.77.0.81', 25)); s.listen(); print('up', flush=True); sys.stdin.read()"
    )
    process = lab.beside("machine", "/usr/bin/python3", "-c", holder)
    assert process.stdout is not None
    assert "up\n" == process.stdout.readline()
    tables = "".join(
        f'[host."n{n}.example"]\ncontext = "alias"\naddresses = ["10.77.0.{n}/24"]\n'
        for n in (81, 82)
    )
    file.write_text(file.read_text() + tables)
    try:
        done = lab.vnsmail("apply", str(file), check=False)
        problems = dict(lab.json("status")["problems"])
    finally:
        process.communicate("")

    assert 1 == done.returncode
    assert "n81.example failed: cannot receive for n81.example" in done.stdout
    assert "port 25 of 10.77.0.81 is in use" in done.stdout
    assert ["n81.example"] == list(problems)
    assert "2 as they were" not in done.stderr
    again = lab.vnsmail("apply", str(file))
    assert "failed" not in again.stdout
    eventually(lambda: not lab.json("status")["problems"], "both are served")


def test_no_hosts_at_all(lab, tmp_path):
    """An empty file leaves the machine, and nothing else of ours."""
    file = tmp_path / "empty.toml"
    file.write_text("")
    lab.vnsmail("apply", "--discard-queue", str(file))
    hosts, addresses, namespaces, folders = state(lab)

    assert ((), []) == (hosts, folders)
    assert all("10.77.0.1/24" in a or "10.77" not in a for a in addresses)
    assert 3 == len(namespaces.split("\n")) - 1  # the name server and two remotes
