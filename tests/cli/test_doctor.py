import os
from dataclasses import replace

import msgspec
import pytest

from tests.cli.supervisor import FakeSupervisor
from tests.cli.test_host import ALPHA, BETA
from tests.supervisor.test_examine import CONFINED
from vnsmail.cli import doctor, doctor_names
from vnsmail.directory import Directory
from vnsmail.engines.protocol import OwnerReport
from vnsmail.errors import ResolveError
from vnsmail.model import Family, HostName, SourceAddress, SourceCheck, ip_address
from vnsmail.supervisor import examine, probe
from vnsmail.supervisor.control import (
    DkimKeys,
    GetGuard,
    GetStatus,
    Guarded,
    ListDkim,
    ProcessStatus,
    Status,
)
from vnsmail.supervisor.examine import Finding


def report(owner, problem=""):
    return OwnerReport(owner, (), 0, 3, 0, None, problem)


STATUS = Status(
    pid=1,
    root="/r",
    processes=(
        ProcessStatus("broker", "running", 2, 0, ""),
        ProcessStatus("worker-0", "running", 3, 0, "", (ALPHA.name, BETA.name)),
    ),
    owners=(report("machine"), report(ALPHA.name), report(BETA.name)),
    problems=(),
)


class Machine:
    """What the probes find."""

    def __init__(self, monkeypatch):
        self.network = [Finding("network", "all", "ok", "as planned")]
        self.names = [Finding("dns", "all", "ok", "agree")]
        self.facts = {2: CONFINED, 3: CONFINED}
        self.doors: list[tuple[int, bool]] = []
        monkeypatch.setattr(probe, "network", lambda *_: self.network)
        monkeypatch.setattr(probe, "doors", self._doors)
        monkeypatch.setattr(probe, "process", lambda pid, _: self.facts.get(pid))
        monkeypatch.setattr(probe, "machine", lambda _: [])
        self.clock = Finding("clock", "machine", "ok", "kept right")
        self.reached: list[tuple[str, int]] = []
        monkeypatch.setattr(probe, "clock", lambda _: self.clock)
        monkeypatch.setattr(probe, "reach", self._reach)
        monkeypatch.setattr(doctor, "look_up", lambda *_: self.names)

    def _reach(self, _, hosts, target, port):
        self.reached.append((str(target), port))
        return [Finding("reach", host.name, "ok", "answers") for host in hosts]

    def _doors(self, _, hosts, port, *, served):
        self.doors.append((port, served))
        return []


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    return Machine(monkeypatch)


@pytest.fixture
def hosts(root):
    directory = Directory(root / "directory.db")
    for host in (ALPHA, BETA):
        directory.add_host(host)
        directory.activate(host.name)
        (root / "hosts" / host.name).mkdir(parents=True)
    yield directory
    directory.close()


@pytest.fixture
def supervisor(root, hosts):
    with FakeSupervisor(root) as found:
        found.answers[GetStatus] = STATUS
        found.answers[ListDkim] = DkimKeys(())
        found.answers[GetGuard] = Guarded("")
        yield found


def wrong(done):
    """Return what is not ok, in JSON."""
    return [
        (f["check"], f["subject"], f["verdict"])
        for f in done.json
        if f["verdict"] != "ok"
    ]


SCREEN = """\
ok      settings    {root}/vnsmail.toml: readable
ok      daemon      vnsmail: process 1
ok      directory   {root}/directory.db: 2 hosts
ok      processes   broker: process 2
ok      confinement broker: no more capabilities than it needs
ok      descriptors broker: 30 open, 1024 allowed, 0 hosts
ok      processes   worker-0: process 3
ok      confinement worker-0: no capabilities, own network, system calls filtered
ok      descriptors worker-0: 30 open, 1024 allowed, 2 hosts
ok      network     all: as planned
ok      drift       network: nobody else changed it lately
ok      orphans     folders: each folder has its host
ok      served      alpha.example: by a worker
ok      queue       alpha.example: 3 messages
ok      served      beta.example: by a worker
ok      queue       beta.example: 3 messages
ok      guard       alpha.example: nothing had to be dropped
ok      guard       beta.example: nothing had to be dropped
ok      dns         all: agree
ok      clock       machine: kept right"""


@pytest.mark.usefixtures("supervisor")
def test_all_is_well(vnsmail, root, machine):
    """A line for each check, and exit code 0."""
    done = vnsmail("doctor")

    assert (0, SCREEN.format(root=root)) == (done.code, done.screen())
    assert "all is well: 20 checks\n" == done.err
    assert [(25, True)] == machine.doors


@pytest.mark.usefixtures("supervisor")
def test_something_is_wrong(vnsmail, machine):
    """It is told, with what to do, and the exit code is 1."""
    machine.network = [Finding("network", "beta.example", "wrong", "gone", "do this")]
    machine.names = [Finding("dns", "beta.example", "unknown", "no answer")]
    done = vnsmail("doctor")

    assert 1 == done.code
    assert "wrong   network     beta.example: gone\n          what to do: do this" in (
        done.screen()
    )
    assert "1 wrong, 1 unknown, of 20\n" == done.err


def test_processes(vnsmail, supervisor, machine):
    """One that does not run, one that was started again, one that nobody sees."""
    supervisor.answers[GetStatus] = Status(
        1,
        "/r",
        (
            ProcessStatus("broker", "running", 9, 0, ""),
            ProcessStatus("worker-0", "backoff", None, 4, ""),
            ProcessStatus("worker-1", "running", 3, 1, ""),
        ),
        STATUS.owners,
        (),
    )
    machine.facts[3] = replace(CONFINED, age=2.0)
    found = wrong(vnsmail("doctor", "--json"))

    assert [
        ("processes", "broker", "unknown"),
        ("processes", "worker-0", "wrong"),
        ("processes", "worker-1", "wrong"),
    ] == found


def test_owners(vnsmail, supervisor):
    """A host that is not served, and one whose mail does not flow."""
    owners = (report(ALPHA.name, "the queue is full"),)
    problems = ((BETA.name, "port 25 is in use"),)
    supervisor.answers[GetStatus] = Status(1, "/r", STATUS.processes, owners, problems)
    done = vnsmail("doctor", "--json")

    assert [
        ("queue", ALPHA.name, "wrong"),
        ("served", BETA.name, "wrong"),
    ] == wrong(done)
    assert "port 25 is in use" in done.out


def test_folders(vnsmail, supervisor, root):
    """What lies among the hosts and is none."""
    (root / "hosts" / "old.example").mkdir()
    (root / "hosts" / BETA.name).rmdir()

    assert [
        ("orphans", "old.example", "wrong"),
        ("queue", BETA.name, "wrong"),
    ] == wrong(vnsmail("doctor", "--json"))


def test_a_host_half_made(vnsmail, supervisor, hosts):
    """It is told of, and not looked at."""
    half = replace(
        BETA,
        name=HostName("half.example"),
        domains=(HostName("half.example"),),
        addresses=(SourceAddress.parse("10.0.0.9"),),
    )
    hosts.add_host(half)

    assert [("directory", "half.example", "wrong")] == (
        wrong(vnsmail("doctor", "--json"))
    )


def test_while_vnsmail_is_down(vnsmail, hosts, root, machine):
    """What can be seen without it is looked at: also queues, which nobody has open."""
    (root / "hosts" / ALPHA.name / "queue.db").write_text("no database, for sure")
    done = vnsmail("doctor", "--json")

    assert [
        ("daemon", "vnsmail", "wrong"),
        ("queue", ALPHA.name, "wrong"),
    ] == wrong(done)
    assert [(25, False)] == machine.doors
    assert ("queue", BETA.name, "not used yet") in [
        (f["check"], f["subject"], f["text"]) for f in done.json
    ]


def test_settings_that_cannot_be(vnsmail, supervisor, root):
    """The rest is looked at all the same."""
    (root / "vnsmail.toml").write_text("[smtp]\nprot = 25\n")
    found = wrong(vnsmail("doctor", "--json"))

    assert [("settings", str(root / "vnsmail.toml"), "wrong")] == found


def test_a_directory_that_cannot_be_read(vnsmail, root):
    """Then nothing is said of orphans, as nobody knows who has a host."""
    (root / "directory.db").write_text("no database, for sure")
    (root / "hosts" / "x.example").mkdir(parents=True)
    found = wrong(vnsmail("doctor", "--json"))

    assert [
        ("daemon", "vnsmail", "wrong"),
        ("directory", str(root / "directory.db"), "wrong"),
    ] == found


# Names ---------------------------------------------------------------------------------


class Zone:
    """Answers in place of a resolver."""

    def __init__(self, forward, reverse):
        self.forward, self.reverse = forward, reverse
        self.asked = 0

    async def addresses(self, name, family):
        return self._found(self.forward, (name, family))

    async def reverse_names(self, address):
        return self._found(self.reverse, str(address))

    def _found(self, records, key):
        self.asked += 1
        found = records.get(key, "none")
        if found in {"none", "late"}:
            raise ResolveError(str(key), "X", f"it is {found}", found == "late")
        return found


ADDRESS = ALPHA.addresses[0].address
ADDRESS6 = ALPHA.addresses[1].address
FORWARD: dict[object, object] = {
    (ALPHA.name, Family.IPV4): (ADDRESS,),
    (ALPHA.name, Family.IPV6): (ADDRESS6,),
}
REVERSE: dict[object, object] = {
    str(ADDRESS): (ALPHA.name,),
    str(ADDRESS6): ("other.example", ALPHA.name),
}


def looked_up(monkeypatch, forward, reverse, hosts=(ALPHA,)):
    zone = Zone(forward, reverse)
    monkeypatch.setattr(doctor_names, "Resolver", lambda *_: zone)
    return doctor_names.look_up(hosts, ["192.0.2.53"]), zone


@pytest.mark.parametrize(
    ("forward", "reverse", "verdict", "text"),
    [
        ({}, {}, "ok", "its name and its addresses lead to each other"),
        ({4: (ADDRESS6,)}, {}, "wrong", "alpha.example does not lead to 10.77.0.11"),
        ({4: "none"}, {}, "wrong", "it is none"),
        ({}, {ADDRESS: ("x.example",)}, "wrong", "10.77.0.11 is called x.example"),
        ({}, {ADDRESS: ()}, "wrong", "10.77.0.11 is called nothing"),
        ({}, {ADDRESS6: "none"}, "wrong", "it is none"),
        ({4: "late"}, {}, "unknown", "it is late"),
        ({}, {ADDRESS6: "late"}, "unknown", "it is late"),
        ({4: "none"}, {ADDRESS6: "late"}, "unknown", "it is late"),
    ],
)
def test_names(monkeypatch, forward, reverse, verdict, text):
    """Both ways have to lead to the host; no answer is no verdict."""
    forward = FORWARD | {(ALPHA.name, Family(f)): v for f, v in forward.items()}
    reverse = REVERSE | {str(a): v for a, v in reverse.items()}
    ((found,), _) = looked_up(monkeypatch, forward, reverse)

    assert verdict == found.verdict
    assert text in found.text


def test_nobody_answers(monkeypatch):
    """Then a thousand hosts are not asked about."""
    hosts = [
        replace(ALPHA, name=HostName(f"h{n}.example"), addresses=ALPHA.addresses[:1])
        for n in range(1000)
    ]
    late = {(host.name, Family.IPV4): "late" for host in hosts}
    found, zone = looked_up(monkeypatch, late, {}, hosts)

    assert {"unknown"} == {f.verdict for f in found}
    assert zone.asked <= doctor_names.AT_ONCE + doctor_names.GIVE_UP


# Probes ------------------------------------------------------------------------------


def test_a_process(monkeypatch):
    """The kernel tells of this very process what it told before."""
    monkeypatch.undo()
    found = probe.process(os.getpid(), os.getpid())

    assert found is not None
    assert not found.own_network
    assert found.status["Name"]
    assert 3 <= found.descriptors <= found.limit
    assert 0 <= found.age < 1e6


def test_a_process_that_is_gone(monkeypatch):
    """Nobody has the number 0."""
    monkeypatch.undo()
    assert None is probe.process(0, os.getpid())


# Outside, guard, clock ---------------------------------------------------------------


@pytest.mark.usefixtures("supervisor")
def test_outside(vnsmail, machine):
    """Nobody outside is asked unless a target is given."""
    vnsmail("doctor")
    assert [] == machine.reached
    found = vnsmail("doctor", "--reach", "192.0.2.9", "--json").json
    assert [("192.0.2.9", 25)] == machine.reached
    assert 2 == sum(1 for each in found if each["check"] == "reach")
    mistake = vnsmail("doctor", "--reach", "mx.example")
    assert (2, 1) == (mistake.code, len(mistake.err.splitlines()))


def test_the_guard(vnsmail, supervisor):
    """What was dropped is told of each host, and so is that there is no guard."""
    for answer, text in (
        (Guarded("", 3, 180, 1), "3 packets from an address that is not its own"),
        (Guarded("no nftables here"), "off: no nftables here"),
    ):
        supervisor.answers[GetGuard] = answer
        found = vnsmail("doctor", "--json")
        assert [
            ("guard", "alpha.example", "wrong"),
            ("guard", "beta.example", "wrong"),
        ] == wrong(found)
        assert text in found.out


def test_a_suspended_host(vnsmail, supervisor):
    """It is as it should be, and said to be suspended."""
    owners = tuple(msgspec.structs.replace(r, suspended=True) for r in STATUS.owners)
    supervisor.answers[GetStatus] = msgspec.structs.replace(STATUS, owners=owners)
    done = vnsmail("doctor")

    assert 0 == done.code
    assert "alpha.example: suspended: nothing is sent or received" in done.out


@pytest.mark.parametrize(
    ("newest", "synchronized", "text"),
    [
        (50.0, True, "kept right"),
        (50.0, False, "nobody keeps it right"),
        (500.0, True, "it was set back by 400 s or more"),
    ],
)
def test_the_clock(newest, synchronized, text):
    found = examine.clock(100.0, newest, synchronized=synchronized)

    assert text == found.text
    assert (found.verdict == "ok") == (text == "kept right")


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        (b"220 mx.example ESMTP", "ok"),
        (b"554 go away", "wrong"),
        (b"", "wrong"),
        (ConnectionRefusedError(111, "Connection refused"), "wrong"),
    ],
)
def test_a_server_outside(said, verdict):
    found = examine.reached("a.example", "10.0.0.1", "port 25 of 192.0.2.9", said)

    assert verdict == found.verdict
    assert "10.0.0.1" in found.text


def test_names_behind_nat(monkeypatch):
    """The public address and the name that is said have to lead to each other."""
    public = ip_address("203.0.113.7")
    says = HostName("mx.alpha.example")
    host = replace(
        ALPHA,
        helo=says,
        source_check=SourceCheck.NAT,
        public_addresses=(public,),
    )
    forward: dict[object, object] = {(says, Family.IPV4): (public,)}
    ((found,), _) = looked_up(monkeypatch, forward, {str(public): (says,)}, (host,))
    assert "ok" == found.verdict

    ((found,), _) = looked_up(
        monkeypatch, forward, {str(public): (ALPHA.name,)}, (host,)
    )
    assert "203.0.113.7 is called alpha.example" in found.text
