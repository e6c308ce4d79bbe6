import time

import pytest

from vnsmail.directory import Directory
from vnsmail.engines.protocol import OwnerReport
from vnsmail.model import (
    Context,
    HostName,
    SourceAddress,
    Uplink,
    User,
    VirtualHost,
    ip_address,
)
from vnsmail.net import names
from vnsmail.settings import layout
from vnsmail.supervisor import control

NOW = 1_800_000_000.0

ALPHA = VirtualHost(
    HostName("alpha.example"),
    Context.NAMESPACE,
    (SourceAddress.parse("10.77.0.11/24"), SourceAddress.parse("fd77::11/64")),
    (HostName("alpha.example"), HostName("mail.alpha.example")),
    "br0",
    Uplink.BRIDGE,
    (ip_address("10.77.0.1"),),
)
BETA = VirtualHost(
    HostName("beta.example"),
    Context.ALIAS,
    (SourceAddress.parse("10.77.0.12/24"),),
    (HostName("beta.example"),),
    "eth0",
)


@pytest.fixture(autouse=True)
def _clock(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: NOW)


@pytest.fixture
def directory(root):
    directory = Directory(root / "directory.db")
    for host in (ALPHA, BETA):
        directory.add_host(host)
        directory.activate(host.name)
    directory.add_user(User(ALPHA.name, "bob"))
    directory.add_user(User(ALPHA.name, "ann"))
    yield directory
    directory.close()


def status(*owners, problems=()):
    return control.Status(1, "/r", (), owners, tuple(problems))


# create and destroy ---------------------------------------------------------------


def test_create(vnsmail, supervisor):
    """What was typed goes to the supervisor as it is; what is done is a remark."""
    supervisor.answers[control.CreateHost] = control.Planned(("a step",), changed=True)
    done = vnsmail(
        *("host", "create", "Alpha.example", "--address", "10.77.0.11/24"),
        *("--address", "fd77::11/64", "--context", "alias", "--link", "br0"),
        *("--domain", "a.example", "--domain", "b.example", "--gateway", "10.77.0.1"),
    )

    assert (0, "", "virtual host Alpha.example is created\n") == (
        done.code,
        done.out,
        done.err,
    )
    assert [
        control.CreateHost(
            "Alpha.example",
            ("10.77.0.11/24", "fd77::11/64"),
            "alias",
            "br0",
            ("10.77.0.1",),
            ("a.example", "b.example"),
        )
    ] == supervisor.requests


def test_create_with_an_uplink(vnsmail, supervisor):
    """How the network is reached is the supervisor's to judge, but for what is no tag."""
    supervisor.answers[control.CreateHost] = control.Planned((), changed=True)
    done = vnsmail(*CREATE, "--uplink", "macvlan", "--mtu", "1400", "--vlan", "7")

    assert 0 == done.code
    assert [
        control.CreateHost(
            "alpha.example",
            ("10.77.0.11/24",),
            "namespace",
            uplink="macvlan",
            mtu=1400,
            vlan=7,
        )
    ] == supervisor.requests
    assert 2 == vnsmail(*CREATE, "--vlan", "4095").code


def test_create_with_defaults(vnsmail, supervisor):
    """A namespace, and whatever link and router fit."""
    supervisor.answers[control.CreateHost] = control.Planned((), changed=False)
    done = vnsmail("host", "create", "alpha.example", "--address", "10.77.0.11/24")

    assert "virtual host alpha.example exists already, as asked\n" == done.err
    assert [
        control.CreateHost("alpha.example", ("10.77.0.11/24",), "namespace")
    ] == supervisor.requests


CREATE = ("host", "create", "alpha.example", "--address", "10.77.0.11/24")
DESTROY = ("host", "destroy", "alpha.example")
STEPS = ("make namespace vns-alpha.example", "add address 10.77.0.11/24")


@pytest.mark.parametrize("words", [CREATE, DESTROY], ids=" ".join)
def test_dry_run(vnsmail, supervisor, words):
    """The steps are data: a line each, and nothing else."""
    for kind in (control.CreateHost, control.DestroyHost):
        supervisor.answers[kind] = control.Planned(STEPS, changed=False)
    done = vnsmail(*words, "--dry-run")

    assert (0, "\n".join(STEPS) + "\n", "") == (done.code, done.out, done.err)
    assert [True] == [request.dry_run for request in supervisor.requests]


@pytest.mark.parametrize("words", [CREATE, DESTROY], ids=" ".join)
def test_dry_run_of_nothing(vnsmail, supervisor, words):
    """No step is a remark."""
    for kind in (control.CreateHost, control.DestroyHost):
        supervisor.answers[kind] = control.Planned((), changed=False)
    done = vnsmail(*words, "--dry-run")

    assert ("", "nothing to do\n") == (done.out, done.err)


@pytest.mark.parametrize("words", [CREATE, DESTROY], ids=" ".join)
@pytest.mark.parametrize("dry_run", [(), ("--dry-run",)])
def test_json_of_changes(vnsmail, supervisor, words, dry_run):
    """Whether anything was changed, and the steps."""
    for kind in (control.CreateHost, control.DestroyHost):
        supervisor.answers[kind] = control.Planned(STEPS, changed=not dry_run)
    done = vnsmail(*words, *dry_run, "--json")

    assert {"changed": not dry_run, "steps": list(STEPS)} == done.json
    assert "" == done.err


@pytest.mark.parametrize("discard", [False, True])
def test_destroy(vnsmail, supervisor, discard):
    """Mail in the queue is discarded only if it is said."""
    supervisor.answers[control.DestroyHost] = control.Planned(STEPS, changed=True)
    done = vnsmail(*DESTROY, *(["--discard-queue"] if discard else []))

    assert (0, "", "virtual host alpha.example is destroyed\n") == (
        done.code,
        done.out,
        done.err,
    )
    assert [
        control.DestroyHost("alpha.example", discard_queue=discard)
    ] == supervisor.requests


PLAIN: dict[str, object] = {
    "resolvers": [],
    "source_check": "strict",
    "authentication": "mark",
    "engine": "native",
    "public_addresses": [],
    "limits": {},
    "relay": None,
    "suspended": False,
}
"""What a host has of which nothing was said."""

# list -----------------------------------------------------------------------------

LIST = """\
virtual hosts
name           context    addresses      link  state
────────────────────────────────────────────────────
alpha.example  namespace  10.77.0.11/24  br0
                          fd77::11/64
beta.example   alias      10.77.0.12/24  eth0"""


@pytest.mark.usefixtures("directory")
def test_list(vnsmail):
    """What should be, whether or not anything runs."""
    done = vnsmail("host", "list")

    assert (0, LIST, "") == (done.code, done.screen(), done.err)


@pytest.mark.usefixtures("directory")
def test_list_json(vnsmail):
    """The same, with all facts."""
    assert [
        {
            "name": "alpha.example",
            "context": "namespace",
            "addresses": ["10.77.0.11/24", "fd77::11/64"],
            "domains": ["alpha.example", "mail.alpha.example"],
            "link": "br0",
            "uplink": "bridge",
            "gateways": ["10.77.0.1"],
            "mtu": None,
            "vlan": None,
            "helo": "alpha.example",
            **PLAIN,
        },
        {
            "name": "beta.example",
            "context": "alias",
            "addresses": ["10.77.0.12/24"],
            "domains": ["beta.example"],
            "link": "eth0",
            "uplink": None,
            "gateways": [],
            "mtu": None,
            "vlan": None,
            "helo": "beta.example",
            **PLAIN,
        },
    ] == vnsmail("host", "list", "--json").json


def test_list_nothing(vnsmail, root):
    """Before the first host there is a hint, and no file is made."""
    done = vnsmail("host", "list")

    hint = "no virtual hosts yet; create one with `vnsmail host create`\n"
    assert (0, "", hint) == (done.code, done.out, done.err)
    assert [] == vnsmail("host", "list", "--json").json
    assert [] == list(root.iterdir())


def test_list_of_a_damaged_directory(vnsmail, root):
    """It is one line."""
    (root / "directory.db").write_bytes(b"nonsense" * 1000)
    done = vnsmail("host", "list")

    assert (1, "") == (done.code, done.out)
    assert done.err.startswith(f"vnsmail: cannot use {root}/directory.db: ")
    assert 1 == len(done.err.splitlines())


# show -----------------------------------------------------------------------------

SHOW = """\
name       alpha.example
context    namespace
addresses  10.77.0.11/24
fd77::11/64
domains    alpha.example
mail.alpha.example
link       br0
uplink     bridge
gateways   10.77.0.1
users      ann
bob
namespace  {namespace}
state      ok
listening  10.77.0.11:25
sessions   1
queued     2
deferred   3
oldest     1m0s
guard      on; 3 packets from a wrong source and 1 of others from its addresses were dropped
certificates  alpha.example; self-signed, until 2027-01-15, SHA-256 abcd"""

CERTIFICATES = control.Certificates(
    (
        control.CertificateFacts(
            "", ("alpha.example",), "CN=alpha", 1_800_000_000.0, "abcd", True
        ),
    )
)

REPORT = OwnerReport("alpha.example", ("10.77.0.11:25",), 1, 2, 3, NOW - 60, "")


@pytest.mark.usefixtures("directory")
def test_show(vnsmail, supervisor, root):
    """What it should be, and how it is."""
    supervisor.answers[control.GetStatus] = status(REPORT)
    supervisor.answers[control.GetCertificates] = CERTIFICATES
    supervisor.answers[control.GetGuard] = control.Guarded("", 3, 180, 1)
    done = vnsmail("host", "show", "ALPHA.example")

    namespace = names.namespace(layout(root).instance, "alpha.example")
    assert (0, "") == (done.code, done.err)
    expected = SHOW.format(namespace=namespace)
    assert [line.split() for line in expected.splitlines()] == [
        line.split() for line in done.screen().splitlines()
    ]


@pytest.mark.usefixtures("directory")
def test_show_json(vnsmail, supervisor):
    """The same for programs."""
    supervisor.answers[control.GetStatus] = status(REPORT)
    supervisor.answers[control.GetCertificates] = CERTIFICATES
    supervisor.answers[control.GetGuard] = control.Guarded("", 3, 180, 1)
    found = vnsmail("host", "show", "alpha.example", "--json").json

    assert {
        *("name", "context", "addresses", "domains", "link", "uplink", "gateways"),
        *("mtu", "vlan", "helo", *PLAIN),
        *("users", "namespace", "state", "listening", "sessions", "queued"),
        *("deferred", "oldest", "guard", "certificates"),
    } == set(found)
    assert 180 == found["guard"]["dropped_bytes"]
    assert ["ann", "bob"] == found["users"]


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (status(), "not served"),
        (status(problems=[("beta.example", "port 25 is in use")]), "port 25 is in use"),
        (
            status(OwnerReport("beta.example", (), 0, 0, 0, None, "no source")),
            "no source",
        ),
        (status(OwnerReport("beta.example", (), 0, 0, 0, None, "")), "ok"),
    ],
)
@pytest.mark.usefixtures("directory")
def test_states(vnsmail, supervisor, answer, state):
    """What keeps a host's mail from flowing is its state."""
    supervisor.answers[control.GetStatus] = answer
    supervisor.answers[control.GetCertificates] = CERTIFICATES
    supervisor.answers[control.GetGuard] = control.Guarded("no nftables here")

    found = vnsmail("host", "show", "beta.example", "--json").json
    assert "no nftables here" == found["guard"]["problem"]
    assert (state, None) == (found["state"], found["namespace"])


@pytest.mark.usefixtures("directory")
def test_show_while_nothing_runs(vnsmail):
    """What should be can be shown at any time."""
    done = vnsmail("host", "show", "beta.example", "--json")

    assert (0, "vnsmail is not running") == (done.code, done.json["state"])


@pytest.mark.parametrize("name", ["gamma.example", "nonsense", "10.77.0.11"])
@pytest.mark.usefixtures("directory")
def test_show_nobody(vnsmail, name):
    """A name that is none, and one that nobody has, are bad input."""
    done = vnsmail("host", "show", name)

    assert (2, "") == (done.code, done.out)
    assert 1 == len(done.err.splitlines())
