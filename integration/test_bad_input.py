"""Bad input: one clear line, an exit code, and nothing changed."""

import pytest

CREATE = ("host", "create")
CASES = {
    "no address": ((*CREATE, "zeta.example"), 2, "--address"),
    "a name that is none": (
        (*CREATE, "zeta", "--address", "10.77.0.20/24"),
        2,
        "virtual host 'zeta': give a full name such as alpha.example",
    ),
    "a name that is taken": (
        (*CREATE, "alpha.example", "--address", "10.77.0.20/24"),
        2,
        "virtual host 'alpha.example': it exists",
    ),
    "an address that is none": (
        (*CREATE, "zeta.example", "--address", "10.77.0.300/24"),
        2,
        "address '10.77.0.300/24': write it as 10.77.0.11/24 or fd77::11/64",
    ),
    "an address that a host has": (
        (*CREATE, "zeta.example", "--address", "10.77.0.11/24"),
        2,
        "address '10.77.0.11': virtual host alpha.example has it",
    ),
    "an address that the machine has": (
        (*CREATE, "zeta.example", "--address", "10.77.0.1/24"),
        2,
        "10.77.0.1",
    ),
    "an alias outside every link": (
        (*CREATE, "zeta.example", "--address", "192.0.2.1/24", "--context", "alias"),
        2,
        "192.0.2.1",
    ),
    "an unknown context": (
        (*CREATE, "zeta.example", "--address", "10.77.0.20/24", "--context", "jail"),
        2,
        "context 'jail': choose one of namespace, alias",
    ),
    "an unknown link": (
        (*CREATE, "zeta.example", "--address", "10.77.0.20/24", "--link", "wan9"),
        2,
        "wan9",
    ),
    "a host that is not there": (
        ("host", "destroy", "zeta.example"),
        2,
        "zeta.example",
    ),
    "show one that is not there": (("host", "show", "zeta.example"), 2, "zeta.example"),
    "a sender who is nobody": (
        ("send", "--as", "eve@alpha.example", "--to", "a@north.example", "--text", "x"),
        2,
        "sender 'eve@alpha.example': no user of a virtual host has this address",
    ),
    "a sender of no host": (
        ("send", "--as", "ann@north.example", "--to", "a@north.example", "--text", "x"),
        2,
        "no user of a virtual host has this address",
    ),
    "a recipient without a domain": (
        ("send", "--as", "user@alpha.example", "--to", "nobody", "--text", "x"),
        2,
        "recipient 'nobody': write it as",
    ),
    "a recipient that is none": (
        ("send", "--as", "user@alpha.example", "--to", "nobody@", "--text", "x"),
        2,
        "nobody@",
    ),
    "a file that is not there": (
        ("send", "--machine", "--to", "a@north.example", "--file", "/nowhere"),
        2,
        "file '/nowhere': cannot read it: No such file or directory",
    ),
    "a user of no host": (("user", "add", "ann@north.example"), 2, "north.example"),
    "a user who is there": (("user", "add", "user@alpha.example"), 2, "has this user"),
    "a capture that is none": (("prove", "/etc/hostname"), 2, "/etc/hostname"),
    "too many hosts": (("lab", "up", "--hosts", "9999"), 2, "9999"),
    "a second lab": (("lab", "up"), 2, "it runs already"),
    "vnsmail beside a lab": (("up",), 2, "a lab runs there"),
    "a node that is not there": (("lab", "shell", "nobody", "--", "true"), 2, "nobody"),
    "no such queue": (("queue", "list", "--host", "zeta.example"), 2, "zeta.example"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_nothing_changed(lab, case):
    """What, which, what to do; the hosts and the kernel are as before."""
    words, code, said = CASES[case]

    def addresses():
        return lab.inside("machine", "ip", "-o", "addr").stdout

    def state():
        return (
            lab.hosts(),
            # The links' own addresses are ready by and by, whatever we do.
            addresses().replace(" tentative ", " ").split(),
            lab.inside("machine", "ip", "netns").stdout,
            sorted(p.name for p in (lab.root / "hosts").iterdir()),
        )

    before = state()
    done = lab.vnsmail(*words, check=False)

    assert code == done.returncode, done.stderr
    assert said in " ".join(done.stderr.split())
    assert 1 == len(done.stderr.strip().splitlines())
    assert "Traceback" not in done.stderr
    assert before == state()


def test_port_in_use(lab):
    """Another program has port 25 of the address: said so, and nothing is half made."""
    holder = (
        "import socket, sys; s = socket.socket(); "
        "s.setsockopt(socket.SOL_IP, 15, 1); "  # IP_FREEBIND: before the address is there
        "s.bind(('10.77.0.30', 25)); s.listen(); print('up', flush=True); sys.stdin.read()"
    )
    process = lab.beside("machine", "/usr/bin/python3", "-c", holder)
    assert process.stdout is not None
    assert "up\n" == process.stdout.readline()
    try:
        done = lab.vnsmail(
            *("host", "create", "zeta.example", "--address", "10.77.0.30/24"),
            *("--context", "alias"),
            check=False,
        )
        addresses = lab.inside("machine", "ip", "-o", "addr").stdout
    finally:
        process.communicate("")

    assert 1 == done.returncode
    assert "port 25 of 10.77.0.30 is in use by another program" in " ".join(
        done.stderr.split()
    )
    assert "10.77.0.30" not in addresses
    assert "zeta.example" not in lab.vnsmail("host", "list").stdout
    assert not (lab.root / "hosts" / "zeta.example").exists()
