import json
import queue

import pytest

from tests.cli.supervisor import FakeSupervisor
from vnsmail.directory import Directory, declaration
from vnsmail.model import (
    Context,
    HostName,
    SourceAddress,
    Uplink,
    User,
    VirtualHost,
)
from vnsmail.supervisor import control
from vnsmail.supervisor.control import Applied, ApplyHosts, FileProblem, HostChange

FILE = '[host."alpha.example"]\naddresses = ["10.77.0.11/24"]\n'

FORM = "'x': write it as 10.77.0.11/24 or fd77::11/64"

ANSWER = Applied(
    changes=(
        HostChange("zeta.example", "create", ("context alias", "users ann bob")),
        HostChange("alpha.example", "change", ("users -eve +ann",)),
        HostChange("beta.example", "mend", ("make namespace vns-beta.example",)),
        HostChange("gamma.example", "destroy"),
    ),
    steps=("remove namespace vns-gamma.example", "make namespace vns-beta.example"),
    unchanged=7,
)

SCREEN = """\
+ create zeta.example: context alias; users ann bob
~ change alpha.example: users -eve +ann
~ mend beta.example: make namespace vns-beta.example
- destroy gamma.example
"""


@pytest.fixture
def supervisor(root):
    with FakeSupervisor(root) as found:
        found.answers[ApplyHosts] = ANSWER
        yield found


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "hosts.toml"
    path.write_text(FILE)
    return path


def test_apply(vnsmail, supervisor, file):
    """What was done is data, how much it was is a remark."""
    done = vnsmail("apply", file)

    assert (0, SCREEN) == (done.code, done.out)
    assert "1 created, 1 changed, 1 mended, 1 destroyed, 7 as they were\n" == done.err
    assert [ApplyHosts(FILE)] == supervisor.requests


def test_dry_run(vnsmail, supervisor, file):
    """The steps of the network are told too."""
    done = vnsmail("apply", "--dry-run", "--discard-queue", file)
    steps = "".join(f"    {step}\n" for step in ANSWER.steps)

    assert (0, SCREEN + steps) == (done.code, done.out)
    assert done.err.startswith("this would be done: 1 created, ")
    assert [ApplyHosts(FILE, True, True)] == supervisor.requests


def test_json(vnsmail, supervisor, file):
    """The same for programs."""
    found = vnsmail("apply", file, "--json").json

    assert ["changes", "problems", "steps", "type", "unchanged"] == sorted(found)
    assert "zeta.example" == found["changes"][0]["name"]


def test_a_failure(vnsmail, supervisor, file):
    """One host that failed is told, and makes the exit code 1."""
    change = HostChange("zeta.example", "create", (), "port 25 is in use")
    supervisor.answers[ApplyHosts] = Applied((change, ANSWER.changes[1]))
    done = vnsmail("apply", file)

    assert 1 == done.code
    assert "!   zeta.example failed: port 25 is in use" in done.out.splitlines()
    assert "1 changed, 1 failed, 0 as they were\n" == done.err


def test_nothing_to_do(vnsmail, supervisor, file):
    """Then nothing is written but how many there are."""
    supervisor.answers[ApplyHosts] = Applied(unchanged=5)
    done = vnsmail("apply", file)

    assert (0, "", "5 as they were\n") == (done.code, done.out, done.err)


def test_a_wrong_file(vnsmail, root, file):
    """It is told with file, line and key, whether vnsmail runs or not."""
    file.write_text('[host."alpha.example"]\nlink = 3\naddresses = ["x"]\n')
    done = vnsmail("apply", file)

    assert (2, "") == (done.code, done.out)
    assert [
        f'vnsmail: {file}:2: host."alpha.example".link: put it in quotes',
        f'vnsmail: {file}:3: host."alpha.example".addresses[0]: {FORM}',
    ] == done.err.splitlines()


def test_no_toml(vnsmail, file):
    """So is what is not TOML at all."""
    file.write_text("\n[host\n")
    done = vnsmail("apply", file, "--json")

    assert 2 == done.code
    assert done.err.startswith(f"vnsmail: {file}:2: this is not TOML: ")
    assert 2 == done.json["problems"][0]["line"]


def test_what_the_machine_has_against_it(vnsmail, supervisor, file):
    """What only the supervisor can know looks the same."""
    problem = FileProblem(2, 'host."alpha.example".addresses[0]', "it is taken")
    supervisor.answers[ApplyHosts] = Applied(problems=(problem,))
    done = vnsmail("apply", file)

    assert (2, "") == (done.code, done.out)
    assert f"vnsmail: {file}:2: {problem.key}: it is taken\n" == done.err


def test_files_that_cannot_be_read(vnsmail, tmp_path, file):
    """One that is not there, and one that is no text."""
    missing = vnsmail("apply", tmp_path / "no.toml")
    file.write_bytes(b"# a\n# \xff\n")
    binary = vnsmail("apply", file)

    assert (2, 2) == (missing.code, binary.code)
    assert "cannot read it: No such file or directory" in missing.err
    assert "line 2 is not UTF-8" in binary.err


def test_standard_input(vnsmail, supervisor, monkeypatch, tmp_path, file):
    """- is what is piped in."""
    with file.open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert 0 == vnsmail("apply", "-").code

    assert [ApplyHosts(FILE)] == supervisor.requests


def test_not_running(vnsmail, file):
    """Nobody can do it."""
    assert 3 == vnsmail("apply", file).code


def test_a_large_file(vnsmail, supervisor, file):
    """A thousand hosts are more than a packet holds, both ways."""
    many = "".join(
        f'[host."h{n}.example"]\naddresses = ["10.8.{n // 250}.{n % 250 + 1}/16"]\n'
        f"users = [{', '.join(repr(f'user{u}') for u in range(20))}]\n"
        for n in range(1000)
    )
    file.write_text(many)
    supervisor.answers[ApplyHosts] = Applied(steps=("make a namespace",) * 20_000)
    found = vnsmail("apply", file, "--json").json

    assert 20_000 == len(found["steps"])
    assert [ApplyHosts(many)] == supervisor.requests


def test_progress(vnsmail, supervisor, file, monkeypatch):
    """What takes long shows how far it is."""
    answers: queue.Queue[object] = queue.Queue()

    class Late:
        def __init__(self):
            self.looks = 0

        def put(self, answer):
            answers.put(answer)

        def get(self, timeout):
            self.looks += 1
            if self.looks < 4:
                raise queue.Empty
            return answers.get()

    supervisor.answers[control.GetProgress] = control.Progress("hosts served", 7, 9)
    monkeypatch.setattr("vnsmail.cli.apply.queue.Queue", Late)
    done = vnsmail("apply", file)

    assert 0 == done.code
    assert "apply: hosts served (7/9)" == done.err.splitlines()[0]


# Export ------------------------------------------------------------------------------


@pytest.fixture
def directory(root):
    directory = Directory(root / "directory.db")
    for name, context, uplink, number in (
        ("beta.example", Context.ALIAS, None, 12),
        ("alpha.example", Context.NAMESPACE, Uplink.BRIDGE, 11),
    ):
        addresses = (SourceAddress.parse(f"10.77.0.{number}/24"),)
        host = HostName(name)
        directory.add_host(
            VirtualHost(host, context, addresses, (host,), "br0", uplink)
        )
        directory.activate(host)
    directory.add_user(User(HostName("alpha.example"), "ann"))
    directory.close()


TABLES = """
[host."alpha.example"]
context = "namespace"
addresses = ["10.77.0.11/24"]
link = "br0"
uplink = "bridge"
gateways = []
users = ["ann"]

[host."beta.example"]
context = "alias"
addresses = ["10.77.0.12/24"]
link = "br0"
users = []
"""


@pytest.mark.usefixtures("directory")
def test_export(vnsmail):
    """The file has all hosts, by name; no supervisor is needed."""
    done = vnsmail("export")

    assert (0, "") == (done.code, done.err)
    assert declaration.HEAD + TABLES == done.out


@pytest.mark.usefixtures("directory")
def test_export_as_json(vnsmail):
    """The same values for programs."""
    found = vnsmail("export", "--json").json

    assert ["ann"] == found["host"]["alpha.example"]["users"]
    assert ["alpha.example", "beta.example"] == list(found["host"])


def test_export_of_nothing(vnsmail):
    """A root without hosts has a file without tables."""
    assert declaration.HEAD == vnsmail("export").out


def test_schema(vnsmail):
    """What an editor wants to know."""
    assert declaration.schema() == json.loads(vnsmail("export", "--schema").out)


@pytest.mark.usefixtures("supervisor")
def test_many_errors(vnsmail, file):
    """The first ones are told, and how many there are more; a program gets all."""
    file.write_text("".join(f'[host."h{n}.example"]\nadress = 1\n' for n in range(500)))
    done = vnsmail("apply", file)
    lines = done.err.splitlines()

    assert (2, 21) == (done.code, len(lines))
    assert lines[-1].endswith("980 more; mend these first")
    assert 1000 == len(vnsmail("apply", "--json", file).json["problems"])
